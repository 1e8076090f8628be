//! The options of a rewrite, and the check whether a model can be rewritten with them.

use std::collections::{BTreeSet, HashMap};

use crate::analysis::Analysis;
use crate::analysis::identity::{CacheId, SiteId};
use crate::factor::{CacheBits, Ranks};
use crate::forms::{
    Absorbed, CachedKeys, Form, FormError, Join, OLDEST_OPSET, RankPlan, Rounds, in_place,
};
use crate::onnx::stored::Model;
use crate::operators::{Operators, Target};
use crate::pipeline::error::RewriteError;
use crate::recognize::site::Site;

/// The options of a rewrite.
#[derive(Debug, Clone)]
pub struct RewriteOptions<'f> {
    /// The ranks of all attentions.
    pub ranks: RankPlan,
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// How the rows of a step join the cache.
    pub join: Join,
    /// Rewrite what is recognised even where some attentions are not.
    pub allow_partial: bool,
    /// The target form.
    pub form: &'f dyn Form,
    /// Use the larger of the two ranks of each attention for both keys and values, as some serving stacks require.
    pub one_width: bool,
    /// Target context length in tokens: moments of rotated keys and queries are averaged over its positions. `None`:
    /// [`CONTEXT`].
    pub context: Option<usize>,
    /// The attentions to rewrite; `None`: all.
    pub only: Option<BTreeSet<SiteId>>,
    /// The supported attention operators.
    pub operators: Operators,
}

/// The default of [`RewriteOptions::context`].
pub const CONTEXT: usize = 4096;

impl Default for RewriteOptions<'_> {
    fn default() -> Self {
        Self {
            ranks: RankPlan::default(),
            bits: CacheBits::default(),
            join: Join::default(),
            allow_partial: false,
            form: &Absorbed,
            one_width: false,
            context: None,
            only: None,
            operators: Operators::default(),
        }
    }
}

impl RewriteOptions<'_> {
    /// The ranks of `site`, whose id is `id`.
    pub fn ranks_of(&self, id: &SiteId, site: &Site) -> Ranks {
        let ranks = self.form.ranks(&self.ranks, id, site);
        match self.one_width {
            true => Ranks::uniform(ranks.key.max(ranks.value)),
            false => ranks,
        }
    }

    /// The target context length.
    pub fn positions(&self) -> usize {
        self.context.unwrap_or(CONTEXT)
    }
}

/// Checks whether `model` can be rewritten with `options`.
///
/// # Errors
/// [`RewriteError`] with the layer, and what the user can do.
pub fn check(
    model: &Model,
    analysis: &Analysis,
    options: &RewriteOptions,
) -> Result<(), RewriteError> {
    if analysis.sites.is_empty() {
        return Err(RewriteError::Nothing(analysis.rejects.clone()));
    }
    if !analysis.rejects.is_empty() && !options.allow_partial {
        return Err(RewriteError::Partial {
            recognised: analysis.recognised(),
            rejects: analysis.rejects.clone(),
        });
    }
    let opset = model
        .proto
        .opset_import
        .iter()
        .find(|o| matches!(o.domain(), "" | "ai.onnx"))
        .map_or(0, |o| o.version());
    if opset < OLDEST_OPSET {
        return Err(RewriteError::Opset(opset));
    }
    if let RankPlan::Ratio(ratio) = options.ranks
        && !(ratio > 0.0 && ratio <= 1.0)
    {
        return Err(RewriteError::Ratio(ratio));
    }
    let mut rotations: HashMap<CacheId, Option<String>> = HashMap::new();
    analysis.visit(model, &mut |view| {
        let site = view.site();
        let ranks = options.ranks_of(view.id(), site);
        let full = options.form.largest_rank(site);
        for rank in [ranks.key, ranks.value] {
            if rank == 0 || rank > full {
                return Err(RewriteError::Rank {
                    rank,
                    layer: site.layer,
                    full,
                });
            }
        }
        let refused = |cause| RewriteError::form(site.layer, options.form, cause);
        check_bits(site, options).map_err(refused)?;
        options.form.check(view, ranks).map_err(refused)?;
        if options.join == Join::InPlace {
            in_place::check(view, options.form).map_err(refused)?;
        }
        if options.form.cached_keys() == CachedKeys::Unrotated {
            let own = view.rotation_fingerprint();
            let first = rotations
                .entry(view.placed.cache.clone())
                .or_insert(own.clone());
            if *first != own {
                let what = "the branches that share its cache rotate keys in different ways";
                return Err(refused(FormError::missing(what)));
            }
        }
        Ok(())
    })
}

/// Refuses a cache of integers where the form or the attention has no place for it.
fn check_bits(site: &Site, options: &RewriteOptions) -> Result<(), FormError> {
    let refused = |what: &str| Err(FormError::Refused(what.to_owned()));
    let form = options.form;
    match options.bits {
        CacheBits::Model if form.keeps_heads() => {
            refused("heads that are kept take fewer bytes in fewer bits alone: add --cache-bits 8")
        }
        CacheBits::Model => Ok(()),
        CacheBits::Six | CacheBits::Four if form.target() != Target::Gqa => refused(
            "integers of 4 bits are read by GroupQueryAttention alone: use the target gqa or --keep-heads, or --cache-bits 8",
        ),
        CacheBits::Six if form.keeps_heads() => refused(
            "second digits are those of a latent's first channels, and heads have no first ones: use --cache-bits 8 or 4, or leave out --keep-heads",
        ),
        _ if form.rounds() == Rounds::Never => refused(
            "it caches floating-point numbers: use the form absorbed, or leave out --cache-bits",
        ),
        _ if !site.is_cached() => {
            refused("it has no cache that could hold integers: export the model with a cache")
        }
        CacheBits::Eight | CacheBits::Six | CacheBits::Four => Ok(()),
    }
}
