//! Attributes that several operators share.

use crate::facts::Facts;
use crate::graph::{attribute, input_at, int_attribute};
use crate::onnx::NodeProto;

/// The `axes` of `Unsqueeze`, `Squeeze` and the reductions: an input since opset 13 (18 for some), an attribute before.
pub fn axes(facts: &Facts, node: &NodeProto) -> Option<Vec<i64>> {
    match input_at(node, 1) {
        Some(input) => facts.integers(input),
        None => attribute(node, "axes").map(|a| a.ints.clone()),
    }
}

/// The axes whose sizes `Shape` returns for a tensor of rank `rank`: its `start` and `end` (since opset 15), clamped.
pub fn shape_range(node: &NodeProto, rank: usize) -> std::ops::Range<usize> {
    let at = |name: &str, default: i64| {
        let rank = rank as i64;
        let value = int_attribute(node, name, default);
        (if value < 0 {
            value.saturating_add(rank)
        } else {
            value
        })
        .clamp(0, rank) as usize
    };
    let (start, end) = (at("start", 0), at("end", rank as i64));
    start..end.max(start)
}
