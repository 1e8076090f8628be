//! An attention operator of one's own, added from outside: `toy.Attend(query, key, value, seen, past_key, past_value)`.
#![allow(clippy::unwrap_used, missing_docs)]

use gqa2mla::operators::*;
use gqa2mla::{Model, Rewriter};
use gqa2mla_passes::onnx::{ModelProto, OperatorSetIdProto};
use prost::Message;

static ATTEND: Operator = Operator::new("toy", "Attend", outputs, lower);

#[rustfmt::skip]
fn lower(s: &mut Primitives, node: &NodeProto, _: Target) -> Result<LoweredNode, Reason> {
    let ([query, key, value, seen, past_key, past_value], [output, present_key, present_value]) =
        (node.input.as_slice(), node.output.as_slice()) else {
        return Err(unsupported(node, "it has other than six inputs and three outputs"));
    };
    let size = |value: &str, axis: usize| s.facts.shape(value)?.get(axis)?.as_i64();
    let (Some(heads), Some(kv_heads), Some(head_size), Some(value_size), Some(elem_type)) =
        (size(query, 1), size(key, 1), size(key, 3), size(value, 3), s.facts.elem_type(query)) else {
        return Err(unsupported(node, "the sizes of its heads are not constant"));
    };
    s.named("Concat", "append_k", &[past_key, key], &[present_key], |n| n.with_int("axis", 2));
    s.named("Concat", "append_v", &[past_value, value], &[present_value], |n| n.with_int("axis", 2));
    let (scale, biases) = ((head_size as f64).sqrt().recip(), vec![s.bias_of(seen, "mask", elem_type)]);
    let score = s.core(&Core {
        query, key: present_key, value: present_value, heads, kv_heads, head_size, value_size, scale,
        softcap: 0.0, biases, sink: None, guard: false, elem_type, output, packed: false,
    });
    Ok(LoweredNode::new(score))
}

#[rustfmt::skip]
fn outputs(facts: &Facts, _: &NodeProto, inputs: &[&Fact]) -> Option<Vec<Fact>> {
    let present = |past: &Fact| {
        let mut shape = past.shape.clone()?;
        *shape.get_mut(2)? = facts.fresh();
        Some(Fact::new(past.elem_type, Some(shape)))
    };
    let [query, _, _, _, past_key, past_value] = inputs else { return None };
    Some(vec![(*query).clone(), present(past_key)?, present(past_value)?])
}

#[test]
fn an_operator_from_outside_is_rewritten() {
    let bytes = std::fs::read("fixtures/attention-past/model.onnx").unwrap();
    let mut proto = ModelProto::decode(bytes.as_slice()).unwrap();
    let (domain, version) = (Some("toy".to_owned()), Some(1));
    proto
        .opset_import
        .push(OperatorSetIdProto { domain, version });
    let mut nodes = proto.graph.iter_mut().flat_map(|g| &mut g.node);
    let first = nodes.find(|n| n.op_type() == "Attention").unwrap();
    (first.op_type, first.domain) = (Some("Attend".to_owned()), Some("toy".to_owned()));
    let mut model = Model::from_bytes(proto.encode_to_vec()).unwrap();
    assert!(Rewriter::new().run(&mut model).is_err());
    let done = Rewriter::new().operator(&ATTEND).run(&mut model).unwrap();
    assert!(done.explain().contains("toy.Attend"), "{}", done.explain());
    assert!(!model.text().contains("Attend("), "{}", model.text());
}
