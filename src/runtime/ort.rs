//! ONNX Runtime, through the `ort` crate.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session as OrtSessionInner, SessionInputValue};
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};

use crate::runtime::aborted::Running;
use crate::runtime::error::{RuntimeError, panic_message};
use crate::runtime::library::{guarded, load};
use crate::runtime::locate::{Surroundings, locate};
use crate::runtime::placement::Profile;
use crate::runtime::session::{Provider, RuntimeOptions, Session};
use crate::runtime::tensor::{Data, Tensor};

const NAME: &str = "ONNX Runtime";
/// Session option: the folder of the data files of a model that is loaded from memory
/// (onnxruntime_session_options_config_keys.h).
const DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A session of ONNX Runtime.
pub struct OrtSession {
    model: PathBuf,
    description: String,
    session: OrtSessionInner,
    /// For a device other than the CPU: the profile of the first runs, which must show that the device ran the nodes.
    profile: Option<Profile>,
}

/// Opens a model, and loads the library if necessary. With `messages`, this encoded model is run with the data files of
/// `model`.
///
/// # Errors
/// As [`crate::runtime::open`].
pub fn open(
    model: &Path,
    messages: Option<&[u8]>,
    options: &RuntimeOptions,
) -> Result<OrtSession, RuntimeError> {
    let located = locate(options.onnxruntime.as_deref(), &Surroundings::of_process())?;
    let (environment, version) = load(&located, options.onnxruntime.is_some())?;
    let failed = |reason| match options.provider {
        Provider::Cpu => RuntimeError::Load {
            model: model.to_path_buf(),
            runtime: NAME,
            reason,
        },
        Provider::Cuda => elsewhere(model, reason),
    };
    let profile = match options.provider {
        Provider::Cpu => None,
        Provider::Cuda => Some(Profile::new().map_err(|error| failed(error.to_string()))?),
    };
    let running = Running::of(model);
    let opened = guarded(|| commit(&environment, model, messages, options, profile.as_ref()));
    drop(running);
    let session = opened.map_err(failed)?;
    let device = match options.provider {
        Provider::Cpu => "CPU",
        Provider::Cuda => "CUDA",
    };
    let optimizations = if options.optimize { "on" } else { "off" };
    let description = format!("{NAME} {version}, {device}, optimizations {optimizations}");
    Ok(OrtSession {
        model: model.to_path_buf(),
        description,
        session,
        profile,
    })
}

/// The error of a model that cannot run on CUDA, with the reason.
fn elsewhere(model: &Path, reason: String) -> RuntimeError {
    RuntimeError::Provider {
        model: model.to_path_buf(),
        provider: "CUDA",
        reason,
    }
}

fn commit(
    environment: &Environment,
    model: &Path,
    messages: Option<&[u8]>,
    options: &RuntimeOptions,
    profile: Option<&Profile>,
) -> Result<OrtSessionInner, String> {
    let words = |error: ort::Error<SessionBuilder>| error.to_string();
    let level = if options.optimize {
        GraphOptimizationLevel::All
    } else {
        GraphOptimizationLevel::Disable
    };
    let mut builder = OrtSessionInner::builder(environment).map_err(|error| error.to_string())?;
    builder = builder.with_optimization_level(level).map_err(words)?;
    // Threads that spin after a run would slow down other sessions, which benchmarks run alternately with this one.
    builder = builder
        .with_config_entry("session.force_spinning_stop", "1")
        .map_err(words)?;
    if options.threads > 0 {
        builder = builder.with_intra_threads(options.threads).map_err(words)?;
    }
    if options.provider == Provider::Cuda {
        if !ep::CUDA::is_available().map_err(|error| error.to_string())? {
            return Err(
                "this build of ONNX Runtime has no CUDA provider; install onnxruntime-gpu"
                    .to_owned(),
            );
        }
        // TF32 products keep 10 bits of fp32's 23, which would hide an error of the graph behind a larger tolerance.
        let cuda = ep::CUDA::default().with_tf32(false);
        builder = builder
            .with_execution_providers([cuda.build().error_on_failure()])
            .map_err(words)?;
    }
    if let Some(profile) = profile {
        builder = builder.with_profiling(profile.prefix()).map_err(words)?;
    }
    let Some(messages) = messages else {
        return builder
            .commit_from_file(model)
            .map_err(|error| error.to_string());
    };
    let folder = match model.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    builder
        .with_config_entry(DATA_FOLDER, folder.to_string_lossy())
        .map_err(words)?
        .commit_from_memory(messages)
        .map_err(|error| error.to_string())
}

