//! The core of `gqa2mla`: a pure function from graph to graph, without files, runtimes or printing.
//!
//! Data flows in one direction: ONNX messages, graph index, inferred facts, recognised sites, factors, patches,
//! rewritten messages. [`inspect`] returns the sites; [`rewrite`] does all steps.

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
pub use forms::{Absorbed, Decoupled, Expanded, Form, RankPlan};
pub use pipeline::error::RewriteError;
pub use pipeline::factorize::by_weights;
pub use pipeline::options::RewriteOptions;
pub use pipeline::{Inspection, Rewritten, inspect, rewrite};
