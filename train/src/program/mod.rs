//! A compiled graph, its forward and backward pass.
//!
//! Values have slots instead of names. A value is dropped after its last read. Values that the backward pass needs are
//! held by [`crate::operators::Computed::pull`], which exists only for nodes that depend on a trained tensor.

mod compile;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use gqa2mla_passes::onnx::NodeProto;

use crate::error::{OpError, TrainError, operator_name};
use crate::operators::{Call, Pull, TrainOperator};

/// The index of a value.
type Slot = usize;

/// One node with the slots of its values.
#[derive(Debug)]
struct Step {
    node: NodeProto,
    operator: TrainOperator,
    inputs: Vec<Option<Slot>>,
    outputs: Vec<Option<Slot>>,
    /// Which inputs depend on a trained tensor.
    tracked: Vec<bool>,
    /// Values that no later step reads.
    last_reads: Vec<Slot>,
}

/// A graph, compiled for certain outputs and trained tensors.
#[derive(Debug)]
pub struct Program {
    steps: Vec<Step>,
    /// Frozen weights, and values that depend only on these.
    constants: Vec<(Slot, Tensor)>,
    inputs: Vec<(String, Slot)>,
    parameters: Vec<Parameter>,
    outputs: Vec<Slot>,
    slots: usize,
}

/// A trained tensor.
#[derive(Debug)]
pub struct Parameter {
    /// Name of the initializer.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    slot: Slot,
}

/// The outputs of one run, with the recorded backward pass.
pub struct Trace<'p> {
    /// The outputs, in the order of [`Program::compile`].
    pub outputs: Vec<Tensor>,
    program: &'p Program,
    tape: Vec<(usize, Pull)>,
}

impl Program {
    /// The inputs that the outputs depend on. Others need not be given.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|(name, _)| name.as_str())
    }

    /// The trained tensors, in the order of the arguments of [`Program::trace`] and of the results of
    /// [`Trace::backward`].
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Computes the outputs with the values `parameters` of the parameters, without a backward pass.
    ///
    /// # Errors
    /// [`TrainError::Node`], or [`TrainError::NoInput`].
    pub fn evaluate(
        &self,
        inputs: &BTreeMap<String, Tensor>,
        parameters: &[Tensor],
    ) -> Result<Vec<Tensor>, TrainError> {
        Ok(self.forward(inputs, parameters, false)?.outputs)
    }

    /// Computes the outputs and records the values that [`Trace::backward`] needs.
    ///
    /// # Errors
    /// As [`Program::evaluate`].
    pub fn trace(
        &self,
        inputs: &BTreeMap<String, Tensor>,
        parameters: &[Tensor],
    ) -> Result<Trace<'_>, TrainError> {
        self.forward(inputs, parameters, true)
    }

    fn forward(
        &self,
        inputs: &BTreeMap<String, Tensor>,
        parameters: &[Tensor],
        keep: bool,
    ) -> Result<Trace<'_>, TrainError> {
        let mut values = Values::new(self.slots);
        for (slot, tensor) in &self.constants {
            values.put(*slot, tensor.clone());
        }
        for (name, slot) in &self.inputs {
            let fed = inputs
                .get(name)
                .ok_or_else(|| TrainError::NoInput(name.clone()))?;
            values.put(*slot, fed.clone());
        }
        for (parameter, tensor) in self.parameters.iter().zip(parameters) {
            values.put(parameter.slot, tensor.clone());
        }
        let mut tape = Vec::new();
        for (number, step) in self.steps.iter().enumerate() {
            let pull = step.run(&mut values, keep)?;
            tape.extend(pull.map(|pull| (number, pull)));
            step.last_reads.iter().for_each(|&slot| values.drop(slot));
        }
        let outputs = self.outputs.iter().map(|&slot| {
            values
                .get(slot)
                .ok_or_else(|| TrainError::NoValue(format!("output {slot}")))
        });
        Ok(Trace {
            outputs: outputs.collect::<Result<_, _>>()?,
            program: self,
            tape,
        })
    }
}

impl Step {
    /// Computes the node and stores its outputs. Returns its backward pass, if it has one and `keep` is set.
    fn run(&self, values: &mut Values, keep: bool) -> Result<Option<Pull>, TrainError> {
        let inputs: Vec<Option<Tensor>> = self
            .inputs
            .iter()
            .map(|slot| slot.and_then(|slot| values.get(slot)))
            .collect();
        let made = (self.operator.run)(&Call {
            node: &self.node,
            inputs: &inputs,
            tracked: if keep { &self.tracked } else { &[] },
        });
        let made = made.map_err(|cause| self.failed(cause))?;
        for (slot, output) in self.outputs.iter().zip(made.outputs) {
            if let Some(slot) = slot {
                values.put(*slot, output);
            }
        }
        Ok(made.pull)
    }

    fn failed(&self, cause: OpError) -> TrainError {
        TrainError::Node {
            node: gqa2mla_passes::graph::label(&self.node).to_owned(),
            op: operator_name(&self.node),
            cause: Box::new(cause),
        }
    }
}

impl Trace<'_> {
    /// The gradient of every parameter from the gradients `grads` of the outputs. Outputs are dropped first, and recorded
    /// values as they are used.
    ///
    /// # Errors
    /// [`TrainError::Node`].
    pub fn backward(self, grads: Vec<Tensor>) -> Result<Vec<Tensor>, TrainError> {
        let Self {
            outputs,
            program,
            tape,
        } = self;
        drop(outputs);
        let mut sums = Values::new(program.slots);
        for (&slot, grad) in program.outputs.iter().zip(grads) {
            sums.add(slot, grad)?;
        }
        for (number, pull) in tape.into_iter().rev() {
            let Some(step) = program.steps.get(number) else {
                continue;
            };
            let of_outputs: Vec<Option<Tensor>> = step
                .outputs
                .iter()
                .map(|slot| slot.and_then(|slot| sums.take(slot)))
                .collect();
            if of_outputs.iter().all(Option::is_none) {
                continue;
            }
            let of_inputs = pull(&of_outputs).map_err(|cause| step.failed(cause))?;
            let tracked = step.inputs.iter().zip(&step.tracked);
            for ((slot, tracked), grad) in tracked.zip(of_inputs) {
                if let (Some(slot), true, Some(grad)) = (slot, tracked, grad) {
                    sums.add(*slot, grad)?;
                }
            }
        }
        let of_parameter = |parameter: &Parameter| match sums.take(parameter.slot) {
            Some(grad) => Ok(grad),
            None => Ok(Tensor::zeros(
                parameter.dims.as_slice(),
                DType::F32,
                &Device::Cpu,
            )?),
        };
        program.parameters.iter().map(of_parameter).collect()
    }
}

/// The values of a run, or their gradients.
struct Values(Vec<Option<Tensor>>);

impl Values {
    fn new(slots: usize) -> Self {
        Self(vec![None; slots])
    }

    fn get(&self, slot: Slot) -> Option<Tensor> {
        self.0.get(slot)?.clone()
    }

    fn take(&mut self, slot: Slot) -> Option<Tensor> {
        self.0.get_mut(slot)?.take()
    }

    fn put(&mut self, slot: Slot, tensor: Tensor) {
        if let Some(place) = self.0.get_mut(slot) {
            *place = Some(tensor);
        }
    }

    fn drop(&mut self, slot: Slot) {
        self.take(slot);
    }

    fn add(&mut self, slot: Slot, grad: Tensor) -> Result<(), TrainError> {
        let sum = match self.take(slot) {
            Some(sum) => (sum + grad)?,
            None => grad,
        };
        self.put(slot, sum);
        Ok(())
    }
}
