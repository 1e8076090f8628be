//! Rewrites ONNX language models from grouped-query attention to multi-head latent attention.
//!
//! [`Model`] holds a model, [`Rewriter`] rewrites it, and what it gives explains itself as text:
//!
//! ```
//! let mut model = gqa2mla::Model::open("fixtures/optimum-llama/model.onnx")?;
//! let found = model.inspect()?;
//! assert_eq!(found.sites.len(), 2);
//! let done = gqa2mla::Rewriter::new().rank(16).run(&mut model)?;
//! println!("{}", done.explain());
//! let out = tempfile::tempdir()?;
//! model.save(out.path().join("model.onnx"))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`compress`] fits the factors to a text, searches for a size and measures what is lost; [`validate`] runs two models and
//! compares them. The hidden modules are what the command `gqa2mla` is made of besides, and change with it.

pub mod compress;
#[doc(hidden)]
pub mod files;
#[doc(hidden)]
pub mod fit;
#[doc(hidden)]
pub mod measure;
mod model;
#[doc(hidden)]
pub mod report;
mod rewriter;
#[doc(hidden)]
pub mod runtime;
#[doc(hidden)]
pub mod serving;
#[cfg(feature = "train")]
#[doc(hidden)]
pub mod tune;
pub mod validate;

/// The target forms, and what a form of one's own is made of.
pub mod forms {
    pub use gqa2mla_passes::analysis::SiteView;
    pub use gqa2mla_passes::analysis::identity::SiteId;
    pub use gqa2mla_passes::factor::{Factors, Made, Ranks};
    pub use gqa2mla_passes::forms::*;
    pub use gqa2mla_passes::graph::build::node;
    pub use gqa2mla_passes::graph::patch::Patch;
    pub use gqa2mla_passes::onnx::NodeProto;
    pub use gqa2mla_passes::recognize::site::{Cache, Side, Site};
}

/// What an attention operator of one's own is made of. The repository's `tests/toy_operator.rs` adds one.
///
/// ```
/// use gqa2mla::operators::{Operator, unsupported};
/// // An operator whose shapes are not known, and of which no node has a spelled-out form.
/// static PAGED: Operator = Operator::new("acme", "PagedAttention", |_, _, _| None, |_, node, _| {
///     Err(unsupported(node, "its cache is paged: export without that fusion"))
/// });
/// let rewriter = gqa2mla::Rewriter::new().operator(&PAGED);
/// ```
pub mod operators {
    pub use gqa2mla_passes::facts::{Fact, Facts, OutputFacts};
    pub use gqa2mla_passes::graph::{float_attribute, input_at, int_attribute, output_at};
    pub use gqa2mla_passes::onnx::NodeProto;
    pub use gqa2mla_passes::operators::{
        Core, Operator, Spell, Spelled, Speller, Target, unsupported,
    };
    pub use gqa2mla_passes::recognize::reject::Reason;
}

pub use gqa2mla_passes::{Inspection, RewriteError, Rewritten};
pub use model::Model;
pub use rewriter::Rewriter;
