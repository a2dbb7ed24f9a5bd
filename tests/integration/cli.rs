//! Commands as a user types them, and what they say when refused.

use crate::launch::{has_mpirun, root, run, small_fashion_mnist, ssdkd, ssdkd_on};
use clap::Parser;
use ssdkd::cli::Cli;
use ssdkd::commands;
use ssdkd::metrics::Timings;
use ssdkd::nn::weights;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;
use tch::Device;

const DEMO: &str = "configs/fashion_mnist/demo.toml";

#[test]
fn configuration_is_shown_with_origins_and_checked() {
    let out = ssdkd(&["config", "show", "--config", DEMO, "--set", "seed=5"]).expect(0).stdout;
    let line = |key: &str| out.lines().find(|l| l.starts_with(&format!("{key} ="))).unwrap_or_else(|| panic!("{key}")).to_owned();
    assert!(line("seed").contains("5") && line("seed").ends_with("# command line"));
    assert!(line("replay.capacity").contains("6000") && line("replay.capacity").ends_with("demo.toml"));
    assert!(line("replay.beta").ends_with("# default"));
    ssdkd(&["config", "check", "--config", DEMO]).expect(0);
    ssdkd(&["config", "check", "--config", DEMO, "--set", "replay.gamma=1"]).expect(2).says(&["replay.gamma: unknown key"]);
}

/// `ssdkd config check`, without a process.
fn checks_out(arguments: &[&str]) {
    let cli = Cli::try_parse_from([&["ssdkd", "config", "check"], arguments].concat()).unwrap();
    commands::run(cli.command, Timings::new().0).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
}

#[test]
fn every_shipped_configuration_is_valid() {
    let mut count = 0;
    for folder in ["cifar10", "cifar100", "fashion_mnist", "folder", "none", "nyuv2", "scenes13", "svhn", "tiny_imagenet"] {
        for entry in std::fs::read_dir(root().join("configs").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                let command = if path.ends_with("teacher.toml") { "teach" } else { "train" };
                checks_out(&["--for", command, "--config", path.to_str().unwrap()]);
                count += 1;
            }
        }
    }
    assert!(count >= 23, "{count}");
    for entry in std::fs::read_dir(root().join("configs/methods")).unwrap() {
        let path = entry.unwrap().path();
        checks_out(&["--config", "configs/cifar10/wrn40_2-wrn16_1.toml", path.to_str().unwrap()]);
    }
}

/// A check is for one command: its batch rules hold, and what it lacks is said. Files that are named have to be there.
#[test]
fn a_configuration_is_checked_for_the_command_it_is_meant_for() {
    let check = |rest: &[&str]| ssdkd(&[&["config", "check"][..], rest].concat());
    let six = ["--config", DEMO, "--set", "parallel.logical_ranks=6", "--set", "distill.batch_size=126"];
    check(&six).expect(0);
    check(&[&six[..], &["--set", "teach.batch_size=128", "--for", "teach"]].concat())
        .expect(2)
        .says(&["teach.batch_size: 128 rows cannot be shared by 6 logical ranks: use 126 or 132"]);
    check(&[&six[..], &["--set", "teach.batch_size=128", "--for", "train"]].concat()).expect(0);

    let lacks = |out: &str| out.contains("teacher.weights is left out");
    assert!(lacks(&check(&["--config", "configs/cifar10/vgg11-resnet18.toml"]).expect(0).stdout));
    assert!(!lacks(&check(&["--config", "configs/fashion_mnist/teacher.toml", "--for", "teach"]).expect(0).stdout));
    assert!(!lacks(&check(&["--config", DEMO]).expect(0).stdout));

    let missing = ["--config", DEMO, "--set", "teacher.weights=/nowhere/t.pth", "--data-dir", DEMO];
    let out = check(&missing)
        .expect(2)
        .says(&["teacher.weights: /nowhere/t.pth: no such file", "data.dir: configs/fashion_mnist/demo.toml: is no folder"]);
    assert_eq!(out.stderr.matches("error:").count(), 1, "{}", out.stderr);
}

