//! `ssdkd export`.

use crate::cli::{ExportArgs, ExportFormat};
use crate::error::{Error, Result};
use crate::export::Subject;
use crate::files;

/// Writes what a run made, a student or a teacher, for other programs.
pub fn run(args: &ExportArgs) -> Result<()> {
    let subject = Subject::of_run(&args.run_dir)?;
    files::check_target(&args.out)?;
    if args.out.is_dir() {
        return Err(Error::file(&args.out, "is a folder: name a file in it"));
    }
    match args.to {
        ExportFormat::Safetensors => subject.safetensors(&args.out)?,
        ExportFormat::Torchscript => subject.torchscript(&args.out)?,
        ExportFormat::Onnx => subject.onnx(&args.out)?,
        ExportFormat::Pytorch => subject.pytorch(&args.out)?,
    }
    println!("{}", args.out.display());
    Ok(())
}
