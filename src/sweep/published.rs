//! Printed accuracies of the compared methods.
//!
//! Source: README of zju-vipa/Fast-Datafree (commit 0dcecbc): top-1 in per cent, best of all evaluations, no spread given. Its row names
//! say how many inner steps were taken; its scripts have 1,000 and 200 steps for DeepInv-2k and CMI-500. Its CIFAR-10 row of KD is left out:
//! the same figure in all columns, above the teachers. The row of Fashion-MNIST is this project's own (docs/results.md).

use crate::config::{Config, DatasetName, MethodName, ModelName, flat, load_with, method_values};
use std::collections::BTreeMap;
use toml::{Table as Toml, Value};

/// A printed figure.
pub(super) struct Figure {
    /// Its row.
    pub row: &'static str,
    /// In per cent.
    pub top1: f64,
    /// Where it stands, and what it is.
    pub source: &'static str,
    /// What it was made with.
    settings: Config,
}

const README: &str = "Printed figures are the best of all evaluations on the test images, one run each (README of zju-vipa/Fast-Datafree).";
const DEMO: &str = "The figure is this project's own: the last evaluation of one run of the demo (docs/results.md).";

impl Figure {
    /// Where a configuration is not what the figure was made with: key, its value, the figure's. What changes no number of its method
    /// does not count.
    pub fn deviations(&self, config: &Config) -> Vec<(String, String, String)> {
        let values = |config: &Config| {
            let mut values = BTreeMap::new();
            flat("", &Toml::try_from(config).unwrap_or_default(), &mut values);
            values.entry("parallel.logical_ranks".into()).or_insert(Value::Integer(1));
            values
        };
        let counted: &[&str] = match config.method {
            MethodName::SsdKd => &["replay.", "phi.", "generator.", "inversion."],
            MethodName::Kd | MethodName::Scratch => &[],
            _ => &["generator.", "inversion."],
        };
        let always = [
            "student.",
            "distill.",
            "train.rounds",
            "train.warmup_rounds",
            "train.precision",
            "parallel.logical_ranks",
            "data.allow_partial",
        ];
        let counts = |key: &str| counted.iter().chain(&always).any(|part| key.starts_with(part));
        let printed = values(&self.settings);
        let differs = |(key, value): (String, Value)| {
            let other = printed.get(&key).map_or("–".into(), Value::to_string);
            (counts(&key) && printed.get(&key) != Some(&value)).then(|| (key, value.to_string(), other))
        };
        values(config).into_iter().filter_map(differs).collect()
    }
}

/// Columns of the tables.
const PAIRS: [(ModelName, ModelName); 5] = [
    (ModelName::Resnet34, ModelName::Resnet18),
    (ModelName::Vgg11, ModelName::Resnet18),
    (ModelName::Wrn40x2, ModelName::Wrn16x1),
    (ModelName::Wrn40x2, ModelName::Wrn40x1),
    (ModelName::Wrn40x2, ModelName::Wrn16x2),
];

/// A pair's loss weights, which belong to no method.
macro_rules! pair_files {
    ($($folder:literal),*) => {
        [$([
            include_str!(concat!("../../configs/", $folder, "/resnet34-resnet18.toml")),
            include_str!(concat!("../../configs/", $folder, "/vgg11-resnet18.toml")),
            include_str!(concat!("../../configs/", $folder, "/wrn40_2-wrn16_1.toml")),
            include_str!(concat!("../../configs/", $folder, "/wrn40_2-wrn40_1.toml")),
            include_str!(concat!("../../configs/", $folder, "/wrn40_2-wrn16_2.toml")),
        ]),*]
    };
}
const PAIR_FILES: [[&str; 5]; 2] = pair_files!("cifar10", "cifar100");

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

/// Values of a configuration file that comes with the program.
fn values(text: &str) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    flat("", &text.parse().unwrap_or_default(), &mut values);
    values
}

/// Such values on top of the defaults.
fn resolved(values: BTreeMap<String, Value>) -> Option<Config> {
    load_with(&[], values, "").ok().map(|loaded| loaded.config)
}

