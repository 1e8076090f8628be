//! The operators of a decoder. Each has a function that computes the outputs and returns the backward pass.
//!
//! Each family of operators is a module with a table, which [`find`] searches. To add an operator, write its function
//! in the module of its family and add a line to the table there.

mod arithmetic;
mod broadcast;
mod choice;
mod experts;
mod indexed;
mod layout;
mod logic;
mod normalize;
mod pieces;
mod product;
mod quantized;
mod reduce;
mod rotary;
mod shapes;
mod softmax;
mod unary;

use candle_core::{DType, Tensor};
use gqa2mla_passes::graph::{attribute, int_attribute};
use gqa2mla_passes::onnx::{NodeProto, tensor_proto::DataType};

use crate::error::{OpError, invalid};

/// The kind of gradient of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradient {
    /// The operator is differentiable, and its function returns the backward pass.
    Flows,
    /// The first output is differentiable; the others, indices or scales, have no gradient.
    FlowsToFirst,
    /// There is no gradient, because the outputs are shapes, indices or booleans.
    Stops,
    /// The operator is differentiable, but its gradient is not implemented.
    Missing,
}

/// One operator.
#[derive(Clone, Copy)]
pub struct TrainOperator {
    /// Its domain; empty for the default domain.
    pub domain: &'static str,
    /// Its `op_type`.
    pub name: &'static str,
    /// Computes the outputs.
    pub run: fn(&Call) -> Result<Computed, OpError>,
    /// The kind of its gradient.
    pub gradient: Gradient,
}

impl std::fmt::Debug for TrainOperator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{} ({:?})", self.domain, self.name, self.gradient)
    }
}

type Compute = fn(&Call) -> Result<Computed, OpError>;

const fn entry(name: &'static str, run: Compute, gradient: Gradient) -> TrainOperator {
    TrainOperator {
        domain: "",
        name,
        run,
        gradient,
    }
}

const fn flows(name: &'static str, run: Compute) -> TrainOperator {
    entry(name, run, Gradient::Flows)
}

const fn first_flows(name: &'static str, run: Compute) -> TrainOperator {
    entry(name, run, Gradient::FlowsToFirst)
}

const fn stops(name: &'static str, run: Compute) -> TrainOperator {
    entry(name, run, Gradient::Stops)
}

const fn missing(name: &'static str, run: Compute) -> TrainOperator {
    entry(name, run, Gradient::Missing)
}

/// An operator of ONNX Runtime's domain `com.microsoft`.
const fn contrib(name: &'static str, run: Compute) -> TrainOperator {
    TrainOperator {
        domain: "com.microsoft",
        ..entry(name, run, Gradient::Flows)
    }
}

/// The tables of all families.
const FAMILIES: [&[TrainOperator]; 14] = [
    arithmetic::OPERATORS,
    choice::OPERATORS,
    indexed::OPERATORS,
    layout::OPERATORS,
    logic::OPERATORS,
    normalize::OPERATORS,
    pieces::OPERATORS,
    product::OPERATORS,
    quantized::OPERATORS,
    reduce::OPERATORS,
    rotary::OPERATORS,
    shapes::OPERATORS,
    softmax::OPERATORS,
    unary::OPERATORS,
];

/// The primitives in place of `node`, if it is an operator that is run as several: a product with a packed weight, or a mixture
/// of experts.
#[must_use]
pub fn lowered(node: &NodeProto) -> Option<Vec<NodeProto>> {
    quantized::lowered(node).or_else(|| experts::lowered(node))
}

/// The operator of `node`, if it is implemented.
#[must_use]
pub fn find(node: &NodeProto) -> Option<TrainOperator> {
    let domain = match node.domain() {
        "ai.onnx" => "",
        domain => domain,
    };
    let found = all().find(|o| o.domain == domain && o.name == node.op_type());
    found.filter(|o| o.name != "If" || choice::is_of_constants(node))
}

/// All implemented operators.
pub fn all() -> impl Iterator<Item = TrainOperator> {
    FAMILIES.into_iter().flatten().copied()
}

/// What of `node` is not implemented, although its operator is: an attribute with another value than the usual one.
#[must_use]
pub fn unsupported(node: &NodeProto) -> Option<&'static str> {
    let is_set = |name: &&str| int_attribute(node, name, 0) != 0;
    let unusual = |names: &[&'static str]| names.iter().copied().find(is_set);
    match node.op_type() {
        "GatherND" => unusual(&["batch_dims"]),
        "CumSum" => unusual(&["exclusive", "reverse"]),
        "QuantizeLinear" => unusual(&["output_dtype", "block_size"]),
        "ScatterND" | "ScatterElements" => {
            let reduction = attribute(node, "reduction").and_then(|a| a.s.as_deref());
            let usual = matches!(reduction, None | Some(b"none" | b"add"));
            (!usual).then_some("reduction")
        }
        _ => None,
    }
}

