//! Models whose cache outputs have the new rows of a step alone, which the caller puts behind the past.

use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla_passes::RankPlan;
use gqa2mla_passes::forms::{Absorbed, AbsorbedPrompt, Expanded, Form, LatentPast};
use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::graph::is_op;
use gqa2mla_passes::inspect;
use gqa2mla_passes::onnx::tensor_shape_proto::dimension::Value as Size;
use gqa2mla_passes::onnx::{GraphProto, type_proto::Value};

use crate::common::{SEEN, SINGLE, compared, folder, in_ort, loaded, proved, rewritten_to, with};

/// The fixture with new rows in place of whole caches, behind an alias node if `aliased`.
fn with_new_rows(fixture: &str, aliased: bool) -> LoadedModel {
    let mut model = loaded(fixture);
    let graph = model.model.proto.graph.as_mut().unwrap();
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    for present in outputs.into_iter().filter(|name| name != "logits") {
        let makers = graph.node.iter();
        let join = makers
            .clone()
            .find(|n| n.output.contains(&present))
            .unwrap();
        assert!(is_op(join, "Concat"), "{fixture}: {join:?}");
        let rows = join.input[1].clone();
        exchange(graph, &present, &format!("{present}/all"));
        match aliased {
            true => graph.node.push(node("Identity", "", &[&rows], &[&present])),
            false => exchange(graph, &rows, &present),
        }
        let output = graph.output.iter_mut().find(|o| o.name() == present);
        let kind = output.unwrap().r#type.as_mut().unwrap().value.as_mut();
        let Some(Value::TensorType(tensor)) = kind else {
            panic!("{kind:?}")
        };
        tensor.shape.as_mut().unwrap().dim[2].value = Some(Size::DimParam("new_rows".to_owned()));
        graph.value_info.clear();
    }
    model
}

/// The declared sizes of the output `name`.
fn sizes_of(model: &LoadedModel, name: &str) -> Vec<Option<Size>> {
    let graph = model.model.proto.graph.as_ref().unwrap();
    let output = graph.output.iter().find(|o| o.name() == name).unwrap();
    match output.r#type.as_ref().unwrap().value.as_ref().unwrap() {
        Value::TensorType(tensor) => {
            let axes = &tensor.shape.as_ref().unwrap().dim;
            axes.iter().map(|axis| axis.value.clone()).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn exchange(graph: &mut GraphProto, old: &str, new: &str) {
    for node in &mut graph.node {
        for value in node.input.iter_mut().chain(&mut node.output) {
            if value == old {
                value.replace_range(.., new);
            }
        }
    }
}

#[test]
fn new_rows_are_put_behind_the_past_by_the_caller() {
    for fixture in ["optimum-llama", "dynamo18-llama", "optimum-gpt_neox"] {
        for aliased in [false, true] {
            let rows = with_new_rows(fixture, aliased);
            assert_eq!(inspect(&rows.model).unwrap().rejects, [], "{fixture}");
            proved(fixture, (&rows, &loaded(fixture)), SINGLE);
        }
    }
}

#[test]
fn every_form_returns_new_rows_where_the_original_does() {
    let forms: [&'static dyn Form; 4] = [&Absorbed, &AbsorbedPrompt, &LatentPast, &Expanded];
    for aliased in [false, true] {
        let before = with_new_rows("optimum-llama", aliased);
        for form in forms {
            let after = rewritten_to(&before, form, RankPlan::Full);
            proved(form.name(), (&before, &after), SINGLE);
            let sizes = sizes_of(&after, "present.0.key");
            assert_eq!(sizes[2], Some(Size::DimParam("new_rows".to_owned())));
            let half = rewritten_to(&before, form, RankPlan::Ratio(0.6));
            let found = compared(&before, &half, in_ort(SINGLE)).unwrap();
            let ratio = found.rewritten_cache_bytes / found.original_cache_bytes;
            assert!((0.5..0.7).contains(&ratio), "{}: {ratio}", form.name());
            assert!(found.max_ratio() > SEEN, "{}", form.name());
        }
    }
}

#[test]
fn what_needs_whole_caches_is_refused_with_a_way_out() {
    let place = folder();
    let model = place.path().join("model.onnx");
    save(&with_new_rows("optimum-llama", false), &model).unwrap();
    let out = place.path().join("out.onnx");
    for (option, value, told) in [
        ("--cache-io", "inplace", "use --cache-io append"),
        ("--target", "gqa", "use the target matmul"),
    ] {
        let ran = with(&[&"rewrite", &model, &"-o", &out, &option, &value]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("new rows of its caches"), "{ran:?}");
        assert!(ran.stderr.contains(told), "{ran:?}");
        assert!(!out.exists());
    }
    let ids = "fixtures/tokens.json";
    for form in ["absorbed", "joint"] {
        let ran = with(&[
            &"rewrite",
            &model,
            &"-o",
            &out,
            &"--form",
            &form,
            &"--cache-ratio",
            &"75%",
            &"--token-ids",
            &ids,
            &"--force",
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}

#[test]
fn as_many_new_rows_as_past_ones_are_no_state_and_shapes_need_not_be_declared() {
    let mut square = with_new_rows("optimum-llama", false);
    let graph = square.model.proto.graph.as_mut().unwrap();
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        let (axis, size) = match value.name() {
            name if name.contains("past") || name.contains("present") => (2, 4),
            "attention_mask" => (1, 8),
            _ => (1, 4),
        };
        let Some(Value::TensorType(tensor)) = &mut value.r#type.as_mut().unwrap().value else {
            panic!("{value:?}")
        };
        let axes = &mut tensor.shape.as_mut().unwrap().dim;
        for (axis, size) in [(0, 1), (axis, size)] {
            axes[axis].value = Some(Size::DimValue(size));
        }
    }
    let mut bare = with_new_rows("optimum-llama", true);
    for output in &mut bare.model.proto.graph.as_mut().unwrap().output {
        if let (true, Some(Value::TensorType(tensor))) = (
            output.name().contains("present"),
            &mut output.r#type.as_mut().unwrap().value,
        ) {
            tensor.shape = None;
        }
    }
    assert_eq!(inspect(&bare.model).unwrap().rejects, []);
    let after = rewritten_to(&square, &Absorbed, RankPlan::Full);
    proved("as many", (&square, &after), SINGLE);
}