/// The figure printed for a configuration's data set, method, pair and inner steps.
pub(super) fn published(config: &Config) -> Option<Figure> {
    let pair = (config.teacher.model, config.student.model);
    let (files, table) = match config.dataset {
        DatasetName::Cifar10 => (&PAIR_FILES[0], CIFAR10),
        DatasetName::Cifar100 => (&PAIR_FILES[1], CIFAR100),
        DatasetName::FashionMnist => {
            let is_demo = config.method == MethodName::SsdKd && pair == (ModelName::Wrn16x2, ModelName::Wrn16x1);
            let settings = resolved(values(include_str!("../../configs/fashion_mnist/demo.toml")))?;
            return is_demo.then_some(Figure { row: "the demo", top1: 90.99, source: DEMO, settings });
        }
        _ => return None,
    };
    let column = PAIRS.iter().position(|known| *known == pair)?;
    let fits = |method, steps: Option<u64>| method == config.method && steps.is_none_or(|steps| steps == config.inversion.steps);
    let (row, method, steps, figures) = table.iter().find(|(_, method, steps, _)| fits(*method, *steps))?;
    let mut settings = values(files[column]);
    settings.extend(match (method, steps) {
        (MethodName::FastMeta, Some(2)) => values(include_str!("../../configs/methods/fast_meta_2.toml")),
        (MethodName::FastMeta, Some(10)) => values(include_str!("../../configs/methods/fast_meta_10.toml")),
        (MethodName::Dfq, _) if config.dataset == DatasetName::Cifar100 && column == 0 => {
            values(include_str!("../../configs/methods/dfq_cifar100_resnet34.toml"))
        }
        _ => method_values(method.name()),
    });
    // The published programs have one process with the whole batch.
    settings.extend([("parallel.logical_ranks".to_owned(), 1.into()), ("inversion.batch_size".into(), 256.into())]);
    Some(Figure { row, top1: figures[column], source: README, settings: resolved(settings)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn taken(files: &[&str], sets: &[(&str, Value)]) -> Config {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
        let files: Vec<PathBuf> = files.iter().map(|file| format!("{root}/{file}.toml").into()).collect();
        let sets = sets.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        load_with(&files, sets, "the test").expect("files that come with the program").config
    }

    fn found(config: &Config) -> Option<(&'static str, f64)> {
        published(config).map(|figure| (figure.row, figure.top1))
    }

    #[test]
    fn figures_are_found_by_method_pair_and_steps() {
        let config = |dataset: &str, steps: i64| {
            taken(&[&format!("{dataset}/wrn40_2-wrn16_1"), "methods/fast_meta"], &[("inversion.steps", steps.into())])
        };
        assert_eq!(found(&config("cifar10", 5)), Some(("Fast-5", 88.90)));
        assert_eq!(found(&config("cifar100", 10)), Some(("Fast-10", 54.02)));
        assert_eq!(found(&config("cifar100", 7)), None);
        assert_eq!(found(&taken(&["cifar100/wrn40_2-wrn16_1"], &[])), None, "SSD-KD is in no table of theirs");
    }

    /// A run that was made otherwise than the figure says so.
    #[test]
    fn what_differs_from_the_published_settings_is_named() {
        let keys = |config: &Config| published(config).unwrap().deviations(config).into_iter().map(|(key, ..)| key).collect::<Vec<_>>();
        let whole = [("parallel.logical_ranks", Value::from(1)), ("inversion.batch_size", 256.into())];
        let rows: [(&[&str], &str); 4] = [
            (&["cifar10/wrn40_2-wrn16_1", "methods/fast_meta"], "Fast-5"),
            (&["cifar100/vgg11-resnet18", "methods/fast_meta_2"], "Fast-2"),
            (&["cifar100/resnet34-resnet18", "methods/dfq_cifar100_resnet34"], "DFQ"),
            (&["cifar10/wrn40_2-wrn40_1", "methods/cmi"], "CMI-500"),
        ];
        for (files, row) in rows {
            let config = taken(files, &whole);
            assert_eq!((published(&config).unwrap().row, keys(&config)), (row, Vec::new()));
        }
        let split = taken(rows[0].0, &[]);
        assert_eq!(keys(&split), ["inversion.batch_size", "parallel.logical_ranks"], "four batches of 64 have statistics of their own");
        let other = [&whole[..], &[("train.rounds", 1.into()), ("inversion.lr_generator", 2e-3.into())]].concat();
        assert_eq!(keys(&taken(rows[0].0, &other)), ["inversion.lr_generator", "train.rounds"]);
        assert_eq!(keys(&taken(&["cifar100/resnet34-resnet18", "methods/dfq"], &whole)), ["student.lr"]);
        // A key that stands in no file; one that changes nothing in a method without a bounded buffer.
        let other = [&whole[..], &[("student.weight_decay", 5e-4.into()), ("replay.capacity", 1000.into())]].concat();
        assert_eq!(keys(&taken(rows[0].0, &other)), ["student.weight_decay"]);
        assert_eq!(keys(&taken(&["cifar100/wrn40_2-wrn16_1", "methods/kd"], &whole)), [""; 0]);
    }

    #[test]
    fn the_demo_is_its_configuration() {
        let demo = taken(&["fashion_mnist/demo"], &[]);
        let figure = published(&demo).unwrap();
        assert_eq!((figure.row, figure.deviations(&demo)), ("the demo", Vec::new()));
        let part = [("train.rounds", 95.into()), ("data.dir", "elsewhere".into()), ("data.allow_partial", true.into())];
        let wanted = [("data.allow_partial", "true", "false"), ("train.rounds", "95", "96")];
        let wanted = wanted.map(|(key, value, printed)| (key.to_owned(), value.to_owned(), printed.to_owned()));
        assert_eq!(figure.deviations(&taken(&["fashion_mnist/demo"], &part)), wanted, "scores on parts of a data set are no scores");
    }
}
