//! Static inference: the element type and symbolic shape of every value and, for small tensors (shapes, indices,
//! scales), its elements.
//!
//! # When two sizes are equal
//!
//! Two symbolic sizes are equal if they have the same name, so a name must guarantee equal sizes. The rules:
//!
//! * Dimensions of graph inputs with the same name are equal in every run. This is the ONNX semantics of `dim_param`,
//!   although ONNX Runtime only warns if a caller violates it.
//! * Some names guarantee nothing, and each dimension with such a name gets a fresh symbol: a name that occurs twice in
//!   one graph input (`[f, f]` for batch and length), because exporters that write it give every axis the same name; a
//!   name without a letter or digit; a name that begins with `?`; a name for "unknown" (`unknown`, `dynamic`, `none`).
//! * A name in the declared shape of an inner value or a graph output means the same as in an input. It is used only if
//!   the shape of the value cannot be inferred.
//! * Two sizes with different names are equal if the graph could not run otherwise: see [`equalities`].

mod agree;
mod arrange;
mod attributes;
mod branches;
mod constant;
pub mod content;
mod contract;
mod contradicted;
pub mod contrib;
mod cut;
mod declared;
pub mod dim;
mod einsum;
mod elementwise;
pub mod equalities;
mod fact;
mod infer;
mod node;
mod picked;
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
mod windows;

pub use agree::text as shape_text;
pub use attributes::{axes, shape_range};
pub use contradicted::{WrongDeclaration, wrong_declaration};
pub use fact::{Fact, Shape};
pub use values::{Facts, OutputFacts, Rule, Rules, is_named};
