//! Teachers that are TorchScript programs: what they say, what their batch-norms see and how an image would have to change equal the
//! built-in networks and PyTorch. The files are made by tests/golden/torchscript/make_goldens.py.

use crate::launch::{has_mpirun, root, small_fashion_mnist, ssdkd, ssdkd_on, tiny};
use ssdkd::config::{ModelName, Precision, ReduceRule};
use ssdkd::goldens::fill_f64;
use ssdkd::losses::{StatisticsAverage, cross_entropy};
use ssdkd::models::{self, Shape};
use ssdkd::nn::{Blueprint, Pass, State, compute_in, layer_values, weights};
use ssdkd::teacher::Teacher;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

const SHAPE: Shape = Shape { channels: 1, classes: 10 };
const SIZE: [i64; 2] = [32, 32];
/// Relative to the largest value.
const TOLERANCE: f64 = 1e-5;

fn golden(name: &str) -> PathBuf {
    root().join("tests/golden/torchscript").join(name)
}

fn program(path: &Path) -> Teacher {
    Teacher::load(ModelName::Torchscript, path, SHAPE, SIZE, Device::Cpu).unwrap()
}

/// The network of this crate with the weights that make_goldens.py gives its own.
fn built_in() -> Teacher {
    let network = models::build(ModelName::Wrn16x1, SHAPE);
    let state = eighths(network.blueprint());
    Teacher::new(network, state)
}

fn eighths(blueprint: &Rc<Blueprint>) -> State {
    let value = |(i, entry): (usize, &ssdkd::nn::Entry)| {
        let v = || (fill_f64(i as u64, &entry.shape) * 8.0).round() / 8.0;
        let fan_in: i64 = entry.shape.iter().skip(1).product();
        let value = match entry.key.rsplit('.').next().unwrap() {
            "num_batches_tracked" => Tensor::from(0i64),
            "running_mean" | "bias" => v() * 0.1,
            "running_var" => v() * 0.5 + 1.0,
            _ if entry.shape.len() == 1 => v() * 0.2 + 1.0,
            _ => v() * (3.0 / fan_in as f64).sqrt(),
        };
        (entry.key.clone(), value)
    };
    let dict: Vec<(String, Tensor)> = blueprint.entries().iter().enumerate().map(value).collect();
    State::from_state_dict(blueprint, &dict, Path::new("the fill"), Device::Cpu).unwrap()
}

/// What an inner step takes from a teacher.
struct Said {
    logits: Tensor,
    features: Tensor,
    statistics_loss: Tensor,
    gradient: Tensor,
    embedding: Tensor,
}

fn ask(teacher: &Teacher, rows: i64) -> Said {
    ask_on(teacher, rows, Device::Cpu)
}

fn ask_on(teacher: &Teacher, rows: i64, device: Device) -> Said {
    let images = (fill_f64(1_000_000, &[rows, 1, 32, 32]) * 2.0).to_kind(Kind::Float).to_device(device).set_requires_grad(true);
    let mut pass = Pass::tapped();
    let output = teacher.watch(&images, &mut pass);
    let statistics_loss = teacher.statistics_gap(&pass.into_taps(), &StatisticsAverage::new(0.0, teacher.batch_norm_channels(), device));
    let labels = Tensor::arange(rows, (Kind::Int64, device)).remainder(10);
    (&statistics_loss + cross_entropy(&output.logits, &labels).mean(Kind::Float)).backward();
    let mut pass = Pass::eval().embedding(teacher.parts().0.embedding().0);
    tch::no_grad(|| teacher.watch(&images.detach(), &mut pass));
    Said {
        logits: output.logits.detach(),
        features: output.features_bd.detach(),
        statistics_loss: statistics_loss.detach(),
        gradient: images.grad(),
        embedding: pass.take_embedding().unwrap(),
    }
}

#[track_caller]
fn close(what: &str, got: &Tensor, want: &Tensor) {
    let double = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Double);
    let (got, want) = (double(got), double(want));
    assert_eq!(got.size(), want.size(), "{what}");
    let share = ((got - &want).abs().max() / want.abs().max()).double_value(&[]);
    assert!(share < TOLERANCE, "{what} is off by {share:e}");
}

