//! What the `onnx` package of Python says of saved files.

use super::*;

const CHECK: &str = r#"
import sys, numpy, onnx, onnx.numpy_helper
for path in sys.argv[1:]:
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    tensors = {t.name: t for t in model.graph.initializer}
    for attribute in (a for n in model.graph.node for a in n.attribute if a.HasField("t")):
        tensors[attribute.t.name] = attribute.t
    for name, tensor in sorted(tensors.items()):
        values = onnx.numpy_helper.to_array(tensor)
        print(name, values.dtype, *values.shape, int(values.astype(numpy.int64).sum()))
"#;

/// `y = x + constant + raw + typed` on vectors of `length` elements, and tensors that nothing reads.
fn valid_model(length: i64) -> ModelProto {
    use gqa2mla_passes::onnx::type_proto::{Tensor, Value};
    use gqa2mla_passes::onnx::{
        OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto,
        tensor_shape_proto::{Dimension, dimension},
    };
    let floats = |name: &str, value: f32| TensorProto {
        raw_data: Some(value.to_le_bytes().repeat(length as usize).into()),
        ..tensor(name, DataType::Float, &[length])
    };
    let typed = TensorProto {
        float_data: vec![4.0; length as usize],
        ..tensor("typed", DataType::Float, &[length])
    };
    let step = |op: &str, inputs: &[&str], output: &str, attribute| NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute,
        ..NodeProto::default()
    };
    let constant = AttributeProto {
        name: Some("value".to_owned()),
        r#type: Some(attribute_proto::AttributeType::Tensor as i32),
        t: Some(floats("constant", 2.0)),
        ..AttributeProto::default()
    };
    let indices = TensorProto {
        raw_data: Some((0..length).flat_map(i64::to_le_bytes).collect()),
        ..tensor("indices", DataType::Int64, &[length])
    };
    let thinned = SparseTensorProto {
        dims: vec![length],
        ..sparse(floats("sparse", 1.0), indices)
    };
    let shape = TensorShapeProto {
        dim: vec![Dimension {
            value: Some(dimension::Value::DimValue(length)),
            ..Dimension::default()
        }],
    };
    let value = |name: &str| ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(Value::TensorType(Tensor {
                elem_type: Some(DataType::Float as i32),
                shape: Some(shape.clone()),
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    };
    let mut made = model(vec![
        floats("raw", 3.0),
        typed,
        external("bytes", 9, &[("location", "d"), ("offset", "1")]),
    ]);
    made.opset_import = vec![OperatorSetIdProto {
        version: Some(18),
        ..OperatorSetIdProto::default()
    }];
    let graph = made.graph.as_mut().unwrap();
    graph.name = Some("main".to_owned());
    graph.input = vec![value("x")];
    graph.output = vec![value("y")];
    graph.sparse_initializer = vec![thinned];
    graph.node = vec![
        step("Constant", &[], "c", vec![constant]),
        step("Sum", &["x", "c", "raw", "typed"], "y", vec![]),
    ];
    made
}

#[test]
fn the_checker_of_onnx_accepts_saved_files_and_reads_the_same_values() {
    let folder = TempDir::new().unwrap();
    let out = TempDir::new().unwrap();
    fs::write(folder.path().join("d"), pattern(10, 0)).unwrap();
    let large = INLINE_BELOW as i64;
    let mut paths = Vec::new();
    for (name, length) in [("small.onnx", 5), ("large.onnx", large)] {
        let before = load(&write(folder.path(), &valid_model(length))).unwrap();
        let path = out.path().join(name);
        save(&before, &path).unwrap();
        paths.push(path);
    }
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let expected = |length: i64| {
        format!(
            "bytes uint8 9 45\nconstant float32 {length} {}\nraw float32 {length} {}\ntyped float32 {length} {}\n",
            2 * length,
            3 * length,
            4 * length
        )
    };
    assert_eq!(
        crate::common::python(CHECK, &paths),
        expected(5) + &expected(large)
    );
}
