//! The expanded form: the cache holds the latent of the keys before rotation, and keys and values are rebuilt from it.
//!
//! ```text
//! c_k = x W_a          W_a = W_K w_dk; cached in place of the rotated keys
//! K = rotate(C_k w_uk, positions 0..S)          all positions at every step
//! c_v = x W_a'         W_a' = W_V w_dv; cached
//! V = C_v w_uv
//! ```
//!
//! (TransMLA, arXiv 2502.07864, figure 1c.) Where keys before rotation or values are more than a projection of the layer's
//! input, behind a norm for example, or quantized, the projection stays and w_dk or w_dv meets what it made. What read the
//! cached keys and values reads K and V, so that the exporter's repetition, masks and products stay. The position of a
//! cached row follows from the mask, or is its place; without a cache all rows are this step's, at its own positions.

use std::collections::HashMap;

use crate::factor::Ranks;
use crate::facts::Facts;
use crate::forms::builder::Builder;
use crate::forms::weights::{Folded, Weights};
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId};
use crate::onnx::NodeProto;
use crate::recognize::rotation::Rotated;
use crate::recognize::site::{Side, Site};

/// Builds the patch of one site; `weights` are initializers that it may read, of ranks `ranks`. `None` where a shape on
/// the way does not fit any number of positions.
pub fn expanded(
    graph: &Graph,
    facts: &Facts,
    prefix: String,
    site: &Site,
    rotated: &Rotated,
    weights: &Weights,
    ranks: Ranks,
) -> Option<Patch> {
    let mut builder = Builder::new(graph, prefix, site, weights, ranks);
    let rotation = match rotated {
        Rotated::By(rotation) => Some(rotation),
        Rotated::No => None,
        Rotated::Unknown(_) => return None,
    };
    let packed = rotation.is_some_and(|r| r.packed);
    let (mut nodes, rows) = match rotation {
        Some(rotation) => rotation.rows(graph, &|part| builder.name(part))?,
        None => builder.new_rows(&site.key, 'k'),
    };
    let (more, latents) = builder.append(&site.key, 'k', &rows, packed);
    nodes.extend(more);
    let (more, mut keys) = builder.rebuilt(&latents, 'k', packed);
    nodes.extend(more);
    if let Some(rotation) = rotation {
        let (more, rotated) = builder.rotate(facts, rotation, &keys)?;
        nodes.extend(more);
        keys = rotated;
    }
    builder.put(&site.key, nodes);
    let (mut nodes, rows) = builder.new_rows(&site.value, 'v');
    let (more, latents) = builder.append(&site.value, 'v', &rows, false);
    nodes.extend(more);
    let (more, values) = builder.rebuilt(&latents, 'v', false);
    nodes.extend(more);
    builder.put(&site.value, nodes);
    builder.redirect(&[(&site.key, keys), (&site.value, values)]);
    for (side, rank) in [(&site.key, ranks.key), (&site.value, ranks.value)] {
        let Some(cache) = &side.cache else {
            continue;
        };
        builder.narrow(cache, rank);
        for reader in &side.shape_readers {
            let asked = graph.node(reader.node).and_then(|n| n.input.first());
            if asked.is_some_and(|v| cache.past.iter().chain(&cache.aliases).any(|p| p == v)) {
                builder.shape(reader);
            }
        }
    }
    Some(builder.patch)
}

/// The value that the attention reads all rows of `side` from.
fn all_rows(side: &Side) -> &str {
    side.cache.as_ref().map_or(&side.new, |c| &c.present)
}

