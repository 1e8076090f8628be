//! Triton, whose messages read its configuration; no server is run.

use super::*;

/// A configuration that names every input and output of a model, written in the ways that protobuf's text format has.
fn triton_config(inputs: &[Input], logits: &str) -> String {
    let dims = |dims: &[AxisSize]| -> Vec<String> {
        let one = |dim: &AxisSize| match dim {
            AxisSize::Fixed(n) => n.to_string(),
            _ => "-1".to_owned(),
        };
        dims.iter().skip(1).map(one).collect()
    };
    let mut text =
        "name: \"llama\" # served as it is\nbackend: \"onnxruntime\"\nmax_batch_size: 8\ninput [\n"
            .to_owned();
    let (caches, plain): (Vec<_>, Vec<_>) = inputs.iter().partition(|i| i.name.starts_with("past"));
    let plain: Vec<String> = plain
        .iter()
        .map(|input| {
            let dims = dims(&input.dims).join(", ");
            format!(
                "  {{ name: \"{}\", data_type: TYPE_INT64, dims: [ {dims} ] }}",
                input.name
            )
        })
        .collect();
    text.push_str(&format!("{}\n]\n", plain.join(",\n")));
    for cache in &caches {
        let dims: Vec<String> = dims(&cache.dims)
            .iter()
            .map(|d| format!("dims: {d}"))
            .collect();
        let dims = dims.join(" ");
        text.push_str(&format!(
            "input {{ name: '{}' data_type: TYPE_FP32 {dims} }}\n",
            cache.name
        ));
    }
    text.push_str(&format!(
        "output [ {{ name: \"{logits}\" data_type: TYPE_FP32 dims: [ -1, 128 ] }} ]\n"
    ));
    text.push_str("sequence_batching {\n  state [\n");
    let states: Vec<String> = caches
        .iter()
        .map(|cache| {
            let (name, dims) = (&cache.name, dims(&cache.dims));
            let (present, list) = (name.replace("past_key_values", "present"), dims.join(", "));
            let empty = list.replace("-1", "0");
            format!(
                "    {{ input_name: \"{name}\" output_name: \"{present}\" data_type: TYPE_FP32 dims: [ {list} ]\n      initial_state: {{ name: \"empty\" data_type: TYPE_FP32 dims: [ {empty} ] zero_data: true }} }}"
            )
        })
        .collect();
    text.push_str(&states.join(",\n"));
    text.push_str("\n  ]\n}\n");
    text
}

#[test]
#[ignore = "needs the serving stacks"]
fn in_a_triton_configuration_the_dims_of_caches_change_and_nothing_else() {
    let place = folder();
    let repository = place.path().join("llama");
    fs::create_dir_all(repository.join("1")).unwrap();
    fs::copy(
        fixture("optimum-llama").join("model.onnx"),
        repository.join("1/model.onnx"),
    )
    .unwrap();
    let interface = LanguageModel::of(&loaded("optimum-llama").model.proto)
        .unwrap()
        .interface;
    let text = triton_config(&interface.inputs, &interface.logits);
    fs::write(repository.join("config.pbtxt"), &text).unwrap();
    let out = place.path().join("out");
    let report = rewritten(&repository, &out, &["--rank", "24", "--factors", "weights"]);
    assert_eq!(report["folder"]["serving"], json!(["triton"]));
    let configs = [&repository, &out].map(|f| f.join("config.pbtxt"));
    let differing = told(
        &serving_python(),
        "tests/python/triton_config.py",
        &[&configs[0], &configs[1]],
    );
    let differing = differing.as_object().unwrap();
    // Four caches, each as an input, as a state and as what the state begins with.
    assert_eq!(differing.len(), 12, "{differing:#?}");
    for (field, values) in differing {
        assert!(field.ends_with(".dims"), "{field}");
        let [before, after] = [&values[0], &values[1]];
        assert_eq!(
            (before[0].clone(), before[2].clone()),
            (json!(2), json!(16)),
            "{field}"
        );
        assert_eq!(before[1], after[1], "{field}");
        assert_eq!(
            (after[0].clone(), after[2].clone()),
            (json!(1), json!(24)),
            "{field}"
        );
    }
    let comment = fs::read_to_string(&configs[1]).unwrap();
    assert!(comment.starts_with("name: \"llama\" # served as it is\n"));
}

#[test]
#[ignore = "needs the serving stacks"]
fn in_a_triton_configuration_caches_of_integers_get_their_type() {
    let place = folder();
    let repository = place.path().join("llama");
    fs::create_dir_all(repository.join("1")).unwrap();
    let model = fixture("optimum-llama").join("model.onnx");
    fs::copy(&model, repository.join("1/model.onnx")).unwrap();
    let interface = LanguageModel::of(&loaded("optimum-llama").model.proto)
        .unwrap()
        .interface;
    let text = triton_config(&interface.inputs, &interface.logits);
    fs::write(repository.join("config.pbtxt"), &text).unwrap();
    let out = place.path().join("out");
    let ids = root().join("fixtures/tokens.json").display().to_string();
    let integers = ["--cache-bits", "8", "--token-ids", &ids, "--force"];
    rewritten(&repository, &out, &integers);
    let configs = [&repository, &out].map(|f| f.join("config.pbtxt"));
    let differing = told(
        &serving_python(),
        "tests/python/triton_config.py",
        &[&configs[0], &configs[1]],
    );
    let differing = differing.as_object().unwrap();
    let types = differing.keys().filter(|f| f.ends_with("data_type"));
    // Four caches, each as an input, as a state and as what the state begins with; the logits stay floats.
    assert_eq!((types.count(), differing.len()), (12, 24), "{differing:#?}");
}

#[test]
#[ignore = "needs the serving stacks"]
fn a_triton_configuration_is_made_where_there_is_none() {
    let place = folder();
    // Two take batches; the third has an input that says which branch to take, and no batch in front of it.
    for (name, batch, cache) in [
        ("optimum-llama", 8, json!([1, -1, 32])),
        ("dynamo18-smollm3", 8, json!([1, -1, 32])),
        ("merged-llama", 0, json!([-1, 1, -1, 32])),
    ] {
        let out = place.path().join(name);
        let report = rewritten(&fixture(name), &out, &["--serving", "triton"]);
        assert_eq!(
            edited(&report),
            [format!("max_batch_size -> {batch}").replace("->", "null ->")]
        );
        assert!(out.join("1/model.onnx").is_file());
        let empty = place.path().join("empty.pbtxt");
        fs::write(&empty, "").unwrap();
        let config = out.join("config.pbtxt");
        let told = told(
            &serving_python(),
            "tests/python/triton_config.py",
            &[&empty, &config],
        );
        let inputs = told["input"][1].as_array().unwrap();
        let interface = LanguageModel::of(
            &crate::common::model_at(&out.join("1/model.onnx"))
                .model
                .proto,
        )
        .unwrap()
        .interface;
        assert_eq!(inputs.len(), interface.inputs.len());
        let key = inputs
            .iter()
            .find(|i| i["name"] == "past_key_values.0.key")
            .unwrap();
        assert_eq!(key["dims"], cache, "{name}");
        assert_eq!(
            told["output"][1].as_array().unwrap().len(),
            1 + interface.caches.len()
        );
    }
}
