//! `ssdkd data`.

use crate::cli::DataAction;
use crate::data::survey;
use crate::error::{Error, Result};
use std::path::Path;

/// Findings that are printed: a wrong folder has thousands.
const SHOWN: usize = 20;

/// Prints what is whole; what is not is the error.
pub fn run(action: &DataAction) -> Result<()> {
    let DataAction::Check { dir, partial } = action;
    if !dir.is_dir() {
        return Err(Error::file(dir, if dir.exists() { "is no folder" } else { "no such folder" }));
    }
    let found = survey(dir, *partial);
    found.lines.iter().for_each(|line| println!("{line}"));
    match &found.wrong[..] {
        [] if found.lines.is_empty() => Err(nothing(dir)),
        [] => Ok(()),
        wrong => {
            let mut lines: Vec<String> = wrong.iter().take(SHOWN).map(|error| format!("  {error}")).collect();
            if wrong.len() > SHOWN {
                lines.push(format!("  and {} more", wrong.len() - SHOWN));
            }
            let hint = wrong[0].hint().unwrap_or_else(|| "copy or download what is named again".into());
            Err(Error::refused(format!("{} findings in {}:\n{}", wrong.len(), dir.display(), lines.join("\n"))).with_hint(hint))
        }
    }
}

fn nothing(dir: &Path) -> Error {
    Error::file(dir, "holds no file of a data set known here").with_hint(
        "looked for the IDX files of MNIST and Fashion-MNIST, cifar-10-batches-bin or -py, cifar-100-binary or -python, image/ with seg13/ \
         of NYUv2, train_32x32.mat of SVHN, wnids.txt of Tiny-ImageNet, and train/ and test/ (or val/) with a folder of pictures for each \
         class",
    )
}
