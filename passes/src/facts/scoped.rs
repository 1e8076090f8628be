//! Facts of every graph of a model: the main one, and those in the branches of `If` and the bodies of `Loop` and `Scan`.

use std::collections::BTreeMap;
use std::convert::Infallible;

use crate::facts::Facts;
use crate::graph::Graph;
use crate::graph::scopes::{Body, Scope, Step};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto};

/// The facts of every graph of a model, inferred once.
pub struct ScopeFacts(BTreeMap<Scope, Facts>);

/// One graph of a model with what is known of it.
pub struct Scoped<'s> {
    /// Where the graph stands.
    pub scope: &'s Scope,
    /// What the graph is the body of.
    pub body: Body,
    /// The graph.
    pub graph: &'s Graph<'s>,
    /// The facts of its values.
    pub facts: &'s Facts,
}

impl ScopeFacts {
    /// Infers the facts of `main`, the main graph of `model`, and of all graphs inside it.
    pub fn infer(model: &Model, main: &GraphProto) -> Self {
        let mut all = BTreeMap::new();
        infer_inside(
            model,
            &Graph::new(main),
            &Scope::default(),
            Facts::infer(model, &Graph::new(main), None),
            &mut all,
        );
        Self(all)
    }

    /// The facts of the graph at `scope`.
    pub fn get(&self, scope: &Scope) -> Option<&Facts> {
        self.0.get(scope)
    }

    /// Calls `visit` on every graph of `main`, the graph these facts were inferred from, outer ones first.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn visit<E>(
        &self,
        main: &GraphProto,
        visit: &mut dyn FnMut(&Scoped) -> Result<(), E>,
    ) -> Result<(), E> {
        self.descend(&Graph::new(main), &Scope::default(), Body::Main, visit)
    }

    /// [`Self::visit`] for visitors that cannot fail.
    pub fn for_each(&self, main: &GraphProto, visit: &mut dyn FnMut(&Scoped)) {
        let done = self.visit::<Infallible>(main, &mut |scoped| {
            visit(scoped);
            Ok(())
        });
        match done {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    fn descend<E>(
        &self,
        graph: &Graph,
        scope: &Scope,
        body: Body,
        visit: &mut dyn FnMut(&Scoped) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(facts) = self.get(scope) else {
            return Ok(());
        };
        visit(&Scoped {
            scope,
            body,
            graph,
            facts,
        })?;
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
                let inner = Graph::within(inner, graph);
                self.descend(&inner, &scope.inside(step), kind, visit)?;
            }
        }
        Ok(())
    }
}

fn infer_inside(
    model: &Model,
    graph: &Graph,
    scope: &Scope,
    facts: Facts,
    all: &mut BTreeMap<Scope, Facts>,
) {
    for (id, node) in graph.nodes() {
        for (attribute, inner) in bodies(node) {
            let step = Step {
                node: id.0,
                attribute,
            };
            let inner = Graph::within(inner, graph);
            let known = Facts::infer(model, &inner, Some(&facts));
            infer_inside(model, &inner, &scope.inside(step), known, all);
        }
    }
    all.insert(scope.clone(), facts);
}

fn bodies(node: &NodeProto) -> impl Iterator<Item = (usize, &GraphProto)> {
    node.attribute
        .iter()
        .enumerate()
        .filter_map(|(position, attribute)| Some((position, attribute.g.as_ref()?)))
}
