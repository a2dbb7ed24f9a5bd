//! One step of inversion and one of distillation: time, arithmetic and memory, beside the same in plain PyTorch.

use super::{Pair, Peers, median, scaling};
use crate::config::{self, DatasetName, ModelName, Precision, ReduceRule};
use crate::data::{self, Facts, Normalise, View, apply_views, to_bytes, to_unit};
use crate::device::stream;
use crate::distill::{Criterion, Slice, Student, backward};
use crate::error::{Error, Result};
use crate::inversion::{Call, Local, Networks, Settings, SharedGenerator, descend};
use crate::layout::LogicalRank;
use crate::losses::StatisticsAverage;
use crate::methods::Method;
use crate::models::{self, Network, Shape};
use crate::nn::{Pass, State, compute_in, kind, multiplications, shim, weights};
use crate::parallel::{World, thread_count};
use crate::replay::{Rows, Target};
use crate::rng::{Key, Purpose};
use crate::teacher::Teacher;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Runs inside the Python that `--against` names.
const PEERS: &str = concat!(include_str!("../../tests/benches/plain.py"), include_str!("../../tests/benches/step_peers.py"));

pub(super) const SEED: u64 = 1;
const RANK: LogicalRank = LogicalRank(0);
/// Inner steps of one turn.
const STEPS: u64 = 2;
/// Most turns of what a machine reaches at best: each takes a second on one core.
const PEAK_TURNS: u64 = 3;
const TEMPERATURE: f64 = 20.0;
/// Learning rate of the distillation steps: small, so that every turn does the same work on nearly the same numbers.
pub(super) const LR: f64 = 1e-4;
/// The student's loss.
pub(super) const CRITERION: Criterion = Criterion::Distillation { temperature: TEMPERATURE, label_weight: 0.0 };

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct StepSettings {
    /// The teacher's architecture.
    pub teacher: ModelName,
    /// The student's.
    pub student: ModelName,
    /// Classes, channels and size of the images.
    pub dataset: DatasetName,
    /// Images of a step.
    pub batch: usize,
    /// What our convolutions and batch-norm compute with.
    pub dtype: Precision,
    /// Where.
    pub device: Device,
    /// Turns that every contender gets. A result is the median turn.
    pub turns: u64,
}

/// Kinds of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Generator, views, teacher with statistics, student, losses, backward, two Adam steps.
    Inversion,
    /// Views, teacher, student forward and backward, SGD.
    Distillation,
    /// The same with the teacher's stored logits.
    DistillationStored,
}

/// One kind of step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTimes {
    /// Which.
    pub work: Work,
    /// Milliseconds, median turn.
    pub ms: f64,
    /// Images per second.
    pub images_per_second: f64,
    /// 10⁹ floating-point operations of its convolutions and linear layers, forward and backward, as the plain form counts them.
    pub gflop: f64,
    /// Those per second.
    pub gflop_per_second: f64,
    /// Megabytes of host memory that libtorch asks for in one step.
    pub allocated_mb: f64,
    /// Milliseconds of plain PyTorch, in turn with ours; its distillation step always has a teacher forward.
    pub peer_ms: Option<f64>,
    /// How many times faster ours is.
    pub ratio: Option<f64>,
    /// Share of collectives in such a step of all ranks together, as [`super::WorkScaling`] has it: an inversion has one inner step there.
    /// `None` on one rank, and of a step that asks the teacher, whose collectives are those of the one with stored logits.
    pub communication_share: Option<f64>,
}

/// What this machine's libtorch reaches at best, 10⁹ operations per second, in what our convolutions compute with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Peaks {
    /// Product of two 4096×4096 matrices; on CPUs, which are as fast with less, 2048×2048.
    pub matrix_product: f64,
    /// 3×3 convolution, 64 → 64 channels, 128 images of 32×32, in the faster of both memory layouts.
    pub convolution: f64,
}