/// What `eval` was given is all looked at before the first score, and is named by the options it was given with.
#[test]
fn eval_refuses_before_it_computes() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 20).display().to_string();
    let teacher = "configs/fashion_mnist/teacher.safetensors";
    let eval = |model: &str, dataset: &str, data: &str| {
        ssdkd(&["eval", "--weights", teacher, "--model", model, "--dataset", dataset, "--data-dir", data])
    };
    let line: serde_json::Value = serde_json::from_str(&eval("wrn16_2", "fashion_mnist", &data).expect(0).stdout).unwrap();
    assert!(line["images"] == 20 && line["top1"].as_f64().unwrap() > 0.7, "{line}");
    eval("wrn16_3", "fashion_mnist", &data).expect(2).says(&["--model", "resnet18", "wrn40_2"]);
    eval("wrn16_2", "cifar", &data).expect(2).says(&["--dataset", "cifar10", "fashion_mnist"]);
    eval("wrn16_2", "fashion_mnist", "/nowhere").expect(2).says(&["/nowhere/t10k-images-idx3-ubyte: no such file", "--data-dir DIR"]);

    // A run whose teacher is whole and whose student is not: no score is printed.
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let shipped = root().join(teacher);
    std::fs::write(
        run.join("config.toml"),
        format!("dataset = \"fashion_mnist\"\n[teacher]\nmodel = \"wrn16_2\"\nweights = \"{}\"\n", shipped.display()),
    )
    .unwrap();
    std::fs::write(run.join("student.safetensors"), b"cut").unwrap();
    let out = ssdkd(&["eval", "--run-dir", run.to_str().unwrap(), "--data-dir", &data]).expect(2).says(&["student.safetensors"]);
    assert_eq!(out.stdout, "");
}

/// Logits and features of a file of tensors equal those of the library.
#[test]
fn predict_writes_logits_and_features() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let images = ssdkd::goldens::fill(1, &[3, 1, 32, 32]);
    weights::write(&input, &[("images".into(), images.shallow_clone())], &[]).unwrap();
    let teacher = root().join("configs/fashion_mnist/teacher.safetensors");
    let arguments = |input: &std::path::Path, classes: &str| {
        [
            "predict",
            "--weights",
            teacher.to_str().unwrap(),
            "--model",
            "wrn16_2",
            "--classes",
            classes,
            "--input",
            input.to_str().unwrap(),
            "--out",
            output.to_str().unwrap(),
        ]
        .map(str::to_owned)
    };
    ssdkd(&arguments(&input, "10")).expect(0);
    let out = weights::read(&output).unwrap().tensors;
    let get = |name: &str| &out.iter().find(|(k, _)| k == name).unwrap().1;
    assert_eq!((get("logits").size(), get("features").size()), (vec![3, 10], vec![3, 128]));
    let shape = ssdkd::models::Shape { channels: 1, classes: 10 };
    let network = ssdkd::teacher::Teacher::load(ssdkd::config::ModelName::Wrn16x2, &teacher, shape, [28, 28], Device::Cpu).unwrap();
    let want = network.evaluate(&images);
    assert!(get("logits").allclose(&want.logits, 1e-4, 1e-5, false) && get("features").allclose(&want.features_bd, 1e-4, 1e-5, false));
    ssdkd(&arguments(&input, "7")).expect(2).says(&["tensor `fc.weight`: has shape [10, 128]; [7, 128] is needed"]);
    for classes in ["0", "1000001", "99999999999999999999"] {
        ssdkd(&arguments(&input, classes)).expect(2).says(&["--classes"]);
    }
    weights::write(&input, &[("pictures".into(), images)], &[]).unwrap();
    ssdkd(&arguments(&input, "10")).expect(2).says(&["holds no tensor `images`"]);
}

/// Images that a network has no use for, and files that speak nonsense of themselves, are named; nothing panics.
#[test]
fn predict_refuses_what_it_cannot_see() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let vgg = ssdkd::models::build(ssdkd::config::ModelName::Vgg11, ssdkd::models::Shape { channels: 1, classes: 2 });
    let dict = ssdkd::goldens::filled(vgg.blueprint(), 0, Device::Cpu).unwrap().0.state_dict();
    let predict = |weights: &str, input: &str| {
        ssdkd(&["predict", "--model", "vgg11", "--weights", &path(weights), "--input", &path(input), "--out", &path("out.safetensors")])
    };
    for (classes, name) in [("2", "vgg"), ("-3", "negative"), ("5000000000", "huge"), ("many", "text")] {
        weights::write(path(name).as_ref(), &dict, &[("classes", classes.into())]).unwrap();
    }
    let images = |name: &str, shape: &[i64]| weights::write(path(name).as_ref(), &[("images".into(), ssdkd::goldens::fill(1, shape))], &[]);
    for (name, shape) in [("8", [2, 1, 8, 8]), ("7", [2, 1, 8, 7]), ("0", [2, 1, 0, 8]), ("none", [0, 1, 8, 8]), ("narrow", [1, 1, 64, 8])]
    {
        images(name, &shape).unwrap();
    }
    predict("vgg", "8").expect(0);
    predict("vgg", "narrow").expect(0);
    predict("vgg", "7").expect(2).says(&["7: `images` is [2, 1, 8, 7]; this network takes images of 8×8 pixels or more"]);
    predict("vgg", "0").expect(2).says(&["0: `images` is [2, 1, 0, 8]: it holds no values"]);
    predict("vgg", "none").expect(2).says(&["none: `images` is [0, 1, 8, 8]: it holds no values"]);
    for (name, classes) in [("negative", "-3"), ("huge", "5000000000"), ("text", "many")] {
        predict(name, "8").expect(2).says(&[format!("{name}: says of itself that it has `{classes}` classes").as_str(), "--classes"]);
    }
}

