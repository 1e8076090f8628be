//! Identity of a model by checksums of its content.

use gqa2mla_passes::onnx::stored::{Model, TensorError, visit_tensors};
use prost::Message;

/// A short text that is equal for equal graphs with equal weights, independent of their files, and differs after
/// another training or export. It consists of CRC-32 checksums, which detect mistakes but not manipulation.
///
/// # Errors
/// [`TensorError`] if the bytes of a weight cannot be read.
pub fn identity(model: &Model) -> Result<String, TensorError> {
    let mut weights = crc32fast::Hasher::new();
    let mut proto = model.proto.clone();
    visit_tensors(&mut proto, &mut |tensor, _| {
        weights.update(&model.tensor_bytes(tensor)?);
        // The bytes are in the checksum of the weights; their location does not matter.
        tensor.external_data.clear();
        tensor.data_location = None;
        tensor.raw_data = None;
        Ok::<(), TensorError>(())
    })?;
    let graph = crc32fast::hash(&proto.encode_to_vec());
    Ok(format!("{graph:08x}-{:08x}", weights.finalize()))
}
