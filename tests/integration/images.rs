//! Any images, or none: folders of pictures, SVHN and Tiny-ImageNet as they are distributed, and runs that have no data at all.

use crate::launch::{has_mpirun, root, ssdkd, ssdkd_on};
use serde_json::Value;
use ssdkd::config::{Config, Data, DatasetName};
use ssdkd::data::{Dataset, Split, complete, facts_of, source};
use ssdkd::error::Result;
use std::path::Path;

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A command with `--set` before each of several words.
fn words(command: &[&str], sets: &[&str]) -> Vec<String> {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    command.iter().copied().chain(sets).map(str::to_owned).collect()
}

/// Runs of seconds.
const SHORT: [&str; 14] = [
    "parallel.logical_ranks=2",
    "parallel.threads=1",
    "generator.filters=4",
    "generator.latent=16",
    "inversion.batch_size=8",
    "inversion.steps=2",
    "replay.capacity=32",
    "distill.batch_size=16",
    "distill.steps_per_round=2",
    "distill.teacher_views=2",
    "train.rounds=4",
    "train.warmup_rounds=1",
    "train.eval_every_rounds=2",
    "train.picture_every_rounds=0",
];

/// The shipped example, cut short, on one rank and on two: the same bits in every part, agreement in every place of accuracy.
#[test]
fn without_data_a_run_tells_the_agreement_and_the_same_on_any_number_of_ranks() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let teacher = format!("teacher.weights={}", root().join("configs/fashion_mnist/teacher.safetensors").display());
    let sets = [&SHORT[..], &[&teacher, "eval.fresh_images=50"]].concat();
    let mut sums = Vec::new();
    for (ranks, name) in [(1, "one"), (2, "two")] {
        let run = at(name);
        let command = ["train", "--config", "configs/none/wrn16_2-wrn16_1.toml", "--run-dir", &run];
        let out = ssdkd_on(ranks, &words(&command, &sets)).expect(0);
        assert!(out.stdout.contains("student agreement (wrn16_1)") && !out.stdout.contains("top-1"), "{}", out.stdout);
        sums.push(ssdkd(&["inspect", "--checksum", &run]).expect(0).stdout);
    }
    assert!(sums[0] == sums[1] && !sums[0].is_empty(), "{sums:?}");
    let metrics = |name: &str| std::fs::read_to_string(folder.path().join(name).join("metrics.csv")).unwrap();
    assert_eq!(metrics("one"), metrics("two"));

    let report = json(&folder.path().join("one/report.json"));
    let student = &report["student"];
    let agreement = student["agreement"].as_f64().unwrap();
    assert_eq!(agreement, (agreement * 50.0).round() / 50.0, "a share of 50 images");
    assert!(student["divergence"].as_f64().unwrap() > 0.0 && student["agreement_best"].as_f64().unwrap() >= agreement, "{student}");
    let counted: u64 = student["confidence_counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((counted, student.get("top1"), &student["loss"]), (50, None, &Value::Null));
    assert!(report["teacher"].get("agreement").is_none() && report["teacher"].get("top1").is_none(), "{report}");
    let (header, last) = (metrics("one").lines().next().unwrap().to_owned(), metrics("one").lines().last().unwrap().to_owned());
    let column = header.split(',').position(|name| name == "student_agreement").unwrap();
    assert_eq!(last.split(',').nth(column).unwrap().parse::<f64>().unwrap(), agreement);

    let page = std::fs::read_to_string(folder.path().join("one/report.html")).unwrap();
    for part in ["student agreement", "agreement of the student over time", "50 fresh synthetic images", "Best agreement"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("top-1"));
    let comparison = at("both.html");
    ssdkd(&["report", &at("one"), &at("two"), "--out", &comparison]).expect(0);
    let page = std::fs::read_to_string(&comparison).unwrap();
    assert!(
        page.contains("agreement, %") && page.contains("one: categories in the buffer") && page.contains("two: difficulty of the buffer")
    );
    ssdkd(&["eval", "--run-dir", &at("one")]).expect(2).says(&["dataset: none: there are no images with labels"]);

    // The events have it under the name of the table.
    let events = std::fs::read_dir(folder.path().join("one")).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let is_events = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("events.out");
    let events = events.into_iter().find(is_events).unwrap();
    let events = std::fs::read(events).unwrap();
    assert!(events.windows(17).any(|part| part == b"student_agreement"));
}

/// Fewer of them, where they are larger.
const LARGE: [&str; 5] = ["inversion.batch_size=4", "inversion.steps=1", "replay.capacity=8", "distill.batch_size=4", "train.rounds=2"];

