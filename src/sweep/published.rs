//! Printed accuracies of the compared methods.
//!
//! Source: README of zju-vipa/Fast-Datafree (commit 0dcecbc): top-1 in per cent, best of all evaluations, no spread given. Its row names
//! say how many inner steps were taken; its scripts have 1,000 and 200 steps for DeepInv-2k and CMI-500. Its CIFAR-10 row of KD is left out:
//! the same figure in all columns, above the teachers. The row of Fashion-MNIST is this project's own (docs/results.md).

use crate::config::{Config, DatasetName, MethodName, ModelName};

/// A printed figure.
pub(super) struct Figure {
    /// Its row.
    pub row: &'static str,
    /// In per cent.
    pub top1: f64,
    /// Where it stands, and what it is.
    pub source: &'static str,
}

const README: &str = "Printed figures are the best of all evaluations on the test images, one run each (README of zju-vipa/Fast-Datafree).";
const DEMO: &str = "The figure is this project's own: the last evaluation of one run of the demo (docs/results.md).";

/// Inner steps of Fast-k with the learning rates of generator and latent vectors that its script takes.
const FAST: [(u64, f64, f64); 3] = [(2, 5e-3, 0.015), (5, 3e-3, 0.01), (10, 2e-3, 0.01)];

/// Columns of the tables.
const PAIRS: [(ModelName, ModelName); 5] = [
    (ModelName::Resnet34, ModelName::Resnet18),
    (ModelName::Vgg11, ModelName::Resnet18),
    (ModelName::Wrn40x2, ModelName::Wrn16x1),
    (ModelName::Wrn40x2, ModelName::Wrn40x1),
    (ModelName::Wrn40x2, ModelName::Wrn16x2),
];

type Table = &'static [(&'static str, MethodName, Option<u64>, [f64; 5])];

const CIFAR10: Table = &[
    ("DeepInv-2k", MethodName::Deepinv, Some(1000), [93.26, 90.36, 83.04, 86.85, 89.72]),
    ("CMI-500", MethodName::Cmi, Some(200), [94.84, 91.13, 90.01, 92.78, 92.52]),
    ("DAFL", MethodName::Dafl, None, [92.22, 81.10, 65.71, 81.33, 81.55]),
    ("ZSKT", MethodName::Zskt, None, [93.32, 89.46, 83.74, 86.07, 89.66]),
    ("DFQ", MethodName::Dfq, None, [94.61, 90.84, 86.14, 91.69, 92.01]),
    ("Fast-2", MethodName::FastMeta, Some(2), [92.62, 84.67, 88.36, 89.56, 89.68]),
    ("Fast-5", MethodName::FastMeta, Some(5), [93.63, 89.94, 88.90, 92.04, 91.96]),
    ("Fast-10", MethodName::FastMeta, Some(10), [94.05, 90.53, 89.29, 92.51, 92.45]),
    ("student from scratch", MethodName::Scratch, None, [95.20, 95.20, 91.12, 93.94, 93.95]),
];

const CIFAR100: Table = &[
    ("DeepInv-2k", MethodName::Deepinv, Some(1000), [61.32, 54.13, 53.77, 61.33, 61.34]),
    ("CMI-500", MethodName::Cmi, Some(200), [77.04, 70.56, 57.91, 68.88, 68.75]),
    ("DAFL", MethodName::Dafl, None, [74.47, 54.16, 20.88, 42.83, 43.70]),
    ("ZSKT", MethodName::Zskt, None, [67.74, 54.31, 36.66, 53.60, 54.59]),
    ("DFQ", MethodName::Dfq, None, [77.01, 66.21, 51.27, 54.43, 64.79]),
    ("Fast-2", MethodName::FastMeta, Some(2), [69.76, 62.83, 41.77, 53.15, 57.08]),
    ("Fast-5", MethodName::FastMeta, Some(5), [72.82, 65.28, 52.90, 61.80, 63.83]),
    ("Fast-10", MethodName::FastMeta, Some(10), [74.34, 67.44, 54.02, 63.91, 65.12]),
    ("KD on real data", MethodName::Kd, None, [77.87, 75.07, 64.06, 68.58, 70.79]),
    ("student from scratch", MethodName::Scratch, None, [77.10, 77.10, 65.31, 72.19, 73.56]),
];

/// The figure printed for a configuration's data set, method and pair.
pub(super) fn published(config: &Config) -> Option<Figure> {
    let pair = (config.teacher.model, config.student.model);
    let table = match config.dataset {
        DatasetName::Cifar10 => CIFAR10,
        DatasetName::Cifar100 => CIFAR100,
        DatasetName::FashionMnist => {
            let is_demo =
                config.method == MethodName::SsdKd && pair == (ModelName::Wrn16x2, ModelName::Wrn16x1) && config.train.rounds == 96;
            return is_demo.then_some(Figure { row: "the demo", top1: 90.99, source: DEMO });
        }
        _ => return None,
    };
    let column = PAIRS.iter().position(|known| *known == pair)?;
    let taken = &config.inversion;
    let is_script = |method| method != MethodName::FastMeta || FAST.contains(&(taken.steps, taken.lr_generator, taken.lr_latent));
    let fits = |method, steps: Option<u64>| method == config.method && steps.is_none_or(|steps| steps == taken.steps) && is_script(method);
    let (row, _, _, figures) = table.iter().find(|(_, method, steps, _)| fits(*method, *steps))?;
    Some(Figure { row, top1: figures[column], source: README })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn figures_are_found_by_method_pair_and_steps() {
        let mut config = Config { method: MethodName::FastMeta, ..Config::default() };
        (config.teacher.model, config.student.model) = (ModelName::Wrn40x2, ModelName::Wrn16x1);
        (config.inversion.steps, config.inversion.lr_generator, config.inversion.lr_latent) = (5, 3e-3, 0.01);
        assert_eq!(published(&config).map(|figure| figure.top1), Some(88.90));
        config.dataset = DatasetName::Cifar100;
        // Ten steps at the rates of five are no published row.
        config.inversion.steps = 10;
        assert!(published(&config).is_none());
        config.inversion.lr_generator = 2e-3;
        assert_eq!(published(&config).map(|figure| (figure.row, figure.top1)), Some(("Fast-10", 54.02)));
        config.inversion.steps = 7;
        assert!(published(&config).is_none());
        config.method = MethodName::SsdKd;
        assert!(published(&config).is_none());
    }

    #[test]
    fn the_demo_is_told_by_its_configuration() {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/fashion_mnist/demo.toml");
        let mut config = crate::config::load_with(&[demo.into()], BTreeMap::new(), "the test").expect("the demo's file").config;
        assert_eq!(published(&config).map(|figure| figure.row), Some("the demo"));
        config.train.rounds -= 1;
        assert!(published(&config).is_none(), "a run of another length is not the demo");
    }
}
