//! Proof that one operand of a product is `scale * repeat_kv(source)`.

use tract_data::prelude::TDim;

use crate::facts::{Facts, is_named, shape_text as text};
use crate::graph::{Graph, NodeId, attribute, input_at, is_op, output_at};
use crate::recognize::cache::{
    Refused, buffered, filled, is_quantized, may_be_cached, not_growing, second_reader, with_past,
};
use crate::recognize::digits::{Digit, DigitMap};
use crate::recognize::pass_through::makes;
use crate::recognize::reject::{Operand, Reason};
use crate::recognize::shape_reader::{ShapeReader, shape_readers};
use crate::recognize::site::Side;
use crate::recognize::trail::{Trail, trail};
use crate::recognize::unknown_shape::unknown_shape;

/// Most numbers of all KV heads of a token. Factors are matrices of this size squared, and a declared shape costs nothing:
/// 2 GiB in f64 are more than any model needs.
const MOST_CHANNELS: i64 = 1 << 14;

/// One operand of an attention product, proved to be `scale * repeat_kv(source)`.
pub struct Proved {
    /// The recognised keys or values.
    pub side: Side,
    /// G.
    pub kv_heads: usize,
    /// B.
    pub batch: TDim,
    /// ONNX element type of the source.
    pub elem_type: i32,
    /// The other nodes that read a value between the cache and the product, each with the reason why it is in the way unless
    /// it belongs to another attention with the same caches.
    pub beside: Vec<Refused>,
}

/// Proves `operand`, the right operand of `product`; `query` is the shape [B, H, T, d] of the queries.
pub fn prove<'a>(
    graph: &Graph<'a>,
    facts: &Facts,
    (product, operand): (NodeId, &'a str),
    role: Operand,
    query: &[TDim],
) -> Result<Proved, Refused> {
    let trail = trail(graph, facts, operand, role);
    let heads = query.get(1).cloned().unwrap_or_default();
    let filled = filled(graph, facts, &trail);
    let (start, mut proved) = match (&trail.append, filled) {
        (Some(append), _) => {
            let kept = with_past(graph, facts, append, role)?;
            let mut proved = from_source(graph, facts, &trail, 0, role, &heads)?;
            proved.side.new = append.new.to_owned();
            proved.side.cache = Some(kept);
            (0, proved)
        }
        (None, Some((start, cache))) if as_long_as(facts, &trail, start, query) => {
            let mut proved = from_source(graph, facts, &trail, start, role, &heads)?;
            proved.side.cache = Some(cache);
            (start, proved)
        }
        (None, _) => uncached(graph, facts, &trail, role, query)?,
    };
    let returned = proved.side.cache.as_ref().map_or(&[][..], |c| &c.returned);
    let cached = proved.side.cache.is_some().then_some(returned);
    let readers = readers(graph, &trail, (start, product), cached, role)?;
    match (&proved.side.cache, readers) {
        (None, mut readers) if !readers.is_empty() => return Err(readers.swap_remove(0)),
        (_, readers) => proved.beside = readers,
    }
    let path = trail.values.iter().skip(start);
    let path = path.filter(|v| !returned.iter().any(|r| r == *v));
    proved.side.path = path.map(|&v| v.to_owned()).collect();
    proved.side.shape_readers = shapes_asked(graph, facts, &proved.side)?;
    Ok(proved)
}

/// Whether the value at `position` of the trail has the query's length on axis 2.
fn as_long_as(facts: &Facts, trail: &Trail, position: usize, query: &[TDim]) -> bool {
    let length = trail
        .values
        .get(position)
        .and_then(|v| facts.shape(v)?.get(2));
    length.is_some() && length == query.get(2)
}

/// Proves an operand without a cache. Its source is the earliest value from which the repetition can be proved.
fn uncached(
    graph: &Graph,
    facts: &Facts,
    trail: &Trail,
    role: Operand,
    query: &[TDim],
) -> Result<(usize, Proved), Refused> {
    if let Some(refused) = buffered(graph, trail, role) {
        return Err(refused);
    }
    let heads = query.get(1).cloned().unwrap_or_default();
    let end = trail.steps.last().map_or(NodeId(0), |s| s.node);
    let mut first = None;
    for start in 0..trail.values.len() {
        match from_source(graph, facts, trail, start, role, &heads) {
            Ok(proved) if as_long_as(facts, trail, start, query) => return Ok((start, proved)),
            // An operand that is longer than the query comes from a cache or another sequence.
            Ok(_) => return Err(not_growing(graph, facts, trail, role, end)),
            Err(refused) => first = Some(first.unwrap_or(refused)),
        }
    }
    match first {
        _ if is_quantized(graph, trail) => Err(not_growing(graph, facts, trail, role, end)),
        // Rows of another length than the query that no cache feeds, turned by one Transpose: another sequence.
        Some(_) if is_other_sequence(graph, facts, trail, query) => {
            Err(not_growing(graph, facts, trail, role, end))
        }
        Some(refused) if trail.stopped.is_none() => {
            Err(transposed_at_once(graph, facts, trail, role).unwrap_or(refused))
        }
        _ => Err(not_growing(graph, facts, trail, role, end)),
    }
}

