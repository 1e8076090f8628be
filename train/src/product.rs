//! Products of stacks of fp32 matrices on the CPU.
//!
//! The blocks of a product depend on its shape only, so results do not depend on the number of threads.

use candle_core::{Device, Error, Result, Storage, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use gqa2mla_passes::factor::registers::clear_upper_halves;
use rayon::prelude::*;

/// Multiplications per block of a product.
const BLOCK: usize = 1 << 25;

/// The size of a block along the longer axis of the output is a multiple of this, but for the last block.
const EDGE: usize = 96;

/// a b for a [L, m, k] and b [L, k, n]. Matrices that are stored transposed are not copied.
///
/// # Errors
/// If the shapes do not multiply, or a tensor is not fp32 or not on the CPU.
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((stack, m, k), (b_stack, b_k, n)) = (a.dims3()?, b.dims3()?);
    if (stack, k) != (b_stack, b_k) {
        return Err(Error::Msg(format!(
            "shapes {:?} and {:?} do not multiply",
            a.dims(),
            b.dims()
        )));
    }
    let mut out = vec![0.0; stack * m * n];
    matrices(a, |a| {
        matrices(b, |b| {
            let blocks = blocks(&mut out, &a, &b, (m, k, n));
            blocks.into_par_iter().for_each(|(out, a, b)| {
                matmul(out, Accum::Replace, a, b, 1.0, Par::Seq);
                clear_upper_halves();
            });
        })
    })??;
    Tensor::from_vec(out, (stack, m, n), &Device::Cpu)
}

/// A block of the output and the rows of a and columns of b that it is made of.
type Block<'a> = (MatMut<'a, f32>, MatRef<'a, f32>, MatRef<'a, f32>);

/// The blocks of all products of the stack: parts of the longer axis of the output.
fn blocks<'a>(
    out: &'a mut [f32],
    a: &[MatRef<'a, f32>],
    b: &[MatRef<'a, f32>],
    (m, k, n): (usize, usize, usize),
) -> Vec<Block<'a>> {
    let parts = (m * k * n).div_ceil(BLOCK).max(1);
    let width = m.max(n).div_ceil(parts).next_multiple_of(EDGE);
    let mut blocks = Vec::with_capacity(a.len() * parts);
    let outputs = out.chunks_exact_mut((m * n).max(1));
    for (out, (&a, &b)) in outputs.zip(a.iter().zip(b)) {
        let mut rest = MatMut::from_row_major_slice_mut(out, m, n);
        for start in (0..m.max(n)).step_by(width) {
            let size = width.min(m.max(n) - start);
            if n >= m {
                let (block, after) = rest.split_at_col_mut(size);
                blocks.push((block, a, b.subcols(start, size)));
                rest = after;
            } else {
                let (block, after) = rest.split_at_row_mut(size);
                blocks.push((block, a.subrows(start, size), b));
                rest = after;
            }
        }
    }
    blocks
}

/// Calls `of` with the matrices of `tensor` [L, rows, columns].
fn matrices<R>(tensor: &Tensor, of: impl FnOnce(Vec<MatRef<f32>>) -> R) -> Result<R> {
    let (stack, rows, columns) = tensor.dims3()?;
    let tensor = match *tensor.stride() {
        [_, width, 1] if width >= columns => tensor.clone(),
        [_, 1, height] if height >= rows => tensor.clone(),
        _ => tensor.contiguous()?,
    };
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Msg(
            "the tensor is not in the processor's memory".to_owned(),
        ));
    };
    let all = storage.as_slice::<f32>()?;
    let &[between, down, across] = layout.stride() else {
        return Err(Error::Msg("the tensor is no stack of matrices".to_owned()));
    };
    let start = layout.start_offset();
    let matrix = |at: usize| {
        let stored = all.get(start + at * between..).unwrap_or_default();
        if across == 1 {
            MatRef::from_row_major_slice_with_stride(stored, rows, columns, down)
        } else {
            MatRef::from_column_major_slice_with_stride(stored, rows, columns, across)
        }
    };
    Ok(of((0..stack).map(matrix).collect()))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use super::product;

    /// Sums of 400 products of numbers around 1 in fp32.
    const ROUNDING: f32 = 2e-3;

    #[test]
    fn products_in_blocks_are_those_of_the_whole_however_the_matrices_are_stored() -> Result<()> {
        // More than one block along rows, along columns, and one that is not full.
        for (stack, m, k, n) in [(1, 700, 400, 500), (2, 100, 400, 1100), (3, 5, 7, 2)] {
            let random =
                |rows, columns| Tensor::randn(0f32, 1.0, (stack, rows, columns), &Device::Cpu);
            let (a, b) = (random(m, k)?, random(k, n)?);
            let expected = a.matmul(&b)?;
            let stored = |x: &Tensor| x.t()?.contiguous()?.t();
            let part = |x: &Tensor| Tensor::cat(&[x, x], 2)?.narrow(2, 0, x.dim(2)?);
            for a in [a.clone(), stored(&a)?, part(&a)?] {
                for b in [b.clone(), stored(&b)?, part(&b)?] {
                    let error = (product(&a, &b)? - &expected)?.abs()?.max_all()?;
                    assert!(error.to_scalar::<f32>()? < ROUNDING, "{:?}", (a, b));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_product_without_terms_is_zero_and_one_without_rows_is_empty() -> Result<()> {
        let of = |m, k, n| {
            let zeros = |rows, columns| {
                Tensor::zeros((2, rows, columns), candle_core::DType::F32, &Device::Cpu)
            };
            product(&zeros(m, k)?, &zeros(k, n)?)
        };
        assert_eq!(
            of(2, 0, 3)?.to_vec3::<f32>()?,
            vec![vec![vec![0.0; 3]; 2]; 2]
        );
        assert_eq!(of(0, 4, 3)?.dims(), [2, 0, 3]);
        assert!(product(&of(1, 1, 2)?, &of(1, 1, 2)?).is_err());
        Ok(())
    }
}
