//! `--clean`: removal of the kept work of interrupted runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::exit::Exit;
use crate::cli::screen::Screen;
use crate::files::interrupted::remove_work;
use crate::report::size;

/// Whether `path` is the state of a training.
#[cfg(feature = "train")]
fn is_state_of_training(path: &Path) -> bool {
    crate::tune::checkpoint::is_state(path)
}

/// A build without training makes no such states, and leaves them.
#[cfg(not(feature = "train"))]
fn is_state_of_training(_: &Path) -> bool {
    false
}

/// Removes the kept work in `folder` whose name begins with `prefix`, and the file `checkpoint`, from which runs of the same
/// command would resume.
pub fn remove_unfinished(
    folder: &Path,
    prefix: &str,
    checkpoint: Option<&Path>,
    screen: &Screen,
) -> anyhow::Result<Exit> {
    let mut removed = match folder.is_dir() {
        true => remove_work(folder, prefix).with_context(|| folder.display().to_string())?,
        false => Vec::new(),
    };
    if let Some(path) = checkpoint.filter(|path| is_state_of_training(path)) {
        let bytes = fs::metadata(path).map_or(0, |file| file.len());
        fs::remove_file(path).with_context(|| path.display().to_string())?;
        removed.push((path.to_path_buf(), bytes));
    }
    screen.show(|| as_text(&removed, folder), || as_json(&removed));
    Ok(Exit::Done)
}

fn as_text(removed: &[(PathBuf, u64)], folder: &Path) -> String {
    if removed.is_empty() {
        return format!("no unfinished work in {}", folder.display());
    }
    let lines = removed
        .iter()
        .map(|(path, bytes)| format!("removed {} ({})\n", path.display(), size(*bytes)));
    lines.collect()
}

fn as_json(removed: &[(PathBuf, u64)]) -> Value {
    let removed = removed
        .iter()
        .map(|(path, bytes)| json!({ "path": path, "bytes": bytes }));
    json!({ "removed": removed.collect::<Vec<_>>() })
}
