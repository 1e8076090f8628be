//! The elements of short constants as text: scalars, scales, axes, shapes. Weights are never written out.

use crate::onnx::stored::inline_bytes;
use crate::onnx::{TensorProto, tensor_proto::DataType};

/// Largest number of elements that is written out.
const MOST: i64 = 8;

/// The elements of `tensor` as text, such as `[0.25,1.0]`; `None` if it has more than eight, is stored in an external
/// file, or is neither numeric nor boolean. Floats have the fewest digits that parse to the same value.
pub fn elements(tensor: &TensorProto) -> Option<String> {
    let mut sizes = tensor.dims.iter();
    let count = sizes.try_fold(1i64, |n, &size| n.checked_mul(size))?;
    if !(0..=MOST).contains(&count) {
        return None;
    }
    let kind = DataType::try_from(tensor.data_type()).ok()?;
    let bytes = inline_bytes(tensor)?;
    let texts: Vec<String> = match kind {
        DataType::Float => texts(&bytes, |b| format!("{:?}", f32::from_le_bytes(b))),
        DataType::Double => texts(&bytes, |b| format!("{:?}", f64::from_le_bytes(b))),
        DataType::Float16 => texts(&bytes, |b| {
            let exact = half::f16::from_le_bytes(b);
            shortest(exact.into(), |text| half::f16::from_f32(text) == exact)
        }),
        DataType::Bfloat16 => texts(&bytes, |b| {
            let exact = half::bf16::from_le_bytes(b);
            shortest(exact.into(), |text| half::bf16::from_f32(text) == exact)
        }),
        DataType::Int64 => texts(&bytes, |b| i64::from_le_bytes(b).to_string()),
        DataType::Int32 => texts(&bytes, |b| i32::from_le_bytes(b).to_string()),
        DataType::Int16 => texts(&bytes, |b| i16::from_le_bytes(b).to_string()),
        DataType::Int8 => texts(&bytes, |b| i8::from_le_bytes(b).to_string()),
        DataType::Uint64 => texts(&bytes, |b| u64::from_le_bytes(b).to_string()),
        DataType::Uint32 => texts(&bytes, |b| u32::from_le_bytes(b).to_string()),
        DataType::Uint16 => texts(&bytes, |b| u16::from_le_bytes(b).to_string()),
        DataType::Uint8 => texts(&bytes, |b| u8::from_le_bytes(b).to_string()),
        DataType::Bool => texts(&bytes, |[b]| (b != 0).to_string()),
        _ => return None,
    };
    Some(format!("[{}]", texts.join(",")))
}

fn texts<const N: usize>(bytes: &[u8], text: impl Fn([u8; N]) -> String) -> Vec<String> {
    let elements = bytes.chunks_exact(N).filter_map(|b| b.try_into().ok());
    elements.map(text).collect()
}

/// The decimal number of fewest digits near `value` for which `gives_back` is true.
fn shortest(value: f32, gives_back: impl Fn(f32) -> bool) -> String {
    let rounded = (0..9).filter_map(|digits| format!("{value:.digits$e}").parse::<f32>().ok());
    let found = rounded.into_iter().find(|&number| gives_back(number));
    format!("{:?}", found.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(kind: DataType, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
        TensorProto {
            dims: dims.to_vec(),
            data_type: Some(kind as i32),
            raw_data: Some(bytes.into()),
            ..TensorProto::default()
        }
    }

    #[test]
    fn a_short_constant_is_written_so_that_it_can_be_read_back() {
        let scale = tensor(DataType::Float, &[], 0.17677669f32.to_le_bytes().to_vec());
        assert_eq!(elements(&scale).as_deref(), Some("[0.17677669]"));
        let tenth = half::f16::from_f32(0.1).to_le_bytes().to_vec();
        let tenth = tensor(DataType::Float16, &[1], tenth);
        assert_eq!(elements(&tenth).as_deref(), Some("[0.1]"));
        let hidden = tensor(DataType::Float, &[], f32::MIN.to_le_bytes().to_vec());
        assert_eq!(elements(&hidden).as_deref(), Some("[-3.4028235e38]"));
        let flags = tensor(DataType::Bool, &[2], vec![1, 0]);
        assert_eq!(elements(&flags).as_deref(), Some("[true,false]"));
    }

    #[test]
    fn a_weight_is_not_written_out_nor_a_tensor_of_too_few_bytes() {
        assert_eq!(
            elements(&tensor(DataType::Float, &[3, 3], vec![0; 36])),
            None
        );
        assert_eq!(elements(&tensor(DataType::Float, &[2], vec![0; 4])), None);
        assert_eq!(elements(&tensor(DataType::Float, &[-1], vec![0; 4])), None);
    }
}
