//! What a rewritten model loses: on text, and layer by layer.

pub mod logits;
pub mod npy;
pub mod on_text;
pub mod quality;
pub mod text;
