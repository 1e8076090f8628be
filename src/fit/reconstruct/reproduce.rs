//! Reproduction of attentions outside the model, verified by comparing outputs.

use std::collections::BTreeMap;

use gqa2mla_passes::analysis::observe::{ObservedLayer, Quantity};
use gqa2mla_passes::factor::reconstruct::{Attention, Rotary, Sequence, outputs};
use gqa2mla_passes::forms::CachedKeys;
use gqa2mla_passes::recognize::rotation::Rotated;

use crate::fit::calibrate::shown;
use crate::fit::reconstruct::sequence::sequence as recorded;
use crate::runtime::tensor::Tensor;

/// Scores below this are masked: exporters mask with -inf, the type's minimum or -10000.
const HIDDEN: f32 = -5000.0;
/// Largest relative root-mean-square difference of the outputs: fp16 models have rounding errors of 5e-4 in each
/// product.
const TOLERANCE: f64 = 1e-2;

/// The result of an attempt to reproduce an attention.
#[derive(Debug, Clone)]
pub enum Reproduced {
    /// This attention has the model's outputs.
    As(Box<Attention>),
    /// The attention cannot be reproduced, for this reason.
    Not(String),
}

/// Reproduces `layer` on a sequence of `length` tokens with the activations `seen`, from the keys that the form caches.
#[must_use]
pub fn reproduce(
    layer: &ObservedLayer,
    cached: CachedKeys,
    seen: &BTreeMap<String, Tensor>,
    length: usize,
) -> Reproduced {
    let site = &layer.site;
    let scores = shown(layer, seen, Quantity::FirstHeadScores, &[length, length]);
    let made = shown(
        layer,
        seen,
        Quantity::Output,
        &[site.heads, length, site.value.size],
    );
    if let Some(other) = layer.sharing.first() {
        let other = other.site.layer;
        return Reproduced::Not(format!("layer {other} reads its cache too"));
    }
    if cached == CachedKeys::Unrotated && !layer.outputs.contains_key(&Quantity::Unrotated) {
        return Reproduced::Not("its keys before rotation cannot be seen".to_owned());
    }
    let rows = recorded(layer, cached, seen, length);
    let (Ok(scores), Ok(made), Ok(sequence)) = (scores, made, rows) else {
        return Reproduced::Not("its scores or outputs cannot be seen".to_owned());
    };
    let Some(window) = window(&scores, length) else {
        return Reproduced::Not("its mask is not causal with a fixed window".to_owned());
    };
    let rotary = match rotary(layer, cached, seen, &sequence) {
        Ok(rotary) => rotary,
        Err(why) => return Reproduced::Not(why.to_owned()),
    };
    let Some(attention) = attention(layer, window, rotary) else {
        return Reproduced::Not(
            "something other than scaling, a soft-cap and masks happens to its scores".to_owned(),
        );
    };
    let off = difference(&attention, &sequence, &made);
    if off <= TOLERANCE {
        Reproduced::As(Box::new(attention))
    } else {
        Reproduced::Not(format!("its outputs come out {:.1}% off", 100.0 * off))
    }
}

/// The parameters of `layer` for the descent, with the given sliding window and rotation of rebuilt keys.
fn attention(
    layer: &ObservedLayer,
    window: Option<usize>,
    rotary: Option<Rotary>,
) -> Option<Attention> {
    let site = &layer.site;
    let scoring = layer.scoring?;
    Some(Attention {
        heads: site.heads,
        kv_heads: site.kv_heads,
        key_size: site.key.size,
        value_size: site.value.size,
        scale: scoring.scale * site.key.scale,
        value_scale: site.value.scale,
        softcap: scoring.softcap,
        window,
        rotary,
        rope: None,
        readers: layer.output_projection.as_ref().map(|w| w.dot(&w.t())),
    })
}

/// The rotation of the keys of `sequence`, if the form caches unrotated keys.
fn rotary(
    layer: &ObservedLayer,
    cached: CachedKeys,
    seen: &BTreeMap<String, Tensor>,
    sequence: &Sequence,
) -> Result<Option<Rotary>, &'static str> {
    if cached != CachedKeys::Unrotated || layer.rotated == Rotated::No {
        return Ok(None);
    }
    let unknown = "its keys are rotated in another way than by halves or neighbours";
    let scored = recorded(layer, CachedKeys::Rotated, seen, sequence.length);
    let scored = scored.map_err(|_| unknown)?.keys;
    let site = &layer.site;
    Rotary::between(&sequence.keys, &scored, site.kv_heads, site.key.size)
        .ok_or(unknown)
        .map(Some)
}

/// The sliding window of a causal mask: number of visible positions, the query's own included. `Some(None)`: no window;
/// `None`: the mask is not of this kind.
fn window(scores: &[f32], length: usize) -> Option<Option<usize>> {
    let visible = |query: usize, key: usize| {
        scores
            .get(query * length + key)
            .is_some_and(|s| *s > HIDDEN)
    };
    let last = length.checked_sub(1)?;
    let first = (0..length).find(|key| visible(last, *key))?;
    let window = (first > 0).then_some(length - first);
    for query in 0..length {
        let begin = window.map_or(0, |w| (query + 1).saturating_sub(w));
        for key in 0..length {
            if visible(query, key) != (key >= begin && key <= query) {
                return None;
            }
        }
    }
    Some(window)
}

/// Relative difference between the model's outputs `made` [H, T, dv] and the reproduced ones.
fn difference(attention: &Attention, sequence: &Sequence, made: &[f32]) -> f64 {
    let ours = outputs(attention, sequence);
    let (heads, size, length) = (attention.heads, attention.value_size, sequence.length);
    let (mut off, mut whole) = (0.0, 0.0);
    for head in 0..heads {
        for token in 0..length {
            let theirs = made
                .get((head * length + token) * size..)
                .unwrap_or_default();
            let ours = ours
                .get((token * heads + head) * size..)
                .unwrap_or_default();
            for (a, b) in theirs.iter().zip(ours).take(size) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                off += (a - b) * (a - b);
                whole += a * a;
            }
        }
    }
    if whole > 0.0 {
        (off / whole).sqrt()
    } else {
        off.sqrt()
    }
}
