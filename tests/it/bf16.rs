//! bf16, which ONNX Runtime's CPU cannot run: the rewrite of such a model is proved after widening both models to fp32.

use crate::common::{
    HALF, IN_BF16, SINGLE, all_nodes, compared, exchange_two_heads, in_ort, loaded, pair, session,
};
use bytes::Bytes;
use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla::runtime::RuntimeKind;
use gqa2mla_passes::RewriteOptions;
use gqa2mla_passes::onnx::{
    GraphProto, TensorProto, TypeProto, tensor_proto::DataType, type_proto,
};

const FLOAT: i32 = DataType::Float as i32;
const BFLOAT16: i32 = DataType::Bfloat16 as i32;

#[test]
fn onnx_runtime_does_not_run_bf16_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    save(&loaded(IN_BF16), &path).unwrap();
    let said = session(&path, RuntimeKind::Ort)
        .err()
        .expect("it runs now: compare it like the others");
    assert!(
        said.contains("Could not find an implementation for Mul"),
        "{said}"
    );
}

/// What cannot run in bf16 is widened to fp32 first, the original and the rewritten model alike. Widening is exact, and at
/// full rank the factors are zeros and ones, which bf16 holds exactly: nothing may be lost.
#[test]
fn a_model_in_bf16_gets_factors_in_bf16_that_lose_nothing() {
    let (mut before, mut after) = pair(IN_BF16, RewriteOptions::default());
    let graph = after.model.proto.graph.as_ref().unwrap();
    let factors: Vec<&TensorProto> = graph
        .initializer
        .iter()
        .filter(|t| t.name().contains("mla/w_"))
        .collect();
    assert_eq!(factors.len(), 2, "w_uk and w_uv, for both layers");
    assert!(factors.iter().all(|t| t.data_type() == BFLOAT16));
    widen(&mut before);
    widen(&mut after);
    let found = compared(&before, &after, in_ort(SINGLE)).unwrap();
    assert!(found.passed(), "{:e}", found.max_ratio());
    exchange_two_heads(&mut after);
    let found = compared(&before, &after, in_ort(HALF)).unwrap();
    assert!(
        !found.passed(),
        "exchanged heads hide in the tolerance: {:e}",
        found.max_ratio()
    );
}

fn widen(model: &mut LoadedModel) {
    let graph = model.model.proto.graph.as_mut().unwrap();
    assert!(
        all_nodes(graph).len() == graph.node.len(),
        "inner graphs would have to be widened too"
    );
    graph.initializer.iter_mut().for_each(widen_tensor);
    widen_types(graph);
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        attribute.t.iter_mut().for_each(widen_tensor);
        if attribute.name() == "to" && attribute.i() == i64::from(BFLOAT16) {
            attribute.i = Some(FLOAT.into());
        }
    }
}

fn widen_tensor(tensor: &mut TensorProto) {
    if tensor.data_type() != BFLOAT16 {
        return;
    }
    let narrow = tensor
        .raw_data
        .take()
        .expect("the fixture's tensors are stored as bytes");
    // A bf16 is the upper half of the fp32 of the same value.
    let wide: Vec<u8> = narrow
        .chunks_exact(2)
        .flat_map(|b| [0, 0, b[0], b[1]])
        .collect();
    tensor.raw_data = Some(Bytes::from(wide));
    tensor.data_type = Some(FLOAT);
}

fn widen_types(graph: &mut GraphProto) {
    let infos = graph
        .input
        .iter_mut()
        .chain(&mut graph.output)
        .chain(&mut graph.value_info);
    for kind in infos.filter_map(|info| info.r#type.as_mut()) {
        if let TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..
        } = kind
            && tensor.elem_type() == BFLOAT16
        {
            tensor.elem_type = Some(FLOAT);
        }
    }
}
