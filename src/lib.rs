//! The shell around [`gqa2mla_passes`]: everything that touches a file, a runtime or a report.

pub mod compress;
pub mod files;
pub mod fit;
pub mod measure;
pub mod report;
pub mod runtime;
pub mod serving;
#[cfg(feature = "train")]
pub mod tune;
pub mod validate;
