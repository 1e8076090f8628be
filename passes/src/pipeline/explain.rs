//! The description of a rewrite as text, for reviews and snapshots.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::analysis::placed::Raising;
use crate::analysis::{Analysis, SiteView};
use crate::factor::{CacheBits, Ranks};
use crate::forms::Form;
use crate::graph::patch::Patch;
use crate::graph::{subgraphs, text};
use crate::numbers::counted;
use crate::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::recognize::site::Site;

/// The text of one attention before the graph changes: its title, its nodes, its plan, and the names of its new values.
#[derive(Debug, Clone)]
pub struct Explained {
    title: String,
    before: Vec<String>,
    plan: String,
    /// The outputs of the new nodes.
    made: HashSet<String>,
    /// The prefix of the names of its initializers.
    prefix: String,
}

impl Explained {
    /// Describes the attention of `view` and its `patch`, whose new names begin with `prefix`.
    pub fn of(
        view: &SiteView,
        analysis: &Analysis,
        (form, ranks, bits): (&dyn Form, Ranks, CacheBits),
        (patch, prefix): (&Patch, &str),
    ) -> Self {
        let site = view.site();
        let score = view.graph.node(site.score).and_then(|n| n.output.first());
        let operator = analysis.lowered.iter().find(|o| {
            o.scope == view.placed.scope && score.is_some_and(|score| o.made.contains(score))
        });
        let lowered = |node: &NodeProto| {
            let made = operator.map(|o| &o.made);
            made.is_some_and(|made| node.output.iter().any(|o| made.contains(o)))
        };
        let nodes = view.graph.proto().node.iter();
        let own = nodes.filter(|n| belongs(n, site) && !lowered(n));
        // A node that is only spelled anew for recognition is shown as the model has it.
        let spelled = |node: &NodeProto| {
            let mut all = analysis.lowered.iter();
            let same = all.find(|o| o.scope == view.placed.scope && o.node.output == node.output);
            same.map_or_else(|| text::node(node), |o| text::node(&o.node))
        };
        let mut before: Vec<String> = own.map(spelled).collect();
        before.extend(operator.map(|o| text::node(&o.node)));
        let new = patch.front.iter().chain(patch.replaced.values().flatten());
        let mut made: HashSet<String> = new.flat_map(|n| n.output.clone()).collect();
        made.extend(operator.into_iter().flat_map(|o| o.made.iter().cloned()));
        Self {
            title: format!(
                "layer {}: H={} G={} d={} dv={}, {}, {}{}",
                site.layer,
                site.heads,
                site.kv_heads,
                site.key.size,
                site.value.size,
                text::type_name(site.cached_type),
                site.dialect.name(),
                match view.placed.raising {
                    Raising::Raised => " in place of products",
                    _ => "",
                }
            ),
            before,
            plan: format!(
                "form {}, ranks {} of {} and {} of {}, {}key scale {}, value scale {}",
                form.name(),
                ranks.key,
                site.kv_heads * site.key.size,
                ranks.value,
                site.kv_heads * site.value.size,
                bits.number()
                    .map_or_else(String::new, |n| format!("{n} bits, ")),
                site.key.scale,
                site.value.scale
            ),
            made,
            prefix: format!("{prefix}/"),
        }
    }
}

/// Whether `node` is one of the two products of `site`, or between a cache and a product.
fn belongs(node: &NodeProto, site: &Site) -> bool {
    let made_on_the_way = |side: &crate::recognize::site::Side| {
        let skipped = usize::from(side.cache.is_none());
        let mut path = side.path.iter().skip(skipped);
        path.any(|value| node.output.contains(value))
    };
    let product = |left: &str, path: &[String]| {
        let right = path.last().map_or("", String::as_str);
        node.op_type() == "MatMul" && node.input == [left, right]
    };
    made_on_the_way(&site.key)
        || made_on_the_way(&site.value)
        || product(&site.query, &site.key.path)
        || product(&site.probabilities, &site.value.path)
}

/// The nodes of `graph` and of its subgraphs for which `holds`, without those inside of such a node.
fn outermost<'g>(graph: &'g GraphProto, holds: &dyn Fn(&NodeProto) -> bool) -> Vec<&'g NodeProto> {
    let inside = |node: &'g NodeProto| match holds(node) {
        true => vec![node],
        false => subgraphs(node).flat_map(|g| outermost(g, holds)).collect(),
    };
    graph.node.iter().flat_map(inside).collect()
}

/// The description of a rewrite, with one section for each attention.
#[derive(Debug, Clone, Default)]
pub struct Explanation {
    model: String,
    sites: Vec<Section>,
    interface: Vec<String>,
}

/// The description of one attention.
#[derive(Debug, Clone)]
struct Section {
    title: String,
    before: Vec<String>,
    plan: String,
    after: Vec<String>,
    initializers: Vec<String>,
}

