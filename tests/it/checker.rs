//! The ONNX checker's opinion of every rewritten fixture.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{fixture, folder, python, recognised_fixtures, with};

/// Checks each file of a list; prints a JSON object of those that fail, with the reason.
///
/// The builder of onnxruntime-genai puts an operator into ONNX's own domain that ONNX does not know, and declares wrong
/// ranks for its constants. The checker would look no further than that, so such models are shown to it without.
const CHECK: &str = r#"
import json, sys, onnx
failed = {}
for path in open(sys.argv[1]).read().split("\n"):
    model = onnx.load(path)
    foreign = [n for n in model.graph.node if n.op_type == "SimplifiedLayerNormalization"]
    for node in foreign:
        node.domain = "com.microsoft"
    if foreign:
        del model.graph.value_info[:]
    try:
        onnx.checker.check_model(model if foreign else path, full_check=True)
    except Exception as error:
        failed[path] = str(error)
print(json.dumps(failed))
"#;

fn failing(models: &[String], place: &Path) -> BTreeMap<String, String> {
    let list = place.join("models.txt");
    std::fs::write(&list, models.join("\n")).unwrap();
    serde_json::from_str(&python(CHECK, &[&list])).unwrap()
}

#[test]
fn the_checker_accepts_every_fixture_and_its_rewrite() {
    let place = folder();
    let names = recognised_fixtures();
    let mut models = Vec::new();
    for name in &names {
        // Its nodes are out of order, which ONNX forbids and ONNX Runtime runs; the rewrite has them in order.
        if name != "unsorted-llama" {
            models.push(fixture(name).join("model.onnx").display().to_string());
        }
        let out = place.path().join(format!("{name}.onnx"));
        let ran = with(&[&"rewrite", &fixture(name), &"-o", &out, &"--no-validate"]);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        models.push(out.display().to_string());
    }
    let failed = failing(&models, place.path());
    assert!(failed.is_empty(), "{failed:#?}");
}
