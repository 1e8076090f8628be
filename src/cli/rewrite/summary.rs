//! The summary of a rewrite, as text and as JSON.

use std::collections::{BTreeSet, HashSet};

use gqa2mla_passes::forms::Join;
use gqa2mla_passes::operators::checks_row_lengths;
use gqa2mla_passes::pipeline::patches::RewrittenSite;
use gqa2mla_passes::recognize::site::{Side, Site};
use serde_json::{Value, json};

use crate::cli::inspect::{bytes, rejects_json};
use crate::compress::convert::Staged;
use crate::compress::run::is_lossy;
use crate::report::{counted, grouped};

/// The heads of `sites`, as `H=8 G=2 d=16`; sizes that differ as their range.
pub fn heads<'s>(sites: impl Iterator<Item = &'s Site>) -> String {
    let sites: Vec<&Site> = sites.collect();
    let range = |of: fn(&Site) -> usize| {
        let sizes = || sites.iter().map(|site| of(site));
        match (sizes().min(), sizes().max()) {
            (Some(low), Some(high)) if low != high => format!("{low} to {high}"),
            (low, _) => low.unwrap_or(0).to_string(),
        }
    };
    format!(
        "H={} G={} d={}",
        range(|s| s.heads),
        range(|s| s.kv_heads),
        range(|s| s.key.size)
    )
}

/// The summary of the rewrite of one model.
pub struct Summary {
    target: &'static str,
    sites: usize,
    rejects: Vec<Value>,
    not_rewritten: usize,
    heads: String,
    ranks: (usize, usize),
    bits: Option<u32>,
    join: Join,
    /// Whether the rows of a batch must be of one length, where the operator of the original allowed others.
    rows_of_one_length: bool,
    /// Whether `GroupQueryAttention` has taken the place of products.
    raised: bool,
    /// Whether the heads are cached without a latent.
    keeps_heads: bool,
    cached: bool,
    before: u64,
    /// Bytes per token of the caches after the rewrite.
    pub after: u64,
    predicted: (f64, f64),
    layers: Vec<Value>,
    /// Lossless ranks below the number of channels, with the reasons.
    lossless: Vec<String>,
    predictable: bool,
    /// Whether the model is an approximation.
    pub lossy: bool,
}

