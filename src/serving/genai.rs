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
    let (heads, width) = latent.first_shape(stack)?;
    let [model, decoder] = DECODER;
    if config.has(&[model, decoder, "pipeline"]) {
        return Err(ServingError::Refused {
            stack: stack.name(),
            reason: "its configuration divides the decoder into a pipeline of models".to_owned(),
        });
    }
    config.set(&[model, decoder, "num_key_value_heads"], &heads.to_string());
    config.set(&[model, decoder, "head_size"], &width.to_string());
    // Left out, it means true, and a graph that appends to its cache gives a longer one back than it was given.
    if !latent.fused {
        config.set(&SHARE, "false");
    }
    Ok(config.finish())
}