/// Everything measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// The pair.
    pub teacher: &'static str,
    /// The pair.
    pub student: &'static str,
    /// Images of a step.
    pub batch: usize,
    /// Turns that the medians are of.
    pub turns: u64,
    /// Ranks, each with a batch of its own: all measure their steps at once, without a word between them. Times are rank 0's.
    pub ranks: usize,
    /// Threads of libtorch, ours and the peer's.
    pub threads: usize,
    /// What our convolutions and batch-norm compute with; the peer's are f32.
    pub dtype: &'static str,
    /// Where.
    pub device: String,
    /// Megabytes of GPU memory that libtorch held at most.
    pub gpu_mb: Option<f64>,
    /// Each kind of step.
    pub steps: Vec<StepTimes>,
    /// Best rates.
    pub peaks: Peaks,
    /// The peer's PyTorch.
    pub peer_version: Option<String>,
    /// Largest relative difference between our loss terms and the peer's.
    pub loss_difference: Option<f64>,
}

/// All that the steps need.
pub(super) struct Bench {
    pub(super) settings: Settings,
    facts: Facts,
    pub(super) normalise: Normalise,
    pub(super) teacher: Teacher,
    pub(super) student: Student,
    pub(super) generator: SharedGenerator,
    pub(super) local: Local,
    asks_teacher: Rows,
    stored: Rows,
}

fn normals(index: u64, shape: &[i64], device: Device) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    Tensor::from_slice(&Key::global(SEED, Purpose::Latent, 1000 + index).normals(count)).view(shape).to_device(device)
}

impl Bench {
    pub(super) fn new(of: StepSettings) -> Result<Self> {
        let device = of.device;
        compute_in("--dtype", of.dtype, device, ReduceRule::Deterministic)?;
        let facts = data::facts(of.dataset);
        let shape = Shape { channels: facts.channels, classes: facts.classes };
        let network = |name, purpose| {
            let network = models::build(name, shape);
            let state = State::initialised(network.blueprint(), SEED, purpose, device);
            (network, state)
        };
        let (teacher, teacher_state) = network(of.teacher, Purpose::StudentInit);
        let (student, student_state) = network(of.student, Purpose::GeneratorInit);
        let (mut teacher, mut student) = (Teacher::new(teacher, teacher_state), Student::new(student, student_state, 0.9, 1e-4)?);
        let inversion = config::Inversion { steps: STEPS, batch_size: of.batch, statistics_momentum: 0.0, ..Default::default() };
        let mut generator = SharedGenerator::new(&config::Generator::default(), &inversion, &facts, SEED, device)?;
        teacher.compute_in(of.dtype);
        student.compute_in(of.dtype);
        generator.compute_in(of.dtype);
        let normalise = Normalise::new(&facts, device);
        let [h, w] = facts.size;
        let images_bchw = to_bytes(&normals(0, &[of.batch as i64, facts.channels, h, w], device).sigmoid());
        let key = Key::global(SEED, Purpose::DrawView, 0);
        let views: Vec<View> = (0..of.batch as u64).map(|i| View::draw(&key, i, 4, true)).collect();
        let logits = teacher.evaluate(&normalise.apply(&apply_views(&to_unit(&images_bchw), &views))).head;
        let rows = |target| Rows {
            images_bchw: images_bchw.shallow_clone(),
            ids_b: Tensor::arange(of.batch as i64, (Kind::Int64, device)),
            views: views.clone(),
            weights_b: normals(1, &[of.batch as i64], device).sigmoid(),
            target,
        };
        let (asks_teacher, stored) = (rows(Target::AskTeacher), rows(Target::Logits(logits)));
        let settings = Settings {
            recipe: Method::of(&config::Config::default()).recipe.expect("SSD-KD makes images"),
            image: [facts.channels, h, w],
            inversion,
            phi: config::Phi::default(),
            distill: config::Distill { temperature: TEMPERATURE, teacher_views: 0, ..Default::default() },
            image_dtype: config::ImageDtype::Uint8,
            seed: SEED,
            classes: facts.classes,
        };
        Ok(Self {
            local: Local { average: StatisticsAverage::new(0.0, teacher.batch_norm_channels(), device), contrast: None },
            student,
            settings,
            facts,
            normalise,
            teacher,
            generator,
            asks_teacher,
            stored,
        })
    }