/// Again and again, since an executor that optimises would hide the operators from the second run on, and on other numbers of images.
fn equals_the_built_in(path: &Path, has_features: bool) {
    let (script, own) = (program(path), built_in());
    assert_eq!(script.batch_norm_channels(), own.batch_norm_channels());
    assert_eq!(script.parts().0.embedding(), own.parts().0.embedding());
    for rows in [3, 3, 3, 1, 7] {
        let what = |part: &str| format!("{}, {rows} images: {part}", path.display());
        let (got, want) = (ask(&script, rows), ask(&own, rows));
        close(&what("logits"), &got.logits, &want.logits);
        close(&what("statistics loss"), &got.statistics_loss, &want.statistics_loss);
        close(&what("gradient"), &got.gradient, &want.gradient);
        close(&what("embedding"), &got.embedding, &want.embedding);
        if has_features {
            close(&what("features"), &got.features, &want.features);
        } else {
            assert_eq!(got.features.size(), [rows, 0]);
        }
    }
}

#[test]
fn a_program_equals_the_built_in_network() {
    equals_the_built_in(&golden("wrn16_1-manifest.pt"), true);
    equals_the_built_in(&golden("wrn16_1-scripted.pt"), false);
}

/// Against f64 in PyTorch, also for a network that is none of this crate's, with batch-norm over pooled values.
#[test]
fn a_program_equals_pytorch() {
    let goldens = weights::read(&golden("goldens.safetensors")).unwrap().tensors;
    let files =
        ["small-manifest.pt", "small-scripted.pt", "small-traced.pt", "small-double.pt", "wrn16_1-manifest.pt", "wrn16_1-scripted.pt"];
    for file in files {
        let network = file.split('-').next().unwrap();
        let want = |part: &str| &goldens.iter().find(|(key, _)| *key == format!("{network}.{part}")).unwrap().1;
        let teacher = program(&golden(file));
        let said = ask(&teacher, want("logits").size()[0]);
        close(&format!("{file} logits"), &said.logits, want("logits"));
        close(&format!("{file} statistics loss"), &said.statistics_loss.view([1]), want("loss"));
        close(&format!("{file} gradient"), &said.gradient, want("gradient"));
    }
}

/// The same on a GPU, where there is one.
#[test]
fn a_program_on_a_gpu_equals_itself_on_the_cpu() {
    if ssdkd::device::gpu_count() == 0 {
        println!("skip: no GPU");
        return;
    }
    compute_in("device", Precision::F32, Device::Cuda(0), ReduceRule::Deterministic).unwrap();
    for file in ["small-manifest.pt", "small-scripted.pt", "wrn16_1-manifest.pt", "wrn16_1-scripted.pt"] {
        let gpu = Device::Cuda(0);
        let there = Teacher::load(ModelName::Torchscript, &golden(file), SHAPE, SIZE, gpu).unwrap();
        let (got, want) = (ask_on(&there, 7, gpu), ask(&program(&golden(file)), 7));
        close(&format!("{file} logits"), &got.logits, &want.logits);
        close(&format!("{file} statistics loss"), &got.statistics_loss, &want.statistics_loss);
        close(&format!("{file} gradient"), &got.gradient, &want.gradient);
    }
}

/// With eleven bits for a number, and statistics of them.
#[test]
fn a_program_in_half_precision_computes_in_it() {
    let goldens = weights::read(&golden("goldens.safetensors")).unwrap().tensors;
    let want = |part: &str| goldens.iter().find(|(key, _)| *key == format!("small.{part}")).unwrap().1.to_kind(Kind::Float);
    let said = ask(&program(&golden("small-half.pt")), 5);
    for (got, want) in [(said.logits, want("logits")), (said.statistics_loss.view([1]), want("loss")), (said.gradient, want("gradient"))] {
        let share = ((&got - &want).abs().max() / want.abs().max()).double_value(&[]);
        assert!(got.kind() == Kind::Float && share > 1e-6 && share < 2e-2, "off by {share:e}");
    }
}

/// What a program's layers give is counted as that of the built-in networks is: a run's memory is estimated by it.
#[test]
fn a_programs_values_are_counted() {
    let of = |teacher: &Teacher| layer_values(|| drop(teacher.head_shape(1, SIZE)));
    let want = of(&built_in());
    assert!(want > 0);
    assert_eq!([of(&program(&golden("wrn16_1-manifest.pt"))), of(&program(&golden("wrn16_1-scripted.pt")))], [want; 2]);
}