/// A run's network as it is, with its text, whether a student or a teacher was trained; a folder without one is named.
#[test]
fn what_a_run_made_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let (run, out) = (folder.path().display().to_string(), folder.path().join("out.safetensors"));
    let export = || ssdkd(&["export", "--run-dir", &run, "--to", "safetensors", "--out", out.to_str().unwrap()]);
    export().expect(2).says(&["holds neither student.safetensors nor teacher.safetensors"]);
    let shipped = root().join("configs/fashion_mnist/teacher.safetensors");
    let equals = |want: &std::path::Path| {
        let (got, want) = (weights::read(&out).unwrap(), weights::read(want).unwrap());
        assert_eq!(got.metadata, want.metadata);
        assert_eq!(got.tensors.len(), want.tensors.len());
        assert!(got.tensors.iter().zip(&want.tensors).all(|(a, b)| a.0 == b.0 && a.1.kind() == b.1.kind() && a.1.equal(&b.1)));
    };
    std::fs::copy(&shipped, folder.path().join("teacher.safetensors")).unwrap();
    export().expect(0);
    equals(&shipped);
    let student = folder.path().join("student.safetensors");
    weights::write(&student, &[("w".into(), ssdkd::goldens::fill(1, &[3]))], &[("model", "wrn16_1".into())]).unwrap();
    export().expect(0);
    equals(&student);
}

/// What is wrong with the arguments is said once, by however many ranks.
#[test]
fn usage_errors_and_help_are_printed_once() {
    if !has_mpirun() {
        return;
    }
    let out = ssdkd_on(3, &["train", "--nonsense"]).expect(2).says(&["--nonsense"]);
    assert_eq!(out.stderr.matches("Usage:").count(), 1, "{}", out.stderr);
    let out = ssdkd_on(3, &["train", "--help"]).expect(0);
    assert_eq!(out.stdout.matches("Usage:").count(), 1, "{}", out.stdout);
}

/// What would not fit into memory is refused by its key before it is allocated.
#[test]
fn sizes_beyond_memory_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 20).display().to_string();
    let run = folder.path().join("run").display().to_string();
    let train = |set: &str| {
        let sets = set.split(' ').flat_map(|set| ["--set", set]);
        let command = ["train", "--config", DEMO, "--data-dir", &data, "--run-dir", &run, "--set", "parallel.logical_ranks=2"];
        ssdkd(&command.into_iter().chain(sets).collect::<Vec<_>>())
    };
    train("replay.capacity=1000000000000")
        .expect(2)
        .says(&["replay.capacity: 1000000000000 samples on this host need ", " GB of memory, "]);
    // A pool holds what is made.
    train("method=fast train.rounds=10000000000")
        .expect(2)
        .says(&["train.rounds: 1280000000000 samples on this host need ", " GB of memory, "]);
    train("generator.filters=65536")
        .expect(2)
        .says(&["generator.filters: 65536 filters, with 256 latent values, need ", " GB of memory, "]);
}

