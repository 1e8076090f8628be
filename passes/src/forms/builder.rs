//! What the target forms have in common: names, shapes and the way to latent rows.

use crate::analysis::SiteView;
use crate::factor::Ranks;
use crate::facts::Facts;
use crate::forms::layout::Layout;
use crate::graph::build::{Dim, int64_vector, node, vector_name};
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId, is_alias};
use crate::onnx::NodeProto;
use crate::recognize::site::{Cache, Side, Site};

/// Collects the patch of one attention.
pub struct Builder<'s> {
    /// What every new name begins with.
    pub prefix: String,
    /// What has been asked for so far.
    pub patch: Patch,
    /// The graph of the attention.
    pub graph: &'s Graph<'s>,
    /// The facts of the graph's values.
    pub facts: &'s Facts,
    /// The attention that is rewritten.
    pub site: &'s Site,
    /// Names of its factors.
    pub layout: &'s Layout,
    /// Latent widths.
    pub ranks: Ranks,
}

impl<'s> Builder<'s> {
    /// An empty patch for the attention of `view`, whose new names begin with `prefix`.
    pub fn new(view: &SiteView<'s>, prefix: &str, layout: &'s Layout, ranks: Ranks) -> Self {
        Self {
            prefix: prefix.to_owned(),
            patch: Patch::default(),
            graph: view.graph,
            facts: view.facts,
            site: view.site(),
            layout,
            ranks,
        }
    }
}

impl Builder<'_> {
    /// The name of a new node and its output.
    pub fn name(&self, part: &str) -> String {
        format!("{}/{part}", self.prefix)
    }

    /// An int64 vector, named by its content so that equal ones are one, in this model and in one rewritten before.
    pub fn vector(&mut self, values: &[i64]) -> String {
        let name = vector_name(values);
        if self.graph.initializer(&name).is_none() {
            self.patch
                .add_initializers(vec![int64_vector(&name, values)]);
        }
        name
    }

    /// The nodes that give the value product's output, its bias included, from heads [B, G, (H/G)*T, dv] called `rows`.
    pub fn heads_out(&mut self, rows: &str, node_name: &str, output: &str) -> Vec<NodeProto> {
        let shape = self.vector(&[0, self.site.heads as i64, -1, self.site.value.size as i64]);
        match self.layout.find("b_v") {
            None => vec![node("Reshape", node_name, &[rows, &shape], &[output])],
            Some(bias) => vec![
                self.unary("Reshape", "out_BHTd", &[rows, &shape]),
                node("Add", node_name, &[&self.name("out_BHTd"), bias], &[output]),
            ],
        }
    }

    /// A node with one output, both named after `part`.
    pub fn unary(&self, op: &str, part: &str, inputs: &[&str]) -> NodeProto {
        let name = self.name(part);
        node(op, &name, inputs, &[&name])
    }

    /// Puts `nodes` where `at` was, after what is already there. They keep the metadata of the node they stand for.
    pub fn place(&mut self, at: NodeId, nodes: Vec<NodeProto>) {
        let metadata = self
            .graph
            .node(at)
            .map(|n| n.metadata_props.clone())
            .unwrap_or_default();
        let slot = self.patch.replaced.entry(at).or_default();
        slot.extend(nodes.into_iter().map(|mut n| {
            n.metadata_props.clone_from(&metadata);
            n
        }));
    }

    /// From rows [B, G, T, d] of one side to latent rows [B, T, r], which the last node gives the name `<letter>_BTr`.
    pub fn latent_rows(&mut self, side: &Side, letter: char, rows: &str) -> Vec<NodeProto> {
        let packed = self.vector(&[0, 0, self.site.kv_heads as i64 * side.size as i64]);
        let down = match letter {
            'k' => self.layout.name("w_dk"),
            _ => self.layout.name("w_dv"),
        };
        let part = |p: &str| format!("{letter}_{p}");
        vec![
            self.unary("Transpose", &part("BTGd"), &[rows])
                .with_ints("perm", &[0, 2, 1, 3]),
            self.unary(
                "Reshape",
                &part("BTx"),
                &[&self.name(&part("BTGd")), &packed],
            ),
            self.unary("MatMul", &part("BTr"), &[&self.name(&part("BTx")), down]),
        ]
    }

    /// Rows of a cache that nothing was in before, under a name that is not the present's, with the nodes that make them:
    /// the node that made them as an output goes on making them, or it only renamed what is there.
    pub fn first_rows(&self, cache: &Cache, letter: char) -> (Vec<NodeProto>, String) {
        let maker = self.graph.node(cache.append);
        if let Some(rows) = maker.filter(|n| is_alias(n)).and_then(|n| n.input.first()) {
            return (Vec::new(), rows.clone());
        }
        let rows = self.name(&format!("{letter}_BGTd"));
        let mut nodes: Vec<NodeProto> = maker.into_iter().cloned().collect();
        for output in nodes.iter_mut().flat_map(|n| &mut n.output) {
            if *output == cache.present {
                output.clone_from(&rows);
            }
        }
        (nodes, rows)
    }

    /// Gives past and present of `cache` the shape [B, 1, length, rank].
    pub fn narrow(&mut self, cache: &Cache, rank: usize) {
        let dims = vec![Dim::Keep, Dim::Fixed(1), Dim::Keep, Dim::Fixed(rank as i64)];
        for name in cache.past.iter().chain([&cache.present]) {
            self.patch.interface.insert(name.clone(), dims.clone());
        }
    }

    /// The names of a product and of its output, which what stands for it takes over.
    pub fn names_of(&self, product: NodeId) -> (String, String) {
        let output = |n: &NodeProto| n.output.first().cloned().unwrap_or_default();
        let node = self.graph.node(product);
        node.map_or_else(Default::default, |n| (n.name().to_owned(), output(n)))
    }
}
