//! Why a stack cannot serve a rewritten model.

use crate::serving::stack::Stack;

/// Why a stack cannot serve the rewritten model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServingError {
    /// A configuration that cannot be read.
    #[error("{file}: {detail}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong, and where.
        detail: String,
    },
    /// Nothing to edit.
    #[error("{stack} reads {file}, which is not in the folder")]
    Missing {
        /// The stack.
        stack: &'static str,
        /// The file.
        file: &'static str,
    },
    /// A cache that it cannot hold.
    #[error(
        "{stack} cannot serve this cache: {reason} (--serving none leaves the configuration as it is)"
    )]
    Refused {
        /// The stack.
        stack: &'static str,
        /// Why, and what to do.
        reason: String,
    },
}

/// The refusal of `stack`, which has one width for all caches.
pub(crate) fn differing_widths(stack: Stack) -> ServingError {
    ServingError::Refused {
        stack: stack.name(),
        reason: "it allocates one width for the keys and values of all layers, and they differ (use --layout uniform, and rewrite every attention)".to_owned(),
    }
}
