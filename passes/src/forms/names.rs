//! Names for new nodes and values: where they come from, and never one that is taken.

use std::collections::HashSet;

use crate::graph::subgraphs;
use crate::onnx::GraphProto;

/// All names of a graph.
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Collects the names of values and nodes of `graph` and of the graphs inside it.
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

    /// A prefix for everything made from the node or value `old`: `<old>/mla`, numbered where that is taken.
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

/// The names of one attention's new nodes and values.
pub struct SiteNames<'n> {
    prefix: String,
    all: &'n Names,
}

impl<'n> SiteNames<'n> {
    /// Names that begin with `prefix`, which [`Names::prefix`] gave, in a model whose names are `all`.
    pub fn new(prefix: String, all: &'n Names) -> Self {
        Self { prefix, all }
    }

    /// What every new name begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of a new node or value.
    pub fn name(&self, part: &str) -> String {
        format!("{}/{part}", self.prefix)
    }

    /// The name `base`, which describes its content in full, or one made of it where the model has something of that name.
    pub fn shared(&self, base: &str) -> String {
        let mut name = base.to_owned();
        while self.is_taken(&name) {
            name.push('+');
        }
        name
    }

    /// Whether any graph of the model has a node or a value called `name`.
    pub fn is_taken(&self, name: &str) -> bool {
        self.all.taken.contains(name)
    }
}
