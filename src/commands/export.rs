//! `ssdkd export`.

use crate::cli::{ExportArgs, ExportFormat};
use crate::error::Result;
use crate::nn::weights;

/// Writes a run's student for other programs.
pub fn run(args: &ExportArgs) -> Result<()> {
    let file = weights::read(&args.run_dir.join("student.safetensors"))?;
    let metadata: Vec<(&str, String)> = file.metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    match args.to {
        ExportFormat::Safetensors => weights::write(&args.out, &file.tensors, &metadata)?,
    }
    println!("{}", args.out.display());
    Ok(())
}
