//! A report of one rewrite, as data or as a page that needs no other file.
//!
//! The page is rendered from the data of the JSON report alone (docs/report.md has its schema), so that both agree.

mod charts;
mod error;
mod numbers;
mod page;

pub use error::ReportError;
pub use numbers::{grouped, measured};
pub use page::html;

/// Version of the data's schema: it changes when a key changes its meaning or goes away.
pub const SCHEMA: u32 = 1;
