//! `ssdkd config`.

use super::{configured, merged};
use crate::cli::{ConfigAction, Trains};
use crate::config::{Job, Plan, check_paths, keys, markdown};
use crate::error::{Error, Result};

/// Shows, checks or documents configuration.
pub fn run(action: &ConfigAction) -> Result<()> {
    match action {
        ConfigAction::Reference => print!("{}", markdown()),
        ConfigAction::Check(args) => {
            let job = match args.command {
                Trains::Train => Job::Train,
                Trains::Teach => Job::Teach,
            };
            let loaded = configured(&args.config, job).map_err(|error| match job {
                Job::Train if configured(&args.config, Job::Teach).is_ok() => {
                    Error::refused(format!("{error}")).with_hint("as a file for `ssdkd teach` it is well: check it with --for teach")
                }
                _ => error,
            })?;
            check_paths(&loaded.config)?;
            println!("{} keys set, all well", loaded.origins.len());
            let plan = Plan::new(&loaded.config, job, loaded.config.parallel.logical_ranks.unwrap_or(1), "", "")?;
            plan.warnings.iter().for_each(|warning| println!("warning: {warning}"));
            if job == Job::Train && loaded.config.teacher.weights.is_none() {
                println!("teacher.weights is left out: train needs it, for example by --set teacher.weights=FILE");
            }
        }
        ConfigAction::Show(args) => {
            let loaded = merged(args)?;
            let values = toml::Value::try_from(&loaded.config).map_err(|e| Error::refused(e.to_string()))?;
            let rows: Vec<(String, String)> = keys()
                .into_iter()
                .map(|key| {
                    let value =
                        key.name.split('.').try_fold(&values, |at, part| at.get(part)).map_or("(left out)".into(), toml::Value::to_string);
                    (format!("{} = {value}", key.name), loaded.origins.get(&key.name).cloned().unwrap_or_else(|| "default".into()))
                })
                .collect();
            let width = rows.iter().map(|(setting, _)| setting.chars().count()).max().unwrap_or(0);
            for (setting, origin) in rows {
                println!("{setting:width$}  # {origin}");
            }
        }
    }
    Ok(())
}