/// Images normalised by the data set's constants reach a module as its own constants would have made them.
#[test]
fn a_teacher_with_constants_of_its_own_gets_its_own_images() {
    let (plain, own) = (program(&golden("small-manifest.pt")), program(&golden("small-own_normalisation.pt")));
    let unit = (fill_f64(9, &[4, 1, 32, 32]) * 0.5 + 0.5).to_kind(Kind::Float);
    let seen = own.evaluate(&((&unit - 0.286) / 0.353)).logits;
    close("logits", &seen, &plain.evaluate(&((&unit - 0.5) / 0.25)).logits);
}

#[test]
fn what_a_method_needs_is_asked_for() {
    let without = |file: &str| program(&golden(file)).needs_batch_norm(Path::new(file)).is_err();
    assert!(
        !without("small-traced.pt") && without("group_norm-traced.pt") && without("group_norm-manifest.pt") && without("small-folded.pt")
    );
    let featureless = |file: &str| program(&golden(file)).needs_features(Path::new(file)).is_err();
    assert!(!featureless("group_norm-manifest.pt") && featureless("group_norm-traced.pt"));
    let frozen = program(&golden("small-detached.pt")).needs_gradient(Path::new("small-detached.pt")).unwrap_err();
    assert!(frozen.to_string().starts_with("small-detached.pt: no gradient of its logits reaches the images: "), "{frozen}");
    assert!(frozen.hint().unwrap().contains("torch.no_grad and detach") && frozen.exit_code() == 2);
    program(&golden("attention-manifest.pt")).needs_gradient(Path::new("attention-manifest.pt")).unwrap();
}

/// Programs that do not fit: file, classes, channels, size, what is said and the way out.
#[test]
fn programs_that_do_not_fit_are_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        folder.path().join(name)
    };
    let onnx = write("net.onnx", b"\x08\x08\x12\x07pytorch\x1a\x062.11.0");
    let whole = std::fs::read(golden("small-scripted.pt")).unwrap();
    let cut = write("cut.pt", &whole[..whole.len() / 2]);
    let (shape, size, seven) = (SHAPE, SIZE, Shape { classes: 7, ..SHAPE });
    let rgb = Shape { channels: 3, ..SHAPE };
    let state_dict = root().join("tests/golden/pickle/plain.pth");
    let cases: [(PathBuf, Shape, [i64; 2], &str, &str); 11] = [
        (golden("small-nan.pt"), shape, size, "running_var of batch-norm 1`: holds NaN", "its training went wrong"),
        (onnx, shape, size, "is an ONNX model: its exporters fold batch-norm into convolutions", "take the PyTorch module"),
        (cut, shape, size, "is truncated", "trace_teacher.py"),
        (state_dict, shape, size, "this is no TorchScript program: it looks like a file of torch.save", "teacher.model"),
        (golden("small-manifest.pt"), seven, size, "has 10 classes; 7 are needed", "of another data set"),
        (golden("small-manifest.pt"), shape, [28, 28], "was made for images of 1×32×32; 1×28×28 are needed", "of another data set"),
        (golden("small-manifest.pt"), rgb, size, "was made for images of 1×32×32; 3×32×32 are needed", "of another data set"),
        (
            golden("small-scripted.pt"),
            seven,
            size,
            "makes logits [2, 10] of images [2, 1, 32, 32]; [2, 7] is needed",
            "of another data set",
        ),
        (golden("small-scripted.pt"), rgb, size, "fails on images [2, 3, 32, 32]: ", "must not hold a batch size"),
        (golden("small-train_mode.pt"), shape, size, "in training mode", "call module.eval() before tracing"),
        (golden("small-two_rows.pt"), shape, size, "fails on images [3, 1, 32, 32]: ", "must not hold a batch size"),
    ];
    for (path, shape, size, message, way_out) in cases {
        let error = Teacher::load(ModelName::Torchscript, &path, shape, size, Device::Cpu).err().unwrap();
        let (text, hint) = (error.to_string(), error.hint().unwrap_or_default());
        assert!(text.contains(message) && hint.contains(way_out), "{}: {text}\n{hint}", path.display());
        assert!(text.contains(path.file_name().unwrap().to_str().unwrap()) && text.lines().count() == 1, "{text}");
        assert_eq!(error.exit_code(), 2, "{text}");
    }
    let teacher = program(&golden("small-manifest.pt"));
    let error = teacher.normalised_as(&[0.1307], &[0.3081], Path::new("small.pt")).unwrap_err();
    assert!(error.to_string().contains("normalised by mean [0.286] and std [0.353]") && error.hint().unwrap().contains("--own-mean"));
    teacher.normalised_as(&[0.2860], &[0.3530], Path::new("small.pt")).unwrap();
}

