//! Terms that say what makes an image useful whatever the student thinks of it, and other measures of disagreement.

use crate::task::per_sample;
use tch::{Kind, Tensor};

/// Jensen–Shannon divergence at temperature T as DeepInversion's code has it: both softmaxes and their mean M clamped to
/// [0.01, 0.99], M the target of both halves, no T². A scalar, mean over the batch.
///
/// Source: zju-vipa/DataFree `criterions.py`, `jsdiv` (the usual form has the two as targets).
pub fn jensen_shannon(student_logits: &Tensor, teacher_logits: &Tensor, temperature: f64) -> Tensor {
    let softmax = |logits: &Tensor| (logits / temperature).softmax(1, Kind::Float);
    let (p, q) = (softmax(student_logits), softmax(teacher_logits));
    let mean = ((&p + &q) / 2.0).clamp(0.01, 0.99);
    let half = |of: Tensor| per_sample(&(&mean * (mean.log() - of.clamp(0.01, 0.99).log())).sum_dim_intlist(1i64, false, Kind::Float));
    ((half(p) + half(q)) / 2.0).mean(Kind::Float)
}

/// Mean |s − t| over the logits of each sample, `[b]`. Source: zju-vipa/DataFree `datafree_kd.py`, `dfad`.
pub fn logit_distance(student_logits: &Tensor, teacher_logits: &Tensor) -> Tensor {
    (student_logits - teacher_logits).abs().flatten(1, -1).mean_dim(1, false, Kind::Float)
}

/// Σ_c p̄_c·ln p̄_c with p̄ the mean softmax over the batch (and pixels): negative entropy, lowest when all categories are equally
/// frequent. Source: Chen et al., DAFL (ICCV 2019), L_ie; zju-vipa/DataFree `generative.py` (a mean of exactly 0 gives NaN there; 0 here).
pub fn balance(teacher_logits: &Tensor) -> Tensor {
    let p = teacher_logits.softmax(1, Kind::Float).transpose(0, 1).flatten(1, -1).mean_dim(1, false, Kind::Float);
    (&p * p.clamp_min(f64::from(f32::MIN_POSITIVE)).log()).sum(Kind::Float)
}

/// −mean |features|: images that belong to the data excite the teacher. Source: Chen et al., DAFL (ICCV 2019), L_a.
pub fn activation(features_bd: &Tensor) -> Tensor {
    -features_bd.abs().mean(Kind::Float)
}

/// Mean absolute difference of neighbours along columns, rows and both diagonals, summed.
///
/// Source: Yin et al., DeepInversion (CVPR 2020); zju-vipa/DataFree `deepinversion.py`, `get_image_prior_losses` (L1 form).
pub fn variation(images_bchw: &Tensor) -> Tensor {
    let [h, w] = [2, 3].map(|d| images_bchw.size()[d]);
    let part = |down: i64, right: i64, lower: i64, farther: i64| images_bchw.narrow(2, down, h - lower).narrow(3, right, w - farther);
    let mean = |a: Tensor, b: Tensor| (a - b).abs().mean(Kind::Float);
    mean(part(0, 0, 0, 1), part(0, 1, 0, 1))
        + mean(part(0, 0, 1, 0), part(1, 0, 1, 0))
        + mean(part(0, 0, 1, 1), part(1, 1, 1, 1))
        + mean(part(1, 0, 1, 1), part(0, 1, 1, 1))
}

/// Contrastive loss of paired unit vectors: row i of `local_nd` should find row i of `global_nd` among all of them.
///
/// A = P_l·detach(P_g)ᵀ/τ, e_i the cross entropy of row i with label i; the mean of e over the first `fresh` rows plus the mean over
/// the others, if there are any. Source: Fang et al., CMI (IJCAI 2021); zju-vipa/DataFree `contrastive.py`.
pub fn contrast(local_nd: &Tensor, global_nd: &Tensor, temperature: f64, fresh: i64) -> Tensor {
    let unit = |x: &Tensor| x / x.norm_scalaropt_dim(2, [1i64], true).clamp_min(1e-12);
    let similarity = unit(local_nd).matmul(&unit(&global_nd.detach()).transpose(0, 1)) / temperature;
    let rows = similarity.size()[0];
    let labels = Tensor::arange(rows, (Kind::Int64, similarity.device()));
    let e = super::cross_entropy(&similarity, &labels);
    let first = e.narrow(0, 0, fresh).mean(Kind::Float);
    if rows > fresh { first + e.narrow(0, fresh, rows - fresh).mean(Kind::Float) } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill_f64;

    #[track_caller]
    fn close(got: &Tensor, want: f64) {
        let got = got.double_value(&[]);
        assert!((got - want).abs() <= 2e-6 * want.abs(), "{got} instead of {want}");
    }

    /// Values of PyTorch's reference code on the deterministic fill (spec `methods.md`, section 10).
    #[test]
    fn every_term_is_the_references() {
        let (s, t) = (fill_f64(2_000_000, &[8, 3]) * 3.0, fill_f64(3_000_000, &[8, 3]) * 3.0);
        close(&jensen_shannon(&s, &t, 3.0), 0.044759164);
        close(&logit_distance(&s, &t).mean(Kind::Float), 2.0623795);
        close(&balance(&t), -1.0807224);
        close(&activation(&fill_f64(4_000_000, &[8, 3])), -0.52578656);
        close(&variation(&fill_f64(5_000_000, &[2, 3, 4, 4])), 2.368263);
        let (local, global) = (fill_f64(8_000_000, &[5, 4]), fill_f64(8_000_001, &[5, 4]));
        close(&contrast(&local, &global, 0.2, 5), 2.1749068);
        close(&contrast(&local, &global, 0.2, 2), 4.9497144);
    }

    #[test]
    fn a_category_that_nobody_predicts_costs_nothing_and_spoils_nothing() {
        let logits = Tensor::from_slice(&[0f32, 0.0, -1e4]).view([1, 3]).set_requires_grad(true);
        let loss = balance(&logits);
        close(&loss, -2f64.ln());
        loss.backward();
        assert!(logits.grad().isfinite().all().int64_value(&[]) == 1);
    }
}
