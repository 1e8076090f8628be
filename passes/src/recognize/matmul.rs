//! Attention in the form MatMul, Softmax, MatMul: exports by TorchScript, optimum and dynamo, of sdpa and eager
//! attention.
//!
//! The nodes between score product and value product (masks, softcaps, sinks, guards) need no proof: a rewrite keeps
//! them, and they get the same inputs. What is proved is that the right operand of each product is `scale *
//! repeat_kv(cache)`.

use tract_data::prelude::TDim;

use crate::facts::precision::is_float;
use crate::facts::{Facts, shape_text as text};
use crate::graph::Graph;
use crate::recognize::cache::Refused;
use crate::recognize::candidate::Candidate;
use crate::recognize::module_name::module_of;
use crate::recognize::reject::{Operand, Reason};
use crate::recognize::side::{Proved, prove};
use crate::recognize::site::{Dialect, Side, Site};
use crate::recognize::unknown_shape::unknown_shape;

/// Proves that `candidate` is an attention over a repeated cache. Returns it with the nodes beside it that read its caches
/// (see [`Proved::beside`]).
pub fn recognize(
    graph: &Graph,
    facts: &Facts,
    layer: usize,
    candidate: Candidate,
) -> Result<(Site, Vec<Refused>), Refused> {
    let Candidate {
        softmax,
        score,
        output,
        side,
    } = candidate;
    if side != 0 {
        return Err((output, Reason::ValueProducts { count: 0 }));
    }
    let at = |id| move |reason| (id, reason);
    let operands = |id| match graph.node(id).map(|n| n.input.as_slice()) {
        Some([left, right]) => Some((left.as_str(), right.as_str())),
        _ => None,
    };
    let (Some((query, keys)), Some((probabilities, values))) = (operands(score), operands(output))
    else {
        return Err((softmax, Reason::ScoreProducts { count: 0 }));
    };
    let (query_shape, heads) = query_shape(graph, facts, query).map_err(at(score))?;
    let key = prove(graph, facts, (score, keys), Operand::Key, &query_shape)?;
    let value = prove(graph, facts, (output, values), Operand::Value, &query_shape)?;
    if key.kv_heads != value.kv_heads {
        let reason = Reason::RepeatsDiffer {
            key: key.kv_heads as i64,
            value: value.kv_heads as i64,
        };
        return Err((output, reason));
    }
    if key.side.cache.is_some() != value.side.cache.is_some() {
        return Err((output, Reason::HalfCached));
    }
    same_batch((graph, facts), query, &key, &query_shape).map_err(at(score))?;
    same_heads((graph, facts), probabilities, &query_shape).map_err(at(output))?;
    let types = (facts.elem_type(query), facts.elem_type(probabilities));
    let (elem_type, (Some(score_type), Some(value_type)), true) =
        (key.elem_type, types, key.elem_type == value.elem_type)
    else {
        let reason = operand_shape(
            (graph, facts),
            Operand::Query,
            query,
            "a known element type, the same for keys and values",
        );
        return Err((score, reason));
    };
    if ![elem_type, score_type, value_type]
        .into_iter()
        .all(is_float)
    {
        let reason = operand_shape(
            (graph, facts),
            Operand::Query,
            query,
            "a floating-point type",
        );
        return Err((score, reason));
    }
    let at_interface = key
        .side
        .cache
        .as_ref()
        .and_then(|c| facts.elem_type(c.present()));
    let beside = [key.beside, value.beside].concat();
    let site = Site {
        layer,
        within: None,
        name: module_of(graph, score),
        dialect: Dialect::MATMUL,
        heads,
        kv_heads: key.kv_heads,
        elem_type,
        cached_type: at_interface.unwrap_or(elem_type),
        query: query.to_owned(),
        score,
        output,
        probabilities: probabilities.to_owned(),
        key: Side {
            product_type: score_type,
            ..key.side
        },
        value: Side {
            product_type: value_type,
            ..value.side
        },
        shares: None,
    };
    Ok((site, beside))
}

/// Most numbers of all query heads of a token: declared shapes cost nothing, and statistics of them are allocated.
const MOST_QUERY_CHANNELS: i64 = 1 << 17;

fn operand_shape(
    (graph, facts): (&Graph, &Facts),
    operand: Operand,
    value: &str,
    expected: &str,
) -> Reason {
    unknown_shape(graph, facts, operand, value).unwrap_or_else(|| Reason::OperandShape {
        operand,
        value: value.to_owned(),
        found: text(facts.shape(value).unwrap_or_default()),
        expected: expected.to_owned(),
    })
}

fn query_shape(graph: &Graph, facts: &Facts, query: &str) -> Result<(Vec<TDim>, usize), Reason> {
    let shape = facts.shape(query).unwrap_or_default();
    match shape {
        [_, heads, _, size] => match (heads.as_i64(), size.as_i64()) {
            (Some(heads), Some(size))
                if heads > 0 && heads.saturating_mul(size) <= MOST_QUERY_CHANNELS =>
            {
                Ok((shape.to_vec(), heads as usize))
            }
            _ => Err(operand_shape(
                (graph, facts),
                Operand::Query,
                query,
                "[batch, heads, length, head_size] with constant heads and head_size, and no more than 131,072 numbers of all heads",
            )),
        },
        _ => Err(operand_shape(
            (graph, facts),
            Operand::Query,
            query,
            "[batch, heads, length, head_size]",
        )),
    }
}

/// Checks that query and keys have the same batch size: the products would broadcast, but the rewrite flattens the
/// batch axis.
fn same_batch(
    (graph, facts): (&Graph, &Facts),
    query: &str,
    key: &Proved,
    query_shape: &[TDim],
) -> Result<(), Reason> {
    if query_shape.first() == Some(&key.batch) {
        return Ok(());
    }
    let expected = format!("[{}, heads, length, head_size] as the keys have", key.batch);
    Err(operand_shape(
        (graph, facts),
        Operand::Query,
        query,
        &expected,
    ))
}

/// Checks that the probabilities are those of all query heads.
fn same_heads(
    (graph, facts): (&Graph, &Facts),
    probabilities: &str,
    query_shape: &[TDim],
) -> Result<(), Reason> {
    let shape = facts.shape(probabilities).unwrap_or_default();
    if shape.len() == 4 && shape.get(1) == query_shape.get(1) {
        return Ok(());
    }
    let expected = "the probabilities of all query heads, [batch, heads, length, past + length]";
    Err(operand_shape(
        (graph, facts),
        Operand::Probabilities,
        probabilities,
        expected,
    ))
}
