//! The pure core of `gqa2mla`: a graph goes in, a graph comes out. No files, no runtime, no printing.
//!
//! Data flows one way: messages, graph view, facts, sites, factors, patch, messages again. [`inspect`] stops at the
//! sites; [`rewrite`] goes all the way.

pub mod analysis;
pub mod factor;
pub mod facts;
pub mod forms;
pub mod graph;
pub mod onnx;
pub mod operators;
pub mod pipeline;
pub mod recognize;
pub mod weights;

pub use analysis::{Analysis, SiteView};
pub use forms::{Absorbed, Decoupled, Expanded, Form, LatentPast, RankPlan};
pub use pipeline::error::RewriteError;
pub use pipeline::factorize::by_weights;
pub use pipeline::options::RewriteOptions;
pub use pipeline::{Inspection, Rewritten, inspect, rewrite};
