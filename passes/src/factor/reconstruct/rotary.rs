//! Measured rotations: estimated from rows before and after rotation, and applied to other rows.

/// Largest relative squared error of an accepted estimate. fp16 rounding causes 1e-6; wrong pairs cause about 1.
const TOLERANCE: f64 = 1e-4;

/// A complex factor for each pair of channels at each position; unpaired channels are not changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// The two channels of each pair within a head.
    pairs: Vec<(usize, usize)>,
    /// Real and imaginary parts of the factors, [T, pairs].
    factors: Vec<(f32, f32)>,
}

impl Rotary {
    /// Estimates the rotation from the rows `before` and `after`, both [T, G*d], for heads of `size` channels. `None`
    /// if no pairing fits, neither of neighbours (interleaved) nor of the halves of the first channels, or if heads are
    /// rotated differently.
    #[must_use]
    pub fn between(before: &[f32], after: &[f32], kv_heads: usize, size: usize) -> Option<Self> {
        let halves = |half: usize| (0..half).map(|l| (l, l + half)).collect();
        let neighbours: Vec<(usize, usize)> = (0..size / 2).map(|l| (2 * l, 2 * l + 1)).collect();
        let narrowing = (1..=size / 2).rev().map(halves);
        let mut ways = std::iter::once(neighbours).chain(narrowing);
        ways.find_map(|pairs| Self::of_pairs(pairs, before, after, kv_heads * size, size))
    }

    /// The factors for the pairing `pairs`, if it fits.
    fn of_pairs(
        pairs: Vec<(usize, usize)>,
        before: &[f32],
        after: &[f32],
        width: usize,
        size: usize,
    ) -> Option<Self> {
        let rows = || before.chunks(width.max(1)).zip(after.chunks(width.max(1)));
        let at = |head: &[f32], channel: usize| head.get(channel).copied().map_or(0.0, f64::from);
        let mut factors = Vec::new();
        let (mut lengths, mut weights) = (vec![0.0; pairs.len()], vec![0.0; pairs.len()]);
        for (old, new) in rows() {
            let sums = lengths.iter_mut().zip(&mut weights);
            for (&(x, y), (length, weight)) in pairs.iter().zip(sums) {
                // Least squares over the heads: z = sum of new conj(old), over sum of |old|².
                let (mut re, mut im, mut square) = (0.0, 0.0, 0.0);
                for (old, new) in old.chunks(size).zip(new.chunks(size)) {
                    let (a, b) = (at(old, x), at(old, y));
                    let (c, d) = (at(new, x), at(new, y));
                    re += c * a + d * b;
                    im += d * a - c * b;
                    square += a * a + b * b;
                }
                let z = match square > 0.0 {
                    true => (re / square, im / square),
                    false => (1.0, 0.0),
                };
                *length += square * z.0.hypot(z.1);
                *weight += square;
                factors.push((z.0 as f32, z.1 as f32, square));
            }
        }
        // With a single head any pairing fits, but only for the right one are the magnitudes of the factors the same at
        // all positions.
        let (mut strays, mut whole) = (0.0, 0.0);
        for row in factors.chunks(pairs.len().max(1)) {
            for (&(re, im, square), (length, weight)) in
                row.iter().zip(lengths.iter().zip(&weights))
            {
                let usual = if *weight > 0.0 { length / weight } else { 1.0 };
                let stray = f64::from(re).hypot(f64::from(im)) - usual;
                strays += square * stray * stray;
                whole += square * usual * usual;
            }
        }
        let factors = factors.into_iter().map(|(re, im, _)| (re, im)).collect();
        let found = Self { pairs, factors };
        let mut turned = before.to_vec();
        turned
            .chunks_mut(width.max(1))
            .enumerate()
            .for_each(|(position, row)| {
                let heads = row.chunks_mut(size);
                heads.for_each(|head| found.turn(position, head, 1.0));
            });
        let difference = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        let off: f64 = turned.iter().zip(after).map(difference).sum();
        let all: f64 = after.iter().map(|x| f64::from(*x).powi(2)).sum();
        let fits = off <= TOLERANCE * all && strays <= TOLERANCE * whole;
        (fits && off.is_finite() && all > 0.0).then_some(found)
    }

    /// Rotates rows [T, d] of one head, row 0 at position 0.
    pub fn rotate(&self, rows: &mut [f32], size: usize) {
        let rows = rows.chunks_mut(size.max(1)).enumerate();
        rows.for_each(|(position, row)| self.turn(position, row, 1.0));
    }

    /// The transpose of [`Self::rotate`]: maps gradients of rotated rows to gradients of unrotated rows.
    pub fn rotate_back(&self, rows: &mut [f32], size: usize) {
        let rows = rows.chunks_mut(size.max(1)).enumerate();
        rows.for_each(|(position, row)| self.turn(position, row, -1.0));
    }

    fn turn(&self, position: usize, row: &mut [f32], direction: f32) {
        let count = self.pairs.len();
        let factors = self.factors.get(position * count..(position + 1) * count);
        for (&(x, y), (re, im)) in self.pairs.iter().zip(factors.unwrap_or_default()) {
            let (Some(&a), Some(&b)) = (row.get(x), row.get(y)) else {
                continue;
            };
            let im = direction * im;
            for (place, value) in [(x, a * re - b * im), (y, a * im + b * re)] {
                if let Some(channel) = row.get_mut(place) {
                    *channel = value;
                }
            }
        }
    }
}
