//! Why there is no report.

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A chart.
    #[error("a chart cannot be drawn: {0}")]
    Chart(String),
    /// The page.
    #[error(transparent)]
    Page(#[from] minijinja::Error),
}
