//! Facts of every graph of a model: the main one, and those in the branches of `If` and the bodies of `Loop` and `Scan`.

use crate::facts::Facts;
use crate::graph::Graph;
use crate::graph::scopes::{Body, Scope, Step};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto};

/// Calls `visit` on every graph of `main`, outer ones first, each with its view and its facts.
pub fn visit(
    model: &Model,
    main: &GraphProto,
    visit: &mut dyn FnMut(&Scope, Body, &Graph, &Facts),
) {
    let graph = Graph::new(main);
    let facts = Facts::infer(model, &graph, None);
    descend(model, &Scope::default(), Body::Main, &graph, &facts, visit);
}

fn descend(
    model: &Model,
    scope: &Scope,
    body: Body,
    graph: &Graph,
    facts: &Facts,
    visit: &mut dyn FnMut(&Scope, Body, &Graph, &Facts),
) {
    visit(scope, body, graph, facts);
    for (id, node) in graph.nodes() {
        for (attribute, inner) in bodies(node) {
            let step = Step {
                node: id.0,
                attribute,
            };
            let kind = match node.op_type() {
                "If" => Body::Branch,
                _ => Body::Iterated,
            };
            let graph = Graph::within(inner, graph);
            let facts = Facts::infer(model, &graph, Some(facts));
            descend(model, &scope.inside(step), kind, &graph, &facts, visit);
        }
    }
}

fn bodies(node: &NodeProto) -> impl Iterator<Item = (usize, &GraphProto)> {
    node.attribute
        .iter()
        .enumerate()
        .filter_map(|(position, attribute)| Some((position, attribute.g.as_ref()?)))
}
