//! Operators that are attention by themselves: what each one is, in one table, and how it is spelled out as primitives,
//! so that one recogniser proves them all.
//!
//! An operator becomes exactly what its specification says: split, rotation, cache append, repetition, products, mask,
//! softmax. An operator that cannot be spelled out stays, and is refused by name.
//!
//! A new operator is one file with a constant `OPERATOR`, and one line of the table below.

mod fused_product;
mod lower;
mod operator;
mod refused;
mod second_transpose;
mod spell;
mod table;

/// Declares the file of each operator, and lists them.
macro_rules! operators {
    ($($file:ident,)*) => {
        $(mod $file;)*

        /// The operators of this library.
        const BUILT_IN: &[&Operator] = &[$(&$file::OPERATOR),*];
    };
}

operators! {
    onnx_attention,
    grouped_query,
    multi_head,
}

pub use lower::{Lowered, Origin, lower};
pub use operator::{Operator, Spell, Spelled, Target, unsupported};
pub use spell::{Core, Speller};
pub use table::Operators;