/// The kind of the gradient of `node`, whose operator is `operator`: conversions to integers have none.
#[must_use]
pub fn gradient(node: &NodeProto, operator: &TrainOperator) -> Gradient {
    let to = DataType::try_from(int_attribute(node, "to", 0) as i32);
    let float = matches!(
        to,
        Ok(DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double)
    );
    match operator.name == "Cast" && !float {
        true => Gradient::Stops,
        false => operator.gradient,
    }
}

/// The arguments of a node.
pub struct Call<'a> {
    /// The node, for its attributes.
    pub node: &'a NodeProto,
    /// Its inputs by position; `None` for an omitted one.
    pub inputs: &'a [Option<Tensor>],
    /// Which inputs depend on a trained tensor. Only those need a gradient.
    pub tracked: &'a [bool],
}

/// The backward pass of a node: maps the gradients of its outputs to those of the inputs that need one (a
/// vector-Jacobian product).
pub type Pull = Box<dyn FnOnce(&[Option<Tensor>]) -> Result<Vec<Option<Tensor>>, OpError>>;

/// The result of a node.
pub struct Computed {
    /// Its outputs by position.
    pub outputs: Vec<Tensor>,
    /// Its backward pass, which holds only the values that it needs.
    pub pull: Option<Pull>,
}

impl From<Tensor> for Computed {
    fn from(output: Tensor) -> Self {
        Self {
            outputs: vec![output],
            pull: None,
        }
    }
}

impl Call<'_> {
    /// Input `position`.
    ///
    /// # Errors
    /// [`OpError::Invalid`] if it is omitted.
    pub fn input(&self, position: usize) -> Result<&Tensor, OpError> {
        match self.optional(position) {
            Some(tensor) => Ok(tensor),
            None => invalid(format!("input {position} is missing")),
        }
    }

    /// Input `position`; `None` if it is omitted.
    #[must_use]
    pub fn optional(&self, position: usize) -> Option<&Tensor> {
        self.inputs.get(position)?.as_ref()
    }

    /// Whether input `position` needs a gradient.
    #[must_use]
    pub fn tracks(&self, position: usize) -> bool {
        self.tracked.get(position).copied().unwrap_or(false)
    }

    /// The integers of input `position`, row-major; `None` if it is omitted.
    ///
    /// # Errors
    /// [`OpError::Tensor`].
    pub fn integers(&self, position: usize) -> Result<Option<Vec<i64>>, OpError> {
        self.optional(position).map(integers).transpose()
    }

    /// An integer attribute.
    #[must_use]
    pub fn int(&self, name: &str, default: i64) -> i64 {
        attribute(self.node, name).map_or(default, |a| a.i())
    }

    /// A float attribute.
    #[must_use]
    pub fn float(&self, name: &str, default: f32) -> f32 {
        attribute(self.node, name).map_or(default, |a| a.f())
    }

    /// A list of integers as an attribute.
    #[must_use]
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        attribute(self.node, name).map(|a| a.ints.clone())
    }

    /// A text attribute.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        let text = attribute(self.node, name)?.s.as_ref()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// A result with one output and the backward pass `pull`, which is dropped if no input is tracked.
    pub fn made(
        &self,
        output: Tensor,
        pull: impl FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>, OpError> + 'static,
    ) -> Computed {
        let tracked = self.tracked.iter().any(|&t| t);
        Computed {
            outputs: vec![output],
            pull: tracked.then(|| -> Pull {
                Box::new(move |grads| match grads.first().and_then(Option::as_ref) {
                    Some(grad) => pull(grad),
                    None => Ok(Vec::new()),
                })
            }),
        }
    }

    /// A result with one output whose gradient goes to the first input only.
    pub fn made_of_first(
        &self,
        output: Tensor,
        pull: impl FnOnce(&Tensor) -> Result<Tensor, OpError> + 'static,
    ) -> Computed {
        self.made(output, move |grad| Ok(vec![Some(pull(grad)?)]))
    }
}

/// The elements of an integer tensor, row-major.
fn integers(tensor: &Tensor) -> Result<Vec<i64>, OpError> {
    Ok(tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?)
}

/// The position of `axis`, which may be negative, in a tensor of rank `rank`.
fn axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let signed = rank as i64;
    match (-signed..signed.max(1)).contains(&axis) {
        true => Ok(axis.rem_euclid(signed.max(1)) as usize),
        false => invalid(format!("axis {axis} of a tensor of {rank} axes")),
    }
}

/// The largest number of elements that an operator may make of a few, by an input that says how many.
const MOST_ELEMENTS: usize = 1 << 30;

/// Refuses a shape of more elements.
fn sized(mut dims: impl Iterator<Item = usize>) -> Result<(), OpError> {
    match dims.try_fold(1usize, |all, size| all.checked_mul(size)) {
        Some(all) if all <= MOST_ELEMENTS => Ok(()),
        _ => invalid(format!("more than {MOST_ELEMENTS} elements")),
    }
}

/// Size of axis `at` of `dims`; 1 if there is no such axis.
fn extent(dims: &[usize], at: usize) -> usize {
    dims.get(at).copied().unwrap_or(1)
}