/// Pictures of a folder are named with class and confidence; real test images mostly rightly.
#[test]
fn predict_names_the_pictures_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 20);
    let raw = std::fs::read(data.join("t10k-images-idx3-ubyte")).unwrap();
    let labels = std::fs::read(data.join("t10k-labels-idx1-ubyte")).unwrap();
    // As the data set's files have them, and padded as the networks take them.
    let saved = |name: &str, border: u32| {
        let pictures = folder.path().join(name);
        std::fs::create_dir(&pictures).unwrap();
        for (i, pixels) in raw[16..].chunks(784).enumerate() {
            let mut image = image::GrayImage::new(28 + 2 * border, 28 + 2 * border);
            let place = |p: usize| (p as u32 % 28 + border, p as u32 / 28 + border);
            pixels.iter().enumerate().for_each(|(p, v)| image.put_pixel(place(p).0, place(p).1, image::Luma([*v])));
            image.save(pictures.join(format!("{i:02}.png"))).unwrap();
        }
        pictures
    };
    let (pictures, padded) = (saved("pictures", 0), saved("padded", 2));
    let teacher = root().join("configs/fashion_mnist/teacher.safetensors");
    let out = folder.path().join("out.csv");
    let predicted = |pictures: &std::path::Path| {
        let [teacher, input, out] = [&teacher, pictures, &out].map(|path| path.to_str().unwrap());
        ssdkd(&["predict", "--weights", teacher, "--model", "wrn16_2", "--input", input, "--out", out])
    };
    predicted(&padded).expect(0);
    let text_of_padded = std::fs::read_to_string(&out).unwrap();
    predicted(&pictures).expect(0);
    let text = std::fs::read_to_string(&out).unwrap();
    assert_eq!(text, text_of_padded);
    let facts = ssdkd::data::facts(ssdkd::config::DatasetName::FashionMnist);
    let right = text
        .lines()
        .skip(1)
        .enumerate()
        .filter(|(i, line)| line.split(',').nth(1) == Some(facts.class_names[labels[8 + i] as usize].as_str()))
        .count();
    assert_eq!(text.lines().next(), Some("file,class,confidence"));
    assert!(right >= 16, "{right} of 20:\n{text}");

    // The first picture once more, as JPEG: the same class, at nearly the same confidence.
    image::open(pictures.join("00.png")).unwrap().save(pictures.join("00.jpg")).unwrap();
    predicted(&pictures).expect(0);
    let with_jpeg = std::fs::read_to_string(&out).unwrap();
    let row = |name: &str| -> Vec<String> {
        let line = with_jpeg.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} is not in\n{with_jpeg}"));
        line.split(',').map(str::to_owned).collect()
    };
    let (jpeg, png) = (row("00.jpg,"), row("00.png,"));
    assert!(jpeg[1] == png[1] && (jpeg[2].parse::<f64>().unwrap() - png[2].parse::<f64>().unwrap()).abs() < 0.2, "{with_jpeg}");

    std::fs::write(pictures.join("bad.png"), b"no picture").unwrap();
    predicted(&pictures).expect(2).says(&["bad.png: not a readable picture"]);
}

#[test]
fn weights_files_are_listed() {
    let out = ssdkd(&["inspect", "configs/fashion_mnist/teacher.safetensors"]).expect(0).stdout;
    assert!(out.contains("block1.layer.0.convShortcut.weight  [32, 16, 1, 1]  Float") && out.contains("# model: wrn16_2"), "{out}");
}

#[test]
fn the_doctor_speaks_of_everything_that_matters() {
    let out = ssdkd(&["doctor"]).expect(0).stdout;
    for subject in ["ssdkd", "libtorch  2.11.0", "MPI", "CUDA", "NCCL", "Slurm", "every operation gives the right answer"] {
        assert!(out.contains(subject), "{subject} is not in\n{out}");
    }
}

/// Sites put Slurm's commands on PATH where they do not work, or take them off it.
#[test]
fn the_doctor_tells_what_sbatch_says() {
    let folder = tempfile::tempdir().unwrap();
    let sbatch = folder.path().join("sbatch");
    let said = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssdkd"));
        command.arg("doctor").env("PATH", folder.path());
        run(command, Duration::from_secs(60)).expect(0).stdout
    };
    assert!(said().contains("sbatch is not on PATH"));
    std::fs::write(&sbatch, "").unwrap();
    assert!(said().contains("sbatch cannot be run: "));
    for (script, says) in [
        ("echo slurm 22.05.8; echo more", "  slurm 22.05.8\n"),
        ("echo first >&2; echo sbatch: no config file >&2; echo >&2; exit 1", "sbatch fails: sbatch: no config file\n"),
        ("exit 1", "sbatch fails: without a word\n"),
    ] {
        std::fs::write(&sbatch, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&sbatch, std::fs::Permissions::from_mode(0o755)).unwrap();
        let out = said();
        assert!(out.ends_with(says), "{says} is not the end of\n{out}");
    }
}

/// `ssdkd bench replay --json`: the list that scripts read; a Python that is not there is a line, not a failure.
#[test]
fn the_samplers_benchmark_prints_a_list() {
    let out = ssdkd(&["bench", "replay", "--json", "--n", "300", "20", "--against", "/nowhere/python3"]).expect(0);
    let list: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!((list[0]["n"].as_u64(), list[1]["n"].as_u64(), list.as_array().unwrap().len()), (Some(300), Some(20), 2));
    for entry in list.as_array().unwrap() {
        assert!(entry["cycles_per_second"].as_f64().unwrap() > 0.0);
        assert!(entry["peers"]["torchrl_sampler"].is_null() && entry["peers"]["cpprb"].is_null());
    }
    out.says(&["/nowhere/python3 cannot be started"]);
    ssdkd(&["bench", "replay", "--n", "0"]).expect(2).says(&["a buffer of 0 samples"]);
}

