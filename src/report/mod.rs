//! The reports of a rewrite and of a training run, as JSON data or as self-contained HTML pages.
//!
//! A page is rendered from the data of the JSON report only (docs/report.md has its schema), so that both agree.

mod charts;
mod error;
mod numbers;
mod page;
#[cfg(feature = "train")]
mod training;

pub use error::ReportError;
pub use gqa2mla_passes::numbers::{counted, grouped};
pub use numbers::{change, measured, percent, short, size, small};
pub use page::html;
#[cfg(feature = "train")]
pub use training::html as training_html;

/// Version of the JSON schema: it changes if a key changes its meaning or is removed.
pub const SCHEMA: u32 = 1;
