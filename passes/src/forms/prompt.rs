//! A prompt that the exporter's own `com.microsoft.GroupQueryAttention` reads, in front of a form with that operator.
//!
//! A step that fills an empty cache reads nothing but its own tokens. There an `If` runs the exporter's operator, with the
//! heads as they are, and the cache gets what later steps read: latents, integers, or both. The prompt takes little more
//! time than in the original and loses nothing; every later step runs the operator of the form. The operator's caches may be longer than what
//! they hold, so that rows behind the new ones are kept as they are.

use tract_data::prelude::TDim;

use crate::analysis::SiteView;
use crate::analysis::identity::SiteId;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::choice::{Branch, choice};
use crate::forms::grouped_query::{GroupedQuery, operator};
use crate::forms::kept::KeptHeads;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::operator_form::OperatorForm;
use crate::forms::rebased::RebasedHeads;
use crate::forms::rounded::Rounds;
use crate::forms::{ExactTokens, Form, FormError, Hindrance, RankPlan};
use crate::graph::input_at;
use crate::graph::patch::Patch;
use crate::onnx::{NodeProto, tensor_proto::DataType};
use crate::operators::Target;
use crate::recognize::site::{Side, Site};

/// The form `grouped-prompt`: the options `--target gqa`.
pub const GROUPED_PROMPT: ExactPrompt<GroupedQuery> = ExactPrompt(GroupedQuery);

/// The form `kept-prompt`: the options `--keep-heads` with 8 bits.
pub const KEPT_PROMPT: ExactPrompt<KeptHeads> = ExactPrompt(KeptHeads);

/// The form `rebased-prompt`: the options `--keep-heads` with 6 or 4 bits.
pub const REBASED_PROMPT: ExactPrompt<RebasedHeads> = ExactPrompt(RebasedHeads);

/// The form `F` with an exact prompt.
#[derive(Debug, Clone, Copy)]
pub struct ExactPrompt<F>(F);

impl<F: OperatorForm> Form for ExactPrompt<F> {
    fn name(&self) -> &'static str {
        self.0.with_prompt()
    }

    fn target(&self) -> Target {
        self.0.target()
    }

    fn rounds(&self) -> Rounds {
        self.0.rounds()
    }

    fn exact_tokens(&self) -> ExactTokens {
        ExactTokens::Prompt
    }

    fn keeps_heads(&self) -> bool {
        self.0.keeps_heads()
    }

    fn rebases_heads(&self) -> bool {
        self.0.rebases_heads()
    }

    fn hinders_per_head(&self) -> Option<Hindrance> {
        self.0.hinders_per_head()
    }

    fn rank_step(&self) -> usize {
        self.0.rank_step()
    }

    fn ranks(&self, plan: &RankPlan, id: &SiteId, site: &Site) -> Ranks {
        self.0.ranks(plan, id, site)
    }

    fn check(&self, view: &SiteView, ranks: Ranks) -> Result<(), FormError> {
        self.0.check(view, ranks)?;
        let total = operator(view).and_then(|old| input_at(old, TOTAL_LENGTH));
        let sizes = total
            .and_then(|total| view.facts.shape(total))
            .unwrap_or_default();
        let one = |size: &TDim| size.as_i64().is_none_or(|size| size == 1);
        match total.is_some() && sizes.iter().all(one) {
            true => Ok(()),
            false => Err(FormError::Refused(
                "its total_sequence_length, which tells a prompt, is not one number: use --new-tokens latent"
                    .to_owned(),
            )),
        }
    }

    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        self.0.layout(view, factors, names)
    }

    fn patch(
        &self,
        view: &SiteView,
        layout: &Layout,
        ranks: Ranks,
        names: &SiteNames,
    ) -> Result<Patch, FormError> {
        let old = operator(view).ok_or_else(|| FormError::missing("its operator is gone"))?;
        let mut builder = Builder::new(self.name(), view, names, layout, ranks);
        self.0.change_caches(&mut builder);
        let site = builder.site;
        let (name, output) = builder.names_of(site.output);
        let [out, keys, values] =
            ["out", "present_k", "present_v"].map(|p| builder.name(&format!("later/{p}")));
        let presents = [keys.clone(), values.clone()];
        let step = self.0.step(&mut builder, old, &presents, &out);
        let later = Branch {
            nodes: step.nodes,
            outputs: vec![out, keys, values],
        };
        let prompt = builder.prompt(old, step.rows);
        let mut nodes = step.shared;
        nodes.extend(builder.is_prompt(old));
        let cached = builder.layout.cached_type(site);
        let joined = |side: &Side| {
            side.cache
                .as_ref()
                .map(|c| c.joined.clone())
                .unwrap_or_default()
        };
        let (keys, values) = (joined(&site.key), joined(&site.value));
        let made = [
            (&*output, site.value.product_type),
            (&*keys, cached),
            (&*values, cached),
        ];
        let condition = builder.name("is_prompt");
        nodes.push(choice(&name, &made, &condition, [prompt, later]));
        builder.place(site.output, nodes);
        builder.drop_appends();
        builder.answer_shapes();
        Ok(builder.finish()?)
    }
}

