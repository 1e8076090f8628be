//! Rewrites a model in memory.

use gqa2mla_passes::operators::Operator;
use gqa2mla_passes::{
    Form, RankPlan, RewriteError, RewriteOptions, Rewritten, by_weights, rewrite,
};

use crate::model::Model;

/// Rewrites models to latent attention, with factors from their weights alone. The default form is `absorbed`, at full
/// rank, where nothing is lost.
///
/// ```
/// let mut model = gqa2mla::Model::open("fixtures/optimum-llama")?;
/// let done = gqa2mla::Rewriter::new().rank(16).run(&mut model)?;
/// assert_eq!(done.sites[0].ranks.key, 16);
/// assert!(done.explain().contains("past_key_values.0.key"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `done.explain()` is made for snapshots: `insta::assert_snapshot!(done.explain())`.
#[derive(Debug, Clone, Default)]
pub struct Rewriter<'f> {
    options: RewriteOptions<'f>,
}

impl<'f> Rewriter<'f> {
    /// A rewriter that loses nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Rewrites to `form`: one of [`crate::forms::ALL`], or one of the caller's own.
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

    /// Gives the keys and the values of every attention a latent of `rank` numbers a token.
    #[must_use]
    pub fn rank(mut self, rank: usize) -> Self {
        self.options.ranks = RankPlan::Uniform(rank);
        self
    }

    /// Makes every cache this share of what it was, above 0 and at most 1.
    #[must_use]
    pub fn cache_ratio(mut self, ratio: f64) -> Self {
        self.options.ranks = RankPlan::Ratio(ratio);
        self
    }

    /// Rewrites what is recognised even where some attentions are not.
    #[must_use]
    pub fn allow_partial(mut self, allow: bool) -> Self {
        self.options.allow_partial = allow;
        self
    }

    /// Recognises `operator`, an attention operator of the caller's own, beside those of this library.
    ///
    /// [`crate::operators`] shows how one is written.
    #[must_use]
    pub fn operator(mut self, operator: &'static Operator) -> Self {
        self.options.operators = self.options.operators.with(operator);
        self
    }

    /// Rewrites `model` in place, all attentions or none.
    ///
    /// # Errors
    /// [`RewriteError`] with the layer, the node and the way out; the model is unchanged then.
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
