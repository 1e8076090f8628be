//! The absorbed form with `com.microsoft.GroupQueryAttention`: one latent KV head that all query heads share.
//!
//! The operator manages the cache, so past and present may share a buffer, and the rows of a batch may have different
//! lengths. RoPE is applied before the operator; all constant scales of the scores are in w_uk.

use crate::analysis::SiteView;
use crate::analysis::identity::SiteId;
use crate::analysis::placed::Raising;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::layout::{Layout, Reads, latents};
use crate::forms::names::SiteNames;
use crate::forms::operator_form::{OperatorForm, Step};
use crate::forms::rounded::{Rounds, reading_integers};
use crate::forms::{Form, FormError, Hindrance, RankPlan};
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::graph::{float_attribute, int_attribute};
use crate::onnx::NodeProto;
use crate::operators::{Target, has_no_new_rows};
use crate::recognize::site::{Side, Site};

/// The head size of the operator must be a multiple of this.
const RANK_STEP: usize = 8;

/// The form `grouped`: the option `--target gqa`.
#[derive(Debug, Clone, Copy, Default)]
pub struct GroupedQuery;

impl Form for GroupedQuery {
    fn name(&self) -> &'static str {
        "grouped"
    }

    fn target(&self) -> Target {
        Target::Gqa
    }

    fn rounds(&self) -> Rounds {
        Rounds::AboutCentre
    }

    fn hinders_per_head(&self) -> Option<Hindrance> {
        None
    }

    fn serves_several_readers(&self) -> bool {
        true
    }

    fn rank_step(&self) -> usize {
        RANK_STEP
    }

    /// The same rank for keys and values, because the operator has one head size for both.
    fn ranks(&self, plan: &RankPlan, id: &SiteId, site: &Site) -> Ranks {
        let full = self.full_ranks(site);
        let ranks = plan.ranks(id, site, full, RANK_STEP);
        if matches!(plan, RankPlan::Each(_)) {
            return ranks;
        }
        let wider = |ranks: Ranks| ranks.key.max(ranks.value);
        // A full rank is rounded up to the multiple: additional zero channels keep it exact.
        let stepped = |rank: usize| rank.next_multiple_of(RANK_STEP).min(site.full_rank());
        let rank = wider(ranks);
        Ranks::uniform(if rank == wider(full) {
            stepped(rank)
        } else {
            rank
        })
    }

    fn check(&self, view: &SiteView, ranks: Ranks) -> Result<(), FormError> {
        if operator(view).is_none() {
            return Err(FormError::Refused(format!(
                "{}: use the target matmul",
                no_operator(view)
            )));
        }
        if appends_nothing(view) && view.site().shares.is_none() {
            return Err(FormError::Refused(
                "it reads the cache of a layer that is no attention of the model: use the target matmul".to_owned(),
            ));
        }
        if ranks.key != ranks.value {
            return Err(FormError::Refused(format!(
                "GroupQueryAttention holds keys and values of one width, and the ranks are {} and {}: use the uniform layout",
                ranks.key, ranks.value
            )));
        }
        if !ranks.key.is_multiple_of(RANK_STEP) {
            let below = ranks.key / RANK_STEP * RANK_STEP;
            let around = [below, below + RANK_STEP];
            let fits = |rank: &&usize| (RANK_STEP..=view.site().full_rank()).contains(*rank);
            let around: Vec<String> = around.iter().filter(fits).map(usize::to_string).collect();
            let way_out = match around.is_empty() {
                true => "use the target matmul".to_owned(),
                false => format!("use --rank {}", around.join(" or ")),
            };
            return Err(FormError::Refused(format!(
                "rank {} is no multiple of {RANK_STEP}, as GroupQueryAttention needs: {way_out}",
                ranks.key
            )));
        }
        Ok(())
    }

    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        latents(view, factors, Reads::Operator, names)
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
        builder.narrow_caches();
        let rows = match view.site().shares {
            None => builder.operator_rows(),
            Some(_) => builder.no_rows(old),
        };
        builder.operator(old, rows);
        Ok(builder.finish()?)
    }
}

