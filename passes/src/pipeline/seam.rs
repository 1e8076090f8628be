//! The values that keep their names through a rewrite: they must keep their types and shapes too.

use std::collections::HashMap;

use crate::analysis::Analysis;
use crate::facts::Facts;
use crate::facts::scoped::ScopeFacts;
use crate::graph::scopes::Scope;
use crate::onnx::GraphProto;

/// What is known of one value: constant sizes, and unknown ones as `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    elem_type: Option<i32>,
    shape: Option<Vec<Option<i64>>>,
}

/// The outputs of all products that a rewrite replaces, by their graph before the rewrite.
#[derive(Debug, Default)]
pub struct Seams(HashMap<(Scope, String), Known>);

impl Seams {
    /// The seams of all attentions of `analysis`.
    pub fn of(analysis: &Analysis) -> Self {
        let mut seams = HashMap::new();
        for placed in &analysis.sites {
            let graph = placed.scope.get(&analysis.main);
            let (Some(graph), Some(facts)) = (graph, analysis.facts.get(&placed.scope)) else {
                continue;
            };
            for id in [placed.site.score, placed.site.output] {
                if let Some(value) = graph.node.get(id.0).and_then(|n| n.output.first()) {
                    seams.insert((placed.scope.clone(), value.clone()), known(facts, value));
                }
            }
        }
        Self(seams)
    }

    /// The first value that is of another type or shape in `main`, the rewritten graph with the facts `facts`.
    pub fn broken(&self, main: &GraphProto, facts: &ScopeFacts) -> Option<String> {
        let mut found = HashMap::new();
        facts.for_each(main, &mut |scoped| {
            for (_, value) in self.0.keys() {
                if scoped.graph.producer(value).is_some() {
                    // A branch may use the name of its sibling, for a value that is the same.
                    found.insert(value.clone(), known(scoped.facts, value));
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
