//! The absorbed form: the cache holds one latent head, and the up-projections move to the query and the output.
//!
//! ```text
//! c_k = k w_dk                        cached in place of the G heads of k
//! score_h = (q_h w_uk[j]) . c_k       in place of q_h . k_j, j = floor(h / s)
//! out_h = (p_h C_v) w_uv[j]           in place of p_h V_j
//! ```
//!
//! The query heads become rows: H*T rows times one latent head are a single large matrix product, the fastest form in
//! runtimes.

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::layout::{Layout, Reads, latents};
use crate::forms::names::SiteNames;
use crate::forms::rounded::Rounds;
use crate::forms::{Form, FormError, Hindrance};
use crate::graph::NodeId;
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::recognize::site::{Cache, Side};

/// The form `absorbed`, the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Absorbed;

impl Form for Absorbed {
    fn name(&self) -> &'static str {
        "absorbed"
    }

    fn rounds(&self) -> Rounds {
        Rounds::AboutCentre
    }

    fn hinders_in_place(&self) -> Option<Hindrance> {
        None
    }

    fn hinders_per_head(&self) -> Option<Hindrance> {
        None
    }

    fn serves_several_readers(&self) -> bool {
        true
    }

    fn writes_static_caches(&self) -> bool {
        true
    }

    fn check(&self, _: &SiteView, _: Ranks) -> Result<(), FormError> {
        Ok(())
    }

    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        latents(view, factors, Reads::Products, names)
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
        let (nodes, keys) = builder.latent(&site.key, 'k', site.score);
        builder.place(site.score, nodes);
        let (nodes, values) = builder.latent(&site.value, 'v', site.output);
        builder.place(site.output, nodes);
        let (name, output) = builder.names_of(site.score);
        let mut nodes = builder.latent_score(&keys);
        nodes.push(builder.scores_of_heads("score_B1xS", &name, &output));
        builder.place(site.score, nodes);
        let (name, output) = builder.output_names();
        let nodes = builder.latent_output(&values, &name, &output);
        builder.place(site.output, nodes);
        builder.guard_rows();
        builder.answer_shapes();
        builder.drop_paths();
        Ok(builder.finish()?)
    }
}

