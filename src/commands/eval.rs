//! `ssdkd eval`.

use super::{join, join_traces, together};
use crate::cli::EvalArgs;
use crate::config::{Config, Eval, Job, ModelName, Precision, check, load};
use crate::data::{self, Normalise, Split, images_of};
use crate::error::{Error, Result};
use crate::eval::{self, Score, Test};
use crate::layout::Layout;
use crate::models::{Shape, check_size};
use crate::nn::compute_in;
use crate::parallel::set_threads;
use crate::task::Task;
use crate::teacher::Teacher;
use std::path::PathBuf;

/// A network to evaluate.
struct Candidate {
    role: &'static str,
    model: ModelName,
    weights: PathBuf,
}

/// Evaluates a run's networks, or one weights file, and prints a line of JSON for each.
pub fn run(args: &EvalArgs) -> Result<()> {
    let mut launch = join()?;
    let (mut config, candidates) = launch.agree(subject(args))?;
    let _watchdog = launch.agree(launch.watch(config.parallel.timeout_s))?;
    launch.agree(data::complete(&mut config))?;
    let device = launch.take_device(config.device, config.parallel.share_gpu, config.parallel.timeout_s)?;
    launch.agree(set_threads(config.parallel.threads, launch.local()))?;
    let layout = Layout::new(launch.ranks(), launch.ranks())?;
    let world = launch.into_world(layout, config.parallel.reduce, device);
    world.agree(compute_in("train.precision", Precision::F32, device, config.parallel.reduce))?;
    // Everything that can be refused comes before the first score.
    let facts = data::facts_of(&config);
    let shape = Shape { channels: facts.channels, classes: facts.classes };
    for candidate in &candidates {
        world.agree(Task::check(config.dataset, "--model", candidate.model))?;
    }
    let load = |candidate: &Candidate| {
        let network = Teacher::load(candidate.model, &candidate.weights, shape, facts.size, world.device())?;
        check_size(network.parts().0, candidate.model, "data.size", facts.size)?;
        network.normalised_as(&facts.mean, &facts.std, &candidate.weights).map(|()| network)
    };
    let networks: Vec<Teacher> = world.agree(candidates.iter().map(load).collect())?;
    let split = world.agree(data::open(config.dataset, &config.data, Split::Test))?;
    let batch = match config.eval.batch_size {
        // Of a file alone nobody has chosen one: the default is meant for images of 32×32.
        wanted if args.run_dir.is_none() && wanted == Eval::default().batch_size => {
            images_of(wanted as i64 * 32 * 32, &split.rows(&[0]).0.size()) as usize
        }
        wanted => wanted,
    };
    let test = Test::Split(split, batch);
    let normalise = Normalise::new(&facts, world.device());
    for (candidate, network) in candidates.iter().zip(&networks) {
        let score = together(layout.ranks(), eval::evaluate(&world, network.parts(), &normalise, &test, None))?;
        for score in score.iter().filter(|_| world.leads()) {
            println!("{}", line(&config, candidate, score));
        }
    }
    join_traces(&world)
}

fn subject(args: &EvalArgs) -> Result<(Config, Vec<Candidate>)> {
    let data_dir: Vec<String> = args.data_dir.iter().map(|dir| format!("data.dir={}", dir.display())).collect();
    if let Some(folder) = &args.run_dir {
        let config = load(&[folder.join("config.toml")], &data_dir)?.config;
        let (student, teacher) = (folder.join("student.safetensors"), folder.join("teacher.safetensors"));
        let candidate = |role, model, weights| Candidate { role, model, weights };
        let mut candidates = Vec::new();
        if teacher.exists() {
            candidates.push(candidate("teacher", config.teacher.model, teacher));
        } else {
            candidates.extend(config.teacher.weights.clone().map(|w| candidate("teacher", config.teacher.model, w)));
            candidates.push(candidate("student", config.student.model, student));
        }
        return Ok((config, candidates));
    }
    let (Some(weights), Some(model), Some(dataset)) = (&args.weights, args.model, args.dataset) else {
        return Err(Error::refused("name a run with --run-dir, or a network with --weights, --model and --dataset"));
    };
    let mut config = Config { dataset, ..load(&[], &data_dir)?.config };
    // It says of itself what a folder of pictures does not.
    config.teacher.weights = Some(weights.clone());
    check(&config, Job::Train)?;
    Ok((config, vec![Candidate { role: "network", model, weights: weights.clone() }]))
}

fn line(config: &Config, candidate: &Candidate, score: &Score) -> serde_json::Value {
    let mut line = serde_json::json!({
        "role": candidate.role,
        "model": candidate.model.name(),
        "weights": candidate.weights,
        "dataset": config.dataset.name(),
        "images": score.images,
    });
    let scores = serde_json::to_value(&score.scores).unwrap_or_default();
    if let (Some(line), Some(scores)) = (line.as_object_mut(), scores.as_object()) {
        line.extend(scores.clone());
        line.insert("loss".into(), score.loss.into());
    }
    line
}