/// Through the real launcher: a run with a program as its teacher, on two ranks and after a stop; methods take what they can.
#[test]
fn runs_take_programs_as_teachers() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 50);
    let arguments = |run: &str, teacher: &str, sets: &[&str]| {
        let mut words = tiny(&data, &folder.path().join(run));
        let teacher = [format!("teacher.weights={}", golden(teacher).display()), "teacher.model=torchscript".into()];
        teacher.into_iter().chain(sets.iter().map(|s| (*s).to_owned())).for_each(|set| words.extend(["--set".into(), set]));
        words
    };
    let checksum = |run: &str| ssdkd(&["inspect", "--checksum", folder.path().join(run).to_str().unwrap()]).expect(0).stdout;
    let straight = arguments("straight", "small-scripted.pt", &[]);
    if has_mpirun() { ssdkd_on(2, &straight) } else { ssdkd(&straight) }.expect(0);
    let stopped = arguments("stopped", "small-scripted.pt", &[]);
    ssdkd(&[&stopped[..], &["--until-round".into(), "2".into()]].concat()).expect(0);
    ssdkd(&stopped).expect(0).says(&["resumed at step"]);
    assert_eq!(checksum("stopped"), checksum("straight"));

    ssdkd(&arguments("cmi", "small-manifest.pt", &["method=cmi", "inversion.contrastive_negatives=8"])).expect(0);
    let dafl = ["method=dafl", "inversion.steps=1"];
    ssdkd(&arguments("group", "group_norm-manifest.pt", &dafl)).expect(0);
    ssdkd(&arguments("no", "group_norm-traced.pt", &dafl)).expect(2).says(&["says nothing of its features", "trace_teacher.py"]);
    ssdkd(&arguments("no", "small-detached.pt", &[])).expect(2).says(&["no gradient of its logits reaches the images"]);
    // A program that changes its ways amid a run ends it, and is what is named.
    let changed = ssdkd(&arguments("changed", "small-watched.pt", &[])).expect(1);
    let changed = changed.says(&["small-watched.pt: calls 4 batch-norms in this pass; on trial it called 3", "depends on the images"]);
    assert!(!changed.stderr.contains("fault of ssdkd"), "{}", changed.stderr);
    // A vision transformer, by the methods that need no batch-norm.
    for method in ["dafl", "zskt", "dfad"] {
        let sets = [&format!("method={method}"), "inversion.steps=1", "train.warmup_rounds=0"];
        ssdkd(&arguments(method, "attention-manifest.pt", &sets)).expect(0);
    }
    let disagree = ["method=dfad", "inversion.steps=1", "train.warmup_rounds=0"];
    ssdkd(&arguments("traced", "group_norm-traced.pt", &disagree)).expect(0);
    ssdkd(&arguments("no", "small-folded.pt", &[])).expect(2).says(&["no batch-norm layers; the method inverts", "torch.jit.freeze"]);
    ssdkd(&arguments("no", "small-scripted.pt", &["student.model=torchscript"])).expect(2).says(&["student.model: torchscript"]);
}

/// With a Python that has torch (`$SSDKD_TEST_PYTHON`), files made on this day by launch/pytorch/trace_teacher.py.
#[test]
fn a_program_traced_today_equals_the_built_in_network() {
    let python = std::env::var("SSDKD_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    if !Command::new(&python).args(["-c", "import torch, numpy, safetensors"]).output().is_ok_and(|o| o.status.success()) {
        println!("skip: {python} has no torch; SSDKD_TEST_PYTHON may name one that has");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = Command::new(&python).arg(golden("make_goldens.py")).arg(folder.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    equals_the_built_in(&folder.path().join("wrn16_1-manifest.pt"), true);
    equals_the_built_in(&folder.path().join("wrn16_1-scripted.pt"), false);

    let traced = folder.path().join("command.pt");
    let mut command = Command::new(&python);
    command.current_dir(golden("")).arg(root().join("launch/pytorch/trace_teacher.py"));
    command.args(["--module", "make_goldens:Small", "--input", "1", "32", "32", "--mean", "0.286", "--std", "0.353", "--out"]).arg(&traced);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).contains("10 classes, 3 batch-norms, features of 8 values"));
    assert_eq!(program(&traced).batch_norm_channels(), 22);
}
