//! Checkpoints of training runs. A resumed run has the same result as an uninterrupted one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::path::Path;

use candle_core::{Device, Tensor};
use gqa2mla_train::adamw::Trained;
use gqa2mla_train::kernels::read;
use safetensors::tensor::{Dtype, SafeTensors, View, serialize_to_file};

use crate::files::mapped::Source;
use crate::files::staging::Staging;
use crate::files::tensors::{ArraysError, FORMAT};
use crate::tune::course::Course;

/// Kind and version of the file.
const KIND: &str = "gqa2mla training 2";
/// The beginning of the format of every version.
const KIND_OF_ANY_VERSION: &str = "gqa2mla training";

/// The state of a training run.
#[derive(Debug, Clone)]
pub struct TrainingState {
    /// The trained tensors with their optimizer state.
    pub tensors: Vec<Trained>,
    /// The values of each tensor at the check with the lowest loss.
    pub best: Vec<Tensor>,
    /// Steps and losses so far.
    pub course: Course,
}

impl TrainingState {
    /// The values of the trained tensors.
    #[must_use]
    pub fn parameters(&self) -> Vec<Tensor> {
        self.tensors.iter().map(|t| t.values.clone()).collect()
    }
}

/// Numbers of the file. They become bytes one tensor at a time, so that the file is never in memory as a whole.
enum Part<'s> {
    Tensor(&'s Tensor, Vec<usize>),
    Moments(&'s [f32], Vec<usize>),
}

impl<'s> Part<'s> {
    fn tensor(tensor: &'s Tensor) -> Self {
        Self::Tensor(tensor, vec![tensor.elem_count()])
    }

    fn moments(values: &'s [f32]) -> Self {
        Self::Moments(values, vec![values.len()])
    }
}

impl View for Part<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Tensor(_, shape) | Self::Moments(_, shape) => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let encoded = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Cow::Owned(match self {
            Self::Tensor(tensor, _) => read(tensor, encoded).unwrap_or_default(),
            Self::Moments(values, _) => encoded(values),
        })
    }

    fn data_len(&self) -> usize {
        self.shape().iter().product::<usize>() * size_of::<f32>()
    }
}

/// Writes `state`. `settings` identifies the inputs and options; only a run with equal settings can resume from it.
///
/// # Errors
/// [`ArraysError::Io`] and [`ArraysError::Staging`].
pub fn save(state: &TrainingState, settings: &str, path: &Path) -> Result<(), ArraysError> {
    let course = serde_json::to_string(&state.course).unwrap_or_default();
    let scales: Vec<f64> = state.tensors.iter().map(|t| t.scale).collect();
    let scales = serde_json::to_string(&scales).unwrap_or_default();
    let text = HashMap::from([
        (FORMAT.to_owned(), KIND.to_owned()),
        ("settings".to_owned(), settings.to_owned()),
        ("course".to_owned(), course),
        ("scales".to_owned(), scales),
    ]);
    let states = state.tensors.iter().zip(&state.best).enumerate();
    let parts = states.flat_map(|(number, (tensor, best))| {
        [
            (format!("{number}/values"), Part::tensor(&tensor.values)),
            (format!("{number}/mean"), Part::moments(&tensor.mean)),
            (format!("{number}/square"), Part::moments(&tensor.square)),
            (format!("{number}/best"), Part::tensor(best)),
        ]
    });
    let staging = Staging::file(path)?;
    serialize_to_file(parts, Some(text), &staging.staged()).map_err(|e| ArraysError::Io {
        path: path.display().to_string(),
        cause: io::Error::other(e.to_string()),
    })?;
    staging.publish()?;
    Ok(())
}

/// Whether `path` is a file of [`save`], whatever its inputs.
#[must_use]
pub fn is_state(path: &Path) -> bool {
    let Ok(source) = Source::map(path) else {
        return false;
    };
    let header = SafeTensors::read_metadata(source.bytes());
    let kind = header.ok().and_then(|(_, header)| {
        let text = header.metadata().as_ref()?;
        text.get(FORMAT).cloned()
    });
    kind.is_some_and(|kind| kind.starts_with(KIND_OF_ANY_VERSION))
}

/// Reads a file of [`save`]; `None` if there is none with these settings and tensor shapes.
#[must_use]
pub fn load(path: &Path, settings: &str, shapes: &[&[usize]]) -> Option<TrainingState> {
    let source = Source::map(path).ok()?;
    let (_, header) = SafeTensors::read_metadata(source.bytes()).ok()?;
    let text = header.metadata().as_ref()?;
    if text.get(FORMAT)? != KIND || text.get("settings")? != settings {
        return None;
    }
    let file = SafeTensors::deserialize(source.bytes()).ok()?;
    let scales: Vec<f64> = serde_json::from_str(text.get("scales")?).ok()?;
    let mut state = TrainingState {
        tensors: Vec::with_capacity(shapes.len()),
        best: Vec::with_capacity(shapes.len()),
        course: serde_json::from_str(text.get("course")?).ok()?,
    };
    for (number, (&shape, scale)) in shapes.iter().zip(scales).enumerate() {
        let numbers = |part: &str| -> Option<Vec<f32>> {
            let part = file.tensor(&format!("{number}/{part}")).ok()?;
            let is_whole =
                part.dtype() == Dtype::F32 && part.shape() == [shape.iter().product::<usize>()];
            is_whole.then(|| {
                let (numbers, _) = part.data().as_chunks();
                numbers
                    .iter()
                    .map(|&bytes| f32::from_le_bytes(bytes))
                    .collect()
            })
        };
        let tensor = |part: &str| Tensor::from_vec(numbers(part)?, shape, &Device::Cpu).ok();
        state.tensors.push(Trained {
            values: tensor("values")?,
            mean: numbers("mean")?,
            square: numbers("square")?,
            scale,
        });
        state.best.push(tensor("best")?);
    }
    (state.tensors.len() == shapes.len()).then_some(state)
}
