//! The pure core of `gqa2mla`: a graph goes in, a graph comes out. No files, no runtime, no printing.
//!
//! Data flows one way: messages, graph view, facts, sites, factors, patch, messages again. [`inspect`] stops at the
//! sites; [`rewrite`] goes all the way.

pub mod changes;
pub mod cleanup;
pub mod error;
pub mod factor;
pub mod facts;
pub mod graph;
pub mod inline;
pub mod layer;
pub mod lower;
pub mod model;
pub mod observe;
pub mod onnx;
pub mod options;
pub mod pipeline;
pub mod placed;
pub mod recognize;
pub mod rewrite;
pub mod scopes;
mod seam;
pub mod understand;

pub use error::RewriteError;
pub use layer::{Layer, by_weights};
pub use options::{LatentForm, RankPlan, RewriteOptions};
pub use pipeline::{Inspection, Rewritten, inspect, rewrite};
