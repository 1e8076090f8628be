//! Compilation of a graph to a [`Program`]: selection of the needed nodes, constant folding, and tracking of trained
//! tensors.

use std::collections::{BTreeSet, HashMap, HashSet};

use candle_core::Tensor;
use gqa2mla_passes::graph::{is_op, label};
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

use crate::error::{TrainError, operator_name};
use crate::operators::{Gradient, TrainOperator, find, gradient, lowered, unsupported};
use crate::program::{Parameter, Program, Slot, Step, Values};
use crate::stored;

/// The slot of each value name.
#[derive(Default)]
struct Slots {
    of: HashMap<String, Slot>,
}

impl Slots {
    fn of(&mut self, name: &str) -> Slot {
        let next = self.of.len();
        *self.of.entry(name.to_owned()).or_insert(next)
    }

    fn all(&mut self, names: &[String]) -> Vec<Option<Slot>> {
        let slot = |name: &String| (!name.is_empty()).then(|| self.of(name));
        names.iter().map(slot).collect()
    }
}

impl Program {
    /// Compiles the part of `graph` that `outputs` depend on. `graph` belongs to `model`, which has its weights, and
    /// its attention operators must be expanded. The initializers `trained` become parameters, in this order.
    ///
    /// # Errors
    /// [`TrainError::Operator`] for an operator that is not implemented, [`TrainError::Gradient`] for one without a
    /// gradient between a trained tensor and an output, [`TrainError::NoParameter`], [`TrainError::NoValue`], and the
    /// errors of reading weights.
    pub fn compile(
        model: &Model,
        graph: &GraphProto,
        outputs: &[&str],
        trained: &[String],
    ) -> Result<Self, TrainError> {
        let nodes = needed(graph, outputs);
        let operators = implementations(&nodes)?;
        let stored = by_name(graph);
        check_rounding(&nodes, &stored)?;
        let tracked = tracked(&nodes, &operators, trained)?;

        let mut slots = Slots::default();
        let mut inputs = Vec::new();
        let mut parameters = Vec::new();
        for name in trained {
            let tensor = stored.get(name.as_str()).filter(|_| tracked.contains(name));
            let tensor = tensor.ok_or_else(|| TrainError::NoParameter(name.clone()))?;
            parameters.push(Parameter {
                name: name.clone(),
                dims: stored::dims(tensor),
                slot: slots.of(name),
            });
        }
        let made: HashSet<&str> = names(nodes.iter().flat_map(|n| &n.output)).collect();
        let read: BTreeSet<&str> = names(nodes.iter().flat_map(|n| &n.input)).collect();
        let mut constants = Vec::new();
        let fed: HashSet<&str> = graph.input.iter().map(|v| v.name()).collect();
        for name in read {
            match stored.get(name) {
                _ if made.contains(name) || trained.iter().any(|t| t == name) => {}
                Some(tensor) => constants.push((slots.of(name), stored::read(model, tensor)?)),
                None if fed.contains(name) => inputs.push((name.to_owned(), slots.of(name))),
                None => return Err(TrainError::NoValue(name.to_owned())),
            }
        }
        let steps = nodes
            .into_iter()
            .zip(operators)
            .map(|(node, operator)| Step {
                inputs: slots.all(&node.input),
                outputs: slots.all(&node.output),
                tracked: node.input.iter().map(|i| tracked.contains(i)).collect(),
                last_reads: Vec::new(),
                operator,
                node,
            });
        let steps = steps.collect();
        let outputs: Vec<Slot> = outputs.iter().map(|name| slots.of(name)).collect();
        let mut program = Self {
            steps,
            constants,
            inputs,
            parameters,
            outputs,
            slots: slots.of.len(),
        };
        program.fold()?;
        program.find_last_reads();
        Ok(program)
    }

    /// Checks whether every operator that `outputs` of `graph` depend on is implemented, and has a gradient between the
    /// initializers `trained` and an output. No weight is read.
    ///
    /// # Errors
    /// As [`Program::compile`], apart from those of weights.
    pub fn check(
        graph: &GraphProto,
        outputs: &[&str],
        trained: &[String],
    ) -> Result<(), TrainError> {
        let nodes = needed(graph, outputs);
        let operators = implementations(&nodes)?;
        check_rounding(&nodes, &by_name(graph))?;
        tracked(&nodes, &operators, trained).map(|_| ())
    }

    /// Constant folding: runs every step whose inputs are constant, and drops constants that are no longer read.
    fn fold(&mut self) -> Result<(), TrainError> {
        let mut values = Values::new(self.slots);
        for (slot, tensor) in std::mem::take(&mut self.constants) {
            values.put(slot, tensor);
        }
        let mut left = Vec::with_capacity(self.steps.len());
        for step in std::mem::take(&mut self.steps) {
            let mut inputs = step.inputs.iter().flatten();
            match inputs.all(|&slot| values.get(slot).is_some()) {
                true => {
                    step.run(&mut values, false)?;
                }
                false => left.push(step),
            }
        }
        self.steps = left;
        let read: BTreeSet<Slot> = self.read_slots().collect();
        let kept = read
            .into_iter()
            .filter_map(|slot| Some((slot, values.take(slot)?)));
        self.constants = kept.collect::<Vec<(Slot, Tensor)>>();
        Ok(())
    }