impl Builder<'_> {
    /// The rows of this step, with the nodes that make them where it is the first.
    fn new_rows(&self, side: &Side, letter: char) -> (Vec<NodeProto>, String) {
        match &side.cache {
            Some(cache) if cache.past.is_none() => self.first_rows(cache, letter),
            _ => (Vec::new(), side.new.clone()),
        }
    }

    /// Puts the nodes that make all rows of `side` where they were made, or in front of what reads them.
    fn put(&mut self, side: &Side, nodes: Vec<NodeProto>) {
        let at = match &side.cache {
            Some(cache) => Some(cache.append),
            None => self.graph.uses(&side.new).iter().map(|u| u.node).min(),
        };
        if let Some(at) = at {
            self.place(at, nodes);
        }
    }

    /// Latent rows of this step, appended to the cache where there is one, and the value [B, 1, S, r] that holds all.
    fn append(
        &mut self,
        side: &Side,
        letter: char,
        rows: &str,
        packed: bool,
    ) -> (Vec<NodeProto>, String) {
        let part = |p: &str| format!("{letter}_{p}");
        let (down, folded) = match letter {
            'k' => (&self.weights.w_dk, &self.weights.key_from),
            _ => (&self.weights.w_dv, &self.weights.value_from),
        };
        let mut nodes = match (folded, packed) {
            (Some(Folded { input, bias: None }), _) => {
                vec![self.unary("MatMul", &part("BTr"), &[input, down])]
            }
            (
                Some(Folded {
                    input,
                    bias: Some(bias),
                }),
                _,
            ) => vec![
                self.unary("MatMul", &part("xw"), &[input, down]),
                self.unary("Add", &part("BTr"), &[&self.name(&part("xw")), bias]),
            ],
            (None, true) => vec![self.unary("MatMul", &part("BTr"), &[rows, down])],
            (None, false) => self.latent_rows(side, letter, rows),
        };
        let one = self.vector(&[1]);
        let (flat, new) = (self.name(&part("BTr")), self.name(&part("B1Tr")));
        let all = match &side.cache {
            None => new.clone(),
            Some(cache) => cache.present.clone(),
        };
        let Some((cache, past)) = side
            .cache
            .as_ref()
            .and_then(|c| Some((c, c.past.as_ref()?)))
        else {
            nodes.push(node("Unsqueeze", &new, &[&flat, &one], &[&all]));
            return (nodes, all);
        };
        let old = self.graph.node(cache.append).map_or("", NodeProto::name);
        nodes.push(node("Unsqueeze", &new, &[&flat, &one], &[&new]));
        nodes.push(node("Concat", old, &[past, &new], &[&all]).with_int("axis", 2));
        (nodes, all)
    }

    /// All rows of one side out of its latents: [B, G, S, size], or [B, S, G*size] where `packed`.
    fn rebuilt(&mut self, latents: &str, letter: char, packed: bool) -> (Vec<NodeProto>, String) {
        let up = match letter {
            'k' => self.weights.w_uk.clone(),
            _ => self.weights.w_uv.clone(),
        };
        if !packed {
            let part = format!("{letter}_BGSd");
            let node = self.unary("MatMul", &part, &[latents, &up]);
            return (vec![node], self.name(&part));
        }
        let one = self.vector(&[1]);
        let flat = format!("{letter}_BSr");
        let part = format!("{letter}_BSx");
        let nodes = vec![
            self.unary("Squeeze", &flat, &[latents, &one]),
            self.unary("MatMul", &part, &[&self.name(&flat), &up]),
        ];
        (nodes, self.name(&part))
    }

    /// Who read the rows of a side reads what was rebuilt from its latents; the value product gets its bias.
    fn redirect(&mut self, rebuilt: &[(&Side, String)]) {
        let mut changed: HashMap<NodeId, NodeProto> = HashMap::new();
        for (side, whole) in rebuilt {
            let rows = all_rows(side);
            for usage in self.graph.uses(rows) {
                let Some(old) = self.graph.node(usage.node) else {
                    continue;
                };
                let reader = changed.entry(usage.node).or_insert_with(|| old.clone());
                for input in reader.input.iter_mut().filter(|i| *i == rows) {
                    input.clone_from(whole);
                }
            }
        }
        if let (Some(bias), Some(old)) =
            (self.weights.bias.clone(), self.graph.node(self.site.output))
        {
            let (name, output) = self.names_of(self.site.output);
            let product = self.name("out_BHTd");
            let mut node_before = changed
                .remove(&self.site.output)
                .unwrap_or_else(|| old.clone());
            node_before.name = Some(product.clone());
            node_before.output = vec![product.clone()];
            self.place(
                self.site.output,
                vec![
                    node_before,
                    node("Add", &name, &[&product, &bias], &[&output]),
                ],
            );
        }
        let mut changed: Vec<_> = changed.into_iter().collect();
        changed.sort_by_key(|(id, _)| *id);
        for (id, reader) in changed {
            self.place(id, vec![reader]);
        }
    }
}
