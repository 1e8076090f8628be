//! What holds of every well-formed graph; checked before and after a rewrite.
//!
//! 1. A value is made once: by one node, as one input, or as one initializer (which may give an input its default).
//! 2. A node reads only values made before it, inputs, initializers, or values of a graph around it.
//! 3. Every output of the graph is made.
//! 4. Every operator belongs to a domain that the model imports, or to a function of the model.
//! 5. A node has no two attributes of one name.
//! 6. The same holds of the graphs in its attributes.

use std::collections::HashSet;

use crate::graph::{label, subgraphs};
use crate::onnx::{GraphProto, ModelProto};

/// The first invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Invariant 1.
    #[error("'{0}' is made twice")]
    MadeTwice(String),
    /// Invariant 2.
    #[error("node '{node}' reads '{value}', which nothing makes before it")]
    NotMade {
        /// The reader.
        node: String,
        /// The value.
        value: String,
    },
    /// Invariant 3.
    #[error("nothing makes the graph output '{0}'")]
    OutputNotMade(String),
    /// Invariant 4.
    #[error("node '{node}' is of domain '{domain}', which the model does not import")]
    DomainNotImported {
        /// The node.
        node: String,
        /// Its domain.
        domain: String,
    },
    /// Invariant 5.
    #[error("node '{node}' has two attributes '{attribute}'")]
    AttributeTwice {
        /// The node.
        node: String,
        /// The attribute.
        attribute: String,
    },
    /// No graph at all.
    #[error("the model has no graph")]
    NoGraph,
}

/// Checks the main graph of `model` and all graphs inside it.
pub fn verify(model: &ModelProto) -> Result<(), VerifyError> {
    let graph = model.graph.as_ref().ok_or(VerifyError::NoGraph)?;
    let mut domains: HashSet<&str> = model
        .opset_import
        .iter()
        .map(|o| normal(o.domain()))
        .collect();
    domains.extend(model.functions.iter().map(|f| normal(f.domain())));
    verify_graph(graph, &domains, &mut Vec::new())
}

fn normal(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn verify_graph<'a>(
    graph: &'a GraphProto,
    domains: &HashSet<&str>,
    outer: &mut Vec<HashSet<&'a str>>,
) -> Result<(), VerifyError> {
    let mut made: HashSet<&str> = HashSet::new();
    for input in &graph.input {
        if !made.insert(input.name()) {
            return Err(VerifyError::MadeTwice(input.name().to_owned()));
        }
    }
    let mut initialized = HashSet::new();
    let sparse = graph
        .sparse_initializer
        .iter()
        .filter_map(|s| s.values.as_ref());
    for tensor in graph.initializer.iter().chain(sparse) {
        if !initialized.insert(tensor.name()) {
            return Err(VerifyError::MadeTwice(tensor.name().to_owned()));
        }
    }
    made.extend(initialized);
    outer.push(made);
    for node in &graph.node {
        if !domains.contains(normal(node.domain())) {
            return Err(VerifyError::DomainNotImported {
                node: label(node).to_owned(),
                domain: node.domain().to_owned(),
            });
        }
        let mut attributes = HashSet::new();
        for attribute in &node.attribute {
            if !attributes.insert(attribute.name()) {
                return Err(VerifyError::AttributeTwice {
                    node: label(node).to_owned(),
                    attribute: attribute.name().to_owned(),
                });
            }
        }
        for value in node.input.iter().filter(|v| !v.is_empty()) {
            if !outer.iter().any(|scope| scope.contains(value.as_str())) {
                return Err(VerifyError::NotMade {
                    node: label(node).to_owned(),
                    value: value.clone(),
                });
            }
        }
        for body in subgraphs(node) {
            verify_graph(body, domains, outer)?;
        }
        let Some(made) = outer.last_mut() else {
            continue;
        };
        for value in node.output.iter().filter(|v| !v.is_empty()) {
            if !made.insert(value) {
                return Err(VerifyError::MadeTwice(value.clone()));
            }
        }
    }
    for output in &graph.output {
        if !outer.iter().any(|scope| scope.contains(output.name())) {
            return Err(VerifyError::OutputNotMade(output.name().to_owned()));
        }
    }
    outer.pop();
    Ok(())
}
