//! onnxruntime-genai supports one shape for the keys and the values of a layer, and past and present in one buffer only
//! if `GroupQueryAttention` writes into it. Since version 0.16 it reads the shape of each layer from the session; older
//! versions use the shape in the configuration for all layers.

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
    // The shape in the configuration applies to layers that are not rewritten and that declare no shape.
    if let Some((heads, width)) = shape {
        config.set(&[model, decoder, "num_key_value_heads"], &heads.to_string());
        config.set(&[model, decoder, "head_size"], &width.to_string());
    }
    // A missing key means true, but a graph that appends with `Concat` returns a longer cache than it receives.
    if !latent.fused {
        config.set(&SHARE, "false");
    }
    Ok(config.finish())
}
