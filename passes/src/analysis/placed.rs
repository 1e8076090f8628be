//! An attention with the scope of its graph, and its caches as the enclosing graphs name them.

use crate::analysis::identity::{CacheId, SiteId};
use crate::graph::patch::Patch;
use crate::graph::scopes::Scope;
use crate::graph::{aliases, label};
use crate::onnx::GraphProto;
use crate::operators::OperatorOrigin;
use crate::recognize::reject::{Operand, Reason, Reject};
use crate::recognize::site::{Cache, Site};

/// The output of an `If` that returns a present.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutputPlace {
    /// The graph that holds the `If`.
    pub around: Scope,
    /// The position of the `If` in that graph.
    pub node: usize,
    /// The position of the present among the outputs of the `If`.
    pub position: usize,
}

impl OutputPlace {
    /// Whether the graph at `scope` can read this output: it is the graph that holds the `If`, or a subgraph of another
    /// node of that graph.
    pub fn reaches(&self, scope: &Scope) -> bool {
        let Some(rest) = scope.0.strip_prefix(self.around.0.as_slice()) else {
            return false;
        };
        rest.first().is_none_or(|step| step.node != self.node)
    }
}

/// A cache that is an output of an `If`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOutput {
    /// Whether it holds keys or values.
    pub operand: Operand,
    /// The output of the `If`.
    pub place: OutputPlace,
    /// The attribute of the `If` that holds the branch which computes it.
    pub branch: usize,
}

/// A site and the graph it stands in.
#[derive(Debug, Clone)]
pub struct PlacedSite {
    /// The scope of its graph.
    pub scope: Scope,
    /// The attention.
    pub site: Site,
    /// The fused operator that the attention was expanded from, if any.
    pub origin: Option<OperatorOrigin>,
    /// The unique name of the attention in its model.
    pub id: SiteId,
    /// The id of its key cache.
    pub cache: CacheId,
    /// Its position among the attentions of its graph that read this cache: 0 for the first, and where there is no other.
    pub reader: usize,
    /// Whether it was written as products, and is an operator now.
    pub raising: Raising,
}

/// What has become of an attention that is written as products, for the target `gqa` (see [`mod@crate::analysis::raise`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Raising {
    /// It is written as an operator already, or another target does not need one.
    #[default]
    NotTried,
    /// The operator computes it.
    Raised,
    /// It stays as it is, for this reason.
    Hindered(String),
}

impl PlacedSite {
    /// `site`, which was found at `scope` of `main`, with its ids.
    pub fn new(
        main: &GraphProto,
        scope: &Scope,
        site: Site,
        origin: Option<OperatorOrigin>,
    ) -> Self {
        let cache = CacheId::of(main, scope, &site);
        Self {
            scope: scope.clone(),
            id: SiteId::new(cache.value.clone()),
            site,
            origin,
            cache,
            reader: 0,
            raising: Raising::default(),
        }
    }

    /// The reject that takes its place in `main` for `reason`, at its score product.
    pub fn reject(&self, main: &GraphProto, reason: Reason) -> Reject {
        let graph = self.scope.get(main);
        let node = graph.and_then(|g| g.node.get(self.site.score.0));
        Reject {
            layer: self.site.layer,
            within: self.site.within.clone(),
            node: node.map_or_else(String::new, |n| label(n).to_owned()),
            reason,
        }
    }

    /// The caches of its keys and values.
    pub fn caches(&self) -> impl Iterator<Item = (Operand, &Cache)> {
        let site = &self.site;
        [(Operand::Key, &site.key), (Operand::Value, &site.value)]
            .into_iter()
            .filter_map(|(operand, side)| Some((operand, side.cache.as_ref()?)))
    }

    /// For each cache and each `If` around the site: the output of the `If` that returns the present, and the attribute
    /// that holds the branch.
    pub fn output_places(&self, main: &GraphProto) -> Vec<CacheOutput> {
        let mut places = Vec::new();
        for (operand, cache) in self.caches() {
            let mut value = cache.present().to_owned();
            let mut scope = self.scope.clone();
            while let Some((around, step)) = scope.around() {
                let position = scope
                    .get(main)
                    .and_then(|g| g.output.iter().position(|o| o.name() == value));
                let node = around.get(main).and_then(|g| g.node.get(step.node));
                let (Some(position), Some(node)) = (position, node) else {
                    break;
                };
                let place = OutputPlace {
                    around: around.clone(),
                    node: step.node,
                    position,
                };
                places.push(CacheOutput {
                    operand,
                    place,
                    branch: step.attribute,
                });
                value = node.output.get(position).cloned().unwrap_or_default();
                scope = around;
            }
        }
        places
    }

    /// For each cache, the names of its past and present among the model's inputs and outputs.
    pub fn model_names(&self, main: &GraphProto) -> Vec<(Option<String>, String)> {
        let mut names = Vec::new();
        for (_, cache) in self.caches() {
            let present = CacheId::outermost(main, &self.scope, cache.present());
            let all = match present.scope.0.is_empty() {
                true => aliases(main, &present.value),
                false => vec![present.value.as_str()],
            };
            let is_output = |name: &str| main.output.iter().any(|o| o.name() == name);
            let (outputs, inner): (Vec<&str>, Vec<&str>) =
                all.into_iter().partition(|name| is_output(name));
            let shown = match outputs.is_empty() {
                true => inner,
                false => outputs,
            };
            let past = || cache.past.clone();
            names.extend(shown.into_iter().map(|name| (past(), name.to_owned())));
        }
        names
    }

    /// Distributes the interface changes of `patch`, a patch of the site's graph, to all graphs that have the value as
    /// input or output. Subgraphs capture a past under its own name; a present has the name of the enclosing node's
    /// output. Returns the patches of the enclosing graphs; the changes of the site's graph stay in `patch`.
    pub fn interface(&self, main: &GraphProto, patch: &mut Patch) -> Vec<(Scope, Patch)> {
        let mut outer: Vec<(Scope, Patch)> = Vec::new();
        let all = std::mem::take(&mut patch.interface);
        for (name, new) in all {
            let mut name = name;
            let mut scope = self.scope.clone();
            let mut own = true;
            while let Some(graph) = scope.get(main) {
                let is_here = |name: &str| {
                    let mut interface = graph.input.iter().chain(&graph.output);
                    interface.any(|v| v.name() == name)
                };
                // The forms follow the aliases of the site's own graph.
                let names = match own || !scope.0.is_empty() {
                    true => vec![name.as_str()],
                    false => aliases(graph, &name),
                };
                let mut change = Patch::default();
                for name in &names {
                    if is_here(name) {
                        change.interface.insert((*name).to_owned(), new.clone());
                    } else if names.len() > 1 {
                        change.stale.insert((*name).to_owned());
                    }
                }
                match own {
                    true => patch.interface.extend(change.interface),
                    false if change.interface.is_empty() => {}
                    false => outer.push((scope.clone(), change)),
                }
                let Some((around, step)) = scope.around() else {
                    break;
                };
                if let Some(position) = graph.output.iter().position(|o| o.name() == name)
                    && let Some(node) = around.get(main).and_then(|g| g.node.get(step.node))
                {
                    name = node.output.get(position).cloned().unwrap_or_default();
                }
                scope = around;
                own = false;
            }
        }
        outer
    }
}
