//! onnxruntime-genai: keys and values of all layers have one size, and past and present can share a buffer only with
//! `GroupQueryAttention`.

use crate::serving::config::{Edit, read};
use crate::serving::error::ServingError;
use crate::serving::latent::Latent;
use crate::serving::stack::Stack;

const DECODER: [&str; 2] = ["model", "decoder"];
const SHARE: [&str; 2] = ["search", "past_present_share_buffer"];

pub fn edit(text: &str, latent: &Latent) -> Result<(String, Vec<Edit>), ServingError> {
    let stack = Stack::Genai;
    let mut config = read(stack.file(), text)?;
    let width = latent.width(stack)?.to_string();
    let [model, decoder] = DECODER;
    if config.has(&[model, decoder, "pipeline"]) {
        return Err(ServingError::Refused {
            stack: stack.name(),
            reason: "its configuration divides the decoder into a pipeline of models".to_owned(),
        });
    }
    config.set(&[model, decoder, "num_key_value_heads"], "1");
    config.set(&[model, decoder, "head_size"], &width);
    // The default is true, but a graph that appends to its cache returns a longer present than the past.
    if !latent.fused {
        config.set(&SHARE, "false");
    }
    Ok(config.finish())
}
