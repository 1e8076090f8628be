//! Rewrites ONNX language models from grouped-query attention to multi-head latent attention.
//!
//! [`Model`] loads and saves a model, [`Rewriter`] rewrites it, and [`Rewritten`] describes the result as text:
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
//! [`compress`] fits factors to a text, searches for a rank and measures the loss; [`validate`] runs two models and
//! compares them. The hidden modules implement the command `gqa2mla` and change with it.

#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod cli;
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

/// The target forms, and the types with which callers define their own.
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

/// The types with which callers define their own attention operators. The repository's `tests/toy_operator.rs` is a
/// complete example.
///
/// ```
/// use gqa2mla::operators::{Operator, unsupported};
/// // An operator without shape inference, which is recognised and refused with a reason.
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
        Core, Lower, LoweredNode, Operator, Primitives, Target, unsupported,
    };
    pub use gqa2mla_passes::recognize::reject::Reason;
}

pub use gqa2mla_passes::{Inspection, RewriteError, Rewritten};
pub use model::Model;
pub use rewriter::Rewriter;