impl Builder<'_> {
    /// Adds the latent rows of keys or values, cached if the original rows are, and reads them ([`Self::read`]).
    fn latent(&mut self, side: &Side, letter: char, product: NodeId) -> (Vec<NodeProto>, String) {
        let latent = self.cached_latent(side, letter, product);
        self.read(side, letter, &latent)
    }

    /// Adds the latent rows of keys or values, cached if the original rows are, and returns their name.
    pub(super) fn cached_latent(&mut self, side: &Side, letter: char, product: NodeId) -> String {
        let new = self.name(&format!("{letter}_B1Tr"));
        match &side.cache {
            Some(cache) => {
                self.cached(side, cache, letter, &new);
                cache.joined.clone()
            }
            None => {
                let nodes = self.down(side, letter, &side.new, &new);
                self.place(product, nodes);
                new
            }
        }
    }

    /// The nodes that convert the latent rows `latent` to four axes [B, 1, S, r] and to the element type of the product, and the
    /// name of the result.
    pub(super) fn read(
        &mut self,
        side: &Side,
        letter: char,
        latent: &str,
    ) -> (Vec<NodeProto>, String) {
        let (mut nodes, latent) = self.one_head(side, letter, latent);
        let stored = match side.cache {
            Some(_) => self.layout.cached_type(self.site),
            None => self.site.elem_type,
        };
        let part = format!("{letter}_B1Sr");
        if stored == side.product_type {
            return (nodes, latent);
        }
        if self.layout.has_unsigned() && side.cache.is_some() {
            nodes.extend(self.signed(side, letter, &part, &latent));
        } else {
            let cast = self.unary("Cast", &part, &[&latent]);
            nodes.push(cast.with_int("to", side.product_type.into()));
        }
        (nodes, self.name(&part))
    }

    /// The nodes that convert the latent rows `latent` to four axes [B, 1, S, r], as they are cached, and the name of the result.
    pub(super) fn one_head(
        &mut self,
        side: &Side,
        letter: char,
        latent: &str,
    ) -> (Vec<NodeProto>, String) {
        match &side.cache {
            Some(cache) if cache.packed.is_some() => {
                let (one, rows) = (self.vector(&[1]), format!("{letter}_packed_B1Sr"));
                let unpacked = self.unary("Unsqueeze", &rows, &[latent, &one]);
                (vec![unpacked], self.name(&rows))
            }
            _ => (Vec::new(), latent.to_owned()),
        }
    }

    /// The nodes that compute latent rows [B, 1, T, r], named `latent`, from `rows` [B, G, T, d].
    fn down(&mut self, side: &Side, letter: char, rows: &str, latent: &str) -> Vec<NodeProto> {
        let one = self.vector(&[1]);
        let (mut nodes, flat) = self.flat(side, letter, rows);
        let name = self.name(&format!("{letter}_B1Tr"));
        nodes.push(node("Unsqueeze", &name, &[&flat, &one], &[latent]));
        nodes
    }

    /// The nodes that compute latent rows [B, T, r] from `rows` [B, G, T, d], as they are cached, and their name. New rows
    /// that have the heads on one axis are read as they are.
    fn flat(&mut self, side: &Side, letter: char, rows: &str) -> (Vec<NodeProto>, String) {
        let latent = format!("{letter}_BTr");
        let packed = side.cache.as_ref().and_then(|c| c.packed.as_deref());
        let (mut nodes, flat) = match (packed, self.layout.find(&format!("w_d{letter}"))) {
            (Some(packed), None) => (Vec::new(), packed.to_owned()),
            (Some(packed), Some(down)) => {
                let down = self.unary("MatMul", &latent, &[packed, down]);
                (vec![down], self.name(&latent))
            }
            (None, _) => self.latent_rows(side, letter, rows),
        };
        let (rounding, flat) = self.rounded(letter, flat);
        nodes.extend(rounding);
        (nodes, flat)
    }

    /// Computes the cache of latent rows in place of the original append, under the name of the rows that the attention
    /// reads. Returns the name of the original rows [B, G, T, d] of this step.
    pub(super) fn cached(&mut self, side: &Side, cache: &Cache, letter: char, new: &str) -> String {
        let (nodes, rows) = match cache.appended_to() {
            Some(past) => {
                let in_place = self.appends_in_place(cache);
                let (mut nodes, rows) = match in_place || cache.packed.is_some() {
                    true => self.flat(side, letter, &side.new),
                    false => (self.down(side, letter, &side.new, new), new.to_owned()),
                };
                nodes.push(match in_place {
                    true => self.written(cache, past, &rows),
                    false => self.join(cache, past, &rows),
                });
                (nodes, side.new.clone())
            }
            None => {
                let (mut nodes, rows) = self.first_rows(cache, letter);
                nodes.extend(self.down(side, letter, &rows, &cache.joined));
                (nodes, rows)
            }
        };
        self.place(cache.append, nodes);
        rows
    }

    /// The nodes that compute `score_B1xS`: the scores of all heads with the latent rows `latent` [B, 1, S, r].
    pub(super) fn latent_score(&mut self, latent: &str) -> Vec<NodeProto> {
        let mut nodes = self.latent_queries();
        let mut queries = self.name("q_B1xr");
        if self.layout.has_unsigned() {
            let (rounding, rounded) = self.rounded_queries();
            nodes.extend(rounding);
            queries = rounded;
        }
        nodes.extend([
            self.unary("Transpose", "k_B1rS", &[latent])
                .with_ints("perm", &[0, 1, 3, 2]),
            self.unary("MatMul", "score_B1xS", &[&queries, &self.name("k_B1rS")]),
        ]);
        nodes
    }

    /// The same as [`Self::latent_score`], for one new token: the product of the latent rows with the transposed queries, and its
    /// transpose. Runtimes copy the right operand of a product: here the queries, and not the whole cache.
    pub(super) fn latent_score_of_one(&mut self, latent: &str) -> Vec<NodeProto> {
        let turn = |n: NodeProto| n.with_ints("perm", &[0, 1, 3, 2]);
        vec![
            turn(self.unary("Transpose", "q_B1rx", &[&self.name("q_B1xr")])),
            self.unary("MatMul", "score_B1Sx", &[latent, &self.name("q_B1rx")]),
            turn(self.unary("Transpose", "score_B1xS", &[&self.name("score_B1Sx")])),
        ]
    }

    /// The nodes that compute `q_B1xr`: the queries of all heads as rows.
    fn latent_queries(&mut self) -> Vec<NodeProto> {
        let divided = self.queries_by_block();
        self.queries_as_rows(divided)
    }

    /// The same for one new token.
    pub(super) fn latent_queries_of_one(&mut self) -> Vec<NodeProto> {
        let divided = self.queries_of_one_by_block();
        self.queries_as_rows(divided)
    }

    fn queries_as_rows(&mut self, (split, queries): (Option<NodeProto>, String)) -> Vec<NodeProto> {
        let rows = self.vector(&[0, 1, -1, self.ranks.key as i64]);
        let (up, queries) = self.queries_up(&queries);
        let mut nodes: Vec<NodeProto> = split.into_iter().collect();
        nodes.extend([up, self.unary("Reshape", "q_B1xr", &[&queries, &rows])]);
        nodes
    }

    /// The nodes of the output of the value product with the latent rows `latent` [B, 1, S, r]: `output`, by the node `name`.
    pub(super) fn latent_output(
        &mut self,
        latent: &str,
        name: &str,
        output: &str,
    ) -> Vec<NodeProto> {
        let product = self.unary("MatMul", "out_B1xr", &[&self.name("p_B1xS"), latent]);
        self.output_of(vec![product], name, output)
    }

    /// The nodes of the output of the value product: `output`, by the node `name`. `products` compute `out_B1xr` from the
    /// probabilities `p_B1xS`.
    pub(super) fn output_of(
        &mut self,
        products: Vec<NodeProto>,
        name: &str,
        output: &str,
    ) -> Vec<NodeProto> {
        let one = self.vector(&[0, 1, -1, 0]);
        let (split, rows) = self.outputs_by_block(&self.name("out_B1xr"));
        let mut nodes = vec![self.unary("Reshape", "p_B1xS", &[self.probabilities(), &one])];
        nodes.extend(products);
        nodes.push(split);
        nodes.extend(self.outputs_up(&rows, name, output));
        nodes
    }
}
