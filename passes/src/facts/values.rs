//! The facts of the values of one graph and of its enclosing graphs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tract_data::prelude::{Symbol, SymbolScope, TDim};

use crate::facts::content::Content;
use crate::facts::fact::{Fact, UNKNOWN};
use crate::graph::{ByName, is_standard};
use crate::onnx::NodeProto;

/// Infers the facts of the outputs of a node from those of its inputs; `None` if nothing is known of them.
pub type OutputFacts = fn(&Facts, &NodeProto, &[&Fact]) -> Option<Vec<Fact>>;

/// The inference rule of one operator.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The operator's domain; empty for the standard one.
    pub domain: &'static str,
    /// The operator's name.
    pub name: &'static str,
    /// The inference function.
    pub outputs: OutputFacts,
}

/// Inference rules of operators that other modules define. They take precedence over the built-in rules.
#[derive(Debug, Clone, Default)]
pub struct Rules(Arc<[Rule]>);

impl Rules {
    /// The rule for the operator of `node`.
    pub fn of(&self, node: &NodeProto) -> Option<OutputFacts> {
        let domain = if is_standard(node) { "" } else { node.domain() };
        let mut rules = self.0.iter();
        let rule = rules.find(|r| r.name == node.op_type() && r.domain == domain);
        rule.map(|r| r.outputs)
    }
}

impl FromIterator<Rule> for Rules {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        Self(rules.into_iter().collect())
    }
}

/// First character of the names of fresh symbols; sizes in a file with such names are not trusted.
pub const FRESH: char = '?';

/// Whether `size` is a number, or computed of names that the file declares.
pub fn is_named(size: &TDim) -> bool {
    let symbols = size.symbols();
    !symbols.iter().any(|s| s.to_string().starts_with(FRESH))
}

/// The facts of every value of a graph, and of its enclosing graphs.
#[derive(Debug)]
pub struct Facts {
    pub(in crate::facts) symbols: SymbolScope,
    pub(in crate::facts) rules: Rules,
    pub(in crate::facts) values: ByName<String, Fact>,
    /// Each symbol that is known to be equal to a size, with that size.
    pub(in crate::facts) equal: HashMap<Symbol, TDim>,
    /// Dimension names that do not mean equal sizes; those of the main graph apply to all subgraphs.
    pub(in crate::facts) unreliable: HashSet<String>,
    pub(in crate::facts) fresh: AtomicUsize,
    pub(in crate::facts) outer: Option<Arc<Self>>,
}

impl Facts {
    /// Facts of a subgraph with no values of its own yet; `outer` holds the facts of the enclosing graph.
    pub(in crate::facts) fn on_top_of(outer: &Arc<Self>) -> Self {
        Self {
            symbols: outer.symbols.clone(),
            rules: outer.rules.clone(),
            values: ByName::default(),
            equal: HashMap::new(),
            unreliable: HashSet::new(),
            fresh: AtomicUsize::new(outer.fresh.load(Ordering::Relaxed)),
            outer: Some(outer.clone()),
        }
    }

    /// These facts and those of the enclosing graphs, innermost first.
    pub(in crate::facts) fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |facts| facts.outer.as_deref())
    }

    /// The fact of `value`; an empty fact if there is none.
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

    /// The elements of `value` if they are known integers or sizes.
    pub fn ints(&self, value: &str) -> Option<&[TDim]> {
        match self.get(value).content.as_ref()? {
            Content::Ints(dims) => Some(dims),
            Content::Floats(_) => None,
        }
    }

    /// The elements of `value` if they are known integers and none is symbolic.
    pub fn integers(&self, value: &str) -> Option<Vec<i64>> {
        self.ints(value)?.iter().map(TDim::as_i64).collect()
    }

    /// The elements of `value` if they are known floats.
    pub fn floats(&self, value: &str) -> Option<&[f64]> {
        match self.get(value).content.as_ref()? {
            Content::Floats(values) => Some(values),
            Content::Ints(_) => None,
        }
    }

    /// A fresh symbol: a size that is not known to be equal to any other.
    pub fn fresh(&self) -> TDim {
        let number = self.fresh.fetch_add(1, Ordering::Relaxed) + 1;
        TDim::Sym(self.symbols.sym(&format!("{FRESH}{number}")))
    }
}
