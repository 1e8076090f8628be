//! What is known of the values of one graph, and of the graphs around it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tract_data::prelude::{Symbol, SymbolScope, TDim};

use crate::facts::content::Content;
use crate::facts::fact::{Fact, UNKNOWN};
use crate::graph::{ByName, is_standard};
use crate::onnx::NodeProto;

/// The facts of the outputs of a node, from those of its inputs; `None` where nothing is known.
pub type OutputFacts = fn(&Facts, &NodeProto, &[&Fact]) -> Option<Vec<Fact>>;

/// The rule of one operator.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The operator's domain; empty for the standard one.
    pub domain: &'static str,
    /// The operator's name.
    pub name: &'static str,
    /// The rule.
    pub outputs: OutputFacts,
}

/// Rules of operators that this room does not know itself. They go before its own.
#[derive(Debug, Clone, Default)]
pub struct Rules(Arc<[Rule]>);

impl Rules {
    /// The rule of the operator that `node` calls.
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

/// What the names of sizes begin with that no file gives.
pub const FRESH: char = '?';

/// What is known of every value of a graph, and of the graphs around it.
#[derive(Debug)]
pub struct Facts {
    pub(in crate::facts) symbols: SymbolScope,
    pub(in crate::facts) rules: Rules,
    pub(in crate::facts) values: ByName<String, Fact>,
    /// Sizes by the names that are equal to them.
    pub(in crate::facts) equal: HashMap<Symbol, TDim>,
    /// Names of dimensions that promise nothing; those of the main graph count everywhere.
    pub(in crate::facts) unreliable: HashSet<String>,
    pub(in crate::facts) fresh: AtomicUsize,
    pub(in crate::facts) outer: Option<Arc<Self>>,
}

impl Facts {
    /// Facts that hold nothing but what `outer` holds.
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

    /// These facts and those of the graphs around, from the inside out.
    pub(in crate::facts) fn chain(&self) -> impl Iterator<Item = &Self> {
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
        TDim::Sym(self.symbols.sym(&format!("{FRESH}{number}")))
    }
}
