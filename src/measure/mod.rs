//! Measurement of the quality of a rewritten model on text.

pub mod continuation;
pub mod examples;
pub mod logits;
pub mod npy;
pub mod on_text;
pub mod quality;
pub mod text;
