//! What is done with a mutant: everything that the command does before it writes or runs a model.

use std::fs;
use std::path::Path;

use gqa2mla::files::load::load;
use gqa2mla_passes::{RankPlan, RewriteOptions, by_weights, forms, inspect, rewrite};

use crate::choices::Choices;

/// How far a mutant came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The file is no model, or its tensors cannot be what they claim.
    NotLoaded,
    /// The graph breaks a rule of ONNX.
    NotWellFormed,
    /// Nothing, or not in the asked form, is rewritten; the reason was given.
    Refused,
    /// Rewritten.
    Rewritten,
}

/// Reads `bytes` as the model of the folder `place`, inspects it and rewrites it in one of the ways there are.
///
/// # Panics
/// Where the library panics, or reports an internal error: a rewrite that contradicts itself is a fault of the rewrite,
/// whatever the model was.
pub fn attempt(place: &Path, bytes: &[u8], choices: &mut Choices<'_>) -> Ending {
    // Threads share a folder for the data file's sake, not a file.
    let path = place.join(format!("{:?}.onnx", std::thread::current().id()));
    fs::write(&path, bytes).unwrap();
    let Ok(mut model) = load(&path) else {
        return Ending::NotLoaded;
    };
    if inspect(&model.model).is_err() {
        return Ending::NotWellFormed;
    }
    let options = options(choices);
    let done = rewrite(
        &mut model.model,
        &options,
        &mut by_weights,
        &mut |tensor| Ok(tensor),
        &mut |_, _| {},
    );
    match done {
        Ok(_) => {
            let again = inspect(&model.model);
            assert!(again.is_ok(), "the rewritten model is not well-formed");
            Ending::Rewritten
        }
        Err(error) => {
            assert!(!error.to_string().contains("internal error"), "{error}");
            Ending::Refused
        }
    }
}

fn options(choices: &mut Choices<'_>) -> RewriteOptions<'static> {
    let ranks = match choices.below(4) {
        0 | 1 => RankPlan::Full,
        2 => RankPlan::Uniform(1 + choices.below(40)),
        _ => RankPlan::Ratio(choices.pick(&[0.01, 0.5, 0.9, 1.0])),
    };
    RewriteOptions {
        ranks,
        allow_partial: !choices.once_in(4),
        form: choices.pick(forms::ALL),
        context: Some(64),
        ..RewriteOptions::default()
    }
}
