//! Models whose caches have their axes in another order than [B, G, length, d].

mod between_transposes;

use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla_passes::RankPlan;
use gqa2mla_passes::forms::{Absorbed, AbsorbedPrompt, Expanded, Form, LatentPast};
use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::graph::is_op;
use gqa2mla_passes::inspect;
use gqa2mla_passes::onnx::tensor_shape_proto::{Dimension, dimension::Value as Size};
use gqa2mla_passes::onnx::{GraphProto, ValueInfoProto, type_proto::Value};

use crate::common::{SEEN, SINGLE, compared, folder, in_ort, loaded, proved, rewritten_to, with};

/// Axis i of the cache is the axis `order[i]` of [B, G, length, d].
type Order = [usize; 4];

/// [B, G, d, length], [B, length, G, d] and [length, B, G, d].
const ORDERS: [Order; 3] = [[0, 1, 3, 2], [0, 2, 1, 3], [2, 0, 1, 3]];
/// Keys that the score product reads as they are cached.
const TRANSPOSED: Order = ORDERS[0];

fn perm(order: Order) -> [i64; 4] {
    order.map(|axis| i64::try_from(axis).unwrap())
}

fn position(order: Order, axis: usize) -> usize {
    order.iter().position(|&one| one == axis).unwrap()
}

/// The fixture with the caches whose names contain `side` in `order`.
fn with_order(fixture: &str, side: &str, order: Order) -> LoadedModel {
    let mut model = loaded(fixture);
    let graph = model.model.proto.graph.as_mut().unwrap();
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let presents = outputs
        .iter()
        .filter(|name| *name != "logits" && name.contains(side));
    for present in presents {
        let join = graph.node.iter().position(|n| n.output.contains(present));
        let join = join.unwrap();
        assert!(is_op(&graph.node[join], "Concat"), "{fixture}");
        let (past, rows) = (
            graph.node[join].input[0].clone(),
            graph.node[join].input[1].clone(),
        );
        let back = [0, 1, 2, 3].map(|axis| position(order, axis));
        // Readers of the past and of the present read what they read before.
        for value in [&past, present] {
            let old = format!("{value}/standard");
            for (at, reader) in graph.node.iter_mut().enumerate() {
                let inputs = reader.input.iter_mut();
                inputs
                    .filter(|input| *input == value && at != join)
                    .for_each(|input| input.clone_from(&old));
            }
            let turned = node("Transpose", "", &[value], &[&old]);
            graph.node.push(turned.with_ints("perm", &perm(back)));
        }
        let turned_rows = format!("{rows}/in_cache_order");
        let turned = node("Transpose", "", &[&rows], &[&turned_rows]);
        graph.node.push(turned.with_ints("perm", &perm(order)));
        let axis = i64::try_from(position(order, 2)).unwrap();
        graph.node[join].attribute.clear();
        graph.node[join] = graph.node[join].clone().with_int("axis", axis);
        graph.node[join].input[1] = turned_rows;
        for info in graph.input.iter_mut().chain(&mut graph.output) {
            if info.name() == past || info.name() == present {
                let axes = axes_of(info);
                *axes = order.map(|axis| axes[axis].clone()).to_vec();
            }
        }
    }
    graph.value_info.clear();
    sorted(graph);
    model
}

/// The same with the transposes left out that a `Transpose` of a cache meets.
fn read_as_cached(mut model: LoadedModel) -> LoadedModel {
    let graph = model.model.proto.graph.as_mut().unwrap();
    let turned: Vec<(String, String)> = graph
        .node
        .iter()
        .filter(|n| is_op(n, "Transpose") && n.input[0].ends_with(".key/standard"))
        .map(|n| (n.output[0].clone(), n.input[0].replace("/standard", "")))
        .collect();
    assert!(!turned.is_empty());
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input) {
        if let Some((_, cache)) = turned.iter().find(|(name, _)| name == input) {
            input.clone_from(cache);
        }
    }
    let unread = |name: &str, graph: &GraphProto| {
        let mut reads = graph.node.iter().flat_map(|n| &n.input);
        !reads.any(|input| input == name)
    };
    for (name, cache) in turned {
        for dead in [name, format!("{cache}/standard")] {
            if unread(&dead, graph) {
                graph.node.retain(|n| n.output[0] != dead);
            }
        }
    }
    model
}

