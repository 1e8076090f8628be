//! The absorbed form for past tokens only: the new tokens of a step read each other's exact keys and values.
//!
//! ```text
//! score_h = [ (q_h w_uk[j]) . c_k(past) | q_h . k_j(new) ]        j = floor(h / s)
//! out_h = (p_h(past) C_v(past)) w_uv[j] + p_h(new) V_j(new)
//! ```
//!
//! Both parts have one common softmax. A prompt that is read in one step has no past: the result is exact, and each
//! score takes d multiplications instead of r. An `If` skips the past in this case, because concatenating and splitting
//! an empty past would still copy all scores twice. Every token is cached as a latent, which later steps read.

use ndarray::arr0;

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::choice::{Branch, choice};
use crate::forms::layout::{Layout, Reads, latents};
use crate::forms::names::SiteNames;
use crate::forms::{ExactTokens, Form, FormError, Hindrance};
use crate::graph::NodeId;
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::recognize::site::{Cache, Side};

/// The scores [B, 1 or G, _, S] of either way, before they are divided by heads.
pub(super) const CHOSEN_SCORE: &str = "score_chosen";

/// The form `latent-past`: the option `--new-tokens exact`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LatentPast;

impl Form for LatentPast {
    fn name(&self) -> &'static str {
        "latent-past"
    }

    fn exact_tokens(&self) -> ExactTokens {
        ExactTokens::Step
    }

    fn serves_several_readers(&self) -> bool {
        true
    }

    fn hinders_per_head(&self) -> Option<Hindrance> {
        None
    }

    fn hinders_in_place(&self) -> Option<Hindrance> {
        Some((
            "its products read the past without the new rows, which are in one buffer with it",
            "use --new-tokens prompt or latent, or --cache-io append",
        ))
    }

    fn check(&self, view: &SiteView, _: Ranks) -> Result<(), FormError> {
        let site = view.site();
        let past = |side: &Side| side.cache.as_ref().map(|cache| cache.past.is_some());
        if let (Some(false), [other, ..]) = (past(&site.key), view.sharing_layers().as_slice()) {
            let what = format!("layer {other} reads its cache too, and the model has no past");
            return Err(FormError::missing(&what));
        }
        match past(&site.key) == past(&site.value) {
            true => Ok(()),
            false => Err(FormError::missing(
                "only one of its keys and values has a past",
            )),
        }
    }

    /// The initializers of the absorbed form, and the constant factors `f_k` and `f_v` of new keys and values if they
    /// differ from 1.
    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        let mut layout = latents(view, factors, Reads::Products, names)?;
        let site = view.site();
        for (side, role) in [(&site.key, "f_k"), (&site.value, "f_v")] {
            if side.scale != 1.0 {
                let factor = arr0(side.scale).into_dyn();
                layout.add(names, role, side.product_type, &factor)?;
            }
        }
        Ok(layout)
    }

    fn patch(
        &self,
        view: &SiteView,
        layout: &Layout,
        ranks: Ranks,
        names: &SiteNames,
    ) -> Result<Patch, FormError> {
        let mut builder = Builder::new(self.name(), view, names, layout, ranks);
        let site = view.site();
        builder.narrow_caches();
        let keys = builder.two_parts(&site.key, 'k', site.score);
        let values = builder.two_parts(&site.value, 'v', site.output);
        let empty = builder.score_parts(&keys);
        builder.output_parts(&values, &empty);
        builder.guard_rows();
        builder.answer_shapes();
        builder.drop_paths();
        Ok(builder.finish()?)
    }
}

/// The two operands of one product, in the element type of the product.
struct Parts {
    /// Latent rows [B, 1, P, r]; `None` if there is no past input.
    past: Option<String>,
    /// The exact rows [B, G, T, d] of this step (dv for values).
    new: String,
}

