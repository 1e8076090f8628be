//! The models that mutants are made of: a fixture of each kind of export.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use gqa2mla_passes::onnx::ModelProto;
use prost::Message;
use prost::bytes::Bytes;
use tempfile::TempDir;

use crate::choices::Choices;

/// Fixtures of every dialect that recognition knows, inner graphs and functions included.
const FIXTURES: [&str; 12] = [
    "genai-llama",
    "genai-llama-int4",
    "genai-gemma2",
    "optimum-llama",
    "optimum-gpt_neox",
    "dynamo18-llama",
    "dynamo18-deepseek-v3",
    "dynamo18-llama-nocache",
    "dynamo23-llama",
    "dynamo24-llama",
    "multi_head-llama",
    "merged-llama",
];

/// Raw tensors above this many bytes are weights, where a changed byte means nothing to the library.
const SMALLEST_WEIGHT: usize = 256;

/// A model, and the folder in which its mutants are written.
#[derive(Debug)]
pub struct Seed {
    /// The folder; it holds the model's data file, where it has one.
    pub place: PathBuf,
    /// The file.
    pub bytes: Bytes,
    /// Ranges of the file that are not weights.
    pub structure: Vec<Range<usize>>,
    /// The file, decoded.
    pub model: ModelProto,
}

/// All seeds.
#[derive(Debug)]
pub struct Seeds {
    seeds: Vec<Seed>,
    _folder: TempDir,
}

impl Seeds {
    /// Reads the fixtures and makes a temporary folder for each.
    pub fn read() -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
        let folder = tempfile::tempdir().unwrap();
        let seeds = FIXTURES.iter().map(|name| {
            let from = fixtures.join(name);
            let place = folder.path().join(name);
            fs::create_dir(&place).unwrap();
            let data = from.join("model.onnx.data");
            if data.is_file() {
                fs::copy(data, place.join("model.onnx.data")).unwrap();
            }
            Seed::new(place, fs::read(from.join("model.onnx")).unwrap().into())
        });
        Self {
            seeds: seeds.collect(),
            _folder: folder,
        }
    }

    /// One of them.
    pub fn choose(&self, choices: &mut Choices<'_>) -> &Seed {
        &self.seeds[choices.below(self.seeds.len())]
    }
}

impl Seed {
    fn new(place: PathBuf, bytes: Bytes) -> Self {
        let model = ModelProto::decode(bytes.clone()).unwrap();
        let graph = model.graph.as_ref().unwrap();
        let raw = graph.initializer.iter().filter_map(|t| t.raw_data.as_ref());
        let mut weights: Vec<Range<usize>> = raw
            .filter(|raw| raw.len() > SMALLEST_WEIGHT)
            .map(|raw| {
                // Decoded bytes are slices of the file.
                let start = raw.as_ptr() as usize - bytes.as_ptr() as usize;
                start..start + raw.len()
            })
            .collect();
        weights.sort_by_key(|range| range.start);
        let mut structure = Vec::new();
        let mut start = 0;
        for weight in weights {
            structure.push(start..weight.start);
            start = weight.end;
        }
        structure.push(start..bytes.len());
        Self {
            place,
            bytes,
            structure,
            model,
        }
    }
}
