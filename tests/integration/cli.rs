//! Commands as a user types them, and what they say when refused.

use crate::launch::{has_mpirun, root, small_fashion_mnist, ssdkd, ssdkd_on};
use ssdkd::nn::weights;
use tch::{Device, Kind, Tensor};

const DEMO: &str = "configs/fashion_mnist/demo.toml";

/// Arguments, and what the one message must contain. All are refused before compute: exit code 2, within seconds.
#[test]
fn what_cannot_work_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run").display().to_string();
    let file = |name: &str, contents: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path.display().to_string()
    };
    let teacher = root().join("configs/fashion_mnist/teacher.safetensors");
    let mut bad = weights::read(&teacher).unwrap().tensors;
    let without: Vec<_> = bad.iter().filter(|(k, _)| k != "fc.bias").map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
    bad[3].1 = Tensor::full(bad[3].1.size(), f64::NAN, (Kind::Float, Device::Cpu));
    let saved = |name: &str, tensors: &[(String, Tensor)]| {
        let path = folder.path().join(name);
        weights::write(&path, tensors, &[]).unwrap();
        path.display().to_string()
    };
    let (nan, short) = (saved("nan.safetensors", &bad), saved("short.safetensors", &without));
    let text = file("notes.txt", b"these are not weights");
    let empty = file("empty.pth", b"");
    let cases: Vec<(Vec<String>, Vec<&str>)> = [
        (vec!["replay.capacty=5"], vec!["replay.capacty: unknown key", "did you mean `replay.capacity`"]),
        (vec!["replay.alpha=-1"], vec!["replay.alpha: -1 is negative"]),
        (vec!["student.model=resnet19"], vec!["student.model: \"resnet19\" is none of", "did you mean `resnet18`?"]),
        (vec!["train.rounds=10"], vec!["train.rounds: 10 rounds with", "never train the student"]),
        (vec!["parallel.logical_ranks=3"], vec!["distill.batch_size: 128 rows cannot be shared by 3", "126 or 129"]),
        (vec!["replay.capacity=100"], vec!["replay.capacity: 100 slots over 2 logical ranks", "at least 128"]),
        (vec!["device=gpu"], vec!["device: \"gpu\" is none of auto, cpu, cuda"]),
        (vec!["teacher.weights=/nowhere/t.pth"], vec!["/nowhere/t.pth: no such file"]),
        (vec!["teacher.model=wrn40_2"], vec!["teacher.safetensors: tensor `block1.layer.2.", "missing"]),
        (
            vec!["dataset=cifar10", "teacher.model=wrn16_2"],
            vec!["teacher.safetensors: tensor `conv1.weight`: has shape [16, 1, 3, 3]; [16, 3, 3, 3]"],
        ),
        (vec!["data.dir=/nowhere"], vec!["/nowhere/t10k-images-idx3-ubyte: no such file, nor with .gz added"]),
    ]
    .into_iter()
    .map(|(sets, says)| (sets.into_iter().map(str::to_owned).collect(), says))
    .chain([
        (vec![format!("teacher.weights={nan}")], vec!["nan.safetensors: tensor", "holds NaN or infinite values"]),
        (vec![format!("teacher.weights={short}")], vec!["short.safetensors: tensor `fc.bias`: missing; shape [10] is needed"]),
        (vec![format!("teacher.weights={text}")], vec!["notes.txt: "]),
        (vec![format!("teacher.weights={empty}")], vec!["empty.pth: "]),
    ])
    .collect();
    for (sets, says) in cases {
        let mut arguments = vec!["train".to_owned(), "--config".into(), DEMO.into(), "--run-dir".into(), run.clone()];
        sets.iter().for_each(|set| arguments.extend(["--set".into(), set.clone()]));
        let out = ssdkd(&arguments).expect(2).says(&says);
        assert!(out.seconds < 10.0, "{sets:?} took {} s", out.seconds);
        assert_eq!(out.stderr.matches("error:").count(), 1, "{}", out.stderr);
        assert!(!folder.path().join("run/metrics.csv").exists());
    }
    for (arguments, says) in [
        (vec!["train", "--config", "/nowhere.toml", "--run-dir", &run], "/nowhere.toml: no such file"),
        (vec!["train", "--config", DEMO, "--run-dir", "/proc/nowhere"], "/proc/nowhere"),
        (vec!["eval", "--weights", "/nowhere.pth", "--model", "wrn16_1", "--dataset", "fashion_mnist"], "/nowhere.pth: no such file"),
        (vec!["inspect", "/nowhere"], "/nowhere: no such file"),
    ] {
        let out = ssdkd(&arguments).says(&[says]);
        assert!(out.code == 2 || out.code == 1, "{}", out.code);
    }
}

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