/// The rows [B, T, G, d] that the last node of the trail, one `Transpose`, turns into an operand [B, G, d, T].
fn turned_rows<'a>(graph: &Graph<'a>, trail: &Trail) -> Option<(NodeId, &'a str, &'a str)> {
    let last = trail.steps.last()?.node;
    let node = graph.node(last).filter(|node| is_op(node, "Transpose"))?;
    let turned = attribute(node, "perm").is_some_and(|perm| perm.ints == [0, 2, 3, 1]);
    let (operand, rows) = (output_at(node, 0)?, input_at(node, 0)?);
    turned.then_some((last, operand, rows))
}

/// Whether the operand is one `Transpose` of rows whose length is not the query's and that no cache feeds.
fn is_other_sequence(graph: &Graph, facts: &Facts, trail: &Trail, query: &[TDim]) -> bool {
    let Some((_, _, rows)) = turned_rows(graph, trail) else {
        return false;
    };
    let lengths = facts.shape(rows).and_then(|shape| shape.get(1));
    let lengths = lengths.zip(query.get(2));
    // A size without a name may be equal to any other.
    let differ = lengths.is_some_and(|(a, b)| a != b && is_named(a) && is_named(b));
    differ && !may_be_cached(graph, facts, rows)
}

/// The reason of an operand that one `Transpose` makes of rows [B, T, G, d], so that no value has their cached layout.
fn transposed_at_once(
    graph: &Graph,
    facts: &Facts,
    trail: &Trail,
    role: Operand,
) -> Option<Refused> {
    turned_rows(graph, trail).map(|(last, operand, rows)| {
        let reason = Reason::OperandShape {
            operand: role,
            value: operand.to_owned(),
            found: format!(
                "{}, by one Transpose of '{rows}' {}",
                text(facts.shape(operand).unwrap_or_default()),
                text(facts.shape(rows).unwrap_or_default())
            ),
            expected: "two: the first gives [batch, kv_heads, length, head_size], as rows are cached, and the second exchanges its last axes".to_owned(),
        };
        (last, reason)
    })
}

/// Composes the layout operators after `values[start]` and compares the result with repeat_kv.
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
    let append = trail.append.as_ref().filter(|_| start == 0);
    let heads_of = append.filter(|append| append.packed.is_some());
    let heads_of = heads_of.and_then(|append| facts.shape(append.new));
    let rows = match (heads_of, shape) {
        // The heads are on one axis: [B, S, G*d] is read as [B, G, S, d].
        (Some([_, kv_heads, _, size]), [batch, length, _]) => {
            [batch, kv_heads, length, size].map(TDim::clone).to_vec()
        }
        _ => shape.to_vec(),
    };
    let (Some(elem_type), [batch, kv_heads, length, size]) =
        (facts.elem_type(source), rows.as_slice())
    else {
        return Err((at, shape_reason((graph, facts), role, source)));
    };
    let (Some(groups), Some(width)) = (kv_heads.as_i64(), size.as_i64()) else {
        return Err((at, shape_reason((graph, facts), role, source)));
    };
    if groups.saturating_mul(width) > MOST_CHANNELS {
        let reason = Reason::OperandShape {
            operand: role,
            value: source.to_owned(),
            found: format!("{groups} heads of {width} numbers"),
            expected: format!("at most {MOST_CHANNELS} numbers of all KV heads of a token"),
        };
        return Err((at, reason));
    }
    let mut layout = DigitMap::of_source(&rows);
    if let (Some(_), [b, g, t, x]) = (heads_of, layout.axes.as_slice()) {
        layout.axes = vec![b.clone(), t.clone(), [g.clone(), x.clone()].concat()];
    }
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
            rank: (groups * width) as usize,
            fewer: None,
            product_type: elem_type,
            path: Vec::new(),
            shape_readers: Vec::new(),
        },
        kv_heads: groups as usize,
        batch: batch.clone(),
        elem_type,
        beside: Vec::new(),
    })
}

