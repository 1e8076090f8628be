//! tract, the built-in runtime.
//!
//! tract compiles a graph to a plan. For exported graphs, which compute most of their shapes, this succeeds only with
//! constant input shapes, so there is one plan per set of input shapes; the latest plans are cached.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, TValue,
    TVec, TractResult, TypedModel, TypedRunnableModel,
};
use tract_onnx::tract_core::internal::bail;

use crate::runtime::error::{RuntimeError, panic_message};
use crate::runtime::session::{RuntimeOptions, Session};
use crate::runtime::tensor::{Data, Tensor};

const NAME: &str = "tract";

/// Number of cached plans: one for prefill and one for a step. In a decode loop no shape occurs twice, and each
/// optimized plan has its own copy of the weights, so caching more would only cost memory.
const KEPT_PLANS: usize = 2;

type Signature = Vec<(DatumType, Vec<usize>)>;

/// A session of tract.
pub struct TractSession {
    model: PathBuf,
    optimize: bool,
    graph: InferenceModel,
    inputs: Vec<String>,
    outputs: Vec<String>,
    plans: VecDeque<(Signature, Arc<TypedRunnableModel>)>,
}

impl TractSession {
    /// Reads a model; plans are made when it is run.
    ///
    /// # Errors
    /// [`RuntimeError::Tract`] if tract cannot read the file.
    pub fn open(model: &Path, options: &RuntimeOptions) -> Result<Self, RuntimeError> {
        let failed = |reason: String| beyond(model, &reason);
        // Ignore declared shapes, whose symbols contradict constant input shapes.
        let framework = tract_onnx::onnx()
            .with_ignore_output_shapes(true)
            .with_ignore_value_info(true);
        let graph = guarded(|| framework.model_for_path(model)).map_err(failed)?;
        let inputs = graph
            .inputs
            .iter()
            .filter_map(|outlet| Some(graph.nodes.get(outlet.node)?.name.clone()))
            .collect();
        let outputs = graph
            .outputs
            .iter()
            .map(|&outlet| graph.outlet_label(outlet).unwrap_or_default().to_owned());
        let outputs = outputs.collect();
        let plans = VecDeque::with_capacity(KEPT_PLANS);
        Ok(Self {
            model: model.to_path_buf(),
            optimize: options.optimize,
            graph,
            inputs,
            outputs,
            plans,
        })
    }

    fn plan(&mut self, signature: Signature) -> Result<Arc<TypedRunnableModel>, String> {
        if let Some(at) = self.plans.iter().position(|(known, _)| *known == signature) {
            if let Some(used) = self.plans.remove(at) {
                self.plans.push_back(used);
            }
        } else {
            let plan = guarded(|| build(&self.graph, &signature, self.optimize))?;
            if self.plans.len() >= KEPT_PLANS {
                self.plans.pop_front();
            }
            self.plans.push_back((signature, plan));
        }
        self.plans
            .back()
            .map(|(_, plan)| Arc::clone(plan))
            .ok_or_else(|| "no plan".to_owned())
    }
}

/// The error of a model that tract cannot load or run. Further lines of `reason` print whole tensors.
fn beyond(model: &Path, reason: &str) -> RuntimeError {
    RuntimeError::Tract {
        model: model.to_path_buf(),
        reason: reason.lines().next().unwrap_or_default().to_owned(),
    }
}

fn build(
    graph: &InferenceModel,
    signature: &Signature,
    optimize: bool,
) -> TractResult<Arc<TypedRunnableModel>> {
    let mut graph = graph.clone();
    for (at, (element, shape)) in signature.iter().enumerate() {
        graph.set_input_fact(at, InferenceFact::dt_shape(*element, shape.as_slice()))?;
    }
    let typed = graph.into_typed()?;
    refuse_boolean_masks(&typed)?;
    let typed = if optimize {
        typed.into_optimized()?
    } else {
        typed
    };
    typed.into_runnable()
}

