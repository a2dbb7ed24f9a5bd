//! A classifier of the user's own, as a TorchScript program: what goes into its batch-norms comes from the program itself where
//! launch/pytorch/trace_teacher.py wrote it (a manifest lies inside), and is observed in any other.

use super::{Network, Output, Shape};
use crate::error::{Error, Result};
use crate::files;
use crate::nn::{
    BatchNormCall, Blueprint, Embedding, InputStatistics, Manifest, Pass, SCRIPT, Scope, State, count_layer_values, observe_batch_norms,
    produced,
};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{CModule, Device, IValue, Kind, Tensor, jit};

/// Rows of the passes on trial: a program that has one of them built in fails at the other. From the second run of a program on,
/// an optimising executor would hide its operators.
const TRIAL_ROWS: [i64; 3] = [2, 2, 3];
/// Outputs of a program with a manifest: first logits and features, then so many of each batch-norm.
const PER_BATCH_NORM: usize = 4;

/// Refuses images that a program with this manifest was not made for.
fn check_images(manifest: &Manifest, shape: Shape, [height, width]: [i64; 2]) -> Result<(), String> {
    let [c, h, w] = manifest.input;
    if manifest.classes != shape.classes {
        return Err(format!("has {} classes; {} are needed", manifest.classes, shape.classes));
    }
    if manifest.input != [shape.channels, height, width] {
        return Err(format!("was made for images of {c}×{h}×{w}; {}×{height}×{width} are needed", shape.channels));
    }
    Ok(())
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
    /// Values that its convolutions and linear layers give of an image.
    values_per_image: u64,
    /// Why no gradient of the logits reaches the images, where none does.
    gradient_fails: Option<String>,
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
            check_images(manifest, shape, size).map_err(|why| refuse(why).with_hint("is it the teacher of another data set?"))?;
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
        let mut script =
            Self { module, path: path.into(), blueprint, manifest, kind, running: Vec::new(), values_per_image: 0, gradient_fails: None };
        let image = [shape.channels, size[0], size[1]];
        script.running = script.trial(image, shape.classes, device)?;
        let images = trial_images(TRIAL_ROWS[0], image, device).set_requires_grad(true);
        let (seen, values) = count_layer_values(|| script.see(&images, false))?;
        script.values_per_image = values / TRIAL_ROWS[0] as u64;
        script.gradient_fails = seen.map_err(|e| e.to_string()).and_then(|seen| reaches(&seen.output.logits, images)).err();
        Ok(script)
    }

    /// Running statistics of its batch-norms, in the order in which it calls them.
    fn trial(&self, image: [i64; 3], classes: i64, device: Device) -> Result<Vec<(Tensor, Tensor)>> {
        let refuse = |why: String, way_out: &str| Err(Error::file(&self.path, why).with_hint(way_out));
        let mut passes: Vec<Seen> = Vec::new();
        for rows in TRIAL_ROWS {
            let images = trial_images(rows, image, device);
            let seen = tch::no_grad(|| self.see(&images, true))?;
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
            for (index, BatchNormCall { running: (mean, var), .. }) in seen.batch_norms.iter().enumerate() {
                check_finite(&self.path, &format!("running_mean of batch-norm {index}"), mean)?;
                check_finite(&self.path, &format!("running_var of batch-norm {index}"), var)?;
            }
            check_finite(&self.path, "logits", &seen.output.logits)?;
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
    fn see(&self, images_bchw: &Tensor, observe: bool) -> Result<Seen> {
        // Of this thread, so said before every pass: an optimised program would call other operators from its second run on, and its
        // bits would depend on how often it ran.
        jit::f_set_graph_executor_optimize(false).map_err(|e| Error::torch("running a TorchScript program", &e))?;
        let run = || self.module.forward_is(&[IValue::Tensor(images_bchw.to_kind(self.kind))]);
        let (value, batch_norms) = if observe { observe_batch_norms(true, run)? } else { (run(), Vec::new()) };
        let fails = |e: tch::TchError| {
            let way_out =
                "images arrive as float [batch, channels, height, width] of the data set; a trace must not hold a batch size or a device";
            Error::file(&self.path, format!("fails on images {:?}: {}", images_bchw.size(), reason(&e))).with_hint(way_out)
        };
        let (output, said) = self.outputs(value.map_err(fails)?)?;
        Ok(Seen { output, batch_norms: if observe { batch_norms } else { said } })
    }

    /// Logits, features, and what a program with a manifest says of its batch-norms.
    fn outputs(&self, value: IValue) -> Result<(Output, Vec<BatchNormCall>)> {
        let refuse = |why: String, way_out: &str| Err(Error::file(&self.path, why).with_hint(way_out));
        let parts = match (value, &self.manifest) {
            (IValue::Tensor(logits), None) => vec![logits],
            (IValue::Tuple(parts), Some(_)) => parts.into_iter().filter_map(|part| Tensor::try_from(part).ok()).collect(),
            _ => {
                let why = "does not return logits alone, as one tensor".to_owned();
                return refuse(why, "wrap the module in one that returns its logits, and write that (docs/teachers.md)");
            }
        };
        let mut parts = parts.into_iter().map(|part| part.to_kind(Kind::Float));
        let (logits, features_bd) = (parts.next().unwrap_or_default(), parts.next());
        let layers: Vec<Tensor> = parts.collect();
        let wanted = self.manifest.as_ref().map_or(0, |manifest| PER_BATCH_NORM * manifest.batch_norms.len());
        if layers.len() != wanted {
            return refuse(format!("returns {} tensors of its batch-norms; by its manifest {wanted} are needed", layers.len()), SCRIPT);
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
        let seen = self.see(images_bchw, observes).unwrap_or_else(|error| give_up(error));
        let (calls, wanted) = (seen.batch_norms.len(), self.running.len());
        if observes && calls != wanted {
            let why = format!("calls {calls} batch-norms in this pass; on trial it called {wanted}");
            give_up(
                Error::file(&self.path, why)
                    .with_hint("control flow that depends on the images must not change which batch-norms are called"),
            );
        }
        produced(self.values_per_image * images_bchw.size()[0] as u64);
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

    fn gradient_fails(&self) -> Option<&str> {
        self.gradient_fails.as_deref()
    }

    fn normalisation(&self) -> Option<(&[f32], &[f32])> {
        self.manifest.as_ref().map(|manifest| (manifest.mean.as_slice(), manifest.std.as_slice()))
    }
}

/// The trial has shown that a program takes such images: what fails later is the program changing its ways, amid a training step, where
/// no rank waits for word of it. Unwinds with the error, which ends the job (`logs::start`).
fn give_up(error: Error) -> ! {
    std::panic::panic_any(error.after_start())
}

/// Whether a gradient of the logits reaches the images, and why not.
fn reaches(logits: &Tensor, images: Tensor) -> Result<(), String> {
    // libtorch's engine takes a graph's existence for granted.
    if !logits.requires_grad() {
        return Err("they have none at all".into());
    }
    let gradients = Tensor::f_run_backward(&[logits.sum(Kind::Float)], &[images], false, false).map_err(|e| reason(&e))?;
    if gradients.iter().all(Tensor::defined) { Ok(()) } else { Err("they have one, but not to the images".into()) }
}

fn trial_images(rows: i64, [c, h, w]: [i64; 3], device: Device) -> Tensor {
    (Tensor::arange(rows * c * h * w, (Kind::Float, device)) * 0.7).sin().view([rows, c, h, w])
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
