//! The absorbed form for past tokens alone: the new tokens of a step meet each other as the model has them.
//!
//! ```text
//! score_h = [ (q_h w_uk[j]) . c_k(past) | q_h . k_j(new) ]        j = floor(h / s)
//! out_h = (p_h(past) C_v(past)) w_uv[j] + p_h(new) V_j(new)
//! ```
//!
//! One softmax sees both. A prompt that is read at once has no past: it loses nothing and multiplies d numbers a score, not
//! r. There an `If` leaves out the past, because products of zero rows still copy all scores once to join and once to split
//! them. Every token enters the cache as a latent, so that later steps read it as such.

use ndarray::arr0;

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::choice::{Branch, choice};
use crate::forms::layout::{Layout, Reads, latents};
use crate::forms::names::SiteNames;
use crate::forms::{Form, FormError, Hindrance};
use crate::graph::NodeId;
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::recognize::site::{Cache, Side};

/// The form `latent-past`: the option `--new-tokens exact`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LatentPast;

impl Form for LatentPast {
    fn name(&self) -> &'static str {
        "latent-past"
    }

    fn reads_new_tokens_as_they_are(&self) -> bool {
        true
    }

    fn serves_several_readers(&self) -> bool {
        true
    }

    fn hinders_in_place(&self) -> Option<Hindrance> {
        Some((
            "its products read the past without the new rows, which are in one buffer with it",
            "use --new-tokens latent, or --cache-io append",
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

    /// As the absorbed form has them, with the constant factors `f_k` and `f_v` of new keys and values where there are any.
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
        builder.score_parts(&keys);
        builder.output_parts(&values);
        builder.answer_shapes();
        builder.drop_paths();
        Ok(builder.finish()?)
    }
}

/// What a product of one side reads, in the type of the product.
struct Parts {
    /// Latent rows [B, 1, P, r], where there can be a past.
    past: Option<String>,
    /// The rows [B, G, T, d] of this step.
    new: String,
}

impl Builder<'_> {
    /// The past and the new rows of one side; the latents of the new rows go to the cache.
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

    /// The rows of this step as the product reads them: in its type, times the constant factor of the side.
    fn as_read(&mut self, side: &Side, letter: char, rows: &str, product: NodeId) -> String {
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

    /// `rows` of the cache's type in the type of the product, under the name `part` where that is another.
    fn cast(&mut self, side: &Side, part: &str, rows: &str, product: NodeId) -> String {
        if self.site.elem_type == side.product_type {
            return rows.to_owned();
        }
        let part = format!("{part}_cast");
        let cast = self.unary("Cast", &part, &[rows]);
        self.place(product, vec![cast.with_int("to", side.product_type.into())]);
        self.name(&part)
    }

    /// Scores [B, H, T, S]: those of the past beside those of the new tokens, or these alone.
    fn score_parts(&mut self, keys: &Parts) {
        let site = self.site;
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, site.key.size as i64]);
        let heads = self.vector(&[0, site.heads as i64, -1, 0]);
        let (name, output) = self.names_of(site.score);
        let own = self.name("score_BGxT");
        let mut nodes = vec![
            self.unary("Reshape", "q_BGxd", &[&site.query, &grouped]),
            self.unary("Transpose", "k_BGdT", &[&keys.new])
                .with_ints("perm", &[0, 1, 3, 2]),
            self.unary(
                "MatMul",
                "score_BGxT",
                &[&self.name("q_BGxd"), &self.name("k_BGdT")],
            ),
        ];
        let Some(past) = &keys.past else {
            nodes.push(node("Reshape", &name, &[&own, &heads], &[&output]));
            return self.place(site.score, nodes);
        };
        let alone = Branch {
            nodes: vec![self.unary("Reshape", "alone/score", &[&own, &heads])],
            output: self.name("alone/score"),
        };
        let mut both = self.past_score(past);
        both.push(self.unary("Reshape", "both/score", &[&self.name("score_B1xS"), &heads]));
        let both = Branch {
            nodes: both,
            output: self.name("both/score"),
        };
        nodes.extend(self.emptiness(past));
        let empty = self.name("no_past");
        let ways = [alone, both];
        nodes.push(choice(
            (&name, &output),
            &empty,
            site.key.product_type,
            ways,
        ));
        self.place(site.score, nodes);
    }

    /// The nodes of `no_past`: whether `past` [B, 1, P, r] has no rows.
    fn emptiness(&mut self, past: &str) -> Vec<NodeProto> {
        let (length, none) = (self.vector(&[2]), self.vector(&[0]));
        let gather = self.unary(
            "Gather",
            "past_length",
            &[&self.name("past_shape"), &length],
        );
        vec![
            self.unary("Shape", "past_shape", &[past]),
            gather.with_int("axis", 0),
            self.unary("Equal", "no_past", &[&self.name("past_length"), &none]),
        ]
    }

    /// The nodes of `score_B1xS`: the scores of `past` [B, 1, P, r] in front of `score_BGxT`.
    fn past_score(&mut self, past: &str) -> Vec<NodeProto> {
        let rows = self.vector(&[0, 1, -1, self.ranks.key as i64]);
        let one = self.vector(&[0, 1, -1, 0]);
        let up = self.layout.name("w_uk");
        vec![
            self.unary("MatMul", "q_BGxr", &[&self.name("q_BGxd"), up]),
            self.unary("Reshape", "q_B1xr", &[&self.name("q_BGxr"), &rows]),
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

    /// The value product: what the probabilities of the past take from the latents, and those of the new tokens from the
    /// rows themselves; or these alone.
    fn output_parts(&mut self, values: &Parts) {
        let site = self.site;
        let (name, output) = self.names_of(site.output);
        let heads = self.vector(&[0, site.heads as i64, -1, site.value.size as i64]);
        let mut alone = self.own_output("alone", &site.probabilities, &values.new);
        let own = self.name("alone/own_BGxd");
        let Some(past) = &values.past else {
            alone.push(node("Reshape", &name, &[&own, &heads], &[&output]));
            return self.place(site.output, alone);
        };
        alone.push(self.unary("Reshape", "alone/out", &[&own, &heads]));
        let alone = Branch {
            nodes: alone,
            output: self.name("alone/out"),
        };
        let mut both = self.split(past);
        both.extend(self.own_output("both", &self.name("p_B1xT"), &values.new));
        both.extend(self.past_output(past));
        both.push(self.unary(
            "Reshape",
            "both/out_BHTd",
            &[&self.name("out_BGxd"), &heads],
        ));
        let mut sum = self.name("both/out_BHTd");
        if let Some(bias) = self.layout.find("b_v") {
            both.extend(self.past_bias(bias));
            both.push(self.unary("Add", "both/out", &[&sum, &self.name("bias_BHTd")]));
            sum = self.name("both/out");
        }
        let both = Branch {
            nodes: both,
            output: sum,
        };
        let empty = self.name("no_past");
        let ways = [alone, both];
        let choice = choice((&name, &output), &empty, site.value.product_type, ways);
        self.place(site.output, vec![choice]);
    }

    /// The nodes of `own_BGxd` in `way`: what `probabilities` [B, H, T, T] take from the rows `new` [B, G, T, d].
    fn own_output(&mut self, way: &str, probabilities: &str, new: &str) -> Vec<NodeProto> {
        let by_group = self.vector(&[0, self.site.kv_heads as i64, -1, 0]);
        let rows = format!("{way}/p_BGxT");
        let product = format!("{way}/own_BGxd");
        vec![
            self.unary("Reshape", &rows, &[probabilities, &by_group]),
            self.unary("MatMul", &product, &[&self.name(&rows), new]),
        ]
    }

    /// The nodes of `p_B1xP` and `p_B1xT`: the probabilities of the tokens of `past` and of the new ones.
    fn split(&mut self, past: &str) -> Vec<NodeProto> {
        let one = self.vector(&[0, 1, -1, 0]);
        let (length, last) = (self.vector(&[2]), self.vector(&[3]));
        let size = |part: &str, shape: &str, axis: &str| {
            let gather = self.unary("Gather", part, &[&self.name(shape), axis]);
            gather.with_int("axis", 0)
        };
        let rows = self.unary("Reshape", "p_B1xS", &[&self.site.probabilities, &one]);
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

    /// The nodes of `out_BGxd`: what the past gives, and what the new tokens give.
    fn past_output(&mut self, past: &str) -> Vec<NodeProto> {
        let grouped = self.vector(&[0, self.site.kv_heads as i64, -1, self.ranks.value as i64]);
        let up = self.layout.name("w_uv");
        vec![
            self.unary("MatMul", "out_B1xr", &[&self.name("p_B1xP"), past]),
            self.unary("Reshape", "out_BGxr", &[&self.name("out_B1xr"), &grouped]),
            self.unary("MatMul", "past_BGxd", &[&self.name("out_BGxr"), up]),
            self.unary(
                "Add",
                "out_BGxd",
                &[&self.name("past_BGxd"), &self.name("both/own_BGxd")],
            ),
        ]
    }

    /// The nodes of `bias_BHTd`: the mean that latents leave out, as far as probabilities are of the past.
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