#[test]
fn every_shipped_configuration_is_valid() {
    let mut count = 0;
    for folder in ["configs/cifar10", "configs/cifar100", "configs/fashion_mnist"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                ssdkd(&["config", "check", "--config", path.to_str().unwrap()]).expect(0);
                count += 1;
            }
        }
    }
    assert!(count >= 12, "{count}");
}

/// Logits and features of a file of tensors equal those of the library.
#[test]
fn predict_writes_logits_and_features() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let images = crate::fill::fill(1, &[3, 1, 32, 32]);
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
    let network = ssdkd::teacher::Teacher::load(ssdkd::config::ModelName::Wrn16x2, &teacher, shape, Device::Cpu).unwrap();
    let want = network.evaluate(&images);
    assert!(get("logits").allclose(&want.logits, 1e-4, 1e-5, false) && get("features").allclose(&want.features_bd, 1e-4, 1e-5, false));
    ssdkd(&arguments(&input, "7")).expect(2).says(&["tensor `fc.weight`: has shape [10, 128]; [7, 128] is needed"]);
    weights::write(&input, &[("pictures".into(), images)], &[]).unwrap();
    ssdkd(&arguments(&input, "10")).expect(2).says(&["holds no tensor `images`"]);
}

/// Pictures of a folder are named with class and confidence; real test images mostly rightly.
#[test]
fn predict_names_the_pictures_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 20);
    let raw = std::fs::read(data.join("t10k-images-idx3-ubyte")).unwrap();
    let labels = std::fs::read(data.join("t10k-labels-idx1-ubyte")).unwrap();
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for (i, pixels) in raw[16..].chunks(784).enumerate() {
        let mut padded = image::GrayImage::new(32, 32);
        pixels.iter().enumerate().for_each(|(p, v)| padded.put_pixel(p as u32 % 28 + 2, p as u32 / 28 + 2, image::Luma([*v])));
        padded.save(pictures.join(format!("{i:02}.png"))).unwrap();
    }
    let teacher = root().join("configs/fashion_mnist/teacher.safetensors");
    let out = folder.path().join("out.csv");
    let arguments = [
        "predict",
        "--weights",
        teacher.to_str().unwrap(),
        "--model",
        "wrn16_2",
        "--input",
        pictures.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ];
    ssdkd(&arguments).expect(0);
    let text = std::fs::read_to_string(&out).unwrap();
    let facts = ssdkd::data::facts(ssdkd::config::DatasetName::FashionMnist);
    let right = text
        .lines()
        .skip(1)
        .enumerate()
        .filter(|(i, line)| line.split(',').nth(1) == Some(facts.class_names[labels[8 + i] as usize]))
        .count();
    assert_eq!(text.lines().next(), Some("file,class,confidence"));
    assert!(right >= 16, "{right} of 20:\n{text}");
    std::fs::write(pictures.join("bad.png"), b"no picture").unwrap();
    ssdkd(&arguments).expect(2).says(&["bad.png: not a readable picture"]);
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

#[test]
fn cuda_is_refused_plainly_where_there_is_none() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        println!("skip: a GPU is here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run").display().to_string();
    ssdkd(&["train", "--config", DEMO, "--run-dir", &run, "--set", "device=cuda"]).expect(2).says(&["device: cuda is asked for, but"]);
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
