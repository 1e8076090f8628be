//! The numbers of a stored matrix, in f64.

use ndarray::Array2;

use crate::graph::weight::{Scales, Weight};
use crate::onnx::stored::Model;
use crate::onnx::{TensorProto, tensor_proto::DataType};

/// Largest number of elements of a weight that is read into memory: 2 GiB of f64.
const LARGEST: usize = 1 << 28;

/// The matrix `weight` in f64, transposed if `transposed`; `None` where it is no matrix, has more than 2^28 elements, is of
/// another type, or cannot be read.
pub fn matrix(model: &Model, weight: &Weight, transposed: bool) -> Option<Array2<f64>> {
    let [rows, cols] = weight.tensor.dims.as_slice() else {
        return None;
    };
    let (rows, cols) = (usize::try_from(*rows).ok()?, usize::try_from(*cols).ok()?);
    if rows.checked_mul(cols)? > LARGEST {
        return None;
    }
    let stored = match &weight.scales {
        None => Array2::from_shape_vec((rows, cols), numbers(model, weight.tensor)?).ok()?,
        Some(scales) => {
            let integers = integers(model, weight.tensor)?;
            let integers = Array2::from_shape_vec((rows, cols), integers).ok()?;
            dequantized(model, integers, scales)?
        }
    };
    Some(match transposed != weight.is_transposed {
        true => stored.reversed_axes(),
        false => stored,
    })
}

/// `(x - zero) * scale` for each of `integers` x.
fn dequantized(model: &Model, mut integers: Array2<f64>, by: &Scales) -> Option<Array2<f64>> {
    let scales = numbers(model, by.scale)?;
    let zeros = match by.zero {
        Some(zero) => self::integers(model, zero)?,
        None => vec![0.0; scales.len()],
    };
    let axis = usize::try_from(if by.axis < 0 { by.axis + 2 } else { by.axis }).ok()?;
    let block = usize::try_from(by.block).ok()?;
    let (rows, cols) = integers.dim();
    // Where the scale of an element stands: strides of the places of both axes, and how many of them are one block.
    let blocks = |size: usize| size.div_ceil(block.max(1));
    let (strides, counted) = match (by.scale.dims.len(), axis, block) {
        (0, _, 0) => ((0, 0), 1),
        (1, _, 0) if scales.len() == 1 => ((0, 0), 1),
        (1, 0, 0) => ((1, 0), rows),
        (1, 1, 0) => ((0, 1), cols),
        (2, 0, 1..) => ((cols, 1), blocks(rows) * cols),
        (2, 1, 1..) => ((blocks(cols), 1), rows * blocks(cols)),
        _ => return None,
    };
    if scales.len() != counted || zeros.len() != counted {
        return None;
    }
    for ((row, col), x) in integers.indexed_iter_mut() {
        let (row, col) = match (block, axis) {
            (0, _) => (row, col),
            (_, 0) => (row / block, col),
            _ => (row, col / block),
        };
        let at = row * strides.0 + col * strides.1;
        *x = (*x - zeros.get(at)?) * scales.get(at)?;
    }
    Some(integers)
}

/// The elements of a tensor of integers of 4 or 8 bits; `None` if the type is another one or the data cannot be read. Two
/// elements of 4 bits are one byte, the first in its lower half.
fn integers(model: &Model, tensor: &TensorProto) -> Option<Vec<f64>> {
    let bytes = model.tensor_bytes(tensor).ok()?;
    let count = usize::try_from(tensor.dims.iter().product::<i64>()).ok()?;
    let halves = || bytes.iter().flat_map(|b| [b & 15, b >> 4]).take(count);
    let found: Vec<f64> = match DataType::try_from(tensor.data_type()).ok()? {
        DataType::Int8 => bytes.iter().map(|&b| f64::from(b.cast_signed())).collect(),
        DataType::Uint8 => bytes.iter().map(|&b| f64::from(b)).collect(),
        DataType::Uint4 => halves().map(f64::from).collect(),
        DataType::Int4 => halves()
            .map(|x| f64::from(x) - if x > 7 { 16.0 } else { 0.0 })
            .collect(),
        _ => return None,
    };
    (found.len() == count).then_some(found)
}

/// The elements of a floating-point tensor in f64; `None` if the type is another one or the data cannot be read.
pub fn numbers(model: &Model, tensor: &TensorProto) -> Option<Vec<f64>> {
    let bytes = model.tensor_bytes(tensor).ok()?;
    Some(match DataType::try_from(tensor.data_type()).ok()? {
        DataType::Float => bytes
            .chunks_exact(4)
            .filter_map(|b| Some(f32::from_le_bytes(b.try_into().ok()?).into()))
            .collect(),
        DataType::Float16 => bytes
            .chunks_exact(2)
            .filter_map(|b| Some(half::f16::from_le_bytes(b.try_into().ok()?).into()))
            .collect(),
        DataType::Bfloat16 => bytes
            .chunks_exact(2)
            .filter_map(|b| Some(half::bf16::from_le_bytes(b.try_into().ok()?).into()))
            .collect(),
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::graph::Graph;
    use crate::graph::build::node;
    use crate::onnx::GraphProto;

    fn tensor(name: &str, kind: DataType, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
        TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(kind.into()),
            dims: dims.to_vec(),
            raw_data: Some(Bytes::from(bytes)),
            ..TensorProto::default()
        }
    }

    fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor(name, DataType::Float, dims, bytes)
    }

    /// The matrix [4, 2] of the integers 1, -8; 2, 7; 3, 0; -1, 5 with `scale` and the attributes of the operator.
    fn read(scale: TensorProto, axis: i64, block: i64) -> Option<Vec<f64>> {
        let packed = vec![0x81, 0x72, 0x03, 0x5f];
        let dequantize = node("DequantizeLinear", "dq", &["x", "scale"], &["w"])
            .with_int("axis", axis)
            .with_int("block_size", block);
        let graph = GraphProto {
            initializer: vec![tensor("x", DataType::Int4, &[4, 2], packed), scale],
            node: vec![dequantize, node("Transpose", "t", &["w"], &["w_t"])],
            ..GraphProto::default()
        };
        let graph = Graph::new(&graph);
        let numbers = |value: &str, transposed: bool| {
            let weight = Weight::of(&graph, value)?;
            matrix(&Model::default(), &weight, transposed)
        };
        let found = numbers("w", false)?;
        assert_eq!(numbers("w_t", true).unwrap(), found);
        assert_eq!(numbers("w_t", false).unwrap(), found.t());
        Some(found.iter().copied().collect())
    }

    #[test]
    fn integers_are_scaled_as_a_whole_by_axis_or_by_block() {
        let whole = [1.0, -8.0, 2.0, 7.0, 3.0, 0.0, -1.0, 5.0];
        assert_eq!(read(floats("scale", &[], &[1.0]), 1, 0).unwrap(), whole);
        let columns = [1.0, -80.0, 2.0, 70.0, 3.0, 0.0, -1.0, 50.0];
        let scale = || floats("scale", &[2], &[1.0, 10.0]);
        assert_eq!(read(scale(), -1, 0).unwrap(), columns);
        // Two rows are a block: scales [2, 2].
        let blocks = [1.0, -80.0, 2.0, 70.0, 300.0, 0.0, -100.0, 5000.0];
        let scale = || floats("scale", &[2, 2], &[1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(read(scale(), 0, 2).unwrap(), blocks);
        // Scales that do not fit the weight are no scales.
        assert_eq!(read(scale(), 0, 1), None);
        assert_eq!(read(floats("scale", &[3], &[1.0; 3]), 1, 0), None);
    }
}