impl Explanation {
    /// Compares the graph `before` with the graph of the rewritten `model`.
    pub fn of(explained: Vec<Explained>, before: &GraphProto, model: &ModelProto) -> Self {
        let opsets = model.opset_import.iter().map(|o| match o.domain() {
            "" => format!("ai.onnx {}", o.version()),
            domain => format!("{domain} {}", o.version()),
        });
        let opsets: Vec<String> = opsets.collect();
        let Some(after) = &model.graph else {
            return Self::default();
        };
        // Values in different branches may have equal names. Branches are visited in the order of their attentions.
        let mut owners: HashMap<&str, VecDeque<usize>> = HashMap::new();
        for (position, one) in explained.iter().enumerate() {
            for value in &one.made {
                owners.entry(value).or_default().push_back(position);
            }
        }
        let mut lines: Vec<Vec<String>> = vec![Vec::new(); explained.len()];
        // An `If` of the exporter that contains new nodes is not new itself.
        let old_choices = all_nodes(before).into_iter();
        let old_choices = old_choices.filter(|n| subgraphs(n).next().is_some());
        let old_choices: HashSet<&String> = old_choices.flat_map(|n| &n.output).collect();
        let is_owned = |node: &NodeProto| {
            let is_old = || node.output.iter().any(|o| old_choices.contains(o));
            node.output.iter().any(|o| owners.contains_key(o.as_str()))
                && (subgraphs(node).next().is_none() || !is_old())
        };
        for node in outermost(after, &is_owned) {
            let owned = node
                .output
                .iter()
                .filter_map(|o| owners.get_mut(o.as_str())?.pop_front());
            // All outputs of a node belong to the same attention.
            if let Some(lines) = owned.last().and_then(|position| lines.get_mut(position)) {
                lines.push(text::node(node));
                let bodies = subgraphs(node).flat_map(text::graph);
                lines.extend(bodies.map(|line| format!("    {line}")));
            }
        }
        let old: HashSet<&str> = before.initializer.iter().map(|t| t.name()).collect();
        let new: Vec<_> = after
            .initializer
            .iter()
            .filter(|t| !old.contains(t.name()))
            .collect();
        let prefixes: Vec<&str> = explained.iter().map(|e| e.prefix.as_str()).collect();
        let of_another = |name: &str, own: &str| {
            !name.starts_with(own) && prefixes.iter().any(|p| name.starts_with(p))
        };
        let count = explained.len();
        let sections = explained.iter().zip(lines).map(|(one, after)| Section {
            title: format!("{}, {}", counted(count, "attention"), one.title),
            before: one.before.clone(),
            plan: one.plan.clone(),
            after,
            initializers: new
                .iter()
                .filter(|t| !of_another(t.name(), &one.prefix))
                .map(|t| text::initializer(t))
                .collect(),
        });
        Self {
            model: opsets.join(", "),
            sites: sections.collect(),
            interface: interface(before, after),
        }
    }

    /// The sections MODEL, BEFORE, PLAN, AFTER and INITIALIZERS of the rewritten attentions at `positions`, then the
    /// section INTERFACE.
    pub fn of_sites(&self, positions: impl IntoIterator<Item = usize>) -> String {
        let mut text = String::new();
        let mut section = |title: &str, lines: &[String]| {
            text.push_str(title);
            text.push('\n');
            for line in lines {
                text.push_str(&format!("  {line}\n"));
            }
        };
        for site in positions.into_iter().filter_map(|p| self.sites.get(p)) {
            section("MODEL", &[self.model.clone(), site.title.clone()]);
            section("BEFORE", &site.before);
            section("PLAN", std::slice::from_ref(&site.plan));
            section("AFTER", &site.after);
            section("INITIALIZERS", &site.initializers);
        }
        section("INTERFACE", &self.interface);
        text
    }
}

/// All nodes of `graph` and its subgraphs, in order.
fn all_nodes(graph: &GraphProto) -> Vec<&NodeProto> {
    let mut nodes = Vec::new();
    for node in &graph.node {
        nodes.push(node);
        for body in subgraphs(node) {
            nodes.extend(all_nodes(body));
        }
    }
    nodes
}

/// The graph inputs and outputs whose declarations have changed.
fn interface(before: &GraphProto, after: &GraphProto) -> Vec<String> {
    let changes = |kind: &str, before: &[ValueInfoProto], after: &[ValueInfoProto]| {
        let pairs = before.iter().zip(after).filter(|(b, a)| b != a);
        let lines = pairs.map(|(b, a)| {
            let now = text::value(a);
            let kind_of_value = now.split_once(": ").map_or(now.as_str(), |(_, k)| k);
            format!("{kind} {} -> {kind_of_value}", text::value(b))
        });
        lines.collect::<Vec<String>>()
    };
    let mut lines = changes("input", &before.input, &after.input);
    lines.extend(changes("output", &before.output, &after.output));
    lines
}
