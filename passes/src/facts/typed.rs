//! A patch under construction with types and shapes: a node that contradicts the inferred facts is refused when it is
//! added, and the error names the rewrite rule that added it.
//!
//! The facts of a new node are inferred from those of the graph and of the nodes added before it. A node that redefines
//! a value of the graph must give it the same element type and the same constant sizes as before, or the sizes that
//! [`TypedPatch::narrow`] has declared.

use std::sync::Arc;

use tract_data::prelude::TDim;

use crate::facts::{Fact, Facts, Shape, agree, node, stored, types};
use crate::graph::build::{NewSize, NewType};
use crate::graph::patch::Patch;
use crate::graph::text::type_name;
use crate::graph::verify::OperandError;
use crate::graph::{Graph, NodeId, label};
use crate::onnx::stored::Model;
use crate::onnx::{NodeProto, TensorProto};

/// A node of a patch that contradicts the inferred facts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct Contradiction {
    /// The rewrite rule that makes the patch.
    pub rule: String,
    /// The node and its contradiction.
    pub what: Box<Contradicted>,
}

/// The kind of contradiction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradicted {
    /// An input that the operator of the node does not accept.
    #[error(transparent)]
    TypeConstraint(#[from] OperandError),
    /// A value of the graph that the node redefines with another type or shape.
    #[error("node '{node}' makes '{value}' as {new}, and it was {old}")]
    Value {
        /// The node.
        node: String,
        /// The value.
        value: String,
        /// Type and shape of the value that the node computes.
        new: String,
        /// Type and shape of the value in the graph, or as declared by [`TypedPatch::narrow`].
        old: String,
    },
}

/// The patch of one rewrite rule for one graph.
#[derive(Debug)]
pub struct TypedPatch<'g> {
    rule: String,
    graph: &'g Graph<'g>,
    facts: Facts,
    model: Model,
    patch: Patch,
}

impl<'g> TypedPatch<'g> {
    /// An empty patch of `rule` for `graph`, whose facts are `facts`.
    pub fn new(rule: &str, graph: &'g Graph<'g>, facts: &Arc<Facts>) -> Self {
        Self {
            rule: rule.to_owned(),
            graph,
            facts: Facts::on_top_of(facts),
            model: Model::default(),
            patch: Patch::default(),
        }
    }

    /// The graph that is patched.
    pub fn graph(&self) -> &'g Graph<'g> {
        self.graph
    }

    /// The facts of the values of the graph and of the patch.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether a node of the patch defines an output of `node`, a node of the graph.
    pub fn stands_for(&self, node: &NodeProto) -> bool {
        let mut new = self.patch.replaced.values().flatten();
        new.any(|n| {
            n.output
                .iter()
                .any(|o| !o.is_empty() && node.output.contains(o))
        })
    }

    /// Adds an initializer, unless the patch has one of that name.
    pub fn initializer(&mut self, tensor: TensorProto) {
        let fact = stored::of_tensor(&self.model, &tensor);
        self.set(tensor.name(), fact);
        self.patch.add_initializers(vec![tensor]);
    }

    /// Declares type and shape of an initializer that the caller adds to the patch later.
    pub fn declare(&mut self, name: &str, elem_type: i32, dims: &[usize]) {
        let shape = dims.iter().map(|&n| TDim::from(n)).collect();
        self.set(name, Fact::new(Some(elem_type), Some(shape)));
    }

    /// Declares that the graph input or output `value` has the type and shape `new` in the patched graph. Nodes that
    /// are added afterwards are checked against them.
    pub fn narrow(&mut self, value: &str, new: NewType) {
        self.narrow_inside(value, &new);
        self.patch.interface.insert(value.to_owned(), new);
    }

    /// Declares that `value`, an inner value whose node stays in the graph, has the type and shape `new` in the patched
    /// graph. Its `value_info` entry is dropped.
    pub fn narrow_inside(&mut self, value: &str, new: &NewType) {
        let old = self.facts.get(value);
        let size = |(axis, size): (usize, &NewSize)| match size {
            NewSize::Fixed(n) => TDim::Val(*n),
            NewSize::Keep => match old.shape.as_ref().and_then(|shape| shape.get(axis)) {
                Some(kept) => kept.clone(),
                None => self.facts.fresh(),
            },
            NewSize::Symbol(name) => self.facts.symbol(name),
        };
        let shape: Shape = new.sizes.iter().enumerate().map(size).collect();
        let fact = Fact::new(new.elem_type.or(old.elem_type), Some(shape));
        self.set(value, fact);
        self.patch.stale.insert(value.to_owned());
    }

