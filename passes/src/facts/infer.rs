//! Type and shape inference of a graph, node by node, repeated until no new equalities of sizes are found.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tract_data::prelude::{Symbol, SymbolScope, TDim};

use crate::facts::equalities::{self, Equalities};
use crate::facts::values::{Facts, Rules};
use crate::facts::{declared, node, stored};
use crate::graph::{ByName, Graph};
use crate::onnx::ValueInfoProto;
use crate::onnx::stored::Model;

impl Facts {
    /// Infers the facts of the main graph of `model`.
    pub fn of_main(model: &Model, graph: &Graph, rules: Rules) -> Self {
        let mut facts = Self {
            symbols: SymbolScope::default(),
            rules,
            values: ByName::default(),
            equal: HashMap::new(),
            unreliable: declared::unreliable(graph.proto()),
            fresh: AtomicUsize::new(0),
            outer: None,
        };
        facts.infer(model, graph);
        facts
    }

    /// Infers the facts of a subgraph; `outer` holds the facts of the enclosing graph.
    pub fn of_inner(model: &Model, graph: &Graph, outer: &Arc<Self>) -> Self {
        let mut facts = Self::on_top_of(outer);
        facts.infer(model, graph);
        facts
    }

    /// Runs inference rounds until a round finds no new equality, at most [`equalities::ROUNDS`].
    fn infer(&mut self, model: &Model, graph: &Graph) {
        let first = self.fresh.load(Ordering::Relaxed);
        for _ in 0..equalities::ROUNDS {
            self.values.clear();
            self.fresh.store(first, Ordering::Relaxed);
            let found = self.pass(model, graph);
            let known = self.equal.len();
            for (symbol, size) in found {
                self.equal.entry(symbol).or_insert(size);
            }
            if self.equal.len() == known {
                return;
            }
        }
    }

    /// Runs one inference round over `graph`; returns the equalities that it implies.
    fn pass(&mut self, model: &Model, graph: &Graph) -> Vec<(Symbol, TDim)> {
        let proto = graph.proto();
        for input in &proto.input {
            let fact = self.declared(input);
            self.values.insert(input.name().to_owned(), fact);
        }
        // Since IR version 4 an initializer that is also an input is a default value, which a caller may override.
        let replaceable = model.proto.ir_version() >= 4;
        for tensor in &proto.initializer {
            let mut fact = stored::of_tensor(model, tensor);
            if replaceable && graph.is_own_input(tensor.name()) {
                fact.content = None;
            }
            self.values.insert(tensor.name().to_owned(), fact);
        }
        // Most values are inferred, so `value_info` is indexed only when an entry is needed.
        let described = LazyCell::new(|| -> ByName<&str, &ValueInfoProto> {
            let described = proto.value_info.iter().chain(&proto.output);
            described.map(|info| (info.name(), info)).collect()
        });
        self.values.reserve(proto.node.len());
        let mut equalities = Equalities::new(graph);
        for (_, node) in graph.nodes() {
            equalities.demanded_by(self, graph, node);
            let mut inferred = node::infer(self, model, node).into_iter();
            for name in &node.output {
                let mut fact = inferred.next().unwrap_or_default();
                if name.is_empty() {
                    continue;
                }
                // Declarations of the exporter are used only where inference fails.
                if (fact.shape.is_none() || fact.elem_type.is_none())
                    && let Some(info) = described.get(name.as_str())
                {
                    let declared = self.declared(info);
                    fact.shape = fact.shape.or(declared.shape);
                    fact.elem_type = fact.elem_type.or(declared.elem_type);
                }
                self.values.insert(name.clone(), fact);
            }
        }
        equalities.found
    }
}
