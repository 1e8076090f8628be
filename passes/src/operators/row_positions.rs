//! The positions of the new tokens of `GroupQueryAttention`: counted from the lengths of the rows, or given.

use crate::onnx::tensor_proto::DataType;
use crate::operators::primitives::Primitives;
use crate::operators::rows::length;

/// The positions [B, T] of the new tokens: row b begins at max(0, seqlens_k[b] + 1 - T).
pub fn row_positions(s: &mut Primitives, query: &str, seqlens: &str) -> String {
    let key = format!("positions {} {seqlens}", length(s, query, 1));
    s.shared(&key, |s| {
        let int64 = DataType::Int64;
        let new = s.size("positions/T", query, 1);
        let (one, column, none) = (s.vector(&[1]), s.vector(&[-1, 1]), s.vector(&[]));
        let (zero, step) = (s.scalar(int64 as i32, 0.0), s.scalar(int64 as i32, 1.0));
        let last = s.with("Cast", "positions/seqlens", &[seqlens], |n| {
            n.with_int("to", int64 as i64)
        });
        let held = s.op("Add", "positions/row_lengths", &[&last, &one]);
        let first = s.op("Sub", "positions/first", &[&held, &new]);
        let first = s.op("Max", "positions/from_zero", &[&first, &zero]);
        let first = s.op("Reshape", "positions/column", &[&first, &column]);
        let count = s.op("Reshape", "positions/count", &[&new, &none]);
        let steps = s.op("Range", "positions/steps", &[&zero, &count, &step]);
        s.op("Add", "positions", &[&first, &steps])
    })
}

/// The positions [B, T] that `given`, the operator's position_ids [B, T], tell. In the first prompt, whose T tokens are all
/// there are (`total`), the kernels of ONNX Runtime read only the first element, and count on from it.
pub fn given_positions(s: &mut Primitives, query: &str, total: &str, given: &str) -> String {
    let key = format!("given positions {} {total} {given}", length(s, query, 1));
    s.shared(&key, |s| {
        let int64 = DataType::Int64;
        let new = s.size("positions/T", query, 1);
        let (first, all, none) = (s.vector(&[0]), s.vector(&[-1]), s.vector(&[]));
        let (zero, step) = (s.scalar(int64 as i32, 0.0), s.scalar(int64 as i32, 1.0));
        let held = s.with("Cast", "positions/S", &[total], |n| {
            n.with_int("to", int64 as i64)
        });
        let prompt = s.op("Equal", "positions/is_first_prompt", &[&held, &new]);
        let flat = s.op("Reshape", "positions/flat", &[given, &all]);
        let start = s.op("Gather", "positions/start", &[&flat, &first]);
        let count = s.op("Reshape", "positions/count", &[&new, &none]);
        let steps = s.op("Range", "positions/steps", &[&zero, &count, &step]);
        let counted = s.op("Add", "positions/counted", &[&start, &steps]);
        s.op("Where", "positions", &[&prompt, &counted, given])
    })
}
