//! `ssdkd inspect`.

use crate::checkpoint::checksums;
use crate::cli::InspectArgs;
use crate::error::{Error, Result};
use crate::files;
use crate::nn::weights;
use crate::run_folder::{Status, is_held};
use std::path::Path;

/// Looks into a run folder or a weights file.
pub fn run(args: &InspectArgs) -> Result<()> {
    if (args.status || args.checksum) && args.path.is_file() {
        return Err(Error::file(&args.path, "is no run folder"));
    }
    if args.status {
        println!("{}", Status::read(&args.path)?.state.seen(is_held(&args.path)).name());
        return Ok(());
    }
    if args.checksum {
        for (name, sum) in checksums(&args.path)? {
            println!("{name} {sum}");
        }
        return Ok(());
    }
    if args.path.is_dir() { run_folder(&args.path) } else { weights_file(&args.path) }
}

fn run_folder(folder: &Path) -> Result<()> {
    let report = folder.join("report.json");
    if report.exists() {
        let text = files::read(&report)?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| Error::file(&report, e.to_string()))?;
        println!("{}", serde_json::to_string_pretty(&value).unwrap_or_default());
        return Ok(());
    }
    let config = folder.join("config.toml");
    if !config.exists() {
        return Err(Error::file(folder, "is not a run folder: it holds no config.toml"));
    }
    let rows: Vec<crate::metrics::RoundRecord> = crate::metrics::read_table(&folder.join("metrics.csv")).unwrap_or_default();
    match rows.last() {
        Some(row) => println!("not finished: {} rounds, {} student steps", row.round + 1, row.student_step),
        None => println!("not finished: no round is over yet"),
    }
    Ok(())
}

fn weights_file(path: &Path) -> Result<()> {
    let file = weights::read(path)?;
    let mut parameters = 0;
    for (key, tensor) in &file.tensors {
        println!("{key}  {:?}  {:?}", tensor.size(), tensor.kind());
        parameters += tensor.numel();
    }
    let mut metadata: Vec<_> = file.metadata.iter().collect();
    metadata.sort();
    for (name, text) in metadata {
        println!("# {name}: {text}");
    }
    println!("# {} tensors, {parameters} values", file.tensors.len());
    Ok(())
}
