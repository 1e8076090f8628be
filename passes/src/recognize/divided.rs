//! Rows that are divided into heads.

use crate::facts::Facts;
use crate::graph::{Graph, attribute, input_at, is_op};

/// The value [B, T, H*d] of which `heads` [B, H, T, d] is the `Transpose` of the `Reshape`.
pub fn undivided<'g>(graph: &Graph<'g>, facts: &Facts, heads: &str) -> Option<&'g str> {
    let split = exchanged(graph, heads)?;
    let (_, split) = graph.producer(split).filter(|(_, n)| is_op(n, "Reshape"))?;
    let rows = input_at(split, 0)?;
    let ([batch, count, length, size], [b, t, width]) = (facts.shape(heads)?, facts.shape(rows)?)
    else {
        return None;
    };
    let whole = count.as_i64()?.checked_mul(size.as_i64()?)?;
    ((b, t) == (batch, length) && width.as_i64() == Some(whole)).then_some(rows)
}

/// The input of the `Transpose` that makes `value` by exchanging axes 1 and 2 of 4.
pub fn exchanged<'g>(graph: &Graph<'g>, value: &str) -> Option<&'g str> {
    let (_, turn) = graph
        .producer(value)
        .filter(|(_, n)| is_op(n, "Transpose"))?;
    let perm = attribute(turn, "perm")?;
    input_at(turn, 0).filter(|_| perm.ints == [0, 2, 1, 3])
}
