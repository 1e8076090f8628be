//! The form of TransMLA (arXiv 2502.07864): one rotated head, and one latent of unrotated keys and values.
//!
//! ```text
//! k_rope = rotate(k w_kr)          cached in place of the keys, d numbers
//! c = k w_ck + v w_cv              cached in place of the values, k unrotated
//! score_h = rotate(q_h w_qr[j]) · k_rope + (q_h w_qc[j]) · c
//! out_h = (p_h C) w_uv[j]
//! ```
//!
//! Unrotated rows are rows rotated by position 0, which keeps whatever else the exporter's nodes do to them.

use std::collections::HashMap;

use crate::factor::Ranks;
use crate::factor::transmla::Decoupled;
use crate::facts::Facts;
use crate::forms::builder::Builder;
use crate::forms::tensors::{TensorRange, tensor};
use crate::forms::weights::Weights;
use crate::graph::Graph;
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::onnx::{NodeProto, TensorProto};
use crate::recognize::rotation::Rotation;
use crate::recognize::site::Site;

/// The initializers of one site, under names that begin with `prefix`.
pub fn tensors(
    prefix: &str,
    site: &Site,
    factors: &Decoupled,
) -> Result<Vec<TensorProto>, TensorRange> {
    let (cached, product) = (site.elem_type, site.product_type);
    let name = |part: &str| format!("{prefix}/{part}");
    let (rope_query, up_query) = (
        &factors.rope_query * site.key.scale,
        &factors.up_query * site.key.scale,
    );
    let up_value = (&factors.up_value * site.value.scale).permuted_axes([0, 2, 1]);
    Ok(vec![
        tensor(&name("w_kr"), cached, &factors.rope_key.view())?,
        tensor(&name("w_ck"), cached, &factors.down_key.view())?,
        tensor(&name("w_cv"), cached, &factors.down_value.view())?,
        tensor(&name("w_qr"), product, &rope_query.view())?,
        tensor(&name("w_qc"), product, &up_query.view())?,
        tensor(
            &name("w_uv"),
            product,
            &up_value.as_standard_layout().view(),
        )?,
    ])
}

/// Builds the patch of one cached site whose initializers are there under `prefix`; `ranks` are d and the latent's.
/// `None` where a shape in a rotation does not fit other rows.
pub fn decoupled(
    graph: &Graph,
    facts: &Facts,
    prefix: String,
    site: &Site,
    (keys, queries): (&Rotation, &Rotation),
    ranks: Ranks,
) -> Option<Patch> {
    let (key_cache, value_cache) = (site.key.cache.as_ref()?, site.value.cache.as_ref()?);
    let none = Weights::default();
    let mut builder = Builder::new(graph, prefix, site, &none, ranks);
    let key_nodes = builder.keys(facts, keys)?;
    builder.place(key_cache.append, key_nodes);
    let value_nodes = builder.latents(facts, keys)?;
    builder.place(value_cache.append, value_nodes);
    let score_nodes = builder.scores(facts, queries)?;
    builder.place(site.score, score_nodes);
    builder.values();
    builder.narrow(key_cache, ranks.key);
    builder.narrow(value_cache, ranks.value);
    let readers = site.key.shape_readers.iter();
    for reader in readers.chain(&site.value.shape_readers) {
        builder.shape(reader);
    }
    Some(builder.patch)
}

