//! Outputs: which may be written, how they take their names, and what is left when a run does not come to its end.

#[path = "outputs/followed.rs"]
mod followed;
#[path = "outputs/interrupted.rs"]
mod interrupted;
#[path = "outputs/left.rs"]
mod left;
#[path = "outputs/refused.rs"]
mod refused;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Ran, command, fixture, folder, run};

/// A fixture with a data file.
const MODEL: &str = "genai-llama";

/// Rewrites `from` to `to` without running anything.
fn rewrite(from: &Path, to: &Path, more: &[&str]) -> Ran {
    let mut arguments = vec![PathBuf::from("rewrite"), from.into(), "-o".into()];
    arguments.push(to.into());
    arguments.push("--no-validate".into());
    arguments.extend(more.iter().map(PathBuf::from));
    run(arguments)
}

/// Names and contents of the files right in `folder`.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect()
}

/// The names of all that is right in `folder`.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The files of a fixture, copied to `folder/in`; gives the model.
fn input(name: &str, folder: &Path) -> PathBuf {
    let place = folder.join("in");
    fs::create_dir(&place).unwrap();
    for (name, bytes) in files(&fixture(name)) {
        fs::write(place.join(name), bytes).unwrap();
    }
    place.join("model.onnx")
}
