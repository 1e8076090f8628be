//! Facts of every graph of a model: the main one, and those in the branches of `If` and the bodies of `Loop` and `Scan`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use crate::facts::{Facts, Rules};
use crate::graph::Graph;
use crate::graph::scopes::{Body, Scope, ScopeStep};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto};

/// The facts of every graph of a model, inferred once. They describe that model as it was: a changed graph needs new ones.
#[derive(Debug, Clone, Default)]
pub struct ScopeFacts(BTreeMap<Scope, Arc<Facts>>);

/// One graph of a model with what is known of it.
pub struct Scoped<'s> {
    /// Where the graph stands.
    pub scope: &'s Scope,
    /// What the graph is the body of.
    pub body: Body,
    /// The graph.
    pub graph: &'s Graph<'s>,
    /// The facts of its values.
    pub facts: &'s Arc<Facts>,
}

impl ScopeFacts {
    /// Infers the facts of `main`, the main graph of `model`, and of all graphs inside it. Linear in their nodes.
    pub fn infer(model: &Model, main: &GraphProto, rules: &Rules) -> Self {
        let nothing = &mut |_: &Scoped| Ok::<(), Infallible>(());
        Self::infer_and_visit(model, main, rules, nothing).unwrap_or_else(|never| match never {})
    }

    /// [`Self::infer`], and [`Self::visit`] in the same walk.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn infer_and_visit<E>(
        model: &Model,
        main: &GraphProto,
        rules: &Rules,
        visit: &mut dyn FnMut(&Scoped) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut all = Self::default();
        let mut infer = |scope: &Scope, graph: &Graph, outer: Option<&Arc<Facts>>| {
            let facts = Arc::new(match outer {
                Some(outer) => Facts::of_inner(model, graph, outer),
                None => Facts::of_main(model, graph, rules.clone()),
            });
            all.0.insert(scope.clone(), facts.clone());
            Some(facts)
        };
        let place = (&Scope::default(), Body::Main);
        descend(place, &Graph::new(main), None, &mut infer, visit)?;
        Ok(all)
    }

    /// How many graphs there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The facts of the graph at `scope`.
    pub fn get(&self, scope: &Scope) -> Option<&Arc<Facts>> {
        self.0.get(scope)
    }

    /// Calls `visit` on every graph of `main`, the graph these facts are of, outer ones first.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn visit<E>(
        &self,
        main: &GraphProto,
        visit: &mut dyn FnMut(&Scoped) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut known = |scope: &Scope, _: &Graph, _: Option<&Arc<Facts>>| self.get(scope).cloned();
        let place = (&Scope::default(), Body::Main);
        descend(place, &Graph::new(main), None, &mut known, visit)
    }

    /// [`Self::visit`] for visitors that cannot fail.
    pub fn for_each(&self, main: &GraphProto, visit: &mut dyn FnMut(&Scoped)) {
        self.visit(main, &mut |scoped| {
            visit(scoped);
            Ok::<(), Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
    }
}

/// Gives the facts of a graph, from those of the graph around it.
type FactsOf<'f> = dyn FnMut(&Scope, &Graph, Option<&Arc<Facts>>) -> Option<Arc<Facts>> + 'f;

fn descend<E>(
    (scope, body): (&Scope, Body),
    graph: &Graph,
    outer: Option<&Arc<Facts>>,
    facts_of: &mut FactsOf,
    visit: &mut dyn FnMut(&Scoped) -> Result<(), E>,
) -> Result<(), E> {
    let Some(facts) = facts_of(scope, graph, outer) else {
        return Ok(());
    };
    visit(&Scoped {
        scope,
        body,
        graph,
        facts: &facts,
    })?;
    for (id, node) in graph.nodes() {
        for (attribute, inner) in bodies(node) {
            let step = ScopeStep {
                node: id.0,
                attribute,
            };
            let body = match node.op_type() {
                "If" => Body::Branch,
                _ => Body::Iterated,
            };
            let place = (&scope.inside(step), body);
            descend(
                place,
                &Graph::within(inner, graph),
                Some(&facts),
                facts_of,
                visit,
            )?;
        }
    }
    Ok(())
}

fn bodies(node: &NodeProto) -> impl Iterator<Item = (usize, &GraphProto)> {
    node.attribute
        .iter()
        .enumerate()
        .filter_map(|(position, attribute)| Some((position, attribute.g.as_ref()?)))
}
