//! Why a stack cannot serve a rewritten model.

use crate::serving::stack::Stack;

/// Why a stack cannot serve the rewritten model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServingError {
    /// A configuration cannot be parsed.
    #[error("{file}: {detail}")]
    Config {
        /// The file.
        file: String,
        /// The reason and position.
        detail: String,
    },
    /// The configuration does not exist.
    #[error("{stack} reads {file}, which is not in the folder")]
    Missing {
        /// The stack.
        stack: &'static str,
        /// The file.
        file: &'static str,
    },
    /// The stack does not support the cache shapes.
    #[error(
        "{stack} cannot serve this cache: {reason} (--serving none leaves the configuration as it is)"
    )]
    Refused {
        /// The stack.
        stack: &'static str,
        /// The reason, and what to do.
        reason: String,
    },
}

/// The error that `stack` supports only one rank for all caches.
pub(crate) fn differing_widths(stack: Stack) -> ServingError {
    ServingError::Refused {
        stack: stack.name(),
        reason: "it allocates one width for the keys and values of all layers, and they differ (use --layout uniform, and rewrite every attention)".to_owned(),
    }
}
