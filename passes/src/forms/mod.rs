//! The target forms, to which a recognised attention can be rewritten. To add a form, add a file and a line to the list
//! below.
//!
//! A form checks an attention, chooses its ranks, stores its factors as initializers, and makes the patch that replaces
//! the exporter's nodes. Shape suffixes of names: B batch, T new tokens, P past tokens, S = P + T, H query heads, G KV
//! heads, s = H / G, d head size (that of values in the names of values and outputs), r latent rank, E hidden size; x is
//! a merged axis of those that are missing, and a digit a constant size.

/// Declares the module of each form, and lists the forms.
macro_rules! forms {
    ($($file:ident: $($form:ident)+,)*) => {
        $(
            mod $file;
            pub use $file::{$($form),+};
        )*

        /// Every form of this library, the default first.
        pub const ALL: &[&dyn Form] = &[$($(&$form),+),*];
    };
}

forms! {
    absorbed: Absorbed,
    grouped_query: GroupedQuery,
    expanded: Expanded,
    joint: Joint,
    latent_past: LatentPast,
    decoupled: Decoupled,
    kept: KeptHeads,
    rebased: RebasedHeads,
    prompt: GROUPED_PROMPT KEPT_PROMPT REBASED_PROMPT,
    absorbed_prompt: AbsorbedPrompt,
}

mod builder;
mod choice;
mod folded;
mod guard;
pub(crate) mod in_place;
pub mod join;
mod layout;
mod names;
mod operator_form;
mod past;
mod ranks;
mod rotate;
mod rounded;
mod shapes;
mod tensors;
mod tokens;
mod unsigned;
mod up;

use std::error::Error;
use std::fmt;

use crate::analysis::SiteView;
use crate::analysis::identity::SiteId;
use crate::factor::{CacheBits, Made, NotLatent, Ranks};
use crate::facts::typed::Contradiction;
use crate::graph::patch::Patch;
use crate::onnx::TensorProto;
use crate::operators::Target;
use crate::recognize::site::Site;

pub use builder::Builder;
pub use grouped_query::no_operator;
pub use join::Join;
pub use layout::{Layout, latents};
pub use names::{Names, SiteNames};
pub use ranks::RankPlan;
pub use rounded::Rounds;
pub use tensors::{TensorRange, tensor};
/// The oldest opset whose operators the forms emit: `Unsqueeze` takes its axes as an input since 13.
pub const OLDEST_OPSET: i64 = 13;

/// Stores a new initializer and returns the tensor to put into the graph: the same tensor, or a reference to external
/// data. With external data, the factors of one layer are freed before those of the next are computed.
pub type Store<'s> =
    dyn FnMut(TensorProto) -> Result<TensorProto, Box<dyn Error + Send + Sync>> + 's;

/// The keys that a form caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachedKeys {
    /// Keys after RoPE, as in the exporter's cache.
    Rotated,
    /// Keys before RoPE; the form rotates them when they are read.
    Unrotated,
    /// Keys before RoPE, in one latent with the values.
    WithValues,
}

impl CachedKeys {
    /// Whether they are keys before RoPE.
    #[must_use]
    pub fn are_unrotated(self) -> bool {
        self != Self::Rotated
    }
}

/// Why an option cannot be used with a form, and what to do instead.
pub type Hindrance = (&'static str, &'static str);

/// The steps whose new tokens read each other's exact keys and values. Every token enters the cache as a latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExactTokens {
    /// None: latents are read everywhere.
    None,
    /// The first step, which fills an empty cache.
    Prompt,
    /// Every step.
    Step,
}

/// A target form of attention with a latent cache.
///
/// The methods are called in the order in which they are declared, for every attention of a model. Only [`Form::name`],
/// [`Form::check`], [`Form::layout`] and [`Form::patch`] have no default.
pub trait Form: Sync {
    /// The name in options and reports.
    fn name(&self) -> &'static str;

    /// The operators that rewritten attentions consist of; fused operators are expanded accordingly.
    fn target(&self) -> Target {
        Target::MatMul
    }

    /// Which keys are cached; factors are computed from the statistics of these keys.
    fn cached_keys(&self) -> CachedKeys {
        CachedKeys::Rotated
    }

    /// Whether the rewritten model computes the same function at full rank.
    fn is_exact_at_full_rank(&self) -> bool {
        true
    }

    /// Whether its factors can be fitted layer by layer to the outputs of the original's attention.
    fn is_reconstructed(&self) -> bool {
        self.is_exact_at_full_rank()
    }

    /// How the form caches integers, if they are requested.
    fn rounds(&self) -> Rounds {
        Rounds::Never
    }

    /// Which new tokens of a step read each other's exact keys and values, instead of the latents that later steps read.
    fn exact_tokens(&self) -> ExactTokens {
        ExactTokens::None
    }

    /// Whether the KV heads are cached without a latent. The cache then only becomes smaller by fewer bits.
    fn keeps_heads(&self) -> bool {
        false
    }

    /// Whether every KV head that is kept is cached in a basis of its own, in which rounding costs least.
    fn rebases_heads(&self) -> bool {
        false
    }

