//! The patch builder that all target forms use: names, constants, cache shapes, and the down-projection to latent rows.

use std::collections::{BTreeMap, BTreeSet};

use crate::analysis::SiteView;
use crate::factor::Ranks;
use crate::facts::Facts;
use crate::facts::typed::{Contradiction, TypedPatch};
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::graph::build::{
    NewSize, NewType, int64_scalar, int64_vector, node, shared_constant, shared_node, vector_name,
};
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId, is_alias, is_op};
use crate::onnx::{NodeProto, TensorProto};
use crate::recognize::divided::undivided;
use crate::recognize::pass_through::makes;
use crate::recognize::site::{Cache, Side, Site};

/// Collects the patch of one attention, and checks every new node against the known types and shapes.
pub struct Builder<'s> {
    /// The graph of the attention.
    pub graph: &'s Graph<'s>,
    /// The attention that is rewritten.
    pub site: &'s Site,
    /// Its factors as initializers.
    pub layout: &'s Layout,
    /// The ranks.
    pub ranks: Ranks,
    /// The facts of the graph without the patch.
    pub before: &'s Facts,
    names: &'s SiteNames<'s>,
    /// What the names of new values begin with.
    way: String,
    patch: TypedPatch<'s>,
    /// Values of the graph, each with the value that its readers read instead.
    redirected: BTreeMap<String, String>,
    /// The contradiction of the first new node that has one.
    contradiction: Option<Contradiction>,
}

impl<'s> Builder<'s> {
    /// An empty patch of the form named `form` for the attention of `view`.
    pub fn new(
        form: &str,
        view: &SiteView<'s>,
        names: &'s SiteNames<'s>,
        layout: &'s Layout,
        ranks: Ranks,
    ) -> Self {
        let mut patch = TypedPatch::new(form, view.graph, view.facts);
        for (name, elem_type, shape) in layout.declared() {
            patch.declare(name, elem_type, shape);
        }
        Self {
            graph: view.graph,
            site: view.site(),
            layout,
            ranks,
            before: view.facts,
            names,
            way: String::new(),
            patch,
            redirected: BTreeMap::new(),
            contradiction: None,
        }
    }

    /// The facts of the values of the graph and of the new nodes.
    pub fn facts(&self) -> &Facts {
        self.patch.facts()
    }

    /// The patch.
    ///
    /// # Errors
    /// [`Contradiction`] with the first node that contradicts the types or shapes of the graph.
    pub fn finish(mut self) -> Result<Patch, Contradiction> {
        let readers = self.redirected.keys().flat_map(|v| self.graph.uses(v));
        let readers = readers.map(|usage| usage.node);
        let readers: BTreeSet<NodeId> = readers.filter(|&id| !self.passes_cache_on(id)).collect();
        for id in readers {
            if let Some(reader) = self.reader(id).filter(|n| !self.patch.stands_for(n)) {
                self.place(id, vec![reader]);
            }
        }
        match self.contradiction {
            Some(contradiction) => Err(contradiction),
            None => self.patch.finish(),
        }
    }
}

