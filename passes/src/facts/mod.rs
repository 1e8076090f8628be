//! What can be known of a value before the graph runs: its type, its symbolic shape and, for small integers and
//! scalars (the arithmetic that exporters spell shapes and scales with), its content.
//!
//! # When two sizes are equal
//!
//! Symbols are equal only by name, so a name has to be a promise. Which names are:
//!
//! * A name of a dimension of a graph input is the producer's promise that all dimensions of that name are equal in
//!   every run. ONNX says so (the semantics of `dim_param`), although ONNX Runtime only warns where it is broken.
//! * A name that stands for two axes of one graph input is no promise (`[f, f]` for batch and length): exporters that
//!   write it give every axis the same name. Nor is a name without a letter or digit (`?`), one that begins with `?`,
//!   or one that says that nothing is known (`unknown`, `dynamic`, `none`). Each dimension called so is a size of its own.
//! * A name in the description of an inner value or an output means the same as in an input, and is used only where
//!   the shape of the value cannot be inferred.
//! * Two sizes of different names are equal where the graph itself demands it: see [`equalities`].

mod agree;
mod arrange;
mod attributes;
mod branches;
mod constant;
pub mod content;
mod contract;
pub mod contrib;
mod cut;
mod declared;
pub mod dim;
mod elementwise;
pub mod equalities;
mod fact;
mod infer;
mod node;
pub mod precision;
pub mod scoped;
pub mod shapes;
mod stored;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub mod typed;
pub mod types;
mod values;

pub use agree::text as shape_text;
pub use attributes::{axes, shape_range};
pub use fact::{Fact, Shape};
pub use values::{Facts, OutputFacts, Rule, Rules};
