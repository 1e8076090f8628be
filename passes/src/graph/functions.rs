//! The functions of a model: which hold attention, and which of those can be put in place of their calls.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::graph::subgraphs;
use crate::onnx::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

/// Deepest nesting of calls that is followed.
const DEEPEST: usize = 32;
/// Most nodes that a graph may have with functions in place of their calls; large models have some 20,000.
const MOST_NODES: u64 = 1 << 17;

/// What calls name a function by: domain, name, overload.
pub type Key = (String, String, String);

/// The key of `function`.
pub fn key_of(function: &FunctionProto) -> Key {
    (
        function.domain().to_owned(),
        function.name().to_owned(),
        function.overload().to_owned(),
    )
}

/// The key of the function that `node` calls, if it calls one.
pub fn called(node: &NodeProto) -> Key {
    (
        node.domain().to_owned(),
        node.op_type().to_owned(),
        node.overload().to_owned(),
    )
}

/// Whether any node of `graph`, or of a graph inside it, calls the function `key`.
pub fn calls(graph: &GraphProto, key: &Key) -> bool {
    let calls_it = |node: &NodeProto| called(node) == *key;
    graph.node.iter().any(|node| anywhere(node, &calls_it))
}

/// The functions of a model that hold attention.
#[derive(Debug)]
pub struct Functions<'m> {
    all: HashMap<Key, &'m FunctionProto>,
    /// Those that can be put in place of their calls.
    pub inlined: HashSet<Key>,
    /// Those that cannot, each with the reason.
    pub kept: BTreeMap<Key, String>,
    /// Operator sets that the first ones need and that the model has not imported.
    pub imports: Vec<OperatorSetIdProto>,
}

impl<'m> Functions<'m> {
    /// Looks at every function of `model`; `is_attention` knows the operators that are attention.
    pub fn of(model: &'m ModelProto, is_attention: &dyn Fn(&NodeProto) -> bool) -> Self {
        let mut found = Self {
            all: model.functions.iter().map(|f| (key_of(f), f)).collect(),
            inlined: HashSet::new(),
            kept: BTreeMap::new(),
            imports: Vec::new(),
        };
        let mut attentive: Vec<Key> = attentive(&found.all, is_attention).into_iter().collect();
        attentive.sort();
        for key in attentive {
            match found.fits(&key, &model.opset_import) {
                Ok(()) => drop(found.inlined.insert(key)),
                Err(reason) => drop(found.kept.insert(key, reason)),
            }
        }
        found.bound(model);
        found
    }

    /// The function `key`, if it is one to put in place of its calls.
    pub fn to_inline(&self, key: &Key) -> Option<&'m FunctionProto> {
        let function = self.all.get(key).copied();
        function.filter(|_| self.inlined.contains(key))
    }

    /// A body written for another version of an operator set than the model's means something else there. Sets that the
    /// model lacks can be imported along with the body.
    fn fits(&mut self, key: &Key, model: &[OperatorSetIdProto]) -> Result<(), String> {
        let Some(function) = self.all.get(key).copied() else {
            return Ok(());
        };
        let mut missing = Vec::new();
        for set in &function.opset_import {
            let here = version(model, set.domain());
            match here.or_else(|| version(&self.imports, set.domain())) {
                Some(other) if other != set.version() => {
                    return Err(
                        "it is a function with attention inside that is written for another opset than the model"
                            .to_owned(),
                    );
                }
                None if self.has_operator_of(function, set.domain()) => missing.push(set.clone()),
                _ => {}
            }
        }
        self.imports.extend(missing);
        Ok(())
    }

    /// Whether a node of `function` is an operator of `domain`, and not a call of another function.
    fn has_operator_of(&self, function: &FunctionProto, domain: &str) -> bool {
        let is = |node: &NodeProto| {
            same_domain(node.domain(), domain) && !self.all.contains_key(&called(node))
        };
        function.node.iter().any(|node| anywhere(node, &is))
    }

    /// Leaves all functions as they are where putting them in place of their calls has no end, or makes too many nodes.
    fn bound(&mut self, model: &ModelProto) {
        if self.inlined.is_empty() {
            return;
        }
        let nodes = model.graph.as_ref().map_or(&[][..], |g| &g.node);
        let reason = match self.size(nodes, 0, &mut HashMap::new()) {
            Some(size) if size <= MOST_NODES => return,
            Some(size) => format!(
                "it is a function with attention inside, and with such functions in place of their calls the model would have {} nodes, more than {MOST_NODES}: export it without nested functions",
                if size == u64::MAX {
                    "countless".to_owned()
                } else {
                    size.to_string()
                }
            ),
            None => format!(
                "it is a function with attention inside, and functions call each other more than {DEEPEST} deep: export the model without nested functions"
            ),
        };
        self.imports.clear();
        for key in self.inlined.drain() {
            self.kept.insert(key, reason.clone());
        }
    }

    /// How many nodes `nodes` become, those of inner graphs included; `None` past the deepest nesting.
    fn size(
        &self,
        nodes: &[NodeProto],
        depth: usize,
        known: &mut HashMap<Key, u64>,
    ) -> Option<u64> {
        if depth > DEEPEST {
            return None;
        }
        let mut total: u64 = 0;
        for node in nodes {
            let key = called(node);
            let size = match (self.to_inline(&key), known.get(&key)) {
                (Some(_), Some(&size)) => size,
                (Some(function), None) => {
                    let size = self.size(&function.node, depth + 1, known)?;
                    known.insert(key, size);
                    size
                }
                (None, _) => {
                    let mut size: u64 = 1;
                    for graph in subgraphs(node) {
                        size = size.saturating_add(self.size(&graph.node, depth + 1, known)?);
                    }
                    size
                }
            };
            total = total.saturating_add(size);
        }
        Some(total)
    }
}

/// Functions that hold a softmax or an operator that is attention, themselves or through the functions they call.
fn attentive(
    functions: &HashMap<Key, &FunctionProto>,
    is_attention: &dyn Fn(&NodeProto) -> bool,
) -> HashSet<Key> {
    let mut found: HashSet<Key> = HashSet::new();
    loop {
        let holds = |node: &NodeProto| {
            node.op_type() == "Softmax" || is_attention(node) || found.contains(&called(node))
        };
        let more: Vec<Key> = functions
            .iter()
            .filter(|(key, f)| {
                !found.contains(*key) && f.node.iter().any(|node| anywhere(node, &holds))
            })
            .map(|(key, _)| key.clone())
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Whether `is` holds for `node` or a node of the graphs inside it.
fn anywhere(node: &NodeProto, is: &dyn Fn(&NodeProto) -> bool) -> bool {
    is(node) || subgraphs(node).any(|graph| graph.node.iter().any(|n| anywhere(n, is)))
}

fn version(sets: &[OperatorSetIdProto], domain: &str) -> Option<i64> {
    let set = sets.iter().find(|o| same_domain(o.domain(), domain));
    set.map(OperatorSetIdProto::version)
}

fn same_domain(a: &str, b: &str) -> bool {
    let standard = |domain: &str| matches!(domain, "" | "ai.onnx");
    a == b || (standard(a) && standard(b))
}
