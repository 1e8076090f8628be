//! Tells models apart by what they hold.

use gqa2mla_passes::onnx::stored::{Model, TensorError, visit_tensors};
use prost::Message;

/// A short text that is the same for the same graph with the same weights, wherever its files are, and differs for a
/// model that was trained or exported anew. It guards against mistakes, not against malice.
///
/// # Errors
/// [`TensorError`] when the bytes of a weight cannot be had.
pub fn identity(model: &Model) -> Result<String, TensorError> {
    let mut weights = crc32fast::Hasher::new();
    let mut proto = model.proto.clone();
    visit_tensors(&mut proto, &mut |tensor, _| {
        weights.update(&model.tensor_bytes(tensor)?);
        // Where the bytes are does not matter, they count as weights already.
        tensor.external_data.clear();
        tensor.data_location = None;
        tensor.raw_data = None;
        Ok::<(), TensorError>(())
    })?;
    let graph = crc32fast::hash(&proto.encode_to_vec());
    Ok(format!("{graph:08x}-{:08x}", weights.finalize()))
}
