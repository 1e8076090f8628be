//! Optimum's `ORTModelForCausalLM` computes the shape of the initial empty cache from the configuration:
//! `num_key_value_heads` heads, with a head size that depends on the model type. The graph itself does not depend on
//! these keys.

use crate::serving::config::{Config, Edit, read};
use crate::serving::error::ServingError;
use crate::serving::latent::Latent;
use crate::serving::stack::Stack;

/// Model types whose head size is `head_dim`; that of all others is `hidden_size // num_attention_heads`.
const BY_HEAD_DIM: [&str; 4] = ["gemma", "gemma3_text", "gpt_oss", "nemotron"];
/// Other model types whose caches have `num_key_value_heads` heads; those of the rest have `num_attention_heads`.
const BY_KEY_VALUE_HEADS: [&str; 12] = [
    "arcee",
    "cohere",
    "glm",
    "granite",
    "helium",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
];

pub fn edit(text: &str, latent: &Latent) -> Result<(String, Vec<Edit>), ServingError> {
    let stack = Stack::Optimum;
    let mut config = read(stack.file(), text)?;
    shape(&mut config, stack, latent.shape(stack)?)?;
    Ok(config.finish())
}

/// Edits `config` so that the cache shape is [B, cached, S, width].
pub fn shape(
    config: &mut Config,
    stack: Stack,
    (cached, width): (usize, usize),
) -> Result<(), ServingError> {
    let cached_heads = cached.to_string();
    let refused = |reason: String| ServingError::Refused {
        stack: stack.name(),
        reason,
    };
    let kind = config.get(&["model_type"]).unwrap_or_default();
    if config.get(&["is_encoder_decoder"]).as_deref() == Some("true") {
        return Err(refused(
            "of an encoder-decoder it computes one shape for the caches of self-attention, which are latent now, and for those of cross-attention, which are not: serve the model with ONNX Runtime itself or transformers.js, which read each shape from the session".to_owned(),
        ));
    }
    match kind.as_str() {
        "gemma3" => {
            config.set(&["text_config", "num_key_value_heads"], &cached_heads);
            config.set(&["text_config", "head_dim"], &width.to_string());
        }
        "deepseek_v3" | "falcon" | "bloom" | "gpt_bigcode" => {
            return Err(refused(format!(
                "for the model type {kind} it computes the shape in a way of its own: serve the model with ONNX Runtime itself, whose session tells each shape"
            )));
        }
        _ if BY_HEAD_DIM.contains(&kind.as_str()) => {
            config.set(&["num_key_value_heads"], &cached_heads);
            config.set(&["head_dim"], &width.to_string());
        }
        _ => {
            let keys = (["hidden_size"], ["num_attention_heads"]);
            let numbers = config.number(&keys.0).zip(config.number(&keys.1));
            let (hidden, heads) = numbers.filter(|(_, heads)| *heads > 0).ok_or_else(|| {
                refused(format!(
                    "for the model type '{kind}' it reads hidden_size and num_attention_heads, which are not both in config.json"
                ))
            })?;
            if kind == "phi3" && config.has(&["rope_scaling", "short_factor"]) {
                return Err(refused(
                    "its configuration class compares the factors of rope_scaling with hidden_size, which would have to change".to_owned(),
                ));
            }
            let by_key_value_heads = BY_KEY_VALUE_HEADS.contains(&kind.as_str());
            // Its default depends on the configuration class.
            if by_key_value_heads || config.has(&["num_key_value_heads"]) {
                config.set(&["num_key_value_heads"], &cached_heads);
            }
            let heads = if by_key_value_heads { heads } else { cached };
            config.set(&["num_attention_heads"], &heads.to_string());
            if hidden / heads != width {
                config.set(&["hidden_size"], &(width * heads).to_string());
            }
            // Optimum does not read it here, but tools that estimate cache sizes may.
            if config.has(&["head_dim"]) {
                config.set(&["head_dim"], &width.to_string());
            }
        }
    }
    Ok(())
}
