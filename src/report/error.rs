//! The error of a report.

/// Why a report could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A chart could not be drawn.
    #[error("a chart cannot be drawn: {0}")]
    Chart(String),
    /// The page template could not be rendered.
    #[error(transparent)]
    Page(#[from] minijinja::Error),
}