    /// Loss terms of one inner step, and of a distillation step with stored views and with the teacher asked, from the same weights. After
    /// more than one inner step, Adam has turned rounding into steps.
    fn losses(&mut self) -> Result<Vec<f64>> {
        let steps = std::mem::replace(&mut self.settings.inversion.steps, 1);
        let inversion = self.work(Work::Inversion);
        self.settings.inversion.steps = steps;
        let (stored, batch) = (self.slice(Work::DistillationStored), self.settings.inversion.batch_size as f64);
        Ok([inversion?, vec![stored.sums.double_value(&[0]) / batch], self.work(Work::Distillation)?].concat())
    }

    fn slice(&mut self, work: Work) -> Slice {
        let rows = if work == Work::Distillation { &self.asks_teacher } else { &self.stored };
        let (batch, dropout) = (self.settings.inversion.batch_size, Key::global(SEED, Purpose::Dropout, 0));
        backward(&mut self.student, Some(&self.teacher), &self.normalise, rows, CRITERION, batch, dropout)
    }

    /// Runs a turn and gives its loss terms.
    fn work(&mut self, work: Work) -> Result<Vec<f64>> {
        let batch = self.settings.inversion.batch_size;
        let read = |t: &Tensor| Vec::<f64>::try_from(t).map_err(|e| Error::refused(e.to_string()));
        if work == Work::Inversion {
            let networks = Networks { teacher: &self.teacher, student: self.student.frozen(), normalise: &self.normalise };
            let class_counts_k = vec![0; self.settings.classes as usize];
            let call = Call { round: 0, rank: RANK, adversarial: true, class_counts_k: &class_counts_k, first_id: 0 };
            return read(&descend(&self.settings, &networks, Some(&mut self.generator), &mut self.local, &call)?.terms.narrow(0, 0, 4));
        }
        let slice = self.slice(work);
        self.student.apply(&slice.payload, 1, LR)?;
        Ok(vec![slice.sums.double_value(&[0]) / batch as f64])
    }

    fn steps_in(work: Work) -> f64 {
        if work == Work::Inversion { STEPS as f64 } else { 1.0 }
    }

    /// Seconds of a step, over one turn.
    fn turn(&mut self, work: Work) -> Result<f64> {
        let began = Instant::now();
        self.work(work)?;
        stream::finish(self.normalise.device());
        Ok(began.elapsed().as_secs_f64() / Self::steps_in(work))
    }

    /// 10⁹ operations of a step of each kind: a multiplication and an addition each; a backward pass costs a forward for the input's
    /// gradient and one for the weights'.
    fn gflop(&self) -> impl Fn(Work) -> f64 + use<> {
        let images = self.normalise.apply(&to_unit(&self.stored.images_bchw));
        let latent = normals(2, &[images.size()[0], self.generator.network.shape().latent], images.device());
        let count = |body: &dyn Fn() -> Tensor| tch::no_grad(|| multiplications(body).1) as f64;
        let of = |(network, state): (&dyn Network, &State)| count(&|| network.forward(state, &images, &mut Pass::eval()).logits);
        let (teacher, student) = (of(self.teacher.parts()), of(self.student.frozen()));
        let generator = count(&|| self.generator.network.forward(&self.generator.state, &latent, &mut Pass::eval()));
        move |work| {
            let forwards = match work {
                Work::Inversion => 2.0 * teacher + 2.0 * student + 3.0 * generator,
                Work::Distillation => teacher + 3.0 * student,
                Work::DistillationStored => 3.0 * student,
            };
            2e-9 * forwards
        }
    }

    /// What a projection of the pair to many GPUs counts.
    pub(super) fn counts(&self) -> Pair {
        let (gflop, state) = (self.gflop(), self.student.state());
        let image: i64 = self.facts.channels * self.facts.size.iter().product::<i64>();
        Pair {
            batch: self.settings.inversion.batch_size,
            inner_steps: config::Inversion::default().steps,
            inner_gflop: gflop(Work::Inversion),
            student_gflop: gflop(Work::DistillationStored),
            generator_values: self.generator.state.parameters().numel(),
            student_values: state.parameters().numel() + state.statistics().numel(),
            // As `Replay::row_bytes` has it for uint8: image, logits of one view, id, weight.
            row_bytes: (image + 4 * self.facts.classes) as usize + 16,
        }
    }

