//! The numbers behind an attention: its projections, the frequencies of its rotation, W_O.

pub mod channels;
mod columns;
pub mod frequencies;
pub mod output_projection;
pub mod projection;
pub mod rows;
