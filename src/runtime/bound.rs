//! Runs of a model whose inputs and outputs are bound once, so that no run copies them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::value::{DynTensor, Tensor as OrtTensor};

use crate::runtime::error::{RuntimeError, panic_message};
use crate::runtime::ort::OrtSession;
use crate::runtime::session::Provider;
use crate::runtime::tensor::{Data, Tensor};

/// A model with bound inputs and outputs, for any number of runs.
pub struct BoundRun<'s> {
    session: &'s mut OrtSession,
    binding: IoBinding,
    /// Outputs that the runtime allocates in every run, as in a decode loop with growing caches.
    allocated: Vec<String>,
    memory: MemoryInfo<'static>,
}

impl OrtSession {
    /// Binds `inputs` and all outputs. Each pair of `in_place` names an input and an output that share the input's
    /// memory. The runtime allocates the other outputs on the device that computes them.
    ///
    /// # Errors
    /// [`RuntimeError::Run`] with the runtime's message.
    pub fn bind(
        &mut self,
        inputs: &[(String, Tensor)],
        in_place: &[(String, String)],
        provider: Provider,
    ) -> Result<BoundRun<'_>, RuntimeError> {
        let device = match provider {
            Provider::Cpu => AllocationDevice::CPU,
            Provider::Cuda => AllocationDevice::CUDA,
        };
        let bound = || {
            let memory = MemoryInfo::new(
                device.clone(),
                0,
                AllocatorType::Device,
                MemoryType::Default,
            )?;
            let mut binding = self.inner().create_binding()?;
            for (name, tensor) in inputs {
                let mut value = owned(tensor)?;
                // A decoding loop keeps its caches on the device, and feeds token ids, masks and positions from outside.
                if provider == Provider::Cuda && is_cache(&tensor.data) {
                    value = value.to(device.clone(), 0)?;
                }
                binding.bind_input(name.as_str(), &value)?;
                if let Some((_, output)) = in_place.iter().find(|(input, _)| input == name) {
                    binding.bind_output(output.as_str(), &mut value)?;
                }
            }
            Ok((memory, binding))
        };
        let (memory, binding) = bound().map_err(|error: ort::Error| self.failed(&error))?;
        let outputs = self.inner().outputs().iter();
        let shares = |name: &str| in_place.iter().any(|(_, output)| output == name);
        let allocated = outputs.map(|output| output.name().to_owned());
        Ok(BoundRun {
            allocated: allocated.filter(|name| !shares(name)).collect(),
            session: self,
            binding,
            memory,
        })
    }
}

impl BoundRun<'_> {
    /// Releases the outputs of the last run, so that the next run allocates its own.
    ///
    /// # Errors
    /// [`RuntimeError::Run`] with the runtime's message.
    pub fn release(&mut self) -> Result<(), RuntimeError> {
        for name in &self.allocated {
            let bound = self
                .binding
                .bind_output_to_device(name.as_str(), &self.memory);
            bound.map_err(|error| self.session.failed(&error))?;
        }
        Ok(())
    }

    /// Runs the model once.
    ///
    /// # Errors
    /// [`RuntimeError::Run`] with the runtime's message.
    pub fn run(&mut self) -> Result<(), RuntimeError> {
        let _running = self.session.running();
        let (session, binding) = (self.session.inner_mut(), &self.binding);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            session
                .run_binding(binding)
                .map(drop)
                .map_err(|error| error.to_string())
        }));
        let ran = ran.unwrap_or_else(|payload| Err(panic_message(&*payload)));
        ran.map_err(|reason| self.session.failed(&reason))?;
        self.session.check_placement()
    }
}

/// Whether an input of a decoder with these elements is a cache: token ids, masks and positions are wider integers.
fn is_cache(data: &Data) -> bool {
    let index = matches!(data, Data::I64(_) | Data::I32(_) | Data::Bool(_));
    !index && !data.is_empty()
}

/// A copy of the tensor in memory of the runtime, which an input and an output can share.
fn owned(tensor: &Tensor) -> ort::Result<DynTensor> {
    let allocator = Allocator::default();
    macro_rules! filled {
        ($type:ty, $elements:expr) => {{
            let mut value = OrtTensor::<$type>::new(&allocator, tensor.shape.as_slice())?;
            // An empty tensor has a null pointer, which must not become a slice.
            if !$elements.is_empty() {
                value
                    .try_extract_tensor_mut::<$type>()?
                    .1
                    .copy_from_slice($elements);
            }
            value.upcast()
        }};
    }
    Ok(match &tensor.data {
        Data::F32(v) => filled!(f32, v),
        Data::F16(v) => filled!(half::f16, v),
        Data::BF16(v) => filled!(half::bf16, v),
        Data::I64(v) => filled!(i64, v),
        Data::I32(v) => filled!(i32, v),
        Data::I8(v) => filled!(i8, v),
        Data::U8(v) => filled!(u8, v),
        Data::Bool(v) => filled!(bool, v),
    })
}
