//! A model compressed as a request says: one rewrite with its statistics and reconstruction, the search for the smallest
//! cache that keeps a promise, widths for each layer, and what decides whether the result may have its name.
//!
//! [`run::compress`] is where a caller starts. Nothing here prints; a closure hears of every step as an
//! [`events::Event`].

pub mod acceptance;
pub mod allot;
pub mod bisect;
mod compressed;
pub mod compressor;
pub mod convert;
pub mod error;
pub mod events;
pub mod metadata;
pub mod request;
pub mod run;
pub mod search;
pub mod ways;
pub mod widths;
mod work;

pub use compressed::Compressed;