impl OperatorForm for GroupedQuery {
    fn with_prompt(&self) -> &'static str {
        "grouped-prompt"
    }

    fn change_caches(&self, builder: &mut Builder) {
        builder.narrow_caches();
    }

    fn step(
        &self,
        builder: &mut Builder,
        old: &NodeProto,
        presents: &[String; 2],
        output: &str,
    ) -> Step {
        let rows = builder.operator_rows();
        builder.later_step(old, rows, presents, output)
    }
}

/// The `GroupQueryAttention` that the attention was lowered from.
pub fn operator<'v>(view: &SiteView<'v>) -> Option<&'v NodeProto> {
    let origin = view.placed.origin.as_ref()?;
    origin.grouped.as_ref()
}

/// Whether that operator has keys and values of length 0, because it reads the cache of another layer.
pub fn appends_nothing(view: &SiteView) -> bool {
    operator(view).is_some_and(|old| has_no_new_rows(view.facts, old))
}

/// Why the attention of `view` is not computed by `GroupQueryAttention`.
pub fn no_operator(view: &SiteView) -> String {
    let written = view.site().dialect.name();
    match &view.placed.raising {
        Raising::Hindered(reason) => format!(
            "it is written as {written}, and GroupQueryAttention cannot take its place: {reason}"
        ),
        _ => format!(
            "it is written as {written}, and other attentions of the model as GroupQueryAttention"
        ),
    }
}

