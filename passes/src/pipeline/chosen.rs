//! The selection of the attentions that a rewrite changes, and the reasons for the others.

use std::collections::{HashMap, HashSet};

use crate::analysis::identity::CacheId;
use crate::analysis::placed::{PlacedSite, Raising};
use crate::analysis::raise::hindrance;
use crate::analysis::{Analysis, SiteView};
use crate::factor::{CacheBits, Ranks};

use crate::forms::{
    ExactTokens, Form, FormError, Join, OLDEST_OPSET, RankPlan, Rounds, in_place, no_operator,
};
use crate::onnx::stored::Model;
use crate::operators::Target;
use crate::pipeline::error::RewriteError;
use crate::pipeline::options::RewriteOptions;
use crate::recognize::reject::{Reason, Reject};
use crate::recognize::site::{Dialect, Site};

/// The attentions that a rewrite changes. Branches that share a cache are all rewritten or all kept.
#[derive(Debug)]
pub struct Chosen {
    /// The caches of the attentions that are rewritten.
    pub caches: HashSet<CacheId>,
    /// The recognised attentions that cannot take the form and are kept.
    pub left: Vec<Reject>,
}

/// The reason why an attention cannot take the form; it applies to all attentions that share its cache.
struct Refused {
    cache: CacheId,
    layer: usize,
    cause: FormError,
}

/// Selects the attentions of `model` that a rewrite with `options` changes.
///
/// # Errors
/// [`RewriteError`] that names the layer and says what the user can do.
pub fn choose(
    model: &Model,
    analysis: &Analysis,
    options: &RewriteOptions,
) -> Result<Chosen, RewriteError> {
    check_model(model, analysis, options)?;
    let mut caches = asked_for(analysis, options);
    let mut rotations = HashMap::new();
    let mut refused: Vec<Refused> = Vec::new();
    analysis.visit::<RewriteError>(model, &mut |view| {
        if !caches.contains(&view.placed.cache) {
            return Ok(());
        }
        let ranks = options.ranks_of(view.id(), view.site());
        check_ranks(view.site(), ranks, options)?;
        if let Err(cause) = check_form(view, ranks, options, &mut rotations) {
            let layer = view.site().layer;
            if !options.allow_partial {
                return Err(RewriteError::form(layer, options.form, cause));
            }
            let cache = view.placed.cache.clone();
            refused.push(Refused {
                cache,
                layer,
                cause,
            });
        }
        Ok(())
    })?;
    for one in &refused {
        caches.remove(&one.cache);
    }
    let left = |placed: &PlacedSite| {
        let one = refused.iter().find(|one| one.cache == placed.cache)?;
        let reason = Reason::OtherForm {
            form: options.form.name().to_owned(),
            cause: one.cause.to_string(),
        };
        Some(placed.reject(&analysis.main, reason))
    };
    let left = analysis.sites.iter().filter_map(left).collect();
    match refused.into_iter().next() {
        Some(first) if caches.is_empty() => {
            Err(RewriteError::form(first.layer, options.form, first.cause))
        }
        _ => Ok(Chosen { caches, left }),
    }
}

/// The caches of the attentions that [`RewriteOptions::only`] lists, or of all.
fn asked_for(analysis: &Analysis, options: &RewriteOptions) -> HashSet<CacheId> {
    let only = options.only.as_ref();
    let named = |placed: &&PlacedSite| only.is_none_or(|only| only.contains(&placed.id));
    let sites = analysis.sites.iter().filter(named);
    sites.map(|placed| placed.cache.clone()).collect()
}

/// Refuses models and options for which no attention can be rewritten.
fn check_model(
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
    let mut imports = model.proto.opset_import.iter();
    let opset = imports
        .find(|o| matches!(o.domain(), "" | "ai.onnx"))
        .map_or(0, |o| o.version());
    if opset < OLDEST_OPSET {
        return Err(RewriteError::Opset(opset));
    }
    let hindered = analysis.outside.hinders_in_place();
    if let Some(reason) = hindered.filter(|_| options.join == Join::InPlace) {
        let cause = FormError::Refused(format!("{reason}: use --cache-io append"));
        return Err(RewriteError::form(0, options.form, cause));
    }
    match options.ranks {
        RankPlan::Ratio(ratio) if !(ratio > 0.0 && ratio <= 1.0) => Err(RewriteError::Ratio(ratio)),
        _ => Ok(()),
    }
}