/// Refuses boolean masks of attention operators: tract adds masks of any type to the scores, so the results would be
/// wrong without an error.
fn refuse_boolean_masks(graph: &TypedModel) -> TractResult<()> {
    for node in graph.nodes.iter().filter(|node| node.op.name() == "SDPA") {
        for fact in graph.node_input_facts(node.id)? {
            if fact.datum_type == DatumType::Bool {
                bail!(
                    "node {} ({}): tract does not take boolean attention masks",
                    node.name,
                    node.op.name()
                );
            }
        }
    }
    Ok(())
}

/// Calls `work` and turns tract's errors and panics into text. tract panics on some unexpected graphs.
fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(payload) => Err(format!("it panicked: {}", panic_message(&*payload))),
    }
}

impl Session for TractSession {
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        let mut values: TVec<TValue> = TVec::new();
        for name in &self.inputs {
            let given = inputs.iter().find(|(given, _)| given == name);
            let (_, tensor) =
                given.ok_or_else(|| self.failed(format!("input {name} was not given")))?;
            values.push(import(name, tensor, &self.model)?);
        }
        let signature = values
            .iter()
            .map(|value| (value.datum_type(), value.shape().to_vec()))
            .collect();
        let plan = self.plan(signature).map_err(|reason| self.failed(reason))?;
        let results = guarded(|| plan.run(values)).map_err(|reason| self.failed(reason))?;
        let named = self.outputs.iter().zip(&results);
        named
            .map(|(name, value)| Ok((name.clone(), export(name, value, &self.model)?)))
            .collect()
    }

    fn describe(&self) -> String {
        format!(
            "tract 0.23.9, CPU, optimizations {}",
            if self.optimize { "on" } else { "off" }
        )
    }
}

impl TractSession {
    fn failed(&self, reason: String) -> RuntimeError {
        beyond(&self.model, &reason)
    }
}

fn import(name: &str, tensor: &Tensor, model: &Path) -> Result<TValue, RuntimeError> {
    use tract_onnx::prelude::Tensor as TractTensor;
    let shape = tensor.shape.as_slice();
    let value = match &tensor.data {
        Data::F32(v) => TractTensor::from_shape(shape, v),
        Data::F16(v) => TractTensor::from_shape(shape, v),
        Data::I64(v) => TractTensor::from_shape(shape, v),
        Data::I32(v) => TractTensor::from_shape(shape, v),
        Data::I8(v) => TractTensor::from_shape(shape, v),
        Data::U8(v) => TractTensor::from_shape(shape, v),
        Data::Bool(v) => TractTensor::from_shape(shape, v),
        Data::BF16(_) => {
            return Err(RuntimeError::ElementType {
                name: name.to_owned(),
                element: "bf16".to_owned(),
                runtime: NAME,
            });
        }
    };
    let value = value.map_err(|error| beyond(model, &format!("input {name}: {error:#}")))?;
    Ok(value.into())
}

fn export(name: &str, value: &TValue, model: &Path) -> Result<Tensor, RuntimeError> {
    let failed = |error: tract_onnx::prelude::TractError| {
        beyond(model, &format!("output {name}: {error:#}"))
    };
    macro_rules! elements {
        ($type:ty, $value:expr) => {
            $value
                .to_plain_array_view::<$type>()
                .map_err(failed)?
                .iter()
                .copied()
                .collect::<Vec<$type>>()
        };
    }
    let data = match value.datum_type() {
        DatumType::F32 => Data::F32(elements!(f32, value)),
        DatumType::F16 => Data::F16(elements!(half::f16, value)),
        DatumType::I64 => Data::I64(elements!(i64, value)),
        DatumType::I32 => Data::I32(elements!(i32, value)),
        DatumType::I8 => Data::I8(elements!(i8, value)),
        DatumType::U8 => Data::U8(elements!(u8, value)),
        DatumType::Bool => Data::Bool(elements!(bool, value)),
        // tract represents integers that it recognises as sizes by `TDim`.
        DatumType::TDim => {
            let integers = value.cast_to::<i64>().map_err(failed)?;
            Data::I64(elements!(i64, integers))
        }
        other => {
            return Err(RuntimeError::ElementType {
                name: name.to_owned(),
                element: format!("{other:?}"),
                runtime: NAME,
            });
        }
    };
    Tensor::new(value.shape().to_vec(), data)
}
