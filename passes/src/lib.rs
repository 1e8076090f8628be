//! The pure core of `gqa2mla`: a graph goes in, a graph comes out. No files, no runtime, no printing.
//!
//! Data flows one way: messages, graph view, facts, sites, factors, patch, messages again. [`inspect`] stops at the
//! sites; [`rewrite`] goes all the way. The crate `gqa2mla` opens and saves models and is what most programs want; its
//! documentation shows how a form or an attention operator is added from outside. The hidden modules change with it.

#[doc(hidden)]
pub mod analysis;
#[doc(hidden)]
pub mod factor;
#[doc(hidden)]
pub mod facts;
pub mod forms;
#[doc(hidden)]
pub mod graph;
#[doc(hidden)]
pub mod onnx;
#[doc(hidden)]
pub mod operators;
#[doc(hidden)]
pub mod pipeline;
#[doc(hidden)]
pub mod recognize;
#[doc(hidden)]
pub mod weights;

pub use analysis::{Analysis, SiteView};
pub use forms::{Absorbed, Decoupled, Expanded, Form, RankPlan};
pub use pipeline::error::RewriteError;
pub use pipeline::factorize::by_weights;
pub use pipeline::options::RewriteOptions;
pub use pipeline::{Inspection, Rewritten, inspect, rewrite};
