//! What can be known of a value before the graph runs: its type, its symbolic shape and, for small integers and
//! scalars (the arithmetic that exporters spell shapes and scales with), its content.
//!
//! # When two sizes are equal
//!
//! Symbols are equal only by name, so a name has to be a promise. Which names are:
//!
//! * A name of a dimension of a graph input is the producer's promise that all dimensions of that name are equal in
//!   every run. ONNX says so (the semantics of `dim_param`), although ONNX Runtime only warns where it is broken.
//! * A name that stands for two axes of one graph input is no promise (`[f, f]` for batch and length): exporters that
//!   write it give every axis the same name. Nor is a name without a letter or digit (`?`), one that begins with `?`,
//!   or one that says that nothing is known (`unknown`, `dynamic`, `none`). Each dimension called so is a size of its own.
//! * A name in the description of an inner value or an output means the same as in an input, and is used only where
//!   the shape of the value cannot be inferred.
//! * Two sizes of different names are equal where the graph itself demands it: see [`equalities`].

mod agree;
mod arrange;
mod branches;
mod constant;
pub mod content;
mod contract;
pub mod contrib;
mod cut;
mod declared;
pub mod dim;
mod elementwise;
pub mod equalities;
mod node;
pub mod precision;
pub mod scoped;
pub mod shapes;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub mod typed;
pub mod types;

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tract_data::prelude::{Symbol, SymbolScope, TDim};

use crate::graph::{ByName, Graph, attribute, input_at, int_attribute};
use crate::onnx::stored::Model;
use crate::onnx::{NodeProto, ValueInfoProto};
use content::Content;
use equalities::Equalities;

/// A symbolic shape.
pub type Shape = Vec<TDim>;

/// What is known of one value.
#[derive(Debug, Clone, Default)]
pub struct Fact {
    /// ONNX element type (`TensorProto.DataType`).
    pub elem_type: Option<i32>,
    /// Shape; `None` when even the rank is unknown.
    pub shape: Option<Shape>,
    /// Elements, row-major, for small tensors that are known.
    pub content: Option<Content>,
}

impl Fact {
    /// A value of which type and shape are known as far as they are given, and no element.
    pub fn new(elem_type: Option<i32>, shape: Option<Shape>) -> Self {
        Self {
            elem_type,
            shape,
            content: None,
        }
    }

    /// The same value with the elements `content`.
    pub fn holding(self, content: Option<Content>) -> Self {
        Self { content, ..self }
    }
}

/// The facts of the outputs of a node, from those of its inputs; `None` where nothing is known.
pub type OutputFacts = fn(&Facts, &NodeProto, &[&Fact]) -> Option<Vec<Fact>>;

/// Finds the rule of an operator that this module does not know itself. Its rule goes before the ones here.
pub type Rules = fn(&NodeProto) -> Option<OutputFacts>;

/// What is known of every value of a graph, and of the graphs around it.
#[derive(Debug)]
pub struct Facts {
    symbols: SymbolScope,
    rules: Rules,
    values: ByName<String, Fact>,
    /// Sizes by the names that are equal to them.
    equal: HashMap<Symbol, TDim>,
    /// Names of dimensions that promise nothing; those of the main graph count everywhere.
    unreliable: HashSet<String>,
    fresh: AtomicUsize,
    outer: Option<Arc<Self>>,
}

