//! The shell around [`gqa2mla_passes`]: everything that touches a file, a runtime or a report.

pub mod convert;
pub mod model;
pub mod ports;
pub mod runtime;
pub mod validate;
