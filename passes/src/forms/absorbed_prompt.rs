//! The absorbed form with an exact prompt: the step that fills an empty cache reads its own keys and values.
//!
//! An `If` on the length of the past chooses between the products with the new rows alone and those of the absorbed form.
//! A prompt that is read in one step loses nothing and takes d multiplications a score instead of r; every later step is as
//! in the absorbed form. In place, the scores of a later step of one token are a product of their own.

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::choice::{Branch, choice};
use crate::forms::join::Join;
use crate::forms::latent_past::{CHOSEN_SCORE, LatentPast};
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::rounded::Rounds;
use crate::forms::{ExactTokens, Form, FormError, Hindrance};
use crate::graph::NodeId;
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::recognize::site::{Cache, Side};

/// The form `absorbed-prompt`: the option `--new-tokens prompt`.
#[derive(Debug, Clone, Copy, Default)]
pub struct AbsorbedPrompt;

impl Form for AbsorbedPrompt {
    fn name(&self) -> &'static str {
        "absorbed-prompt"
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

    fn exact_tokens(&self) -> ExactTokens {
        ExactTokens::Prompt
    }

    fn serves_several_readers(&self) -> bool {
        true
    }

    fn check(&self, view: &SiteView, ranks: Ranks) -> Result<(), FormError> {
        LatentPast.check(view, ranks)
    }

    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        LatentPast.layout(view, factors, names)
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
        let keys = builder.rows(&site.key, 'k', site.score);
        let values = builder.rows(&site.value, 'v', site.output);
        builder.prompt_or_score(keys);
        builder.prompt_or_output(values);
        builder.guard_rows();
        builder.answer_shapes();
        builder.drop_paths();
        Ok(builder.finish()?)
    }
}

/// What a product of one side reads, in the element type of the product.
struct Rows {
    /// The past [B, 1, P, r] ([B, 1, P + T, r] in place), if there can be one, whose length tells a prompt.
    past: Option<String>,
    /// Past and new latent rows, as they are cached.
    latent: String,
    /// The rows [B, G, T, d] of this step.
    new: String,
}

impl Builder<'_> {
    fn rows(&mut self, side: &Side, letter: char, product: NodeId) -> Rows {
        let latent = self.cached_latent(side, letter, product);
        let first = side
            .cache
            .as_ref()
            .filter(|cache| cache.appended_to().is_none());
        let rows = first.map_or_else(
            || side.new.clone(),
            |cache| self.first_rows(cache, letter).1,
        );
        Rows {
            past: side
                .cache
                .as_ref()
                .and_then(Cache::appended_to)
                .map(str::to_owned),
            new: self.as_read(side, letter, &rows, product),
            latent,
        }
    }

    /// Scores [B, H, T, S]: those of the new rows alone in a prompt, and else those of all latent rows.
    fn prompt_or_score(&mut self, keys: Rows) {
        let site = self.site;
        let (name, output) = self.names_of(site.score);
        let own = self.own_score("prompt/", &keys.new);
        let Some(past) = &keys.past else {
            let mut nodes = own;
            nodes.push(self.scores_of_heads("prompt/score_BGxT", &name, &output));
            return self.place(site.score, nodes);
        };
        let prompt = Branch {
            nodes: own,
            outputs: vec![self.name("prompt/score_BGxT")],
        };
        let later = Branch {
            nodes: self.score_of_later(&keys.latent, Self::latent_score),
            outputs: vec![self.name("score_B1xS")],
        };
        let mut nodes = self.emptiness(past);
        // Measured: of a cache that `Concat` has just written, the copy costs no more than another branch.
        let tokens = match self.layout.join {
            Join::InPlace => self.token_size(1),
            Join::Append => None,
        };
        nodes.extend(match tokens {
            None => vec![self.chosen_score("no_past", [prompt, later])],
            Some(tokens) => self.one_or_several(&tokens, &keys.latent, [prompt, later]),
        });
        nodes.push(self.scores_of_heads(CHOSEN_SCORE, &name, &output));
        self.place(site.score, nodes);
    }

    /// The nodes of the scores that `make` computes from the latent keys `latent`.
    fn score_of_later(
        &mut self,
        latent: &str,
        make: impl FnOnce(&mut Self, &str) -> Vec<NodeProto>,
    ) -> Vec<NodeProto> {
        let side = &self.site.key;
        let (mut nodes, latent) = self.read(side, 'k', latent);
        nodes.extend(make(self, &latent));
        nodes
    }

    /// The scores of one token behind a past, and otherwise those of the branches `ways`. `tokens` is the number of new tokens.
    fn one_or_several(&mut self, tokens: &str, latent: &str, ways: [Branch; 2]) -> Vec<NodeProto> {
        let one = self.scalar(1);
        let step = self.within("step/", |builder| Branch {
            nodes: builder.score_of_later(latent, Self::latent_score_of_one),
            outputs: vec![builder.name("score_B1xS")],
        });
        let several = self.name("several/score");
        let made = [(&*several, self.site.key.product_type)];
        let several = Branch {
            nodes: vec![choice(&several, &made, &self.name("no_past"), ways)],
            outputs: vec![several.clone()],
        };
        let [alone, past] = ["one_token", "some_past"].map(|part| self.name(part));
        vec![
            self.unary("Equal", "one_token", &[tokens, &one]),
            self.unary("Not", "some_past", &[&self.name("no_past")]),
            self.unary("And", "one_later_token", &[&alone, &past]),
            self.chosen_score("one_later_token", [step, several]),
        ]
    }

    /// The output of the value product: from the new rows alone in a prompt, and else from all latent rows.
    fn prompt_or_output(&mut self, values: Rows) {
        let site = self.site;
        let (name, output) = self.output_names();
        let heads = self.vector(&[0, site.heads as i64, -1, site.value.size as i64]);
        let own = |builder: &mut Self, name: &str, output: &str| {
            let mut nodes = builder.own_output("prompt", builder.probabilities(), &values.new);
            let rows = builder.name("prompt/own_BGxd");
            nodes.push(node("Reshape", name, &[&rows, &heads], &[output]));
            nodes
        };
        if values.past.is_none() {
            let nodes = own(self, &name, &output);
            return self.place(site.output, nodes);
        }
        let (prompt, later) = (self.name("prompt/out"), self.name("later/out"));
        let (cast, latent) = self.read(&site.value, 'v', &values.latent);
        let ways = [
            Branch {
                nodes: own(self, &prompt, &prompt),
                outputs: vec![prompt],
            },
            Branch {
                nodes: cast
                    .into_iter()
                    .chain(self.latent_output(&latent, &later, &later))
                    .collect(),
                outputs: vec![later],
            },
        ];
        let made = [(&*output, site.value.product_type)];
        let chosen = choice(&name, &made, &self.name("no_past"), ways);
        self.place(site.output, vec![chosen]);
    }
}