fn check_ranks(site: &Site, ranks: Ranks, options: &RewriteOptions) -> Result<(), RewriteError> {
    let full = options.form.largest_rank(site);
    let reserved = options.form.numbers_beside_latent(site);
    if reserved > 0 && ranks.value == 0 {
        let cause = FormError::Refused(format!(
            "it caches {reserved} numbers of a token beside the latent, as many as the requested size or more: request more than {:.1}% of the original cache",
            100.0 * reserved as f64 / site.cached_numbers().max(1) as f64
        ));
        return Err(RewriteError::form(site.layer, options.form, cause));
    }
    let outside = |rank: &usize| *rank == 0 || *rank > full;
    match [ranks.key, ranks.value].into_iter().find(outside) {
        Some(rank) => Err(RewriteError::Rank {
            rank,
            layer: site.layer,
            full,
        }),
        None => Ok(()),
    }
}

/// Refuses an attention that cannot take the form. `rotations` holds the rotation of the keys of each cache in the
/// branches that have been checked before.
fn check_form(
    view: &SiteView,
    ranks: Ranks,
    options: &RewriteOptions,
    rotations: &mut HashMap<CacheId, Option<String>>,
) -> Result<(), FormError> {
    if let ([other, ..], false) = (
        view.sharing_layers().as_slice(),
        options.form.serves_several_readers(),
    ) {
        let what = format!("layer {other} reads its cache too, which this form cannot serve");
        let has_operator = view.site().dialect == Dialect::GROUPED_QUERY;
        return Err(match options.form.target() {
            _ if options.form.keeps_heads() => {
                FormError::Refused(format!("{what}: leave out --keep-heads"))
            }
            Target::Gqa if has_operator => {
                FormError::Refused(format!("{what}: use --new-tokens latent"))
            }
            _ => FormError::missing(&what),
        });
    }
    check_bits(view, options)?;
    if view.site().has_static_cache() && !options.form.writes_static_caches() {
        return Err(FormError::Refused(
            "its cache is static, a buffer from whose shape the form cannot tell which rows hold tokens; use the form absorbed with --new-tokens latent, the default"
                .to_owned(),
        ));
    }
    check_batch(view)?;
    check_constant_past(view, options.form)?;
    if let (Some((why, instead)), true) = (options.form.hinders_per_head(), options.per_head) {
        return Err(FormError::Refused(format!(
            "its query heads cannot have factors of their own: {why}; {instead}"
        )));
    }
    options.form.check(view, ranks)?;
    if options.join == Join::InPlace {
        in_place::check(view, options.form)?;
    }
    if options.form.cached_keys().are_unrotated() {
        let own = view.rotation_fingerprint();
        let cache = view.placed.cache.clone();
        let first = rotations.entry(cache).or_insert(own.clone());
        if *first != own {
            let what = "the branches that share its cache rotate keys in different ways";
            return Err(FormError::missing(what));
        }
    }
    Ok(())
}

/// Refuses the operator in place of products if every run has several new tokens, and not only one row: behind a past it
/// takes them in a batch of one alone.
fn check_batch(view: &SiteView) -> Result<(), FormError> {
    let new = view.facts.shape(&view.site().key.new).unwrap_or_default();
    let size = |axis: usize| new.get(axis).and_then(|size| size.as_i64());
    let several = size(2).is_some_and(|tokens| tokens > 1) && size(0) != Some(1);
    match view.placed.raising == Raising::Raised && several {
        true => Err(FormError::Refused(
            "every run has several new tokens, which GroupQueryAttention takes behind a past in a batch of one alone: use the target matmul"
                .to_owned(),
        )),
        false => Ok(()),
    }
}

