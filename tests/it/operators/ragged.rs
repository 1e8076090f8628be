//! Batches whose rows hold different numbers of tokens, in models that count positions from the mask.

use crate::common::{SINGLE, grouped, loaded, rewritten};
use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla::runtime::tensor::{Data, ElementType, Tensor};
use gqa2mla::runtime::{RuntimeKind, RuntimeOptions, open};
use gqa2mla_passes::{Absorbed, Form, RewriteOptions};

/// Two steps of a right-padded batch: row 0 has five tokens and then a sixth, row 1 has eight and then a ninth. Gives the
/// logits [2, vocabulary] that follow each row's last token.
fn ragged_logits(
    model: &LoadedModel,
    (heads, size): (usize, usize),
    optimize: bool,
) -> Result<Vec<f32>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    save(model, &path).unwrap();
    let options = RuntimeOptions {
        runtime: RuntimeKind::Ort,
        optimize,
        threads: 1,
        ..RuntimeOptions::default()
    };
    let mut session = open(&path, &options).map_err(|e| e.to_string())?;
    let integers = |shape: [usize; 2], values: Vec<i64>| {
        Tensor::new(shape.to_vec(), Data::I64(values)).unwrap()
    };
    let mut inputs = vec![
        ("input_ids".to_owned(), integers([2, 8], (1..17).collect())),
        (
            "attention_mask".to_owned(),
            integers([2, 8], [[1, 1, 1, 1, 1, 0, 0, 0], [1; 8]].concat()),
        ),
    ];
    for layer in 0..2 {
        for side in ["key", "value"] {
            let empty = Tensor::zeros(ElementType::F32, vec![2, heads, 0, size]).unwrap();
            inputs.push((format!("past_key_values.{layer}.{side}"), empty));
        }
    }
    let first = session.run(&inputs).map_err(|e| e.to_string())?;
    let mut inputs = vec![
        ("input_ids".to_owned(), integers([2, 1], vec![20, 21])),
        (
            "attention_mask".to_owned(),
            integers([2, 9], [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1; 9]].concat()),
        ),
    ];
    for (name, tensor) in first {
        if let Some(rest) = name.strip_prefix("present.") {
            inputs.push((format!("past_key_values.{rest}"), tensor));
        }
    }
    let second = session.run(&inputs).map_err(|e| e.to_string())?;
    let logits = second.into_iter().find(|(name, _)| name == "logits");
    Ok(logits.unwrap().1.to_f32())
}

/// The lowering appends at the end for every row alike. A row that is shorter stops the run, at a node whose name
/// says what is wrong; the operator's own form goes on and computes the same.
#[test]
fn ragged_rows_never_give_a_silent_difference() {
    let expected = ragged_logits(&loaded("genai-llama"), (2, 16), false).unwrap();
    let ran = |form: &dyn Form, optimize| {
        let mut model = loaded("genai-llama");
        let options = RewriteOptions {
            form,
            ..RewriteOptions::default()
        };
        rewritten(&mut model, options).unwrap();
        ragged_logits(&model, (1, 32), optimize)
    };
    // The runtime's optimizations must not take the check away.
    for optimize in [false, true] {
        let error = ran(&Absorbed, optimize).unwrap_err();
        assert!(
            error.contains("every_row_must_hold_past_plus_new_tokens"),
            "{error}"
        );
    }
    let logits = ran(grouped(), false).unwrap();
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (before, after) in expected.iter().zip(&logits) {
        assert!(
            (before - after).abs() <= SINGLE as f32 * largest,
            "{before} became {after}"
        );
    }
    assert_eq!(expected.len(), logits.len());
}