/// `ssdkd bench step --against`: the same mathematics in plain PyTorch gives the same losses, for each family of networks that is written there.
/// The Python is `$SSDKD_TEST_PYTHON`, or `python3`.
#[test]
fn a_step_and_its_peer_in_plain_pytorch_agree() {
    let python = std::env::var("SSDKD_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let step = |dataset: &str, batch: &str, pair: [&str; 2]| {
        let [teacher, student] = pair;
        let settings = ["bench", "step", "--json", "--threads", "1", "--turns", "1", "--batch", batch, "--dataset", dataset];
        ssdkd(&[&settings[..], &["--against", &python, "--teacher", teacher, "--student", student]].concat()).expect(0)
    };
    step("scenes13", "2", ["deeplabv3_mobilenet"; 2]).says(&["no deeplabv3_mobilenet is written in plain PyTorch here"]);
    for pair in [["wrn16_2", "wrn16_1"], ["vgg11", "resnet18"]] {
        let out = step("cifar10", "4", pair);
        let report: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
        let steps = report["steps"].as_array().unwrap();
        let all = |name: &str| steps.len() == 3 && steps.iter().all(|step| step[name].as_f64().is_some_and(|value| value > 0.0));
        assert!(all("ms") && all("allocated_mb") && all("gflop_per_second"), "{report}");
        if out.stderr.contains("this Python has no torch") {
            println!("skip: {python} has no torch; SSDKD_TEST_PYTHON may name one that has");
            continue;
        }
        assert!(report["loss_difference"].as_f64().is_some_and(|difference| difference < 1e-3) && all("ratio"), "{report}");
    }
}

/// `ssdkd bench ranks`: bytes of real steps on real MPI ranks are those of the formula.
#[test]
fn a_step_on_two_ranks_sends_what_the_formula_says() {
    if !has_mpirun() {
        return;
    }
    let pair = ["--teacher", "wrn16_1", "--student", "wrn16_1", "--dataset", "fashion_mnist", "--batch", "4", "--turns", "2"];
    for sums in [&["--json"][..], &["--json", "--native"]] {
        let out = ssdkd_on(2, &[&["bench", "ranks"][..], &pair, sums].concat()).expect(0);
        let report: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
        let steps = report["steps"].as_array().unwrap();
        assert!(
            steps.len() == 2 && steps.iter().all(|step| step["bytes"].as_f64().unwrap() > 0.0 && step["bytes"] == step["bytes_expected"]),
            "{report}"
        );
    }
}

/// `ssdkd bench step` on several ranks prints one report, with each step's share of communication; plain PyTorch has one rank.
#[test]
fn a_step_on_two_ranks_has_a_share_of_communication() {
    if !has_mpirun() {
        return;
    }
    let step =
        ["bench", "step", "--teacher", "wrn16_1", "--student", "wrn16_1", "--dataset", "fashion_mnist", "--batch", "4", "--device", "cpu"];
    let out = ssdkd_on(2, &[&step[..], &["--json", "--turns", "2"]].concat()).expect(0);
    let report: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(report["ranks"], 2);
    let share =
        |work: &str| report["steps"].as_array().unwrap().iter().find(|step| step["work"] == work).unwrap()["communication_share"].as_f64();
    for work in ["inversion", "distillation_stored"] {
        assert!(share(work).is_some_and(|share| 0.0 < share && share < 1.0), "{report}");
    }
    assert_eq!(share("distillation"), None);
    let refused = ssdkd_on(2, &[&step[..], &["--against", "python3"]].concat()).expect(2);
    refused.says(&["--against: plain PyTorch is measured on the CPUs of one rank only"]);
}

/// `ssdkd bench replay --ranks`: bytes and messages of real MPI ranks are those of the formula.
#[test]
fn a_global_draw_sends_what_the_formula_says() {
    if !has_mpirun() {
        return;
    }
    for ranks in [1, 2, 4] {
        let out = ssdkd_on(ranks, &["bench", "replay", "--ranks", "--json", "--n", "1000"]).expect(0);
        let times: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
        assert_eq!((times["ranks"].as_u64(), times["logical_ranks"].as_u64()), (Some(ranks as u64), Some(4)));
        assert_eq!((&times["bytes"], &times["messages"]), (&times["bytes_expected"], &times["messages_expected"]));
        assert_eq!(times["bytes"].as_f64().unwrap() > 0.0, ranks > 1);
    }
}
