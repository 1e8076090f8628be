//! The state of a run as a file, from which a run that was stopped goes on to the same result.

use std::path::Path;

use gqa2mla_train::adamw::Trained;
use ndarray::{ArrayD, ArrayView1};

use crate::files::tensors::{Arrays, ArraysError};
use crate::tune::course::Course;

/// What the file is.
const KIND: &str = "gqa2mla training 1";

/// Everything that the next step depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The tensors in training, in the order of their names.
    pub tensors: Vec<Trained>,
    /// The values of each tensor at the best check.
    pub best: Vec<Vec<f32>>,
    /// The numbers beside them.
    pub course: Course,
}

/// Writes `state`; `settings` is what a run must have in common with this one to go on from it.
///
/// # Errors
/// [`ArraysError::Io`].
pub fn save(state: &State, settings: &str, path: &Path) -> Result<(), ArraysError> {
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

/// Reads what [`save`] has written for the same settings and for tensors of these sizes. `None` where there is nothing to
/// go on from.
#[must_use]
pub fn load(path: &Path, settings: &str, sizes: &[usize]) -> Option<State> {
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
    let mut state = State {
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