fn shape_reason((graph, facts): (&Graph, &Facts), role: Operand, value: &str) -> Reason {
    unknown_shape(graph, facts, role, value).unwrap_or_else(|| Reason::OperandShape {
        operand: role,
        value: value.to_owned(),
        found: text(facts.shape(value).unwrap_or_default()),
        expected: "[batch, kv_heads, length, head_size] with constant kv_heads and head_size"
            .to_owned(),
    })
}

/// Compares the layout with repeat_kv: (b, h, x, t) -> (b, floor(h / s), t, x) for keys, (b, h, t, x) -> (b, floor(h /
/// s), t, x) for values, with s = H / G.
fn compare(
    layout: &DigitMap,
    role: Operand,
    source: (&TDim, &TDim, &TDim, &TDim),
    heads: &TDim,
) -> Result<(), Reason> {
    let (batch, kv_heads, length, size) = source;
    let whole = |axis: usize, extent: &TDim| {
        let part = Digit {
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
    let copies = Digit {
        extent: TDim::Val(group),
        source: None,
    };
    let mut grouped = whole(1, kv_heads);
    let mut interleaved = grouped.clone();
    if group != 1 {
        grouped.push(copies.clone());
        interleaved.insert(0, copies);
    }
    let arranged = |head_axis: Vec<Digit>| {
        let (t, x) = (whole(2, length), whole(3, size));
        let (row, column) = if role == Operand::Key { (x, t) } else { (t, x) };
        vec![whole(0, batch), head_axis, row, column]
    };
    if layout.axes == arranged(grouped) {
        return Ok(());
    }
    // A single head without repetition: the product broadcasts it to every query head.
    if groups == 1 && layout.axes == arranged(Vec::new()) {
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

/// The nodes beside `product` and the trail from `start` to it that read a value on the way. `Shape` and what makes one of
/// `returned`, the values between cache and graph output, are none.
///
/// # Errors
/// A value on the way that is an output of the graph.
fn readers(
    graph: &Graph,
    trail: &Trail,
    (start, product): (usize, NodeId),
    returned: Option<&[String]>,
    role: Operand,
) -> Result<Vec<Refused>, Refused> {
    let mut found = Vec::new();
    let cached = returned.is_some();
    let returned = returned.unwrap_or_default();
    let beside = returned
        .iter()
        .filter(|r| !trail.values.contains(&r.as_str()));
    let beside = beside.map(|value| (trail.values.len(), value.as_str()));
    let on_the_way = trail.values.iter().copied().enumerate().skip(start);
    for (position, value) in on_the_way.chain(beside) {
        let source = position == start;
        let present = returned.iter().any(|r| r == value);
        if graph.is_output(value) && !(cached && (source || present)) {
            let at = graph.producer(value).map_or(NodeId(0), |(id, _)| id);
            let reason = Reason::OutputInside {
                operand: role,
                value: value.to_owned(),
            };
            return Err((at, reason));
        }
        // Without a cache the rewrite keeps the source, so it may have other readers.
        if source && !cached {
            continue;
        }
        // What follows a value on the trail; a value that is not on it has nothing behind it.
        let next = match position < trail.values.len() {
            true => Some(trail.steps.get(position).map_or(product, |s| s.node)),
            false => None,
        };
        for usage in graph.uses(value) {
            let node = graph.node(usage.node);
            let allowed = match usage.input {
                None => false,
                Some(_) if node.is_some_and(|n| is_op(n, "Shape")) => true,
                Some(0) if makes(graph, usage.node, returned) => true,
                Some(_) => Some(usage.node) == next,
            };
            if !allowed {
                let reason = second_reader(graph, role, value, usage.node);
                found.push((usage.node, reason));
            }
        }
    }
    Ok(found)
}

/// The `Shape` nodes that read a value which the rewrite removes or whose shape it changes.
fn shapes_asked(graph: &Graph, facts: &Facts, side: &Side) -> Result<Vec<ShapeReader>, Refused> {
    let mut readers = Vec::new();
    if let Some(cache) = &side.cache {
        let passed = cache.received.iter().chain(&cache.returned);
        for value in cache.past.iter().chain(passed) {
            readers.extend(shape_readers(graph, facts, value, value, true)?);
        }
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
