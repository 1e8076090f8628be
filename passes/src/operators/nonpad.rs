//! The mask of the input `nonpad_kv_seqlen` of `Attention` (ONNX operator specification, opset 24): of the rows of a
//! static cache, sequence b has written the first `nonpad_kv_seqlen[b]`.

use crate::facts::Facts;
use crate::onnx::tensor_proto::DataType;
use crate::operators::primitives::Primitives;

impl Primitives<'_> {
    /// An additive mask [B, 1, T, S] for `query` [.., T, _] and `key` [.., S, _], of which sequence b has written
    /// `lengths[b]` rows: 0 for a written row, minus infinity for others. With `causal`, query i is the token in row
    /// `lengths[b]` - T + i, and later rows are hidden from it; without, the mask is [B, 1, 1, S]. Operators with equal
    /// lengths share it.
    pub fn written_bias(
        &mut self,
        lengths: &str,
        (query, key): (&str, &str),
        causal: bool,
        elem_type: i32,
    ) -> String {
        let (rows, columns) = (size(self.facts, query), size(self.facts, key));
        let name = format!("written {lengths} {rows} {columns} {causal} {elem_type}");
        self.shared(&name, |s| {
            let int64 = DataType::Int64 as i32;
            let (zero, one) = (s.scalar(int64, 0.0), s.scalar(int64, 1.0));
            let (none, by_sequence) = (s.vector(&[]), s.vector(&[-1, 1, 1, 1]));
            let columns = s.size("S", key, -2);
            let columns = s.op("Reshape", "mask/S", &[&columns, &none]);
            let keys = s.op("Range", "mask/keys", &[&zero, &columns, &one]);
            let ends = s.op("Reshape", "mask/written", &[lengths, &by_sequence]);
            let seen = match causal {
                false => s.op("Less", "mask/seen", &[&keys, &ends]),
                true => {
                    let rows = s.size("T", query, -2);
                    let first = s.op("Sub", "mask/first", &[&ends, &rows]);
                    let rows = s.op("Reshape", "mask/T", &[&rows, &none]);
                    let steps = s.op("Range", "mask/steps", &[&zero, &rows, &one]);
                    let column = s.vector(&[-1]);
                    let steps = s.op("Unsqueeze", "mask/steps_column", &[&steps, &column]);
                    let queries = s.op("Add", "mask/queries", &[&first, &steps]);
                    s.op("LessOrEqual", "mask/seen", &[&keys, &queries])
                }
            };
            s.bias_of(&seen, "mask", elem_type)
        })
    }
}

/// The length of `rows` [.., length, _] as text, or its name if the length is not known.
fn size(facts: &Facts, rows: &str) -> String {
    let length = facts.shape(rows).and_then(|shape| shape.iter().nth_back(1));
    length.map_or_else(|| rows.to_owned(), ToString::to_string)
}
