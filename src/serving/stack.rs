//! The supported serving stacks, and their detection by the files of a folder.

/// A serving stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// onnxruntime-genai: `genai_config.json`.
    Genai,
    /// Optimum's `ORTModelForCausalLM`: `config.json`.
    Optimum,
    /// transformers.js: `config.json`, with the models in `onnx/`.
    TransformersJs,
    /// Triton's ONNX Runtime backend: `config.pbtxt`.
    Triton,
}

impl Stack {
    /// All stacks.
    pub const ALL: [Self; 4] = [
        Self::Genai,
        Self::Optimum,
        Self::TransformersJs,
        Self::Triton,
    ];

    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Genai => "genai",
            Self::Optimum => "optimum",
            Self::TransformersJs => "transformers-js",
            Self::Triton => "triton",
        }
    }

    /// The file name of its configuration.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Genai => "genai_config.json",
            Self::Optimum | Self::TransformersJs => "config.json",
            Self::Triton => "config.pbtxt",
        }
    }

    /// The stacks of a folder with the files `files`, relative paths with `/` as separator.
    #[must_use]
    pub fn guess(files: &[String]) -> Vec<Self> {
        let has = |name: &str| files.iter().any(|f| f == name);
        let in_onnx = files
            .iter()
            .any(|f| f.starts_with("onnx/") && f.ends_with(".onnx"));
        Self::ALL
            .into_iter()
            .filter(|stack| has(stack.file()))
            .filter(|stack| match stack {
                Self::Optimum => !in_onnx,
                Self::TransformersJs => in_onnx,
                Self::Genai | Self::Triton => true,
            })
            .collect()
    }
}
