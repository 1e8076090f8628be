//! The option of the serving stack.

use clap::ValueEnum;

use crate::serving::Stack;

/// The serving stack of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ServingArg {
    Auto,
    Genai,
    Optimum,
    TransformersJs,
    Triton,
    None,
}

impl ServingArg {
    /// The stacks; `None`: determined by the files of the folder.
    pub fn stacks(self) -> Option<Vec<Stack>> {
        Some(match self {
            Self::Auto => return None,
            Self::Genai => vec![Stack::Genai],
            Self::Optimum => vec![Stack::Optimum],
            Self::TransformersJs => vec![Stack::TransformersJs],
            Self::Triton => vec![Stack::Triton],
            Self::None => Vec::new(),
        })
    }
}
