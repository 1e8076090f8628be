//! Models whose outputs have no declared shapes, as tools leave them that change graphs without inferring shapes.

use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla_passes::forms::{Absorbed, GROUPED_PROMPT};
use gqa2mla_passes::onnx::type_proto::Value;
use gqa2mla_passes::{Form, RankPlan};

use crate::common::{
    SEEN, SINGLE, compared, folder, in_ort, loaded, proved, rewritten_to, root, run,
};

/// The fixture without shapes of its outputs and of values between its nodes.
fn without_shapes(fixture: &str) -> LoadedModel {
    let mut model = loaded(fixture);
    let graph = model.model.proto.graph.as_mut().unwrap();
    graph.value_info.clear();
    for output in &mut graph.output {
        let kind = output.r#type.as_mut().unwrap().value.as_mut();
        let Some(Value::TensorType(tensor)) = kind else {
            panic!("{kind:?}")
        };
        tensor.shape = None;
    }
    model
}

/// The logits of a merged decoder without a declared shape do not tell how many token ids there are.
#[test]
fn a_text_is_read_where_the_vocabulary_is_not_known() {
    let place = folder();
    let model = place.path().join("model.onnx");
    save(&without_shapes("merged-llama"), &model).unwrap();
    let (model, out) = (model.display().to_string(), place.path().join("out.onnx"));
    let ids = root().join("fixtures/tokens.json").display().to_string();
    let more = [
        "--cache-ratio",
        "50%",
        "--length",
        "32",
        "--force",
        "--json",
    ];
    let asked = ["rewrite", &model, "-o", &out.display().to_string()].map(str::to_owned);
    let text = ["--token-ids".to_owned(), ids];
    let ran = run(asked.into_iter().chain(text).chain(more.map(str::to_owned)));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.json()["quality"]["tokens"].as_u64() > Some(100),
        "{ran:?}"
    );
}

/// Shapes that the nodes tell, and those of branches, of states, and of the caches of an encoder, which only the pasts tell.
#[test]
fn outputs_without_declared_shapes_continue_the_pasts_of_their_names() {
    let cases: [(&str, &'static dyn Form); 7] = [
        ("dynamo18-llama", &Absorbed),
        ("optimum-llama", &GROUPED_PROMPT),
        ("genai-llama", &GROUPED_PROMPT),
        ("static-llama", &Absorbed),
        ("merged-llama", &Absorbed),
        ("genai-lfm2", &Absorbed),
        ("optimum-whisper", &Absorbed),
    ];
    for (name, form) in cases {
        let before = without_shapes(name);
        let exact = rewritten_to(&before, form, RankPlan::Full);
        proved(name, (&before, &exact), SINGLE);
        let half = rewritten_to(&before, form, RankPlan::Ratio(0.5));
        let found = compared(&before, &half, in_ort(SINGLE)).unwrap();
        let ratio = found.rewritten_cache_bytes / found.original_cache_bytes;
        // Half of the numbers of the attentions; the state of a convolution has no other size.
        assert!((0.45..0.6).contains(&ratio), "{name}: {ratio}");
        assert!(found.max_ratio() > SEEN, "{name}");
    }
}
