//! Matrix products.

use candle_core::Tensor;

use crate::error::{OpError, invalid};
use crate::operators::broadcast::{common, reduced};
use crate::operators::{Call, Computed, TrainOperator, flows};
use crate::product::product;

pub const OPERATORS: &[TrainOperator] = &[flows("MatMul", matmul), flows("Gemm", gemm)];

/// Two operands as stacks of matrices: a [L, rows, k], b [L, k, n].
///
/// Batch axes of `a` that `b` does not have are merged with the rows, if they are next to them, into one larger
/// product; for example the queries of all heads with one latent cache.
struct Stacks {
    a: Tensor,
    b: Tensor,
    /// The shapes of the operands before stacking, batch axes broadcast.
    a_dims: Vec<usize>,
    b_dims: Vec<usize>,
    output: Vec<usize>,
}

fn stacks(a: &Tensor, b: &Tensor) -> Result<Stacks, OpError> {
    let ([a_batch @ .., m, k], [b_batch @ .., k2, n]) = (a.dims(), b.dims()) else {
        return invalid(format!(
            "shapes {:?} and {:?} are no matrices",
            a.dims(),
            b.dims()
        ));
    };
    if k != k2 {
        return invalid(format!(
            "shapes {:?} and {:?} do not multiply",
            a.dims(),
            b.dims()
        ));
    }
    let batch = common(a_batch, b_batch)?;
    let aligned = |own: &[usize]| [vec![1; batch.len() - own.len()], own.to_vec()].concat();
    let (a_batch, b_batch) = (aligned(a_batch), aligned(b_batch));
    let shared = b_batch.iter().rev().take_while(|&&d| d == 1).count();
    let (lead, folded) = batch.split_at(batch.len() - shared);
    let a_folded = a_batch.get(lead.len()..).unwrap_or_default();
    debug_assert_eq!(folded, a_folded);
    let stack: usize = lead.iter().product();
    let rows = a_folded.iter().product::<usize>() * m;
    let a_dims = [lead, a_folded, &[*m, *k]].concat();
    let b_dims = [lead, vec![1; shared].as_slice(), &[*k, *n]].concat();
    let a = a.reshape([a_batch.as_slice(), &[*m, *k]].concat())?;
    let b = reshaped(b, &[b_batch.as_slice(), &[*k, *n]].concat())?;
    Ok(Stacks {
        a: a.broadcast_as(a_dims.as_slice())?
            .reshape((stack, rows, *k))?,
        b: reshaped(&b.broadcast_as(b_dims.as_slice())?, &[stack, *k, *n])?,
        a_dims,
        b_dims,
        output: [batch.as_slice(), &[*m, *n]].concat(),
    })
}

/// `b` with other batch axes. Matrices that are stored transposed are not copied, because the product supports both.
fn reshaped(b: &Tensor, dims: &[usize]) -> Result<Tensor, OpError> {
    let stored = b.t()?;
    if b.is_contiguous() || !stored.is_contiguous() {
        return Ok(b.reshape(dims)?);
    }
    let mut dims = dims.to_vec();
    let rank = dims.len();
    dims.swap(rank.saturating_sub(1), rank.saturating_sub(2));
    Ok(stored.reshape(dims)?.t()?)
}

/// y = a b; da = dy b^T, db = a^T dy, each only if it is needed, so that frozen weights cost nothing.
fn matmul(call: &Call) -> Result<Computed, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (a_shape, b_shape) = (a.dims().to_vec(), b.dims().to_vec());
    let stacks = stacks(a, b)?;
    let output = product(&stacks.a, &stacks.b)?;
    let rows = output.dims().to_vec();
    let output = output.reshape(stacks.output.as_slice())?;
    let (for_a, for_b) = (
        call.tracks(0)
            .then(|| (stacks.b.clone(), stacks.a_dims.clone())),
        call.tracks(1)
            .then(|| (stacks.a.clone(), stacks.b_dims.clone())),
    );
    Ok(call.made(output, move |grad| {
        let grad = grad.reshape(rows)?;
        let to_a = |(b, dims): (Tensor, Vec<usize>)| {
            reduced(&product(&grad, &b.t()?)?.reshape(dims)?, &a_shape)
        };
        let to_b = |(a, dims): (Tensor, Vec<usize>)| {
            reduced(&product(&a.t()?, &grad)?.reshape(dims)?, &b_shape)
        };
        Ok(vec![
            for_a.map(to_a).transpose()?,
            for_b.map(to_b).transpose()?,
        ])
    }))
}

/// a b for a [m, k] and b [k, n].
fn of_matrices(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    product(&a.unsqueeze(0)?, &b.unsqueeze(0)?)?.squeeze(0)
}

/// y = alpha op(a) op(b) + beta c, with op the transpose if the attribute is set.
fn gemm(call: &Call) -> Result<Computed, OpError> {
    let (alpha, beta) = (
        f64::from(call.float("alpha", 1.0)),
        f64::from(call.float("beta", 1.0)),
    );
    let turned = [call.int("transA", 0) != 0, call.int("transB", 0) != 0];
    let turn = |t: &Tensor, turned: bool| if turned { t.t() } else { Ok(t.clone()) };
    let (a, b) = (
        turn(call.input(0)?, turned[0])?,
        turn(call.input(1)?, turned[1])?,
    );
    let mut output = (of_matrices(&a, &b)? * alpha)?;
    let c_dims = call.optional(2).map(|c| c.dims().to_vec());
    if let Some(c) = call.optional(2) {
        output = output.broadcast_add(&(c * beta)?)?;
    }
    let tracked = [call.tracks(0), call.tracks(1), call.tracks(2)];
    let (for_a, for_b) = (tracked[0].then(|| b.clone()), tracked[1].then(|| a.clone()));
    Ok(call.made(output, move |grad| {
        let grad = &grad.contiguous()?;
        let to_a = |b: Tensor| turn(&(of_matrices(grad, &b.t()?)? * alpha)?, turned[0]);
        let to_b = |a: Tensor| turn(&(of_matrices(&a.t()?, grad)? * alpha)?, turned[1]);
        let to_c =
            |dims: Vec<usize>| -> Result<Tensor, OpError> { Ok((reduced(grad, &dims)? * beta)?) };
        Ok(vec![
            for_a.map(to_a).transpose()?,
            for_b.map(to_b).transpose()?,
            c_dims.filter(|_| tracked[2]).map(to_c).transpose()?,
        ])
    }))
}
