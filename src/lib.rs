//! The shell around [`gqa2mla_passes`]: everything that touches a file, a runtime or a report.

pub mod allot;
pub mod bundle;
pub mod calibrate;
pub mod compress;
pub mod convert;
pub mod factors;
pub mod interrupted;
pub mod layer_errors;
pub mod measure;
pub mod model;
pub mod ports;
pub mod quality;
pub mod reconstruct;
pub mod report;
pub mod runtime;
pub mod search;
pub mod serving;
pub mod tensors;
pub mod text;
pub mod validate;
