//! A classifier of the user's own, as a TorchScript program: what goes into its batch-norms comes from the program itself where
//! launch/pytorch/trace_teacher.py wrote it (a manifest lies inside), and is observed in any other.

use super::{Network, Output, Shape};
use crate::error::{Error, Result};
use crate::files;
use crate::nn::weights::MANIFEST;
use crate::nn::{BatchNormCall, Blueprint, Embedding, InputStatistics, Pass, Scope, State, observe_batch_norms, pickle};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{CModule, Device, IValue, Kind, Tensor, jit};

/// The manifests this reads.
const FORMAT: u32 = 1;
/// Rows of the passes on trial: a program that has one of them built in fails at the other. From the second run of a program on,
/// an optimising executor would hide its operators.
const TRIAL_ROWS: [i64; 3] = [2, 2, 3];
/// Outputs of a program with a manifest: first logits and features, then so many of each batch-norm.
const PER_BATCH_NORM: usize = 4;

const SCRIPT: &str = "write it with launch/pytorch/trace_teacher.py (docs/teachers.md)";

/// What trace_teacher.py says of its program.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Classes k.
    pub classes: i64,
    /// Channels, height and width of an image.
    pub input: [i64; 3],
    /// Mean per channel by which images are normalised.
    pub mean: Vec<f32>,
    /// Standard deviation per channel.
    pub std: Vec<f32>,
    /// Values of an image's features; 0 without.
    pub features: i64,
    batch_norms: Vec<Layer>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Layer {
    name: String,
    channels: i64,
}

impl Manifest {
    /// The manifest inside a TorchScript file, if it has one.
    ///
    /// # Errors
    /// Another kind of file, a damaged one, or a manifest of another format.
    pub fn of(bytes: &[u8], path: &Path) -> Result<Option<Self>> {
        if pickle::is_onnx(bytes) {
            let why =
                "is an ONNX model: its exporters fold batch-norm into convolutions, so that the statistics which methods invert are gone";
            return Err(Error::file(path, why).with_hint(format!("take the PyTorch module that it was exported from: {SCRIPT}")));
        }
        let foreign = |e: pickle::PickleError| Error::file(path, e.to_string());
        let hint = format!("a state_dict needs the name of its network as teacher.model; any other module: {SCRIPT}");
        let Some(text) = pickle::read_extra(bytes, MANIFEST).map_err(|e| foreign(e).with_hint(hint))? else { return Ok(None) };
        let refuse = |why: String| Error::file(path, format!("its {MANIFEST} {why}")).with_hint(format!("{SCRIPT} of this version"));
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| refuse(format!("cannot be read: {e}")))?;
        if manifest.format != FORMAT {
            return Err(refuse(format!("is of format {}; {FORMAT} is needed", manifest.format)));
        }
        Ok(Some(manifest))
    }

    fn check(&self, shape: Shape, [height, width]: [i64; 2]) -> Result<(), String> {
        let [c, h, w] = self.input;
        if self.classes != shape.classes {
            return Err(format!("has {} classes; {} are needed", self.classes, shape.classes));
        }
        if self.input != [shape.channels, height, width] {
            return Err(format!("was made for images of {c}×{h}×{w}; {}×{height}×{width} are needed", shape.channels));
        }
        Ok(())
    }
}

/// What a pass gave.
struct Seen {
    output: Output,
    batch_norms: Vec<BatchNormCall>,
}

pub(super) struct TorchScript {
    module: CModule,
    path: PathBuf,
    blueprint: Rc<Blueprint>,
    manifest: Option<Manifest>,
    /// Element type of its weights: images are brought to it.
    kind: Kind,
    running: Vec<(Tensor, Tensor)>,
}

