//! The values that keep their names through a rewrite: they must keep their types and shapes too.

use std::collections::HashMap;

use crate::analysis::placed::Placed;
use crate::facts::Facts;
use crate::facts::scoped::visit;
use crate::graph::Graph;
use crate::graph::scopes::Scope;
use crate::onnx::GraphProto;
use crate::onnx::stored::Model;
use crate::operators::output_facts;

/// What is known of one value: constant sizes, and unknown ones as `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    elem_type: Option<i32>,
    shape: Option<Vec<Option<i64>>>,
}

/// The outputs of all products that a rewrite replaces.
#[derive(Debug, Default)]
pub struct Seams(HashMap<(Scope, String), Known>);

impl Seams {
    /// Adds the seams of the sites in `scope`, before they are rewritten.
    pub fn add(&mut self, scope: &Scope, graph: &Graph, facts: &Facts, sites: &[Placed]) {
        for placed in sites.iter().filter(|p| p.scope == *scope) {
            for id in [placed.site.score, placed.site.output] {
                if let Some(value) = graph.node(id).and_then(|n| n.output.first()) {
                    self.0
                        .insert((scope.clone(), value.clone()), known(facts, value));
                }
            }
        }
    }

    /// The first value that is of another type or shape in `main`, the rewritten graph.
    pub fn broken(&self, model: &Model, main: &GraphProto) -> Option<String> {
        let mut found = HashMap::new();
        visit(model, main, output_facts, &mut |_, _, graph, facts| {
            for (_, value) in self.0.keys() {
                if graph.producer(value).is_some() {
                    // A branch may use the name of its sibling, for a value that is the same.
                    found.insert(value.clone(), known(facts, value));
                }
            }
        });
        let mut broken: Vec<&String> = self
            .0
            .iter()
            // A value that is gone has no reader left, or the graph would not be well-formed.
            .filter(|((_, value), old)| found.get(value).is_some_and(|new| !old.agrees(new)))
            .map(|((_, value), _)| value)
            .collect();
        broken.sort();
        broken.first().map(|value| (*value).clone())
    }
}

impl Known {
    fn agrees(&self, other: &Self) -> bool {
        let types = self.elem_type.zip(other.elem_type);
        if types.is_some_and(|(a, b)| a != b) {
            return false;
        }
        // What is not known contradicts nothing.
        let (Some(a), Some(b)) = (&self.shape, &other.shape) else {
            return true;
        };
        a.len() == b.len()
            && a.iter()
                .zip(b)
                .all(|(a, b)| a.is_none() || b.is_none() || a == b)
    }
}

fn known(facts: &Facts, value: &str) -> Known {
    Known {
        elem_type: facts.elem_type(value),
        shape: facts
            .shape(value)
            .map(|s| s.iter().map(|d| d.as_i64()).collect()),
    }
}
