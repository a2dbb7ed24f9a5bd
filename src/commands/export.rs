//! `ssdkd export`.

use crate::cli::{ExportArgs, ExportFormat};
use crate::error::{Error, Result};
use crate::files;
use crate::nn::weights;

/// Writes what a run made, a student or a teacher, for other programs.
pub fn run(args: &ExportArgs) -> Result<()> {
    let made = ["student.safetensors", "teacher.safetensors"].map(|name| args.run_dir.join(name)).into_iter().find(|path| path.is_file());
    let Some(made) = made else {
        return Err(Error::file(&args.run_dir, "holds neither student.safetensors nor teacher.safetensors")
            .with_hint("a run writes its network at its end: `ssdkd inspect DIR --status` says how it stands"));
    };
    files::check_target(&args.out)?;
    let file = weights::read(&made)?;
    let metadata: Vec<(&str, String)> = file.metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    match args.to {
        ExportFormat::Safetensors => weights::write(&args.out, &file.tensors, &metadata)?,
    }
    println!("{}", args.out.display());
    Ok(())
}
