//! What cannot work is refused before anything is computed: on every rank, within seconds, once, with the way out. The table in
//! docs/refusals.md is printed from the cases below, so that every line of it is one that was seen.

use crate::docs::check;
use crate::launch::{Outcome, has_mpirun, root, run, small_fashion_mnist};
use ssdkd::config;
use ssdkd::models::{self, Shape};
use ssdkd::nn::{State, weights};
use ssdkd::rng::Purpose;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

const DEMO: &str = "configs/fashion_mnist/demo.toml";

/// A situation, how to get into it, and what is then said. Texts are matched part by part around `…`.
struct Refusal {
    situation: &'static str,
    set_up: SetUp,
    message: &'static str,
    way_out: &'static str,
}

enum SetUp {
    /// `--set`s on top of the demo.
    Sets(Vec<String>),
    /// A whole command line; `RUN` stands for a new folder.
    Command(Vec<String>),
    /// Environment variables.
    Environment(Vec<(&'static str, &'static str)>),
}

fn sets(situation: &'static str, set: &[&str], message: &'static str, way_out: &'static str) -> Refusal {
    Refusal { situation, set_up: SetUp::Sets(set.iter().map(|s| (*s).to_owned()).collect()), message, way_out }
}

/// A teacher of scenes.
const SCENES: [&str; 9] = [
    "teach",
    "--set",
    "dataset=scenes13",
    "--set",
    "teacher.model=deeplabv3_mobilenet",
    "--set",
    "data.train_scenes=16",
    "--run-dir",
    "RUN",
];

fn command(situation: &'static str, words: &[&str], message: &'static str, way_out: &'static str) -> Refusal {
    Refusal { situation, set_up: SetUp::Command(words.iter().map(|s| (*s).to_owned()).collect()), message, way_out }
}

/// A refusal that needs a run to be there first: durability.rs meets it, and holds it to what is said here.
pub struct OfARun {
    situation: &'static str,
    message: &'static str,
    way_out: &'static str,
    test: &'static str,
}

pub const HELD: OfARun = OfARun {
    situation: "run folder that another run holds",
    message: "is held by another run (process …",
    way_out: "wait for it, end it, or name another --run-dir",
    test: "two_runs_cannot_share_a_folder",
};
pub const OTHER_SETTINGS: OfARun = OfARun {
    situation: "run folder of a run with other settings, finished or not",
    message: "seed: was 0 when this run began, is 5 now: it would be another run",
    way_out: "name another --run-dir, go back to those settings, or start over with --fresh",
    test: "a_folder_is_never_written_over",
};
pub const NONE_WHOLE: OfARun = OfARun {
    situation: "no checkpoint that is whole",
    message: "no checkpoint is whole:…manifest.json",
    way_out: "start over with --fresh, or put back a copy of the named files",
    test: "damaged_checkpoints_are_named_and_stepped_over",
};
pub const GONE: OfARun = OfARun {
    situation: "checkpoints gone",
    message: "says that 4 student steps are saved, but holds no checkpoint",
    way_out: "put its folder `checkpoints` back, or start over with --fresh",
    test: "damaged_checkpoints_are_named_and_stepped_over",
};

impl OfARun {
    /// Fails the test unless a launch came to this.
    #[track_caller]
    pub fn is_met_by(&self, out: Outcome) {
        let out = out.expect(2);
        assert!(is_said(&out.stderr, self.message) && is_said(&out.stderr, self.way_out), "{}: {}", self.situation, out.stderr);
        assert!(out.seconds < 10.0, "{}: {} s", self.situation, out.seconds);
    }
}

const CONFIG: &str = "docs/config.md has every key with its type, default and meaning";
const KIND: &str = "is this file of another architecture or class count? `ssdkd inspect FILE` lists what it holds";
const NO_DATA: &str = "name a data set, or use a method that makes its images with one trained generator";
const UNUSABLE: &str = "name another --run-dir, or mend this one";

