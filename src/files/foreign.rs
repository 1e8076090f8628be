//! Detection of models in formats other than ONNX, with advice on how to export them.

use std::fs;
use std::path::Path;

/// Beginnings of addresses of the Hugging Face hub.
const HUB: [&str; 3] = [
    "https://huggingface.co/",
    "http://huggingface.co/",
    "https://hf.co/",
];

/// Part of the metadata of every safetensors file that this tool writes, and the number of bytes in which it is looked for.
const OURS: &[u8] = b"gqa2mla ";
const HEAD: usize = 64 * 1024;

/// Number of bytes that are examined to distinguish text from a model.
const TELLING: usize = 512;

/// The format of `bytes` and what to do, as text for a message, if they are a model in another format.
#[must_use]
pub fn file(bytes: &[u8]) -> Option<String> {
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    // safetensors: the header's length in 8 bytes, then the header as JSON.
    let header = bytes.get(..8).and_then(|b| b.try_into().ok());
    let header = header.map(u64::from_le_bytes).unwrap_or(u64::MAX);
    let safetensors = bytes.get(8) == Some(&b'{') && header < bytes.len() as u64;
    let found = if begins(b"GGUF") {
        "it is a GGUF file, which holds weights for llama.cpp and no graph"
    } else if safetensors && is_of_ours(bytes) {
        return Some(
            "it is a file of numbers that gqa2mla wrote, such as statistics (--calibration) or factors: give the .onnx file"
                .to_owned(),
        );
    } else if safetensors {
        "it is a safetensors file, which holds weights and no graph"
    } else if begins(b"PK\x03\x04") || begins(b"\x80\x02") {
        "it looks like a PyTorch checkpoint, which holds weights and no graph"
    } else if bytes.get(4..8) == Some(b"ORTM") {
        return Some(
            "it is in ONNX Runtime's own format: give the .onnx file that it was made from"
                .to_owned(),
        );
    } else if begins(b"version https://git-lfs") {
        return Some(
            "it is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`".to_owned(),
        );
    } else {
        return text(bytes);
    };
    Some(format!("{found}: {}", export("MODEL")))
}

/// Whether the header of a safetensors file says that this tool wrote it.
fn is_of_ours(bytes: &[u8]) -> bool {
    let head = bytes.get(..bytes.len().min(HEAD)).unwrap_or_default();
    head.windows(OURS.len()).any(|window| window == OURS)
}

/// The kind of text in `bytes` and what to do, as text for a message, if they are text. The first bytes of a model
/// contain control characters, the field numbers of protobuf.
fn text(bytes: &[u8]) -> Option<String> {
    let start = bytes.get(..TELLING).unwrap_or(bytes);
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // The last character may be cut.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(start.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    let controls = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if text.trim().is_empty() || text.contains(controls) {
        return None;
    }
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let said = if text.starts_with('<') {
        "it is an HTML or XML page, such as a site shows in place of a download: get the file again, by the address of the file itself"
    } else if text.starts_with(['{', '[']) {
        "it is a JSON file: give the .onnx file, or the folder that holds it"
    } else {
        "it is a text file: give the .onnx file, or the folder that holds it"
    };
    Some(said.to_owned())
}

/// Whether a file of this name has the weights of a model for another framework, or a list of their files.
#[must_use]
pub fn holds_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".index.json").unwrap_or(&name);
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
    let ending = ending.to_ascii_lowercase();
    let named = [
        "pytorch_model",
        "adapter_model",
        "openvino_",
        "consolidated",
    ];
    match ending.as_str() {
        "safetensors" | "gguf" | "h5" | "msgpack" | "pt" | "pth" | "ckpt" | "ot" | "tflite" => true,
        "bin" | "xml" => named.iter().any(|known| stem.starts_with(known)),
        _ => false,
    }
}