impl Builder<'_> {
    /// The past and the new rows of one side. Also adds the nodes that cache the latents of the new rows.
    fn two_parts(&mut self, side: &Side, letter: char, product: NodeId) -> Parts {
        let rows = match &side.cache {
            None => side.new.clone(),
            Some(cache) => {
                let new = self.name(&format!("{letter}_B1Tr"));
                self.cached(side, cache, letter, &new)
            }
        };
        let new = self.as_read(side, letter, &rows, product);
        let past = side.cache.as_ref().and_then(Cache::appended_to);
        let past = past.map(|past| self.cast(side, &format!("{letter}_B1Pr"), past, product));
        Parts { past, new }
    }

    /// The new rows in the element type of the product, multiplied by the constant factor of the side.
    pub(super) fn as_read(
        &mut self,
        side: &Side,
        letter: char,
        rows: &str,
        product: NodeId,
    ) -> String {
        let rows = self.cast(side, &format!("{letter}_BGTd"), rows, product);
        let factor = match letter {
            'k' => self.layout.find("f_k"),
            _ => self.layout.find("f_v"),
        };
        let Some(factor) = factor else {
            return rows;
        };
        let part = format!("{letter}_scaled_BGTd");
        let scaled = self.unary("Mul", &part, &[&rows, factor]);
        self.place(product, vec![scaled]);
        self.name(&part)
    }

    /// Casts `rows` from the type of the cache to that of the product, if they differ. `part` names the result.
    pub(super) fn cast(&mut self, side: &Side, part: &str, rows: &str, product: NodeId) -> String {
        if self.site.elem_type == side.product_type {
            return rows.to_owned();
        }
        let part = format!("{part}_cast");
        let cast = self.unary("Cast", &part, &[rows]);
        self.place(product, vec![cast.with_int("to", side.product_type.into())]);
        self.name(&part)
    }

    /// Computes the scores [B, H, T, S]: the scores of the past concatenated with those of the new tokens, or only the
    /// latter if there is no past. Returns the name of the value that tells whether there is none; it is empty if the model has
    /// no past.
    fn score_parts(&mut self, keys: &Parts) -> String {
        let site = self.site;
        let (name, output) = self.names_of(site.score);
        let Some(past) = &keys.past else {
            let mut nodes = self.own_score("", &keys.new);
            nodes.push(self.scores_of_heads("score_BGxT", &name, &output));
            self.place(site.score, nodes);
            return String::new();
        };
        let alone = Branch {
            nodes: self.own_score("alone/", &keys.new),
            outputs: vec![self.name("alone/score_BGxT")],
        };
        let mut both = self.own_score("", &keys.new);
        both.extend(self.past_score(past));
        let both = Branch {
            nodes: both,
            outputs: vec![self.name("score_B1xS")],
        };
        let mut past = self.past(past);
        let empty = self.no_past(&mut past);
        let mut nodes = past.nodes;
        nodes.push(self.chosen_score(&empty, [alone, both]));
        nodes.push(self.scores_of_heads(CHOSEN_SCORE, &name, &output));
        self.place(site.score, nodes);
        empty
    }

    /// The `If` that computes the scores by the first way if `condition` holds, and by the second way otherwise. They are divided
    /// by heads afterwards: the runtime copies what a branch reshapes last.
    pub(super) fn chosen_score(&self, condition: &str, ways: [Branch; 2]) -> NodeProto {
        let chosen = self.name(CHOSEN_SCORE);
        let made = [(&*chosen, self.site.key.product_type)];
        choice(&chosen, &made, condition, ways)
    }

    /// The nodes that compute `<prefix>score_BGxT`: the scores of the queries with the rows `new` [B, G, T, d] of this step.
    pub(super) fn own_score(&mut self, prefix: &str, new: &str) -> Vec<NodeProto> {
        let site = self.site;
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, site.key.size as i64]);
        let [q, k, score] = ["q_BGxd", "k_BGdT", "score_BGxT"].map(|p| format!("{prefix}{p}"));
        vec![
            self.unary("Reshape", &q, &[&site.query, &grouped]),
            self.unary("Transpose", &k, &[new])
                .with_ints("perm", &[0, 1, 3, 2]),
            self.unary("MatMul", &score, &[&self.name(&q), &self.name(&k)]),
        ]
    }

    /// The nodes that compute `score_B1xS`: the scores of `past` [B, 1, P, r] concatenated with `score_BGxT`.
    fn past_score(&mut self, past: &str) -> Vec<NodeProto> {
        let rows = self.vector(&[0, 1, -1, self.ranks.key as i64]);
        let one = self.vector(&[0, 1, -1, 0]);
        // By KV head, the queries are divided for the scores of the new tokens.
        let (_, queries) = self.queries_by_block();
        let (up, queries) = self.queries_up(&queries);
        vec![
            up,
            self.unary("Reshape", "q_B1xr", &[&queries, &rows]),
            self.unary("Transpose", "k_B1rP", &[past])
                .with_ints("perm", &[0, 1, 3, 2]),
            self.unary(
                "MatMul",
                "score_B1xP",
                &[&self.name("q_B1xr"), &self.name("k_B1rP")],
            ),
            self.unary("Reshape", "score_B1xT", &[&self.name("score_BGxT"), &one]),
            self.unary(
                "Concat",
                "score_B1xS",
                &[&self.name("score_B1xP"), &self.name("score_B1xT")],
            )
            .with_int("axis", 3),
        ]
    }

    /// Computes the value product: the probabilities of the past times the latents, plus those of the new tokens times
    /// their exact values; only the latter if there is no past, as `empty` tells.
    fn output_parts(&mut self, values: &Parts, empty: &str) {
        let site = self.site;
        let (name, output) = self.output_names();
        let heads = self.vector(&[0, site.heads as i64, -1, site.value.size as i64]);
        let mut alone = self.own_output("alone", self.probabilities(), &values.new);
        let own = self.name("alone/own_BGxd");
        let Some(past) = &values.past else {
            alone.push(node("Reshape", &name, &[&own, &heads], &[&output]));
            return self.place(site.output, alone);
        };
        alone.push(self.unary("Reshape", "alone/out", &[&own, &heads]));
        let alone = Branch {
            nodes: alone,
            outputs: vec![self.name("alone/out")],
        };
        let mut both = self.split(past);
        both.extend(self.own_output("both", &self.name("p_B1xT"), &values.new));
        both.extend(self.past_output(past));
        both.extend(self.sum_of_parts(&heads));
        let mut sum = self.name("both/out_BHTd");
        if let Some(bias) = self.layout.find("b_v") {
            both.extend(self.past_bias(bias));
            both.push(self.unary("Add", "both/out", &[&sum, &self.name("bias_BHTd")]));
            sum = self.name("both/out");
        }
        let both = Branch {
            nodes: both,
            outputs: vec![sum],
        };
        let ways = [alone, both];
        let made = [(&*output, site.value.product_type)];
        self.place(site.output, vec![choice(&name, &made, empty, ways)]);
    }

    /// The nodes that compute `own_BGxd` in the branch `way`: `probabilities` [B, H, T, T] times the exact values `new`
    /// [B, G, T, dv].
    pub(super) fn own_output(
        &mut self,
        way: &str,
        probabilities: &str,
        new: &str,
    ) -> Vec<NodeProto> {
        let by_group = self.vector(&[0, self.site.kv_heads as i64, -1, 0]);
        let rows = format!("{way}/p_BGxT");
        let product = format!("{way}/own_BGxd");
        vec![
            self.unary("Reshape", &rows, &[probabilities, &by_group]),
            self.unary("MatMul", &product, &[&self.name(&rows), new]),
        ]
    }

    /// The nodes that split the probabilities into `p_B1xP`, of the tokens of `past`, and `p_B1xT`, of the new tokens.
    fn split(&mut self, past: &str) -> Vec<NodeProto> {
        let one = self.vector(&[0, 1, -1, 0]);
        let (length, last) = (self.vector(&[2]), self.vector(&[3]));
        let size = |part: &str, shape: &str, axis: &str| {
            let gather = self.unary("Gather", part, &[&self.name(shape), axis]);
            gather.with_int("axis", 0)
        };
        let rows = self.unary("Reshape", "p_B1xS", &[self.probabilities(), &one]);
        let sizes = self.unary("Concat", "P_T", &[&self.name("P"), &self.name("T")]);
        let split = node(
            "Split",
            &self.name("split"),
            &[&self.name("p_B1xS"), &self.name("P_T")],
            &[&self.name("p_B1xP"), &self.name("p_B1xT")],
        );
        vec![
            self.unary("Shape", "values_shape", &[past]),
            size("P", "values_shape", &length),
            rows,
            self.unary("Shape", "p_shape", &[&self.name("p_B1xS")]),
            size("S", "p_shape", &last),
            self.unary("Sub", "T", &[&self.name("S"), &self.name("P")]),
            sizes.with_int("axis", 0),
            split.with_int("axis", 3),
        ]
    }

    /// The nodes that compute the output of the past, `past_BGxd`, or `past_BHTd` if every query head has factors of its own.
    fn past_output(&mut self, past: &str) -> Vec<NodeProto> {
        let (split, rows) = self.outputs_by_block(&self.name("out_B1xr"));
        let part = match self.has_blocks_per_head() {
            true => "past_BHTd",
            false => "past_BGxd",
        };
        vec![
            self.unary("MatMul", "out_B1xr", &[&self.name("p_B1xP"), past]),
            split,
            self.unary("MatMul", part, &[&rows, self.layout.name("w_uv")]),
        ]
    }

    /// The nodes that compute `both/out_BHTd`: the output of the past plus that of the new tokens, with the shape `heads`.
    fn sum_of_parts(&self, heads: &str) -> [NodeProto; 2] {
        let own = self.name("both/own_BGxd");
        match self.has_blocks_per_head() {
            true => [
                self.unary("Reshape", "own_BHTd", &[&own, heads]),
                self.unary(
                    "Add",
                    "both/out_BHTd",
                    &[&self.name("past_BHTd"), &self.name("own_BHTd")],
                ),
            ],
            false => [
                self.unary("Add", "out_BGxd", &[&self.name("past_BGxd"), &own]),
                self.unary("Reshape", "both/out_BHTd", &[&self.name("out_BGxd"), heads]),
            ],
        }
    }

    /// The nodes that compute `bias_BHTd`: the bias correction times the sum of the probabilities of the past, because
    /// only latents need it.
    fn past_bias(&mut self, bias: &str) -> Vec<NodeProto> {
        let last = self.vector(&[3]);
        let heads = self.vector(&[0, self.site.heads as i64, -1, 1]);
        vec![
            self.unary("ReduceSum", "mass_B1x1", &[&self.name("p_B1xP"), &last]),
            self.unary("Reshape", "mass_BHT1", &[&self.name("mass_B1x1"), &heads]),
            self.unary("Mul", "bias_BHTd", &[&self.name("mass_BHT1"), bias]),
        ]
    }
}