/// The fact of a value of which nothing is known.
static UNKNOWN: Fact = Fact {
    elem_type: None,
    shape: None,
    content: None,
};

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

    /// Infers the facts of a graph in an attribute of a node; `outer` holds those of the graph around it.
    pub fn of_inner(model: &Model, graph: &Graph, outer: &Arc<Self>) -> Self {
        let mut facts = Self::on_top_of(outer);
        facts.infer(model, graph);
        facts
    }

    /// Facts that hold nothing but what `outer` holds.
    fn on_top_of(outer: &Arc<Self>) -> Self {
        Self {
            symbols: outer.symbols.clone(),
            rules: outer.rules,
            values: ByName::default(),
            equal: HashMap::new(),
            unreliable: HashSet::new(),
            fresh: AtomicUsize::new(outer.fresh.load(Ordering::Relaxed)),
            outer: Some(outer.clone()),
        }
    }

    /// These facts and those of the graphs around, from the inside out.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |facts| facts.outer.as_deref())
    }

    /// What is known of `value`; an empty fact where nothing is.
    pub fn get(&self, value: &str) -> &Fact {
        let known = self.chain().find_map(|facts| facts.values.get(value));
        known.unwrap_or(&UNKNOWN)
    }

    /// The shape of `value`.
    pub fn shape(&self, value: &str) -> Option<&[TDim]> {
        self.get(value).shape.as_deref()
    }

    /// The element type of `value`.
    pub fn elem_type(&self, value: &str) -> Option<i32> {
        self.get(value).elem_type
    }

    /// The elements of `value` where they are known sizes or integers.
    pub fn ints(&self, value: &str) -> Option<&[TDim]> {
        match self.get(value).content.as_ref()? {
            Content::Ints(dims) => Some(dims),
            Content::Floats(_) => None,
        }
    }

    /// The elements of `value` where they are known integers.
    pub fn integers(&self, value: &str) -> Option<Vec<i64>> {
        self.ints(value)?.iter().map(TDim::as_i64).collect()
    }

    /// The elements of `value` where they are known floats.
    pub fn floats(&self, value: &str) -> Option<&[f64]> {
        match self.get(value).content.as_ref()? {
            Content::Floats(values) => Some(values),
            Content::Ints(_) => None,
        }
    }

    /// A size that equals no other.
    pub fn fresh(&self) -> TDim {
        let number = self.fresh.fetch_add(1, Ordering::Relaxed) + 1;
        TDim::Sym(self.symbols.sym(&format!("{}{number}", equalities::FRESH)))
    }

    /// Infers once, and once more for as long as that has shown sizes of different names to be equal.
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

    /// Infers every value of `graph` in order; gives the equalities that it demands.
    fn pass(&mut self, model: &Model, graph: &Graph) -> Vec<(Symbol, TDim)> {
        let proto = graph.proto();
        for input in &proto.input {
            let fact = self.declared(input);
            self.values.insert(input.name().to_owned(), fact);
        }
        // Since IR 4 an initializer that is also an input is a default, which a caller may replace.
        let replaceable = model.proto.ir_version() >= 4;
        for tensor in &proto.initializer {
            let mut fact = content::of_tensor(model, tensor);
            if replaceable && graph.is_own_input(tensor.name()) {
                fact.content = None;
            }
            self.values.insert(tensor.name().to_owned(), fact);
        }
        // Most values are inferred, so descriptions are indexed only when one is needed.
        let described = LazyCell::new(|| -> ByName<&str, &ValueInfoProto> {
            let described = proto.value_info.iter().chain(&proto.output);
            described.map(|info| (info.name(), info)).collect()
        });
        self.values.reserve(proto.node.len());
        let mut equalities = Equalities::default();
        for (_, node) in graph.nodes() {
            equalities.demanded_by(self, graph, node);
            let mut inferred = node::infer(self, model, node).into_iter();
            for name in &node.output {
                let mut fact = inferred.next().unwrap_or_default();
                if name.is_empty() {
                    continue;
                }
                // What the exporter declared is believed only where nothing could be inferred.
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

/// The `axes` of `Unsqueeze`, `Squeeze` and the reductions: an input since opset 13 (18 for some), an attribute before.
pub fn axes(facts: &Facts, node: &NodeProto) -> Option<Vec<i64>> {
    match input_at(node, 1) {
        Some(input) => facts.integers(input),
        None => attribute(node, "axes").map(|a| a.ints.clone()),
    }
}

/// Which sizes `Shape` of a tensor of rank `rank` gives: its `start` and `end` (since opset 15), clamped.
pub fn shape_range(node: &NodeProto, rank: usize) -> std::ops::Range<usize> {
    let at = |name: &str, default: i64| {
        let rank = rank as i64;
        let value = int_attribute(node, name, default);
        (if value < 0 {
            value.saturating_add(rank)
        } else {
            value
        })
        .clamp(0, rank) as usize
    };
    let (start, end) = (at("start", 0), at("end", rank as i64));
    start..end.max(start)
}