/// The input `total_sequence_length` of the operator: past and new tokens together.
const TOTAL_LENGTH: usize = 6;
/// Its optional inputs `past_key` and `past_value`.
const PAST: [usize; 2] = [3, 4];

impl Builder<'_> {
    /// The nodes of `is_prompt`: whether there are no tokens but the new ones. Where the number of new tokens is read from an input
    /// of the model, these nodes are the same in every layer, and a runtime that merges equal nodes runs them once.
    fn is_prompt(&mut self, old: &NodeProto) -> Vec<NodeProto> {
        let total = input_at(old, TOTAL_LENGTH).unwrap_or_default();
        let query = input_at(old, 0).unwrap_or_default();
        let one = self.vector(&[1]);
        let of_model = self.embedded_tokens();
        let made = |op: &str, part: &str, inputs: &[&str]| self.unary(op, part, inputs);
        let mut nodes = match of_model {
            Some(_) => Vec::new(),
            None => vec![
                made("Shape", "q_shape", &[query]),
                made("Gather", "new_length", &[&self.name("q_shape"), &one]).with_int("axis", 0),
            ],
        };
        let new = of_model.unwrap_or_else(|| self.name("new_length"));
        nodes.extend([
            made("Cast", "total_int64", &[total]).with_int("to", DataType::Int64 as i64),
            made(
                "Reshape",
                "total_length",
                &[&self.name("total_int64"), &one],
            ),
            made("Equal", "is_prompt", &[&self.name("total_length"), &new]),
        ]);
        nodes
    }

    /// The exporter's operator without a past, and the caches with `rows` [B, T, r], of a latent or of several heads. Without `rows`, the caches
    /// get the heads of the operator.
    fn prompt(&mut self, old: &NodeProto, rows: Option<[String; 2]>) -> Branch {
        let site = self.site;
        let [packed, out, keys, values] =
            ["out_BTx", "out", "k_BGTd", "v_BGTd"].map(|p| self.name(&format!("prompt/{p}")));
        let mut operator = old.clone();
        operator.name = Some(self.name("prompt/operator"));
        for position in PAST {
            if let Some(input) = operator.input.get_mut(position) {
                input.clear();
            }
        }
        operator.output = vec![packed.clone(), keys.clone(), values.clone()];
        let mut nodes = vec![operator];
        nodes.extend(self.by_head("prompt/out_BTHd", &packed, &out));
        let mut outputs = vec![out];
        let (rows, heads) = match rows {
            Some(rows) => (rows, self.layout.heads()),
            None => {
                let sides = [(&site.key, 'k', keys), (&site.value, 'v', values)];
                let joined = sides.map(|(side, letter, own)| {
                    let part = |suffix: &str| format!("prompt/{letter}_{suffix}");
                    let (made, joined) =
                        self.heads_joined(side, &part("own_BTGd"), &own, &part("BTx"));
                    nodes.extend(made);
                    joined
                });
                (joined, site.kv_heads)
            }
        };
        for ((side, letter), rows) in [(&site.key, 'k'), (&site.value, 'v')].into_iter().zip(rows) {
            let (codes, cached) = self.codes(letter, &rows);
            nodes.extend(codes);
            nodes.extend(self.filled(side, letter, &cached, heads));
            outputs.push(self.name(&format!("prompt/present_{letter}")));
        }
        Branch { nodes, outputs }
    }

    /// The nodes of `prompt/present_<letter>`: the cache of `side` with `rows` [B, T, c] as `heads` heads, in front of what
    /// stands behind them in a buffer that is longer.
    fn filled(&mut self, side: &Side, letter: char, rows: &str, heads: usize) -> Vec<NodeProto> {
        let past = side
            .cache
            .as_ref()
            .and_then(|c| c.appended_to())
            .unwrap_or_default();
        let [axis, token_axis, end] = [2, 1, i64::MAX].map(|n| self.vector(&[n]));
        let by_head = self.vector(&[0, 0, heads as i64, -1]);
        let part = |what: &str| format!("prompt/{letter}_{what}");
        let name = |what: &str| self.name(&part(what));
        let made = |op: &str, what: &str, inputs: &[&str]| self.unary(op, &part(what), inputs);
        vec![
            made("Reshape", "BTGc", &[rows, &by_head]),
            made("Transpose", "BGTc", &[&name("BTGc")]).with_ints("perm", &[0, 2, 1, 3]),
            made("Shape", "shape", &[rows]),
            made("Gather", "T", &[&name("shape"), &token_axis]).with_int("axis", 0),
            made("Slice", "behind", &[past, &name("T"), &end, &axis]),
            self.unary(
                "Concat",
                &format!("prompt/present_{letter}"),
                &[&name("BGTc"), &name("behind")],
            )
            .with_int("axis", 2),
        ]
    }
}
