//! An attention and where it stands: its caches are followed out to the model's interface.

use crate::graph::patch::Patch;
use crate::graph::scopes::Scope;
use crate::onnx::GraphProto;
use crate::operators::Origin;
use crate::recognize::site::{Cache, Site};

/// Where a present comes out of an `If`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputPlace {
    /// The graph that holds the `If`.
    pub around: Scope,
    /// The `If`.
    pub node: usize,
    /// Which of its outputs.
    pub position: usize,
    /// The attribute whose graph the present comes from.
    pub branch: usize,
}

/// A site and the graph it stands in.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The graph.
    pub scope: Scope,
    /// The attention.
    pub site: Site,
    /// The operator it was spelled out from, if it was one.
    pub origin: Option<Origin>,
}

impl Placed {
    /// Tells this attention apart from all others of its model: the name of the key cache's output, or of the score
    /// product where nothing is cached. `graph` is the one it stands in.
    pub fn id(&self, graph: &GraphProto) -> String {
        let score = || {
            let node = graph.node.get(self.site.score.0);
            node.and_then(|n| n.output.first())
                .cloned()
                .unwrap_or_default()
        };
        let cache = self.site.key.cache.as_ref();
        cache.map_or_else(score, |c| c.present.clone())
    }

    /// The caches of its keys and values.
    pub fn caches(&self) -> impl Iterator<Item = &Cache> {
        [&self.site.key, &self.site.value]
            .into_iter()
            .filter_map(|side| side.cache.as_ref())
    }

    /// For each cache, and each `If` around the site: the scope, node and output position where the present comes out.
    pub fn output_places(&self, main: &GraphProto) -> Vec<OutputPlace> {
        let mut places = Vec::new();
        for cache in self.caches() {
            let mut value = cache.present.clone();
            let mut scope = self.scope.clone();
            while let Some((around, step)) = scope.around() {
                let position = scope
                    .get(main)
                    .and_then(|g| g.output.iter().position(|o| o.name() == value));
                let node = around.get(main).and_then(|g| g.node.get(step.node));
                let (Some(position), Some(node)) = (position, node) else {
                    break;
                };
                places.push(OutputPlace {
                    around: around.clone(),
                    node: step.node,
                    position,
                    branch: step.attribute,
                });
                value = node.output.get(position).cloned().unwrap_or_default();
                scope = around;
            }
        }
        places
    }

    /// The past and the present of each cache under the names that the model's interface has for them.
    pub fn model_names(&self, main: &GraphProto) -> Vec<(Option<String>, String)> {
        let outermost = |value: &str| {
            let (mut value, mut scope) = (value.to_owned(), self.scope.clone());
            while let Some((around, step)) = scope.around() {
                let position = scope
                    .get(main)
                    .and_then(|g| g.output.iter().position(|o| o.name() == value));
                let node = around.get(main).and_then(|g| g.node.get(step.node));
                if let (Some(position), Some(node)) = (position, node) {
                    value = node.output.get(position).cloned().unwrap_or_default();
                }
                scope = around;
            }
            value
        };
        self.caches()
            .map(|c| (c.past.clone(), outermost(&c.present)))
            .collect()
    }

    /// The names that a change of the cache's width reaches, graph by graph: pasts and presents.
    pub fn interface(&self, main: &GraphProto, patch: &mut Patch) -> Vec<(Scope, Patch)> {
        let mut outer: Vec<(Scope, Patch)> = Vec::new();
        let all = std::mem::take(&mut patch.interface);
        for (name, dims) in all {
            let mut name = name;
            let mut scope = self.scope.clone();
            let mut own = true;
            while let Some(graph) = scope.get(main) {
                let here = graph
                    .input
                    .iter()
                    .chain(&graph.output)
                    .any(|v| v.name() == name);
                if here {
                    let mut change = Patch::default();
                    change.interface.insert(name.clone(), dims.clone());
                    match own {
                        true => patch.interface.extend(change.interface),
                        false => outer.push((scope.clone(), change)),
                    }
                }
                let Some((around, step)) = scope.around() else {
                    break;
                };
                // A present goes out under the name of the node's output; a past is captured under its own.
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

    /// What identifies the cache of this site: sites of two branches that make the same output share their factors.
    pub fn cache_key(&self, main: &GraphProto) -> String {
        match self.output_places(main).last() {
            Some(place) => format!("{:?} {} {}", place.around, place.node, place.position),
            None => format!("{:?} {}", self.scope, self.site.score.0),
        }
    }
}