impl TorchScript {
    /// Reads a program and puts it on trial on images of `size`.
    ///
    /// # Errors
    /// Another kind of file, weights that are not finite, a manifest that says otherwise than `shape` and `size`; a program that does not
    /// take a batch of any number of such images, returns something else than logits, or is not one in evaluation mode.
    pub(super) fn load(path: &Path, shape: Shape, size: [i64; 2], device: Device) -> Result<Self> {
        let bytes = files::read(path)?;
        let manifest = Manifest::of(&bytes, path)?;
        let refuse = |why: String| Error::file(path, why);
        if let Some(manifest) = &manifest {
            manifest.check(shape, size).map_err(|why| refuse(why).with_hint("is it the teacher of another data set?"))?;
        }
        let unreadable = |e: tch::TchError| refuse(format!("libtorch cannot load it: {}", reason(&e)));
        let mut module = CModule::load_data_on_device(&mut bytes.as_slice(), device).map_err(unreadable)?;
        module.f_set_eval().map_err(unreadable)?;
        let parameters = module.named_parameters().map_err(unreadable)?;
        for (name, parameter) in &parameters {
            let _ = parameter.set_requires_grad(false);
            check_finite(path, name, parameter)?;
        }
        let kind = parameters.first().map_or(Kind::Float, |(_, parameter)| parameter.kind());
        let blueprint = Scope::default().blueprint();
        let mut script = Self { module, path: path.into(), blueprint, manifest, kind, running: Vec::new() };
        script.running = script.trial([shape.channels, size[0], size[1]], shape.classes, device)?;
        Ok(script)
    }

    /// Running statistics of its batch-norms, in the order in which it calls them.
    fn trial(&self, [c, h, w]: [i64; 3], classes: i64, device: Device) -> Result<Vec<(Tensor, Tensor)>> {
        let refuse = |why: String, way_out: &str| Err(Error::file(&self.path, why).with_hint(way_out));
        let mut passes: Vec<Seen> = Vec::new();
        for rows in TRIAL_ROWS {
            let count = rows * c * h * w;
            let images = (Tensor::arange(count, (Kind::Float, device)) * 0.7).sin().view([rows, c, h, w]);
            let seen = match tch::no_grad(|| self.see(&images, true)) {
                Ok(seen) => seen,
                Err(why) => {
                    let way_out = "images arrive as float [batch, channels, height, width] of the data set; a trace must not hold a batch size or a device";
                    return refuse(format!("fails on images {:?}: {why}", images.size()), way_out);
                }
            };
            if seen.output.logits.size() != [rows, classes] {
                let size = seen.output.logits.size();
                return refuse(
                    format!("makes logits {size:?} of images {:?}; {:?} is needed", images.size(), [rows, classes]),
                    "is it the teacher of another data set?",
                );
            }
            if seen.batch_norms.iter().any(|call| call.trains) {
                let why = "normalises by the batch in a batch-norm: it was traced, or is fixed, in training mode".to_owned();
                return refuse(why, "call module.eval() before tracing, or use launch/pytorch/trace_teacher.py");
            }
            passes.push(seen);
        }
        let [first, again, more] = [&passes[0], &passes[1], &passes[2]];
        if first.output.logits != again.output.logits {
            let why = "makes other logits of the same images: it draws random numbers".to_owned();
            return refuse(why, "call module.eval() before tracing: dropout and the like must be off");
        }
        let (seen, then) = (first.batch_norms.len(), more.batch_norms.len());
        let said = self.manifest.as_ref().map_or(seen, |manifest| manifest.batch_norms.len());
        if seen != said || seen != then {
            let why = format!("calls {seen} batch-norms, and {then} on other images; its manifest names {said}");
            return refuse(why, "trace_teacher.py sees those that are modules; torch.jit.trace or torch.jit.script without it keep all");
        }
        let running: Vec<(Tensor, Tensor)> = passes.swap_remove(0).batch_norms.into_iter().map(|call| call.running).collect();
        for (index, (mean, var)) in running.iter().enumerate() {
            check_finite(&self.path, &format!("running_mean of batch-norm {index}"), mean)?;
            check_finite(&self.path, &format!("running_var of batch-norm {index}"), var)?;
        }
        let channels = |i: usize| running[i].0.numel() as i64;
        if let Some((i, layer)) =
            self.manifest.iter().flat_map(|m| m.batch_norms.iter().enumerate()).find(|&(i, l)| channels(i) != l.channels)
        {
            let why = format!("its manifest gives batch-norm {} {} channels; it has {}", layer.name, layer.channels, channels(i));
            return refuse(why, SCRIPT);
        }
        Ok(running)
    }

    /// One pass; with `observe` all batch-norms are seen with the embedding of every image, whatever the program says itself.
    fn see(&self, images_bchw: &Tensor, observe: bool) -> Result<Seen, String> {
        // Of this thread, so said before every pass: an optimised program would call other operators from its second run on, and its
        // bits would depend on how often it ran.
        jit::f_set_graph_executor_optimize(false).map_err(|e| reason(&e))?;
        let run = || self.module.forward_is(&[IValue::Tensor(images_bchw.to_kind(self.kind))]);
        let (value, batch_norms) = if observe { observe_batch_norms(true, run).map_err(|e| e.to_string())? } else { (run(), Vec::new()) };
        let (output, said) = self.outputs(value.map_err(|e| reason(&e))?)?;
        Ok(Seen { output, batch_norms: if observe { batch_norms } else { said } })
    }

