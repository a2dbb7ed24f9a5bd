//! Networks equal the published PyTorch ones: state_dict keys, shapes and order; logits, features, statistics loss and
//! running statistics of the deterministic fill, against golden values.

use crate::fill::{fill, fill_f64};
use serde_json::Value;
use ssdkd::config::ModelName;
use ssdkd::losses::StatisticsAverage;
use ssdkd::models::{self, DeepGenerator, Generator, GeneratorShape, Shape};
use ssdkd::nn::{Blueprint, Pass, State, multiplications, weights};
use ssdkd::teacher::Teacher;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden().join(path)).unwrap()).unwrap()
}

/// Keys and shapes in order, against the list made by instantiating the PyTorch module.
fn assert_state_dict(blueprint: &Blueprint, name: &str) {
    let want: Vec<(String, Vec<i64>)> = serde_json::from_value(json(&format!("state_dicts/{name}.json"))).unwrap();
    let got: Vec<(String, Vec<i64>)> = blueprint.entries().iter().map(|e| (e.key.clone(), e.shape.clone())).collect();
    assert_eq!(got, want, "{name}");
}

/// The deterministic fill: entry i of the state_dict from v(first + i, ·), scaled by what the entry is; and the sum of all values.
pub fn filled(blueprint: &Rc<Blueprint>, first: u64) -> (State, f64) {
    let mut sum = 0.0;
    let dict: Vec<(String, Tensor)> = blueprint
        .entries()
        .iter()
        .enumerate()
        .map(|(i, entry)| {
            let v = || fill_f64(first + i as u64, &entry.shape);
            let fan_in: i64 = entry.shape.iter().skip(1).product();
            let value = match entry.key.rsplit('.').next().unwrap() {
                "num_batches_tracked" => return (entry.key.clone(), Tensor::from(0i64)),
                "running_mean" | "bias" => v() * 0.1,
                "running_var" => v() * 0.5 + 1.0,
                "weight" if entry.shape.len() == 1 => v() * 0.2 + 1.0,
                _ => v() * (3.0 / fan_in as f64).sqrt(),
            };
            sum += value.to_kind(Kind::Float).sum(Kind::Double).double_value(&[]);
            (entry.key.clone(), value.to_kind(Kind::Float))
        })
        .collect();
    let state = State::from_state_dict(blueprint, &dict, Path::new("the fill"), Device::Cpu).unwrap();
    (state, sum)
}

/// Golden values have six digits; f32 arithmetic in another order may differ by a few 1e-6 of the scale.
fn close(what: &str, got: f64, want: f64, scale: f64) {
    assert!((got - want).abs() <= 1e-5 * scale.abs().max(want.abs()), "{what}: {got} instead of {want}");
}

fn input(shape: &[i64]) -> Tensor {
    fill(1_000_000, shape) * 2.0
}

fn check_classifier(name: &str, want: &Value) {
    let (model, classes) = name.split_once('-').unwrap();
    let shape = Shape { channels: 3, classes: classes.parse().unwrap() };
    let network = models::build(ModelName::ALL.into_iter().find(|m| m.name() == model).unwrap(), shape);
    assert_state_dict(network.blueprint(), name);
    let (state, sum) = filled(network.blueprint(), 0);
    let number = |i: usize| want[i].as_f64().unwrap();
    close(&format!("{name} fill"), sum, number(0), sum);

    let images = input(&[4, 3, 32, 32]);
    let out = tch::no_grad(|| network.forward(&state, &images, &mut Pass::eval()));
    let scale = out.logits.abs().max().double_value(&[]);
    for c in 0..3 {
        close(&format!("{name} logit {c}"), out.logits.double_value(&[0, c]), want[1][c as usize].as_f64().unwrap(), scale);
    }
    close(&format!("{name} last logit"), out.logits.double_value(&[3, shape.classes - 1]), number(2), scale);
    close(&format!("{name} mean abs"), out.logits.abs().mean(Kind::Double).double_value(&[]), number(3), 0.0);
    close(&format!("{name} features"), out.features_bd.norm().double_value(&[]), number(4), 0.0);

    let train_state = State::empty(network.blueprint(), Device::Cpu);
    train_state.copy_from(&state);
    let train = tch::no_grad(|| network.forward(&train_state, &images, &mut Pass::train()).logits);
    for c in 0..3 {
        close(&format!("{name} train logit {c}"), train.double_value(&[0, c]), want[6][c as usize].as_f64().unwrap(), scale);
    }
    let sums = |i: usize| -> f64 {
        let of = |(mean, var): &(Tensor, Tensor)| if i == 0 { mean.sum(Kind::Double) } else { var.sum(Kind::Double) }.double_value(&[]);
        train_state.running_statistics().iter().map(of).sum()
    };
    let channels = network.blueprint().batch_norm_channels().iter().sum::<i64>() as f64;
    close(&format!("{name} running means"), sums(0), number(7), channels.sqrt());
    close(&format!("{name} running variances"), sums(1), number(8), 0.0);

    check_statistics_loss(name, Teacher::new(network, state), &images, number(5));
}

