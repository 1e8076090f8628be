//! onnxruntime-genai: one shape for the keys and the values of a layer, and a buffer that past and present share only where
//! `GroupQueryAttention` writes into it. From version 0.16 on the shape of each layer is the session's; older versions take
//! the configuration's for all layers.

use crate::serving::config::{Edit, read};
use crate::serving::error::ServingError;
use crate::serving::latent::Latent;
use crate::serving::stack::Stack;

const DECODER: [&str; 2] = ["model", "decoder"];
const SHARE: [&str; 2] = ["search", "past_present_share_buffer"];

pub fn edit(text: &str, latent: &Latent) -> Result<(String, Vec<Edit>), ServingError> {
    let stack = Stack::Genai;
    let mut config = read(stack.file(), text)?;
    let shape = latent.first_shape(stack)?;
    let refused = |reason: &str| ServingError::Refused {
        stack: stack.name(),
        reason: reason.to_owned(),
    };
    let [model, decoder] = DECODER;
    if config.has(&[model, decoder, "pipeline"]) {
        let reason = "its configuration divides the decoder into a pipeline of models";
        return Err(refused(reason));
    }
    if latent.has_rings() && !latent.fused {
        return Err(refused(
            "a layer that is as it was has a ring for a cache (sliding_window_cache), which is made only where past and present share a buffer (use --target gqa)",
        ));
    }
    // The configuration's shape is that of the layers that are as they were and declare none.
    if let Some((heads, width)) = shape {
        config.set(&[model, decoder, "num_key_value_heads"], &heads.to_string());
        config.set(&[model, decoder, "head_size"], &width.to_string());
    }
    // Left out, it means true, and a graph that appends to its cache gives a longer one back than it was given.
    if !latent.fused {
        config.set(&SHARE, "false");
    }
    Ok(config.finish())
}
