//! The serving stacks, and how a folder shows which of them it is for.

/// Something that serves models.
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
    /// Every stack.
    pub const ALL: [Self; 4] = [
        Self::Genai,
        Self::Optimum,
        Self::TransformersJs,
        Self::Triton,
    ];

    /// As the command line and reports name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Genai => "genai",
            Self::Optimum => "optimum",
            Self::TransformersJs => "transformers-js",
            Self::Triton => "triton",
        }
    }

    /// The configuration it reads.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Genai => "genai_config.json",
            Self::Optimum | Self::TransformersJs => "config.json",
            Self::Triton => "config.pbtxt",
        }
    }

    /// The stacks that a folder with these files, relative to it and with `/` between their parts, is made for.
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
