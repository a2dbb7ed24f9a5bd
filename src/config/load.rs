//! Layers of configuration: defaults ← files ← `SSDKD__SECTION__KEY` environment ← command line, each value with its origin.

use super::reference::{self, Key};
use super::schema::Config;
use crate::error::{Error, Finding, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// How variables of the environment that are configuration begin.
pub const PREFIX: &str = "SSDKD__";

/// A configuration and where each value that is not a default came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The merged values.
    pub config: Config,
    /// Dotted key → `FILE`, `environment` or `command line`.
    pub origins: BTreeMap<String, String>,
}

impl Loaded {
    /// Keys that somebody has set; what a method brings along is not among them.
    pub fn said(&self) -> impl Iterator<Item = &str> {
        self.origins.iter().filter(|(_, origin)| !origin.starts_with(BROUGHT)).map(|(key, _)| key.as_str())
    }
}

/// Origin of a method's own values.
const BROUGHT: &str = "default of ";

/// One source of values.
struct Layer {
    origin: String,
    values: BTreeMap<String, Value>,
}

/// Merges all layers.
///
/// `files` in order, later ones win; `sets` are `key=value` strings. Relative paths in a file are taken relative to that
/// file, elsewhere relative to the working folder.
///
/// # Errors
/// All unknown keys and values of a wrong type at once, each with the nearest valid spelling.
pub fn load(files: &[PathBuf], sets: &[String]) -> Result<Loaded> {
    load_from(files, std::env::vars(), sets)
}

/// Merges files and values that are there already, and nothing of the environment: what a sweep plans is a function of its files.
///
/// # Errors
/// As [`load`]; values are said to be `from` where they come from.
pub fn load_with(files: &[PathBuf], values: BTreeMap<String, Value>, from: &str) -> Result<Loaded> {
    let mut layers = files.iter().map(|file| file_layer(file)).collect::<Result<Vec<_>>>()?;
    layers.push(Layer { origin: from.into(), values });
    merge_layers(layers)
}

fn load_from(files: &[PathBuf], environment: impl Iterator<Item = (String, String)>, sets: &[String]) -> Result<Loaded> {
    let mut layers = files.iter().map(|file| file_layer(file)).collect::<Result<Vec<_>>>()?;
    layers.push(environment_layer(environment));
    layers.push(command_line_layer(sets)?);
    merge_layers(layers)
}

fn merge_layers(mut layers: Vec<Layer>) -> Result<Loaded> {
    // A method's own defaults lie below everything that is said, whoever names the method.
    let method = layers.iter().rev().find_map(|layer| layer.values.get("method")?.as_str().map(str::to_owned));
    if let Some(defaults) = method.and_then(|method| method_layer(&method)) {
        layers.insert(0, defaults);
    }
    let keys = reference::keys();
    let mut findings = Vec::new();
    let mut merged: BTreeMap<String, (Value, String)> = BTreeMap::new();
    for layer in layers {
        for (key, value) in layer.values {
            if let Some(known) = keys.iter().find(|k| k.name == key) {
                match known.refuses(&value) {
                    Some(problem) => findings.push(Finding::new(&key, format!("{problem} (from {})", layer.origin))),
                    None => drop(merged.insert(key, (value, layer.origin.clone()))),
                }
            } else {
                findings.push(Finding::new(&key, format!("unknown key (from {}); {}", layer.origin, nearest(&key, &keys))));
            }
        }
    }
    let config = loop {
        match merge(&merged) {
            Ok(config) => break config,
            Err((key, problem)) => {
                let origin = merged.remove(&key).map_or_else(String::new, |(_, origin)| format!(" (from {origin})"));
                findings.push(Finding::new(&key, format!("{problem}{origin}")));
                if origin.is_empty() {
                    break Config::default();
                }
            }
        }
    };
    if findings.is_empty() {
        Ok(Loaded { config, origins: merged.into_iter().map(|(key, (_, origin))| (key, origin)).collect() })
    } else {
        Err(Error::Config(findings))
    }
}

/// Defaults overlaid with `merged`, or the first key whose value does not fit.
fn merge(merged: &BTreeMap<String, (Value, String)>) -> std::result::Result<Config, (String, String)> {
    let trouble = |error: config::ConfigError| match error {
        config::ConfigError::At { error, key: Some(key), .. } => (key, in_toml(&error.to_string())),
        config::ConfigError::Type { key: Some(key), unexpected, expected, .. } => {
            (key, in_toml(&format!("{expected} is needed, found {unexpected}")))
        }
        other => (String::new(), other.to_string()),
    };
    let mut builder = config::Config::builder();
    for (key, (value, _)) in merged {
        let layer = config::File::from_str(&nested(key, value).to_string(), config::FileFormat::Toml);
        builder = builder.add_source(layer);
    }
    let merged_values = builder.build().map_err(trouble)?;
    merged_values.try_deserialize().map_err(trouble)
}

