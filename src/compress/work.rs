//! The folder of finished layers, from which an interrupted reconstruction resumes.

use std::path::{Path, PathBuf};

use gqa2mla_passes::RewriteOptions;
use gqa2mla_passes::factor::reconstruct::Descent;

use crate::files::interrupted::LAYERS;
use crate::fit::factors::Factorization;
use crate::fit::statistics::ModelStatistics;
use crate::measure::text::Text;
use crate::runtime::given::GivenInput;

/// All inputs that determine the content of finished layers.
pub(crate) struct WorkKey<'i> {
    pub statistics: &'i ModelStatistics,
    pub text: &'i Text,
    pub factorization: Factorization,
    pub options: &'i RewriteOptions<'i>,
    pub descent: Descent,
    /// Values of inputs that are the same in every run.
    pub given: &'i [GivenInput],
}

impl WorkKey<'_> {
    /// The folder in `parent` for these inputs. Its name contains a checksum of the inputs, so that a run never resumes
    /// from layers of other inputs.
    pub(crate) fn folder(&self, parent: Option<&Path>) -> PathBuf {
        let mut hasher = crc32fast::Hasher::new();
        for id in &self.text.ids {
            hasher.update(&id.to_le_bytes());
        }
        let inputs = format!(
            "{} {} {} {} {:?} {:?} {:?} {:?} {:?} {}",
            env!("CARGO_PKG_VERSION"),
            self.statistics.model,
            self.statistics.text,
            self.statistics.sequences,
            self.factorization,
            self.options.form,
            self.options.ranks,
            self.descent,
            self.given,
            self.text.length
        );
        hasher.update(inputs.as_bytes());
        let name = format!("{LAYERS}{:08x}", hasher.finalize());
        match parent {
            Some(parent) if !parent.as_os_str().is_empty() => parent.join(name),
            _ => PathBuf::from(name),
        }
    }
}
