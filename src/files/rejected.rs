//! Outputs that failed validation, which are kept for inspection in a folder `<name>.rejected`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// Moves the folder `staged` to `<target>.rejected`. An earlier one is replaced, unless it contains files that `staged`
/// does not have; then the name of the new one gets a number.
pub fn keep_rejected(target: &Path, staged: &Path) -> io::Result<PathBuf> {
    let named = |suffix: &str| {
        let mut name = target.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut kept = named(".rejected");
    let mut number = 1;
    while kept.exists() && !holds_only(&kept, staged) {
        number += 1;
        kept = named(&format!(".rejected-{number}"));
    }
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::rename(staged, &kept)?;
    Ok(kept)
}

/// Whether `folder` is a folder without files that `staged` does not have, except for data files that are named by
/// their content.
fn holds_only(folder: &Path, staged: &Path) -> bool {
    WalkDir::new(folder).into_iter().all(|entry| {
        entry.is_ok_and(|e| {
            let relative = e.path().strip_prefix(folder).unwrap_or(e.path());
            e.file_type().is_dir() || staged.join(relative).exists() || is_data_of(staged, relative)
        })
    })
}

/// Whether `data` is the name of a data file of a model in `staged`.
fn is_data_of(staged: &Path, data: &Path) -> bool {
    let name = data.to_string_lossy();
    let model = name
        .strip_suffix(".data")
        .and_then(|rest| rest.rsplit_once('.'))
        .map(|(model, _)| model);
    model.is_some_and(|model| {
        crate::files::origin::is_data_name(model, &name) && staged.join(model).exists()
    })
}
