//! Proves that one operand of a product is `scale * repeat_kv(source)`.

use tract_data::prelude::TDim;

use super::layout::{Layout, Part, text};
use super::reject::{Operand, Reason};
use super::shape_reader::{ShapeReader, shape_readers};
use super::site::{Cache, Side};
use super::trail::{Trail, trail};
use crate::facts::{Facts, shapes};
use crate::graph::{Graph, NodeId, is_op, label};

/// What is proved of one operand.
pub struct Proved {
    /// Where it comes from.
    pub side: Side,
    /// G.
    pub kv_heads: usize,
    /// B.
    pub batch: TDim,
    /// ONNX element type of the source.
    pub elem_type: i32,
}

type Refused = (NodeId, Reason);

/// Proves `operand`, the right operand of a product whose rows belong to a query of shape `query` [B, H, T, d].
pub fn prove<'a>(
    graph: &Graph<'a>,
    facts: &Facts,
    operand: &'a str,
    role: Operand,
    query: &[TDim],
) -> Result<Proved, Refused> {
    let trail = trail(graph, facts, operand, role);
    let end = graph.producer(operand).map_or(NodeId(0), |(id, _)| id);
    let heads = query.get(1).cloned().unwrap_or_default();
    let (start, mut proved) = match &trail.append {
        Some(append) => {
            let kept = cache(graph, facts, append, role)?;
            let mut proved = from_source(graph, facts, &trail, 0, role, &heads)?;
            proved.side.new = append.new.to_owned();
            proved.side.cache = Some(kept);
            (0, proved)
        }
        None => uncached(graph, facts, &trail, role, query)
            .map_err(|reason| reason.unwrap_or_else(|| not_self(graph, &trail, role, end)))?,
    };
    readers(graph, &trail, start, role)?;
    proved.side.path = trail
        .values
        .iter()
        .skip(start)
        .map(|&v| v.to_owned())
        .collect();
    proved.side.shape_readers = shapes_asked(graph, facts, &proved.side)?;
    Ok(proved)
}

/// Checks that the cache grows along axis 2 and is given back.
fn cache(
    graph: &Graph,
    facts: &Facts,
    append: &super::trail::Append,
    role: Operand,
) -> Result<Cache, Refused> {
    let rank = facts.shape(append.past).map_or(0, <[TDim]>::len);
    if rank != 4 || shapes::axis(append.axis, rank) != Some(2) {
        let reason = Reason::CacheAxis {
            operand: role,
            past: append.past.to_owned(),
            axis: append.axis,
        };
        return Err((append.node, reason));
    }
    if !graph.is_output(append.present) {
        let reason = Reason::CacheNotReturned {
            operand: role,
            past: append.past.to_owned(),
            present: append.present.to_owned(),
        };
        return Err((append.node, reason));
    }
    // The past feeds the append; its shape may be asked for, its numbers may not.
    for usage in graph.uses(append.past) {
        let shape_only =
            usage.input.is_some() && graph.node(usage.node).is_some_and(|n| is_op(n, "Shape"));
        if usage.node != append.node && !shape_only {
            return Err((
                usage.node,
                second_reader(graph, role, append.past, usage.node),
            ));
        }
    }
    Ok(Cache {
        past: append.past.to_owned(),
        present: append.present.to_owned(),
        append: append.node,
    })
}

/// Without a cache, the source is the earliest value from which the repetition can be proved.
fn uncached(
    graph: &Graph,
    facts: &Facts,
    trail: &Trail,
    role: Operand,
    query: &[TDim],
) -> Result<(usize, Proved), Option<Refused>> {
    let heads = query.get(1).cloned().unwrap_or_default();
    let mut last = None;
    for start in 0..trail.values.len() {
        match from_source(graph, facts, trail, start, role, &heads) {
            Ok(proved) => {
                let length = trail
                    .values
                    .get(start)
                    .and_then(|v| facts.shape(v))
                    .and_then(|s| s.get(2));
                if length != query.get(2) {
                    return Err(None);
                }
                return Ok((start, proved));
            }
            Err(refused) => last = Some(last.unwrap_or(refused)),
        }
    }
    // A length other than the query's is the deeper reason.
    Err(last.filter(|_| trail.stopped.is_none()))
}

fn not_self(graph: &Graph, trail: &Trail, role: Operand, end: NodeId) -> Refused {
    let source = trail.values.first().copied().unwrap_or_default();
    let (node, op) = match graph.producer(source) {
        Some((id, node)) => (id, node.op_type().to_owned()),
        None => (end, "nothing".to_owned()),
    };
    let reason = trail
        .stopped
        .clone()
        .unwrap_or_else(|| Reason::NotSelfAttention {
            operand: role,
            value: source.to_owned(),
            op,
        });
    (node, reason)
}