/// Every situation; the files for them are made in `folder`.
fn refusals(folder: &Path) -> Vec<Refusal> {
    let shipped = root().join("configs/fashion_mnist/teacher.safetensors");
    let good = weights::read(&shipped).unwrap().tensors;
    let path = |name: &str| folder.join(name).display().to_string();
    let write = |name: &str, contents: &[u8]| std::fs::write(folder.join(name), contents).unwrap();
    let save = |name: &str, tensors: &[(String, Tensor)]| weights::write(&folder.join(name), tensors, &[]).unwrap();
    let changed = |key: &str, change: &dyn Fn(&Tensor) -> Option<Tensor>| -> Vec<(String, Tensor)> {
        let all = good.iter().map(|(k, t)| (k.clone(), if k == key { change(t) } else { Some(t.shallow_clone()) }));
        all.filter_map(|(k, t)| Some((k, t?))).collect()
    };
    save("silent.safetensors", &good);
    std::fs::create_dir_all(folder.join("no-pictures")).unwrap();
    save("short.safetensors", &changed("fc.bias", &|_| None));
    save("nan.safetensors", &changed("fc.bias", &|t| Some(Tensor::full(t.size(), f64::NAN, (Kind::Float, Device::Cpu)))));
    let mut more = changed("", &|_| None);
    more.push(("fc2.weight".into(), Tensor::zeros([3], (Kind::Float, Device::Cpu))));
    save("more.safetensors", &more);
    let mut classes = changed("fc.weight", &|t| Some(t.narrow(0, 0, 7)));
    classes.iter_mut().filter(|(k, _)| k == "fc.bias").for_each(|(_, t)| *t = t.narrow(0, 0, 7));
    save("seven.safetensors", &classes);
    let vgg = models::build(config::ModelName::Vgg11, Shape { channels: 1, classes: 10 });
    let vgg = State::initialised(vgg.blueprint(), 1, Purpose::StudentInit, Device::Cpu).state_dict();
    let layer = |key: &str| key.rsplit_once('.').unwrap().0.to_owned();
    let normed: Vec<String> = vgg.iter().filter(|(key, _)| key.ends_with("running_mean")).map(|(key, _)| layer(key)).collect();
    let plain: Vec<_> = vgg.into_iter().filter(|(key, _)| !normed.contains(&layer(key))).collect();
    save("plain.safetensors", &plain);
    write("notes.txt", b"these are not weights");
    write("empty.pth", b"");
    let bytes = std::fs::read(&shipped).unwrap();
    write("cut.safetensors", &bytes[..bytes.len() / 2]);
    write("net.onnx", b"\x08\x08\x12\x07pytorch\x1a\x062.11.0");
    let script_of = |name: &str| format!("teacher.weights={}", root().join("tests/golden/torchscript").join(name).display());
    let golden = |name: &str| root().join("tests/golden/pickle").join(name).display().to_string();
    write("broken.toml", b"seed = 1\nseed =\n");
    std::fs::create_dir_all(folder.join("mine")).unwrap();
    write("mine/config.toml", b"mine");
    let small = |name: &str| {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        small_fashion_mnist(&folder.join(name), 4)
    };
    let shorten = |name: &str, file: &str, by: usize| {
        let path = small(name).join(file);
        let raw = std::fs::read(&path).unwrap();
        std::fs::write(path, &raw[..raw.len() - by]).unwrap();
    };
    shorten("cut-images", "t10k-images-idx3-ubyte", 100);
    let other = small("swapped-images");
    std::fs::copy(other.join("t10k-labels-idx1-ubyte"), other.join("t10k-images-idx3-ubyte")).unwrap();
    let labels = small("wrong-labels").join("t10k-labels-idx1-ubyte");
    let mut raw = std::fs::read(&labels).unwrap();
    raw[10] = 200;
    std::fs::write(&labels, raw).unwrap();
    let labels = small("fewer-labels").join("t10k-labels-idx1-ubyte");
    let mut raw = std::fs::read(&labels).unwrap();
    raw[7] = 3;
    std::fs::write(&labels, &raw[..raw.len() - 1]).unwrap();
    let images = small("other-size").join("t10k-images-idx3-ubyte");
    let mut raw = std::fs::read(&images).unwrap();
    (raw[11], raw[15]) = (14, 56);
    std::fs::write(&images, raw).unwrap();
    let images = small("cut-gzip").join("t10k-images-idx3-ubyte");
    std::fs::remove_file(&images).unwrap();
    let raw = std::fs::read(root().join("configs/fashion_mnist/t10k-images-idx3-ubyte.gz")).unwrap();
    std::fs::write(images.with_extension("gz"), &raw[..raw.len() / 2]).unwrap();
    std::fs::create_dir_all(folder.join("cifar-part")).unwrap();
    ["cifar-part/test_batch.bin", "cifar-part/data_batch_1.bin"].iter().for_each(|name| write(name, &[0; 3073]));
    std::fs::create_dir_all(folder.join("cifar")).unwrap();
    ["cifar/test_batch.bin", "cifar/data_batch_1.bin"].iter().for_each(|name| write(name, &[0; 5000]));
    let set = |key: &str, name: &str| format!("{key}={}", path(name));
    let weights_of = |name: &str| set("teacher.weights", name);

    let mut all = vec![
        sets("unknown key", &["replay.capacty=5"], "replay.capacty: unknown key (from command line)", "did you mean `replay.capacity`?"),
        sets("value that is no choice", &["student.model=resnet19"], "student.model: \"resnet19\" is none of", "did you mean `resnet18`?"),
        sets("value of another type", &["replay.capacity=many"], "replay.capacity: an integer is needed, found string \"many\"", CONFIG),
        sets("value out of range", &["replay.alpha=-1"], "replay.alpha: -1 is negative or not a number", CONFIG),
        sets("several at once", &["replay.alpha=-1", "replay.beta=-2"], "2 settings are refused:…replay.alpha: …replay.beta: ", CONFIG),
        sets("stop signal that is none", &["checkpoint.signals=[\"hup\"]"], "checkpoint.signals…hup", CONFIG),
        sets(
            "no round left after the warm-up",
            &["train.rounds=10", "train.warmup_rounds=30"],
            "train.rounds: 10 rounds with 30 rounds of warm-up never train the student",
            "at least 31 are needed",
        ),
        sets(
            "several inner steps of a generator that is trained over the whole run",
            &["method=dafl", "inversion.steps=3"],
            "inversion.steps: 3: dafl moves its generator once a round",
            "use 1, and more train.rounds",
        ),
        sets(
            "a warm-up in which a method has no loss",
            &["method=zskt", "inversion.steps=1"],
            "train.warmup_rounds: 30: zskt makes images by the student's disagreement alone",
            "use 0",
        ),
        sets(
            "a loss without terms",
            &["inversion.statistics_weight=0", "inversion.task_weight=0", "inversion.adversarial_weight=0"],
            "inversion: no term of ssd_kd's loss has a weight",
            "set one of the inversion.…_weight",
        ),
        sets(
            "M not dividing the batch",
            &["parallel.logical_ranks=6"],
            "distill.batch_size: 128 rows cannot be shared by 6 logical ranks",
            "use 126 or 132",
        ),
        sets(
            "R not dividing M",
            &["parallel.logical_ranks=1"],
            "parallel.logical_ranks: 2 ranks were launched, which does not divide the 1 logical ranks",
            "launch 1 ranks, or start a new run with parallel.logical_ranks = 2",
        ),
        sets(
            "shards too small for a round's images",
            &["replay.capacity=100"],
            "replay.capacity: 100 slots over 2 logical ranks cannot hold the 64 images each makes a round",
            "at least 128",
        ),
        sets(
            "training on data where there is none",
            &["dataset=none", "method=kd"],
            "dataset: none: kd trains on images with labels",
            NO_DATA,
        ),
        sets("agreement without a trained generator", &["dataset=none", "method=cmi"], "dataset: none: cmi keeps no generator", NO_DATA),
        command(
            "teaching without data",
            &["teach", "--set", "dataset=none", "--run-dir", "RUN"],
            "dataset: none: `ssdkd teach` trains on images with labels",
            NO_DATA,
        ),
        sets("no data and nothing said of it", &["dataset=none", &weights_of("silent.safetensors")], "data.size: is not set", CONFIG),
        sets(
            "pictures of classes missing",
            &["dataset=folder", "data.size=32", "data.mean=[0.5]", "data.std=[0.5]", &set("data.dir", "no-pictures")],
            "no-pictures: holds neither train/ nor test/ nor val/",
            "the pictures of class NAME belong into train/NAME/ and test/NAME/ (or val/NAME/)",
        ),
        sets(
            "images for whose layers there is no memory",
            &["inversion.batch_size=100000000", "replay.capacity=200000000"],
            "inversion.batch_size: the layers of wrn16_2 for 100000000 images of 32×32 need ",
            "GB of memory, ",
        ),
        command(
            "crops that a network cannot see",
            &[&SCENES[..], &["--set", "teach.crop=6"]].concat(),
            "teach.crop: images of 6×6: deeplabv3_mobilenet takes 8×8 pixels or more",
            CONFIG,
        ),
        command(
            "views of scenes out of sight",
            &[&SCENES[..], &["--set", "data.scene_crop=64", "--set", "inversion.view_shift=64"]].concat(),
            "inversion.view_shift: 64 pixels shift images of 64 pixels out of sight",
            CONFIG,
        ),
        command(
            "benchmark of a network that labels pixels, for a data set whose images are labelled",
            &["bench", "step", "--teacher", "wrn16_1", "--student", "deeplabv3_mobilenet", "--dataset", "cifar10"],
            "--student: deeplabv3_mobilenet labels pixels, cifar10 has labels of images",
            "use resnet18, resnet34",
        ),
        sets(
            "size that cannot be halved so often",
            &["generator.stages=6"],
            "generator.stages: 6 up-samplings: 32 pixels cannot be halved at each of them",
            "at most 5 are possible",
        ),
        sets(
            "no such teacher file",
            &["teacher.weights=/nowhere/t.pth"],
            "/nowhere/t.pth: no such file",
            "name another with --set teacher.weights=FILE",
        ),
        sets("teacher of another architecture", &["teacher.model=wrn40_2"], "teacher.safetensors: tensor `block1.layer.2.…missing", KIND),
        sets("teacher with a tensor too few", &[&weights_of("short.safetensors")], "short.safetensors: tensor `fc.bias`: missing", KIND),
        sets(
            "teacher with a tensor too many",
            &[&weights_of("more.safetensors")],
            "more.safetensors: tensor `fc2.weight`: is not part of this network",
            KIND,
        ),
        sets(
            "teacher of other image channels",
            &["dataset=cifar10"],
            "teacher.safetensors: tensor `conv1.weight`: has shape [16, 1, 3, 3]; [16, 3, 3, 3] is needed",
            KIND,
        ),
        sets(
            "teacher of another number of classes",
            &[&weights_of("seven.safetensors")],
            "seven.safetensors: tensor `fc.weight`: has shape [7, 128]; [10, 128] is needed",
            KIND,
        ),
        sets(
            "teacher without batch-norm",
            &["teacher.model=vgg11", &weights_of("plain.safetensors")],
            "plain.safetensors: no batch-norm layers; vgg11 has 8",
            "is this file of another architecture, or was batch-norm folded into its convolutions? `ssdkd inspect FILE` lists what it holds",
        ),
        sets(
            "teacher with NaN",
            &[&weights_of("nan.safetensors")],
            "nan.safetensors: tensor `fc.bias`: holds NaN or infinite values",
            "its training went wrong: take an earlier or another file",
        ),
        sets(
            "network that labels pixels, for a data set whose images are labelled",
            &["student.model=deeplabv3_mobilenet"],
            "student.model: deeplabv3_mobilenet labels pixels, fashion_mnist has labels of images",
            "use resnet18, resnet34",
        ),
        sets(
            "backbone for a network that has none",
            &[&set("student.backbone", "more.safetensors")],
            "more.safetensors: the network has no ImageNet backbone that this file could fill",
            "leave the key out, or choose deeplabv3_resnet50 or deeplabv3_mobilenet",
        ),
        sets("not a weights file", &[&weights_of("notes.txt")], "notes.txt: this is not the kind of file needed here", "it looks like "),
        sets("empty weights file", &[&weights_of("empty.pth")], "empty.pth: …", "empty"),
        sets(
            "cut weights file",
            &[&weights_of("cut.safetensors")],
            "cut.safetensors: damaged safetensors file",
            "copy or download the file again",
        ),
        sets(
            "pickle that would run code",
            &[&format!("teacher.weights={}", golden("caller.pth"))],
            "caller.pth: the file holds an object made by calling `…`, not a state dict (nothing in the file was run)",
            "torch.save(model.state_dict(), PATH)",
        ),
        sets(
            "pickled model instead of a state dict",
            &[&format!("teacher.weights={}", golden("whole_linear.pth"))],
            "whole_linear.pth: the file holds a whole pickled model of class `",
            "torch.save(model.state_dict(), PATH)",
        ),
        sets(
            "TorchScript instead of a state dict",
            &[&format!("teacher.weights={}", golden("torchscript.pth"))],
            "torchscript.pth: this is a TorchScript program, not a state_dict",
            "load it with torch.jit.load",
        ),
        sets(
            "TorchScript as a student",
            &["student.model=torchscript"],
            "student.model: torchscript networks teach, but are not trained here",
            "use one of resnet18, resnet34",
        ),
        sets(
            "ONNX model as a teacher",
            &["teacher.model=torchscript", &weights_of("net.onnx")],
            "net.onnx: is an ONNX model: its exporters fold batch-norm into convolutions",
            "take the PyTorch module that it was exported from: write it with launch/pytorch/trace_teacher.py",
        ),
        sets(
            "TorchScript teacher whose batch-norm is folded away",
            &["teacher.model=torchscript", &script_of("small-folded.pt")],
            "small-folded.pt: no batch-norm layers; the method inverts their statistics",
            "torch.jit.freeze and exporters fold batch-norm into convolutions: trace before them; the methods dafl, zskt and dfad need none",
        ),
        sets(
            "TorchScript teacher of images that are normalised otherwise",
            &["dataset=mnist", "teacher.model=torchscript", &script_of("small-manifest.pt")],
            "small-manifest.pt: was made for images normalised by mean [0.286]",
            "the data set's constants as --mean and --std, its own as --own-mean and --own-std",
        ),
        sets(
            "no data files",
            &["data.dir=/nowhere"],
            "/nowhere/t10k-images-idx3-ubyte: no such file, nor with .gz added",
            "name the folder of the IDX files with --data-dir DIR",
        ),
        sets(
            "data cut short",
            &[&set("data.dir", "cut-images")],
            "t10k-images-idx3-ubyte: 3036 values after the header; [4, 28, 28] needs 3136",
            "needs 3136",
        ),
        sets(
            "compressed data cut short",
            &[&set("data.dir", "cut-gzip")],
            "t10k-images-idx3-ubyte.gz: damaged gzip file",
            "damaged gzip file",
        ),
        sets(
            "images of another size",
            &[&set("data.dir", "other-size")],
            "t10k-images-idx3-ubyte: images of 14×56 pixels; 28×28 expected",
            "28×28 expected",
        ),
        sets(
            "labels for other images",
            &[&set("data.dir", "fewer-labels")],
            "t10k-labels-idx1-ubyte: 3 labels for 4 images of …t10k-images-idx3-ubyte",
            "3 labels for 4 images",
        ),
        sets("data file of another kind", &[&set("data.dir", "swapped-images")], "t10k-images-idx3-ubyte: …", "the header alone has 16"),
        sets(
            "label out of range",
            &[&set("data.dir", "wrong-labels")],
            "t10k-labels-idx1-ubyte: label 200 of image 2 is outside 0..9",
            "0..9",
        ),
        command(
            "CIFAR file of a wrong size",
            &["teach", "--set", "dataset=cifar10", "--set", "parallel.logical_ranks=2", "--data-dir", &path("cifar"), "--run-dir", "RUN"],
            "data_batch_1.bin: 5000 bytes; records of 3073 bytes expected",
            "records of 3073 bytes expected",
        ),
        command(
            "CIFAR file with a part of its images",
            &[
                "teach",
                "--set",
                "dataset=cifar10",
                "--set",
                "parallel.logical_ranks=2",
                "--data-dir",
                &path("cifar-part"),
                "--run-dir",
                "RUN",
            ],
            "data_batch_1.bin: 1 images; 10000 expected",
            "copy or download the file again; if a part of the data set is meant, set data.allow_partial = true",
        ),
        command(
            "no configuration file",
            &["train", "--config", "/nowhere.toml", "--run-dir", "RUN"],
            "/nowhere.toml: no such file",
            "no such file",
        ),
        command(
            "configuration file that is no TOML",
            &["train", "--config", &path("broken.toml"), "--run-dir", "RUN"],
            "broken.toml: line 2: ",
            "line 2",
        ),
        command(
            "`--set` without a value",
            &["train", "--config", DEMO, "--run-dir", "RUN", "--set", "seed"],
            "--set seed: write --set key=value",
            "for example --set replay.capacity=5000",
        ),
        command(
            "no teacher named",
            &["train", "--run-dir", "RUN", "--set", "parallel.logical_ranks=2"],
            "teacher.weights: is not set",
            "name the teacher's weights file (.safetensors, .pth or .pt)",
        ),
        command(
            "run folder that cannot be made",
            &["train", "--config", DEMO, "--run-dir", "/proc/nowhere"],
            "cannot create /proc/nowhere: …",
            UNUSABLE,
        ),
        command(
            "run folder with files of somebody else",
            &["train", "--config", DEMO, "--run-dir", &path("mine")],
            "holds config.toml, but no run of ssdkd: it would be written over",
            "or remove what a run would write there with --fresh",
        ),
        command("nothing to inspect", &["inspect", "/nowhere"], "/nowhere: no such file", "no such file"),
        Refusal {
            situation: "OMP_NUM_THREADS that is no number",
            set_up: SetUp::Environment(vec![("OMP_NUM_THREADS", "all")]),
            message: "OMP_NUM_THREADS = `all` is not a number of threads",
            way_out: "set it to cores ÷ ranks, or unset it",
        },
        Refusal {
            situation: "OMP_NUM_THREADS that is zero",
            set_up: SetUp::Environment(vec![("OMP_NUM_THREADS", "0")]),
            message: "OMP_NUM_THREADS = `0` is not a number of threads",
            way_out: "set it to cores ÷ ranks, or unset it",
        },
    ];
    all.push(command(
        "a trace in a folder that is not there",
        &["train", "--config", DEMO, "--run-dir", "RUN", "--trace", "/nowhere/trace.json"],
        "the trace /nowhere/trace.json cannot be created: …",
        "give --trace the name of a file in a folder that exists and may be written to",
    ));
    all.push(sets(
        "CUDA where there is none",
        &["device=cuda"],
        "device: cuda is asked for, but …",
        "set device = \"cpu\" or see `ssdkd doctor`",
    ));
    all
}

