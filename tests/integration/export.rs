//! A network leaves ssdkd whole: every format gives the logits that ssdkd gives, for any number of images.

use crate::launch::{root, run, ssdkd};
use ssdkd::config::ModelName;
use ssdkd::export::Subject;
use ssdkd::export::onnx::{self, Attribute, FLOAT, GraphProto, IMAGES, INT64, LOGITS, Model, Node, OPSET, TensorProto, ValueInfo};
use ssdkd::goldens::{fill, filled};
use ssdkd::models::{self, Network, Shape};
use ssdkd::nn::{Pass, State, weights};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tch::{CModule, Device, Kind, Tensor, TrainableCModule};

/// A run's folder with nothing but the network that it has made, and what ssdkd says of some images.
struct Scene {
    _temporary: tempfile::TempDir,
    folder: PathBuf,
    state: State,
    network: Box<dyn Network>,
    images: Tensor,
    logits: Tensor,
}

/// The largest difference that other kernels, in another order, may make.
const TOLERANCE: f64 = 1e-4;

impl Scene {
    fn of(model: ModelName) -> Self {
        // Segmentation networks see 48×40 pixels: maps whose sides differ, and a pyramid whose holes are wider than its map.
        let pixels = matches!(model, ModelName::Deeplabv3Resnet50 | ModelName::Deeplabv3Mobilenet);
        let (shape, [h, w]) = (Shape { channels: 3, classes: 7 }, if pixels { [48, 40] } else { [32, 32] });
        let network = models::build(model, shape);
        let (state, _) = filled(network.blueprint(), 0, Device::Cpu).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("run");
        std::fs::create_dir(&folder).unwrap();
        let texts = [
            ("model", model.name().to_owned()),
            ("classes", shape.classes.to_string()),
            ("channels", shape.channels.to_string()),
            ("height", h.to_string()),
            ("width", w.to_string()),
            ("mean", "0.5 0.25 0.125".into()),
            ("std", "0.5 1 2".into()),
        ];
        weights::write(&folder.join("student.safetensors"), &state.state_dict(), &texts).unwrap();
        let images = fill(1_000_000, &[3, 3, h, w]) * 2.0;
        let logits = tch::no_grad(|| network.forward(&state, &images, &mut Pass::eval()).logits);
        Self { _temporary: temporary, folder, state, network, images, logits }
    }

    fn subject(&self) -> Subject {
        Subject::of_run(&self.folder).unwrap()
    }

    /// Images and logits as files, for Python.
    fn values(&self) {
        let save = |name: &str, tensor: &Tensor| std::fs::write(self.folder.join(name), weights::bytes_of(tensor)).unwrap();
        save("images", &self.images);
        save("logits", &self.logits);
        let shapes = serde_json::json!({ "images": self.images.size(), "logits": self.logits.size() });
        std::fs::write(self.folder.join("shapes.json"), shapes.to_string()).unwrap();
    }

    #[track_caller]
    fn agrees(&self, what: &str, logits: &Tensor, images: i64) {
        let want = self.logits.narrow(0, 0, images);
        assert_eq!(logits.size(), want.size(), "{what}");
        let share = ((logits - &want).abs().max() / want.abs().max()).double_value(&[]);
        assert!(share < TOLERANCE, "{what}: logits of {images} images are off by {share:e}");
    }
}

#[test]
fn torchscript_gives_the_same_logits_and_has_the_state_dict() {
    for model in ModelName::BUILT_IN {
        let scene = Scene::of(model);
        let out = scene.folder.join("network.pt");
        scene.subject().torchscript(&out).unwrap();
        let module = CModule::load(&out).unwrap();
        for images in [1, 3] {
            let logits = tch::no_grad(|| module.forward_ts(&[scene.images.narrow(0, 0, images)])).unwrap();
            scene.agrees(model.name(), &logits, images);
        }
        let entries: BTreeMap<String, Tensor> = scene.state.state_dict().into_iter().collect();
        let named = module.named_parameters().unwrap();
        let parameters = named.iter().filter(|(_, tensor)| tensor.requires_grad()).map(|(_, tensor)| tensor.numel() as i64).sum::<i64>();
        assert_eq!(parameters, scene.network.blueprint().parameter_count(), "{}", model.name());
        for (key, tensor) in &named {
            assert!(tensor.equal(&entries[key]), "{}: {key}", model.name());
        }
    }
}

