//! The target forms: what a recognised attention is rewritten to. A new form is one file, and
//! one line of the list below.
//!
//! A form checks an attention, says how wide its latents are, lays the factors out as initializers, and gives the patch
//! that puts its nodes in place of the exporter's. Shapes in names: B batch, T new tokens, P past tokens, S = P + T,
//! H query heads, G KV heads, d head size of queries and keys, dv of values, r latent rank, E hidden size; x is the merge
//! of the axes that are missing.

/// Declares the file of each form, and lists them.
macro_rules! forms {
    ($($file:ident::$form:ident,)*) => {
        $(
            mod $file;
            pub use $file::$form;
        )*

        /// Every form of this library, the default first.
        pub const ALL: &[&dyn Form] = &[$(&$form),*];
    };
}

forms! {
    absorbed::Absorbed,
    grouped_query::GroupedQuery,
    expanded::Expanded,
    latent_past::LatentPast,
    decoupled::Decoupled,
    kept::KeptHeads,
}

mod builder;
mod choice;
mod folded;
mod layout;
mod names;
mod ranks;
mod rotate;
mod rounded;
mod shapes;
mod tensors;

use std::error::Error;
use std::fmt;

use crate::analysis::SiteView;
use crate::analysis::identity::SiteId;
use crate::factor::{Made, NotLatent, Ranks};
use crate::facts::typed::Contradiction;
use crate::graph::patch::Patch;
use crate::onnx::TensorProto;
use crate::operators::Target;
use crate::recognize::site::Site;

pub use builder::Builder;
pub use layout::{Layout, latents};
pub use names::{Names, SiteNames};
pub use ranks::RankPlan;
pub use rounded::Rounds;
pub use tensors::{TensorRange, tensor};

/// The form of this library that makes attentions run as `target`: the first one in [`ALL`].
pub fn for_target(target: Target) -> Option<&'static dyn Form> {
    ALL.iter().copied().find(|form| form.target() == target)
}

/// The oldest opset whose operators the forms emit: `Unsqueeze` takes its axes as an input since 13.
pub const OLDEST_OPSET: i64 = 13;

/// Stores a new initializer and returns the tensor that stands for it in the graph: the same tensor, or a reference to
/// external data. One layer's factors can so leave memory before those of the next layer are computed.
pub type Store<'s> =
    dyn FnMut(TensorProto) -> Result<TensorProto, Box<dyn Error + Send + Sync>> + 's;

/// The keys that a form caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachedKeys {
    /// As the exporter caches them: after RoPE.
    Rotated,
    /// Before RoPE; the form rotates them when they are read.
    Unrotated,
}

/// A target form of attention with a latent cache.
///
/// The methods are called in their order here, for every attention of a model; only [`Form::check`],
/// [`Form::layout`] and [`Form::patch`] have to be written.
pub trait Form: Sync {
    /// The name that options and reports use.
    fn name(&self) -> &'static str;

    /// How attention operators are spelled out for this form.
    fn target(&self) -> Target {
        Target::MatMul
    }

    /// Which keys are cached; factors are computed from the statistics of these keys.
    fn cached_keys(&self) -> CachedKeys {
        CachedKeys::Rotated
    }

    /// Whether the rewritten model computes the same function at the full rank.
    fn is_exact_at_full_rank(&self) -> bool {
        true
    }

    /// How integers are cached, where they are asked for.
    fn rounds(&self) -> Rounds {
        Rounds::Never
    }

    /// Whether the new tokens of a step read each other's keys and values as the model has them, and not the latents that
    /// later steps read.
    fn reads_new_tokens_as_they_are(&self) -> bool {
        false
    }

    /// Whether the heads are cached as they are, and no latent of them: something is gained in fewer bits alone.
    fn keeps_heads(&self) -> bool {
        false
    }

    /// Ranks are multiples of this.
    fn rank_step(&self) -> usize {
        1
    }

    /// The largest rank of one side of `site`.
    fn largest_rank(&self, site: &Site) -> usize {
        site.full_rank()
    }

    /// The widths at which nothing of `site` is lost: the directions that its cached keys and values take, G*d and G*dv
    /// where they are free. Keys that are cached before rotation may be others than those that the exporter caches.
    fn full_ranks(&self, site: &Site) -> Ranks {
        Ranks {
            key: match self.cached_keys() {
                CachedKeys::Rotated => site.key.rank,
                CachedKeys::Unrotated => site.kv_heads * site.key.size,
            },
            value: site.value.rank,
        }
    }

    /// Whether latents of `ranks` lose something of `site`.
    fn loses(&self, ranks: Ranks, site: &Site) -> bool {
        let full = self.full_ranks(site);
        !self.is_exact_at_full_rank() || ranks.key < full.key || ranks.value < full.value
    }

    /// The latent widths of `site`, which `id` names in the plan.
    fn ranks(&self, plan: &RankPlan, id: &SiteId, site: &Site) -> Ranks {
        plan.ranks(id, site, self.full_ranks(site), self.rank_step())
    }

    /// Refuses an attention that cannot take this form with latents of `ranks`.
    ///
    /// # Errors
    /// [`FormError`] with what is missing and the way out.
    fn check(&self, view: &SiteView, ranks: Ranks) -> Result<(), FormError>;

    /// The initializers of one attention, under the names of `names`. Branches of an `If` that fill one cache
    /// share them.
    ///
    /// # Errors
    /// [`FormError`] where a factor does not fit the model's element type.
    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError>;

    /// The nodes of one attention in place of the exporter's. `layout` names the initializers, and `names` gives the names of new
    /// values.
    ///
    /// # Errors
    /// [`FormError`] where a node of the exporter cannot serve the latents.
    fn patch(
        &self,
        view: &SiteView,
        layout: &Layout,
        ranks: Ranks,
        names: &SiteNames,
    ) -> Result<Patch, FormError>;
}

impl fmt::Debug for dyn Form + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Forms are equal that have one name.
impl PartialEq for dyn Form + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

/// Why an attention does not take a form.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FormError {
    /// Something is missing; the text says what, and after a semicolon what to do.
    #[error("{0}")]
    Refused(String),
    /// A factor is out of the range of the model's element type.
    #[error(transparent)]
    Range(#[from] TensorRange),
    /// The factors are of another kind than the form needs.
    #[error(transparent)]
    Factors(#[from] NotLatent),
    /// The form contradicts the types or shapes of the graph; the model is unchanged.
    #[error("internal error, {0}")]
    Contradiction(#[from] Contradiction),
}

impl FormError {
    /// A refusal in words: what is missing; the way out is another form.
    pub fn missing(what: &str) -> Self {
        Self::Refused(format!("{what}; use the form absorbed"))
    }
}
