//! Row-major indices of columns.

use crate::weights::columns::Numbers;

/// The row-major place of `index` in axes of `sizes`.
pub(super) fn flat(index: &[usize], sizes: &[usize]) -> usize {
    index
        .iter()
        .zip(sizes)
        .fold(0, |at, (i, size)| at * size + i)
}

/// The numbers at the places that `place` gives for each index of `sizes`, in row-major order.
pub(super) fn picked(
    sizes: &[usize],
    numbers: &[usize],
    place: impl Fn(&[usize]) -> Option<usize>,
) -> Option<Numbers> {
    numbered(sizes, |index| numbers.get(place(index)?).copied())
}

/// The number that `number` gives for each index of `sizes`, in row-major order.
pub(super) fn numbered(
    sizes: &[usize],
    number: impl Fn(&[usize]) -> Option<usize>,
) -> Option<Numbers> {
    let count: usize = sizes.iter().product();
    let index = |mut at: usize| {
        let mut index = vec![0; sizes.len()];
        for (slot, size) in index.iter_mut().zip(sizes).rev() {
            *slot = at % size.max(&1);
            at /= size.max(&1);
        }
        index
    };
    (0..count).map(|at| number(&index(at))).collect()
}