impl Builder<'_> {
    /// Puts the operator in place of the products of the attention and of the nodes that append to its caches. It reads `rows`
    /// [B, T, r] of keys and values, which `nodes` compute. Nodes that read the length of a cache read it elsewhere. An
    /// attention that reads the cache of an earlier one appends nothing to it.
    pub fn operator(&mut self, old: &NodeProto, (mut nodes, rows): (Vec<NodeProto>, [String; 2])) {
        let site = self.site;
        // ONNX Runtime reads a past only if it has a present to copy it to.
        let presents = match site.shares {
            None => self.joined(),
            Some(_) => ["unread_k", "unread_v"].map(|present| self.name(present)),
        };
        let (_, output) = self.names_of(site.output);
        nodes.extend(self.operator_step(old, &rows, &presents, (&self.name("out"), &output)));
        self.place(site.output, nodes);
        if site.shares.is_none() {
            self.drop_appends();
        }
        self.answer_shapes();
    }

    /// The step behind a prompt, with the operator on `rows` [B, T, r] of keys and values, which `shared` compute.
    pub fn later_step(
        &mut self,
        old: &NodeProto,
        (shared, rows): (Vec<NodeProto>, [String; 2]),
        presents: &[String; 2],
        output: &str,
    ) -> Step {
        Step {
            shared,
            nodes: self.operator_step(old, &rows, presents, (output, output)),
            rows: Some(rows),
        }
    }

    /// Removes the nodes that append to the caches, because the operator computes the presents.
    pub fn drop_appends(&mut self) {
        let site = self.site;
        for cache in [&site.key.cache, &site.value.cache].into_iter().flatten() {
            self.place(cache.append, Vec::new());
        }
    }

    /// The presents of keys and of values.
    fn joined(&self) -> [String; 2] {
        [&self.site.key, &self.site.value].map(|side| {
            let cache = side.cache.as_ref();
            cache.map(|cache| cache.joined.clone()).unwrap_or_default()
        })
    }

    /// Keys and values of length 0, [B, 0, r], from those of the exporter's operator `old`, [B, 0, G*d].
    fn no_rows(&mut self, old: &NodeProto) -> (Vec<NodeProto>, [String; 2]) {
        let (first, one, axis) = (self.vector(&[0]), self.vector(&[1]), self.vector(&[2]));
        let width = self.layout.bits.channels(self.ranks.key) as i64;
        let width = self.vector(&[1, 1, width]);
        let given = old.input.get(1).map_or("", String::as_str);
        let rows = self.name("no_rows_B0r");
        let nodes = vec![
            self.unary("Slice", "no_rows_B01", &[given, &first, &one, &axis]),
            self.unary(
                "Expand",
                "no_rows_B0r",
                &[&self.name("no_rows_B01"), &width],
            ),
        ];
        (nodes, [rows.clone(), rows])
    }

    /// The nodes that compute the rows of keys and of values [B, T, r] for the operator's caches, and the names of the rows.
    pub fn operator_rows(&mut self) -> (Vec<NodeProto>, [String; 2]) {
        let site = self.site;
        let mut nodes = Vec::new();
        let rows = [(&site.key, 'k'), (&site.value, 'v')].map(|(side, letter)| {
            let (made, rows) = self.latent_rows(side, letter, &side.new);
            let (centring, rows) = self.centred(letter, rows);
            let (splitting, rows) = self.digits(letter, rows);
            nodes.extend(made.into_iter().chain(centring).chain(splitting));
            rows
        });
        (nodes, rows)
    }

    /// The nodes from the queries to the output of the value product, with the operator on `rows`, which computes `presents`.
    /// `last` is the name of the last node and of its output.
    pub fn operator_step(
        &mut self,
        old: &NodeProto,
        rows: &[String; 2],
        presents: &[String; 2],
        last: (&str, &str),
    ) -> Vec<NodeProto> {
        let heads = self.site.heads as i64;
        let size = self.ranks.key / self.layout.heads();
        let rank = self.layout.bits.channels(size) as i64;
        let turn = |n: NodeProto| n.with_ints("perm", &[0, 2, 1, 3]);
        let (by_block, queries) = self.queries_by_block();
        let (up, queries) = self.queries_up(&queries);
        let mut nodes: Vec<NodeProto> = by_block.into_iter().chain([up]).collect();
        if !self.has_blocks_per_head() {
            let by_head = self.vector(&[0, heads, -1, rank]);
            nodes.push(self.unary("Reshape", "q_BHTr", &[&queries, &by_head]));
        }
        let packed = self.vector(&[0, 0, heads * rank]);
        let split = self.vector(&[0, 0, heads, rank]);
        nodes.extend([
            turn(self.unary("Transpose", "q_BTHr", &[&self.name("q_BHTr")])),
            self.unary("Reshape", "q_BTx", &[&self.name("q_BTHr"), &packed]),
            self.attention(old, rows, presents),
            self.unary("Reshape", "out_BTHr", &[&self.name("out_BTx"), &split]),
            turn(self.unary("Transpose", "out_BHTr", &[&self.name("out_BTHr")])),
        ]);
        let mut outputs = self.name("out_BHTr");
        if !self.has_blocks_per_head() {
            let (by_block, rows) = self.outputs_by_block(&outputs);
            nodes.push(by_block);
            outputs = rows;
        }
        let (node, output) = last;
        nodes.extend(self.outputs_up(&outputs, node, output));
        nodes
    }

    /// The new operator node, which reads the rows `k` and `v` [B, T, r] and computes the presents `keys` and `values`.
    /// Sequence lengths, bias, sink, window and softcap are those of `old`; it applies no rotation.
    fn attention(
        &self,
        old: &NodeProto,
        [k, v]: &[String; 2],
        [keys, values]: &[String; 2],
    ) -> NodeProto {
        let input = |position: usize| old.input.get(position).map_or("", String::as_str);
        let past = |side: &Side| {
            let past = side.cache.as_ref().and_then(|c| c.appended_to());
            past.unwrap_or_default().to_owned()
        };
        let [past_keys, past_values] = match self.site.shares {
            None => [&self.site.key, &self.site.value].map(past),
            Some(_) => self.joined(),
        };
        let q = self.name("q_BTx");
        let mut inputs = vec![&*q, k, v, &past_keys, &past_values, input(5), input(6)];
        // cos_cache, sin_cache and position_ids stay empty in front of bias and sink.
        inputs.extend(["", "", "", input(10), input(11)]);
        while inputs.last() == Some(&"") {
            inputs.pop();
        }
        let mut new = node(
            "GroupQueryAttention",
            old.name(),
            &inputs,
            &[&self.name("out_BTx"), keys, values],
        )
        .with_int("num_heads", self.site.heads as i64)
        .with_int("kv_num_heads", self.layout.heads() as i64)
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
        reading_integers(new, self.layout)
    }
}
