//! The report of a rewrite, as JSON data or as a self-contained HTML page.
//!
//! The page is rendered from the data of the JSON report only (docs/report.md has its schema), so that both agree.

mod charts;
mod error;
mod numbers;
mod page;

pub use error::ReportError;
pub use gqa2mla_passes::numbers::{counted, grouped};
pub use numbers::{change, measured, short, size};
pub use page::html;

/// Version of the JSON schema: it changes if a key changes its meaning or is removed.
pub const SCHEMA: u32 = 1;
