//! `--clean`: removal of the kept work of interrupted runs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::exit::Exit;
use crate::cli::screen::Screen;
use crate::files::interrupted::remove_work;
use crate::report::size;

/// Removes the kept work in `folder`, from which runs would resume.
pub fn remove_unfinished(folder: &Path, screen: &Screen) -> anyhow::Result<Exit> {
    let removed = match folder.is_dir() {
        true => remove_work(folder).with_context(|| folder.display().to_string())?,
        false => Vec::new(),
    };
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