/// The sizes of Tiny-ImageNet and of ImageNet; their generators have four stages and five.
#[test]
fn images_of_64_and_224_pixels_are_made_and_learned_from() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = format!("teacher.weights={}", root().join("configs/fashion_mnist/teacher.safetensors").display());
    for side in [64, 224] {
        let run = folder.path().join(side.to_string()).display().to_string();
        let size = format!("data.size={side}");
        let sets = [&SHORT[..], &LARGE, &[&teacher, &size, "eval.fresh_images=8", "student.model=vgg11"]].concat();
        ssdkd(&words(&["train", "--config", "configs/none/wrn16_2-wrn16_1.toml", "--run-dir", &run], &sets)).expect(0);
        let agreement = json(&Path::new(&run).join("report.json"))["student"]["agreement"].as_f64().unwrap();
        assert_eq!(agreement, (agreement * 8.0).round() / 8.0, "a share of 8 images of {side} pixels");
    }
}

/// A method that keeps no buffer has the histograms too, whether or not it saves pictures.
#[test]
fn methods_without_a_buffer_do_without_data() {
    let folder = tempfile::tempdir().unwrap();
    let (run, teacher) = (folder.path().join("run"), root().join("configs/fashion_mnist/teacher.safetensors"));
    let teacher = format!("teacher.weights={}", teacher.display());
    // What the weights file says of itself is enough: no data.* at all.
    let more =
        ["dataset=none", "method=dfad", "teacher.model=wrn16_2", "student.model=wrn16_1", "inversion.steps=1", "train.warmup_rounds=0"];
    let sets = [&SHORT[..], &more, &[&teacher, "eval.fresh_images=20"]].concat();
    ssdkd(&words(&["train", "--run-dir", run.to_str().unwrap()], &sets)).expect(0);
    let report = json(&run.join("report.json"));
    assert!(report.get("buffer").is_none() && report["student"]["confidence_counts"].is_array(), "{report}");
    let counted = |of: &str| report["fresh"][of].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!((counted("class_counts"), counted("confidence_counts")), (240, 240), "{report}");
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    for part in ["20 fresh synthetic images", "dfad: categories in 240 images of the generator"] {
        assert!(page.contains(part), "{part}");
    }
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(config.contains("classes = 10") && config.contains("size = 32"), "the folder's configuration says it: {config}");
}

/// Two classes told apart by colour: red-ish and blue-ish noise, of sizes that differ.
fn pictures(folder: &Path) {
    for split in ["train", "val"] {
        for (class, tint) in [("apple", [200u8, 40, 40]), ("berry", [40, 40, 200])] {
            let into = folder.join(split).join(class);
            std::fs::create_dir_all(&into).unwrap();
            for i in 0..4u32 {
                let pixel = |x: u32, y: u32| image::Rgb(tint.map(|v| v + ((x * 7 + y * 13 + i) % 50) as u8));
                image::RgbImage::from_fn(100 + i, 120 - 3 * i, pixel).save(into.join(format!("{i}.png"))).unwrap();
            }
        }
    }
}

/// Own pictures at 96×96: a teacher, its scores, its word on new pictures; then a student of it without data, whose generator grows
/// four times and which is told no size.
#[test]
fn own_pictures_make_a_teacher_whose_student_needs_none() {
    let folder = tempfile::tempdir().unwrap();
    pictures(folder.path());
    let dir = folder.path().to_str().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let size = ["dataset=folder", "data.size=96", "data.resize=100", "data.mean=[0.5, 0.5, 0.5]", "data.std=[0.5, 0.5, 0.5]"];
    let of_teach = ["teacher.model=wrn16_1", "teach.epochs=6", "teach.batch_size=4", "teach.lr=0.05", "student.lr_min=0.001"];
    let sets = [&size[..], &of_teach, &["parallel.logical_ranks=1", "train.picture_every_rounds=0"]].concat();
    ssdkd(&words(&["teach", "--data-dir", dir, "--run-dir", &at("teacher")], &sets)).expect(0);
    let report = json(&folder.path().join("teacher/report.json"));
    assert_eq!(report["class_names"], serde_json::json!(["apple", "berry"]));
    assert_eq!(report["student"]["top5"], 1.0, "there are two classes");

    let weights = at("teacher/teacher.safetensors");
    let line = ssdkd(&["eval", "--weights", &weights, "--model", "wrn16_1", "--dataset", "folder", "--data-dir", dir]).expect(0).stdout;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["images"], &line["top1"], &line["loss"]), (&8.into(), &report["student"]["top1"], &report["student"]["loss"]));
    let (new, table) = (at("val/apple"), at("said.csv"));
    ssdkd(&["predict", "--weights", &weights, "--model", "wrn16_1", "--input", &new, "--out", &table]).expect(0);
    assert_eq!(std::fs::read_to_string(&table).unwrap().lines().count(), 5);

    let teacher = format!("teacher.weights={weights}");
    let more = ["dataset=none", "teacher.model=wrn16_1", "student.model=wrn16_1", "train.rounds=2", "eval.fresh_images=8"];
    ssdkd(&words(&["train", "--run-dir", &at("student")], &[&SHORT[..], &more, &[&teacher]].concat())).expect(0);
    let report = json(&folder.path().join("student/report.json"));
    assert!(report["student"]["agreement"].is_f64(), "{report}");
}

