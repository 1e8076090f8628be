//! Optimum and transformers.js, which both go by `config.json`.

use super::*;

/// The browser that pages are run in.
const BROWSER: &str = "/usr/bin/chromium";

/// The fixtures that Optimum runs before and after a rewrite.
pub const IN_OPTIMUM: [&str; 11] = [
    "optimum-llama",
    "optimum14-llama",
    "optimum-mistral",
    "optimum-qwen2",
    "optimum-qwen3",
    "optimum-qwen3_moe",
    "optimum-granite",
    "optimum-phi3",
    "optimum-gemma2",
    "optimum-gemma3",
    "optimum-gpt_neox",
];

/// The fixtures that transformers.js runs, and the name of the model there.
pub const IN_TRANSFORMERS_JS: [(&str, &str); 2] = [
    ("optimum-llama", "model"),
    ("merged-llama", "decoder_model_merged"),
];

#[test]
#[ignore = "needs the serving stacks"]
fn optimum_generates_the_same_whatever_the_model_type() {
    let place = folder();
    for name in IN_OPTIMUM {
        let (original, out) = (fixture(name), place.path().join(name));
        let report = rewritten(&original, &out, &[]);
        assert_eq!(report["folder"]["serving"], json!(["optimum"]), "{name}");
        // Optimum itself cannot feed some of the originals, whose heads are not as wide as it computes: what is expected
        // comes from ONNX Runtime alone.
        let single = in_onnx_runtime(&original.join("model.onnx"), "6", &["5,7,28,44,31"]);
        let pair = in_onnx_runtime(
            &original.join("model.onnx"),
            "6",
            &["5,7,28,44,31", "9,12,17"],
        );
        for (binding, found) in in_optimum(&out, "6", SMALL_PADDED)
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
        {
            let new = |batch: usize| -> Value {
                let rows = found[batch]["tokens"].as_array().unwrap();
                rows.iter()
                    .map(|row| json!(row.as_array().unwrap()[5..]))
                    .collect()
            };
            assert_eq!(
                (new(0), new(1)),
                (single.clone(), pair.clone()),
                "{name}, binding {binding}"
            );
        }
    }
}

/// The files of a fixture as model hubs lay them out.
fn hub_folder(name: &str, place: &Path, model: &str) -> PathBuf {
    let hub = place.join(format!("hub-{name}"));
    fs::create_dir_all(hub.join("onnx")).unwrap();
    fs::copy(
        fixture(name).join("model.onnx"),
        hub.join("onnx").join(model),
    )
    .unwrap();
    let config = fixture("optimum-llama").join("config.json");
    fs::copy(config, hub.join("config.json")).unwrap();
    hub
}

#[test]
#[ignore = "needs the serving stacks"]
fn transformers_js_generates_the_same_from_single_and_merged_decoders() {
    let place = folder();
    for (name, model) in IN_TRANSFORMERS_JS {
        let hub = hub_folder(name, place.path(), &format!("{model}.onnx"));
        let out = place.path().join(format!("out-{name}"));
        let report = rewritten(&hub, &out, &[]);
        assert_eq!(report["folder"]["serving"], json!(["transformers-js"]));
        assert_eq!(
            edited(&report)[0],
            "num_key_value_heads 2 -> 1",
            "versions before 4.2 read it"
        );
        // It fetches what it knows of by name: one file stays one file.
        let files: Vec<_> = fs::read_dir(out.join("onnx"))
            .unwrap()
            .map(|f| f.unwrap().file_name())
            .collect();
        assert_eq!(files, [format!("{model}.onnx").as_str()]);
        assert_eq!(
            in_transformers_js(&out, "8", SMALL_PADDED, model),
            in_transformers_js(&hub, "8", SMALL_PADDED, model),
            "{name}"
        );
        let half = place.path().join(format!("half-{name}"));
        rewritten(&hub, &half, &["--rank", "16", "--factors", "weights"]);
        let bytes =
            |folder: &Path| cache_bytes(&in_transformers_js(folder, "8", SMALL_PADDED, model));
        let halves: Vec<f64> = bytes(&hub).iter().map(|b| b / 2.0).collect();
        assert_eq!(bytes(&half), halves);
    }
}

