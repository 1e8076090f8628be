//! The rewriter of the library's interface.

use gqa2mla_passes::operators::Operator;
use gqa2mla_passes::{
    Form, RankPlan, RewriteError, RewriteOptions, Rewritten, by_weights, rewrite,
};

use crate::model::Model;

/// Rewrites models to latent attention, with factors computed from their weights. The default is the form `absorbed` at
/// full rank, which is exact.
///
/// ```
/// let mut model = gqa2mla::Model::open("fixtures/optimum-llama")?;
/// let done = gqa2mla::Rewriter::new().rank(16).run(&mut model)?;
/// assert_eq!(done.sites[0].ranks.key, 16);
/// assert!(done.explain().contains("past_key_values.0.key"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The text of `done.explain()` is suitable for snapshots: `insta::assert_snapshot!(done.explain())`.
#[derive(Debug, Clone, Default)]
pub struct Rewriter<'f> {
    options: RewriteOptions<'f>,
}

impl<'f> Rewriter<'f> {
    /// A rewriter with the default options: an exact rewrite.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the target form: one of [`crate::forms::ALL`], or the caller's own.
    ///
    /// ```
    /// use gqa2mla::forms::Expanded;
    /// let mut model = gqa2mla::Model::open("fixtures/optimum-llama")?;
    /// let done = gqa2mla::Rewriter::new().form(&Expanded).run(&mut model)?;
    /// assert!(done.explain().contains("form expanded"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn form(mut self, form: &'f dyn Form) -> Self {
        self.options.form = form;
        self
    }

    /// Sets the rank of the keys and of the values of every attention: the size of each latent per token.
    #[must_use]
    pub fn rank(mut self, rank: usize) -> Self {
        self.options.ranks = RankPlan::Uniform(rank);
        self
    }

    /// Sets the size of every cache as a share of its original size, above 0 and at most 1.
    #[must_use]
    pub fn cache_ratio(mut self, ratio: f64) -> Self {
        self.options.ranks = RankPlan::Ratio(ratio);
        self
    }

    /// Gives every query head its own up-projections: more factors to train, with the same cache.
    #[must_use]
    pub fn per_head(mut self, own: bool) -> Self {
        self.options.per_head = own;
        self
    }

    /// Rewrites the recognised attentions even if others are not recognised.
    #[must_use]
    pub fn allow_partial(mut self, allow: bool) -> Self {
        self.options.allow_partial = allow;
        self
    }

    /// Adds support for `operator`, the caller's own attention operator.
    ///
    /// [`crate::operators`] shows how to define one.
    #[must_use]
    pub fn operator(mut self, operator: &'static Operator) -> Self {
        self.options.operators = self.options.operators.with(operator);
        self
    }

    /// Rewrites `model` in place, all attentions or none.
    ///
    /// # Errors
    /// [`RewriteError`] with the layer, the node, and what the user can do. The model is unchanged then.
    pub fn run(&self, model: &mut Model) -> Result<Rewritten, RewriteError> {
        rewrite(
            &mut model.loaded.model,
            &self.options,
            &mut by_weights,
            &mut |tensor| Ok(tensor),
            &mut |_, _| {},
        )
    }
}
