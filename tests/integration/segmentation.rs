//! Labels of pixels from end to end: a teacher of made scenes, a student without data, scores, maps and pictures; and a look at files.

use crate::launch::{has_mpirun, mpirun, root, run, ssdkd, ssdkd_on};
use serde_json::Value;
use ssdkd::config::{Data, DatasetName, ModelName};
use ssdkd::data::{Normalise, Split, coloured, facts, open, to_unit};
use ssdkd::metrics::{RoundRecord, read_table};
use ssdkd::models::{self, Shape};
use ssdkd::nn::{Pass, State, weights};
use ssdkd::rng::Purpose;
use std::path::Path;
use std::time::Duration;
use tch::Device;

const DEADLINE: Duration = Duration::from_secs(300);

/// Scenes so small that a step takes no second.
const SMALL: [&str; 10] = [
    "dataset=scenes13",
    "teacher.model=deeplabv3_mobilenet",
    "student.model=deeplabv3_mobilenet",
    "data.scene_size=48",
    "data.scene_crop=32",
    "data.train_scenes=12",
    "data.test_scenes=6",
    "eval.batch_size=2",
    "parallel.logical_ranks=2",
    "parallel.threads=1",
];

fn words(command: &str, run: &Path, more: &[&str]) -> Vec<String> {
    let mut words = vec![command.to_owned(), "--run-dir".into(), run.display().to_string()];
    for set in SMALL.iter().chain(more) {
        words.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    words
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A teacher on one rank, from crops; a student from it on one rank and on two: the same metrics, every score in its place.
#[test]
fn a_student_that_labels_pixels_is_made_without_data() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    ssdkd(&words("teach", &at("teacher"), &["teach.epochs=2", "teach.batch_size=4", "teach.crop=24"])).expect(0);
    let taught = json(&at("teacher/report.json"));
    assert!(taught["student"]["miou"].is_f64() && taught["student"].get("top1").is_none(), "{taught}");

    let weights = format!("teacher.weights={}", at("teacher/teacher.safetensors").display());
    let train = [
        weights.as_str(),
        "generator.filters=4",
        "generator.latent=8",
        "inversion.batch_size=4",
        "inversion.steps=2",
        "inversion.regions=3",
        "replay.capacity=16",
        "distill.batch_size=4",
        "distill.steps_per_round=2",
        "distill.teacher_views=2",
        "train.rounds=3",
        "train.warmup_rounds=1",
    ];
    ssdkd(&words("train", &at("one"), &train)).expect(0);
    ssdkd_on(2, &words("train", &at("two"), &train)).expect(0);
    let metrics = |run: &str| std::fs::read_to_string(at(run).join("metrics.csv")).unwrap();
    assert_eq!(metrics("one"), metrics("two"));

    // Stopped on two ranks, and brought to its end on one.
    let mut stopped = mpirun(2, &words("train", &at("stopped"), &train));
    stopped.env("SSDKD_FAULT_FOR_TESTS", "usr1 0 distillation 2");
    run(stopped, DEADLINE).expect(75);
    ssdkd(&words("train", &at("stopped"), &train)).expect(0);
    assert_eq!(metrics("one"), metrics("stopped"));
    let sums = |run: &str| ssdkd(&["inspect", "--checksum", at(run).to_str().unwrap()]).expect(0).stdout;
    assert_eq!(sums("one"), sums("stopped"));

    let report = json(&at("one/report.json"));
    for role in ["teacher", "student"] {
        let (score, iou) = (&report[role], report[role]["class_iou"].as_array().unwrap());
        let mean = iou.iter().map(|v| v.as_f64().unwrap()).sum::<f64>() / 13.0;
        assert_eq!(iou.len(), 13);
        assert!((score["miou"].as_f64().unwrap() - mean).abs() < 1e-12 && score["pixel_accuracy"].as_f64().unwrap() <= 1.0);
    }
    assert!(report["student"]["miou_best"].as_f64() >= report["student"]["miou"].as_f64());
    assert_eq!(report["buffer"]["class_counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 16 * 32 * 32);
    let page = std::fs::read_to_string(at("one/report.html")).unwrap();
    for part in ["student mIoU", "Intersection over union of each class", "beside each image the labels", "rgb(128,0,0)\"></i>bed"] {
        assert!(page.contains(part), "{part}");
    }
    // Three images wide for each of two scenes.
    let picture = image::open(at("one/pictures/round-00002.png")).unwrap();
    assert!(picture.width() >= 3 * 64 && picture.height() == 13 * 66 + 2, "{}×{}", picture.width(), picture.height());

    let lines = ssdkd(&["eval", "--run-dir", at("one").to_str().unwrap()]).expect(0).stdout;
    let scored: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(scored.len(), 2);
    for line in scored {
        let of = &report[line["role"].as_str().unwrap()];
        assert_eq!((&line["images"], &line["miou"], &line["class_iou"]), (&6.into(), &of["miou"], &of["class_iou"]));
    }

    // Maps of pictures: as large as they are, the labels that the network gives.
    let data = Data { scene_size: 48, test_scenes: 6, ..Data::default() };
    let (images, _) = open(DatasetName::Scenes13, &data, Split::Test).unwrap().rows(&[0, 1]);
    std::fs::create_dir(at("pictures")).unwrap();
    for i in 0..2 {
        let pixels = Vec::<u8>::try_from(images.get(i).permute([1, 2, 0]).contiguous().flatten(0, -1)).unwrap();
        image::RgbImage::from_raw(48, 48, pixels).unwrap().save(at("pictures").join(format!("{i}.png"))).unwrap();
    }
    let student = at("one/student.safetensors");
    let [student, pictures, maps] = [student, at("pictures"), at("maps")].map(|path| path.display().to_string());
    ssdkd(&["predict", "--weights", &student, "--model", "deeplabv3_mobilenet", "--input", &pictures, "--out", &maps]).expect(0);
    let (network, weights) =
        models::load(ModelName::Deeplabv3Mobilenet, Path::new(&student), Shape { channels: 3, classes: 13 }, [48, 48], Device::Cpu)
            .unwrap();
    let seen = Normalise::new(&facts(DatasetName::Scenes13), Device::Cpu).apply(&to_unit(&images));
    let labels = tch::no_grad(|| network.forward(&weights, &seen, &mut Pass::eval()).logits.argmax(1, false));
    for i in 0..2 {
        let map = image::open(at(&format!("maps/{i}.png"))).unwrap().to_rgb8();
        assert_eq!((map.width(), map.height()), (48, 48));
        let want = coloured(&labels.get(i)).permute([1, 2, 0]).contiguous().flatten(0, -1);
        assert!(map.into_raw() == Vec::<u8>::try_from(want).unwrap(), "picture {i}");
    }

    // Never over the pictures, nor two of them in one file.
    let predict = |out: &str| {
        ssdkd(&["predict", "--weights", &student, "--model", "deeplabv3_mobilenet", "--input", &pictures, "--out", out]).expect(2)
    };
    predict(&pictures).says(&["pictures: holds the pictures, over which maps would be written", "name another folder with --out"]);
    predict(&student).says(&["student.safetensors: is a file; a map for each picture is written to a folder"]);
    std::fs::copy(at("pictures/0.png"), at("pictures/0.jpg")).unwrap();
    predict(&maps).says(&["0.png: its map would be", "maps/0.png, as that of", "rename one of the two"]);

    is_swept(&at("one"), folder.path());
    is_studied(&at("one"), folder.path());
}

/// A size of the buffer, from a finished run's configuration: a table of mIoU.
#[track_caller]
fn is_studied(run: &Path, folder: &Path) {
    let [config, dir] = [run.join("config.toml"), folder.join("study")].map(|path| path.display().to_string());
    ssdkd(&["study", "scale", "--config", &config, "--dir", &dir, "--seeds", "1", "--sizes", "100"]).expect(0);
    let page = std::fs::read_to_string(folder.join("study/study.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows.len() == 3 && rows[0].contains("| mIoU, % |") && rows[2].starts_with("| 100 | 12 |"), "{page}");
}

/// Trials that differ from a finished run in one key: scored by mIoU without being told; what asks images for several categories changes them.
#[track_caller]
fn is_swept(run: &Path, folder: &Path) {
    let [file, dir] = ["pixels.toml", "sweep"].map(|name| folder.join(name).display().to_string());
    std::fs::write(&file, format!("config = \"{}\"\n[axes]\ninversion.regions = [1, 3]\n", run.join("config.toml").display())).unwrap();
    ssdkd(&["sweep", "plan", &file, "--dir", &dir]).expect(0);
    ssdkd(&["sweep", "run", &dir]).expect(0);
    let page = ssdkd(&["sweep", "collect", &dir]).expect(0).stdout;
    assert!(page.contains("student.miou"), "{page}");
    let tasks: Vec<String> = std::fs::read_dir(folder.join("sweep/trials"))
        .unwrap()
        .filter_map(|trial| read_table::<RoundRecord>(&trial.unwrap().path().join("metrics.csv")).ok())
        .map(|rounds| format!("{:?}", rounds[0].loss_task))
        .collect();
    assert!(tasks.len() == 2 && tasks[0] != tasks[1], "{tasks:?}");
}

/// The published pair at its real size, 128×128: a few rounds on one rank and on two end with the same bits in every part of the run.
#[test]
fn the_published_pair_ends_the_same_on_one_rank_and_on_two() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // A teacher as it starts: what it has learnt is not the question.
    let teacher = models::build(ModelName::Deeplabv3Resnet50, Shape { channels: 3, classes: 13 });
    let state = State::initialised(teacher.blueprint(), 1, Purpose::StudentInit, Device::Cpu);
    weights::write(&at("resnet50.safetensors"), &state.state_dict(), &[]).unwrap();
    let weights = format!("teacher.weights={}", at("resnet50.safetensors").display());
    let sets = [
        "data.scene_size=128",
        "data.scene_crop=0",
        "data.test_scenes=2",
        "teacher.model=deeplabv3_resnet50",
        &weights,
        "generator.filters=8",
        "inversion.batch_size=2",
        "inversion.steps=1",
        "replay.capacity=8",
        "distill.batch_size=4",
        "distill.steps_per_round=1",
        "distill.teacher_views=2",
        "train.rounds=3",
        "train.warmup_rounds=1",
        "train.eval_every_rounds=3",
        "train.picture_every_rounds=0",
    ];
    let mut sums = Vec::new();
    for (ranks, name) in [(1, "one"), (2, "two")] {
        ssdkd_on(ranks, &words("train", &at(name), &sets)).expect(0).says(&["inversion_gb_a_rank=0.07", "step_gb_a_rank=0.0"]);
        let report = json(&at(name).join("report.json"));
        assert_eq!((report["student_steps"].as_u64(), report["samples_synthesised"].as_u64()), (Some(2), Some(12)), "{report}");
        sums.push(ssdkd(&["inspect", "--checksum", at(name).to_str().unwrap()]).expect(0).stdout);
    }
    assert!(sums[0] == sums[1] && sums[0].lines().count() == 4, "{sums:?}");
}

/// A picture and its labels in NYUv2's true format: columns of 50 pixels, a label each; the first 40 rows have none.
fn write_nyuv2(root: &Path, split: &str, number: u32) {
    let label = |x: u32, y: u32| if y < 40 { 255 } else { ((x / 50 + number) % 13) as u8 };
    let path = |folder: &str| {
        std::fs::create_dir_all(root.join(folder).join(split)).unwrap();
        root.join(folder).join(split).join(format!("{number:05}.png"))
    };
    image::RgbImage::from_fn(640, 480, |x, y| image::Rgb([20 * (label(x, y) % 13), (x % 256) as u8, (y % 256) as u8]))
        .save(path("image"))
        .unwrap();
    image::GrayImage::from_fn(640, 480, |x, y| image::Luma([label(x, y)])).save(path("seg13")).unwrap();
}

/// NYUv2's files, four of them: a teacher of crops, its score on whole pictures, maps of the pictures' own size, and a damaged file found.
#[test]
fn nyuv2_is_taught_scored_predicted_and_looked_through() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("NYUv2");
    for (split, number) in [("train", 2), ("train", 3), ("test", 1), ("test", 4)] {
        write_nyuv2(&data, split, number);
    }
    let [dir, run, maps] = [data.clone(), folder.path().join("run"), folder.path().join("maps")].map(|path| path.display().to_string());
    let mut teach: Vec<String> =
        ["teach", "--config", "configs/nyuv2/teacher.toml", "--data-dir", &dir, "--run-dir", &run].map(str::to_owned).into();
    let sets = [
        "teacher.model=deeplabv3_mobilenet",
        "teach.epochs=1",
        "teach.batch_size=2",
        "parallel.logical_ranks=1",
        "data.allow_partial=true",
        "parallel.threads=1",
    ];
    sets.iter().for_each(|set| teach.extend(["--set".to_owned(), (*set).to_owned()]));
    ssdkd(&teach).expect(0);
    let report = json(&folder.path().join("run/report.json"));
    assert_eq!((report["dataset"].as_str(), report["student_steps"].as_u64()), (Some("nyuv2"), Some(1)), "{report}");

    let weights = format!("{run}/teacher.safetensors");
    let scored: Value = serde_json::from_str(&ssdkd(&["eval", "--run-dir", &run]).expect(0).stdout).unwrap();
    assert_eq!((&scored["miou"], &scored["class_iou"]), (&report["student"]["miou"], &report["student"]["class_iou"]));

    let pictures = format!("{dir}/image/test");
    ssdkd(&["predict", "--weights", &weights, "--model", "deeplabv3_mobilenet", "--input", &pictures, "--out", &maps]).expect(0);
    for name in ["00001.png", "00004.png"] {
        let map = image::open(folder.path().join("maps").join(name)).unwrap();
        assert_eq!((map.width(), map.height()), (640, 480), "{name}");
    }

    std::fs::write(data.join("seg13/test/00004.png"), b"no picture").unwrap();
    std::fs::remove_file(data.join("seg13/train/00003.png")).unwrap();
    ssdkd(&["data", "check", &dir]).expect(2).says(&[
        "4 findings in",
        "image/train: 2 images; 795 expected",
        "seg13/train/00003.png: no such file",
        "image/test: 2 images; 654 expected",
        "seg13/test/00004.png: not a readable picture",
    ]);
}

#[test]
fn folders_of_data_sets_are_looked_through() {
    let shipped = root().join("configs/fashion_mnist").display().to_string();
    let out = ssdkd(&["data", "check", &shipped]).expect(2).says(&[
        "2 findings in",
        "train-images-idx3-ubyte: no such file",
        "train-labels-idx1-ubyte: no such file",
    ]);
    assert_eq!(
        out.stdout,
        "fashion_mnist or mnist, test split: 10000 images of 32×32 in 1 channel; labels 0 to 9, 1000 to 1000 images each\n"
    );
    let folder = tempfile::tempdir().unwrap();
    let check = || ssdkd(&["data", "check", folder.path().to_str().unwrap()]).expect(2);
    check().says(&["holds no file of a data set known here", "cifar-10-batches-bin", "seg13/"]);
    std::fs::write(folder.path().join("data_batch_1.bin"), [0; 3073]).unwrap();
    check().says(&["6 findings in", "data_batch_1.bin: 1 images; 10000 expected", "test_batch.bin: no such file"]);
    std::fs::write(folder.path().join("test_batch.bin"), [0; 3072]).unwrap();
    let parts = ["6 findings in", "data_batch_1.bin: 1 images; 10000 expected", "data_batch_5.bin: no such file"];
    check().says(&parts).says(&["test_batch.bin: 3072 bytes; records of 3073 bytes expected"]);
    std::fs::create_dir_all(folder.path().join("image/test")).unwrap();
    check().says(&["image/test: 0 images; 654 expected", "image/train: no such file"]);
    ssdkd(&["data", "check", "/nowhere"]).expect(2).says(&["/nowhere: no such folder"]);
    ssdkd(&["data", "check", "Cargo.toml"]).expect(2).says(&["Cargo.toml: is no folder"]);
}
