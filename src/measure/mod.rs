//! What a rewritten model loses: on text, and layer by layer.

pub mod logits;
pub mod measure;
pub mod npy;
pub mod quality;
pub mod text;
