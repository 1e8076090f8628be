//! The lengths that the operator takes, and the nodes that read lengths of caches.
//!
//! The operator's caches can be buffers that are longer than what they hold. So the number S of all tokens is the length of
//! the model's attention mask if there is one, and the length of the past is S - T.

use std::collections::BTreeMap;

use crate::analysis::view::SiteView;
use crate::facts::Facts;
use crate::graph::build::node;
use crate::graph::{Graph, NodeId, is_op, label, output_at};
use crate::onnx::{NodeProto, tensor_proto::DataType};
use crate::operators::Primitives;
use crate::recognize::shape_reader::{Element, shape_readers};
use crate::recognize::site::{Cache, Side, Site};

/// Values with the lengths of one step.
pub struct Lengths {
    /// T, a vector of one element.
    pub new: String,
    /// S = P + T, a vector of one element.
    pub total: String,
    /// S as a scalar of int32.
    pub total_int32: String,
    /// S - 1 for each row [B], int32.
    pub seqlens: String,
    /// B, a vector of one element.
    batch: String,
    /// P, a vector of one element; `None` if the pasts are as long as what they hold, so that it is read from them.
    past: Option<String>,
}

/// The graph input [B, S] with an element for every past and new token: `attention_mask`, or one that is declared with that
/// length.
fn mask_input<'g>(graph: &Graph<'g>, facts: &Facts, site: &Site) -> Option<&'g str> {
    let cache = site.key.cache.as_ref()?;
    let new = facts.shape(&site.key.new)?.get(2)?;
    let total = facts.shape(&cache.joined)?.get(2)?;
    graph.reachable_inputs().find(|input| {
        let shape = facts.shape(input).filter(|shape| shape.len() == 2);
        let length = shape.and_then(|shape| shape.get(1));
        let is_mask = *input == "attention_mask" && length.is_some_and(|length| length != new);
        is_mask || length == Some(total)
    })
}

impl Lengths {
    /// The lengths of a step of the attention of `view`; all attentions share their nodes.
    pub fn of(s: &mut Primitives, view: &SiteView) -> Self {
        let site = view.site();
        let (query, one) = (&*site.query, s.vector(&[1]));
        let tokens = model_tokens(view);
        let (from, axis) = tokens.map_or((query, 2), |input| (input, 1));
        let new = s.shared(&format!("raised/T {from}"), |s| s.size("T", from, axis));
        let batch = s.shared(&format!("raised/B {from}"), |s| s.size("B", from, 0));
        let cache = site.key.cache.as_ref();
        let held = cache.and_then(|c| c.past.as_deref()).unwrap_or_default();
        // Without an input that tells T, it comes from the queries, which may depend on the length of a past.
        let mask = mask_input(view.graph, view.facts, site).filter(|_| tokens.is_some());
        let (total, past) = match mask {
            // A mask may be longer than S where the pasts are as long as what they hold, which the smaller number tells.
            Some(mask) => {
                let total = s.shared(&format!("raised/S {mask}"), |s| {
                    let seen = s.size("seen", mask, 1);
                    let room = s.size(ROOM, held, 2);
                    let most = s.op("Add", "most", &[&room, &new]);
                    s.op("Min", "S", &[&seen, &most])
                });
                let past = s.shared(&format!("raised/P {mask}"), |s| {
                    s.op("Sub", "P", &[&total, &new])
                });
                (total, past)
            }
            None => {
                let past = s.size("P", held, 2);
                (s.op("Add", "S", &[&past, &new]), past)
            }
        };
        let total_int32 = s.shared(&format!("raised/total {total}"), |s| {
            let none = s.vector(&[]);
            let scalar = s.op("Reshape", "total", &[&total, &none]);
            s.with("Cast", "total_int32", &[&scalar], |n| {
                n.with_int("to", DataType::Int32 as i64)
            })
        });
        let seqlens = s.shared(&format!("raised/seqlens {total} {batch}"), |s| {
            let last = s.op("Sub", "last", &[&total, &one]);
            let rows = s.op("Expand", "last_of_rows", &[&last, &batch]);
            s.with("Cast", "seqlens", &[&rows], |n| {
                n.with_int("to", DataType::Int32 as i64)
            })
        });
        Self {
            new,
            total,
            total_int32,
            seqlens,
            batch,
            past: mask.map(|_| past),
        }
    }

    /// Replacements of the `Shape` nodes that read a cache of the attention, or a value on the way from it to a product, which
    /// may be longer than what it holds, or is gone.
    ///
    /// # Errors
    /// The reason, if such a node reads a size that is not known.
    pub fn readers(
        &self,
        s: &mut Primitives,
        view: &SiteView,
    ) -> Result<BTreeMap<NodeId, Vec<NodeProto>>, String> {
        let site = view.site();
        let mut replaced = BTreeMap::new();
        let sides = [&site.key, &site.value].into_iter();
        let with_cache = sides.filter_map(|side| Some((side, side.cache.as_ref()?)));
        let values = with_cache.flat_map(|(side, cache)| {
            along(side, cache).map(|(value, is_past)| {
                let past = cache.past.as_deref().unwrap_or_default();
                let anchor = if is_past { past } else { cache.joined.as_str() };
                (value, anchor, is_past)
            })
        });
        for (value, anchor, is_past) in values {
            let length = match (is_past, &self.past) {
                (true, None) => continue,
                (true, Some(past)) => past,
                (false, _) => &self.total,
            };
            let readers = shape_readers(view.graph, view.facts, value, anchor, false);
            let readers = readers.map_err(|(id, _)| {
                let name = view.graph.node(id).map_or("", label);
                format!("Shape '{name}' asks '{value}' for a size that is not known")
            })?;
            for reader in readers {
                let Some(old) = view.graph.node(reader.node) else {
                    continue;
                };
                let sizes: Vec<String> = reader
                    .elements
                    .iter()
                    .map(|element| match element {
                        Element::Fixed(n) => s.vector(&[*n]),
                        Element::Axis(0) => self.batch.clone(),
                        Element::Axis(_) => length.clone(),
                    })
                    .collect();
                let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
                let output = output_at(old, 0).unwrap_or_default();
                let made = node("Concat", old.name(), &sizes, &[output]).with_int("axis", 0);
                replaced.insert(reader.node, vec![made]);
            }
        }
        Ok(replaced)
    }
}

/// The model input [B, T, ...] of new tokens, such as `input_ids`.
fn model_tokens<'v>(view: &SiteView<'v>) -> Option<&'v str> {
    let new = view.facts.shape(&view.site().key.new)?;
    let (batch, length) = (new.first()?, new.get(2)?);
    view.graph.reachable_inputs().find(|input| {
        let shape = view.facts.shape(input);
        shape.is_some_and(|s| s.first() == Some(batch) && s.get(1) == Some(length))
    })
}

/// The values of `side` between its past and the operand of its product, each with whether it is as long as the past.
fn along<'s>(side: &'s Side, cache: &'s Cache) -> impl Iterator<Item = (&'s str, bool)> {
    let before = cache.past.iter().chain(&cache.received);
    let after = [&cache.joined]
        .into_iter()
        .chain(&cache.returned)
        .chain(&side.path);
    let before = before.map(|v| (v.as_str(), true));
    before.chain(after.map(|v| (v.as_str(), false)))
}

/// Name of the size of a past that is a bound of S and no length of what it holds.
const ROOM: &str = "room";

/// Whether `node` reads the size of a past that may be longer than what it holds, as raised attentions do.
pub fn reads_room(node: &NodeProto) -> bool {
    is_op(node, "Shape") && node.name().ends_with(&format!("/{ROOM}/shape"))
}
