//! What can be known of a value before the graph runs: its type, its symbolic shape and, for small integers and
//! scalars (the arithmetic that exporters spell shapes and scales with), its content.

mod arrange;
mod attention;
pub mod content;
pub mod dim;
mod ops;
pub mod scoped;
pub mod shapes;

pub use ops::{axes, shape_range};

use std::collections::HashMap;

use tract_data::prelude::{Symbol, SymbolScope, TDim};

use crate::graph::{Graph, int_attribute, is_op};
use crate::onnx::stored::Model;
use crate::onnx::{NodeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};
use content::Content;

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

/// What is known of every value of a graph.
pub struct Facts {
    scope: SymbolScope,
    values: HashMap<String, Fact>,
    equal: HashMap<Symbol, TDim>,
    /// Equalities found in this round; another round starts from them.
    found: Vec<(Symbol, TDim)>,
    past_length: Option<Symbol>,
    fresh: usize,
}

/// Rounds of inference: each takes in the equalities between input sizes that the one before has found.
const ROUNDS: usize = 4;

impl Facts {
    /// Infers the facts of `graph`, a graph of `model`; `outer` holds those of the graphs around it.
    ///
    /// Two sizes named differently are taken to be equal where the graph itself demands it: the other axes of a
    /// `Concat`, and the lengths of all caches that grow by the same step.
    pub fn infer(model: &Model, graph: &Graph, outer: Option<&Self>) -> Self {
        let scope = outer.map_or_else(SymbolScope::default, |o| o.scope.clone());
        let mut equal = outer.map(|o| o.equal.clone()).unwrap_or_default();
        for round in 0..ROUNDS {
            let mut facts = Self {
                scope: scope.clone(),
                values: outer.map(|o| o.values.clone()).unwrap_or_default(),
                equal: equal.clone(),
                found: Vec::new(),
                past_length: None,
                fresh: outer.map_or(0, |o| o.fresh),
            };
            facts.run(model, graph);
            if facts.found.is_empty() || round + 1 == ROUNDS {
                return facts;
            }
            for (symbol, dim) in std::mem::take(&mut facts.found) {
                equal.entry(symbol).or_insert(dim);
            }
        }
        // `ROUNDS` is positive, so the loop has returned; this keeps the function total.
        Self {
            scope,
            values: HashMap::new(),
            equal,
            found: Vec::new(),
            past_length: None,
            fresh: 0,
        }
    }

    /// What is known of `value`; an empty fact where nothing is.
    pub fn fact(&self, value: &str) -> Fact {
        self.values.get(value).cloned().unwrap_or_default()
    }

    /// The shape of `value`.
    pub fn shape(&self, value: &str) -> Option<&[TDim]> {
        self.values.get(value)?.shape.as_deref()
    }

    /// The element type of `value`.
    pub fn elem_type(&self, value: &str) -> Option<i32> {
        self.values.get(value)?.elem_type
    }

