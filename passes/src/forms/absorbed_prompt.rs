//! The absorbed form with an exact prompt: the step that fills an empty cache reads its own keys and values.
//!
//! An `If` on the length of the past chooses between the products with the new rows alone and those of the absorbed form.
//! A prompt that is read in one step loses nothing and takes d multiplications a score instead of r; every later step is as
//! in the absorbed form, but for one token, whose scores are a product of their own in place, and whose products read a cache of
//! integers as it is.

use crate::analysis::SiteView;
use crate::factor::{CacheBits, Made, Ranks};
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
        Rounds::Unsigned
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
        let mut layout = LatentPast.layout(view, factors, names)?;
        if layout.bits == CacheBits::Eight {
            layout.add_zero_points(names, view.site())?;
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
        let keys = builder.rows(&site.key, 'k', site.score);
        let values = builder.rows(&site.value, 'v', site.output);
        let steps = builder.steps(&keys);
        builder.prompt_or_score(keys, steps.as_ref());
        builder.prompt_or_output(values, steps.as_ref());
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

/// The values that tell the kinds of steps.
struct Steps {
    /// Whether the step is a prompt.
    no_past: String,
    /// Whether the step is one token behind a past; `None` if it is computed as several tokens are.
    one_later: Option<String>,
    /// What spreads the last digits of probabilities, if the cache holds integers ([`Builder::spread`]).
    spread: Option<String>,
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

    /// The kinds of steps of an attention with the keys `keys`; `None` if the model has no past.
    fn steps(&mut self, keys: &Rows) -> Option<Steps> {
        let mut past = self.past(keys.past.as_deref()?);
        let no_past = self.no_past(&mut past);
        let integers = self.layout.has_unsigned();
        // Appended floats need no branch of their own: the copy of the cache that `MatMul` makes takes about as long as an `If`.
        let tokens = match self.layout.join {
            Join::InPlace => self.token_size(1),
            Join::Append if integers => self.embedded_tokens(),
            Join::Append => None,
        };
        let mut steps = Steps {
            no_past,
            one_later: None,
            spread: None,
        };
        if let Some(tokens) = tokens {
            steps.one_later = Some(self.one_later_token(&mut past, &tokens, &steps.no_past));
            steps.spread = integers.then(|| self.spread(&mut past, &tokens));
        }
        self.place(self.site.score, past.nodes);
        Some(steps)
    }

    /// The node `name` with the output `output` of the element type `elem_type`, which one of the branches computes: `one` in a
    /// step of one token behind a past, the first of `others` in a prompt, and the second one otherwise. `part` names the result of
    /// `others`.
    fn by_step(
        &self,
        steps: &Steps,
        part: &str,
        (name, output, elem_type): (&str, &str, i32),
        one: Option<Branch>,
        others: [Branch; 2],
    ) -> NodeProto {
        let (Some(one), Some(one_later)) = (one, &steps.one_later) else {
            return choice(name, &[(output, elem_type)], &steps.no_past, others);
        };
        let several = self.name(&format!("several/{part}"));
        let made = [(&*several, elem_type)];
        let several = Branch {
            nodes: vec![choice(&several, &made, &steps.no_past, others)],
            outputs: vec![several.clone()],
        };
        choice(name, &[(output, elem_type)], one_later, [one, several])
    }

    /// Scores [B, H, T, S]: those of the new rows alone in a prompt, and else those of all latent rows.
    fn prompt_or_score(&mut self, keys: Rows, steps: Option<&Steps>) {
        let side = &self.site.key;
        let (name, output) = self.names_of(self.site.score);
        let own = self.own_score("prompt/", &keys.new);
        let Some(steps) = steps else {
            let mut nodes = own;
            nodes.push(self.scores_of_heads("prompt/score_BGxT", &name, &output));
            return self.place(self.site.score, nodes);
        };
        let prompt = Branch {
            nodes: own,
            outputs: vec![self.name("prompt/score_BGxT")],
        };
        let (mut nodes, latent) = self.read(side, 'k', &keys.latent);
        nodes.extend(self.latent_score(&latent));
        let later = Branch {
            nodes,
            outputs: vec![self.name("score_B1xS")],
        };
        let one = steps
            .one_later
            .is_some()
            .then(|| self.within("step/", |builder| builder.score_of_one(&keys.latent)));
        let chosen = self.name(CHOSEN_SCORE);
        let made = (&*chosen, &*chosen, side.product_type);
        let nodes = vec![
            self.by_step(steps, "score", made, one, [prompt, later]),
            self.scores_of_heads(CHOSEN_SCORE, &name, &output),
        ];
        self.place(self.site.score, nodes);
    }

    /// The scores [B, 1, H, S] of one token behind a past, with the latent rows as they are cached.
    fn score_of_one(&mut self, latent: &str) -> Branch {
        let side = &self.site.key;
        let integers = self.layout.has_unsigned();
        let (mut nodes, latent) = match integers {
            true => self.one_head(side, 'k', latent),
            false => self.read(side, 'k', latent),
        };
        nodes.extend(self.latent_queries_of_one());
        nodes.extend(match integers {
            true => self.integer_score(&latent),
            false => self.latent_score_of_one(&latent),
        });
        Branch {
            nodes,
            outputs: vec![self.name("score_B1xS")],
        }
    }

    /// The output of the value product: from the new rows alone in a prompt, and else from all latent rows.
    fn prompt_or_output(&mut self, values: Rows, steps: Option<&Steps>) {
        let site = self.site;
        let (name, output) = self.output_names();
        let heads = self.vector(&[0, site.heads as i64, -1, site.value.size as i64]);
        let own = |builder: &mut Self, name: &str, output: &str| {
            let mut nodes = builder.own_output("prompt", builder.probabilities(), &values.new);
            let rows = builder.name("prompt/own_BGxd");
            nodes.push(node("Reshape", name, &[&rows, &heads], &[output]));
            nodes
        };
        let Some(steps) = steps else {
            let nodes = own(self, &name, &output);
            return self.place(site.output, nodes);
        };
        let (prompt, later) = (self.name("prompt/out"), self.name("later/out"));
        let (mut nodes, latent) = self.read(&site.value, 'v', &values.latent);
        nodes.extend(self.latent_output(&latent, &later, &later));
        let ways = [
            Branch {
                nodes: own(self, &prompt, &prompt),
                outputs: vec![prompt],
            },
            Branch {
                nodes,
                outputs: vec![later],
            },
        ];
        let one = steps.spread.as_ref().map(|spread| {
            self.within("step/", |builder| {
                let (mut nodes, latent) = builder.one_head(&site.value, 'v', &values.latent);
                let products = builder.integer_values(&latent, spread);
                let out = builder.name("out");
                nodes.extend(builder.output_of(products, &out, &out));
                Branch {
                    nodes,
                    outputs: vec![out],
                }
            })
        });
        let made = (&*name, &*output, site.value.product_type);
        let chosen = self.by_step(steps, "out", made, one, ways);
        self.place(site.output, vec![chosen]);
    }
}
