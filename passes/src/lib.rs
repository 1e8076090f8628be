//! The core of `gqa2mla`: a pure function from graph to graph, without files, runtimes or printing.
//!
//! Data flows in one direction: ONNX messages, graph index, inferred facts, recognised sites, factors, patches,
//! rewritten messages. [`inspect`] returns the sites; [`rewrite`] does all steps. Most programs use the crate
//! `gqa2mla`, which opens and saves models; its documentation shows how to add a form or an attention operator. The
//! hidden modules are its implementation and change with it.

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
pub mod numbers;
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
pub use forms::{Absorbed, Decoupled, Expanded, Form, Joint, LatentPast, RankPlan};
pub use pipeline::error::RewriteError;
pub use pipeline::factorize::by_weights;
pub use pipeline::options::RewriteOptions;
pub use pipeline::{Inspection, Rewritten, inspect, rewrite};
