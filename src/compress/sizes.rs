//! The rows of a comparison, planned before anything is measured: what can be rewritten, and with which ranks.

use gqa2mla_passes::factor::{CacheBits, Ranks};
use gqa2mla_passes::forms::GroupedQuery;
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::pipeline::Planned;
use gqa2mla_passes::{Absorbed, Analysis, Form, RankPlan, RewriteOptions};

use crate::compress::compressor::{analysis, planned};
use crate::compress::convert::ConvertError;
use crate::compress::error::CompressError;
use crate::compress::prepared::check_recorded;
use crate::compress::way::Way;
use crate::files::load::LoadedModel;

/// One row to measure.
pub(super) struct Size<'s> {
    /// The method.
    pub way: Way,
    /// Cached elements as a share of those of the original.
    pub ratio: f64,
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// The options of its rewrite.
    pub options: RewriteOptions<'s>,
    /// The ranks of all attentions.
    ranks: Vec<Ranks>,
}

impl Size<'_> {
    /// The largest rank of all attentions.
    pub fn rank(&self) -> usize {
        let ranks = self.ranks.iter().map(|ranks| ranks.key.max(ranks.value));
        ranks.max().unwrap_or_default()
    }
}

/// A method that cannot be applied to the model at one size, for example because it needs an operator that the model
/// does not have.
#[derive(Debug)]
pub struct LeftOut {
    /// The method.
    pub way: Way,
    /// Cached elements as a share of those of the original.
    pub ratio: f64,
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// The reason.
    pub cause: ConvertError,
}

/// A method at a size whose rank differs from the requested share, because its form takes only multiples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounded {
    /// The method.
    pub way: Way,
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// The requested share.
    pub ratio: f64,
    /// The rank of that share.
    pub asked: usize,
    /// The rank of the row.
    pub rank: usize,
    /// The number of which the rank is a multiple.
    pub step: usize,
}

/// The analyses of a model: with operators expanded into primitives, and with the operators kept that support integers.
pub(super) struct Analyses {
    /// With operators expanded.
    pub spelled: Analysis,
    fused: Analysis,
}

impl Analyses {
    /// Analyses `model` for all methods.
    ///
    /// # Errors
    /// [`CompressError`] if it is malformed.
    pub fn of(model: &LoadedModel) -> Result<Self, CompressError> {
        let analysis_of = |form: &'static dyn Form| {
            let options = RewriteOptions {
                form,
                ..RewriteOptions::default()
            };
            analysis(model, &options)
        };
        Ok(Self {
            spelled: analysis_of(&Absorbed)?,
            fused: analysis_of(&GroupedQuery)?,
        })
    }

    /// The analysis for rewrites to `form`.
    pub fn for_form(&self, form: &dyn Form) -> &Analysis {
        match form.target() {
            Target::Gqa => &self.fused,
            Target::MatMul => &self.spelled,
        }
    }
}

/// The planned rows of a comparison.
#[derive(Default)]
pub(super) struct Sizes<'s> {
    /// The rows to measure, in order. Ratios of equal ranks are one row.
    pub rows: Vec<Size<'s>>,
    /// The sizes whose ranks are not the requested ones.
    pub rounded: Vec<Rounded>,
    /// The methods that cannot be applied to the model.
    pub left_out: Vec<LeftOut>,
}

impl Sizes<'_> {
    /// Plans the rows of `ways`, each with its ratio and bits, for contexts of `positions` tokens.
    ///
    /// # Errors
    /// [`CompressError`], but for methods that cannot be applied to the model.
    pub fn plan(
        model: &LoadedModel,
        analyses: &Analyses,
        positions: usize,
        ways: impl Iterator<Item = (Way, f64, CacheBits)>,
    ) -> Result<Self, CompressError> {
        let mut sizes = Self::default();
        for (way, ratio, bits) in ways {
            let form = way.form(bits);
            let options = RewriteOptions {
                ranks: match form.keeps_heads() {
                    true => RankPlan::Full,
                    false => RankPlan::Ratio(ratio),
                },
                bits,
                form,
                context: Some(positions),
                ..RewriteOptions::default()
            };
            let found = planned(model, analyses.for_form(form), &options);
            let found = found.and_then(|found| {
                check_recorded(model, &found, &options)?;
                Ok(found)
            });
            let found = match found {
                Ok(found) => found,
                Err(CompressError::Convert(cause)) => {
                    sizes.left_out.push(LeftOut {
                        way,
                        ratio,
                        bits,
                        cause,
                    });
                    continue;
                }
                Err(other) => return Err(other),
            };
            let size = Size {
                way,
                ratio,
                bits,
                ranks: found.iter().map(|one| one.ranks).collect(),
                options,
            };
            sizes.rounded.extend(rounded(&size, &found));
            let is_same =
                |known: &Size| (known.way, known.bits, &known.ranks) == (way, bits, &size.ranks);
            if !sizes.rows.iter().any(is_same) {
                sizes.rows.push(size);
            }
        }
        Ok(sizes)
    }
}

/// Whether the rank of `size` was rounded to a multiple that its form takes.
fn rounded(size: &Size, planned: &[Planned]) -> Option<Rounded> {
    let (form, plan) = (size.options.form, &size.options.ranks);
    let step = form.rank_step();
    if step == 1 || *plan == RankPlan::Full {
        return None;
    }
    let exact = planned.iter().map(|one| {
        let ranks = plan.ranks(&one.id, &one.site, form.full_ranks(&one.site), 1);
        ranks.key.max(ranks.value)
    });
    let (asked, rank) = (exact.max()?, size.rank());
    (asked != rank).then_some(Rounded {
        way: size.way,
        bits: size.bits,
        ratio: size.ratio,
        asked,
        rank,
        step,
    })
}
