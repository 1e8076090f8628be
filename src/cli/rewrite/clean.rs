//! `rewrite --clean`: removal of the kept work of interrupted runs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use gqa2mla::files::interrupted::remove_work;
use gqa2mla::files::save::{names_a_file, output_path};
use serde_json::json;

use crate::cli::exit::Exit;
use crate::cli::screen::{emit, emit_json, size};

/// Removes the kept work from which a rewrite of `model` to `out` would resume.
pub fn remove_unfinished(model: &Path, out: &Path, json: bool) -> anyhow::Result<Exit> {
    let target = output_path(model, out);
    let beside = match model.is_dir() && !names_a_file(out) {
        true => out.parent(),
        false => target.parent(),
    };
    let folder = beside.filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let removed = match folder.is_dir() {
        true => remove_work(folder).with_context(|| folder.display().to_string())?,
        false => Vec::new(),
    };
    if json {
        let removed = removed.iter();
        let removed = removed.map(|(path, bytes)| json!({ "path": path, "bytes": bytes }));
        emit_json(&json!({ "removed": removed.collect::<Vec<_>>() }));
    } else if removed.is_empty() {
        emit(&format!("no unfinished work in {}", folder.display()));
    } else {
        let line = |(path, bytes): &(PathBuf, u64)| {
            format!("removed {} ({})\n", path.display(), size(*bytes))
        };
        emit(&removed.iter().map(line).collect::<String>());
    }
    Ok(Exit::Done)
}
