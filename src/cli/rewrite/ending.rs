//! The final output of a rewrite: text or JSON, and the report.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use crate::bench::Benched;
use crate::cli::bench::as_text;
use crate::cli::exit::Exit;
use crate::cli::provenance::{self, command_with, sha256};
use crate::cli::report_file::ReportFile;
use crate::cli::rewrite::fastest::Choice;
use crate::cli::rewrite::shown;
use crate::cli::rewrite::summary::Summary;
use crate::cli::screen::Screen;
use crate::cli::verdict::bad;
use crate::compress::run::Compression;
use crate::report;
use crate::runtime;
use crate::serving::Stack;
use crate::serving::bundle::LeftOut;
use crate::serving::folder::RewrittenFolder;

/// The options of a search that a rewrite with `--keep-heads` does without, each with a value.
const OF_THE_SEARCH: [&str; 10] = [
    "--max-perplexity-increase",
    "--max-kl",
    "--target",
    "--form",
    "--layout",
    "--reconstruct",
    "--cache-bits",
    "--distill",
    "--new-tokens",
    "--cache-io",
];

/// The command line `arguments` of a search with `--keep-heads` in place of the search, without the bits.
pub fn with_kept_heads(arguments: &[OsString]) -> String {
    let kept = arguments.iter().filter(|word| *word != "--per-head");
    let kept: Vec<OsString> = kept.cloned().collect();
    command_with(&kept, &OF_THE_SEARCH, &["--keep-heads"])
}

/// The final output of a rewrite, collected for all models.
pub struct Ending {
    started: Instant,
    input: PathBuf,
    target: &'static str,
    in_detail: bool,
    /// The target that was chosen by its time, with --target auto.
    pub choice: Option<Choice>,
    /// Whether the explanation of each rewrite is printed.
    pub explains: bool,
    /// The command line that rewrites the same model with `--keep-heads`, without the bits.
    pub with_kept_heads: String,
    /// Whether every model is accepted.
    pub accepted: bool,
    /// Whether the loss of a model was not measured.
    unmeasured: bool,
    text: String,
    models: Vec<Value>,
    reports: Vec<Value>,
    folder: Option<Value>,
    folder_text: String,
    several: bool,
    /// The files of all models, in a folder relative to it.
    files: Vec<PathBuf>,
    /// Number of models whose times have been added.
    timed: usize,
}

impl Ending {
    /// The empty output of a rewrite of `input` to `target` that began at `started`. `in_detail`: also collect the data
    /// of a report.
    pub fn new(input: &Path, target: &'static str, in_detail: bool, started: Instant) -> Self {
        Self {
            started,
            input: input.to_path_buf(),
            target,
            in_detail,
            choice: None,
            explains: false,
            with_kept_heads: String::new(),
            accepted: true,
            unmeasured: false,
            text: String::new(),
            models: Vec::new(),
            reports: Vec::new(),
            folder: None,
            folder_text: String::new(),
            several: false,
            files: Vec::new(),
            timed: 0,
        }
    }

    /// The path of every model before and after the rewrite, for the input and output paths `input` and `output`.
    pub fn pairs(&self, input: &Path, output: &Path) -> Vec<(PathBuf, PathBuf)> {
        let pair = |file: &PathBuf| match output.is_dir() && input.is_dir() {
            true => {
                // In a new folder for Triton, the model is in the folder of its version.
                let places = [output.join(file), output.join("1").join(file)];
                let found = places.iter().find(|place| place.is_file());
                (input.join(file), found.unwrap_or(&places[0]).clone())
            }
            false => (file.clone(), output.to_path_buf()),
        };
        self.files.iter().map(pair).collect()
    }

    /// Adds the times of the next model, in order.
    pub fn add_times(&mut self, benched: &Benched) -> anyhow::Result<()> {
        let times = serde_json::to_value(benched)?;
        for values in [&mut self.models, &mut self.reports] {
            let model = values.get_mut(self.timed).and_then(Value::as_object_mut);
            if let Some(model) = model {
                model.insert("bench".to_owned(), times.clone());
            }
        }
        self.timed += 1;
        let _ = writeln!(self.text, "{}\n", as_text(benched, &[]));
        Ok(())
    }

    /// Adds the treatment of the other files of a folder.
    pub fn folder(&mut self, folder: &RewrittenFolder) {
        let names: Vec<&str> = folder.stacks.iter().map(|s| s.name()).collect();
        for edit in &folder.edits {
            let old = edit.old.as_deref().unwrap_or("nothing");
            let line = format!("{}: {} {old} -> {}\n", edit.file, edit.key, edit.new);
            self.folder_text.push_str(&line);
        }
        for stack in &folder.stacks {
            if folder.edits.iter().all(|edit| edit.file != stack.file()) {
                let line = format!("{}: as it was\n", stack.file());
                self.folder_text.push_str(&line);
            }
        }
        if !names.is_empty() {
            let line = format!("made for {}\n", names.join(", "));
            self.folder_text.push_str(&line);
        }
        for left in &folder.bundle.left_out {
            let line = format!("left out: {left}\n");
            self.folder_text.push_str(&line);
        }
        self.several = folder.models.len() > 1;
        self.folder = Some(json!({
            "serving": names, "edits": folder.edits, "copied": folder.copied,
            "left_out": LeftOut::files(&folder.bundle.left_out),
        }));
    }

