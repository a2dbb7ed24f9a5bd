//! What the inner steps of one synthesis call move.

use super::generator::SharedGenerator;
use super::recipe::{Share, Synthesis};
use super::{Call, Settings};
use crate::config::{self, MetaRule};
use crate::data::Normalise;
use crate::device::upload;
use crate::error::Result;
use crate::nn::{Adam, Pass};
use crate::rng::{Key, Purpose};
use tch::{Device, Kind, Tensor};

/// β₂ of Adam on pixels. Source: zju-vipa/DataFree `deepinversion.py`.
const PIXEL_BETA2: f64 = 0.99;

pub(super) struct Canvas<'a> {
    paint: Paint<'a>,
    /// Gradient of the generator summed over the steps, flat; one number where there is no generator.
    gradient_sum: Tensor,
}

enum Paint<'a> {
    /// Images in normalised values, kept inside what [0, 1] becomes there.
    Pixels { pixels_bchw: Tensor, adam: Adam, normalise: &'a Normalise },
    /// The generator's working copy with latent vectors, learned where they have an optimiser.
    Generator { generator: &'a mut SharedGenerator, latent_bz: Tensor, latent: Option<Adam>, share: Share },
}

impl<'a> Canvas<'a> {
    /// At its start: noise, or a copy of the generator with fresh latent vectors.
    ///
    /// # Panics
    /// If the method moves a generator and none is given.
    pub(super) fn new(settings: &Settings, normalise: &'a Normalise, generator: Option<&'a mut SharedGenerator>, call: &Call<'_>) -> Self {
        let (k, b) = (&settings.inversion, settings.inversion.batch_size);
        match settings.recipe.synthesis {
            Synthesis::Pixels => {
                let [c, h, w] = settings.image;
                let noise = call.key(settings, Purpose::Pixels).normals(b * (c * h * w) as usize);
                let noise = Tensor::from_slice(&noise).view([b as i64, c, h, w]);
                let pixels_bchw = upload(&noise, normalise.device()).set_requires_grad(true);
                let adam = Adam::new(&pixels_bchw, k.adam_beta1, PIXEL_BETA2);
                let gradient_sum = Tensor::zeros([1], (Kind::Float, pixels_bchw.device()));
                Self { paint: Paint::Pixels { pixels_bchw, adam, normalise }, gradient_sum }
            }
            Synthesis::Generator { start, learned_latent, share } => {
                let generator = generator.expect("a method that moves a generator has one");
                generator.begin(start, |slot| Key::of(settings.seed, Purpose::GeneratorStart, call.round << 32 | slot, call.rank));
                let latent_bz = generator.latents(&call.key(settings, Purpose::Latent), b).set_requires_grad(learned_latent);
                let latent = learned_latent.then(|| Adam::new(&latent_bz, k.adam_beta1, k.adam_beta2));
                let gradient_sum = generator.working.parameters().detach().zeros_like();
                Self { paint: Paint::Generator { generator, latent_bz, latent, share }, gradient_sum }
            }
        }
    }

    pub(super) fn device(&self) -> Device {
        self.gradient_sum.device()
    }

    /// The images as they are now, `[b, c, h, w]` in [0, 1], with a gradient to what is moved.
    pub(super) fn images(&self) -> Tensor {
        match &self.paint {
            Paint::Pixels { pixels_bchw, normalise, .. } => normalise.undo(pixels_bchw),
            Paint::Generator { generator, latent_bz, .. } => generator.network.forward(&generator.working, latent_bz, &mut Pass::train()),
        }
    }

    /// One Adam step on everything that is moved, by the gradient that has come in; `loss` is where that came from.
    pub(super) fn step(&mut self, k: &config::Inversion, loss: &Tensor) -> Result<()> {
        match &mut self.paint {
            Paint::Pixels { pixels_bchw, adam, normalise } => {
                adam.step(&pixels_bchw.detach(), &pixels_bchw.grad(), k.lr_generator)?;
                let _ = pixels_bchw.grad().zero_();
                tch::no_grad(|| pixels_bchw.copy_(&normalise.apply(&normalise.undo(pixels_bchw).clamp(0.0, 1.0))));
            }
            Paint::Generator { generator, latent_bz, latent, .. } => {
                let gradient = generator.working.gradient();
                let _ = self.gradient_sum.g_add_(&gradient);
                generator.inner.step(generator.working.parameters(), &gradient, k.lr_generator)?;
                generator.working.zero_gradient();
                if let Some(adam) = latent {
                    adam.step(&latent_bz.detach(), &latent_bz.grad(), k.lr_latent)?;
                    let _ = latent_bz.grad().zero_();
                }
            }
        }
        // A loss that is not finite spoils the sum even where its gradient is finite: the reduced one tells all ranks.
        let _ = self.gradient_sum.narrow(0, 0, 1).g_add_(&(loss.detach() * 0.0));
        Ok(())
    }

    /// What the shared generator is to take, flat.
    pub(super) fn shared(self, rule: MetaRule) -> Tensor {
        match self.paint {
            Paint::Pixels { .. } => self.gradient_sum,
            Paint::Generator { generator, share, .. } => generator.shared(share, rule, self.gradient_sum),
        }
    }
}
