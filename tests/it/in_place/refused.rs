//! What does not go with `--cache-io inplace`, and the way out.

use std::path::Path;

use gqa2mla_passes::forms::GroupedQuery;
use gqa2mla_passes::{Decoupled, Form, LatentPast, RewriteError, RewriteOptions};

use super::options;
use crate::common::{fixture, folder, loaded, rewritten, root, with};

#[test]
fn a_form_that_joins_otherwise_is_refused_with_the_way_out() {
    let cases: [(&str, &dyn Form, &str); 3] = [
        ("optimum-llama", &LatentPast, "use --new-tokens prompt"),
        ("genai-llama", &GroupedQuery, "leave out --cache-io"),
        (
            "genai-llama",
            &gqa2mla_passes::forms::KeptHeads,
            "leave out --cache-io",
        ),
    ];
    for (name, form, words) in cases {
        let keeps = form.keeps_heads();
        let asked = RewriteOptions {
            bits: match keeps {
                true => gqa2mla_passes::factor::CacheBits::Eight,
                false => Default::default(),
            },
            ..options(form)
        };
        let error = rewritten(&mut loaded(name), asked).unwrap_err();
        assert!(matches!(error, RewriteError::Form { .. }), "{error}");
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    // Decoupled caches are joined as others are: what is refused there has another reason.
    assert!(Decoupled.hinders_in_place().is_none());
}

#[test]
fn what_does_not_go_with_it_is_refused_before_anything_is_read() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let (llama, genai) = (fixture("optimum-llama"), fixture("genai-llama"));
    let cases: [(&Path, &[&str], &str); 3] = [
        (
            &llama,
            &["--new-tokens", "exact"],
            "use --new-tokens prompt or latent",
        ),
        (&genai, &["--target", "gqa"], "leave out --cache-io"),
        (
            &genai,
            &["--keep-heads", "--cache-bits", "8"],
            "leave out --cache-io",
        ),
    ];
    for (model, more, words) in cases {
        let mut arguments: Vec<&dyn AsRef<Path>> =
            vec![&"rewrite", &model, &"-o", &out, &"--cache-io", &"inplace"];
        arguments.extend(more.iter().map(|word| word as &dyn AsRef<Path>));
        let ran = with(&arguments);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
    assert!(!out.exists());
}

/// The loop of a stack feeds the past alone.
#[test]
fn a_folder_for_a_stack_is_refused_unless_its_configuration_is_left_alone() {
    let place = folder();
    let out = place.path().join("out");
    for (name, stack) in [("optimum-llama", "optimum"), ("genai-llama", "genai")] {
        let model = fixture(name);
        let arguments: [&dyn AsRef<Path>; 6] =
            [&"rewrite", &model, &"-o", &out, &"--cache-io", &"inplace"];
        let ran = with(&arguments);
        assert_ne!(ran.code, 0, "{ran:?}");
        for words in [stack, "use --cache-io append", "--serving none"] {
            assert!(ran.stderr.contains(words), "{words}: {ran:?}");
        }
        assert!(!out.exists());
        let ran = with(&[arguments.as_slice(), &[&"--serving", &"none"]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn the_example_refuses_a_model_that_appends() {
    let ran = std::process::Command::new(root().join(".venv/bin/python"))
        .arg(root().join("examples/generate_in_place.py"))
        .arg(fixture("optimum-llama").join("model.onnx"))
        .args(["--ids", "5"])
        .output()
        .unwrap();
    let told = String::from_utf8(ran.stderr).unwrap();
    assert!(
        !ran.status.success() && told.contains("generate.py"),
        "{told}"
    );
}