/// Each part of `text` between `…` is in `words`, in order.
fn is_said(words: &str, text: &str) -> bool {
    let mut rest = words;
    text.split('…').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[test]
fn what_cannot_work_is_refused_on_every_rank_with_the_way_out() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run_folder = folder.path().join("run");
    let gpu_is_here = Path::new("/dev/nvidiactl").exists();
    let mut faults = Vec::new();
    for Refusal { situation, set_up, message, way_out } in refusals(folder.path()) {
        if gpu_is_here && situation == "CUDA where there is none" {
            println!("skip: {situation}: a GPU is here");
            continue;
        }
        let mut words: Vec<String> = ["train", "--config", DEMO, "--run-dir", "RUN"].map(str::to_owned).to_vec();
        let mut environment = vec![("OMP_NUM_THREADS", "1")];
        match set_up {
            SetUp::Sets(sets) => sets.into_iter().for_each(|set| words.extend(["--set".to_owned(), set])),
            SetUp::Command(whole) => words = whole,
            SetUp::Environment(variables) => environment = variables,
        }
        words.iter_mut().filter(|word| *word == "RUN").for_each(|word| *word = run_folder.display().to_string());
        // Every rank says how it ended, whatever the launcher makes of it.
        let mut command = Command::new(root().join("launch/mpirun.sh"));
        command.args(["2", "sh", "-c", "\"$@\"; echo \"ended with $?\"", "sh", env!("CARGO_BIN_EXE_ssdkd")]).args(&words).envs(environment);
        let out = run(command, Duration::from_secs(120));
        let text = &out.stderr;
        for (holds, what) in [
            (out.stdout.matches("ended with 2").count() == 2, "both ranks end with 2"),
            (is_said(text, message), message),
            (is_said(text, way_out), way_out),
            (text.matches("error:").count() == 1 && !text.contains("panicked"), "one error is printed"),
            (out.seconds < 10.0, "it takes less than ten seconds"),
            (!["metrics.csv", "config.toml", "checkpoints"].iter().any(|name| run_folder.join(name).exists()), "no file is left"),
        ] {
            if !holds {
                faults.push(format!("{situation}: not so: {what}\n{:.1} s\n{}{text}", out.seconds, out.stdout));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(std::fs::read(folder.path().join("mine/config.toml")).unwrap(), b"mine");
    assert_eq!(std::fs::read_dir(folder.path().join("mine")).unwrap().count(), 1, "nothing is added to somebody else's folder");
}

/// Keys whose values are checked by themselves, a value that is refused, and what is said.
const RANGES: [(&str, &str, &str); 75] = [
    ("student.lr", "0", "0 is not a positive number"),
    ("student.lr_min", "1", "1 is not between 0 and student.lr"),
    ("student.momentum", "1", "1 is not between 0 and 1 (exclusive)"),
    ("student.weight_decay", "-1", "-1 is negative or not a number"),
    ("generator.latent", "0", "0 is below 1"),
    ("generator.latent", "1000001", "1000001 is more than 1000000"),
    ("generator.filters", "0", "0 is below 1"),
    ("generator.filters", "65537", "65537 is more than 65536"),
    ("generator.stages", "-1", "-1 is below 0"),
    ("generator.stages", "11", "11 is more than 10"),
    ("inversion.steps", "0", "0 is below 1"),
    ("inversion.batch_size", "1", "1 is below 2"),
    ("inversion.lr_generator", "0", "0 is not a positive number"),
    ("inversion.lr_meta", "-1", "-1 is negative or not a number"),
    ("inversion.lr_latent", "-1", "-1 is negative or not a number"),
    ("inversion.adam_beta1", "1", "1 is not between 0 and 1 (exclusive)"),
    ("inversion.adam_beta2", "-0.1", "-0.1 is not between 0 and 1 (exclusive)"),
    ("inversion.statistics_weight", "-1", "-1 is negative or not a number"),
    ("inversion.task_weight", "-1", "-1 is negative or not a number"),
    ("inversion.adversarial_weight", "nan", "NaN is negative or not a number"),
    ("inversion.balance_weight", "-1", "-1 is negative or not a number"),
    ("inversion.activation_weight", "-1", "-1 is negative or not a number"),
    ("inversion.variation_weight", "-1", "-1 is negative or not a number"),
    ("inversion.norm_weight", "-1", "-1 is negative or not a number"),
    ("inversion.contrastive_weight", "nan", "NaN is negative or not a number"),
    ("inversion.contrastive_temperature", "0", "0 is not a positive number"),
    ("inversion.contrastive_bank", "0", "0 is below 1"),
    ("inversion.contrastive_negatives", "0", "0 is below 1"),
    ("inversion.statistics_momentum", "1", "1 is not between 0 and 1 (exclusive)"),
    ("inversion.regions", "0", "0 is below 1"),
    ("inversion.regions", "257", "257 is more than 256"),
    ("inversion.view_shift", "-1", "-1 is below 0"),
    ("phi.gamma", "-1", "-1 is negative or not a number"),
    ("phi.inverse_cap", "0", "0 is not a positive number"),
    ("replay.capacity", "0", "0 is below 1"),
    ("replay.alpha", "inf", "inf is negative or not a number"),
    ("replay.beta", "-1", "-1 is negative or not a number"),
    ("replay.epsilon", "-1", "-1 is negative or not a number"),
    ("distill.batch_size", "0", "0 is below 1"),
    ("distill.temperature", "0", "0 is not a positive number"),
    ("distill.label_weight", "-1", "-1 is negative or not a number"),
    ("distill.view_shift", "-1", "-1 is below 0"),
    ("distill.teacher_views", "257", "257 is more than 256"),
    ("train.eval_every_rounds", "0", "0 is below 1"),
    ("train.max_nonfinite_steps", "0", "0 is below 1"),
    ("teach.epochs", "0", "0 is below 1"),
    ("teach.batch_size", "0", "0 is below 1"),
    ("teach.lr", "0", "0 is not a positive number"),
    ("teach.weight_decay", "-1", "-1 is negative or not a number"),
    ("teach.view_shift", "-4", "-4 is below 0"),
    ("teach.crop", "-1", "-1 is below 0"),
    ("data.scene_size", "16", "16 is below 32"),
    ("data.scene_size", "1028", "1028 is more than 1024"),
    ("data.scene_size", "50", "50 is no multiple of 4, as the generator needs it"),
    ("data.scene_crop", "28", "28 is below 32"),
    ("data.scene_crop", "132", "132 is more than 128"),
    ("data.scene_crop", "50", "50 is no multiple of 4, as the generator needs it"),
    ("data.train_scenes", "0", "0 is below 1"),
    ("data.test_scenes", "0", "0 is below 1"),
    ("data.classes", "-1", "-1 is below 0"),
    ("data.classes", "1000001", "1000001 is more than 1000000"),
    ("data.channels", "65", "65 is not between 0 and 64"),
    ("data.size", "-4", "-4 is below 0"),
    ("data.size", "4097", "4097 is more than 4096"),
    ("data.resize", "-1", "-1 is below 0"),
    ("data.resize", "4097", "4097 is more than 4096"),
    ("data.mean", "[0.5]", "1 values beside the 0 of data.std"),
    ("data.mean", "[2.0]", "2 is not between 0 and 1"),
    ("data.std", "[0.0]", "0 is not a positive number"),
    ("eval.batch_size", "0", "0 is below 1"),
    ("eval.fresh_images", "0", "0 is below 1"),
    ("checkpoint.every_minutes", "-1", "-1 is negative or not a number"),
    ("checkpoint.keep", "0", "0 is below 1"),
    ("parallel.threads", "0", "0 is below 1"),
    ("parallel.logical_ranks", "0", "0 is below 1"),
];

#[test]
fn every_range_is_checked() {
    for (key, value, says) in RANGES {
        let loaded = config::load(&[], &[format!("{key}={value}")]).unwrap();
        let text = config::check(&loaded.config, config::Job::Train).unwrap_err().to_string();
        assert!(text.contains(&format!("{key}: {says}")), "{key}={value}: {text}");
    }
    // And no check is missing from the table.
    let source = std::fs::read_to_string(root().join("src/config/check.rs")).unwrap();
    let body = source.split("pub fn check(").nth(1).unwrap().split("\n}\n").next().unwrap();
    let checks = body.split("found.").skip(1).filter_map(|call| call.split('"').nth(1)).filter(|key| key.contains('.'));
    let checks: Vec<&str> = checks.collect();
    let count = |key: &str| checks.iter().filter(|k| **k == key).count();
    let shown = |key: &str| RANGES.iter().filter(|(k, ..)| *k == key).count();
    // One for both jobs, and two of the first table.
    let elsewhere = ["student.lr_min", "train.rounds", "inversion.steps"];
    let missing: Vec<&&str> = checks.iter().filter(|key| !elsewhere.contains(key) && shown(key) < count(key)).collect();
    assert!(missing.is_empty(), "not in the table of ranges: {missing:?}");
}

#[test]
fn the_table_of_refusals_is_current() {
    let mut page = String::from(
        "# What is refused, and the way out\n\n\
         Printed from `tests/integration/refusals.rs`, which runs every line of the first table on two ranks under `mpirun` and asserts that\n\
         the message and the way out are said once, that both ranks end with exit code 2 within ten seconds, and that nothing is written.\n\
         `…` stands for what varies. Messages begin with the key, the file or the tensor they are about.\n\n\
         | situation | for example | message | way out |\n| --- | --- | --- | --- |\n",
    );
    let folder = tempfile::tempdir().unwrap();
    let hidden = format!("{}/", folder.path().display());
    let repository = format!("{}/", root().display());
    let cell = |text: &str| text.trim_end_matches('…').trim().replace('|', "\\|").replace(&hidden, "").replace(&repository, "");
    for Refusal { situation, set_up, message, way_out } in refusals(folder.path()) {
        let example = match set_up {
            SetUp::Sets(sets) => sets.join(" "),
            SetUp::Command(words) => words.join(" "),
            SetUp::Environment(variables) => variables.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "),
        };
        page.push_str(&format!("| {} | `{}` | {} | {} |\n", cell(situation), cell(&example), cell(message), cell(way_out)));
    }
    page.push_str(
        "\nRefused where there is a run already, by the tests of `tests/integration/durability.rs`, as fast and with the same code:\n\n\
         | situation | message | way out | test |\n| --- | --- | --- | --- |\n",
    );
    for OfARun { situation, message, way_out, test } in [HELD, OTHER_SETTINGS, NONE_WHOLE, GONE] {
        page.push_str(&format!("| {situation} | {} | {way_out} | `{test}` |\n", cell(message)));
    }
    page.push_str(
        "\nWith tests beside the code: more ranks on a host than GPUs, and a GPU seen by some ranks only (`src/device/binding.rs`), tasks of `srun`\n\
         without MPI support (`src/parallel/comm/mpi.rs`), and what no trial of a sweep could run with (`tests/integration/sweep.rs`).\n\n\
         ## Values out of range\n\n| key | for example | message |\n| --- | --- | --- |\n",
    );
    for (key, value, says) in RANGES {
        page.push_str(&format!("| `{key}` | `{value}` | {says} |\n"));
    }
    check("docs/refusals.md", &page);
}
