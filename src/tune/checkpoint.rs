//! Checkpoints of training runs. A resumed run has the same result as an uninterrupted one.

use std::path::Path;

use gqa2mla_train::adamw::Trained;
use ndarray::{ArrayD, ArrayView1};

use crate::files::tensors::{Arrays, ArraysError};
use crate::tune::course::Course;

/// Kind and version of the file.
const KIND: &str = "gqa2mla training 1";

/// The state of a training run.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    /// The trained tensors with their optimizer state.
    pub tensors: Vec<Trained>,
    /// The values of each tensor at the check with the lowest loss.
    pub best: Vec<Vec<f32>>,
    /// Steps and losses so far.
    pub course: Course,
}

/// Writes `state`. `settings` identifies the inputs and options; only a run with equal settings can resume from it.
///
/// # Errors
/// [`ArraysError::Io`].
pub fn save(state: &TrainingState, settings: &str, path: &Path) -> Result<(), ArraysError> {
    let mut file = Arrays::default();
    file.text.insert("settings".to_owned(), settings.to_owned());
    let course = serde_json::to_string(&state.course).unwrap_or_default();
    file.text.insert("course".to_owned(), course);
    for (number, (tensor, best)) in state.tensors.iter().zip(&state.best).enumerate() {
        let parts = [
            ("values", &tensor.values),
            ("mean", &tensor.mean),
            ("square", &tensor.square),
            ("best", best),
        ];
        for (part, values) in parts {
            let wide: Vec<f64> = values.iter().map(|&v| v.into()).collect();
            file.put(&format!("{number}/{part}"), &ArrayView1::from(&wide));
        }
        file.put(
            &format!("{number}/scale"),
            &ArrayView1::from(&[tensor.scale]),
        );
    }
    file.save(KIND, path)
}

/// Reads a file of [`save`]; `None` if there is none with these settings and tensor sizes.
#[must_use]
pub fn load(path: &Path, settings: &str, sizes: &[usize]) -> Option<TrainingState> {
    let file = Arrays::load(KIND, path).ok()?;
    if file.entry("settings").ok()? != settings {
        return None;
    }
    let course: Course = serde_json::from_str(file.entry("course").ok()?).ok()?;
    let array = |number: usize, part: &str, size: usize| -> Option<Vec<f64>> {
        let array: &ArrayD<f64> = file.arrays.get(&format!("{number}/{part}"))?;
        (array.len() == size).then(|| array.iter().copied().collect())
    };
    let narrow = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect::<Vec<f32>>();
    let mut state = TrainingState {
        tensors: Vec::with_capacity(sizes.len()),
        best: Vec::with_capacity(sizes.len()),
        course,
    };
    for (number, &size) in sizes.iter().enumerate() {
        state.tensors.push(Trained {
            values: narrow(array(number, "values", size)?),
            mean: narrow(array(number, "mean", size)?),
            square: narrow(array(number, "square", size)?),
            scale: *array(number, "scale", 1)?.first()?,
        });
        state.best.push(narrow(array(number, "best", size)?));
    }
    Some(state)
}