/// docs/export.md: what a TorchScript module of one's own can do as a student in one's own Rust loop.
#[test]
fn an_exported_module_trains_on() {
    let scene = Scene::of(ModelName::Wrn16x1);
    let out = scene.folder.join("network.pt");
    scene.subject().torchscript(&out).unwrap();
    let store = tch::nn::VarStore::new(Device::Cpu);
    let module = TrainableCModule::load(&out, store.root()).unwrap();
    assert_eq!(store.trainable_variables().iter().map(|t| t.numel() as i64).sum::<i64>(), scene.network.blueprint().parameter_count());
    let loss = module.forward_ts(&[&scene.images]).unwrap().log_softmax(-1, Kind::Float).select(1, 0).mean(Kind::Float).neg();
    loss.backward();
    assert!(store.trainable_variables().iter().all(|t| t.grad().defined() && t.grad().abs().max().double_value(&[]) > 0.0));
}

fn value_type(value: &ValueInfo) -> (Option<String>, Vec<i64>) {
    let tensor = value.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap();
    assert_eq!(tensor.elem_type, FLOAT);
    let [batch, rest @ ..] = &tensor.shape.as_ref().unwrap().dim[..] else { panic!("no batch") };
    (batch.dim_param.clone(), rest.iter().map(|length| length.dim_value.unwrap()).collect())
}

/// Every input of an operator is there before it, nothing has two makers, and what is stored is the state_dict.
#[track_caller]
fn well_formed(graph: &GraphProto, scene: &Scene) {
    let entries: BTreeMap<String, Tensor> = scene.state.state_dict().into_iter().collect();
    let mut known: BTreeSet<&str> = BTreeSet::from([IMAGES]);
    let mut taken = 0;
    for stored in &graph.initializer {
        assert!(known.insert(&stored.name), "{} is there twice", stored.name);
        let bytes = stored.dims.iter().product::<i64>() * if stored.data_type == INT64 { 8 } else { 4 };
        assert_eq!(stored.raw_data.len() as i64, bytes, "{}", stored.name);
        if let Some(entry) = entries.get(&stored.name) {
            assert_eq!(stored.dims, entry.size(), "{}", stored.name);
            assert_eq!(stored.raw_data, weights::bytes_of(entry), "{}", stored.name);
            taken += 1;
        } else {
            let maker = stored.name.split_once('.').map_or("", |(maker, _)| maker);
            assert!(maker.starts_with("value_") || maker == LOGITS, "{} is no entry and no constant", stored.name);
        }
    }
    let counters = entries.keys().filter(|key| key.ends_with("num_batches_tracked")).count();
    assert_eq!(taken, entries.len() - counters, "all that a pass needs of the state_dict");
    let mut names = BTreeSet::new();
    for node in &graph.node {
        assert!(names.insert(&node.name), "{}", node.name);
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            assert!(known.contains(input.as_str()), "{} takes `{input}`, which nothing has made", node.name);
        }
        for output in &node.output {
            assert!(known.insert(output), "`{output}` is made twice");
        }
    }
    assert!(known.contains(LOGITS));
}

#[test]
fn onnx_files_are_well_formed_and_compute_the_logits() {
    for model in ModelName::BUILT_IN {
        let scene = Scene::of(model);
        let out = scene.folder.join("network.onnx");
        scene.subject().onnx(&out).unwrap();
        let Model { graph, opset_import, metadata_props, .. } = onnx::decode(&std::fs::read(&out).unwrap()).unwrap();
        let graph = graph.unwrap();
        assert_eq!(opset_import.iter().map(|set| (set.domain.as_str(), set.version)).collect::<Vec<_>>(), [("", OPSET)]);
        assert!(metadata_props.iter().any(|text| (text.key.as_str(), text.value.as_str()) == ("model", model.name())));
        let [input, output] = [&graph.input[..], &graph.output[..]].map(|values| {
            assert_eq!(values.len(), 1);
            (values[0].name.as_str(), value_type(&values[0]))
        });
        let batch = || Some("batch".to_owned());
        assert_eq!(input, (IMAGES, (batch(), scene.images.size()[1..].to_vec())));
        assert_eq!(output, (LOGITS, (batch(), scene.logits.size()[1..].to_vec())));
        well_formed(&graph, &scene);
        for images in [1, 3] {
            scene.agrees(model.name(), &computed(&graph, &scene.images.narrow(0, 0, images)), images);
        }
    }
}

/// ONNX's operators by their definitions (Operators.md), in f64.
fn computed(graph: &GraphProto, images: &Tensor) -> Tensor {
    let mut values: BTreeMap<&str, Tensor> = BTreeMap::from([(IMAGES, images.to_kind(Kind::Double))]);
    values.extend(graph.initializer.iter().map(|stored| (stored.name.as_str(), stored_tensor(stored))));
    for node in &graph.node {
        let made = tch::no_grad(|| applied(node, &values));
        values.insert(&node.output[0], made);
    }
    values[LOGITS].to_kind(Kind::Float)
}