    /// Adds a note on the configuration of a serving stack beside the file `model`: a rewrite of a file edits none.
    pub fn configurations_left(&mut self, model: &Path) {
        let folder = model.parent().unwrap_or(model);
        let file = Stack::Genai.file();
        if folder.join(file).is_file() {
            let line = format!(
                "{file}: as it was, for the original; give the folder {} as MODEL, and a folder as OUT, to have it edited\n",
                folder.display()
            );
            self.folder_text.push_str(&line);
        }
    }

    /// Adds the result for one model.
    pub fn add(&mut self, file: &Path, compression: &Compression) {
        let summary = Summary::of(&compression.compressed.staged, self.target);
        self.files.push(file.to_path_buf());
        let file = file.display().to_string();
        if self.several {
            let _ = writeln!(self.text, "{file}:");
        }
        self.text
            .push_str(&shown::text(compression, &summary, &self.with_kept_heads));
        let rewritten = &compression.compressed.staged.rewritten;
        let explanation = self.explains.then(|| rewritten.explain());
        if let Some(explanation) = &explanation {
            let _ = writeln!(self.text, "\n{}\n", explanation.trim_end());
        }
        self.accepted &= compression.accepted;
        self.unmeasured |= compression.is_lossy() && compression.quality.is_none();
        let named = |mut value: Value| {
            if let Some(value) = value.as_object_mut() {
                value.insert("file".to_owned(), json!(file));
                value.insert("accepted".to_owned(), json!(compression.accepted));
                let choice = self.choice.as_ref().map(Choice::json);
                value.insert("target_choice".to_owned(), json!(choice));
            }
            value
        };
        let mut data = shown::data(compression, &summary);
        if let (Some(explanation), Some(data)) = (explanation, data.as_object_mut()) {
            data.insert("explanation".to_owned(), json!(explanation));
        }
        self.models.push(named(data));
        if self.in_detail {
            let mut report = named(shown::detailed(compression, &summary));
            let staged = &compression.compressed.staged;
            if let Some(report) = report.as_object_mut() {
                let sums = [&staged.model.path, &staged.path()].map(|path| sha256(path).ok());
                report.insert("sha256".to_owned(), json!(sums));
            }
            self.reports.push(report);
        }
    }

    /// Prints the output and writes the report. `output` is the path of the written model or folder, and `arguments` the
    /// command line.
    pub fn finish(
        self,
        output: &Path,
        arguments: &[OsString],
        screen: &Screen,
        report: Option<ReportFile>,
    ) -> anyhow::Result<Exit> {
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
            let data = ended(json!({
                "schema": report::SCHEMA, "version": env!("CARGO_PKG_VERSION"),
                "command": provenance::command(arguments), "date": provenance::now(),
                "input": self.input, "onnxruntime": used_runtime(), "models": self.reports,
            }));
            file.write(&data, report::html)?;
        }
        let data = || {
            ended(match self.models.as_slice() {
                [only] => only.clone(),
                several => json!({ "models": several }),
            })
        };
        let text = || {
            let closing = match self.accepted {
                true if self.unmeasured => format!(
                    "wrote {shown} in {seconds:.1} s\nits loss was not measured on a text: gqa2mla validate {} {shown} --text FILE measures it\n",
                    self.input.display()
                ),
                true => format!("wrote {shown} in {seconds:.1} s\n"),
                false => format!(
                    "{}; what was rejected is kept in {shown}\n",
                    bad("VALIDATION FAILED")
                ),
            };
            let choice = self.choice.as_ref().map_or_else(String::new, Choice::text);
            format!("{choice}{}{}{closing}", self.text, self.folder_text)
        };
        screen.show(text, data);
        if self.accepted {
            return Ok(Exit::Done);
        }
        screen.fail(&format!(
            "validation failed; what was rejected is kept in {shown}"
        ));
        Ok(Exit::Rejected)
    }
}

/// The ONNX Runtime that ran the models, if one did.
fn used_runtime() -> Value {
    json!(runtime::used().map(|used| json!({
        "version": used.version, "path": used.path, "chosen_by": used.origin,
    })))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::with_kept_heads;

    #[test]
    fn a_command_for_kept_heads_leaves_out_what_does_not_go_with_them() {
        let given = "bin/gqa2mla rewrite in --max-kl=0.1 -o out --per-head --distill 8 --new-tokens exact \
            --cache-io=inplace --context 64 --text train.txt";
        let words: Vec<OsString> = given.split_whitespace().map(OsString::from).collect();
        let told = "gqa2mla rewrite in -o out --context 64 --text train.txt --keep-heads";
        assert_eq!(with_kept_heads(&words), told);
    }
}
