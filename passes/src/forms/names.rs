//! Unique names for new nodes and values.

use std::collections::HashSet;

use crate::graph::subgraphs;
use crate::onnx::GraphProto;

/// All names of values and nodes of a graph and its subgraphs.
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Collects the names in `graph`.
    pub fn of(graph: &GraphProto) -> Self {
        let mut names = Self {
            taken: HashSet::new(),
        };
        names.add(graph);
        names
    }

    fn add(&mut self, graph: &GraphProto) {
        self.taken
            .extend(graph.input.iter().map(|v| v.name().to_owned()));
        self.taken
            .extend(graph.initializer.iter().map(|t| t.name().to_owned()));
        for node in &graph.node {
            self.taken.extend(node.output.iter().cloned());
            self.taken.insert(node.name().to_owned());
            for body in subgraphs(node) {
                self.add(body);
            }
        }
    }

    /// A unique prefix for the names of the replacements of the node or value `old`: `<old>/mla`, numbered if that is
    /// taken.
    pub fn prefix(&mut self, old: &str) -> String {
        let base = format!("{old}/mla");
        let mut prefix = base.clone();
        let mut number = 1;
        while self.clashes(&prefix) {
            number += 1;
            prefix = format!("{base}{number}");
        }
        self.taken.insert(prefix.clone());
        prefix
    }

    fn clashes(&self, prefix: &str) -> bool {
        // Checked against every taken name once per site; sites are few.
        let inside = format!("{prefix}/");
        self.taken
            .iter()
            .any(|name| name == prefix || name.starts_with(&inside))
    }
}

/// The names of the new nodes and values of one attention.
pub struct SiteNames<'n> {
    prefix: String,
    all: &'n Names,
}

impl<'n> SiteNames<'n> {
    /// Names that begin with `prefix`, a result of [`Names::prefix`], in a model with the names `all`.
    pub fn new(prefix: String, all: &'n Names) -> Self {
        Self { prefix, all }
    }

    /// The prefix of every new name.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of a new node or value.
    pub fn name(&self, part: &str) -> String {
        format!("{}/{part}", self.prefix)
    }

    /// The name `base` of a shared constant, with `+` appended until the model has no such name.
    pub fn shared(&self, base: &str) -> String {
        let mut name = base.to_owned();
        while self.is_taken(&name) {
            name.push('+');
        }
        name
    }

    /// Whether any graph of the model has a node or value called `name`.
    pub fn is_taken(&self, name: &str) -> bool {
        self.all.taken.contains(name)
    }
}