    /// Declares that the dimension name `name` equals the size of `value` on `axis`, if that size is known.
    pub fn equate(&mut self, name: &str, value: &str, axis: usize) {
        let size = self.facts.shape(value).and_then(|shape| shape.get(axis));
        if let Some(size) = size.cloned() {
            let symbol = self.facts.symbols.sym(name);
            if size != TDim::Sym(symbol.clone()) {
                self.facts.equal.insert(symbol, size);
            }
        }
    }

    /// Adds `node` before all other nodes of the graph, unless the patch has a node of that name there.
    pub fn in_front(&mut self, node: NodeProto) -> Result<(), Contradiction> {
        self.add(&node)?;
        self.patch.add_front(node);
        Ok(())
    }

    /// Replaces the node `at` by `nodes`, or appends them to the replacements that it already has.
    pub fn place(&mut self, at: NodeId, nodes: Vec<NodeProto>) -> Result<(), Contradiction> {
        for node in &nodes {
            self.add(node)?;
        }
        self.patch.replaced.entry(at).or_default().extend(nodes);
        Ok(())
    }

    /// The patch, after a second check of all its nodes in graph order. Needed if nodes were placed before the nodes
    /// they read from.
    pub fn finish(mut self) -> Result<Patch, Contradiction> {
        let replaced = std::mem::take(&mut self.patch.replaced);
        for node in replaced.values().flatten() {
            self.add(node)?;
        }
        self.patch.replaced = replaced;
        Ok(self.patch)
    }

    /// The patch, without a second check: for nodes that were placed in graph order.
    pub fn into_patch(self) -> Patch {
        self.patch
    }

    fn set(&mut self, value: &str, fact: Fact) {
        self.facts.values.insert(value.to_owned(), fact);
    }

    /// Checks `node` against the known facts and infers those of its outputs.
    fn add(&mut self, node: &NodeProto) -> Result<(), Contradiction> {
        let refuse = |rule: &str, what: Contradicted| Contradiction {
            rule: rule.to_owned(),
            what: Box::new(what),
        };
        let inputs: Vec<&Fact> = node.input.iter().map(|name| self.facts.get(name)).collect();
        types::check(node, &inputs)
            .and_then(|()| agree::check(&self.facts, node))
            .map_err(|error| refuse(&self.rule, error.into()))?;
        let made = node::infer(&self.facts, &self.model, node);
        for (value, new) in node.output.iter().zip(made) {
            if value.is_empty() {
                continue;
            }
            let old = self.facts.get(value);
            if contradicts(old, &new) {
                let what = Contradicted::Value {
                    node: label(node).to_owned(),
                    value: value.clone(),
                    new: described(&new),
                    old: described(old),
                };
                return Err(refuse(&self.rule, what));
            }
            // If a value is redefined and inference fails, its old fact is kept.
            let fact = Fact {
                elem_type: new.elem_type.or(old.elem_type),
                shape: new.shape.or_else(|| old.shape.clone()),
                content: new.content,
            };
            self.set(value, fact);
        }
        Ok(())
    }
}

/// Whether two facts of one value cannot both be true. An unknown type or size contradicts nothing.
fn contradicts(a: &Fact, b: &Fact) -> bool {
    let types = a.elem_type.zip(b.elem_type);
    let shapes = a.shape.as_ref().zip(b.shape.as_ref());
    types.is_some_and(|(a, b)| a != b)
        || shapes.is_some_and(|(a, b)| {
            a.len() != b.len() || a.iter().zip(b).any(|(a, b)| agree::differ(a, b))
        })
}

