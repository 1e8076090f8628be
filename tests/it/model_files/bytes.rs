//! Bytes of single tensors.

use super::*;

#[test]
fn typed_fields_become_the_bytes_of_raw_data() {
    use DataType::*;
    let empty = || tensor("t", Undefined, &[]);
    let ints = |values: &[i32]| TensorProto {
        int32_data: values.to_vec(),
        ..empty()
    };
    let cases: Vec<(DataType, i64, TensorProto, Vec<u8>)> = vec![
        (
            Float,
            1,
            TensorProto {
                float_data: vec![-2.0],
                ..empty()
            },
            vec![0, 0, 0, 0xc0],
        ),
        (
            Complex64,
            1,
            TensorProto {
                float_data: vec![1.0, -2.0],
                ..empty()
            },
            vec![0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0],
        ),
        (
            Double,
            1,
            TensorProto {
                double_data: vec![-2.0],
                ..empty()
            },
            vec![0, 0, 0, 0, 0, 0, 0, 0xc0],
        ),
        (
            Int64,
            1,
            TensorProto {
                int64_data: vec![-2],
                ..empty()
            },
            vec![0xfe, 255, 255, 255, 255, 255, 255, 255],
        ),
        (
            Uint64,
            1,
            TensorProto {
                uint64_data: vec![1 << 63],
                ..empty()
            },
            vec![0, 0, 0, 0, 0, 0, 0, 0x80],
        ),
        (
            Uint32,
            1,
            TensorProto {
                uint64_data: vec![0x8000_0001],
                ..empty()
            },
            vec![1, 0, 0, 0x80],
        ),
        (Int32, 1, ints(&[-2]), vec![0xfe, 255, 255, 255]),
        (Int16, 2, ints(&[-2, 3]), vec![0xfe, 255, 3, 0]),
        (Uint16, 1, ints(&[0xfffe]), vec![0xfe, 255]),
        (Float16, 1, ints(&[0x3c00]), vec![0, 0x3c]),
        (Bfloat16, 1, ints(&[0xbf80]), vec![0x80, 0xbf]),
        (Int8, 2, ints(&[-1, 5]), vec![255, 5]),
        (Uint8, 1, ints(&[200]), vec![200]),
        (Bool, 2, ints(&[1, 0]), vec![1, 0]),
        (Float8e4m3fn, 1, ints(&[0x7f]), vec![0x7f]),
        (Int4, 3, ints(&[0x21, 0x03]), vec![0x21, 0x03]),
        (Uint2, 5, ints(&[0xe4, 0x01]), vec![0xe4, 0x01]),
        // Four to three bytes in raw_data, one an entry here.
        (Float6e2m3, 4, ints(&[1, 2, 3, 4]), vec![0x81, 0x30, 0x10]),
        (
            Float6e3m2,
            5,
            ints(&[1, 2, 3, 4, 63]),
            vec![0x81, 0x30, 0x10, 0x3f],
        ),
        (Float, 0, empty(), vec![]),
    ];
    for (data_type, length, fields, expected) in cases {
        let typed = TensorProto {
            data_type: Some(data_type as i32),
            dims: vec![length],
            ..fields
        };
        let found = Model::default().tensor_bytes(&typed).unwrap();
        assert_eq!(found, expected, "{data_type:?}");
    }
}

#[test]
fn bytes_that_contradict_the_shape_are_refused() {
    let model = Model::default();
    let short = TensorProto {
        dims: vec![2, 3],
        ..raw("w", vec![0; 5])
    };
    let cases = [
        (short, "5 bytes are stored"),
        (tensor("w", DataType::Float, &[-1]), "no size in bytes"),
        (
            tensor("w", DataType::Float, &[i64::MAX, i64::MAX]),
            "no size in bytes",
        ),
        (tensor("w", DataType::String, &[1]), "no size in bytes"),
        (tensor("w", DataType::Float, &[4]), "0 bytes are stored"),
    ];
    for (tensor, words) in cases {
        let error = model.tensor_bytes(&tensor).unwrap_err().to_string();
        assert_says(&error, &["'w'", words]);
    }
}
