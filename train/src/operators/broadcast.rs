//! ONNX multidirectional broadcasting, and its gradient, a sum.

use candle_core::Tensor;

use crate::error::{OpError, invalid};
use crate::operators::extent;

/// The broadcast shape of `left` and `right`.
///
/// # Errors
/// [`OpError::Invalid`] if there is none.
pub fn common(left: &[usize], right: &[usize]) -> Result<Vec<usize>, OpError> {
    let rank = left.len().max(right.len());
    let from_end = |dims: &[usize], back: usize| match dims.len().checked_sub(back) {
        Some(at) => extent(dims, at),
        None => 1,
    };
    let mut dims = Vec::with_capacity(rank);
    for back in (1..=rank).rev() {
        let (l, r) = (from_end(left, back), from_end(right, back));
        if l != r && l != 1 && r != 1 {
            return invalid(format!("shapes {left:?} and {right:?} do not broadcast"));
        }
        dims.push(if l == 1 { r } else { l });
    }
    Ok(dims)
}

/// The gradient of a tensor of shape `dims` from the gradient `grad` of its broadcast: copies are summed.
///
/// # Errors
/// [`OpError::Tensor`].
pub fn reduced(grad: &Tensor, dims: &[usize]) -> Result<Tensor, OpError> {
    if grad.dims() == dims {
        return Ok(grad.clone());
    }
    let added = grad.rank().saturating_sub(dims.len());
    let copied = |&axis: &usize| match axis.checked_sub(added) {
        None => true,
        Some(own) => extent(dims, own) == 1 && extent(grad.dims(), axis) != 1,
    };
    let axes: Vec<usize> = (0..grad.rank()).filter(copied).collect();
    Ok(grad.contiguous()?.sum_keepdim(axes)?.reshape(dims)?)
}