    /// What the peer computes with: the same numbers.
    fn write(&self, path: &Path) -> Result<()> {
        let (_, teacher) = self.teacher.parts();
        let parts = [("teacher", teacher), ("student", self.student.state()), ("generator", &self.generator.state)];
        let mut tensors: Vec<(String, Tensor)> = parts
            .into_iter()
            .flat_map(|(name, state)| state.state_dict().into_iter().map(move |(key, tensor)| (format!("{name}.{key}"), tensor.detach())))
            .filter(|(key, _)| !key.ends_with("num_batches_tracked"))
            .collect();
        let (b, z) = (self.settings.inversion.batch_size, self.generator.network.shape().latent);
        let key = |purpose| Key::of(SEED, purpose, 0, RANK);
        let latent = Tensor::from_slice(&key(Purpose::Latent).normals(b * z as usize)).view([b as i64, z]);
        let labels: Vec<i64> = (0..b as u64).map(|i| key(Purpose::Labels).below(i, self.settings.classes as u64) as i64).collect();
        let shift = self.settings.inversion.view_shift;
        let of_steps: Vec<View> = (0..STEPS * b as u64).map(|i| View::draw(&key(Purpose::InversionView), i, shift, true)).collect();
        tensors.extend([
            ("latent".into(), latent),
            ("labels".into(), Tensor::from_slice(&labels)),
            ("inversion_views".into(), View::table(&of_steps).view([STEPS as i64, -1, 3])),
            ("images".into(), to_unit(&self.stored.images_bchw)),
            ("views".into(), View::table(&self.stored.views)),
            ("weights".into(), self.stored.weights_b.shallow_clone()),
        ]);
        weights::write(path, &tensors, &[])
    }

    fn spec(&self, of: StepSettings) -> String {
        let k = &self.settings.inversion;
        serde_json::json!({
            "teacher": of.teacher.name(), "student": of.student.name(), "size": self.facts.size, "mean": self.facts.mean, "std": self.facts.std,
            "steps": STEPS, "lr_generator": k.lr_generator, "lr_latent": k.lr_latent, "statistics_weight": k.statistics_weight,
            "task_weight": k.task_weight, "adversarial_weight": k.adversarial_weight, "temperature": TEMPERATURE, "lr": LR,
        })
        .to_string()
    }
}

/// Counts what a projection of a pair needs.
pub fn counts(of: StepSettings) -> Result<Pair> {
    Ok(Bench::new(of)?.counts())
}