fn check_statistics_loss(name: &str, teacher: Teacher, images: &Tensor, want: f64) {
    let mut pass = Pass::tapped();
    teacher.watch(images, &mut pass);
    let gap = teacher.statistics_gap(&pass.into_taps(), &StatisticsAverage::new(0.0, teacher.batch_norm_channels(), Device::Cpu));
    close(&format!("{name} statistics loss"), gap.double_value(&[]), want, 0.0);
}

#[test]
fn classifiers_equal_the_published_ones() {
    let golden = json("networks.json");
    let classifiers = golden["classifiers"].as_object().unwrap();
    assert_eq!(classifiers.len(), 14);
    for (name, want) in classifiers {
        check_classifier(name, want);
    }
}

#[test]
fn segmentation_networks_equal_the_published_ones() {
    let golden = json("networks.json");
    for (name, want) in golden["segmentation"].as_object().unwrap() {
        let shape = Shape { channels: 3, classes: 13 };
        let model = name.trim_end_matches("-13");
        let network = models::build(ModelName::ALL.into_iter().find(|m| m.name() == model).unwrap(), shape);
        assert_state_dict(network.blueprint(), name);
        let number = |i: usize| want[i].as_f64().unwrap();
        assert_eq!(network.blueprint().parameter_count() as f64, number(7), "{name}");
        let (state, sum) = filled(network.blueprint(), 0);
        close(&format!("{name} fill"), sum, number(0), sum);

        let images = input(&[2, 3, 128, 128]);
        let (out, count) = tch::no_grad(|| multiplications(|| network.forward(&state, &images, &mut Pass::eval())));
        assert_eq!(count as f64, 2.0 * number(6), "{name}");
        let scale = out.logits.abs().max().double_value(&[]);
        for c in 0..3 {
            close(&format!("{name} logit {c}"), out.logits.double_value(&[0, c, 64, 64]), want[1][c as usize].as_f64().unwrap(), scale);
        }
        close(&format!("{name} last logit"), out.logits.double_value(&[1, 12, 127, 127]), number(2), scale);
        close(&format!("{name} mean abs"), out.logits.abs().mean(Kind::Double).double_value(&[]), number(3), 0.0);
        close(&format!("{name} norm"), out.logits.norm().double_value(&[]), number(4), 0.0);
        // What is stored of a view gives the same logits again.
        assert_eq!(out.head.size(), [2, 13, 16, 16]);
        assert!(ssdkd::task::at_size(&out.head, &images).equal(&out.logits), "{name}");

        check_statistics_loss(name, Teacher::new(network, state), &images, number(5));
    }
}

