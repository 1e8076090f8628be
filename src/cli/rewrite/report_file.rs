//! The file of a report, which is claimed before a model is rewritten and written when all is done.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use gqa2mla::compress::convert::MadeFolders;
use gqa2mla::report;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::cli::exit::UsageError;

/// A report that does not have its name yet: that it cannot be written is known before a model is rewritten.
pub struct ReportFile {
    path: PathBuf,
    file: NamedTempFile,
    page: bool,
    /// Dropped after the file, so that folders made for it are empty and can be removed.
    _made: MadeFolders,
}

impl ReportFile {
    /// Begins the report `path`, whose suffix says its kind: a page or data.
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
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let made = MadeFolders::up_to(folder);
        fs::create_dir_all(folder)
            .with_context(|| format!("{}: making the report's folder", folder.display()))?;
        let file = gqa2mla::files::save::temporary(folder)
            .with_context(|| format!("{}: making a temporary file", folder.display()))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            page,
            _made: made,
        })
    }

    /// Writes the page or the data of `report`, and gives the file its name.
    pub fn write(mut self, data: &Value) -> anyhow::Result<()> {
        let shown = self.path.display().to_string();
        let text = match self.page {
            true => report::html(data).with_context(|| shown.clone())?,
            false => format!("{data:#}\n"),
        };
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| shown.clone())?;
        self.file.persist(&self.path).with_context(|| shown)?;
        Ok(())
    }
}
