//! Row-major indices.

/// The row-major position of `index` in a tensor of shape `sizes`.
pub(super) fn flat(index: &[usize], sizes: &[usize]) -> usize {
    let digits = index.iter().zip(sizes);
    digits.fold(0, |at, (i, size)| at * size + i)
}

/// The results of `of` for all indices of a tensor of shape `sizes`, in row-major order.
pub(super) fn each<T>(
    sizes: &[usize],
    mut of: impl FnMut(&[usize]) -> Option<T>,
) -> Option<Vec<T>> {
    let count: usize = sizes.iter().product();
    let index = |mut at: usize| {
        let mut index = vec![0; sizes.len()];
        for (slot, size) in index.iter_mut().zip(sizes).rev() {
            *slot = at % size.max(&1);
            at /= size.max(&1);
        }
        index
    };
    (0..count).map(|at| of(&index(at))).collect()
}
