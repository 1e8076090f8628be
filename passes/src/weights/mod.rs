//! The weights of an attention: its projections, its RoPE frequencies, W_O.

pub mod channels;
mod columns;
pub mod frequencies;
pub mod matrix;
pub mod output_projection;
pub mod projection;
pub mod rows;
