//! The mask of an attention as the operator's additive bias.
//!
//! The bias is 0 where a token is visible, and so low where it is hidden that its probability is 0. It is finite, because the
//! operator returns NaN for a row in which all is hidden, such as that of a padding token, and a following layer would spread
//! it. Such rows differ from the original's, and no other row reads them.

use std::collections::HashSet;

use crate::analysis::raise::lengths::Lengths;
use crate::analysis::view::SiteView;
use crate::facts::Facts;
use crate::graph::{Graph, captured, input_at, is_op, label, subgraphs};
use crate::onnx::tensor_proto::DataType;
use crate::operators::Primitives;
use crate::recognize::digits::scalar;
use crate::recognize::scoring::masks;

/// A constant that a mask writes over hidden scores is at most this: exporters write minus infinity, the lowest number of the
/// type, or -10,000.
const HIDDEN: f64 = -1e4;

/// The lowest bias: far below all scores, and far above the lowest number of the type, so that a sum with a score is finite.
fn lowest(elem_type: i32) -> f64 {
    match elem_type == DataType::Float16 as i32 {
        true => -3e4,
        false => -1e30,
    }
}

/// The bias [1 or B, 1 or H, T, S] of the attention of `view`.
///
/// # Errors
/// Why its mask cannot be a bias.
pub fn bias(s: &mut Primitives, view: &SiteView, lengths: &Lengths) -> Result<String, String> {
    let (site, graph, facts) = (view.site(), view.graph, view.facts);
    let masks = masks(graph, facts, site).ok_or("its mask is not recognised")?;
    let mut parts: Vec<(String, String)> = Vec::new();
    for (id, scores) in masks {
        let Some(node) = graph.node(id) else { continue };
        let input = |at| input_at(node, at).unwrap_or_default();
        if node.op_type() == "Add" {
            let mask = input(1 - scores.min(1));
            only_reads_masks((graph, facts), mask)?;
            parts.push((mask.to_owned(), mask.to_owned()));
            continue;
        }
        let (condition, other) = (input(0), input(3 - scores.clamp(1, 2)));
        only_reads_masks((graph, facts), condition)?;
        let hidden = scalar(facts, other).filter(|hidden| *hidden <= HIDDEN);
        let hidden = hidden.ok_or_else(|| {
            format!(
                "Where '{}' does not write one low number over hidden scores",
                label(node)
            )
        })?;
        let elem_type = facts.elem_type(other).unwrap_or(site.elem_type);
        let key = format!("raised/mask {condition} {scores} {hidden} {elem_type}");
        let mask = s.shared(&key, |s| {
            let (zero, low) = (s.scalar(elem_type, 0.0), s.scalar(elem_type, hidden));
            let values = if scores == 1 {
                [&*condition, &zero, &low]
            } else {
                [&*condition, &low, &zero]
            };
            s.op("Where", "mask", &values)
        });
        parts.push((condition.to_owned(), mask));
    }
    if parts.is_empty() {
        return Err("it has no mask, and the operator hides later tokens".to_owned());
    }
    let all: Vec<&str> = parts.iter().map(|(_, mask)| mask.as_str()).collect();
    let key = format!("raised/bias {} {}", all.join(" "), site.elem_type);
    let shapes: Vec<_> = parts.iter().map(|(of, _)| facts.shape(of)).collect();
    let (tokens, columns) = (facts.shape(&site.query), site.key.cache.as_ref());
    let columns = columns.and_then(|c| facts.shape(&c.joined));
    let (tokens, columns) = (
        tokens.and_then(|q| q.get(2)),
        columns.and_then(|k| k.get(2)),
    );
    let is_whole = tokens.is_some()
        && columns.is_some()
        && shapes.iter().all(|shape| {
            shape.is_some_and(|sh| sh.len() == 4 && sh.get(2) == tokens && sh.get(3) == columns)
        });
    Ok(s.shared(&key, |s| {
        let typed = |s: &mut Primitives, (at, mask): (usize, &str)| {
            let same = facts.elem_type(mask) == Some(site.elem_type);
            match same {
                true => mask.to_owned(),
                false => s.with("Cast", &format!("bias/typed{at}"), &[mask], |n| {
                    n.with_int("to", i64::from(site.elem_type))
                }),
            }
        };
        let mut sum: Option<String> = None;
        for (at, mask) in all.iter().enumerate() {
            let mask = typed(s, (at, mask));
            sum = Some(match sum {
                None => mask,
                Some(sum) => s.op("Add", &format!("bias/sum{at}"), &[&sum, &mask]),
            });
        }
        let low = s.scalar(site.elem_type, lowest(site.elem_type));
        let bias = s.op("Max", "bias/finite", &[&sum.unwrap_or_default(), &low]);
        if is_whole {
            return bias;
        }
        let ones = s.vector(&[1, 1]);
        let whole = s.with(
            "Concat",
            "bias/shape",
            &[&ones, &lengths.new, &lengths.total],
            |n| n.with_int("axis", 0),
        );
        s.op("Expand", "bias", &[&bias, &whole])
    }))
}

/// Checks that the mask `value` depends on no inputs but positions and masks of tokens, [B, S]: an input such as the kinds of
/// tokens, or a mask with an axis of queries, can make later tokens visible, which the operator hides.
fn only_reads_masks((graph, facts): (&Graph, &Facts), value: &str) -> Result<(), String> {
    let mut open = vec![value];
    let mut seen = HashSet::new();
    while let Some(value) = open.pop() {
        if !seen.insert(value.to_owned()) {
            continue;
        }
        if let Some((_, node)) = graph.producer(value) {
            if !is_op(node, "Shape") && !is_op(node, "Size") {
                open.extend(
                    node.input
                        .iter()
                        .filter(|i| !i.is_empty())
                        .map(String::as_str),
                );
                open.extend(subgraphs(node).flat_map(captured));
            }
            continue;
        }
        let of_tokens = || facts.shape(value).is_some_and(|shape| shape.len() <= 2);
        let is_known = value.contains("position") || value.contains("mask") && of_tokens();
        if graph.is_reachable_input(value) && !is_known {
            return Err(format!(
                "its mask depends on the input '{value}', which can show later tokens, and the operator hides them"
            ));
        }
    }
    Ok(())
}
