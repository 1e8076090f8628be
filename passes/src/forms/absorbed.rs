//! The absorbed form: the cache holds one latent head, and the up-projections move to the query and the output.
//!
//! ```text
//! c_k = k w_dk                        cached in place of the G heads of k
//! score_h = (q_h w_uk[j]) . c_k       in place of q_h . k_j, j = floor(h / s)
//! out_h = (p_h C_v) w_uv[j]           in place of p_h V_j
//! ```
//!
//! Heads become rows: H*T rows against one latent head are one large matrix product, which runtimes do fastest.

use crate::factor::Ranks;
use crate::forms::builder::Builder;
use crate::forms::weights::Weights;
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId};
use crate::onnx::NodeProto;
use crate::recognize::shape_reader::{Element, ShapeReader};
use crate::recognize::site::{Cache, Side, Site};

/// Builds the patch of one site; `weights` are initializers that it may read, of ranks `ranks`.
pub fn absorbed(
    graph: &Graph,
    prefix: String,
    site: &Site,
    weights: &Weights,
    ranks: Ranks,
) -> Patch {
    let mut builder = Builder::new(graph, prefix, site, weights, ranks);
    let keys = builder.latent(&site.key, 'k', site.score);
    let values = builder.latent(&site.value, 'v', site.output);
    builder.score(&keys);
    builder.output(&values);
    for reader in site
        .key
        .shape_readers
        .iter()
        .chain(&site.value.shape_readers)
    {
        builder.shape(reader);
    }
    builder.patch
}

impl Builder<'_> {
    /// The latent rows [B, 1, S, r] of one side, cached where the original was; returns their name.
    fn latent(&mut self, side: &Side, letter: char, product: NodeId) -> String {
        let part = |p: &str| format!("{letter}_{p}");
        let new = self.name(&part("B1Tr"));
        let latent = match &side.cache {
            Some(cache) => {
                self.cached(side, cache, letter, &new);
                let rank = if letter == 'k' {
                    self.ranks.key
                } else {
                    self.ranks.value
                };
                self.narrow(cache, rank);
                cache.present.clone()
            }
            None => {
                let nodes = self.down(side, letter, &side.new, &new);
                self.place(product, nodes);
                new
            }
        };
        if self.site.elem_type == self.site.product_type {
            return latent;
        }
        let cast = self
            .unary("Cast", &part("B1Sr"), &[&latent])
            .with_int("to", self.site.product_type.into());
        self.place(product, vec![cast]);
        self.name(&part("B1Sr"))
    }

    /// From rows [B, G, T, d] of one side to latent rows [B, 1, T, r] called `latent`.
    fn down(&mut self, side: &Side, letter: char, rows: &str, latent: &str) -> Vec<NodeProto> {
        let one = self.vector(&[1]);
        let mut nodes = self.latent_rows(side, letter, rows);
        let flat = self.name(&format!("{letter}_BTr"));
        let name = self.name(&format!("{letter}_B1Tr"));
        nodes.push(node("Unsqueeze", &name, &[&flat, &one], &[latent]));
        nodes
    }

    /// Puts the latent rows where the cache was made, under the name of the present.
    fn cached(&mut self, side: &Side, cache: &Cache, letter: char, new: &str) {
        let nodes = match &cache.past {
            Some(past) => {
                let old = self.graph.node(cache.append).map_or("", NodeProto::name);
                let mut nodes = self.down(side, letter, &side.new, new);
                nodes
                    .push(node("Concat", old, &[past, new], &[&cache.present]).with_int("axis", 2));
                nodes
            }
            None => {
                let (mut nodes, rows) = self.first_rows(cache, letter);
                nodes.extend(self.down(side, letter, &rows, &cache.present));
                nodes
            }
        };
        self.place(cache.append, nodes);
    }

    fn score(&mut self, latent: &str) {
        let site = self.site;
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, site.key.size as i64]);
        let rows = self.vector(&[0, 1, -1, self.ranks.key as i64]);
        let heads = self.vector(&[0, site.heads as i64, -1, 0]);
        let up = self.weights.w_uk.clone();
        let (name, output) = self.names_of(site.score);
        let nodes = vec![
            self.unary("Reshape", "q_BGxd", &[&site.query, &grouped]),
            self.unary("MatMul", "q_BGxr", &[&self.name("q_BGxd"), &up]),
            self.unary("Reshape", "q_B1xr", &[&self.name("q_BGxr"), &rows]),
            self.unary("Transpose", "k_B1rS", &[latent])
                .with_ints("perm", &[0, 1, 3, 2]),
            self.unary(
                "MatMul",
                "score_B1xS",
                &[&self.name("q_B1xr"), &self.name("k_B1rS")],
            ),
            node(
                "Reshape",
                &name,
                &[&self.name("score_B1xS"), &heads],
                &[&output],
            ),
        ];
        self.place(site.score, nodes);
    }

    fn output(&mut self, latent: &str) {
        let site = self.site;
        let rows = self.vector(&[0, 1, -1, 0]);
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, self.ranks.value as i64]);
        let up = self.weights.w_uv.clone();
        let mut nodes = vec![
            self.unary("Reshape", "p_B1xS", &[&site.probabilities, &rows]),
            self.unary("MatMul", "out_B1xr", &[&self.name("p_B1xS"), latent]),
            self.unary("Reshape", "out_BGxr", &[&self.name("out_B1xr"), &grouped]),
            self.unary("MatMul", "out_BGxd", &[&self.name("out_BGxr"), &up]),
        ];
        let (name, output) = self.names_of(site.output);
        nodes.extend(self.heads_out(&self.name("out_BGxd"), &name, &output));
        self.place(site.output, nodes);
    }

    /// The names of a product and of its output, which what stands for it takes over.
    pub(super) fn names_of(&self, product: NodeId) -> (String, String) {
        let output = |n: &NodeProto| n.output.first().cloned().unwrap_or_default();
        let node = self.graph.node(product);
        node.map_or_else(Default::default, |n| (n.name().to_owned(), output(n)))
    }

    /// The shape that `reader` asks for, put together from what stays.
    pub(super) fn shape(&mut self, reader: &ShapeReader) {
        let Some(old) = self.graph.node(reader.node) else {
            return;
        };
        let output = old.output.first().map_or("", String::as_str);
        let sizes = format!("{}/{}", self.prefix, output);
        let mut nodes = Vec::new();
        let mut parts = Vec::new();
        if reader
            .elements
            .iter()
            .any(|e| matches!(e, Element::Axis(_)))
        {
            nodes.push(node("Shape", &sizes, &[&reader.anchor], &[&sizes]));
        }
        for (position, element) in reader.elements.iter().enumerate() {
            match element {
                Element::Fixed(size) => parts.push(self.vector(&[*size])),
                Element::Axis(axis) => {
                    let index = self.vector(&[*axis]);
                    let part = format!("{sizes}/{position}");
                    nodes.push(
                        node("Gather", &part, &[&sizes, &index], &[&part]).with_int("axis", 0),
                    );
                    parts.push(part);
                }
            }
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        nodes.push(node("Concat", old.name(), &parts, &[output]).with_int("axis", 0));
        self.place(reader.node, nodes);
    }
}