/// The library fetches as many data files as the configuration declares.
#[test]
#[ignore = "needs the serving stacks"]
fn transformers_js_fetches_the_data_files_there_are() {
    let place = folder();
    let hub = hub_folder("optimum-llama", place.path(), "model.onnx");
    let script = "
import json, onnx, sys
from onnx.external_data_helper import set_external_data
folder = sys.argv[1]
model = onnx.load(folder + '/onnx/model.onnx')
weights = [t for t in model.graph.initializer if len(t.raw_data) > 4096]
for at, name in enumerate(['model.onnx_data', 'model.onnx_data_1']):
    with open(f'{folder}/onnx/{name}', 'wb') as data:
        for tensor in weights[at::2]:
            raw, offset = tensor.raw_data, data.tell()
            data.write(raw)
            set_external_data(tensor, name, offset, len(raw))
            tensor.ClearField('raw_data')
open(folder + '/onnx/model.onnx', 'wb').write(model.SerializeToString())
config = json.load(open(folder + '/config.json'))
config['transformers.js_config'] = {'use_external_data_format': {'model.onnx': 2}}
json.dump(config, open(folder + '/config.json', 'w'))
";
    crate::common::python(script, &[&hub]);
    let before = in_transformers_js(&hub, "6", SMALL_PADDED, "model");
    let out = place.path().join("out");
    let report = rewritten(&hub, &out, &[]);
    let key = "transformers.js_config.use_external_data_format.model.onnx 2 -> 1";
    assert!(edited(&report).iter().any(|e| e == key), "{report:#}");
    assert_eq!(in_transformers_js(&out, "6", SMALL_PADDED, "model"), before);
}

/// In a browser, on the processor (WebAssembly) and on a graphics processor (WebGPU), here one that software stands for.
#[test]
#[ignore = "needs the serving stacks and a browser"]
fn transformers_js_generates_the_same_in_a_browser() {
    let place = folder();
    let hub = hub_folder("optimum-llama", place.path(), "model.onnx");
    let ids = root().join("fixtures/tokens.json").display().to_string();
    let made = |name: &str, more: &[&str]| {
        let out = place.path().join(name);
        rewritten(&hub, &out, more);
        out
    };
    let exact = made("exact", &[]);
    let half = made("half", &["--rank", "16", "--factors", "weights"]);
    let integers = [
        "--cache-bits",
        "8",
        "--token-ids",
        &ids,
        "--length",
        "128",
        "--force",
    ];
    let integers = made("integers", &integers);
    let prompts = "[[[5,7,28,44],[31,9,2,77]]]";
    let in_browser = |device: &str, folders: &[&Path]| {
        let plain = [BROWSER, device, "6", prompts, "model"].map(Path::new);
        let all: Vec<&dyn AsRef<Path>> = plain.iter().chain(folders).map(|p| p as _).collect();
        let told = told(Path::new("node"), "tests/js/browser.mjs", &all);
        assert!(told.is_array(), "{device}: {told}");
        told
    };
    let told = in_browser("wasm", &[&hub, &exact, &half, &integers]);
    assert_eq!(told[0][0]["tokens"], told[1][0]["tokens"]);
    let bytes = told.as_array().unwrap().iter();
    let bytes: Vec<f64> = bytes
        .map(|m| m[0]["cache_bytes"].as_f64().unwrap())
        .collect();
    assert_eq!(bytes, [512.0, 512.0, 256.0, 128.0]);
    let told = in_browser("webgpu", &[&hub, &exact]);
    assert_eq!(told[0][0]["tokens"], told[1][0]["tokens"]);
}

#[test]
#[ignore = "needs the serving stacks and the trained models of ../shared"]
fn a_trained_model_writes_the_same_in_optimum_and_in_transformers_js() {
    let _alone = alone();
    let original = real_model("optimum-opset14");
    let place = tempfile::tempdir_in(original.parent().unwrap()).unwrap();
    let out = place.path().join("out");
    rewritten(&original, &out, &[]);
    assert_eq!(
        in_optimum(&out, "32", REAL_PADDED),
        in_optimum(&original, "32", REAL_PADDED)
    );
    // Laid out as on a hub, where the library looks for models.
    let hub = place.path().join("hub");
    fs::create_dir_all(hub.join("onnx")).unwrap();
    for name in ["model.onnx", "model.onnx.data"] {
        fs::hard_link(original.join(name), hub.join("onnx").join(name)).unwrap();
    }
    fs::copy(original.join("config.json"), hub.join("config.json")).unwrap();
    let served = place.path().join("served");
    rewritten(&hub, &served, &[]);
    let (before, after) = (
        in_transformers_js(&hub, "32", REAL_PADDED, ""),
        in_transformers_js(&served, "32", REAL_PADDED, ""),
    );
    assert_eq!(before, after);
    let half = ["--cache-ratio", "0.5", "--factors", "weights"];
    rewritten(&original, &out, &half);
    assert_eq!(
        cache_bytes(&in_optimum(&out, "4", REAL_PADDED)),
        [23_040.0; 4]
    );
    rewritten(&hub, &served, &half);
    assert_eq!(
        cache_bytes(&in_transformers_js(&served, "4", REAL_PADDED, "")),
        [23_040.0; 2]
    );
}
