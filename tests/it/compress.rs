//! A model is compressed by a library caller, without the command.

use gqa2mla::compress::acceptance::Verdict;
use gqa2mla::compress::compressor::Destination;
use gqa2mla::compress::error::{CompressError, FreeWidthsError};
use gqa2mla::compress::events::Stage;
use gqa2mla::compress::promise::Promise;
use gqa2mla::compress::request::Request;
use gqa2mla::compress::run::compress;
use gqa2mla::compress::widths::Widths;
use gqa2mla::files::save::DataFile;
use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::common::{folder, loaded};

#[test]
fn a_library_caller_compresses_a_model_and_hears_of_every_stage() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let destination = Destination {
        out: &out,
        data: DataFile::Beside,
        work: None,
        checkpoint: std::path::PathBuf::new(),
    };
    let request = Request {
        options: RewriteOptions {
            ranks: RankPlan::Uniform(16),
            ..RewriteOptions::default()
        },
        ..Request::default()
    };
    let mut stages: Vec<Stage> = Vec::new();
    let model = loaded("optimum-llama");
    let made = compress(&model, &destination, &request, &mut |event| {
        assert!(event.done <= event.total);
        if !stages.contains(&event.stage) {
            stages.push(event.stage);
        }
    });
    let made = made.unwrap();
    assert!(made.accepted && made.is_lossy());
    assert!(matches!(made.verdict, Verdict::Compared(_)));
    let wanted = [
        Stage::Rewriting,
        Stage::Validating,
        Stage::ValidatingOptimized,
    ];
    assert_eq!(stages, wanted);
    assert!(
        !out.exists(),
        "it has its name only when the caller gives it"
    );
    assert_eq!(made.compressed.publish().unwrap(), out);
    assert!(out.exists());
}

#[test]
fn a_library_caller_gets_typed_errors() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let destination = Destination {
        out: &out,
        data: DataFile::Beside,
        work: None,
        checkpoint: std::path::PathBuf::new(),
    };
    let model = loaded("optimum-llama");
    let try_it = |request: Request| {
        let made = compress(&model, &destination, &request, &mut |_| {});
        made.err().unwrap()
    };
    let promise = Request {
        promise: Some(Promise::PerplexityIncrease(0.02)),
        ..Request::default()
    };
    assert!(matches!(try_it(promise), CompressError::NoText));
    let free = Request {
        widths: Widths::Free,
        ..Request::default()
    };
    let no_budget = CompressError::FreeWidths(FreeWidthsError::NoBudget);
    assert_eq!(try_it(free).to_string(), no_budget.to_string());
    assert!(!out.exists());
}

/// A browser fetches a file into one buffer, which has a largest size.
#[test]
fn weights_are_written_to_as_many_files_as_their_size_takes() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let destination = Destination {
        out: &out,
        data: DataFile::Chunks {
            name: "out.onnx_data".to_owned(),
            largest: 40_000,
        },
        work: None,
        checkpoint: std::path::PathBuf::new(),
    };
    let model = loaded("genai-llama");
    let made = compress(&model, &destination, &Request::default(), &mut |_| {}).unwrap();
    assert!(made.accepted);
    made.compressed.publish().unwrap();
    let written = gqa2mla::files::load::load(&out).unwrap();
    let names: Vec<&str> = written.sources.keys().map(String::as_str).collect();
    assert!(names.len() > 1, "{names:?}");
    for (number, name) in names.iter().enumerate() {
        let expected = match number {
            0 => "out.onnx_data".to_owned(),
            _ => format!("out.onnx_data_{number}"),
        };
        assert_eq!(*name, expected);
        let length = std::fs::metadata(place.path().join(name)).unwrap().len();
        assert!(length <= 40_000, "{name}: {length}");
    }
}