fn stored_tensor(stored: &TensorProto) -> Tensor {
    let kind = if stored.data_type == INT64 { Kind::Int64 } else { Kind::Float };
    let tensor = Tensor::from_data_size(&stored.raw_data, &stored.dims, kind);
    if kind == Kind::Float { tensor.to_kind(Kind::Double) } else { tensor }
}

fn applied(node: &Node, values: &BTreeMap<&str, Tensor>) -> Tensor {
    let x = |i: usize| &values[node.input[i].as_str()];
    let optional = |i: usize| node.input.get(i).filter(|name| !name.is_empty()).map(|name| &values[name.as_str()]);
    let attribute = |name: &str| -> &Attribute { node.attribute.iter().find(|attribute| attribute.name == name).unwrap() };
    let ints = |name: &str| attribute(name).ints.as_slice();
    let whole = |name: &str| attribute(name).i.unwrap();
    let numbers = |i: usize| Vec::<i64>::try_from(x(i)).unwrap();
    let padded = |x: &Tensor, pads: &[i64], value: f64| {
        let [top, left, bottom, right] = *pads else { panic!("{pads:?}") };
        x.f_pad([left, right, top, bottom], "constant", Some(value)).unwrap()
    };
    match node.op_type.as_str() {
        "Conv" => {
            let (x0, weight) = (padded(x(0), ints("pads"), 0.0), x(1));
            assert_eq!(ints("kernel_shape"), &weight.size()[2..]);
            x0.conv2d(weight, optional(2), ints("strides"), [0i64, 0], ints("dilations"), whole("group"))
        }
        "BatchNormalization" => {
            let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|i| x(i).view([1, -1, 1, 1]));
            (x(0) - mean) / (variance + f64::from(attribute("epsilon").f.unwrap())).sqrt() * scale + bias
        }
        "Relu" => x(0).clamp_min(0.0),
        "Clip" => {
            assert!(optional(1).is_none());
            x(0).minimum(x(2))
        }
        "Add" => x(0) + x(1),
        "MaxPool" => {
            let x0 = padded(x(0), ints("pads"), f64::NEG_INFINITY);
            x0.max_pool2d(ints("kernel_shape"), ints("strides"), [0i64, 0], ints("dilations"), false)
        }
        "GlobalAveragePool" => x(0).mean_dim([2i64, 3].as_slice(), true, Kind::Double),
        "Flatten" => x(0).reshape([x(0).size()[..whole("axis") as usize].iter().product::<i64>(), -1]),
        "Gemm" => {
            assert_eq!(whole("transB"), 1);
            x(0).matmul(&x(1).transpose(0, 1)) + x(2)
        }
        "Concat" => Tensor::cat(&(0..node.input.len()).map(x).collect::<Vec<_>>(), whole("axis")),
        "Pad" => {
            assert_eq!(attribute("mode").s.as_deref(), Some(&b"constant"[..]));
            let [0, 0, top, left, 0, 0, bottom, right] = numbers(1)[..] else { panic!("{:?}", numbers(1)) };
            padded(x(0), &[top, left, bottom, right], x(2).double_value(&[]))
        }
        "Shape" => Tensor::from_slice(&x(0).size()),
        "Slice" => x(0).narrow(0, numbers(1)[0], numbers(2)[0] - numbers(1)[0]),
        "Expand" => {
            let shape: Vec<i64> = x(0).size().iter().zip(numbers(1)).map(|(&own, wanted)| own.max(wanted)).collect();
            x(0).expand(shape.as_slice(), false)
        }
        "Resize" => resized(node, x(0), &numbers(3)),
        other => panic!("{other} is not known here"),
    }
}

/// Between the two pixels whose centres surround a centre of the new map, by their distances; half-pixel centres.
fn resized(node: &Node, x: &Tensor, sizes: &[i64]) -> Tensor {
    let text = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name).and_then(|attribute| attribute.s.clone());
    assert_eq!(text("mode").as_deref(), Some(&b"linear"[..]));
    assert_eq!(text("coordinate_transformation_mode").as_deref(), Some(&b"half_pixel"[..]));
    assert_eq!(sizes[..2], x.size()[..2]);
    [2usize, 3].iter().fold(x.shallow_clone(), |x, &axis| {
        let (from, to) = (x.size()[axis], sizes[axis]);
        let place = ((Tensor::arange(to, (Kind::Double, Device::Cpu)) + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
        let low = place.floor();
        let (near, share) = (low.to_kind(Kind::Int64), place - low);
        let far = (&near + 1).clamp_max(from - 1);
        let mut shape = [1, 1, 1, 1];
        shape[axis] = to;
        let share = share.view(shape);
        x.index_select(axis as i64, &near) * (1.0 - &share) + x.index_select(axis as i64, &far) * share
    })
}

/// A Python with all of these modules; says so where there is none.
fn python(modules: &str) -> Option<String> {
    let python = std::env::var("SSDKD_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", &format!("import {modules}")]).output().is_ok_and(|out| out.status.success());
    if !has {
        println!("skip: {python} has not all of {modules}; SSDKD_TEST_PYTHON may name one that has");
    }
    has.then_some(python)
}

