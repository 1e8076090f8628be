//! RoPE as one operator in front of a raised `GroupQueryAttention`.
//!
//! ```text
//! before   x = Transpose(Reshape(z)); x * cos + Concat(-x[d/2:], x[:d/2]) * sin; Transpose; Reshape     -> [B, T, H*d]
//! after    com.microsoft.RotaryEmbedding(z [B, T, H*d], position_ids, cos [rows, d/2], sin [rows, d/2])
//! ```
//!
//! Only rotations whose two halves have equal angles take this form. The rows of the tables are those of cos [b, 1, T, d] and
//! sin: T rows if b = 1, and B*T, of which each token reads its own, if b = B. Reshapes and transposes that undo each other are
//! left out as well. In a step of one token, each of the dozen nodes of a spelled-out rotation costs as much as the operator.

use std::collections::HashMap;

use tract_data::prelude::TDim;

use crate::facts::Facts;
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::graph::{Graph, input_at, int_attribute, is_op};
use crate::onnx::{NodeProto, tensor_proto::DataType};
use crate::operators::Primitives;
use crate::recognize::divided::{exchanged, undivided};

/// The element types of the operator on the CPU.
const TYPES: [DataType; 2] = [DataType::Float, DataType::Float16];

/// Most nodes between a table and the angles that it repeats.
const FARTHEST: usize = 8;

/// The patch of the main graph `graph` in which the operator rotates, and packed rows [B, T, H*d] are those that were divided
/// into heads before.
pub fn with_operators(graph: &Graph, facts: &Facts) -> Patch {
    let mut patch = Patch::default();
    let mut shared = HashMap::new();
    let view = View { graph, facts };
    for (id, node) in graph.nodes() {
        let packed = view.packed_heads(node);
        let rotation = node.output.first().and_then(|sum| view.rotation(sum));
        if packed.is_none() && rotation.is_none() {
            continue;
        }
        let mut known = shared.clone();
        let mut s = Primitives::new(graph, facts, node, &mut known);
        let made = match (packed, rotation) {
            (Some(heads), _) => view.pack(&mut s, node, heads),
            (None, Some(rotation)) => view.rotate(&mut s, node, &rotation),
            (None, None) => None,
        };
        if made.is_none() {
            continue;
        }
        let (nodes, initializers, made) = s.finish();
        patch.replaced.insert(id, nodes);
        patch.add_initializers(initializers);
        shared.extend(made);
    }
    patch
}

#[derive(Clone, Copy)]
struct View<'g> {
    graph: &'g Graph<'g>,
    facts: &'g Facts,
}

/// A rotation x * cos + rotate_half(x) * sin.
struct Spelled<'g> {
    /// x [B, H, T, d].
    rows: &'g str,
    /// cos and sin [b, 1, T, d].
    tables: [&'g str; 2],
}

