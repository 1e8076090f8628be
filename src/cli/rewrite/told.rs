//! What a rewrite tells when it is done: on the terminal, as JSON, and in a report.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use gqa2mla::files::staging::Staging;
use gqa2mla::report;
use gqa2mla::runtime;
use gqa2mla::serving::bundle::Bundle;
use gqa2mla::serving::{Edit, Stack};
use serde_json::{Value, json};

use crate::cli::escaped::{escaped, escaped_json};
use crate::cli::rewrite::attempt::Attempt;
use crate::cli::screen::{complain, emit, emit_json};
use crate::cli::{Outcome, UsageError};

/// Of all models that were rewritten.
pub struct Told {
    started: Instant,
    input: PathBuf,
    /// Whether every one of them passed.
    pub accepted: bool,
    text: String,
    models: Vec<Value>,
    reports: Vec<Value>,
    folder: Option<Value>,
    folder_text: String,
    several: bool,
}

impl Told {
    /// Of a rewrite of `input`.
    pub fn new(input: &Path, started: Instant) -> Self {
        Self {
            started,
            input: input.to_path_buf(),
            accepted: true,
            text: String::new(),
            models: Vec::new(),
            reports: Vec::new(),
            folder: None,
            folder_text: String::new(),
            several: false,
        }
    }

    /// What became of the files around the models, of which `copied` are as they were.
    pub fn folder(&mut self, bundle: &Bundle, stacks: &[Stack], edits: Vec<Edit>, copied: usize) {
        let names: Vec<&str> = stacks.iter().map(|s| s.name()).collect();
        for edit in &edits {
            let old = edit.old.as_deref().unwrap_or("nothing");
            let line = format!("{}: {} {old} -> {}\n", edit.file, edit.key, edit.new);
            self.folder_text.push_str(&line);
        }
        if !names.is_empty() {
            self.folder_text
                .push_str(&format!("made for {}\n", names.join(", ")));
        }
        for path in &bundle.left_out {
            self.folder_text
                .push_str(&format!("left out: {}\n", path.display()));
        }
        self.several = bundle.models.len() > 1;
        self.folder = Some(json!({
            "serving": names, "edits": edits, "copied": copied,
            "left_out": bundle.left_out,
        }));
    }

    /// One model; with `in_detail` for a report too.
    pub fn add(&mut self, file: &Path, attempt: &Attempt, in_detail: bool) {
        let file = file.display().to_string();
        if self.several {
            let _ = writeln!(self.text, "{file}:");
        }
        self.text.push_str(&attempt.text());
        self.accepted &= attempt.accepted;
        let named = |mut value: Value| {
            if let Some(value) = value.as_object_mut() {
                value.insert("file".to_owned(), json!(file));
                value.insert("accepted".to_owned(), json!(attempt.accepted));
            }
            value
        };
        self.models.push(named(attempt.json()));
        if in_detail {
            self.reports.push(named(attempt.report()));
        }
    }

    /// Tells it, now that the output is `output`.
    pub fn finish(
        mut self,
        output: &Path,
        json: bool,
        report: Option<ReportFile>,
    ) -> anyhow::Result<Outcome> {
        let seconds = self.started.elapsed().as_secs_f64();
        let shown = output.display().to_string();
        let ended = |mut value: Value| {
            if let Some(value) = value.as_object_mut() {
                value.insert("output".to_owned(), json!(shown));
                value.insert("accepted".to_owned(), json!(self.accepted));
                value.insert("seconds".to_owned(), json!(seconds));
                value.insert("folder".to_owned(), json!(self.folder));
            }
            value
        };
        if let Some(file) = report {
            let told = ended(json!({
                "schema": report::SCHEMA, "version": env!("CARGO_PKG_VERSION"),
                "input": self.input, "onnxruntime": used_runtime(), "models": self.reports,
            }));
            file.write(&told)?;
        }
        if json {
            emit_json(&ended(match self.models.as_mut_slice() {
                [only] => only.take(),
                several => json!({ "models": several }),
            }));
        } else {
            let closing = match self.accepted {
                true => format!("wrote {shown} in {seconds:.1} s\n"),
                false => format!("VALIDATION FAILED; what was rejected is kept in {shown}\n"),
            };
            emit(&format!("{}{}{closing}", self.text, self.folder_text));
        }
        if self.accepted {
            return Ok(Outcome::Done);
        }
        complain(&format!(
            "error: validation failed; what was rejected is kept in {shown}"
        ));
        Ok(Outcome::Rejected)
    }
}

/// The ONNX Runtime that ran the models, if one did.
fn used_runtime() -> Value {
    json!(runtime::used().map(|used| json!({
        "version": used.version, "path": used.path, "chosen_by": used.origin,
    })))
}

/// A report that is to be written when all is done.
pub struct ReportFile {
    path: PathBuf,
    page: bool,
}

impl ReportFile {
    /// Takes the path of a report, whose ending says its kind; one that cannot be written is known before a model is
    /// rewritten.
    pub fn begin(path: &Path) -> anyhow::Result<Self> {
        let page = match path.extension().and_then(|e| e.to_str()) {
            Some("html") => true,
            Some("json") => false,
            _ => {
                let words = format!(
                    "--report {}: the name has to end in .html or .json",
                    path.display()
                );
                return Err(UsageError(words).into());
            }
        };
        // Staged anew at the end: the folder it is in may be an output, which is exchanged as a whole.
        drop(Staging::file(path)?);
        Ok(Self {
            path: path.to_path_buf(),
            page,
        })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(self, told: &Value) -> anyhow::Result<()> {
        let shown = || self.path.display().to_string();
        let text = match self.page {
            true => escaped(&report::html(told).with_context(shown)?).into_owned(),
            false => escaped_json(&format!("{told:#}\n")).into_owned(),
        };
        let staging = Staging::file(&self.path)?;
        fs::write(staging.staged(), text).with_context(shown)?;
        staging.publish()?;
        Ok(())
    }
}
