//! The graphs of a model: the main one, and those in the branches of `If` and the bodies of `Loop` and `Scan`.

use crate::graph::label;
use crate::onnx::GraphProto;

/// Path from the main graph to a subgraph, through the nodes and attributes that hold it. Empty for the main graph.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(pub Vec<ScopeStep>);

/// One step from a graph into a subgraph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeStep {
    /// Position of the node in its graph.
    pub node: usize,
    /// Position of the attribute that holds the subgraph.
    pub attribute: usize,
}

/// What a graph is the body of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// The model: the main graph.
    Main,
    /// A branch of `If`: its outputs are the outputs of the node; it has no inputs and captures values of the enclosing
    /// graph.
    Branch,
    /// A body of `Loop` or `Scan`: its outputs may become its inputs in the next iteration.
    Iterated,
}

impl Scope {
    /// The scope of the subgraph at `step` of this graph.
    pub fn inside(&self, step: ScopeStep) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The enclosing scope, and the step from it to this one; `None` for the main graph.
    pub fn around(&self) -> Option<(Self, ScopeStep)> {
        let (last, rest) = self.0.split_last()?;
        Some((Self(rest.to_vec()), *last))
    }

    /// The graph at this scope.
    pub fn get<'g>(&self, main: &'g GraphProto) -> Option<&'g GraphProto> {
        let mut graph = main;
        for step in &self.0 {
            graph = graph
                .node
                .get(step.node)?
                .attribute
                .get(step.attribute)?
                .g
                .as_ref()?;
        }
        Some(graph)
    }

    /// Says in words where this scope is in `main`, such as `then_branch of If 'merged'`; `None` for the main graph.
    pub fn describe(&self, main: &GraphProto) -> Option<String> {
        let (around, step) = self.around()?;
        let node = around.get(main)?.node.get(step.node)?;
        let body = node.attribute.get(step.attribute)?.name();
        let own = format!("{body} of {} '{}'", node.op_type(), label(node));
        Some(match around.describe(main) {
            Some(outer) => format!("{own} in {outer}"),
            None => own,
        })
    }

    /// The graph at this scope, to be changed.
    pub fn get_mut<'g>(&self, main: &'g mut GraphProto) -> Option<&'g mut GraphProto> {
        let mut graph = main;
        for step in &self.0 {
            graph = graph
                .node
                .get_mut(step.node)?
                .attribute
                .get_mut(step.attribute)?
                .g
                .as_mut()?;
        }
        Some(graph)
    }
}