fn described(dir: &Path) -> Data {
    let dir = Some(dir.into());
    Data { dir, classes: 2, channels: 3, size: 96, resize: 96, mean: vec![0.5; 3], std: vec![0.5; 3], ..Data::default() }
}

fn read(name: DatasetName, data: &Data, split: Split) -> Result<Dataset> {
    source(name, data).unwrap().read(split)
}

#[test]
fn classes_are_sorted_and_damaged_pictures_are_named() {
    let folder = tempfile::tempdir().unwrap();
    pictures(folder.path());
    let data = described(folder.path());
    let refused = |data: &Data| read(DatasetName::Folder, data, Split::Test).err().unwrap().to_string();
    let set = read(DatasetName::Folder, &data, Split::Test).unwrap();
    assert_eq!(set.images_nchw.size(), [8, 3, 96, 96]);
    assert_eq!(Vec::<i64>::try_from(&set.labels_n).unwrap(), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert!(set.images_nchw.int64_value(&[0, 0, 50, 50]) > 150 && set.images_nchw.int64_value(&[7, 2, 50, 50]) > 150);

    let mut config = Config { dataset: DatasetName::Folder, data: Data { classes: 0, ..data.clone() }, ..Config::default() };
    complete(&mut config).unwrap();
    assert_eq!((config.data.classes, facts_of(&config).class_names), (2, vec!["apple".to_owned(), "berry".to_owned()]));
    assert!(refused(&Data { classes: 3, ..data.clone() }).ends_with("holds folders of 2 classes; data.classes is 3"));

    let path = |name: &str| folder.path().join(name);
    // Hidden files are nobody's pictures; nor are notes.
    std::fs::write(path("val/apple/.DS_Store"), b"x").unwrap();
    std::fs::write(path("val/apple/notes.txt"), b"x").unwrap();
    assert_eq!(read(DatasetName::Folder, &data, Split::Test).unwrap().len(), 8);
    let whole = std::fs::read(path("val/berry/2.png")).unwrap();
    std::fs::write(path("val/berry/2.png"), &whole[..whole.len() / 2]).unwrap();
    assert!(refused(&data).contains("val/berry/2.png: not a readable picture"));
    std::fs::write(path("val/berry/2.png"), b"").unwrap();
    assert!(refused(&data).contains("val/berry/2.png: not a readable picture"));
    let check = || ssdkd(&["data", "check", folder.path().to_str().unwrap()]);
    let out = check().expect(2).says(&["1 findings in", "val/berry/2.png: not a readable picture"]);
    let want = "folder, training split: 8 pictures of 100 to 103 × 111 to 120; 2 classes, apple to berry, 4 to 4 pictures each\n";
    assert_eq!(out.stdout, want);
    // One class's finding hides none of another's, nor the whole data set.
    for split in ["train", "val"] {
        std::fs::write(path(&format!("{split}/apple/5.webp")), b"x").unwrap();
    }
    check().expect(2).says(&["3 findings in", "train/apple/5.webp: a .webp file", "val/berry/2.png: not a readable picture"]);
    for split in ["train", "val"] {
        std::fs::remove_file(path(&format!("{split}/apple/5.webp"))).unwrap();
    }
    std::fs::write(path("val/berry/2.png"), whole).unwrap();
    check().expect(0);

    std::fs::write(path("val/apple/5.webp"), b"x").unwrap();
    assert!(refused(&data).contains("val/apple/5.webp: a .webp file; pictures are read from png, jpg, jpeg"));
    std::fs::remove_file(path("val/apple/5.webp")).unwrap();
    std::fs::create_dir(path("val/cherry")).unwrap();
    assert!(refused(&data).contains("train: has no class `cherry`"));
    std::fs::create_dir(path("train/cherry")).unwrap();
    assert!(refused(&Data { classes: 3, ..data }).contains("val/cherry: holds no .png, .jpg or .jpeg file"));
}

/// Two of the classes, in the layout of the distribution.
fn tiny_imagenet(root: &Path) {
    let save = |path: &Path, side: u32, value: u8| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let picture = image::RgbImage::from_pixel(side, side, image::Rgb([value; 3]));
        picture.save_with_format(path, image::ImageFormat::Jpeg).unwrap();
    };
    // As distributed, the list is not sorted.
    for (wnid, value) in [("n02124075", 200), ("n01443537", 50)] {
        for i in 0..3 {
            save(&root.join(format!("train/{wnid}/images/{wnid}_{i}.JPEG")), 64, value);
        }
        std::fs::write(root.join(format!("train/{wnid}/{wnid}_boxes.txt")), "").unwrap();
    }
    std::fs::write(root.join("wnids.txt"), "n02124075\nn01443537\n").unwrap();
    std::fs::write(root.join("words.txt"), "n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn1\tentity\n").unwrap();
    save(&root.join("val/images/val_0.JPEG"), 64, 200);
    save(&root.join("val/images/val_1.JPEG"), 64, 50);
    std::fs::write(root.join("val/val_annotations.txt"), "val_0.JPEG\tn02124075\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t1\t2\t3\t4\n")
        .unwrap();
}