fn described(fact: &Fact) -> String {
    let elem_type = fact.elem_type.map_or_else(|| "?".to_owned(), type_name);
    let shape = fact.shape.as_deref().map_or_else(String::new, agree::text);
    format!("{elem_type}{shape}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::facts::Rules;
    use crate::facts::scoped::ScopeFacts;
    use crate::graph::build::{int64_vector, node, value};
    use crate::graph::scopes::Scope;
    use crate::onnx::GraphProto;
    use crate::onnx::tensor_proto::DataType;

    const FLOAT: i32 = DataType::Float as i32;
    const HALF: i32 = DataType::Float16 as i32;

    /// y [2, 8] = x [2, 4] w [4, 8], then z = y + y.
    fn graph() -> GraphProto {
        GraphProto {
            input: vec![value("x", FLOAT, &[2, 4]), value("w", FLOAT, &[4, 8])],
            node: vec![
                node("MatMul", "product", &["x", "w"], &["y"]),
                node("Add", "sum", &["y", "y"], &["z"]),
            ],
            output: vec![value("z", FLOAT, &[2, 8])],
            ..GraphProto::default()
        }
    }

    fn patched(
        build: impl FnOnce(&mut TypedPatch) -> Result<(), Contradiction>,
    ) -> Result<Patch, String> {
        let proto = graph();
        let graph = Graph::new(&proto);
        let facts = ScopeFacts::infer(&Model::default(), &proto, &Rules::default());
        let facts = facts.get(&Scope::default()).unwrap();
        let mut patch = TypedPatch::new("split", &graph, facts);
        let built = build(&mut patch);
        built
            .and_then(|()| patch.finish())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_product_through_a_narrower_middle_is_accepted() {
        let patch = patched(|patch| {
            patch.declare("down", FLOAT, &[4, 3]);
            patch.declare("up", FLOAT, &[3, 8]);
            let nodes = vec![
                node("MatMul", "x_down", &["x", "down"], &["c"]),
                node("MatMul", "x_up", &["c", "up"], &["y"]),
            ];
            patch.place(NodeId(0), nodes)
        });
        assert_eq!(patch.unwrap().replaced.len(), 1);
    }

    #[test]
    fn operands_of_two_types_are_refused_with_rule_and_node() {
        let error = patched(|patch| {
            patch.declare("down", HALF, &[4, 8]);
            patch.place(
                NodeId(0),
                vec![node("MatMul", "x_down", &["x", "down"], &["y"])],
            )
        });
        assert_eq!(
            error.unwrap_err(),
            "split: node 'x_down' (MatMul): its input 'down' is float16, expected float as 'x'"
        );
    }

    #[test]
    fn sizes_that_do_not_meet_are_refused() {
        let error = patched(|patch| {
            patch.declare("down", FLOAT, &[5, 8]);
            patch.place(
                NodeId(0),
                vec![node("MatMul", "x_down", &["x", "down"], &["y"])],
            )
        });
        assert_eq!(
            error.unwrap_err(),
            "split: node 'x_down' (MatMul): its input 'down' is [5, 8], expected 4 rows"
        );
    }

    #[test]
    fn sizes_of_a_split_add_up_to_the_axis() {
        let split = |sizes: &[i64]| {
            patched(|patch| {
                patch.initializer(int64_vector("sizes", sizes));
                let product = node("MatMul", "product", &["x", "w"], &["y"]);
                let parts = node("Split", "parts", &["y", "sizes"], &["a", "b"]);
                patch.place(NodeId(0), vec![product, parts.with_int("axis", 1)])
            })
        };
        assert!(split(&[3, 5]).is_ok());
        for wrong in [&[1 << 40, 5][..], &[3, 4], &[-1, 9], &[3, 3, 2], &[8]] {
            let error = split(wrong).unwrap_err();
            let told = format!("an axis that is divided into {wrong:?}");
            assert!(error.contains(&told), "{error}");
        }
    }

    #[test]
    fn an_axis_is_one_of_the_operand() {
        let joined = |axis: i64| {
            patched(|patch| {
                let product = node("MatMul", "product", &["x", "w"], &["y"]);
                let join = node("Concat", "join", &["y", "y"], &["a"]);
                patch.place(NodeId(0), vec![product, join.with_int("axis", axis)])
            })
        };
        assert!(joined(-2).is_ok() && joined(1).is_ok());
        for wrong in [-3, 2] {
            let error = joined(wrong).unwrap_err();
            assert!(
                error.contains(&format!("expected an axis {wrong}")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_value_that_is_taken_over_keeps_its_type_and_sizes() {
        let error = patched(|patch| {
            let cast = node("Cast", "cast", &["x"], &["y"]).with_int("to", HALF.into());
            patch.place(NodeId(0), vec![cast])
        });
        assert_eq!(
            error.unwrap_err(),
            "split: node 'cast' makes 'y' as float16[2, 4], and it was float[2, 8]"
        );
    }

    #[test]
    fn an_interface_that_is_narrowed_is_seen_by_later_nodes() {
        let narrowed = |width: i64| {
            patched(|patch| {
                patch.narrow("w", vec![NewSize::Keep, NewSize::Fixed(2)].into());
                patch.initializer(int64_vector("shape", &[4, width]));
                let nodes = vec![
                    node("Reshape", "cut", &["w", "shape"], &["v"]),
                    node("MatMul", "x_v", &["x", "v"], &["u"]),
                    node("Concat", "four", &["u", "u", "u", "u"], &["y"]).with_int("axis", 1),
                ];
                patch.place(NodeId(0), nodes)
            })
        };
        assert!(narrowed(2).is_ok());
        assert!(narrowed(8).unwrap_err().contains("as many elements"));
    }

    #[test]
    fn a_node_placed_before_what_it_reads_is_looked_at_again() {
        let error = patched(|patch| {
            patch.place(NodeId(1), vec![node("Add", "sum", &["y", "late"], &["z"])])?;
            let made = node("Cast", "late", &["x"], &["late"]).with_int("to", HALF.into());
            patch.place(
                NodeId(0),
                vec![made, node("MatMul", "product", &["x", "w"], &["y"])],
            )
        });
        assert!(error.unwrap_err().contains("its input 'late' is float16"));
    }
}
