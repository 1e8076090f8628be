//! Products of single-precision row-major matrices. They are single-threaded, so that results are reproducible bit by
//! bit.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::factor::registers::clear_upper_halves;

/// A view of a row-major matrix, possibly transposed.
#[derive(Debug, Clone, Copy)]
pub struct DenseView<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    turned: bool,
}

impl<'a> DenseView<'a> {
    /// The first `rows` rows of `data`, `columns` wide; fewer if `data` is shorter.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        let rows = rows.min(data.len() / columns.max(1));
        Self {
            data: data.get(..rows * columns).unwrap_or_default(),
            rows,
            columns,
            turned: false,
        }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            turned: !self.turned,
            ..self
        }
    }

    fn faer(self) -> MatRef<'a, f32> {
        let matrix = MatRef::from_row_major_slice(self.data, self.rows, self.columns);
        if self.turned {
            matrix.transpose()
        } else {
            matrix
        }
    }
}

/// `out = alpha * a b`, or `out += alpha * a b` if `add`. `out` is truncated or filled with zeros to the size of the
/// product. If the shapes do not match, nothing is added.
pub fn product(out: &mut Vec<f32>, add: bool, a: DenseView, b: DenseView, alpha: f32) {
    let (a, b) = (a.faer(), b.faer());
    let (rows, columns) = (a.nrows(), b.ncols());
    let mode = if add { Accum::Add } else { Accum::Replace };
    out.resize(rows * columns, 0.0);
    if a.ncols() != b.nrows() {
        return;
    }
    let target = MatMut::from_row_major_slice_mut(out, rows, columns);
    matmul(target, mode, a, b, alpha, Par::Seq);
    clear_upper_halves();
}
