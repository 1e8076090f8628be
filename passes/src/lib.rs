//! The pure core of `gqa2mla`: a graph goes in, a graph comes out. No files, no runtime, no printing.
//!
//! Data flows one way: messages, graph view, facts, sites, factors, patch, messages again. [`inspect`] stops at the
//! sites; [`rewrite`] goes all the way.

pub mod cleanup;
pub mod factor;
pub mod facts;
pub mod graph;
pub mod inline;
pub mod lower;
pub mod model;
pub mod onnx;
pub mod pipeline;
pub mod recognize;
pub mod rewrite;
pub mod scopes;
mod seam;
pub mod understand;

pub use pipeline::{Inspection, RewriteError, RewriteOptions, Rewritten, inspect, rewrite};