    /// Logits, features, and what a program with a manifest says of its batch-norms.
    fn outputs(&self, value: IValue) -> Result<(Output, Vec<BatchNormCall>), String> {
        let parts = match (value, &self.manifest) {
            (IValue::Tensor(logits), None) => vec![logits],
            (IValue::Tuple(parts), Some(_)) => parts.into_iter().filter_map(|part| Tensor::try_from(part).ok()).collect(),
            _ => return Err(format!("it does not return logits alone, as one tensor; {SCRIPT}")),
        };
        let mut parts = parts.into_iter().map(|part| part.to_kind(Kind::Float));
        let (logits, features_bd) = (parts.next().unwrap_or_default(), parts.next());
        let layers: Vec<Tensor> = parts.collect();
        let wanted = self.manifest.as_ref().map_or(0, |manifest| PER_BATCH_NORM * manifest.batch_norms.len());
        if layers.len() != wanted {
            return Err(format!("it returns {} tensors of its batch-norms; by its manifest {wanted} are needed", layers.len()));
        }
        let no_features = || Tensor::zeros([logits.size()[0], 0], (Kind::Float, logits.device()));
        let features_bd = features_bd.filter(|_| self.has_features()).unwrap_or_else(no_features);
        let call = |of: &[Tensor]| BatchNormCall {
            statistics: InputStatistics { mean_f: of[0].shallow_clone(), variance_f: of[1].shallow_clone() },
            running: (of[2].shallow_clone(), of[3].shallow_clone()),
            embedding_bf: None,
            trains: false,
        };
        Ok((Output::of_images(logits, features_bd), layers.chunks(PER_BATCH_NORM).map(call).collect()))
    }
}

impl Network for TorchScript {
    /// `state` is empty: the program holds its own.
    fn forward(&self, _: &State, images_bchw: &Tensor, pass: &mut Pass) -> Output {
        let embeds = pass.embeds(Embedding::BatchNorms);
        let observes = embeds || pass.is_tapped() && self.manifest.is_none();
        // The trial has shown that it takes such images: what fails now is the machine, or a program that changes its ways.
        let seen = self.see(images_bchw, observes).unwrap_or_else(|why| panic!("{}: {why}", self.path.display()));
        if observes {
            let (calls, wanted) = (seen.batch_norms.len(), self.running.len());
            assert_eq!(calls, wanted, "{}: {calls} of its {wanted} batch-norms were seen in a pass", self.path.display());
        }
        for (index, call) in seen.batch_norms.into_iter().enumerate() {
            call.embedding_bf.filter(|_| embeds).into_iter().for_each(|part| pass.push_embedding(part));
            pass.record(index, call.statistics);
        }
        seen.output
    }

    fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }

    fn running_statistics(&self, _: &State) -> Vec<(Tensor, Tensor)> {
        self.running.iter().map(|(mean, var)| (mean.shallow_clone(), var.shallow_clone())).collect()
    }

    fn embedding(&self) -> (Embedding, i64) {
        (Embedding::BatchNorms, self.running.iter().map(|(mean, _)| mean.numel() as i64).sum())
    }

    fn has_features(&self) -> bool {
        self.manifest.as_ref().is_some_and(|manifest| manifest.features > 0)
    }

    fn normalisation(&self) -> Option<(&[f32], &[f32])> {
        self.manifest.as_ref().map(|manifest| (manifest.mean.as_slice(), manifest.std.as_slice()))
    }
}

fn check_finite(path: &Path, name: &str, tensor: &Tensor) -> Result<()> {
    if tensor.isfinite().all().int64_value(&[]) != 0 {
        return Ok(());
    }
    let problem = "holds NaN or infinite values".into();
    let hint = Some("its training went wrong: take an earlier or another file".into());
    Err(Error::Tensor { path: path.into(), tensor: name.into(), problem, hint })
}

/// The line of libtorch's message that says what went wrong: an interpreter's comes after its trace, others first.
fn reason(error: &tch::TchError) -> String {
    let text = error.to_string();
    let of_interpreter = text.lines().rev().find(|line| line.contains("Error: "));
    of_interpreter.or_else(|| text.lines().find(|line| !line.trim().is_empty())).unwrap_or_default().trim().to_owned()
}
