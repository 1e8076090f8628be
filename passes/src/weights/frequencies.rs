//! The frequencies of a rotation, read from the constants that its tables are made of.

use crate::facts::Facts;
use crate::graph::{Graph, is_contrib};
use crate::onnx::stored::Model;
use crate::recognize::rotation::Rotation;
use crate::weights::projection::numbers;

/// Angles a position of the `half` pairs of a head, in radians; `None` where no constant tells them.
pub fn frequencies(
    model: &Model,
    graph: &Graph,
    facts: &Facts,
    rotation: &Rotation,
    half: usize,
) -> Option<Vec<f64>> {
    let nodes = rotation.tables.iter().chain(&rotation.nodes);
    for node in nodes.filter_map(|id| graph.node(*id)) {
        if is_contrib(node, "RotaryEmbedding") {
            // Row 1 of the tables holds the angles of position 1.
            let row = |at: usize| {
                let tensor = graph.initializer(graph.resolve(node.input.get(at)?))?;
                let all = numbers(model, tensor)?;
                Some(all.get(half..2 * half)?.to_vec())
            };
            let (cos, sin) = (row(2)?, row(3)?);
            return Some(cos.iter().zip(sin).map(|(c, s)| s.atan2(*c)).collect());
        }
        for input in &node.input {
            let known = facts.floats(input).map(<[f64]>::to_vec);
            let stored = || {
                let tensor = graph.initializer(graph.resolve(input))?;
                let count: i64 = tensor.dims.iter().product();
                (count == half as i64).then(|| numbers(model, tensor))?
            };
            let Some(values) = known.or_else(stored) else {
                continue;
            };
            let falling = values.windows(2).all(|w| matches!(w, [a, b] if a >= b));
            if values.len() == half && half > 1 && falling && values.iter().all(|&x| x > 0.0) {
                return Some(values);
            }
        }
    }
    None
}
