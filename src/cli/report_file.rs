//! The report file: its path is checked before the rewrite, and it is written at the end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use crate::cli::escaped::{escaped, escaped_json};
use crate::cli::exit::UsageError;
use crate::files::staging::Staging;
use crate::report::ReportError;

/// A report file to be written at the end.
pub struct ReportFile {
    path: PathBuf,
    page: bool,
}

impl ReportFile {
    /// Checks the path of a report, whose suffix determines its kind (HTML or JSON), and that it can be written, before
    /// a model is rewritten.
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
        // Staged again at the end, because its folder may be the output, which is exchanged as a whole.
        drop(Staging::file(path)?);
        Ok(Self {
            path: path.to_path_buf(),
            page,
        })
    }

    /// Writes `data` as JSON or as the HTML page `page`, and publishes the file.
    pub fn write(
        self,
        data: &Value,
        page: fn(&Value) -> Result<String, ReportError>,
    ) -> anyhow::Result<()> {
        let shown = || self.path.display().to_string();
        let text = match self.page {
            true => escaped(&page(data).with_context(shown)?).into_owned(),
            false => escaped_json(&format!("{data:#}\n")).into_owned(),
        };
        let staging = Staging::file(&self.path)?;
        fs::write(staging.staged(), text).with_context(shown)?;
        staging.publish()?;
        Ok(())
    }
}