impl Builder<'_> {
    /// The name of a new node and of its output.
    pub fn name(&self, part: &str) -> String {
        self.names.name(&format!("{}{part}", self.way))
    }

    /// What `make` returns. The names that it gives begin with `way`, so that another branch can have the same nodes.
    pub fn within<T>(&mut self, way: &str, make: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.way, way.to_owned());
        let made = make(self);
        self.way = before;
        made
    }

    /// An int64 vector, named by its content, so that equal vectors are shared, also with an earlier rewrite of the
    /// model.
    pub fn vector(&mut self, values: &[i64]) -> String {
        self.constant(int64_vector(&vector_name(values), values))
    }

    /// An int64 scalar, named by its content.
    pub fn scalar(&mut self, value: i64) -> String {
        self.constant(int64_scalar(&format!("mla/{value}"), value))
    }

    /// The name of an initializer with the content of `tensor`, which is added unless the graph has one.
    pub fn constant(&mut self, tensor: TensorProto) -> String {
        let (name, new) = shared_constant(self.graph, tensor);
        if let Some(tensor) = new {
            self.patch.initializer(tensor);
        }
        name
    }

    /// The output of `node`, which is placed before all nodes of the graph and shared by all attentions. Its name is
    /// that of its output. It reads only graph inputs, constants and other shared nodes.
    pub fn shared(&mut self, node: NodeProto) -> String {
        let (name, new) = shared_node(self.graph, node);
        if let Some(node) = new {
            let placed = self.patch.in_front(node);
            self.contradiction = self.contradiction.take().or(placed.err());
        }
        name
    }

    /// The nodes that compute the output of the value product, bias correction included, from `rows` [B, G, (H/G)*T,
    /// dv].
    pub fn heads_out(&mut self, rows: &str, node_name: &str, output: &str) -> Vec<NodeProto> {
        let shape = self.vector(&[0, self.site.heads as i64, -1, self.site.value.size as i64]);
        self.with_bias("Reshape", &[rows, &shape], node_name, output)
    }

    /// The nodes that compute the output of the value product [B, H, T, dv] by the operator `op`, bias correction included.
    pub fn with_bias(
        &self,
        op: &str,
        inputs: &[&str],
        node_name: &str,
        output: &str,
    ) -> Vec<NodeProto> {
        match self.layout.find("b_v") {
            None => vec![node(op, node_name, inputs, &[output])],
            Some(bias) => vec![
                self.unary(op, "out_BHTd", inputs),
                node("Add", node_name, &[&self.name("out_BHTd"), bias], &[output]),
            ],
        }
    }

    /// The node that divides the scores `part`, [B, 1, H*T, S] or [B, G, (H/G)*T, S], by heads: [B, H, T, S].
    pub fn scores_of_heads(&mut self, part: &str, node_name: &str, output: &str) -> NodeProto {
        let shape = self.vector(&[0, self.site.heads as i64, -1, 0]);
        node("Reshape", node_name, &[&self.name(part), &shape], &[output])
    }

    /// A node with one output, both named after `part`.
    pub fn unary(&self, op: &str, part: &str, inputs: &[&str]) -> NodeProto {
        let name = self.name(part);
        node(op, &name, inputs, &[&name])
    }

    /// Replaces the node `at` by `nodes`, or appends them to its replacements. They get the metadata of `at`.
    pub fn place(&mut self, at: NodeId, nodes: Vec<NodeProto>) {
        let metadata = self
            .graph
            .node(at)
            .map(|n| n.metadata_props.clone())
            .unwrap_or_default();
        let mut nodes = nodes;
        for node in &mut nodes {
            node.metadata_props.clone_from(&metadata);
        }
        let placed = self.patch.place(at, nodes);
        self.contradiction = self.contradiction.take().or(placed.err());
    }

    /// The latent rows [B, T, r] of `rows` [B, G, T, d], and the nodes that compute them. Without w_d (full rank), the latent
    /// is the concatenation of the heads.
    pub fn latent_rows(
        &mut self,
        side: &Side,
        letter: char,
        rows: &str,
    ) -> (Vec<NodeProto>, String) {
        let latent = format!("{letter}_BTr");
        let joined = |builder: &mut Self, part: &str| {
            builder.heads_joined(side, &format!("{letter}_BTGd"), rows, part)
        };
        let Some(down) = self.layout.find(&format!("w_d{letter}")) else {
            return joined(self, &latent);
        };
        let (mut nodes, heads) = joined(self, &format!("{letter}_BTx"));
        nodes.push(self.unary("MatMul", &latent, &[&heads, down]));
        (nodes, self.name(&latent))
    }

    /// The heads of `rows` [B, G, T, d] on one axis, [B, T, G * d]: the value that the graph divides into `rows`, or `joined`
    /// and the nodes that compute it, with the value `by_token` [B, T, G, d] between.
    pub fn heads_joined(
        &mut self,
        side: &Side,
        by_token: &str,
        rows: &str,
        joined: &str,
    ) -> (Vec<NodeProto>, String) {
        if let Some(packed) = undivided(self.graph, self.before, rows) {
            return (Vec::new(), packed.to_owned());
        }
        let packed = self.vector(&[0, 0, self.site.kv_heads as i64 * side.size as i64]);
        let turned = self.unary("Transpose", by_token, &[rows]);
        let nodes = vec![
            turned.with_ints("perm", &[0, 2, 1, 3]),
            self.unary("Reshape", joined, &[&self.name(by_token), &packed]),
        ];
        (nodes, self.name(joined))
    }

    /// The first rows of a cache without a past, under a name other than the present's, and the nodes that make them:
    /// the original node with a renamed output, or none if it is an alias node.
    pub fn first_rows(&self, cache: &Cache, letter: char) -> (Vec<NodeProto>, String) {
        let maker = self.graph.node(cache.append);
        if let Some(rows) = maker.filter(|n| is_alias(n)).and_then(|n| n.input.first()) {
            return (Vec::new(), rows.clone());
        }
        let rows = self.name(&format!("{letter}_BGTd"));
        let mut nodes: Vec<NodeProto> = maker.into_iter().cloned().collect();
        for output in nodes.iter_mut().flat_map(|n| &mut n.output) {
            if *output == cache.joined {
                output.clone_from(&rows);
            }
        }
        (nodes, rows)
    }

    /// Makes every node of the graph that reads `value` read `other` instead, except nodes that the patch replaces.
    pub fn redirect(&mut self, value: &str, other: String) {
        self.redirected.insert(value.to_owned(), other);
    }

    /// Whether the node `id` passes a cache through to a graph output; such nodes are kept.
    fn passes_cache_on(&self, id: NodeId) -> bool {
        let caches = [&self.site.key.cache, &self.site.value.cache];
        let mut returned = caches.into_iter().flatten().map(|c| &c.returned);
        returned.any(|values| makes(self.graph, id, values))
    }

    /// The node `id` of the graph, with its inputs redirected (see [`Self::redirect`]).
    pub fn reader(&self, id: NodeId) -> Option<NodeProto> {
        let mut reader = self.graph.node(id)?.clone();
        for input in &mut reader.input {
            if let Some(other) = self.redirected.get(input.as_str()) {
                input.clone_from(other);
            }
        }
        Some(reader)
    }

    /// Changes the shapes of past and present of both caches to [B, 1, length, r], or [B, 1, length, r/2] if a byte
    /// holds two numbers.
    pub fn narrow_caches(&mut self) {
        let ranks = [self.ranks.key, self.ranks.value];
        for (side, rank) in [&self.site.key, &self.site.value].into_iter().zip(ranks) {
            if let Some(cache) = &side.cache {
                self.narrow(cache, rank);
            }
        }
    }

    fn narrow(&mut self, cache: &Cache, rank: usize) {
        let width = NewSize::Fixed(self.layout.bits.elements(rank) as i64);
        let sizes = match cache.packed {
            None => vec![NewSize::Keep, NewSize::Fixed(1), NewSize::Keep, width],
            Some(_) => vec![NewSize::Keep, NewSize::Keep, width],
        };
        self.retype(cache, sizes);
    }

    /// Gives past and present of both caches the element type of the layout. The KV heads are kept; their size is
    /// halved if a byte holds two numbers.
    pub fn retype_caches(&mut self) {
        let site = self.site;
        for side in [&site.key, &site.value] {
            let mut sizes = vec![NewSize::Keep; 4];
            let elements = self.layout.bits.elements(side.size);
            if let (Some(last), true) = (sizes.last_mut(), elements < side.size) {
                *last = NewSize::Fixed(elements as i64);
            }
            if let Some(cache) = &side.cache {
                self.retype(cache, sizes);
            }
        }
    }

    fn retype(&mut self, cache: &Cache, mut sizes: Vec<NewSize>) {
        if let (Some(length), Some(size)) = (self.own_length(cache), sizes.get_mut(2)) {
            self.patch.equate(length, &cache.joined, 2);
            *size = NewSize::Symbol(length.to_owned());
        }
        let elem_type = self.layout.cached_type(self.site);
        let elem_type = (elem_type != self.site.elem_type).then_some(elem_type);
        let new = NewType { elem_type, sizes };
        for name in cache.past.as_deref().into_iter().chain([cache.present()]) {
            self.patch.narrow(name, new.clone());
        }
        // Values between graph inputs or outputs and the `Concat` get the same shape; their nodes are kept.
        let inside = cache.received.iter().chain(&cache.returned);
        for name in inside.chain([&cache.joined]) {
            self.patch.narrow_inside(name, &new);
        }
        if elem_type.is_some() {
            self.drop_casts(cache);
        }
    }

    /// Replaces floating-point casts between the cache and the graph's interface by `Identity`, because the cache now
    /// holds integers.
    fn drop_casts(&mut self, cache: &Cache) {
        for value in cache.received.iter().chain(&cache.returned) {
            let maker = self.graph.producer(value);
            if let Some((id, cast)) = maker.filter(|(_, n)| is_op(n, "Cast")) {
                let input = cast.input.first().map_or("", String::as_str);
                let passed_on = node("Identity", cast.name(), &[input], &[value]);
                self.place(id, vec![passed_on]);
            }
        }
    }

    /// Changes the shape of a graph input or output.
    pub fn resize(&mut self, value: &str, sizes: Vec<NewSize>) {
        self.patch.narrow(value, sizes.into());
    }

    /// The names of a product and of its output, which its replacement takes over.
    pub fn names_of(&self, product: NodeId) -> (String, String) {
        let output = |n: &NodeProto| n.output.first().cloned().unwrap_or_default();
        let node = self.graph.node(product);
        node.map_or_else(Default::default, |n| (n.name().to_owned(), output(n)))
    }
}
