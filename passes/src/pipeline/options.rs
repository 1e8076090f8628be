//! The options of a rewrite.

use std::collections::BTreeSet;

use crate::analysis::identity::SiteId;
use crate::factor::{CacheBits, Ranks};
use crate::forms::{Absorbed, Form, Join, RankPlan};
use crate::operators::Operators;
use crate::recognize::site::Site;

/// The options of a rewrite.
#[derive(Debug, Clone)]
pub struct RewriteOptions<'f> {
    /// The ranks of all attentions.
    pub ranks: RankPlan,
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// How the new rows of a step are appended to the cache.
    pub join: Join,
    /// Give every query head its own block of the up-projections w_uk and w_uv, equal at first to that of its KV head:
    /// more factors to train, with the same cache.
    pub per_head: bool,
    /// Leave attentions that are not recognised, or cannot take the form, as they are, and rewrite the others.
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
            per_head: false,
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