/// The same with the new rows of a step as outputs.
fn giving_new_rows(mut model: LoadedModel) -> LoadedModel {
    let graph = model.model.proto.graph.as_mut().unwrap();
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    for present in outputs.into_iter().filter(|name| name != "logits") {
        let join = graph.node.iter().find(|n| n.output.contains(&present));
        let join = join.unwrap();
        let along = join.attribute[0].i();
        let axis = usize::try_from(if along < 0 { along + 4 } else { along }).unwrap();
        let (rows, all) = (join.input[1].clone(), format!("{present}/all"));
        for value in graph
            .node
            .iter_mut()
            .flat_map(|n| n.input.iter_mut().chain(&mut n.output))
        {
            if *value == present {
                value.clone_from(&all);
            }
        }
        graph.node.push(node("Identity", "", &[&rows], &[&present]));
        let output = graph.output.iter_mut().find(|o| o.name() == present);
        axes_of(output.unwrap())[axis].value = Some(Size::DimParam("new_rows".to_owned()));
    }
    model
}

fn axes_of(info: &mut ValueInfoProto) -> &mut Vec<Dimension> {
    match &mut info.r#type.as_mut().unwrap().value {
        Some(Value::TensorType(tensor)) => &mut tensor.shape.as_mut().unwrap().dim,
        other => panic!("{other:?}"),
    }
}

fn sorted(graph: &mut GraphProto) {
    gqa2mla_passes::graph::order::sort(graph);
}

/// The declared sizes of the input or output `name`.
fn sizes(model: &LoadedModel, name: &str) -> Vec<Option<Size>> {
    let graph = model.model.proto.graph.as_ref().unwrap();
    let mut all = graph.input.iter().chain(&graph.output);
    let info = all.find(|info| info.name() == name).unwrap();
    let mut info = info.clone();
    axes_of(&mut info)
        .iter()
        .map(|axis| axis.value.clone())
        .collect()
}

#[test]
fn caches_in_every_order_are_recognised_and_read_as_before() {
    for fixture in ["optimum-llama", "dynamo18-llama", "dynamo18-llama-mqa"] {
        for order in ORDERS {
            for side in ["key", "."] {
                let other = with_order(fixture, side, order);
                let what = format!("{fixture} {side} {order:?}");
                assert_eq!(inspect(&other.model).unwrap().rejects, [], "{what}");
                proved(&what, (&other, &loaded(fixture)), SINGLE);
            }
        }
    }
}