/// Measures the three kinds of steps, each turn between those of plain PyTorch in `against`; notes say what could not be measured.
/// A collective: several ranks then measure their steps together ([`scaling`]).
pub fn steps(of: StepSettings, world: &World, against: Option<&Path>) -> Result<(StepReport, Vec<String>)> {
    let mut bench = Bench::new(of)?;
    let ranks = world.layout().ranks();
    world.barrier()?;
    let (mut peers, notes) = match against {
        None => (None, Vec::new()),
        Some(python) => {
            let file = std::env::temp_dir().join(format!("ssdkd-bench-{}.safetensors", std::process::id()));
            bench.write(&file)?;
            let started = Peers::start(python, PEERS, &[file.display().to_string(), bench.spec(of)], thread_count());
            // Who has said hello has read it.
            let _ = std::fs::remove_file(&file);
            started
        }
    };
    let theirs: Option<Vec<f64>> = peers.as_mut().and_then(|peers| serde_json::from_str(&peers.tell("losses")?).ok());
    let ours = bench.losses()?;
    // Theirs has one distillation step, which both of ours have to equal.
    let twice = |mut losses: Vec<f64>| {
        losses.extend(losses.last().copied());
        losses
    };
    let theirs = theirs.map(twice);
    let difference = |theirs: Vec<f64>| ours.iter().zip(theirs).map(|(a, b)| (a - b).abs() / b.abs().max(1e-12)).fold(0.0, f64::max);
    let loss_difference = theirs.map(difference);
    bench.work(Work::DistillationStored)?;

    let mut turns: [Vec<f64>; 3] = Default::default();
    let mut others: [Vec<f64>; 2] = Default::default();
    for _ in 0..of.turns {
        for (work, turns) in [Work::Inversion, Work::Distillation, Work::DistillationStored].into_iter().zip(&mut turns) {
            turns.push(bench.turn(work)?);
        }
        for (name, seconds) in peers.iter_mut().flat_map(Peers::turns) {
            others[usize::from(name != "inversion")].push(seconds);
        }
    }
    let others = others.map(|turns| (!turns.is_empty()).then(|| median(turns)));
    let [inversion, distillation, stored] = turns.map(median);
    let gflop_of = bench.gflop();
    let mut found = Vec::new();
    for (work, seconds, peer) in [
        (Work::Inversion, inversion, others[0]),
        (Work::Distillation, distillation, others[1]),
        (Work::DistillationStored, stored, others[1]),
    ] {
        let before = shim::allocated_bytes()?;
        bench.work(work)?;
        let allocated = (shim::allocated_bytes()? - before) as f64 / Bench::steps_in(work);
        let gflop = gflop_of(work);
        found.push(StepTimes {
            work,
            ms: 1e3 * seconds,
            images_per_second: of.batch as f64 / seconds,
            gflop,
            gflop_per_second: gflop / seconds,
            allocated_mb: allocated / 1e6,
            peer_ms: peer.map(|seconds| 1e3 * seconds),
            ratio: peer.map(|peer| peer / seconds),
            communication_share: None,
        });
    }
    // Before the buffers and the second networks of the ranks together.
    let gpu_mb = if let Device::Cuda(gpu) = of.device { Some(stream::memory(gpu)?.peak as f64 / 1e6) } else { None };
    drop(bench);
    if ranks > 1 {
        for together in scaling(of, world)?.steps {
            found
                .iter_mut()
                .filter(|step| step.work == together.work)
                .for_each(|step| step.communication_share = Some(together.communication_share));
        }
    }
    let report = StepReport {
        teacher: of.teacher.name(),
        student: of.student.name(),
        batch: of.batch,
        turns: of.turns,
        ranks,
        threads: thread_count(),
        dtype: of.dtype.name(),
        device: format!("{:?}", of.device),
        gpu_mb,
        steps: found,
        peaks: peaks(of),
        peer_version: peers.as_ref().and_then(|peers| peers.version.clone()),
        loss_difference,
    };
    Ok((report, notes))
}

fn peaks(StepSettings { dtype, device, turns, .. }: StepSettings) -> Peaks {
    let rate = |gflop: f64, body: &dyn Fn() -> Tensor| {
        drop(body());
        stream::finish(device);
        let turns = (0..PEAK_TURNS.min(turns)).map(|_| {
            let began = Instant::now();
            drop(body());
            stream::finish(device);
            gflop / began.elapsed().as_secs_f64()
        });
        median(turns.collect())
    };
    let (n, images) = (if device.is_cuda() { 4096i64 } else { 2048 }, 128i64);
    let of = |index, shape: &[i64]| normals(index, shape, device).to_kind(kind(dtype));
    let (a, b) = (of(3, &[n, n]), of(4, &[n, n]));
    let (x, weight) = (of(5, &[images, 64, 32, 32]), of(6, &[64, 64, 3, 3]));
    let [x_last, weight_last] = [&x, &weight].map(|t| t.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]));
    let of_convolution = 2e-9 * (images * 32 * 32 * 64 * 64 * 9) as f64;
    Peaks {
        matrix_product: rate(2e-9 * (n * n * n) as f64, &|| a.matmul(&b)),
        convolution: [(&x, &weight), (&x_last, &weight_last)]
            .map(|(x, weight)| rate(of_convolution, &|| x.conv2d::<&Tensor>(weight, None, 1, 1, 1, 1)))
            .into_iter()
            .fold(0.0, f64::max),
    }
}