    /// Number of heads that the cache of `site` has: G if they are kept, 1 for a latent.
    fn cached_heads(&self, site: &Site) -> usize {
        match self.keeps_heads() {
            true => site.kv_heads,
            false => 1,
        }
    }

    /// Number of elements that are cached for each token of `site`, of keys and values with `ranks` in `bits`; one element
    /// holds two 4-bit integers.
    fn cached_elements(&self, bits: CacheBits, ranks: Ranks, site: &Site) -> usize {
        let heads = self.cached_heads(site).max(1);
        let sides = [ranks.key, ranks.value].into_iter();
        sides.map(|rank| heads * bits.elements(rank / heads)).sum()
    }

    /// Whether several attentions can read one cache of this form: what its patch puts in place of the cache is the same for
    /// each of them.
    fn serves_several_readers(&self) -> bool {
        false
    }

    /// Whether the form puts latents into static caches, whose rows the exporter's graph writes into a buffer: its products
    /// read the cache as a whole, and no position or length from it.
    fn writes_static_caches(&self) -> bool {
        false
    }

    /// Why caches of this form cannot be written in place ([`Join::InPlace`]); `None` if the form appends with
    /// [`Builder::join`].
    fn hinders_in_place(&self) -> Option<Hindrance> {
        Some(match self.target() {
            Target::Gqa => (
                "GroupQueryAttention does that itself where past and present are one buffer",
                "leave out --cache-io",
            ),
            Target::MatMul => (
                "its form joins it in a way of its own",
                "use --cache-io append",
            ),
        })
    }

    /// Why query heads cannot have factors of their own ([`RewriteOptions::per_head`]); `None` if the form reads the number
    /// of blocks of w_uk and w_uv from its [`Layout`].
    ///
    /// [`RewriteOptions::per_head`]: crate::RewriteOptions::per_head
    fn hinders_per_head(&self) -> Option<Hindrance> {
        Some((
            "its factors have one block for each KV head",
            "leave out --per-head",
        ))
    }

    /// Ranks are multiples of this.
    fn rank_step(&self) -> usize {
        1
    }

    /// Numbers that are cached for each token beside the latents and count as part of the requested size.
    fn numbers_beside_latent(&self, _: &Site) -> usize {
        0
    }

    /// The largest rank that `site` can have.
    fn largest_rank(&self, site: &Site) -> usize {
        site.full_rank()
    }

    /// The ranks at which the rewrite of `site` is exact: the ranks of its cached keys and values
    /// ([`Side::rank`](crate::recognize::site::Side::rank)), which are G*d and G*dv unless channels are redundant. If
    /// keys are cached before rotation, or the heads are kept, redundant channels are not used.
    fn full_ranks(&self, site: &Site) -> Ranks {
        let channels = Ranks {
            key: site.kv_heads * site.key.size,
            value: site.kv_heads * site.value.size,
        };
        Ranks {
            key: match self.cached_keys() {
                CachedKeys::Rotated if !self.keeps_heads() => site.key.rank,
                _ => channels.key,
            },
            value: match self.keeps_heads() {
                true => channels.value,
                false => site.value.rank,
            },
        }
    }

    /// Whether latents of `ranks` are an approximation for `site`.
    fn loses(&self, ranks: Ranks, site: &Site) -> bool {
        let full = self.full_ranks(site);
        !self.is_exact_at_full_rank() || ranks.key < full.key || ranks.value < full.value
    }

    /// The ranks of `site`, whose id is `id`, according to `plan`.
    fn ranks(&self, plan: &RankPlan, id: &SiteId, site: &Site) -> Ranks {
        plan.ranks(id, site, self.full_ranks(site), self.rank_step())
    }

    /// Checks whether an attention can be rewritten to this form with `ranks`.
    ///
    /// # Errors
    /// [`FormError`] with the reason, and what the user can do.
    fn check(&self, view: &SiteView, ranks: Ranks) -> Result<(), FormError>;

    /// The initializers of one attention, named by `names`. Branches of an `If` that fill the same cache share them.
    ///
    /// # Errors
    /// [`FormError`] if a factor is out of the range of the model's element type.
    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError>;

    /// The patch that replaces the exporter's nodes of one attention. `layout` has the initializers, `names` the names
    /// of new values.
    ///
    /// # Errors
    /// [`FormError`] if a node of the exporter cannot be applied to latents.
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

/// Forms with equal names are equal.
impl PartialEq for dyn Form + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

/// Why an attention cannot be rewritten to a form.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FormError {
    /// A requirement is not met. The text says which one and, after a semicolon, what to do.
    #[error("{0}")]
    Refused(String),
    /// A factor is out of the range of the model's element type.
    #[error(transparent)]
    Range(#[from] TensorRange),
    /// The factors are those of another form.
    #[error(transparent)]
    Factors(#[from] NotLatent),
    /// The patch contradicts the types or shapes of the graph. The model is unchanged.
    #[error("internal error, {0}")]
    Contradiction(#[from] Contradiction),
}

impl FormError {
    /// A refusal with the reason `what`, which recommends the form `absorbed`.
    pub fn missing(what: &str) -> Self {
        Self::Refused(format!("{what}; use the form absorbed"))
    }
}