impl OrtSession {
    /// The session itself.
    pub(super) fn inner(&self) -> &OrtSessionInner {
        &self.session
    }

    /// To be kept while the session runs.
    pub(super) fn running(&self) -> Running {
        Running::of(&self.model)
    }

    /// The session itself, to run it.
    pub(super) fn inner_mut(&mut self) -> &mut OrtSessionInner {
        &mut self.session
    }

    /// Checks after the first run that the device ran the nodes: a session without the device, or with nodes without a
    /// kernel on it, runs on the CPU and reports success.
    ///
    /// # Errors
    /// [`RuntimeError::Provider`] names nodes that ran on the CPU.
    pub(super) fn check_placement(&mut self) -> Result<(), RuntimeError> {
        let complete = |profile: &mut Profile| profile.has_all_after_this();
        let Some(profile) = self.profile.take_if(complete) else {
            return Ok(());
        };
        let path = self.session.end_profiling();
        let path = path.map_err(|error| self.failed(&error))?;
        profile
            .check(Path::new(&path))
            .map_err(|reason| elsewhere(&self.model, reason))
    }

    /// The error of a run that failed for `reason`.
    pub(super) fn failed(&self, reason: &impl ToString) -> RuntimeError {
        RuntimeError::Run {
            model: self.model.clone(),
            runtime: NAME,
            reason: reason.to_string(),
        }
    }
}

impl Session for OrtSession {
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        let failed = |model: &Path, reason: String| RuntimeError::Run {
            model: model.to_path_buf(),
            runtime: NAME,
            reason,
        };
        let mut values = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            let value = view(tensor)
                .map_err(|error| failed(&self.model, format!("input {name}: {error}")))?;
            values.push((Cow::Borrowed(name.as_str()), value));
        }
        let running = Running::of(&self.model);
        let session = &mut self.session;
        let outputs = catch_unwind(AssertUnwindSafe(move || session.run(values)))
            .map_err(|payload| failed(&self.model, panic_message(&*payload)))?
            .map_err(|error| failed(&self.model, error.to_string()))?;
        drop(running);
        let copied = outputs
            .iter()
            .map(|(name, value)| Ok((name.to_owned(), copy(name, &value, &self.model)?)));
        let copied = copied.collect::<Result<_, RuntimeError>>()?;
        drop(outputs);
        self.check_placement()?;
        Ok(copied)
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

fn view(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let shape = tensor.shape.as_slice();
    Ok(match &tensor.data {
        Data::F32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::F16(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::BF16(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::I64(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::I32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::I8(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::U8(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::Bool(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
    })
}

fn copy(name: &str, value: &DynValue, model: &Path) -> Result<Tensor, RuntimeError> {
    let odd = |element: String| RuntimeError::ElementType {
        name: name.to_owned(),
        element,
        runtime: NAME,
    };
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(odd("that is not a tensor".to_owned()));
    };
    let shape: Vec<usize> = shape
        .iter()
        .map(|&d| usize::try_from(d).unwrap_or(0))
        .collect();
    let failed = |error: ort::Error| RuntimeError::Run {
        model: model.to_path_buf(),
        runtime: NAME,
        reason: format!("output {name}: {error}"),
    };
    // An empty tensor has a null pointer, which must not become a slice.
    macro_rules! elements {
        ($type:ty) => {
            if shape.contains(&0) {
                Vec::<$type>::new()
            } else {
                value
                    .try_extract_tensor::<$type>()
                    .map_err(failed)?
                    .1
                    .to_vec()
            }
        };
    }
    let data = match ty {
        TensorElementType::Float32 => Data::F32(elements!(f32)),
        TensorElementType::Float16 => Data::F16(elements!(half::f16)),
        TensorElementType::Bfloat16 => Data::BF16(elements!(half::bf16)),
        TensorElementType::Int64 => Data::I64(elements!(i64)),
        TensorElementType::Int32 => Data::I32(elements!(i32)),
        TensorElementType::Int8 => Data::I8(elements!(i8)),
        TensorElementType::Uint8 => Data::U8(elements!(u8)),
        TensorElementType::Bool => Data::Bool(elements!(bool)),
        other => return Err(odd(other.to_string())),
    };
    Tensor::new(shape, data)
}