/// Runs a script in a folder, where it finds `images` and `logits` and has to end with code 0.
fn runs(python: &str, folder: &Path, script: &str) {
    let head = "import json, numpy as np\nshapes = json.load(open('shapes.json'))\n\
        images, logits = (np.fromfile(name, np.float32).reshape(shapes[name]) for name in ('images', 'logits'))\n\
        def same(got, count):\n    want = logits[:count]\n    assert got.shape == want.shape, got.shape\n    \
        assert np.abs(got - want).max() < 1e-4 * np.abs(want).max(), np.abs(got - want).max()\n";
    let mut command = Command::new(python);
    command.current_dir(folder).args(["-c", &format!("{head}{script}")]);
    run(command, Duration::from_secs(300)).expect(0);
}

#[test]
fn onnxruntime_gives_the_same_logits() {
    let Some(python) = python("numpy, onnx, onnxruntime") else { return };
    for model in ModelName::BUILT_IN {
        let scene = Scene::of(model);
        scene.values();
        scene.subject().onnx(&scene.folder.join("network.onnx")).unwrap();
        let script = "import onnx, onnxruntime\nonnx.checker.check_model('network.onnx', full_check=True)\n\
            session = onnxruntime.InferenceSession('network.onnx', providers=['CPUExecutionProvider'])\n\
            [same(session.run(['logits'], {'images': images[:count]})[0], count) for count in (1, 2, 3)]\n";
        runs(&python, &scene.folder, script);
    }
}

#[test]
fn pytorch_opens_what_is_written_for_it() {
    let Some(python) = python("numpy, torch") else { return };
    for model in ModelName::BUILT_IN {
        let scene = Scene::of(model);
        scene.values();
        let subject = scene.subject();
        subject.torchscript(&scene.folder.join("module.pt")).unwrap();
        subject.pytorch(&scene.folder.join("network.py")).unwrap();
        let script = "import torch\nfrom network import load, normalise\n\
            for network in (load(), torch.jit.load('module.pt')):\n    with torch.no_grad():\n        \
            [same(network(torch.tensor(images[:count])).numpy(), count) for count in (1, 3)]\n    \
            trained = network.train()(torch.tensor(images))\n    trained.square().sum().backward()\n    \
            assert all(p.grad is not None for p in network.parameters())\n\
            assert torch.jit.load('module.pt').state_dict().keys() == load().state_dict().keys()\n\
            assert torch.equal(normalise(torch.full((1, 3, 1, 1), 0.5)).flatten(), torch.tensor([0.0, 0.25, 0.1875]))\n";
        runs(&python, &scene.folder, script);
    }
}

/// The command, and what it refuses: nothing is written then.
#[test]
fn a_run_is_exported_by_one_command() {
    let scene = Scene::of(ModelName::Wrn16x1);
    let folder = scene.folder.to_str().unwrap();
    let export = |format: &str, out: &Path| ssdkd(&["export", "--run-dir", folder, "--to", format, "--out", out.to_str().unwrap()]);
    for (format, name) in [("safetensors", "a.safetensors"), ("torchscript", "a.pt"), ("onnx", "a.onnx"), ("pytorch", "b.py")] {
        let out = scene.folder.join(name);
        assert_eq!(export(format, &out).expect(0).stdout.trim(), out.to_str().unwrap());
        assert!(out.is_file());
    }
    assert!(scene.folder.join("b.safetensors").is_file());
    export("pytorch", &scene.folder.join("c.txt")).expect(2).says(&["must end in .py"]);
    assert!(!scene.folder.join("c.safetensors").exists());
    export("onnx", Path::new("/nowhere/a.onnx")).expect(2).says(&["there is no such folder"]);
    weights::write(&scene.folder.join("student.safetensors"), &scene.state.state_dict(), &[]).unwrap();
    export("onnx", &scene.folder.join("d.onnx")).expect(2).says(&["does not say its `model`"]);
    ssdkd(&["export", "--run-dir", root().to_str().unwrap(), "--to", "onnx", "--out", "d.onnx"]).expect(2).says(&["holds neither"]);
}