#[test]
fn tiny_imagenet_is_read_as_it_is_distributed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tiny-imagenet-200");
    tiny_imagenet(&root);
    let data = Data { dir: Some(folder.path().into()), allow_partial: true, ..Data::default() };
    let name = DatasetName::TinyImagenet;
    let refused = |data: &Data, split| read(name, data, split).err().unwrap().to_string();
    for (split, labels) in [(Split::Train, vec![0, 0, 0, 1, 1, 1]), (Split::Test, vec![1, 0])] {
        let set = read(name, &data, split).unwrap();
        assert_eq!((set.images_nchw.size()[1..].to_vec(), Vec::<i64>::try_from(&set.labels_n).unwrap()), (vec![3, 64, 64], labels.clone()));
        for (i, label) in labels.iter().enumerate() {
            let (value, want) = (set.images_nchw.int64_value(&[i as i64, 1, 30, 30]), if *label == 1 { 200 } else { 50 });
            assert!((value - want).abs() <= 2, "{value} instead of {want}");
        }
    }
    assert_eq!(source(name, &data).unwrap().class_names().unwrap(), ["goldfish", "Egyptian cat"]);
    let whole = Data { allow_partial: false, ..data.clone() };
    assert!(refused(&whole, Split::Test).ends_with("wnids.txt: 2 classes; 200 expected"));
    ssdkd(&["data", "check", folder.path().to_str().unwrap()]).expect(2).says(&["1 findings in", "wnids.txt: 2 classes; 200 expected"]);
    ssdkd(&["data", "check", "--partial", folder.path().to_str().unwrap()]).expect(0);

    let write = |name: &str, text: &str| std::fs::write(root.join(name), text).unwrap();
    let annotations = "val/val_annotations.txt";
    for (text, want) in [
        ("val_0.JPEG\tn02124075\nval_1.JPEG\tn9\n", "line 2: `n9` is none of the classes of wnids.txt"),
        ("../../secret\tn02124075\n", "line 1: a file name, a tabulator and a wnid expected"),
        ("", "0 images; 10000 expected"),
    ] {
        write(annotations, text);
        assert!(refused(&data, Split::Test).contains(&format!("val_annotations.txt: {want}")), "{want}");
    }
    write(annotations, "val_7.JPEG\tn02124075\n");
    assert!(refused(&data, Split::Test).contains("val/images/val_7.JPEG"));
    std::fs::write(root.join("train/n01443537/images/n01443537_1.JPEG"), b"torn").unwrap();
    assert!(refused(&data, Split::Train).contains("n01443537_1.JPEG: not a readable picture"));
    let small = image::RgbImage::new(32, 64);
    small.save_with_format(root.join("train/n01443537/images/n01443537_1.JPEG"), image::ImageFormat::Jpeg).unwrap();
    assert!(refused(&data, Split::Train).contains("n01443537_1.JPEG: 32×64 pixels; 64×64 expected"));
    // One class's finding hides none of another's.
    std::fs::remove_dir_all(root.join("train/n02124075/images")).unwrap();
    let found = source(name, &data).unwrap().survey(Split::Train).unwrap_err();
    assert!(found.len() == 2 && found[1].to_string().contains("n02124075/images: no such file"), "{found:?}");
}

#[test]
fn svhn_is_found_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(root().join("tests/golden/mat/packed.mat"), folder.path().join("test_32x32.mat")).unwrap();
    let data = Data { dir: Some(folder.path().into()), allow_partial: true, ..Data::default() };
    assert_eq!(read(DatasetName::Svhn, &data, Split::Test).unwrap().len(), 3);
    let check = ssdkd(&["data", "check", folder.path().to_str().unwrap()]).expect(2);
    check.says(&["test_32x32.mat: 3 images; 26032 expected", "train_32x32.mat: no such file"]);
}
