//! The metadata entry of approximated models.

use gqa2mla_passes::forms::ExactTokens;
use gqa2mla_passes::onnx::StringStringEntryProto;
use gqa2mla_passes::{RankPlan, RewriteOptions, Rewritten};
use serde_json::json;

use crate::fit::factors::Factorization;

/// Key of the metadata entry that describes how an approximation was made.
pub use crate::files::origin::MARK as METADATA;
use crate::files::origin::{EXACT, EXACT_PROMPT, NEW_TOKENS};

/// The metadata entry, a JSON object, of the model that `rewritten` describes.
#[must_use]
pub fn note(
    options: &RewriteOptions,
    factorization: Factorization,
    reconstruction_steps: usize,
    rewritten: &Rewritten,
) -> StringStringEntryProto {
    let ratio = match options.ranks {
        RankPlan::Ratio(ratio) => Some(ratio),
        _ => None,
    };
    let layers = rewritten.sites.iter().map(|site| {
        json!({
            "layer": site.site.layer, "key_rank": site.ranks.key, "value_rank": site.ranks.value,
            "predicted_key_loss": site.key.loss, "predicted_value_loss": site.value.loss,
        })
    });
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "factors": factorization.name(),
        "reconstruction_steps": reconstruction_steps,
        "cache_ratio": ratio,
        "cache_bits": options.bits.number(),
        NEW_TOKENS: match options.form.exact_tokens() {
            ExactTokens::Step => EXACT,
            ExactTokens::Prompt => EXACT_PROMPT,
            ExactTokens::None => "latent",
        },
        "positions": options.positions(),
        "layers": layers.collect::<Vec<_>>(),
    });
    StringStringEntryProto {
        key: Some(METADATA.to_owned()),
        value: Some(value.to_string()),
    }
}
