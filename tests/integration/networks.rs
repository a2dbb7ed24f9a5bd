//! Networks equal the published PyTorch ones: state_dict keys, shapes and order; logits, features, statistics loss and
//! running statistics of the deterministic fill, against golden values.

use serde_json::Value;
use ssdkd::config::{ModelName, Precision};
use ssdkd::goldens::{deviations, fill, filled, input, networks};
use ssdkd::models::{self, DeepGenerator, Generator, GeneratorShape, Network, Shape};
use ssdkd::nn::{Blueprint, Pass, State, multiplications, weights};
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

fn state_of(blueprint: &Rc<Blueprint>) -> State {
    filled(blueprint, 0, Device::Cpu).unwrap().0
}

/// Golden values have six digits; f32 arithmetic in another order may differ by a few 1e-6 of the scale.
fn close(what: &str, got: f64, want: f64, scale: f64) {
    assert!((got - want).abs() <= 1e-5 * scale.abs().max(want.abs()), "{what}: {got} instead of {want}");
}

/// All that is known of a network, `count` numbers.
fn is_pytorchs(name: &str, count: usize) {
    let found = deviations(name, Device::Cpu).unwrap();
    assert_eq!(found.len(), count, "{name}");
    for number in found {
        assert!(number.relative <= 1e-5, "{number:?}");
    }
}

fn built(name: &str) -> Box<dyn Network> {
    let (model, classes) = name.split_once('-').unwrap();
    let shape = Shape { channels: 3, classes: classes.parse().unwrap() };
    let network = models::build(ModelName::ALL.into_iter().find(|m| m.name() == model).unwrap(), shape);
    assert_state_dict(network.blueprint(), name);
    network
}

#[test]
fn classifiers_equal_the_published_ones() {
    let names: Vec<String> = networks().into_iter().filter(|name| !name.starts_with("deeplab")).collect();
    assert_eq!(names.len(), 14);
    for name in names {
        built(&name);
        is_pytorchs(&name, 13);
    }
}

#[test]
fn segmentation_networks_equal_the_published_ones() {
    let golden = json("networks.json");
    let names: Vec<String> = networks().into_iter().filter(|name| name.starts_with("deeplab")).collect();
    assert_eq!(names.len(), 2);
    for name in names {
        let network = built(&name);
        let number = |i: usize| golden["segmentation"][&name][i].as_f64().unwrap();
        assert_eq!(network.blueprint().parameter_count() as f64, number(7), "{name}");
        let (state, images) = (state_of(network.blueprint()), input(&[2, 3, 128, 128]));
        let (out, count) = tch::no_grad(|| multiplications(|| network.forward(&state, &images, &mut Pass::eval())));
        assert_eq!(count as f64, 2.0 * number(6), "{name}");
        // What is stored of a view gives the same logits again.
        assert_eq!(out.head.size(), [2, 13, 16, 16]);
        assert!(ssdkd::task::at_size(&out.head, &images).equal(&out.logits), "{name}");
        is_pytorchs(&name, 8);
    }
}

/// Files as torchvision writes them: its keys, its classifier besides, counters or not. Every tensor of the backbone comes from them, as
/// it does from a file of the whole network, whose head is left.
#[test]
fn backbones_start_from_torchvisions_files() {
    let folder = tempfile::tempdir().unwrap();
    for (name, count) in [(ModelName::Deeplabv3Mobilenet, 52), (ModelName::Deeplabv3Resnet50, 53)] {
        let network = models::build(name, Shape { channels: 3, classes: 13 });
        let (theirs, _) = filled(network.blueprint(), 5000, Device::Cpu).unwrap();
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
        let whole = folder.path().join("whole.safetensors");
        weights::write(&whole, &theirs.state_dict(), &[]).unwrap();
        let untouched = state_of(network.blueprint());
        for path in [&whole, &path] {
            let state = state_of(network.blueprint());
            models::load_backbone(&*network, &state, path).unwrap();
            for (((key, got), (_, theirs)), (_, own)) in state.state_dict().into_iter().zip(theirs.state_dict()).zip(untouched.state_dict())
            {
                let want = if key.starts_with("backbone.") { theirs } else { own };
                assert!(got.equal(&want), "{key} of {}", path.display());
            }
        }

        let lost = file.remove(7).0;
        weights::write(&path, &file, &[]).unwrap();
        let text = models::load_backbone(&*network, &untouched, &path).unwrap_err().to_string();
        assert!(text.contains("missing; shape") && text.contains(lost.rsplit_once("features.").map_or(lost.as_str(), |k| k.1)), "{text}");
    }
    let plain = models::build(ModelName::Vgg11, Shape { channels: 3, classes: 13 });
    let state = state_of(plain.blueprint());
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
    let (state, sum) = filled(blueprint, 0, Device::Cpu).unwrap();
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
        let state = state_of(network.blueprint());
        assert_eq!(count(&|| network.forward(&state, &input(&[1, 3, 32, 32]), &mut Pass::eval()).logits), macs, "{name:?}");
    }
    let generator = Generator::new(GeneratorShape { latent: 256, filters: 64, size: [32, 32], channels: 3, large: false, stages: 2 });
    let state = state_of(generator.blueprint());
    assert_eq!(count(&|| generator.forward(&state, &input(&[1, 256]), &mut Pass::eval())), 117_112_832);
    // The same network for larger images differs in its first layer only.
    for (side, parameters) in [(64, 8_644_931), (128, 33_909_059)] {
        let generator =
            Generator::new(GeneratorShape { latent: 256, filters: 64, size: [side, side], channels: 3, large: false, stages: 2 });
        assert_eq!(generator.blueprint().parameter_count(), parameters);
    }
}

/// Losses and the buffer take f32: so do all networks give it, whatever their convolutions compute in.
#[test]
fn logits_are_f32_in_bf16_too() {
    for name in [ModelName::Deeplabv3Mobilenet, ModelName::Wrn16x1, ModelName::Resnet18, ModelName::Vgg11] {
        let network = models::build(name, Shape { channels: 3, classes: 5 });
        let run = |precision| {
            let mut state = state_of(network.blueprint());
            state.compute_in(precision);
            tch::no_grad(|| network.forward(&state, &input(&[1, 3, 32, 32]), &mut Pass::eval()))
        };
        let (rough, exact) = (run(Precision::Bf16), run(Precision::F32));
        for of in [&rough.logits, &rough.head, &rough.features_bd] {
            assert_eq!(of.kind(), Kind::Float, "{name:?}");
        }
        let differ = !rough.logits.equal(&exact.logits);
        assert!(differ && rough.logits.allclose(&exact.logits, 0.1, 0.1 * exact.logits.abs().max().double_value(&[]), false), "{name:?}");
    }
}

/// Other class counts, channels and image sizes: nothing is fixed in code.
#[test]
fn sizes_are_free() {
    for name in ModelName::BUILT_IN {
        let network = models::build(name, Shape { channels: 1, classes: 7 });
        let state = state_of(network.blueprint());
        for size in [28, 64] {
            let out = tch::no_grad(|| network.forward(&state, &input(&[2, 1, size, size]), &mut Pass::eval()));
            let want: &[i64] = if name.name().starts_with("deeplab") { &[2, 7, size, size] } else { &[2, 7] };
            assert_eq!(out.logits.size(), want, "{name:?} at {size}");
        }
    }
}
