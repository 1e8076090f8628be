//! Whether a mutated model is one whose logits mean something: one that a rounding of its weights throws far off would be
//! thrown off by any rewrite.

use std::path::Path;

use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla::validate::ports::LanguageModel;
use gqa2mla::validate::{ValidateOptions, validate};
use gqa2mla_passes::onnx::tensor_proto::DataType;

use super::session;

/// How far the logits of `model` move, of the largest, when its weights are rounded to the next number of their type;
/// `None` where it does not run.
fn moves(model: &LoadedModel, folder: &Path) -> Option<f64> {
    let mut moved = model.clone();
    for tensor in &mut moved.model.proto.graph.as_mut()?.initializer {
        let width = match DataType::try_from(tensor.data_type()).ok()? {
            DataType::Float if tensor.dims.len() > 1 => 4,
            DataType::Float16 if tensor.dims.len() > 1 => 2,
            _ => continue,
        };
        let mut bytes = model.model.tensor_bytes(tensor).ok()?.to_vec();
        // The last bit of the mantissa, of every number.
        bytes.iter_mut().step_by(width).for_each(|byte| *byte ^= 1);
        tensor.raw_data = Some(bytes.into());
        tensor.external_data.clear();
        tensor.data_location = None;
        tensor.float_data.clear();
    }
    let paths = [folder.join("plain.onnx"), folder.join("moved.onnx")];
    save(model, &paths[0]).ok()?;
    save(&moved, &paths[1]).ok()?;
    let ports = LanguageModel::of(&model.model.proto).ok()?;
    let mut sessions = paths.map(|path| session(&path));
    let [Ok(plain), Ok(moved)] = &mut sessions else {
        return None;
    };
    let options = ValidateOptions {
        vocabulary: ports.vocabulary,
        tokens: None,
        seed: 1,
        right_padded_only: ports.right_padded_only,
        tolerance: Some(1.0),
    };
    let own = &ports.interface;
    let found = validate(
        plain.as_mut(),
        moved.as_mut(),
        own,
        own,
        &options,
        &mut |_, _| {},
    );
    Some(found.ok()?.max_ratio())
}

/// Whether a difference of `ratio` of the largest logit is within ten times what such a rounding does: a rewrite adds the
/// same terms in another order, which rounds some ten times.
pub fn explains(model: &LoadedModel, folder: &Path, ratio: f64) -> bool {
    moves(model, folder).is_some_and(|moved| ratio <= 10.0 * moved || moved.is_nan())
}