#[test]
fn every_form_keeps_the_order_of_the_caches() {
    let forms: [&'static dyn Form; 4] = [&Absorbed, &AbsorbedPrompt, &LatentPast, &Expanded];
    for order in ORDERS {
        let before = with_order("optimum-llama", ".", order);
        for form in forms {
            let after = rewritten_to(&before, form, RankPlan::Full);
            proved(form.name(), (&before, &after), SINGLE);
            let half = rewritten_to(&before, form, RankPlan::Ratio(0.5));
            // One latent of half of the numbers of the heads, and what the exporter calls the batch and the length.
            let declared = sizes(&loaded("optimum-llama"), "present.0.key");
            let mut expected = declared.clone();
            let number = |size: &Option<Size>| match size {
                Some(Size::DimValue(n)) => *n,
                other => panic!("{other:?}"),
            };
            let rank = number(&declared[1]) * number(&declared[3]) / 2;
            (expected[1], expected[3]) = (Some(Size::DimValue(1)), Some(Size::DimValue(rank)));
            let expected = order.map(|axis| expected[axis].clone());
            let found = sizes(&half, "present.0.key");
            for axis in [1, 3].map(|axis| position(order, axis)) {
                assert_eq!(found[axis], expected[axis], "{} {order:?}", form.name());
            }
            let found = compared(&before, &half, in_ort(SINGLE)).unwrap();
            let ratio = found.rewritten_cache_bytes / found.original_cache_bytes;
            assert!((0.49..0.51).contains(&ratio), "{}: {ratio}", form.name());
            assert!(found.max_ratio() > SEEN, "{}", form.name());
        }
    }
}

/// As accelerators want them: the score product reads transposed keys, and the caller gets the new rows.
#[test]
fn transposed_keys_are_read_and_returned_without_a_transpose_of_the_cache() {
    let fixture = "optimum-gpt_neox";
    let keys = read_as_cached(with_order(fixture, "key", TRANSPOSED));
    for before in [
        read_as_cached(with_order(fixture, "key", TRANSPOSED)),
        giving_new_rows(keys),
    ] {
        assert_eq!(inspect(&before.model).unwrap().rejects, [], "{fixture}");
        proved(fixture, (&before, &loaded(fixture)), SINGLE);
        let after = rewritten_to(&before, &Absorbed, RankPlan::Full);
        proved(fixture, (&before, &after), SINGLE);
        let graph = after.model.proto.graph.as_ref().unwrap();
        let joins = |name: &str| {
            let past = name.starts_with("past_key_values.") && name.ends_with(".key");
            past || graph
                .node
                .iter()
                .any(|n| is_op(n, "Concat") && n.output[0] == name && n.input[0].ends_with(".key"))
        };
        let transposes = graph.node.iter().filter(|n| is_op(n, "Transpose"));
        for transpose in transposes {
            assert!(!joins(&transpose.input[0]), "{fixture}: {transpose:?}");
        }
    }
}

/// Triton batches along the first axis of every input, which these caches have elsewhere.
#[test]
fn a_triton_configuration_batches_only_where_the_batch_comes_first() {
    let place = folder();
    for (order, batch) in [(ORDERS[1], 8), (ORDERS[2], 0)] {
        let model = place.path().join(format!("{batch}/model.onnx"));
        std::fs::create_dir_all(model.parent().unwrap()).unwrap();
        save(&with_order("optimum-llama", ".", order), &model).unwrap();
        let out = place.path().join(format!("{batch}-out"));
        let folder = model.parent().unwrap().to_path_buf();
        let ran = with(&[&"rewrite", &folder, &"-o", &out, &"--serving", &"triton"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let config = std::fs::read_to_string(out.join("config.pbtxt")).unwrap();
        let told = format!("max_batch_size: {batch}\n");
        assert!(config.contains(&told), "{order:?}: {config}");
    }
}

/// A batch of one number and no names: the graph tells which axis is which.
#[test]
fn axes_are_found_without_names() {
    for order in ORDERS {
        let mut model = with_order("optimum-llama", ".", order);
        let graph = model.model.proto.graph.as_mut().unwrap();
        for info in graph.input.iter_mut().chain(&mut graph.output) {
            let is_cache = info.name().contains("past") || info.name().contains("present");
            let batch = match is_cache {
                true => position(order, 0),
                false => 0,
            };
            let axes = axes_of(info);
            axes[batch].value = Some(Size::DimValue(1));
            if is_cache {
                axes[position(order, 2)].value = None;
            }
        }
        let after = rewritten_to(&model, &Absorbed, RankPlan::Full);
        proved("no names", (&model, &after), SINGLE);
    }
}

#[test]
fn what_needs_rows_of_tokens_is_refused_with_a_way_out() {
    let place = folder();
    let model = place.path().join("model.onnx");
    save(&with_order("optimum-llama", "key", TRANSPOSED), &model).unwrap();
    let out = place.path().join("out.onnx");
    for (option, value, told) in [
        ("--cache-io", "inplace", "use --cache-io append"),
        ("--target", "gqa", "use the target matmul"),
    ] {
        let ran = with(&[&"rewrite", &model, &"-o", &out, &option, &value]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(
            ran.stderr.contains("[batch, heads, length, size]"),
            "{ran:?}"
        );
        assert!(ran.stderr.contains(told), "{ran:?}");
        assert!(!out.exists());
    }
    let ids = "fixtures/tokens.json";
    for more in [&["--cache-ratio", "75%"][..], &["--cache-bits", "8"]] {
        let mut asked = vec![
            "rewrite",
            model.to_str().unwrap(),
            "-o",
            out.to_str().unwrap(),
        ];
        asked.extend(["--token-ids", ids, "--force", "--context", "64"]);
        asked.extend(more);
        let ran = crate::common::run(asked);
        assert_eq!(ran.code, 0, "{more:?}: {ran:?}");
    }
}
