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
//! input, behind a norm for example, or quantized, the projection stays and w_dk or w_dv meets what it made. What read the cached keys and values reads K and V, so that the exporter's
//! repetition, masks and products stay. The position of a cached row follows from the mask, or is its place.

use std::collections::HashMap;

use super::builder::Builder;
use super::weights::{Folded, Weights};
use crate::factor::Ranks;
use crate::facts::Facts;
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId, is_op, label};
use crate::onnx::{NodeProto, TensorProto, tensor_proto::DataType};
use crate::recognize::rotation::{Form, Positions, Rotated, Rotation};
use crate::recognize::site::{Cache, Side, Site};

/// Builds the patch of one cached site; `weights` are initializers that it may read, of ranks `ranks`. `None` where a
/// shape on the way does not fit any number of positions.
pub fn expanded(
    graph: &Graph,
    facts: &Facts,
    prefix: String,
    site: &Site,
    rotated: &Rotated,
    weights: &Weights,
    ranks: Ranks,
) -> Option<Patch> {
    let (keys, values) = (site.key.cache.as_ref()?, site.value.cache.as_ref()?);
    let mut builder = Builder::new(graph, prefix, site, weights, ranks);
    let rotation = match rotated {
        Rotated::By(rotation) => Some(rotation),
        Rotated::No => None,
        Rotated::Unknown(_) => return None,
    };
    let packed = rotation.is_some_and(|r| r.packed);
    let (mut nodes, rows) = match rotation {
        Some(rotation) => (Vec::new(), rotation.input.clone()),
        None => builder.new_rows(&site.key, keys, 'k'),
    };
    nodes.extend(builder.append(&site.key, keys, 'k', &rows, packed));
    let (more, mut whole_keys) = builder.rebuilt(keys, 'k', packed);
    nodes.extend(more);
    if let Some(rotation) = rotation {
        let mask = mask(graph, facts, keys);
        let (more, rotated) = builder.rotate(facts, rotation, mask, keys, &whole_keys)?;
        nodes.extend(more);
        whole_keys = rotated;
    }
    builder.place(keys.append, nodes);
    let (mut nodes, rows) = builder.new_rows(&site.value, values, 'v');
    nodes.extend(builder.append(&site.value, values, 'v', &rows, false));
    let (more, whole_values) = builder.rebuilt(values, 'v', false);
    nodes.extend(more);
    builder.place(values.append, nodes);
    builder.narrow(keys, ranks.key);
    builder.narrow(values, ranks.value);
    builder.redirect(&[(keys, whole_keys), (values, whole_values)]);
    let pasts = |cache: &Cache| -> Vec<String> {
        cache.past.iter().chain(&cache.aliases).cloned().collect()
    };
    for (side, cache) in [(&site.key, keys), (&site.value, values)] {
        let names = pasts(cache);
        for reader in &side.shape_readers {
            let asked = graph.node(reader.node).and_then(|n| n.input.first());
            if asked.is_some_and(|value| names.contains(value)) {
                builder.shape(reader);
            }
        }
    }
    Some(builder.patch)
}

/// The input [B, S] of the graph that says where there is a token.
fn mask<'g>(graph: &Graph<'g>, facts: &Facts, keys: &Cache) -> Option<&'g str> {
    let length = facts.shape(&keys.present)?.get(2)?;
    let fits = |name: &&str| {
        facts
            .shape(name)
            .is_some_and(|s| s.len() == 2 && s.get(1) == Some(length))
    };
    // Exporters call it so; its second size may have a name that nothing ties to the caches'.
    let named = |name: &&str| {
        let own = !name.contains("encoder") || name.contains("decoder");
        let ranks = facts.shape(name).map(<[_]>::len);
        name.contains("attention_mask") && own && ranks == Some(2)
    };
    let inputs = || {
        let names = graph.reachable_inputs();
        names.filter(|n| graph.input(n).is_some())
    };
    inputs().find(named).or_else(|| inputs().find(fits))
}

