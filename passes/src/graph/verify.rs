//! Invariants of a well-formed graph, checked before and after a rewrite.
//!
//! 1. A value is defined once: by one node, as one input, or as one initializer (which may give an input its default).
//! 2. A node reads only outputs of earlier nodes, inputs, initializers, or values of an enclosing graph.
//! 3. Every output of the graph is defined.
//! 4. Every operator belongs to a domain that the model imports, or to a function of the model.
//! 5. No two attributes of a node have the same name.
//! 6. Subgraphs satisfy the same invariants.
//! 7. No size of a stored tensor is negative.
//! 8. A node has as many inputs as its operator takes, and names those that cannot be left out.
//! 9. An `If` has as many outputs as each of its branches.
//! 10. Inputs have element types that the operator accepts, and constant sizes that fit each other. This needs the
//!     inferred types and shapes of the graph, so `facts::types::verify` checks it.

use std::collections::HashSet;

use crate::graph::{arity, is_op, label, subgraphs};
use crate::numbers::counted;
use crate::onnx::{GraphProto, ModelProto, NodeProto, TensorProto};

/// The first violated invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Invariant 1.
    #[error("'{0}' is made twice")]
    MadeTwice(String),
    /// Invariant 2.
    #[error("node '{node}' reads '{value}', which nothing makes before it")]
    NotMade {
        /// The node that reads the value.
        node: String,
        /// The value without a definition.
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
    /// Invariant 7.
    #[error("tensor '{tensor}' has the shape {dims:?}: a size is never negative")]
    NegativeSize {
        /// The tensor, or the node that holds it.
        tensor: String,
        /// Its shape.
        dims: Vec<i64>,
    },
    /// Invariant 8.
    #[error("node '{node}' ({operator}) names {}, expected {expected} without a gap", counted(*.named, "input"))]
    Inputs {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// Inputs that it names.
        named: usize,
        /// Inputs that the operator takes.
        expected: String,
    },
    /// Invariant 9.
    #[error("If '{node}' has {}, and its branch '{branch}' {made}", counted(*.outputs, "output"))]
    Branch {
        /// The `If`.
        node: String,
        /// Its outputs.
        outputs: usize,
        /// The attribute that holds the branch.
        branch: String,
        /// The outputs of the branch.
        made: usize,
    },
    /// Invariant 10.
    #[error(transparent)]
    Operand(Box<OperandError>),
    /// The model has no graph.
    #[error("the model has no graph")]
    NoGraph,
}

/// An input whose type or shape its operator does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node '{node}' ({operator}): its input '{input}' is {found}, expected {expected}")]
pub struct OperandError {
    /// The node.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// The input.
    pub input: String,
    /// Its element type or shape.
    pub found: String,
    /// What the operator accepts.
    pub expected: String,
}

impl From<OperandError> for VerifyError {
    fn from(error: OperandError) -> Self {
        Self::Operand(Box::new(error))
    }
}

/// Checks the main graph of `model` and all its subgraphs.
pub fn verify(model: &ModelProto) -> Result<(), VerifyError> {
    let graph = model.graph.as_ref().ok_or(VerifyError::NoGraph)?;
    let mut domains: NameSet = model
        .opset_import
        .iter()
        .map(|o| normal(o.domain()))
        .collect();
    domains.extend(model.functions.iter().map(|f| normal(f.domain())));
    verify_graph(graph, &domains, &mut Vec::new())
}

/// The defined names of a graph, which are looked up for every input of every node.
type NameSet<'a> = HashSet<&'a str, foldhash::fast::RandomState>;

fn verify_sizes(tensor: &str, dims: &[i64]) -> Result<(), VerifyError> {
    if dims.iter().all(|&size| size >= 0) {
        return Ok(());
    }
    Err(VerifyError::NegativeSize {
        tensor: tensor.to_owned(),
        dims: dims.to_vec(),
    })
}

fn verify_inputs(node: &NodeProto) -> Result<(), VerifyError> {
    let Some(expected) = arity::inputs(node) else {
        return Ok(());
    };
    let (least, most) = (*expected.start(), *expected.end());
    let last = node.input.iter().rposition(|v| !v.is_empty());
    let found = last.map_or(0, |last| last + 1);
    // Of variadic inputs, none can be left out.
    let required = match most {
        usize::MAX => usize::MAX,
        _ => least,
    };
    let mut required = node.input.iter().take(required);
    if expected.contains(&found) && !required.any(String::is_empty) {
        return Ok(());
    }
    Err(VerifyError::Inputs {
        node: label(node).to_owned(),
        operator: node.op_type().to_owned(),
        named: node.input.iter().filter(|v| !v.is_empty()).count(),
        expected: match (least, most) {
            (_, usize::MAX) => format!("{least} or more"),
            _ if least == most => least.to_string(),
            _ => format!("{least} to {most}"),
        },
    })
}