    fn read_slots(&self) -> impl Iterator<Item = Slot> {
        let inputs = self
            .steps
            .iter()
            .flat_map(|step| step.inputs.iter().flatten());
        inputs.copied().chain(self.outputs.iter().copied())
    }

    /// Finds the last read of each value, after which it is dropped. A value that is not read is dropped when it is
    /// made.
    fn find_last_reads(&mut self) {
        let mut seen: HashSet<Slot> = self.outputs.iter().copied().collect();
        for step in self.steps.iter_mut().rev() {
            let slots = step.inputs.iter().chain(&step.outputs).flatten();
            step.last_reads = slots.copied().filter(|&slot| seen.insert(slot)).collect();
        }
    }
}

fn implementations(nodes: &[NodeProto]) -> Result<Vec<TrainOperator>, TrainError> {
    let implemented = |node: &NodeProto| {
        let unknown = |op: String| TrainError::Operator {
            node: label(node).to_owned(),
            op,
        };
        match (find(node), unsupported(node)) {
            (Some(operator), None) => Ok(operator),
            (Some(_), Some(what)) => Err(unknown(format!("{} with {what}", operator_name(node)))),
            (None, _) => Err(unknown(operator_name(node))),
        }
    };
    nodes.iter().map(implemented).collect()
}

/// Refuses rounding to other integers than those of 8 bits, which the tensor library cannot tell apart.
///
/// # Errors
/// [`TrainError::ElementType`] with the zero point.
fn check_rounding(
    nodes: &[NodeProto],
    stored: &HashMap<&str, &TensorProto>,
) -> Result<(), TrainError> {
    let rounding = nodes.iter().filter(|node| is_op(node, "QuantizeLinear"));
    let mut zeros = rounding.filter_map(|node| stored.get(node.input.get(2)?.as_str()));
    let eight_bits = [DataType::Int8 as i32, DataType::Uint8 as i32];
    match zeros.find(|zero| !eight_bits.contains(&zero.data_type())) {
        Some(zero) => Err(TrainError::ElementType {
            name: zero.name().to_owned(),
            data_type: zero.data_type(),
        }),
        None => Ok(()),
    }
}

fn by_name(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    graph.initializer.iter().map(|t| (t.name(), t)).collect()
}

fn names<'n>(all: impl Iterator<Item = &'n String>) -> impl Iterator<Item = &'n str> {
    all.map(String::as_str).filter(|name| !name.is_empty())
}

/// The nodes that `outputs` depend on, in graph order, with operators expanded that are run as several.
fn needed(graph: &GraphProto, outputs: &[&str]) -> Vec<NodeProto> {
    let mut wanted: HashSet<&str> = outputs.iter().copied().collect();
    let mut taken = Vec::new();
    // Nodes are in topological order, so a walk from the end visits every reader before its producer.
    for node in graph.node.iter().rev() {
        if names(node.output.iter()).any(|output| wanted.contains(output)) {
            wanted.extend(names(node.input.iter()));
            taken.push(node);
        }
    }
    let expanded = |node: &NodeProto| lowered(node).unwrap_or_else(|| vec![node.clone()]);
    taken.into_iter().rev().flat_map(expanded).collect()
}

/// The values that depend on a tensor in `trained` through operators with a gradient.
fn tracked(
    nodes: &[NodeProto],
    operators: &[TrainOperator],
    trained: &[String],
) -> Result<HashSet<String>, TrainError> {
    let mut tracked = HashSet::new();
    let used: HashSet<&str> = names(nodes.iter().flat_map(|n| &n.input)).collect();
    tracked.extend(
        trained
            .iter()
            .filter(|t| used.contains(t.as_str()))
            .cloned(),
    );
    for (node, operator) in nodes.iter().zip(operators) {
        if !node.input.iter().any(|input| tracked.contains(input)) {
            continue;
        }
        let flows = |outputs: usize| {
            let outputs = node.output.iter().take(outputs);
            outputs.filter(|o| !o.is_empty()).cloned()
        };
        match gradient(node, operator) {
            Gradient::Flows => tracked.extend(flows(usize::MAX)),
            Gradient::FlowsToFirst => tracked.extend(flows(1)),
            Gradient::Stops => {}
            Gradient::Missing => {
                return Err(TrainError::Gradient {
                    node: label(node).to_owned(),
                    op: operator_name(node),
                });
            }
        }
    }
    Ok(tracked)
}