impl Builder<'_> {
    /// Rows [B, G, T, size] called `rows` as [B, T, G*size].
    fn by_token(&mut self, part: &str, rows: &str, size: usize) -> (Vec<NodeProto>, String) {
        let packed = self.vector(&[0, 0, (self.site.kv_heads * size) as i64]);
        let turned = format!("{part}_BTGd");
        let flat = format!("{part}_BTx");
        let nodes = vec![
            self.unary("Transpose", &turned, &[rows])
                .with_ints("perm", &[0, 2, 1, 3]),
            self.unary("Reshape", &flat, &[&self.name(&turned), &packed]),
        ];
        (nodes, self.name(&flat))
    }

    /// What `rotation` makes of its own rows at position 0.
    fn at_zero(
        &mut self,
        facts: &Facts,
        rotation: &Rotation,
        tag: &str,
    ) -> Option<(Vec<NodeProto>, String)> {
        let (zero, of) = (format!("{tag}/zero"), &rotation.positions.value);
        let mut nodes = vec![self.unary("Sub", &zero, &[of, of])];
        let mut names = HashMap::from([(of.clone(), self.name(&zero))]);
        let all: Vec<_> = rotation.tables.iter().chain(&rotation.nodes).collect();
        nodes.extend(self.copies(facts, rotation, &all, &mut names, tag)?);
        Some((nodes, self.last_of(rotation, &names)?))
    }

    /// `rows`, other rows at the same positions, rotated.
    fn turned(
        &mut self,
        facts: &Facts,
        rotation: &Rotation,
        rows: String,
        tag: &str,
    ) -> Option<(Vec<NodeProto>, String)> {
        let mut names = HashMap::from([(rotation.input.clone(), rows)]);
        let all: Vec<_> = rotation.nodes.iter().collect();
        let nodes = self.copies(facts, rotation, &all, &mut names, tag)?;
        Some((nodes, self.last_of(rotation, &names)?))
    }

    fn keys(&mut self, facts: &Facts, rotation: &Rotation) -> Option<Vec<NodeProto>> {
        let cache = self.site.key.cache.as_ref()?;
        let one = self.vector(&[1]);
        let (mut nodes, flat) = self.by_token("k", &rotation.input, self.site.key.size);
        let (down, head) = (self.name("w_kr"), self.name("k_B1Td"));
        nodes.push(self.unary("MatMul", "k_BTd", &[&flat, &down]));
        nodes.push(self.unary("Unsqueeze", "k_B1Td", &[&self.name("k_BTd"), &one]));
        let (more, rotated) = self.turned(facts, rotation, head, "rope")?;
        nodes.extend(more);
        nodes.push(self.appended(cache, &rotated)?);
        Some(nodes)
    }

    /// The node that appends `rows` to a cache.
    fn appended(&self, cache: &crate::recognize::site::Cache, rows: &str) -> Option<NodeProto> {
        let name = self.graph.node(cache.append).map_or("", NodeProto::name);
        let past = cache.past.as_ref()?;
        Some(node("Concat", name, &[past, rows], &[&cache.present]).with_int("axis", 2))
    }

    fn latents(&mut self, facts: &Facts, rotation: &Rotation) -> Option<Vec<NodeProto>> {
        let cache = self.site.value.cache.as_ref()?;
        let one = self.vector(&[1]);
        let (mut nodes, unrotated) = self.at_zero(facts, rotation, "still_k")?;
        let (more, keys) = self.by_token("still_k", &unrotated, self.site.key.size);
        nodes.extend(more);
        let (more, values) = self.by_token("v", &self.site.value.new, self.site.value.size);
        nodes.extend(more);
        let (w_ck, w_cv) = (self.name("w_ck"), self.name("w_cv"));
        nodes.extend([
            self.unary("MatMul", "c_of_k_BTr", &[&keys, &w_ck]),
            self.unary("MatMul", "c_of_v_BTr", &[&values, &w_cv]),
            self.unary(
                "Add",
                "c_BTr",
                &[&self.name("c_of_k_BTr"), &self.name("c_of_v_BTr")],
            ),
            self.unary("Unsqueeze", "c_B1Tr", &[&self.name("c_BTr"), &one]),
        ]);
        nodes.push(self.appended(cache, &self.name("c_B1Tr"))?);
        Some(nodes)
    }

    fn scores(&mut self, facts: &Facts, rotation: &Rotation) -> Option<Vec<NodeProto>> {
        let site = self.site;
        let (key, value) = (site.key.cache.as_ref()?, site.value.cache.as_ref()?);
        let size = site.key.size as i64;
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, size]);
        let by_head = self.vector(&[0, site.heads as i64, -1, size]);
        let rope_rows = self.vector(&[0, 1, -1, size]);
        let latent_rows = self.vector(&[0, 1, -1, self.ranks.value as i64]);
        let scores = self.vector(&[0, site.heads as i64, -1, 0]);
        let (w_qr, w_qc) = (self.name("w_qr"), self.name("w_qc"));
        let mut nodes = vec![
            self.unary("Reshape", "qr_BGxd", &[&rotation.input, &grouped]),
            self.unary("MatMul", "qr_mixed_BGxd", &[&self.name("qr_BGxd"), &w_qr]),
            self.unary(
                "Reshape",
                "qr_BHTd",
                &[&self.name("qr_mixed_BGxd"), &by_head],
            ),
        ];
        let (more, rotated) = self.turned(facts, rotation, self.name("qr_BHTd"), "rope_q")?;
        nodes.extend(more);
        let (more, still) = self.at_zero(facts, rotation, "still_q")?;
        nodes.extend(more);
        let turn = |n: NodeProto| n.with_ints("perm", &[0, 1, 3, 2]);
        let (name, output) = self.names_of(site.score);
        nodes.extend([
            self.unary("Reshape", "qr_B1xd", &[&rotated, &rope_rows]),
            turn(self.unary("Transpose", "k_B1dS", &[&key.present])),
            self.unary(
                "MatMul",
                "score_rope_B1xS",
                &[&self.name("qr_B1xd"), &self.name("k_B1dS")],
            ),
            self.unary("Reshape", "qc_BGxd", &[&still, &grouped]),
            self.unary("MatMul", "qc_BGxr", &[&self.name("qc_BGxd"), &w_qc]),
            self.unary("Reshape", "qc_B1xr", &[&self.name("qc_BGxr"), &latent_rows]),
            turn(self.unary("Transpose", "c_B1rS", &[&value.present])),
            self.unary(
                "MatMul",
                "score_c_B1xS",
                &[&self.name("qc_B1xr"), &self.name("c_B1rS")],
            ),
            self.unary(
                "Add",
                "score_B1xS",
                &[&self.name("score_rope_B1xS"), &self.name("score_c_B1xS")],
            ),
            node(
                "Reshape",
                &name,
                &[&self.name("score_B1xS"), &scores],
                &[&output],
            ),
        ]);
        Some(nodes)
    }

    fn values(&mut self) {
        let site = self.site;
        let Some(cache) = &site.value.cache else {
            return;
        };
        let rows = self.vector(&[0, 1, -1, 0]);
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, self.ranks.value as i64]);
        let up = self.name("w_uv");
        let mut nodes = vec![
            self.unary("Reshape", "p_B1xS", &[&site.probabilities, &rows]),
            self.unary(
                "MatMul",
                "out_B1xr",
                &[&self.name("p_B1xS"), &cache.present],
            ),
            self.unary("Reshape", "out_BGxr", &[&self.name("out_B1xr"), &grouped]),
            self.unary("MatMul", "out_BGxd", &[&self.name("out_BGxr"), &up]),
        ];
        let (name, output) = self.names_of(site.output);
        nodes.extend(self.heads_out(&self.name("out_BGxd"), &name, &output));
        self.place(site.output, nodes);
    }
}
