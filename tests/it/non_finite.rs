//! What becomes of an infinite or undefined number in one cached head: all heads of a layer share a latent product, so that
//! it reaches every head.

use crate::common::{SINGLE, loaded, rewritten, session};
use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla::runtime::tensor::{Data, ElementType, Tensor};
use gqa2mla::runtime::{RuntimeKind, Session};
use gqa2mla_passes::RewriteOptions;

/// `dynamo18-llama`: two layers, G = 2 KV heads, d = 16 channels; P = 3 past tokens.
const NAME: &str = "dynamo18-llama";
const HEADS: usize = 2;
const SIZE: usize = 16;
const PAST: usize = 3;

/// A number in the past of the first layer that is not finite.
#[derive(Debug, Clone, Copy)]
struct Odd {
    side: &'static str,
    head: usize,
    row: usize,
    channel: usize,
    number: f32,
}

fn open(model: &LoadedModel, folder: &std::path::Path, name: &str) -> Box<dyn Session> {
    let path = folder.join(name);
    save(model, &path).unwrap();
    session(&path, RuntimeKind::Ort).unwrap()
}

/// The past [1, G, P, d] of one side of a layer, or the same rows as latents [1, 1, P, G*d], the heads side by side.
fn past(layer: usize, side: &str, odd: Odd, latent: bool) -> Tensor {
    let mut values = vec![0.0; HEADS * PAST * SIZE];
    for head in 0..HEADS {
        for row in 0..PAST {
            for channel in 0..SIZE {
                let at = match latent {
                    true => (row * HEADS + head) * SIZE + channel,
                    false => (head * PAST + row) * SIZE + channel,
                };
                let is_odd = layer == 0
                    && side == odd.side
                    && (head, row, channel) == (odd.head, odd.row, odd.channel);
                let plain = ((7 * head + 5 * row + 3 * channel + layer) % 11) as f32 / 11.0 - 0.5;
                values[at] = if is_odd { odd.number } else { plain };
            }
        }
    }
    let shape = match latent {
        true => vec![1, 1, PAST, HEADS * SIZE],
        false => vec![1, HEADS, PAST, SIZE],
    };
    Tensor::from_floats(ElementType::F32, shape, values).unwrap()
}

fn logits(model: &mut dyn Session, odd: Odd, latent: bool) -> Vec<f32> {
    let integers = |shape: Vec<usize>, values: &[i64]| {
        Tensor::from_integers(ElementType::I64, shape, values).unwrap()
    };
    let mut inputs = vec![
        ("input_ids".to_owned(), integers(vec![1, 1], &[5])),
        (
            "attention_mask".to_owned(),
            integers(vec![1, PAST + 1], &[1; PAST + 1]),
        ),
        (
            "position_ids".to_owned(),
            integers(vec![1, 1], &[PAST as i64]),
        ),
    ];
    for layer in 0..2 {
        for side in ["key", "value"] {
            let name = format!("past_key_values.{layer}.{side}");
            inputs.push((name, past(layer, side, odd, latent)));
        }
    }
    let outputs = model.run(&inputs).unwrap();
    match &outputs
        .iter()
        .find(|(name, _)| name == "logits")
        .unwrap()
        .1
        .data
    {
        Data::F32(values) => values.clone(),
        other => panic!("{other:?}"),
    }
}

/// Whether both are undefined somewhere, or both finite and the same.
fn agree(expected: &[f32], found: &[f32]) -> bool {
    let is_finite = |logits: &[f32]| logits.iter().all(|x| x.is_finite());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let off = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
    let ratio = off.fold(0.0, f32::max) / largest;
    is_finite(expected) == is_finite(found) && (!is_finite(expected) || f64::from(ratio) < SINGLE)
}

/// An undefined value makes undefined what any head makes of it, as 0 times infinity is undefined. The exporter replaces
/// undefined probabilities by zeros, so that an infinite key silences the heads that read it: those of its group in the
/// original, and all of the layer in the rewritten model.
#[test]
fn a_value_that_is_not_finite_shows_in_both_models_and_a_key_reaches_all_heads() {
    let place = tempfile::tempdir().unwrap();
    let before = loaded(NAME);
    let mut after = before.clone();
    rewritten(&mut after, RewriteOptions::default()).unwrap();
    let mut original = open(&before, place.path(), "original.onnx");
    let mut latent = open(&after, place.path(), "latent.onnx");
    let mut reached = 0;
    for side in ["key", "value"] {
        for number in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.25] {
            for (head, channel) in (0..HEADS).flat_map(|h| (0..SIZE).map(move |c| (h, c))) {
                let odd = Odd {
                    side,
                    head,
                    row: 1,
                    channel,
                    number,
                };
                let expected = logits(original.as_mut(), odd, false);
                let found = logits(latent.as_mut(), odd, true);
                let same = agree(&expected, &found);
                let finite = found.iter().all(|x| x.is_finite());
                assert!(finite || !number.is_finite(), "{odd:?}");
                assert!(same || (side == "key" && !number.is_finite()), "{odd:?}");
                reached += usize::from(!same);
            }
        }
    }
    assert!(
        reached > 0,
        "docs/method.md says that heads share such a key"
    );
}
