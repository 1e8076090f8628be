//! The caches of a model as its caller sees them, where the analysis sees whole caches [B, G, length, d].

use crate::analysis::cache_layout::{self, Laid};
use crate::analysis::new_rows::{self, NewRows};
use crate::graph::cleanup::{Live, cleanup};
use crate::onnx::GraphProto;

/// The caches at the interface of a model that differ from those of its analysis.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outside {
    /// The outputs that have the new rows of a cache alone.
    pub new_rows: Vec<NewRows>,
    /// The caches whose axes have another order.
    pub laid: Vec<Laid>,
}

impl Outside {
    /// Why `GroupQueryAttention` cannot take the place of the model's products; `None` if nothing here hinders it.
    #[must_use]
    pub fn hinders_operator(&self) -> Option<&'static str> {
        match (self.new_rows.is_empty(), self.laid.is_empty()) {
            (false, _) => {
                Some("the model returns the new rows of its caches, and the operator whole caches")
            }
            (true, false) => Some(
                "the caches of the model are not in the operator's order of axes, [batch, heads, length, size]",
            ),
            (true, true) => None,
        }
    }

    /// Why the caches cannot be written in place; `None` if nothing here hinders it.
    #[must_use]
    pub fn hinders_in_place(&self) -> Option<&'static str> {
        match (self.new_rows.is_empty(), self.laid.is_empty()) {
            (false, _) => Some(
                "the model returns the new rows of its caches alone, and a cache that is written in place is returned whole",
            ),
            (true, false) => Some(
                "the caches of the model have another order of axes than [batch, heads, length, size], in which rows are written in place",
            ),
            (true, true) => None,
        }
    }

    /// Makes the caches of `graph`, a rewritten graph, what the caller knows again.
    ///
    /// # Errors
    /// The reason, if a present is not made by a `Concat` of past and new rows.
    pub fn give_back(self, graph: &mut GraphProto) -> Result<(), String> {
        let refused = |what: &str, present: String| {
            format!(
                "{what}, and in this form output '{present}' is not made by a Concat of past and new rows: use the form absorbed"
            )
        };
        let reordered =
            "the caches of the model have another order of axes than [batch, heads, length, size]";
        let before = (!self.laid.is_empty()).then(|| Live::of(graph));
        cache_layout::give_back(graph, self.laid).map_err(|present| refused(reordered, present))?;
        if let Some(before) = before {
            cleanup(graph, &before);
        }
        new_rows::give_back(graph, self.new_rows).map_err(|present| {
            refused(
                "the model returns the new rows of its caches alone",
                present,
            )
        })
    }
}
