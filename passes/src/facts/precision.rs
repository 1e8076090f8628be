//! Lossless conversions between element types.

use crate::onnx::tensor_proto::DataType;

/// Whether a cast from `from` to `to` preserves every value. False for types that are neither floats nor integers.
pub fn holds(to: i32, from: i32) -> bool {
    if to == from {
        return true;
    }
    match (range(from), range(to)) {
        (Some(from), Some(to)) => {
            to.digits >= from.digits
                && to.exponent >= from.exponent
                && (to.fraction || !from.fraction)
                && (to.signed || !from.signed)
        }
        _ => false,
    }
}

/// The range and precision of a numeric type.
struct Range {
    /// Binary digits of precision.
    digits: u32,
    /// Binary exponent of the largest number; floats have a matching smallest exponent.
    exponent: u32,
    fraction: bool,
    signed: bool,
}

fn range(elem_type: i32) -> Option<Range> {
    let float = |digits, exponent| Range {
        digits,
        exponent,
        fraction: true,
        signed: true,
    };
    let integer = |bits: u32, signed| Range {
        digits: bits - u32::from(signed),
        exponent: bits - u32::from(signed),
        fraction: false,
        signed,
    };
    Some(match DataType::try_from(elem_type).ok()? {
        DataType::Double => float(53, 1023),
        DataType::Float => float(24, 127),
        DataType::Bfloat16 => float(8, 127),
        DataType::Float16 => float(11, 15),
        DataType::Int8 => integer(8, true),
        DataType::Int16 => integer(16, true),
        DataType::Int32 => integer(32, true),
        DataType::Int64 => integer(64, true),
        DataType::Uint8 => integer(8, false),
        DataType::Uint16 => integer(16, false),
        DataType::Uint32 => integer(32, false),
        DataType::Uint64 => integer(64, false),
        _ => return None,
    })
}

/// Whether `elem_type` is a floating-point type that attention can be computed in.
pub fn is_float(elem_type: i32) -> bool {
    [
        DataType::Float,
        DataType::Float16,
        DataType::Bfloat16,
        DataType::Double,
    ]
    .iter()
    .any(|&t| t as i32 == elem_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_types_of_one_width_need_not_hold_each_other() {
        let (half, brain) = (DataType::Float16 as i32, DataType::Bfloat16 as i32);
        assert!(!holds(brain, half) && !holds(half, brain));
        let float = DataType::Float as i32;
        assert!(holds(float, half) && holds(float, brain) && !holds(half, float));
        assert!(holds(half, DataType::Int8 as i32) && !holds(half, DataType::Int16 as i32));
        assert!(!holds(DataType::Int64 as i32, half));
        assert!(!holds(DataType::Uint8 as i32, DataType::Int8 as i32));
    }
}