/// Files as torchvision writes them: its keys, its classifier besides, counters or not. Every tensor of the backbone comes from them.
#[test]
fn backbones_start_from_torchvisions_files() {
    let folder = tempfile::tempdir().unwrap();
    for (name, count) in [(ModelName::Deeplabv3Mobilenet, 52), (ModelName::Deeplabv3Resnet50, 53)] {
        let network = models::build(name, Shape { channels: 3, classes: 13 });
        let (theirs, _) = filled(network.blueprint(), 5000);
        let torchvision = |key: &str| {
            let key = key.strip_prefix("backbone.")?;
            Some(key.replace("low_level_features.", "features.").replace("high_level_features.", "features."))
        };
        let mut file: Vec<(String, Tensor)> =
            theirs.state_dict().into_iter().filter_map(|(key, tensor)| Some((torchvision(&key)?, tensor))).collect();
        file.retain(|(key, _)| !key.ends_with("num_batches_tracked"));
        assert_eq!(
            file.iter().filter(|(key, _)| key.ends_with("running_var")).count(),
            count - usize::from(name == ModelName::Deeplabv3Mobilenet)
        );
        let besides: &[&str] = match name {
            ModelName::Deeplabv3Mobilenet => {
                &["features.18.0.weight", "features.18.1.running_var", "classifier.1.weight", "classifier.1.bias"]
            }
            _ => &["fc.weight", "fc.bias"],
        };
        file.extend(besides.iter().map(|key| ((*key).to_owned(), fill(1, &[3, 2]))));
        let path = folder.path().join("imagenet.safetensors");
        weights::write(&path, &file, &[]).unwrap();
        let (state, _) = filled(network.blueprint(), 0);
        models::load_backbone(&*network, &state, &path).unwrap();
        let (untouched, _) = filled(network.blueprint(), 0);
        for (((key, got), (_, theirs)), (_, own)) in state.state_dict().into_iter().zip(theirs.state_dict()).zip(untouched.state_dict()) {
            let want = if key.starts_with("backbone.") { theirs } else { own };
            assert!(got.equal(&want), "{key}");
        }

        let lost = file.remove(7).0;
        weights::write(&path, &file, &[]).unwrap();
        let text = models::load_backbone(&*network, &state, &path).unwrap_err().to_string();
        assert!(text.contains("missing; shape") && text.contains(lost.rsplit_once("features.").map_or(lost.as_str(), |k| k.1)), "{text}");
    }
    let plain = models::build(ModelName::Vgg11, Shape { channels: 3, classes: 13 });
    let (state, _) = filled(plain.blueprint(), 0);
    let text = models::load_backbone(&*plain, &state, &folder.path().join("imagenet.safetensors")).unwrap_err().to_string();
    assert!(text.contains("has no ImageNet backbone"), "{text}");
}