    /// The elements of `value` where they are known sizes or integers.
    pub fn ints(&self, value: &str) -> Option<&[TDim]> {
        match self.values.get(value)?.content.as_ref()? {
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
        match self.values.get(value)?.content.as_ref()? {
            Content::Floats(values) => Some(values),
            Content::Ints(_) => None,
        }
    }

    fn run(&mut self, model: &Model, graph: &Graph) {
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
        let declared: HashMap<&str, &ValueInfoProto> = proto
            .value_info
            .iter()
            .chain(&proto.output)
            .map(|info| (info.name(), info))
            .collect();
        for (_, node) in graph.nodes() {
            self.unify(graph, node);
            let inferred = ops::infer(self, model, node);
            for (position, name) in node.output.iter().enumerate() {
                if name.is_empty() {
                    continue;
                }
                let mut fact = inferred.get(position).cloned().unwrap_or_default();
                // What the exporter declared is believed only where nothing could be inferred.
                if let Some(info) = declared.get(name.as_str()) {
                    if fact.shape.is_none() {
                        fact.shape = self.declared(info).shape;
                    }
                    fact.elem_type = fact.elem_type.or(self.declared(info).elem_type);
                }
                self.values.insert(name.clone(), fact);
            }
        }
    }

    /// A size that equals no other.
    fn fresh(&mut self) -> TDim {
        self.fresh += 1;
        TDim::Sym(self.scope.sym(&format!("?{}", self.fresh)))
    }

    fn symbol(&self, name: &str) -> TDim {
        let symbol = self.scope.sym(name);
        let mut dim = TDim::Sym(symbol);
        // Chains of equalities are short; the bound keeps a cycle finite.
        for _ in 0..ROUNDS {
            match &dim {
                TDim::Sym(s) => match self.equal.get(s) {
                    Some(next) => dim = next.clone(),
                    None => break,
                },
                _ => break,
            }
        }
        dim
    }

    /// A size as a file writes it: a name, or a sum such as `past + seq`.
    fn dimension(&mut self, text: &str) -> TDim {
        let mut sum = TDim::Val(0);
        for part in text.split('+').map(str::trim) {
            if part.is_empty()
                || !part
                    .chars()
                    .all(|c| c.is_alphanumeric() || "_.:/".contains(c))
            {
                return self.symbol(text);
            }
            let term = match part.parse::<i64>() {
                Ok(number) => TDim::Val(number),
                Err(_) => self.symbol(part),
            };
            match dim::add(&sum, &term) {
                Some(next) => sum = next,
                None => return self.fresh(),
            }
        }
        sum
    }

    fn declared(&mut self, info: &ValueInfoProto) -> Fact {
        let Some(type_proto::Value::TensorType(tensor)) =
            info.r#type.as_ref().and_then(|t| t.value.as_ref())
        else {
            return Fact::default();
        };
        let shape = tensor.shape.as_ref().map(|shape| {
            shape
                .dim
                .iter()
                .map(|dim| match &dim.value {
                    Some(dimension::Value::DimValue(n)) if (0..=1 << 31).contains(n) => {
                        TDim::Val(*n)
                    }
                    Some(dimension::Value::DimParam(name)) if !name.is_empty() => {
                        self.dimension(name)
                    }
                    _ => self.fresh(),
                })
                .collect()
        });
        Fact {
            elem_type: tensor.elem_type,
            shape,
            content: None,
        }
    }

    /// Notes the equalities between input sizes that a `Concat` demands.
    fn unify(&mut self, graph: &Graph, node: &NodeProto) {
        if !is_op(node, "Concat") || node.input.len() != 2 {
            return;
        }
        let (Some(first), Some(second)) = (node.input.first(), node.input.get(1)) else {
            return;
        };
        let (Some(a), Some(b)) = (self.shape(first), self.shape(second)) else {
            return;
        };
        let rank = a.len();
        let Some(axis) = ops::axis(int_attribute(node, "axis", 0), rank) else {
            return;
        };
        if rank != b.len() {
            return;
        }
        let (a, b) = (a.to_vec(), b.to_vec());
        for (position, (a, b)) in a.iter().zip(&b).enumerate() {
            if position == axis || a == b {
                continue;
            }
            // Only names that the file gives can be unified; made-up sizes are new in every round.
            let named = |dim: &TDim| matches!(dim, TDim::Sym(s) if !s.to_string().starts_with('?'));
            match (a, b) {
                (TDim::Sym(symbol), dim) if named(a) && !dim.symbols().contains(symbol) => {
                    self.found.push((symbol.clone(), dim.clone()));
                }
                (dim, TDim::Sym(symbol)) if named(b) && !dim.symbols().contains(symbol) => {
                    self.found.push((symbol.clone(), dim.clone()));
                }
                _ => {}
            }
        }
        let grows = graph.input(graph.resolve(first)).is_some()
            && node.output.iter().any(|o| graph.is_output(o));
        if let (true, Some(TDim::Sym(length))) = (grows, a.get(axis)) {
            match &self.past_length {
                None => self.past_length = Some(length.clone()),
                Some(known) if known != length => {
                    self.found.push((length.clone(), TDim::Sym(known.clone())));
                }
                Some(_) => {}
            }
        }
    }
}
