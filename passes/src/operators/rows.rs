//! The rows that a `GroupQueryAttention` reads: how many there are, and where the new tokens stand.

use tract_data::prelude::TDim;

use crate::facts::Facts;
use crate::graph::input_at;
use crate::onnx::{NodeProto, tensor_proto::DataType};
use crate::operators::primitives::Primitives;

/// Name of the node at which a run fails if the rows of a batch have different lengths; runtimes print it in their error.
const CHECK: &str = "check/every_row_must_hold_past_plus_new_tokens";

/// Whether `node` is the row-length check that an expansion of this operator has added to a graph.
pub fn checks_row_lengths(node: &NodeProto) -> bool {
    node.name().ends_with(CHECK)
}

/// Whether `node`, a `GroupQueryAttention`, has keys and values of length 0, so that all rows are in its past.
pub fn has_no_new_rows(facts: &Facts, node: &NodeProto) -> bool {
    [1, 2].into_iter().all(|position| {
        let shape = input_at(node, position).and_then(|value| facts.shape(value));
        shape.is_some_and(|shape| shape.len() == 3 && shape.get(1) == Some(&TDim::Val(0)))
    })
}

/// A text for the size of axis `axis` of `value`; values of equal sizes have equal texts.
pub fn length(s: &Primitives, value: &str, axis: usize) -> String {
    let size = s.facts.shape(value).and_then(|shape| shape.get(axis));
    size.map_or_else(|| value.to_owned(), ToString::to_string)
}

/// The rows of one operator.
pub struct Rows<'n> {
    /// Queries [B, T, _].
    pub query: &'n str,
    /// Past rows [B, G, P, d].
    pub past: &'n str,
    /// The position `[B]` of the last token of each sequence.
    pub seqlens: &'n str,
    /// Whether the past contains the rows of the T new tokens.
    pub borrowed: bool,
}

impl Rows<'_> {
    /// A text for the lengths. Operators with equal lengths have equal texts, and share masks and checks.
    pub fn lengths(&self, s: &Primitives) -> String {
        format!(
            "{} {} {} {}",
            length(s, self.query, 1),
            length(s, self.past, 2),
            self.seqlens,
            self.borrowed
        )
    }

    /// The position of the first new token, P or, of borrowed rows, P - T, as a vector of one element. The run fails if a
    /// sequence does not end with the last row.
    pub fn start(&self, s: &mut Primitives) -> String {
        let key = format!("start {}", self.lengths(s));
        s.shared(&key, |s| {
            let int64 = DataType::Int64;
            let new = s.size("start/T", self.query, 1);
            let first = self.unchecked_start(s);
            let held = s.op("Add", "start/S", &[&first, &new]);
            let one = s.vector(&[1]);
            let last = s.with("Cast", "start/seqlens", &[self.seqlens], |n| {
                n.with_int("to", int64 as i64)
            });
            let rows = s.op("Add", "start/row_lengths", &[&last, &one]);
            let off = s.op("Sub", "start/off", &[&rows, &held]);
            let off = s.op("Abs", "start/off_by", &[&off]);
            let worst = s.with("ReduceMax", "start/worst", &[&off], |n| {
                n.with_int("keepdims", 0)
            });
            let worst = s.op("Reshape", "start/worst_vector", &[&worst, &one]);
            // This `Reshape` of one element fails if `worst` is not zero, because the shape then has more than one element.
            let shape = s.op("Add", "start/check_shape", &[&worst, &one]);
            let zero = s.vector(&[0]);
            let zero = s.op("Reshape", CHECK, &[&zero, &shape]);
            // The casts keep the two `Reshape` apart: ONNX Runtime would fuse them, and the check would be gone.
            let zero = s.with("Cast", "start/checked_int32", &[&zero], |n| {
                n.with_int("to", DataType::Int32 as i64)
            });
            let zero = s.op("Reshape", "start/checked_vector", &[&zero, &one]);
            let zero = s.with("Cast", "start/checked", &[&zero], |n| {
                n.with_int("to", int64 as i64)
            });
            s.op("Add", "start", &[&first, &zero])
        })
    }
}

impl Rows<'_> {
    /// The same without the check, for sequences that end with the last row.
    pub fn unchecked_start(&self, s: &mut Primitives) -> String {
        let past = s.size("start/P", self.past, 2);
        if !self.borrowed {
            return past;
        }
        let new = s.size("start/new", self.query, 1);
        s.op("Sub", "start/first", &[&past, &new])
    }
}

impl Primitives<'_> {
    /// Passes the pasts of `node`, which has no new rows, on to those of its presents that are read.
    pub fn pass_on(&mut self, node: &NodeProto) {
        for (part, past, present) in [("k_passed_on", 3, 1), ("v_passed_on", 4, 2)] {
            let past = input_at(node, past);
            let present = node.output.get(present).map(String::as_str);
            let (Some(past), Some(present)) = (past, present.filter(|p| !p.is_empty())) else {
                continue;
            };
            if self.graph.is_output(present) || !self.graph.uses(present).is_empty() {
                self.named("Identity", part, &[past], &[present], |n| n);
            }
        }
    }
}