/// Dropout of a training pass: the keyed one repeats itself, zeroes a tenth, and keeps the mean; other passes have none.
#[test]
fn dropout_follows_its_key_alone() {
    use ssdkd::rng::{Key, Purpose};
    let x = || Tensor::ones([4, 8, 32, 32], (Kind::Float, Device::Cpu));
    let dropped = |step| Pass::train().with_dropout(Key::global(1, Purpose::Dropout, step)).drop(x(), 0.1);
    assert!(dropped(0).equal(&dropped(0)) && !dropped(0).equal(&dropped(1)));
    let zeros = dropped(0).eq(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    // 32,768 draws of probability 0.1: five standard deviations are 0.0083, which one key in two million exceeds.
    assert!((zeros - 0.1).abs() < 0.0083, "{zeros}");
    assert!((dropped(0).max().double_value(&[]) - 1.0 / 0.9).abs() < 1e-6);
    for pass in [Pass::train(), Pass::eval(), Pass::tapped(), Pass::eval().with_dropout(Key::global(1, Purpose::Dropout, 0))] {
        assert!(pass.drop(x(), 0.1).equal(&x()));
    }
}

#[test]
fn generators_equal_the_published_ones() {
    let golden = json("networks.json");
    let generators = golden["generators"].as_object().unwrap();
    assert_eq!(generators.len(), 5);
    for (name, want) in generators {
        let latent = name.rsplit("nz").next().unwrap().parse().unwrap();
        let shape = GeneratorShape { latent, filters: 64, size: [32, 32], channels: 3, large: name.starts_with("large"), stages: 2 };
        if name.starts_with("deep") {
            let generator = DeepGenerator::new(GeneratorShape { size: [224, 224], ..shape });
            let z = input(&[2, latent, 14, 14]);
            check_generator(name, want, generator.blueprint(), |state, pass| generator.forward(state, &z, pass));
        } else {
            let generator = Generator::new(shape);
            let z = input(&[4, latent]);
            check_generator(name, want, generator.blueprint(), |state, pass| generator.forward(state, &z, pass));
        }
    }
}

fn check_generator(name: &str, want: &Value, blueprint: &Rc<Blueprint>, forward: impl Fn(&State, &mut Pass) -> Tensor) {
    assert_state_dict(blueprint, name);
    let (state, sum) = filled(blueprint, 0);
    close(&format!("{name} fill"), sum, want[0].as_f64().unwrap(), sum);
    for (mut pass, at) in [(Pass::eval(), 1), (Pass::train(), 4)] {
        let images = tch::no_grad(|| forward(&state, &mut pass));
        for c in 0..3 {
            close(&format!("{name} pixel"), images.double_value(&[0, c, 0, 0]), want[at][c as usize].as_f64().unwrap(), 1.0);
        }
        close(&format!("{name} last"), images.reshape([-1]).double_value(&[-1]), want[at + 1].as_f64().unwrap(), 1.0);
        close(&format!("{name} mean"), images.mean(Kind::Double).double_value(&[]), want[at + 2].as_f64().unwrap(), 1.0);
    }
}

/// Multiply-accumulates of one 32×32 image in three channels, ten classes, as counted from the PyTorch modules' layers.
#[test]
fn arithmetic_is_counted_as_the_published_networks_need_it() {
    let count = |body: &dyn Fn() -> Tensor| tch::no_grad(|| multiplications(body).1);
    for (name, macs) in [
        (ModelName::Resnet18, 555_422_720),
        (ModelName::Resnet34, 1_159_402_496),
        (ModelName::Vgg11, 209_392_640),
        (ModelName::Wrn16x1, 26_657_408),
        (ModelName::Wrn16x2, 101_106_944),
        (ModelName::Wrn40x1, 83_280_512),
        (ModelName::Wrn40x2, 327_599_360),
    ] {
        let network = models::build(name, Shape { channels: 3, classes: 10 });
        let (state, _) = filled(network.blueprint(), 0);
        assert_eq!(count(&|| network.forward(&state, &input(&[1, 3, 32, 32]), &mut Pass::eval()).logits), macs, "{name:?}");
    }
    let generator = Generator::new(GeneratorShape { latent: 256, filters: 64, size: [32, 32], channels: 3, large: false, stages: 2 });
    let (state, _) = filled(generator.blueprint(), 0);
    assert_eq!(count(&|| generator.forward(&state, &input(&[1, 256]), &mut Pass::eval())), 117_112_832);
    // The same network for larger images differs in its first layer only.
    for (side, parameters) in [(64, 8_644_931), (128, 33_909_059)] {
        let generator =
            Generator::new(GeneratorShape { latent: 256, filters: 64, size: [side, side], channels: 3, large: false, stages: 2 });
        assert_eq!(generator.blueprint().parameter_count(), parameters);
    }
}

/// Other class counts, channels and image sizes: nothing is fixed in code.
#[test]
fn sizes_are_free() {
    for name in ModelName::BUILT_IN {
        let network = models::build(name, Shape { channels: 1, classes: 7 });
        let (state, _) = filled(network.blueprint(), 0);
        for size in [28, 64] {
            let out = tch::no_grad(|| network.forward(&state, &input(&[2, 1, size, size]), &mut Pass::eval()));
            let want: &[i64] = if name.name().starts_with("deeplab") { &[2, 7, size, size] } else { &[2, 7] };
            assert_eq!(out.logits.size(), want, "{name:?} at {size}");
        }
    }
}