/// The format of the weights in the folder at `path` and what to do, as text for a message, if they are in another
/// format.
#[must_use]
pub fn folder(path: &Path) -> Option<String> {
    let mut endings: Vec<&str> = Vec::new();
    for entry in fs::read_dir(path).ok()?.flatten() {
        let name = entry.path();
        let ending = name.extension().and_then(|e| e.to_str());
        let known = ["safetensors", "bin", "pt", "pth", "gguf"];
        endings.extend(known.iter().filter(|known| Some(**known) == ending));
    }
    endings.sort_unstable();
    let first = endings.first()?;
    let command = export(&path.display().to_string());
    Some(format!(
        "it holds weights (.{first}) and no .onnx file: {command}"
    ))
}

/// Advice, as text for a message, if the missing path looks like the name of a model on the Hugging Face hub.
#[must_use]
pub fn hub_name(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let address = HUB.iter().find_map(|hub| text.strip_prefix(hub));
    let model = address.unwrap_or(text).trim_end_matches('/');
    let named = match model.split_once('/') {
        Some((owner, name)) => plain(owner) && plain(name) && !Path::new(owner).exists(),
        None => plain(model) && !model.contains('.'),
    };
    (named && !model.ends_with(".onnx")).then(|| {
        format!(
            "there is no such file or folder. If it is a model of the Hugging Face hub, {}",
            export(model)
        )
    })
}

/// Advice to export `model`, as text for a message.
pub(super) fn export(model: &str) -> String {
    format!(
        "export it first, with `optimum-cli export onnx --model {model} FOLDER`, or for onnxruntime-genai with `python -m onnxruntime_genai.models.builder -m {model} -o FOLDER -p fp32 -e cpu`"
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{file, folder, holds_weights, hub_name};

    #[test]
    fn weights_of_other_frameworks_are_known_by_their_names() {
        let weights = [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "original/consolidated.00.pth",
            "tf_model.h5",
            "openvino_model.xml",
            "llama-Q4_K_M.gguf",
        ];
        assert!(weights.iter().all(|name| holds_weights(Path::new(name))));
        let others = [
            "config.json",
            "tokenizer.model",
            "model.onnx.data",
            "vocab.bin",
        ];
        assert!(!others.iter().any(|name| holds_weights(Path::new(name))));
    }

    #[test]
    fn files_of_other_formats_are_known_by_their_first_bytes() {
        let mut safetensors = 2_u64.to_le_bytes().to_vec();
        safetensors.extend(b"{} and the weights");
        let cases: [(&[u8], &str); 9] = [
            (b"<!DOCTYPE html>\n<html>", "HTML"),
            (b"{\"error\": \"not found\"}", "JSON"),
            (b"Entry not found", "text file"),
            ("na\u{ef}ve".as_bytes(), "text file"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (&safetensors, "safetensors"),
            (b"PK\x03\x04 archive", "PyTorch"),
            (b"\x18\0\0\0ORTM", "ONNX Runtime's own format"),
            (
                b"version https://git-lfs.github.com/spec/v1",
                "git lfs pull",
            ),
        ];
        for (bytes, word) in cases {
            let said = file(bytes);
            assert!(
                said.as_ref().is_some_and(|s| s.contains(word)),
                "{word}: {said:?}"
            );
        }
        assert_eq!(file(b"\x08\x08\x12\x07pytorch"), None);
        assert_eq!(file(b":\n\n\x02ab"), None);
    }

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        let said = hub_name(Path::new("HuggingFaceTB/SmolLM2-135M"));
        assert!(said.is_some_and(|s| s.contains("--model HuggingFaceTB/SmolLM2-135M")));
        for path in [
            "model.onnx",
            "./a/b",
            "/a/b",
            "a/b/c",
            "src/model",
            "a/b.onnx",
        ] {
            assert_eq!(hub_name(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn a_folder_of_weights_is_told_from_an_empty_one() -> std::io::Result<()> {
        let place = tempfile::tempdir()?;
        assert_eq!(folder(place.path()), None);
        std::fs::write(place.path().join("model.safetensors"), "")?;
        assert!(folder(place.path()).is_some_and(|s| s.contains(".safetensors")));
        Ok(())
    }
}