/// A message of serde's, whose sequences are TOML's lists.
fn in_toml(message: &str) -> String {
    message
        .replace("expected a sequence", "expected a list in brackets, such as [1, 2] or [\"a\", \"b\"]")
        .replace("invalid type: sequence", "invalid type: a list")
        .replace("found sequence", "found a list")
}

fn nested(key: &str, value: &Value) -> Table {
    match key.split_once('.') {
        Some((section, rest)) => Table::from_iter([(section.to_owned(), Value::Table(nested(rest, value)))]),
        None => Table::from_iter([(key.to_owned(), value.clone())]),
    }
}

fn file_layer(file: &Path) -> Result<Layer> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::open(file, &e))?;
    let table: Table = text.parse().map_err(|e| misread(file, &text, &e))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut values = BTreeMap::new();
    flat("", &table, &mut values);
    for (key, value) in &mut values {
        if let (true, Value::String(path)) = (reference::is_path(key), &*value) {
            *value = Value::String(folder.join(path).to_string_lossy().into_owned());
        }
    }
    Ok(Layer { origin: file.display().to_string(), values })
}

/// What is wrong with a TOML file, and where.
pub fn misread(file: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
    Error::file(file, format!("line {line}: {}", in_toml(error.message())))
}

/// What a method sets unless told otherwise: its published values, `configs/methods/`.
fn method_layer(method: &str) -> Option<Layer> {
    let text = match method {
        "fast_meta" => include_str!("../../configs/methods/fast_meta.toml"),
        "fast" => include_str!("../../configs/methods/fast.toml"),
        "dafl" => include_str!("../../configs/methods/dafl.toml"),
        "zskt" => include_str!("../../configs/methods/zskt.toml"),
        "dfad" => include_str!("../../configs/methods/dfad.toml"),
        "dfq" => include_str!("../../configs/methods/dfq.toml"),
        "deepinv" => include_str!("../../configs/methods/deepinv.toml"),
        "cmi" => include_str!("../../configs/methods/cmi.toml"),
        "kd" => include_str!("../../configs/methods/kd.toml"),
        "scratch" => include_str!("../../configs/methods/scratch.toml"),
        _ => return None,
    };
    let mut values = BTreeMap::new();
    flat("", &text.parse().ok()?, &mut values);
    Some(Layer { origin: format!("{BROUGHT}{method}"), values })
}

/// A method's published values by key; none for a method that sets nothing.
pub fn method_values(method: &str) -> BTreeMap<String, Value> {
    method_layer(method).map_or_else(BTreeMap::new, |layer| layer.values)
}

/// Leaves of a table under their dotted names.
pub fn flat(prefix: &str, table: &Table, out: &mut impl Extend<(String, Value)>) {
    for (name, value) in table {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => flat(&name, inner, out),
            leaf => out.extend([(name, leaf.clone())]),
        }
    }
}

fn environment_layer(environment: impl Iterator<Item = (String, String)>) -> Layer {
    let values = environment
        .filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?.to_lowercase().replace("__", "."), literal(&value))))
        .collect();
    Layer { origin: "environment".into(), values }
}

fn command_line_layer(sets: &[String]) -> Result<Layer> {
    let mut values = BTreeMap::new();
    for set in sets {
        let Some((key, value)) = set.split_once('=') else {
            return Err(Error::refused(format!("--set {set}: write --set key=value, for example --set replay.capacity=5000")));
        };
        values.insert(key.trim().to_owned(), literal(value.trim()));
    }
    Ok(Layer { origin: "command line".into(), values })
}