/// Composes the steps after `values[start]` and compares the result with repeat-KV.
fn from_source(
    graph: &Graph,
    facts: &Facts,
    trail: &Trail,
    start: usize,
    role: Operand,
    heads: &TDim,
) -> Result<Proved, Refused> {
    let source = trail.values.get(start).copied().unwrap_or_default();
    let at = trail.steps.get(start).map_or_else(
        || graph.producer(source).map_or(NodeId(0), |(id, _)| id),
        |s| s.node,
    );
    let shape = facts.shape(source).unwrap_or_default();
    let (Some(elem_type), [batch, kv_heads, length, size]) = (facts.elem_type(source), shape)
    else {
        return Err((at, shape_reason(role, source, shape)));
    };
    let (Some(groups), Some(width)) = (kv_heads.as_i64(), size.as_i64()) else {
        return Err((at, shape_reason(role, source, shape)));
    };
    let mut layout = Layout::of_source(shape);
    for step in trail.steps.iter().skip(start) {
        let Some(node) = graph.node(step.node) else {
            continue;
        };
        layout
            .step(facts, node, step.input, role)
            .map_err(|reason| (step.node, reason))?;
    }
    let end = trail.steps.last().map_or(at, |s| s.node);
    compare(&layout, role, (batch, kv_heads, length, size), heads)
        .map_err(|reason| (end, reason))?;
    Ok(Proved {
        side: Side {
            new: source.to_owned(),
            source: source.to_owned(),
            cache: None,
            scale: layout.scale,
            size: width as usize,
            path: Vec::new(),
            shape_readers: Vec::new(),
        },
        kv_heads: groups as usize,
        batch: batch.clone(),
        elem_type,
    })
}

fn shape_reason(role: Operand, value: &str, shape: &[TDim]) -> Reason {
    Reason::OperandShape {
        operand: role,
        value: value.to_owned(),
        found: text(shape),
        expected: "[batch, kv_heads, length, head_size] with constant kv_heads and head_size"
            .to_owned(),
    }
}

/// The layout has to be (b, h, x, t) -> (b, floor(h / s), t, x) for keys, (b, h, t, x) -> (b, floor(h / s), t, x) for values.
fn compare(
    layout: &Layout,
    role: Operand,
    source: (&TDim, &TDim, &TDim, &TDim),
    heads: &TDim,
) -> Result<(), Reason> {
    let (batch, kv_heads, length, size) = source;
    let whole = |axis: usize, extent: &TDim| {
        let part = Part {
            extent: extent.clone(),
            source: Some((axis, 1)),
        };
        if *extent == TDim::Val(1) {
            Vec::new()
        } else {
            vec![part]
        }
    };
    let groups = kv_heads.as_i64().unwrap_or(0);
    let group = match heads.as_i64() {
        Some(heads) if groups > 0 && heads % groups == 0 => heads / groups,
        _ => 0,
    };
    let copies = Part {
        extent: TDim::Val(group),
        source: None,
    };
    let mut grouped = whole(1, kv_heads);
    let mut interleaved = grouped.clone();
    if group != 1 {
        grouped.push(copies.clone());
        interleaved.insert(0, copies);
    }
    let arranged = |head_axis: Vec<Part>| {
        let (t, x) = (whole(2, length), whole(3, size));
        let (row, column) = if role == Operand::Key { (x, t) } else { (t, x) };
        vec![whole(0, batch), head_axis, row, column]
    };
    if layout.axes == arranged(grouped) {
        return Ok(());
    }
    if groups > 1 && layout.axes == arranged(interleaved) {
        return Err(Reason::InterleavedHeads {
            operand: role,
            kv_heads: groups,
            group,
        });
    }
    let order = if role == Operand::Key { "x, t" } else { "t, x" };
    Err(Reason::OtherLayout {
        operand: role,
        found: layout.describe(),
        expected: format!("[b, g*{group}x, {order}]"),
    })
}

/// Nobody but the next step may read the numbers on the way; asking for a shape is fine.
fn readers(graph: &Graph, trail: &Trail, start: usize, role: Operand) -> Result<(), Refused> {
    for (position, value) in trail.values.iter().enumerate().skip(start) {
        let cached = position == 0 && trail.append.is_some();
        if graph.is_output(value) && !cached {
            let at = graph.producer(value).map_or(NodeId(0), |(id, _)| id);
            let reason = Reason::OutputInside {
                operand: role,
                value: (*value).to_owned(),
            };
            return Err((at, reason));
        }
        // The source itself stays when nothing is cached, so its readers do not matter.
        if position == start && trail.append.is_none() {
            continue;
        }
        let next = trail.steps.get(position).map(|s| s.node);
        let mut products = 0;
        for usage in graph.uses(value) {
            let node = graph.node(usage.node);
            let allowed = match (usage.input, next) {
                (None, _) => false,
                (Some(_), _) if node.is_some_and(|n| is_op(n, "Shape")) => true,
                (Some(_), Some(next)) => usage.node == next,
                (Some(_), None) => {
                    products += 1;
                    products == 1
                }
            };
            if !allowed {
                return Err((usage.node, second_reader(graph, role, value, usage.node)));
            }
        }
    }
    Ok(())
}

/// Every question for the shape of a value that the rewrite removes or narrows, with its answer.
fn shapes_asked(graph: &Graph, facts: &Facts, side: &Side) -> Result<Vec<ShapeReader>, Refused> {
    let mut readers = Vec::new();
    if let Some(cache) = &side.cache {
        readers.extend(shape_readers(graph, facts, &cache.past, &cache.past, true)?);
    }
    for value in &side.path {
        let source = *value == side.source;
        if source && side.cache.is_none() {
            continue;
        }
        readers.extend(shape_readers(graph, facts, value, &side.source, source)?);
    }
    Ok(readers)
}

fn second_reader(graph: &Graph, role: Operand, value: &str, reader: NodeId) -> Reason {
    let reader = graph
        .node(reader)
        .map_or_else(String::new, |n| format!("{} '{}'", n.op_type(), label(n)));
    Reason::SecondReader {
        operand: role,
        value: value.to_owned(),
        reader,
    }
}
