//! The absorbed form around `com.microsoft.GroupQueryAttention`: one latent KV head that every query head reads.
//!
//! The operator goes on keeping the cache, so past and present may share a buffer and rows of a batch may have their
//! own lengths. Rotation has happened before; every factor of the scores is in w_uk.

use super::weights::Weights;
use crate::graph::build::{Dim, int64_vector, node};
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId, float_attribute, int_attribute};
use crate::lower::Grouped;
use crate::onnx::NodeProto;
use crate::recognize::site::{Side, Site};

/// The operator's head sizes are multiples of this.
pub const RANK_STEP: usize = 8;

/// Builds the patch of one site that was `grouped`.
pub fn grouped(
    graph: &Graph,
    prefix: String,
    site: &Site,
    grouped: &Grouped,
    weights: &Weights,
    rank: usize,
) -> Patch {
    let mut builder = Builder {
        prefix,
        patch: Patch::default(),
        graph,
        site,
        rank: rank as i64,
    };
    builder.operator(&grouped.node, weights);
    builder.patch
}

struct Builder<'s> {
    prefix: String,
    patch: Patch,
    graph: &'s Graph<'s>,
    site: &'s Site,
    rank: i64,
}

impl Builder<'_> {
    fn unary(&self, op: &str, part: &str, inputs: &[&str]) -> NodeProto {
        let name = format!("{}/{part}", self.prefix);
        node(op, &name, inputs, &[&name])
    }

    fn name(&self, part: &str) -> String {
        format!("{}/{part}", self.prefix)
    }

    fn vector(&mut self, values: &[i64]) -> String {
        let text: Vec<String> = values.iter().map(ToString::to_string).collect();
        let name = format!("mla/[{}]", text.join(","));
        if self.graph.initializer(&name).is_none() {
            self.patch
                .add_initializers(vec![int64_vector(&name, values)]);
        }
        name
    }

    /// The latent rows [B, T, r] of one side.
    fn latent(&mut self, side: &Side, letter: char, down: &str) -> Vec<NodeProto> {
        let packed = self.vector(&[0, 0, self.site.kv_heads as i64 * side.size as i64]);
        let part = |p: &str| format!("{letter}_{p}");
        vec![
            self.unary("Transpose", &part("BTGd"), &[&side.new])
                .with_ints("perm", &[0, 2, 1, 3]),
            self.unary(
                "Reshape",
                &part("BTx"),
                &[&self.name(&part("BTGd")), &packed],
            ),
            self.unary("MatMul", &part("BTr"), &[&self.name(&part("BTx")), down]),
        ]
    }

    fn operator(&mut self, old: &NodeProto, weights: &Weights) {
        let site = self.site;
        let (heads, groups, rank) = (site.heads as i64, site.kv_heads as i64, self.rank);
        let turn = |n: NodeProto| n.with_ints("perm", &[0, 2, 1, 3]);
        let by_group = self.vector(&[0, groups, -1, site.key.size as i64]);
        let by_head = self.vector(&[0, heads, -1, rank]);
        let packed = self.vector(&[0, 0, heads * rank]);
        let split = self.vector(&[0, 0, heads, rank]);
        let out_group = self.vector(&[0, groups, -1, rank]);
        let out_head = self.vector(&[0, heads, -1, site.value.size as i64]);

        let mut nodes = self.latent(&site.key, 'k', &weights.w_dk);
        nodes.extend(self.latent(&site.value, 'v', &weights.w_dv));
        nodes.extend([
            self.unary("Reshape", "q_BGxd", &[&site.query, &by_group]),
            self.unary("MatMul", "q_BGxr", &[&self.name("q_BGxd"), &weights.w_uk]),
            self.unary("Reshape", "q_BHTr", &[&self.name("q_BGxr"), &by_head]),
            turn(self.unary("Transpose", "q_BTHr", &[&self.name("q_BHTr")])),
            self.unary("Reshape", "q_BTx", &[&self.name("q_BTHr"), &packed]),
        ]);
        nodes.push(self.attention(old));
        let output = self
            .graph
            .node(site.output)
            .and_then(|n| n.output.first())
            .map_or("", String::as_str);
        nodes.extend([
            self.unary("Reshape", "out_BTHr", &[&self.name("out_BTx"), &split]),
            turn(self.unary("Transpose", "out_BHTr", &[&self.name("out_BTHr")])),
            self.unary("Reshape", "out_BGxr", &[&self.name("out_BHTr"), &out_group]),
            self.unary(
                "MatMul",
                "out_BGxd",
                &[&self.name("out_BGxr"), &weights.w_uv],
            ),
            node(
                "Reshape",
                &self.name("out"),
                &[&self.name("out_BGxd"), &out_head],
                &[output],
            ),
        ]);
        self.place(site.output, nodes);
        for cache in [&site.key.cache, &site.value.cache].into_iter().flatten() {
            // The operator makes the presents now.
            self.place(cache.append, Vec::new());
            let dims = vec![Dim::Keep, Dim::Fixed(1), Dim::Keep, Dim::Fixed(rank)];
            for name in cache.past.iter().chain([&cache.present]) {
                self.patch.interface.insert(name.clone(), dims.clone());
            }
        }
    }

    /// The operator on latent rows: the old one's lengths, bias, sink, window and soft-cap; no rotation.
    fn attention(&self, old: &NodeProto) -> NodeProto {
        let input = |position: usize| old.input.get(position).map_or("", String::as_str);
        let cached = |side: &Side| {
            side.cache
                .as_ref()
                .map_or((String::new(), String::new()), |c| {
                    (c.past.clone().unwrap_or_default(), c.present.clone())
                })
        };
        let (keys, values) = (cached(&self.site.key), cached(&self.site.value));
        let (q, k, v) = (self.name("q_BTx"), self.name("k_BTr"), self.name("v_BTr"));
        let mut inputs = vec![&*q, &k, &v, &keys.0, &values.0, input(5), input(6)];
        // cos_cache, sin_cache and position_ids stay empty in front of bias and sink.
        inputs.extend(["", "", "", input(10), input(11)]);
        while inputs.last() == Some(&"") {
            inputs.pop();
        }
        let mut new = node(
            "GroupQueryAttention",
            old.name(),
            &inputs,
            &[&self.name("out_BTx"), &keys.1, &values.1],
        )
        .with_int("num_heads", self.site.heads as i64)
        .with_int("kv_num_heads", 1)
        .with_float("scale", 1.0)
        .with_int(
            "local_window_size",
            int_attribute(old, "local_window_size", -1),
        )
        .with_float("softcap", float_attribute(old, "softcap", 0.0))
        .with_int("do_rotary", 0);
        if int_attribute(old, "smooth_softmax", 0) == 1 {
            new = new.with_int("smooth_softmax", 1);
        }
        new.domain = Some("com.microsoft".to_owned());
        new
    }

    fn place(&mut self, at: NodeId, nodes: Vec<NodeProto>) {
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
}