fn verify_branches(node: &NodeProto) -> Result<(), VerifyError> {
    let is_if = is_op(node, "If");
    let branches = node.attribute.iter().filter(|_| is_if);
    for (branch, body) in branches.filter_map(|a| Some((a.name(), a.g.as_ref()?))) {
        if body.output.len() != node.output.len() {
            return Err(VerifyError::Branch {
                node: label(node).to_owned(),
                outputs: node.output.len(),
                branch: branch.to_owned(),
                made: body.output.len(),
            });
        }
    }
    Ok(())
}

fn normal(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn verify_graph<'a>(
    graph: &'a GraphProto,
    domains: &NameSet,
    outer: &mut Vec<NameSet<'a>>,
) -> Result<(), VerifyError> {
    let mut made = NameSet::default();
    for input in &graph.input {
        if !made.insert(input.name()) {
            return Err(VerifyError::MadeTwice(input.name().to_owned()));
        }
    }
    let mut initialized = NameSet::default();
    let sparse = graph
        .sparse_initializer
        .iter()
        .filter_map(|s| s.values.as_ref());
    for tensor in graph.initializer.iter().chain(sparse) {
        if !initialized.insert(tensor.name()) {
            return Err(VerifyError::MadeTwice(tensor.name().to_owned()));
        }
    }
    for tensor in &graph.initializer {
        verify_sizes(tensor.name(), &tensor.dims)?;
    }
    for sparse in &graph.sparse_initializer {
        let name = sparse.values.as_ref().map_or("", TensorProto::name);
        verify_sizes(name, &sparse.dims)?;
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
        let mut attributes = NameSet::default();
        for attribute in &node.attribute {
            if !attributes.insert(attribute.name()) {
                return Err(VerifyError::AttributeTwice {
                    node: label(node).to_owned(),
                    attribute: attribute.name().to_owned(),
                });
            }
            for tensor in attribute.t.iter().chain(&attribute.tensors) {
                verify_sizes(label(node), &tensor.dims)?;
            }
        }
        verify_inputs(node)?;
        for value in node.input.iter().filter(|v| !v.is_empty()) {
            if !outer.iter().any(|scope| scope.contains(value.as_str())) {
                return Err(VerifyError::NotMade {
                    node: label(node).to_owned(),
                    value: value.clone(),
                });
            }
        }
        verify_branches(node)?;
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

#[cfg(test)]
mod tests {
    use super::verify;
    use crate::graph::build::{node, value};
    use crate::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

    fn said(made: NodeProto) -> Option<String> {
        let graph = GraphProto {
            input: ["x", "y"].map(|name| value(name, 1, &[2])).to_vec(),
            node: vec![made],
            output: vec![value("z", 1, &[2])],
            ..GraphProto::default()
        };
        let model = ModelProto {
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(18),
            }],
            ..ModelProto::default()
        };
        verify(&model).err().map(|error| error.to_string())
    }

    #[test]
    fn a_node_has_the_inputs_that_its_operator_takes() {
        let of = |op: &str, inputs: &[&str]| said(node(op, "n", inputs, &["z"]));
        assert_eq!(of("Add", &["x", "y"]), None);
        assert_eq!(of("Clip", &["x", "", "y"]), None);
        assert_eq!(of("Sum", &["x", "y", "x", "y"]), None);
        assert_eq!(of("OfSomeoneElse", &[]), None);
        let words =
            |inputs, expected| format!("node 'n' ({inputs}, expected {expected} without a gap");
        assert_eq!(of("Neg", &[]), Some(words("Neg) names 0 inputs", "1")));
        assert_eq!(
            of("Transpose", &["x", "y"]),
            Some(words("Transpose) names 2 inputs", "1"))
        );
        assert_eq!(
            of("Add", &["", "y"]),
            Some(words("Add) names 1 input", "2"))
        );
        assert_eq!(
            of("Concat", &["x", ""]),
            Some(words("Concat) names 1 input", "1 or more"))
        );
        assert_eq!(
            of("Slice", &["", "y"]),
            Some(words("Slice) names 1 input", "1 to 5"))
        );
    }

    #[test]
    fn an_if_gives_what_its_branches_make() {
        let branch = || GraphProto {
            node: vec![node("Add", "sum", &["x", "y"], &["inner"])],
            output: vec![value("inner", 1, &[2])],
            ..GraphProto::default()
        };
        let of = |outputs: &[&str]| {
            let made = node("If", "n", &["x"], outputs);
            let made = made.with_graph("then_branch", branch());
            said(made.with_graph("else_branch", branch()))
        };
        assert_eq!(of(&["z"]), None);
        let words = "If 'n' has 2 outputs, and its branch 'then_branch' 1";
        assert_eq!(of(&["z", "w"]).as_deref(), Some(words));
    }
}