/// Refuses a past of a constant number of rows if the form cannot tell which of its rows hold tokens.
fn check_constant_past(view: &SiteView, form: &dyn Form) -> Result<(), FormError> {
    let Some(rows) = view.constant_past() else {
        return Ok(());
    };
    let is_operator = view.site().dialect == Dialect::GROUPED_QUERY;
    let new = view.facts.shape(&view.site().key.new);
    let is_constant = new.and_then(|new| new.get(2)?.as_i64()).is_some();
    let reads_exactly = form.exact_tokens() != ExactTokens::None;
    let refused = |what: &str| {
        Err(FormError::Refused(format!(
            "its past has {rows} rows in every run, {what}"
        )))
    };
    match form.target() {
        Target::MatMul if is_operator => refused(
            "and its operator writes new rows behind those that hold a token, where products append them behind all: use --target gqa",
        ),
        Target::MatMul if is_constant && reads_exactly => {
            refused("and every run has the same number of new tokens: use --new-tokens latent")
        }
        _ if form.cached_keys().are_unrotated() => refused(
            "so that the position of a row, by which the form rotates keys, is not known: use the form absorbed",
        ),
        _ => Ok(()),
    }
}

/// Refuses integers if the form or the attention does not support them. Each way out names options that fit the others:
/// what the form excludes at any number of bits comes first, then what the attention excludes, then what the bits do.
fn check_bits(view: &SiteView, options: &RewriteOptions) -> Result<(), FormError> {
    let refused = |what: &str| Err(FormError::Refused(what.to_owned()));
    let (site, form, bits) = (view.site(), options.form, options.bits);
    let has_operator = site.dialect == Dialect::GROUPED_QUERY;
    let gains = view.placed.raising == Raising::Raised || !has_operator;
    let number = match bits {
        CacheBits::Model if form.rebases_heads() => {
            return refused(
                "heads in bases of their own are cached as integers: add --cache-bits 4",
            );
        }
        CacheBits::Model if form.keeps_heads() && !gains => {
            return refused(
                "heads that are kept take fewer bytes in fewer bits alone: add --cache-bits 8",
            );
        }
        CacheBits::Model => return Ok(()),
        CacheBits::Eight => 8,
        CacheBits::Six => 6,
        CacheBits::Four => 4,
    };
    if form.exact_tokens() == ExactTokens::Step {
        return refused(match bits {
            CacheBits::Eight => {
                "new tokens that are read as they are go with floating-point caches: leave out --new-tokens exact, or --cache-bits"
            }
            _ => {
                "new tokens that are read as they are go with floating-point caches: leave out --cache-bits"
            }
        });
    }
    if form.rounds() == Rounds::Never {
        return refused(match bits {
            CacheBits::Eight => {
                "it caches floating-point numbers: use the form absorbed, or leave out --cache-bits"
            }
            _ => "it caches floating-point numbers: leave out --cache-bits",
        });
    }
    if !site.is_cached() {
        return refused("it has no cache that could hold integers: export the model with a cache");
    }
    if bits == CacheBits::Eight {
        return Ok(());
    }
    let alone = format!("integers of {number} bits are read by GroupQueryAttention alone");
    match (bits, form.target()) {
        _ if form.keeps_heads() && !form.rebases_heads() => Err(FormError::Refused(format!(
            "{number} bits need heads in bases of their own: use the form rebased"
        ))),
        _ if form.keeps_heads() && !has_operator => Err(FormError::Refused(format!(
            "{}: leave out --keep-heads, and use --cache-bits 8",
            no_operator(view)
        ))),
        (CacheBits::Six, _) if form.keeps_heads() && bits.second_digits(site.key.size) == 0 => {
            Err(FormError::Refused(format!(
                "its heads of {} channels are too narrow for 6 bits, which need 16: use --cache-bits 8 or 4",
                site.key.size
            )))
        }
        (_, Target::Gqa) if has_operator => Ok(()),
        (_, Target::Gqa) => Err(FormError::Refused(format!(
            "{}: use --cache-bits 8 with the target matmul",
            no_operator(view)
        ))),
        (_, Target::MatMul) if form.cached_keys().are_unrotated() => {
            Err(FormError::Refused(format!("{alone}: use --cache-bits 8")))
        }
        (_, Target::MatMul) if !has_operator && hindrance(view).is_some() => {
            Err(FormError::Refused(format!(
                "{alone}, and it is written as {}: use --cache-bits 8 with the target matmul",
                site.dialect.name()
            )))
        }
        (_, Target::MatMul) => Err(FormError::Refused(format!(
            "{alone}: use the target gqa, or --cache-bits 8"
        ))),
    }
}