impl Summary {
    /// Summarizes the rewrite that made `staged`, whose target is `target`.
    pub fn of(staged: &Staged, target: &'static str) -> Self {
        let rewritten = &staged.rewritten;
        let graph = staged.model.model.proto.graph.as_ref();
        let mut nodes = graph.iter().flat_map(|graph| &graph.node);
        let mut seen = BTreeSet::new();
        // Sites in the branches of an `If` are one layer.
        let sites = rewritten.sites.iter();
        let sites: Vec<&RewrittenSite> = sites.filter(|s| seen.insert(s.site.layer)).collect();
        let refused: BTreeSet<usize> = rewritten.rejects.iter().map(|r| r.layer).collect();
        let ranks = sites.iter().flat_map(|s| [s.ranks.key, s.ranks.value]);
        let worst = |of: fn(&RewrittenSite) -> Option<f64>| {
            sites.iter().filter_map(|s| of(s)).fold(0.0, f64::max)
        };
        let cached = || sites.iter().filter(|s| s.site.has_own_cache());
        Self {
            target,
            sites: sites.len(),
            rejects: rejects_json(&rewritten.rejects),
            not_rewritten: refused.len(),
            heads: heads(sites.iter().map(|s| &s.site)),
            ranks: (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)),
            bits: sites.iter().find_map(|s| s.bits.number()),
            join: rewritten.join,
            rows_of_one_length: nodes.any(checks_row_lengths),
            raised: sites.iter().any(|s| s.raised),
            keeps_heads: sites.iter().any(|s| s.keeps_heads),
            cached: sites.iter().any(|s| s.site.is_cached()),
            before: cached()
                .map(|s| bytes(s.site.cached_type, s.site.cached_numbers()))
                .sum(),
            after: cached()
                .map(|s| bytes(s.cached_type, s.cached_elements))
                .sum(),
            layers: sites.iter().map(|s| layer_json(s)).collect(),
            lossless: lossless(&sites),
            predictable: sites.iter().all(|s| s.key.loss.is_some()),
            predicted: (worst(|s| s.key.loss), worst(|s| s.value.loss)),
            lossy: is_lossy(&rewritten.sites),
        }
    }

    /// The first lines of the text output for a model.
    pub fn text(&self) -> String {
        let rank = match self.ranks {
            _ if self.keeps_heads => "heads kept".to_owned(),
            (low, high) if low == high => format!("rank {low}"),
            (low, high) => format!("ranks {low} to {high}"),
        };
        let bits = match self.bits {
            Some(bits) => format!(", {bits} bits a cached number"),
            None => String::new(),
        };
        let kind = if self.lossy {
            "an approximation"
        } else {
            "exact"
        };
        let mut text = format!(
            "{} rewritten ({}), {rank}{bits}, target {}: {kind}\n",
            counted(self.sites, "attention"),
            self.heads,
            self.target
        );
        for line in &self.lossless {
            text.push_str(line);
            text.push('\n');
        }
        match self.cached {
            true => text.push_str(&format!(
                "cache: {} -> {} bytes a token ({:.1}%)\n",
                grouped(self.before),
                grouped(self.after),
                100.0 * self.after as f64 / self.before.max(1) as f64
            )),
            false => {
                text.push_str("no cache in this export, so none shrinks; the latent is internal\n")
            }
        }
        if self.join == Join::InPlace {
            text.push_str(
                "written in place: past inputs have room for the new tokens, and presents have their shape; bind both to one buffer (docs/serving.md)\n",
            );
        }
        if self.rows_of_one_length {
            text.push_str(
                "note: every row of a batch must have the same length, without padding; --target gqa keeps the operator that allows others (docs/serving.md)\n",
            );
        }
        if self.raised {
            text.push_str(
                "note: GroupQueryAttention takes the place of products; it continues several sequences by one token at a time (docs/method.md)\n",
            );
        }
        let foretells = self.predictable && self.predicted != (0.0, 0.0);
        if self.lossy && foretells {
            let aside = match self.bits {
                Some(_) => ", without rounding",
                None => "",
            };
            text.push_str(&format!(
                "predicted loss of the worst layer{aside}: {:.1}% of the keys' second moment, {:.1}% of the values'\n",
                100.0 * self.predicted.0,
                100.0 * self.predicted.1
            ));
        }
        if self.not_rewritten > 0 {
            text.push_str(&format!(
                "left as before: {}\n",
                counted(self.not_rewritten, "attention")
            ));
            let mut told = BTreeSet::new();
            for reject in self
                .rejects
                .iter()
                .filter(|r| told.insert(r["layer"].as_u64()))
            {
                text.push_str(&format!("  layer {}: ", reject["layer"]));
                text.push_str(reject["reason"].as_str().unwrap_or_default());
                text.push('\n');
            }
        }
        text
    }

    /// The summary as JSON, with details of each layer.
    pub fn json(&self) -> Value {
        json!({
            "rewritten": self.sites, "target": self.target, "not_rewritten": self.not_rewritten, "rejects": self.rejects, "exact": !self.lossy,
            "cache_bits": self.bits, "cache_io": self.join.name(), "rows_of_one_length": self.rows_of_one_length, "raised": self.raised, "keeps_heads": self.keeps_heads, "rank_min": self.ranks.0, "rank_max": self.ranks.1,
            "cache_bytes_per_token_before": self.before, "cache_bytes_per_token_after": self.after,
            "layers": self.layers,
            "predicted_key_loss": self.predicted.0, "predicted_value_loss": self.predicted.1,
        })
    }
}

/// The lines about lossless ranks below the number of channels. Keys and values, and layers, with equal text share one
/// line.
fn lossless(sites: &[&RewrittenSite]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for done in sites {
        let of = |side: &Side, rank: usize, full: usize| {
            let reason = side
                .fewer
                .filter(|_| rank >= full && full <= side.rank)?
                .reason();
            let channels = done.site.kv_heads * side.size;
            Some(format!(
                "rank {} of {channels} loses nothing: {reason}",
                side.rank
            ))
        };
        let key = of(&done.site.key, done.ranks.key, done.full.key);
        let value = of(&done.site.value, done.ranks.value, done.full.value);
        let told = match (key, value) {
            (Some(key), Some(value)) if key == value => vec![key],
            (key, value) => {
                let key = key.map(|line| format!("keys: {line}"));
                let value = value.map(|line| format!("values: {line}"));
                key.into_iter().chain(value).collect()
            }
        };
        lines.extend(told);
    }
    let mut seen = HashSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    lines
}

fn layer_json(done: &RewrittenSite) -> Value {
    json!({
        "layer": done.site.layer, "id": done.id.as_str(), "name": done.site.name, "dialect": done.site.dialect.name(),
        "heads": done.site.heads, "kv_heads": done.site.kv_heads, "head_size": done.site.key.size, "key_rank": done.ranks.key, "value_rank": done.ranks.value,
        "lossless_key_rank": done.full.key, "lossless_value_rank": done.full.value,
        "shares_cache_of_layer": done.site.shares,
        "predicted_key_loss": done.key.loss, "predicted_value_loss": done.value.loss,
    })
}
