//! The tests of the command and of the library, in one binary; a module a subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

mod bad_input;
mod batches;
mod bench;
mod bf16;
mod borrowed_rows;
mod cache_layouts;
mod calibration;
mod catalogue;
mod checker;
mod cli;
mod common;
mod compared;
mod compress;
mod dry_run;
mod fastest;
mod fixed_sizes;
mod folders;
mod given;
mod hostile;
mod in_place;
mod inputs;
mod joint;
mod json;
mod kept_files;
mod layers;
mod lossless;
mod manners;
mod messages;
mod model_files;
mod models;
mod mutations;
mod new_rows;
mod new_tokens;
mod non_finite;
mod noticed;
mod numerics;
mod operators;
mod outputs;
mod packaging;
mod partial;
mod per_head;
mod positions;
mod print_and_diff;
mod raised;
mod real_model;
mod refuse;
mod report;
mod respelled;
mod rewrite;
mod rotary;
mod rounded;
mod runtime;
mod scopes;
mod serving;
mod shared_caches;
mod static_caches;
#[cfg(feature = "train")]
mod tune;
mod undeclared;
mod untouched;
mod ways_out;
mod without_ort;
