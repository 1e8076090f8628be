//! Compression of a model: the rewrite with statistics and reconstruction, the search for a small cache that keeps
//! a promised quality, the allocation of ranks to layers, and the acceptance of the result.
//!
//! The entry point is [`run::compress`]. Nothing here prints; progress is reported to a callback as [`events::Event`].

pub mod acceptance;
pub mod allot;
pub mod bisect;
mod blank;
mod compressed;
pub mod compressor;
pub mod convert;
#[cfg(feature = "train")]
mod distill;
pub mod draft;
pub mod error;
pub mod events;
pub mod foreseen;
pub mod frontier;
mod kept_rows;
pub mod metadata;
mod prepared;
pub mod promise;
pub mod request;
pub mod run;
pub mod search;
pub mod sizes;
pub mod way;
pub mod ways;
pub mod widths;
mod work;

pub use compressed::Compressed;
