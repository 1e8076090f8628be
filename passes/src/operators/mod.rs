//! Fused attention operators, and their expansion into primitives, so that one recogniser handles all of them.
//!
//! An operator is expanded exactly as its specification says: split, RoPE, cache append, repeat_kv, products, mask,
//! softmax. An operator that cannot be expanded is kept, and its attention is refused with a reason.
//!
//! To add an operator, add a file with a constant `OPERATOR`, and a line to the list below.

mod fused_product;
mod lower;
mod nonpad;
mod operator;
mod packed;
mod primitives;
mod refused;
mod row_positions;
mod rows;
mod second_transpose;
mod table;

/// Declares the module of each operator, and lists the operators.
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

pub use lower::{Lowered, OperatorOrigin, lower};
pub use operator::{Lower, LoweredNode, Operator, Target, unsupported};
pub use primitives::{Core, Primitives};
pub use rows::{checks_row_lengths, has_no_new_rows};
pub use table::Operators;
