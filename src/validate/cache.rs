//! A cache of a language model: a past input and its present output.

use crate::runtime::RuntimeError;
use crate::runtime::tensor::{ElementType, Tensor};
use crate::validate::port::AxisSize;

/// Number of rows that no token is written to, in the buffers of static caches that declare no number of rows.
const SPARE_ROWS: usize = 3;

/// How a model keeps a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// The present is the past with the new rows behind it; or a state of constant size, if it has no sequence axis.
    Growing,
    /// The model writes the new rows in place: the past input has the shape of the present, with space for the new rows
    /// after the cached ones.
    InPlace,
    /// A ring buffer: it has a constant size, and the operator overwrites the oldest rows.
    Ring,
    /// The past has a constant number of rows, and the present has those of the new tokens behind them. The caller keeps the
    /// last rows. Rows before the first token are padding, which the mask hides.
    Window,
    /// A static cache: a buffer, into which the model writes the new rows where an input says.
    Static,
}

/// One cache: a past input and its present output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePort {
    /// The input's name.
    pub past: String,
    /// The output's name.
    pub present: String,
    /// Element type of both.
    pub element: ElementType,
    /// Declared sizes of the input.
    pub dims: Vec<AxisSize>,
    /// The batch axis.
    pub batch_axis: usize,
    /// The sequence axis, which grows with every token; `None` for a state of constant size, such as that of a
    /// convolution.
    pub length_axis: Option<usize>,
    /// How the model keeps it.
    pub kind: CacheKind,
    /// Whether the output has the new rows alone, which the caller puts behind the past.
    pub gives_new_rows: bool,
}

impl CachePort {
    /// The other axes without a declared size, such as a symbolic head size.
    #[must_use]
    pub fn open_axes(&self) -> Vec<usize> {
        let open = self
            .dims
            .iter()
            .enumerate()
            .filter(|(_, dim)| !matches!(dim, AxisSize::Fixed(_)));
        open.map(|(axis, _)| axis)
            .filter(|axis| *axis != self.batch_axis && Some(*axis) != self.length_axis)
            .collect()
    }

    /// The number of rows of the buffer of a static cache, where it holds `tokens` tokens; the declared one, or one with
    /// some more rows, as buffers have.
    #[must_use]
    pub fn rows(&self, tokens: usize) -> usize {
        match self.length_axis.and_then(|axis| self.dims.get(axis)) {
            Some(AxisSize::Fixed(rows)) => *rows,
            _ => tokens.saturating_add(SPARE_ROWS),
        }
    }

    /// The number of rows of the past input; `None` if it is not constant, or the model keeps it in another way than as a
    /// window.
    #[must_use]
    pub fn window(&self) -> Option<usize> {
        match self.dims.get(self.length_axis?)? {
            AxisSize::Fixed(rows) if self.kind == CacheKind::Window => Some(*rows),
            _ => None,
        }
    }

    /// The input's shape before the first run; `None` if another axis has no declared size.
    #[must_use]
    pub fn empty(&self, batch: usize) -> Option<Vec<usize>> {
        self.shape(batch, self.window().unwrap_or(0))
    }

    /// The rows that the next run reads as its past, from the output `present` of a run that read `past`.
    ///
    /// # Errors
    /// [`RuntimeError::ElementCount`] if the shapes of both do not fit.
    pub fn kept(&self, past: Option<Tensor>, present: Tensor) -> Result<Tensor, RuntimeError> {
        let Some(axis) = self.length_axis else {
            return Ok(present);
        };
        let present = match past.filter(|_| self.gives_new_rows) {
            Some(past) => past.followed_by(&present, axis)?,
            None => present,
        };
        let held = present.shape.get(axis).copied().unwrap_or(0);
        match (self.kind, self.dims.get(axis)) {
            (CacheKind::Window, Some(&AxisSize::Fixed(rows))) => {
                present.rows(axis, held.saturating_sub(rows)..held)
            }
            (CacheKind::Static, Some(&AxisSize::Fixed(rows))) => {
                present.rows(axis, 0..rows.min(held))
            }
            _ => Ok(present),
        }
    }

    /// The input's shape for a batch size and a number of cached tokens; `None` if another axis has no declared size.
    #[must_use]
    pub fn shape(&self, batch: usize, length: usize) -> Option<Vec<usize>> {
        let extent = |(axis, dim): (usize, &AxisSize)| match dim {
            _ if axis == self.batch_axis => Some(batch),
            _ if Some(axis) == self.length_axis => Some(length),
            AxisSize::Fixed(extent) => Some(*extent),
            AxisSize::Symbol(_) | AxisSize::Unknown => None,
        };
        self.dims.iter().enumerate().map(extent).collect()
    }
}