impl Builder<'_> {
    /// The rows of this step, with the nodes that make them where it is the first.
    fn new_rows(&self, side: &Side, cache: &Cache, letter: char) -> (Vec<NodeProto>, String) {
        match cache.past {
            Some(_) => (Vec::new(), side.new.clone()),
            None => self.first_rows(cache, letter),
        }
    }

    /// Latent rows of this step, appended to the cache.
    fn append(
        &mut self,
        side: &Side,
        cache: &Cache,
        letter: char,
        rows: &str,
        packed: bool,
    ) -> Vec<NodeProto> {
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
        let old = self.graph.node(cache.append).map_or("", NodeProto::name);
        let Some(past) = &cache.past else {
            nodes.push(node("Unsqueeze", &new, &[&flat, &one], &[&cache.present]));
            return nodes;
        };
        nodes.push(node("Unsqueeze", &new, &[&flat, &one], &[&new]));
        nodes.push(node("Concat", old, &[past, &new], &[&cache.present]).with_int("axis", 2));
        nodes
    }

    /// All rows of one side out of its cache: [B, G, S, size], or [B, S, G*size] where `packed`.
    fn rebuilt(&mut self, cache: &Cache, letter: char, packed: bool) -> (Vec<NodeProto>, String) {
        let up = match letter {
            'k' => self.weights.w_uk.clone(),
            _ => self.weights.w_uv.clone(),
        };
        if !packed {
            let part = format!("{letter}_BGSd");
            let node = self.unary("MatMul", &part, &[&cache.present, &up]);
            return (vec![node], self.name(&part));
        }
        let one = self.vector(&[1]);
        let flat = format!("{letter}_BSr");
        let part = format!("{letter}_BSx");
        let nodes = vec![
            self.unary("Squeeze", &flat, &[&cache.present, &one]),
            self.unary("MatMul", &part, &[&self.name(&flat), &up]),
        ];
        (nodes, self.name(&part))
    }

    /// Copies of the nodes that rotate the new rows, which rotate `rows` at all positions.
    fn rotate(
        &mut self,
        facts: &Facts,
        rotation: &Rotation,
        mask: Option<&str>,
        keys: &Cache,
        rows: &str,
    ) -> Option<(Vec<NodeProto>, String)> {
        let (mut nodes, positions) = self.all_positions(facts, &rotation.positions, mask, keys);
        let mut names: HashMap<String, String> = HashMap::from([
            (rotation.positions.value.clone(), positions),
            (rotation.input.clone(), rows.to_owned()),
        ]);
        let copied: Vec<&NodeId> = rotation.tables.iter().chain(&rotation.nodes).collect();
        nodes.extend(self.copies(facts, rotation, &copied, &mut names, "rotate")?);
        Some((nodes, self.last_of(rotation, &names)?))
    }

    /// Copies of `nodes`, which are of `rotation`, with other inputs: `names` gives them, and takes the copies' outputs.
    pub(super) fn copies(
        &mut self,
        facts: &Facts,
        rotation: &Rotation,
        nodes: &[&NodeId],
        names: &mut HashMap<String, String>,
        tag: &str,
    ) -> Option<Vec<NodeProto>> {
        let mut nodes = nodes.to_vec();
        nodes.sort();
        let mut copies = Vec::with_capacity(nodes.len());
        for id in nodes {
            let old = self.graph.node(*id)?;
            let mut copy = old.clone();
            copy.name = Some(self.name(&format!("{tag}/{}", label(old))));
            for input in &mut copy.input {
                if let Some(new) = names.get(input.as_str()) {
                    input.clone_from(new);
                }
            }
            if rotation.nodes.contains(id) && is_op(old, "Reshape") {
                let target = self.vector(&any_length(facts, old)?);
                if let Some(shape) = copy.input.get_mut(1) {
                    *shape = target;
                }
                copy.attribute.retain(|a| a.name() != "allowzero");
            }
            if old.op_type() == "RotaryEmbedding" && !rotation.packed {
                // Rows of four axes say for themselves how many heads they have.
                copy.attribute.retain(|a| a.name() != "num_heads");
            }
            for output in copy.output.iter_mut().filter(|o| !o.is_empty()) {
                let new = self.name(&format!("{tag}/{output}"));
                names.insert(output.clone(), new.clone());
                *output = new;
            }
            copies.push(copy);
        }
        Some(copies)
    }

    /// What the copies of `rotation` end in.
    pub(super) fn last_of(
        &self,
        rotation: &Rotation,
        names: &HashMap<String, String>,
    ) -> Option<String> {
        let last = self.graph.node(*rotation.nodes.last()?)?;
        names.get(last.output.first()?).cloned()
    }

    /// Positions of all cached rows, in the form and type of `of`.
    fn all_positions(
        &mut self,
        facts: &Facts,
        of: &Positions,
        mask: Option<&str>,
        keys: &Cache,
    ) -> (Vec<NodeProto>, String) {
        let int64 = DataType::Int64 as i64;
        let (zero, one) = (self.scalar("zero", 0), self.scalar("one", 1));
        let part = |p: &str| format!("positions/{p}");
        let mut nodes = Vec::new();
        let mut last = match (of.form, mask) {
            (Form::First, _) => self.vector(&[0]),
            (Form::Rows, Some(mask)) => {
                nodes.extend([
                    self.unary("Cast", &part("mask"), &[mask])
                        .with_int("to", int64),
                    self.unary("CumSum", &part("count"), &[&self.name(&part("mask")), &one]),
                    self.unary("Sub", &part("place"), &[&self.name(&part("count")), &one]),
                    // Padding in front has no place; the mask hides it.
                    self.unary("Max", &part("all"), &[&self.name(&part("place")), &zero]),
                ]);
                self.name(&part("all"))
            }
            _ => {
                let two = self.scalar("two", 2);
                nodes.extend([
                    self.unary("Shape", &part("shape"), &[&keys.present]),
                    self.unary("Gather", &part("S"), &[&self.name(&part("shape")), &two])
                        .with_int("axis", 0),
                    self.unary(
                        "Range",
                        &part("all"),
                        &[&zero, &self.name(&part("S")), &one],
                    ),
                ]);
                self.name(&part("all"))
            }
        };
        if matches!((of.form, mask), (Form::OneRow, _) | (Form::Rows, None)) {
            let first = self.vector(&[0]);
            nodes.push(self.unary("Unsqueeze", &part("row"), &[&last, &first]));
            last = self.name(&part("row"));
        }
        let wanted = facts.elem_type(&of.value).map_or(int64, i64::from);
        if wanted != int64 {
            let cast = self.unary("Cast", &part("cast"), &[&last]);
            nodes.push(cast.with_int("to", wanted));
            last = self.name(&part("cast"));
        }
        (nodes, last)
    }

    /// An int64 scalar, one a model.
    fn scalar(&mut self, name: &str, value: i64) -> String {
        let name = format!("mla/{name}");
        if self.graph.initializer(&name).is_none() {
            self.patch.add_initializers(vec![TensorProto {
                name: Some(name.clone()),
                data_type: Some(DataType::Int64 as i32),
                raw_data: Some(value.to_le_bytes().to_vec().into()),
                ..TensorProto::default()
            }]);
        }
        name
    }

    /// Who read a cache reads what was rebuilt from it; the value product gets its bias.
    fn redirect(&mut self, rebuilt: &[(&Cache, String)]) {
        let mut changed: HashMap<NodeId, NodeProto> = HashMap::new();
        for (cache, whole) in rebuilt {
            for usage in self.graph.uses(&cache.present) {
                let Some(old) = self.graph.node(usage.node) else {
                    continue;
                };
                let reader = changed.entry(usage.node).or_insert_with(|| old.clone());
                for input in reader.input.iter_mut().filter(|i| **i == cache.present) {
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

/// The target of a Reshape that joins or splits last axes, for any number of positions.
fn any_length(facts: &Facts, node: &NodeProto) -> Option<Vec<i64>> {
    let from = facts.shape(node.input.first()?)?;
    let to = facts.shape(node.output.first()?)?;
    let kept = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    let kept = kept.min(to.len().checked_sub(1)?).min(3);
    let mut target = vec![0; kept];
    for size in to.get(kept..)? {
        target.push(size.as_i64()?);
    }
    Some(target)
}