/// A TOML value where the text is one, else the text itself: `5` is a number, `cpu` a string.
pub fn literal(text: &str) -> Value {
    format!("x = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("x")).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn nearest(key: &str, keys: &[Key]) -> String {
    let section = key.split_once('.').map_or("", |(section, _)| section);
    let best = keys.iter().max_by(|a, b| {
        let score = |k: &Key| strsim::jaro_winkler(key, &k.name).max(0.9 * strsim::jaro_winkler(last(key), last(&k.name)));
        score(a).total_cmp(&score(b))
    });
    let valid: Vec<&str> =
        keys.iter().filter(|k| !section.is_empty() && k.name.starts_with(&format!("{section}."))).map(|k| k.name.as_str()).collect();
    match best {
        Some(best) if valid.is_empty() => format!("did you mean `{}`?", best.name),
        Some(best) => format!("did you mean `{}`? [{section}] has {}", best.name, valid.join(", ")),
        None => String::new(),
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Job, MethodName, check};

    fn with(file: &str, environment: &[(&str, &str)], sets: &[&str]) -> Result<Loaded> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        load_from(&[path], environment, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    /// The scripts of zju-vipa/Fast-Datafree and zju-vipa/DataFree: learning rate of the student, its batch, steps a round, rounds, rounds of
    /// warm-up; inner steps, learning rate of the generator; weights of disagreement, statistics, task.
    #[test]
    fn methods_have_their_published_values() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
        let resolved = |files: &[&str]| {
            let files: Vec<PathBuf> = files.iter().map(|file| format!("{root}/{file}.toml").into()).collect();
            load_with(&files, BTreeMap::new(), "the test").unwrap().config
        };
        let fast = |adversarial, task| [0.2, 256., 400., 220., 20., 5., 3e-3, adversarial, 10., task];
        let one_step = |lr, steps, rounds| [lr, 256., steps, rounds, 0., 1., 1e-3];
        let rows: [(&str, &str, &[f64]); 17] = [
            ("resnet34-resnet18", "fast_meta", &fast(1.33, 0.5)),
            ("vgg11-resnet18", "fast_meta", &fast(1.0, 0.5)),
            ("wrn40_2-wrn16_1", "fast_meta", &fast(1.1, 0.4)),
            ("wrn40_2-wrn40_1", "fast_meta", &fast(1.1, 0.4)),
            ("wrn40_2-wrn16_2", "fast_meta", &fast(1.1, 0.4)),
            ("wrn40_2-wrn16_1", "fast_meta_2", &[0.2, 256., 400., 220., 20., 2., 5e-3, 1.1, 10., 0.4]),
            ("wrn40_2-wrn16_1", "fast_meta_10", &[0.2, 256., 400., 220., 20., 10., 2e-3, 1.1, 10., 0.4]),
            ("wrn40_2-wrn16_1", "fast", &fast(1.1, 0.4)),
            ("wrn40_2-wrn16_1", "deepinv", &[0.1, 256., 400., 200., 0., 1000., 0.1, 1., 10., 1.]),
            ("wrn40_2-wrn16_1", "cmi", &[0.1, 256., 400., 200., 0., 200., 1e-3, 0.5, 1., 1.]),
            ("wrn40_2-wrn16_1", "dafl", &one_step(0.1, 5., 16_000.)),
            ("wrn40_2-wrn16_1", "zskt", &one_step(0.1, 5., 16_000.)),
            ("wrn40_2-wrn16_1", "dfad", &one_step(0.1, 5., 16_000.)),
            ("wrn40_2-wrn16_1", "dfq", &[0.1, 256., 10., 8_000., 0., 1., 1e-3, 1., 1., 1.]),
            ("resnet34-resnet18", "dfq_cifar100_resnet34", &one_step(0.05, 10., 8_000.)),
            ("wrn40_2-wrn16_1", "kd", &[0.1, 128., 0., 200., 0.]),
            ("wrn40_2-wrn16_1", "scratch", &[0.1, 256., 0., 200., 0.]),
        ];
        for (pair, method, wanted) in rows {
            for dataset in ["cifar10", "cifar100"] {
                let c = resolved(&[&format!("{dataset}/{pair}"), &format!("methods/{method}")]);
                let (student, inversion, distill, train) = (&c.student, &c.inversion, &c.distill, &c.train);
                let found = [
                    student.lr,
                    distill.batch_size as f64,
                    distill.steps_per_round as f64,
                    train.rounds as f64,
                    train.warmup_rounds as f64,
                    inversion.steps as f64,
                    inversion.lr_generator,
                    inversion.adversarial_weight,
                    inversion.statistics_weight,
                    inversion.task_weight,
                ];
                assert_eq!(&found[..wanted.len()], wanted, "{dataset}, {pair}, {method}");
                assert_eq!(student.weight_decay, 1e-4, "{method}");
            }
        }
        // What only some of them have.
        let of = |method: &str| resolved(&["cifar10/wrn40_2-wrn16_1", &format!("methods/{method}")]);
        for (method, latent, momentum, reset) in
            [("fast_meta", 0.01, 0.9, 120), ("fast_meta_2", 0.015, 0.9, 120), ("fast_meta_10", 0.01, 0.9, 120), ("cmi", 1e-3, 0.0, 0)]
        {
            let inversion = of(method).inversion;
            assert_eq!(
                (inversion.lr_latent, inversion.statistics_momentum, inversion.reset_after_rounds),
                (latent, momentum, reset),
                "{method}"
            );
        }
        let [cmi, dafl, dfq, deepinv] = ["cmi", "dafl", "dfq", "deepinv"].map(|method| of(method).inversion);
        assert_eq!((cmi.contrastive_weight, cmi.contrastive_temperature), (0.8, 0.2));
        assert_eq!((dafl.task_weight, dafl.balance_weight, dafl.activation_weight), (1.0, 20.0, 1e-3));
        assert_eq!((dfq.balance_weight, deepinv.variation_weight, deepinv.norm_weight), (20.0, 1e-3, 0.0));
        let kd = of("kd").distill;
        assert_eq!((kd.temperature, kd.label_weight), (1.0, 0.1));
        for method in ["fast", "fast_meta", "cmi", "deepinv"] {
            assert_eq!(of(method).distill.temperature, 20.0, "{method}");
        }
    }

    #[test]
    fn later_layers_win_and_are_named() {
        let loaded = with(
            "seed = 1\n[replay]\ncapacity = 10\nalpha = 0.5\n[student]\nmodel = \"vgg11\"",
            &[("SSDKD__REPLAY__CAPACITY", "20"), ("SSDKD__SEED", "2"), ("HOME", "/")],
            &["seed=3", "device=cpu"],
        )
        .unwrap();
        assert_eq!((loaded.config.seed, loaded.config.replay.capacity, loaded.config.replay.alpha), (3, 20, 0.5));
        assert_eq!(loaded.origins["seed"], "command line");
        assert_eq!(loaded.origins["replay.capacity"], "environment");
        assert!(loaded.origins["replay.alpha"].ends_with("a.toml"));
        assert!(!loaded.origins.contains_key("replay.beta"));
    }

    /// Whoever names the method, its defaults lose against everything that is said, before or after.
    #[test]
    fn a_method_brings_its_published_values() {
        for (file, sets) in [("method = \"dafl\"\nstudent.lr = 0.3", &[][..]), ("student.lr = 0.3", &["method=dafl"])] {
            let Loaded { config, origins } = with(file, &[], sets).unwrap();
            assert_eq!((config.inversion.balance_weight, config.student.lr, config.generator.latent), (20.0, 0.3, 512));
            assert_eq!(origins["inversion.balance_weight"], "default of dafl");
        }
    }

    /// Every file is read, and sets nothing but known keys that pass the checks; SSD-KD's values are the defaults.
    #[test]
    fn every_method_has_its_file() {
        for name in MethodName::ALL {
            let loaded = with("", &[], &[&format!("method={}", name.name())]).unwrap();
            check(&loaded.config, Job::Train).unwrap();
            assert_eq!(loaded.config.method, name);
            assert_eq!(method_layer(name.name()).is_none(), name == MethodName::SsdKd);
        }
    }

    #[test]
    fn given_values_win_over_files_and_the_environment_is_not_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        std::fs::write(&path, "seed = 1\n[replay]\ncapacity = 10").unwrap();
        let value = |key: &str, value: i64| BTreeMap::from([(key.to_owned(), Value::Integer(value))]);
        let loaded = load_with(std::slice::from_ref(&path), value("seed", 3), "here").unwrap();
        assert_eq!((loaded.config.seed, loaded.config.replay.capacity, loaded.origins["seed"].as_str()), (3, 10, "here"));
        let text = load_with(&[path], value("sed", 3), "here").unwrap_err().to_string();
        assert!(text.contains("sed: unknown key (from here); did you mean `seed`?"), "{text}");
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_all_named_with_the_way_out() {
        let text = with("[replay]\ncapacty = 10\nalpha = \"x\"", &[], &["train.rouns=3", "distill.batch_size=-4"]).unwrap_err().to_string();
        for part in [
            "replay.capacty: unknown key",
            "did you mean `replay.capacity`",
            "replay.alpha:",
            "did you mean `train.rounds`",
            "distill.batch_size:",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
    }

    #[test]
    fn relative_paths_are_relative_to_the_file_or_the_working_folder() {
        let loaded = with("[data]\ndir = \"here\"", &[], &["teacher.weights=there/t.pth"]).unwrap();
        assert!(loaded.config.data.dir.unwrap().is_absolute());
        assert_eq!(loaded.config.teacher.weights.unwrap(), PathBuf::from("there/t.pth"));
    }

    #[test]
    fn an_unknown_choice_names_the_known_ones() {
        let text = with("", &[], &["method=magic"]).unwrap_err().to_string();
        assert!(text.contains("method:") && text.contains("ssd_kd"), "{text}");
    }

    #[test]
    fn a_misspelt_network_is_corrected() {
        let text = with("[student]\nmodel = \"wrn_16_1\"", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("student.model:") && text.contains("did you mean `wrn16_1`?"), "{text}");
    }

    #[test]
    fn a_broken_file_is_named_with_its_line() {
        let text = with("seed = 1\n[replay\n", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("a.toml: line 2"), "{text}");
    }
}
