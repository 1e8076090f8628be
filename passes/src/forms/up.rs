//! The products with the up-projections w_uk and w_uv: with one block for each KV head, or one for each query head.
//!
//! A block of a KV head multiplies its s = H / G query heads at once, as s * T rows. Where every query head has a block of its
//! own, each is multiplied by itself. The shape of w_uv tells which of the two holds.

use crate::forms::builder::Builder;
use crate::onnx::NodeProto;
use crate::recognize::divided::undivided;

impl Builder<'_> {
    /// The number of blocks of w_uk and of w_uv: G or H.
    pub fn blocks(&self) -> usize {
        let shape = self.layout.shape("w_uv").unwrap_or_default();
        shape.first().copied().unwrap_or(self.site.kv_heads)
    }

    /// Whether w_uk and w_uv have a block for each query head, and more than one of them belongs to a KV head.
    pub fn has_blocks_per_head(&self) -> bool {
        self.blocks() != self.site.kv_heads
    }

    /// The node that divides the query heads by the blocks of w_uk, if there is one, and the name of the result:
    /// [B, G, s*T, d], or [B, H, T, d].
    pub fn queries_by_block(&mut self) -> (Option<NodeProto>, String) {
        let site = self.site;
        if self.has_blocks_per_head() {
            return (None, site.query.clone());
        }
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, site.key.size as i64]);
        let split = self.unary("Reshape", "q_BGxd", &[&site.query, &grouped]);
        (Some(split), self.name("q_BGxd"))
    }

    /// The same for the queries of one new token, whose heads the graph need not have divided: from [B, 1, H*d] if it has them.
    pub fn queries_of_one_by_block(&mut self) -> (Option<NodeProto>, String) {
        let site = self.site;
        let Some(packed) = undivided(self.graph, self.before, &site.query) else {
            return self.queries_by_block();
        };
        let blocks = self.blocks();
        let each = (site.heads / blocks.max(1)) as i64;
        let grouped = self.vector(&[0, blocks as i64, each, site.key.size as i64]);
        let split = self.unary("Reshape", "q_BGxd", &[packed, &grouped]);
        (Some(split), self.name("q_BGxd"))
    }

    /// The node that multiplies `queries`, divided by the blocks of w_uk, by these blocks, and the name of the result:
    /// [B, G, s*T, r], or [B, H, T, r].
    pub fn queries_up(&self, queries: &str) -> (NodeProto, String) {
        let part = match self.has_blocks_per_head() {
            true => "q_BHTr",
            false => "q_BGxr",
        };
        let product = self.unary("MatMul", part, &[queries, self.layout.name("w_uk")]);
        (product, self.name(part))
    }

    /// The number of latent channels that w_uv reads.
    fn rank_of_outputs(&self) -> usize {
        let shape = self.layout.shape("w_uv").unwrap_or_default();
        shape.get(1).copied().unwrap_or_default()
    }

    /// The node that divides `rows` [B, 1, H*T, r], the products of the probabilities and the latents, by the blocks of w_uv,
    /// and the name of the result: [B, G, s*T, r], or [B, H, T, r].
    pub fn outputs_by_block(&mut self, rows: &str) -> (NodeProto, String) {
        let rank = self.rank_of_outputs();
        let shape = self.vector(&[0, self.blocks() as i64, -1, rank as i64]);
        let part = match self.has_blocks_per_head() {
            true => "out_BHTr",
            false => "out_BGxr",
        };
        (
            self.unary("Reshape", part, &[rows, &shape]),
            self.name(part),
        )
    }

    /// The nodes that multiply `rows`, divided by the blocks of w_uv, by these blocks, and compute the output of the value
    /// product from them: `output`, by the node `name`.
    pub fn outputs_up(&mut self, rows: &str, name: &str, output: &str) -> Vec<NodeProto> {
        let up = self.layout.name("w_uv").to_owned();
        if self.has_blocks_per_head() {
            return self.with_bias("MatMul", &[rows, &up], name, output);
        }
        let mut nodes = vec![self.unary("MatMul", "out_BGxd", &[rows, &up])];
        nodes.extend(self.heads_out(&self.name("out_BGxd"), name, output));
        nodes
    }
}