impl<'g> View<'g> {
    fn maker(&self, value: &str, op: &str) -> Option<&'g NodeProto> {
        let (_, node) = self.graph.producer(value)?;
        is_op(node, op).then_some(node)
    }

    fn size(&self, value: &str, from_last: usize) -> Option<&'g TDim> {
        self.facts.shape(value)?.iter().rev().nth(from_last)
    }

    /// The rows [B, H, T, d] that `pack`, a `Reshape`, turns into [B, T, H*d].
    fn packed_heads(&self, pack: &'g NodeProto) -> Option<&'g str> {
        let turned = input_at(pack, 0).filter(|_| is_op(pack, "Reshape"))?;
        let rows = exchanged(self.graph, turned)?;
        let ([batch, heads, length, size], [b, t, width]) = (
            self.facts.shape(rows)?,
            self.facts.shape(pack.output.first()?)?,
        ) else {
            return None;
        };
        let whole = heads.as_i64()?.checked_mul(size.as_i64()?)?;
        ((batch, length) == (b, t) && width.as_i64() == Some(whole)).then_some(rows)
    }

    /// Makes the output [B, T, H*d] of `pack` from `heads`; `None` if that takes the nodes that there are.
    fn pack(&self, s: &mut Primitives, pack: &'g NodeProto, heads: &'g str) -> Option<()> {
        let output = pack.output.first()?;
        let Some(rotation) = self.rotation(heads) else {
            let rows = undivided(self.graph, self.facts, heads)?;
            s.named("Identity", "packed", &[rows], &[output], |n| n);
            return Some(());
        };
        let by_token = exchanged(self.graph, rotation.rows)?;
        let rows = match undivided(self.graph, self.facts, rotation.rows) {
            Some(rows) => rows.to_owned(),
            None => s.op("Reshape", "unrotated", &[by_token, pack.input.get(1)?]),
        };
        self.operator(s, &rotation, &rows, output)
    }

    /// Makes the output [B, H, T, d] of `sum`, which is `rotation`. It is dead if it is only packed.
    fn rotate(&self, s: &mut Primitives, sum: &NodeProto, rotation: &Spelled) -> Option<()> {
        self.operator(s, rotation, rotation.rows, sum.output.first()?)
    }

    /// The operator that rotates `rows`, packed or not, as `rotation` rotates its own.
    fn operator(
        &self,
        s: &mut Primitives,
        rotation: &Spelled,
        rows: &str,
        output: &str,
    ) -> Option<()> {
        let types = [rows, rotation.tables[0], rotation.tables[1]].map(|v| self.facts.elem_type(v));
        if types != [types[0]; 3] || !TYPES.map(|t| Some(t as i32)).contains(&types[0]) {
            return None;
        }
        let positions = self.positions(s, rotation.tables[0], rotation.rows)?;
        let [cos, sin] = rotation.tables;
        let [cos, sin] = [self.rows_of(s, cos, "cos")?, self.rows_of(s, sin, "sin")?];
        let operator = node(
            "RotaryEmbedding",
            &format!("{output}/rotated"),
            &[rows, &positions, &cos, &sin],
            &[output],
        );
        s.keep(NodeProto {
            domain: Some("com.microsoft".to_owned()),
            ..operator
        });
        Some(())
    }

    fn rotation(&self, value: &str) -> Option<Spelled<'g>> {
        let sum = self.maker(value, "Add")?;
        let [one, other] = sum.input.as_slice() else {
            return None;
        };
        let [one, other] = [self.maker(one, "Mul")?, self.maker(other, "Mul")?];
        self.rotated(one, other)
            .or_else(|| self.rotated(other, one))
    }

    /// The rotation whose products are `straight` = x * cos and `turned` = rotate_half(x) * sin.
    fn rotated(&self, straight: &'g NodeProto, turned: &'g NodeProto) -> Option<Spelled<'g>> {
        let pairs = |node: &'g NodeProto| {
            let (a, b) = (input_at(node, 0)?, input_at(node, 1)?);
            Some([[a, b], [b, a]])
        };
        let fits = |[rows, cos]: [&'g str; 2]| {
            let halves = |[half, sin]: [&'g str; 2]| {
                let of = self.half_turned(half)?;
                (of == rows && self.is_table(sin, rows)).then_some(sin)
            };
            let sin = pairs(turned)?.into_iter().find_map(halves)?;
            let alike = self.facts.shape(cos)? == self.facts.shape(sin)?;
            (alike && self.is_table(cos, rows)).then_some(Spelled {
                rows,
                tables: [cos, sin],
            })
        };
        pairs(straight)?.into_iter().find_map(fits)
    }

    /// The x of `value` = Concat(-x[d/2:], x[:d/2]).
    fn half_turned(&self, value: &str) -> Option<&'g str> {
        let join = self.maker(value, "Concat")?;
        let [high, low] = join.input.as_slice() else {
            return None;
        };
        let last = matches!(int_attribute(join, "axis", 0), -1 | 3);
        let high = self.maker(high, "Neg")?;
        let (of, first) = self.half(input_at(high, 0)?)?;
        let same = self.half(low)? == (of, 0);
        let size = self.size(of, 0)?.as_i64()?;
        (last && same && 2 * first == size).then_some(of)
    }

    /// The value of which `half` holds d/2 channels, and the first of them.
    fn half(&self, half: &str) -> Option<(&'g str, i64)> {
        let (_, node) = self.graph.producer(half)?;
        let of = input_at(node, 0)?;
        let (size, whole) = (self.size(half, 0)?.as_i64()?, self.size(of, 0)?.as_i64()?);
        let last = |axis: i64| matches!(axis, -1 | 3);
        let one = |position: usize| match self.facts.integers(input_at(node, position)?)?.as_slice()
        {
            [number] => Some(*number),
            _ => None,
        };
        let first = match node.op_type() {
            "Slice" if is_op(node, "Slice") => {
                let steps = input_at(node, 4).is_none() || one(4) == Some(1);
                let first = one(1).filter(|_| steps && one(3).is_some_and(last))?;
                if first < 0 { first + whole } else { first }
            }
            "Split" if is_op(node, "Split") && last(int_attribute(node, "axis", 0)) => {
                let [low, high] = node.output.as_slice() else {
                    return None;
                };
                if low == half {
                    0
                } else {
                    self.size(low, 0)?.as_i64().filter(|_| high == half)?
                }
            }
            _ => return None,
        };
        (2 * size == whole).then_some((of, first))
    }

    /// Whether `table` [b, 1, T, d] has a row for each token of `rows` [B, H, T, d], b is 1 or B, and its halves are equal.
    fn is_table(&self, table: &str, rows: &str) -> bool {
        let (Some([b, one, t, d]), Some([batch, _, length, size])) =
            (self.facts.shape(table), self.facts.shape(rows))
        else {
            return false;
        };
        let fits = (b == &TDim::Val(1) || b == batch) && one == &TDim::Val(1);
        fits && (t, d) == (length, size) && self.repeats_its_half(table)
    }

    /// Whether the last axis of `table` holds the same d/2 numbers twice: it is computed, number by number, from a `Concat` of
    /// the same value with itself.
    fn repeats_its_half(&self, table: &str) -> bool {
        let size = self.size(table, 0);
        let mut value = table.to_owned();
        for _ in 0..FARTHEST {
            let Some((_, node)) = self.graph.producer(&value) else {
                return false;
            };
            if is_op(node, "Concat") {
                let axis = int_attribute(node, "axis", 0);
                let rank = self.facts.shape(&value).map_or(0, <[_]>::len) as i64;
                let twice = matches!(node.input.as_slice(), [a, b] if a == b);
                return twice && (axis == -1 || axis == rank - 1) && self.size(&value, 0) == size;
            }
            let is_scalar = |v: &&String| self.facts.shape(v).is_some_and(<[_]>::is_empty);
            let next = match node.op_type() {
                "Cos" | "Sin" | "Cast" | "Identity" | "Unsqueeze" => node.input.first(),
                "Mul" if node.input.iter().filter(is_scalar).count() == 1 => {
                    node.input.iter().find(|v| !is_scalar(v))
                }
                _ => None,
            };
            match next.filter(|_| crate::graph::is_standard(node)) {
                Some(next) if self.size(next, 0) == size => value.clone_from(next),
                _ => return false,
            }
        }
        false
    }

    /// The rows [b*T, d/2] of the first half of `table` [b, 1, T, d].
    fn rows_of(&self, s: &mut Primitives, table: &str, part: &str) -> Option<String> {
        let half = self.size(table, 0)?.as_i64()? / 2;
        Some(s.shared(&format!("rows {table}"), |s| {
            let (first, end, last) = (s.vector(&[0]), s.vector(&[half]), s.vector(&[-1]));
            let half_of = s.op(
                "Slice",
                &format!("{part}/half"),
                &[table, &first, &end, &last],
            );
            let rows = s.vector(&[-1, half]);
            let name = s.free(format!("{table}/rows"));
            s.named(
                "Reshape",
                &format!("{part}/rows"),
                &[&half_of, &rows],
                &[&name],
                |n| n,
            );
            name
        }))
    }

    /// The row of the tables, which are like `table` [b, 1, T, d], that each token of `rows` reads: [B, T], or that of the first
    /// token `[1]` if all sequences read the same rows.
    fn positions(&self, s: &mut Primitives, table: &str, rows: &str) -> Option<String> {
        let [b, ..] = self.facts.shape(table)? else {
            return None;
        };
        let [batch, ..] = self.facts.shape(rows)? else {
            return None;
        };
        if b == &TDim::Val(1) && b != batch {
            return Some(s.vector(&[0]));
        }
        Some(s.shared(&format!("positions {b} {table}"), |s| {
            let int64 = DataType::Int64 as i32;
            let (zero, one, none) = (s.scalar(int64, 0.0), s.scalar(int64, 1.0), s.vector(&[]));
            let sequences = s.size("table/b", table, 0);
            let length = s.size("table/T", table, 2);
            let count = s.op("Mul", "table/count", &[&sequences, &length]);
            let count = s.op("Reshape", "table/count_scalar", &[&count, &none]);
            let all = s.op("Range", "table/all", &[&zero, &count, &one]);
            let shape = s.with("Concat", "table/BT", &[&sequences, &length], |n| {
                n.with_int("axis", 0)
            });
            let name = s.free(format!("{table}/row_of_token"));
            s.named(
                "Reshape",
                "table/row_of_token",
                &[&all, &shape],
                &[&name],
                |n| n,
            );
            name
        }))
    }
}
