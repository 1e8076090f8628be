//! What a rewrite did, as text that people review and snapshots keep.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::analysis::{Analysis, SiteView};
use crate::factor::Ranks;
use crate::forms::Form;
use crate::graph::patch::Patch;
use crate::graph::{subgraphs, text};
use crate::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::recognize::site::Site;

/// The text of one attention: its title, its nodes before the rewrite, its plan, and the names of its new values.
#[derive(Debug, Clone)]
pub struct Explained {
    title: String,
    before: Vec<String>,
    plan: String,
    /// The values that the new nodes make.
    made: HashSet<String>,
    /// What the names of its own initializers begin with.
    prefix: String,
}

impl Explained {
    /// Notes what the attention of `view` was, and what its patch, with names under the prefix, makes of it.
    pub fn of(
        view: &SiteView,
        analysis: &Analysis,
        (form, ranks): (&dyn Form, Ranks),
        (patch, prefix): (&Patch, &str),
    ) -> Self {
        let site = view.site();
        let score = view.graph.node(site.score).and_then(|n| n.output.first());
        let operator = analysis.spelled.iter().find(|o| {
            o.scope == view.placed.scope && score.is_some_and(|score| o.made.contains(score))
        });
        let spelled = |node: &NodeProto| {
            let made = operator.map(|o| &o.made);
            made.is_some_and(|made| node.output.iter().any(|o| made.contains(o)))
        };
        let nodes = view.graph.proto().node.iter();
        let own = nodes.filter(|n| belongs(n, site) && !spelled(n));
        let mut before: Vec<String> = own.map(text::node).collect();
        before.extend(operator.map(|o| text::node(&o.node)));
        let new = patch.replaced.values().flatten();
        let mut made: HashSet<String> = new.flat_map(|n| n.output.clone()).collect();
        made.extend(operator.into_iter().flat_map(|o| o.made.iter().cloned()));
        Self {
            title: format!(
                "layer {}: H={} G={} d={} dv={}, {}, {}",
                site.layer,
                site.heads,
                site.kv_heads,
                site.key.size,
                site.value.size,
                text::type_name(site.cached_type),
                site.dialect.name()
            ),
            before,
            plan: format!(
                "form {}, ranks {} of {} and {} of {}, key scale {}, value scale {}",
                form.name(),
                ranks.key,
                site.kv_heads * site.key.size,
                ranks.value,
                site.kv_heads * site.value.size,
                site.key.scale,
                site.value.scale
            ),
            made,
            prefix: format!("{prefix}/"),
        }
    }
}

/// Whether `node` stands between the caches of `site` and its two products, or is one of them.
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

/// The text of a rewrite, attention by attention.
#[derive(Debug, Clone, Default)]
pub struct Explanation {
    model: String,
    sites: Vec<Section>,
    interface: Vec<String>,
}

/// The text of one attention.
#[derive(Debug, Clone)]
struct Section {
    title: String,
    before: Vec<String>,
    plan: String,
    after: Vec<String>,
    initializers: Vec<String>,
}

impl Explanation {
    /// Compares the graph `before` with the graph of `model`, the rewritten one.
    pub fn of(explained: Vec<Explained>, before: &GraphProto, model: &ModelProto) -> Self {
        let opsets = model.opset_import.iter().map(|o| match o.domain() {
            "" => format!("ai.onnx {}", o.version()),
            domain => format!("{domain} {}", o.version()),
        });
        let opsets: Vec<String> = opsets.collect();
        let Some(after) = &model.graph else {
            return Self::default();
        };
        // Branches give their values the same names, and stand in the order of their attentions.
        let mut owners: HashMap<&str, VecDeque<usize>> = HashMap::new();
        for (position, one) in explained.iter().enumerate() {
            for value in &one.made {
                owners.entry(value).or_default().push_back(position);
            }
        }
        let mut lines: Vec<Vec<String>> = vec![Vec::new(); explained.len()];
        let plain = |node: &&NodeProto| subgraphs(node).next().is_none();
        for node in all_nodes(after).into_iter().filter(plain) {
            let owned = node
                .output
                .iter()
                .filter_map(|o| owners.get_mut(o.as_str())?.pop_front());
            // All outputs of a node have one owner.
            if let Some(lines) = owned.last().and_then(|position| lines.get_mut(position)) {
                lines.push(text::node(node));
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
            title: format!("{count} attentions, {}", one.title),
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

    /// The sections MODEL, BEFORE, PLAN, AFTER and INITIALIZERS of each attention at one of `positions` among those that
    /// were rewritten, then INTERFACE.
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

/// Every node of `graph` and of the graphs inside it, in order.
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

/// The inputs and outputs that are described in another way than before.
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
