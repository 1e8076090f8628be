//! One rewrite with everything it needs, and the search for the smallest that keeps a promise.

pub mod allot;
pub mod compressor;
pub mod convert;
pub mod search;
