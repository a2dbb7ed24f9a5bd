//! Commands as a user types them, and what they say when refused.

use crate::launch::{has_mpirun, root, small_fashion_mnist, ssdkd, ssdkd_on};
use ssdkd::nn::weights;
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
        .filter(|(i, line)| line.split(',').nth(1) == Some(facts.class_names[labels[8 + i] as usize]))
        .count();
    assert_eq!(text.lines().next(), Some("file,class,confidence"));
    assert!(right >= 16, "{right} of 20:\n{text}");
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
