//! Local reconstruction: from factors that are good on average to factors that are good for this attention.
//!
//! One attention at a time, w_dk, w_uk, w_dv, w_uv and a bias are changed by gradient descent until the attention's
//! output, as o_proj reads it, is as near as possible to the original's on the text's own queries, keys and values:
//!
//! ```text
//! minimise  | sum_h (out'_h - out_h) W_O,h |²      out'_h = softmax(mask(f(q_h w_uk[j] · c_k))) c_v w_uv[j] + b_h
//! ```
//!
//! Adam works in the coordinates in which the weighted principal components are orthonormal: A = M⁻¹ w_d, B = M w_u.
//! It needs no labels and no other layer, and the same inputs give the same factors.

use ndarray::{Array1, Array2, Array3, ArrayView2, s};

use super::Factors;
use super::dense::{View, product};
use super::moments::Moments;
use super::spectral::SpectralError;
use super::weighted::{SideFactors, SideRoots};

/// What one attention read and made of a stretch of text.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    /// T.
    pub length: usize,
    /// Queries [H, T, d].
    pub queries: Vec<f32>,
    /// Keys [T, G*d].
    pub keys: Vec<f32>,
    /// Values [T, G*dv].
    pub values: Vec<f32>,
}

/// The attention, apart from its factors.
#[derive(Debug, Clone)]
pub struct Attention {
    /// H.
    pub heads: usize,
    /// G.
    pub kv_heads: usize,
    /// d.
    pub key_size: usize,
    /// dv.
    pub value_size: usize,
    /// Factor of `q · k`, everything included.
    pub scale: f64,
    /// Factor of the values.
    pub value_scale: f64,
    /// Bound of the scores by tanh.
    pub softcap: Option<f64>,
    /// A query sees this many positions, itself included; `None` sees all before it.
    pub window: Option<usize>,
    /// W_O W_Oᵀ [H*dv, H*dv], or nothing where all directions count alike.
    pub readers: Option<Array2<f64>>,
}

/// How to descend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent {
    /// Steps of Adam.
    pub steps: usize,
    /// Queries that one step looks at, of one sequence.
    pub queries: usize,
    /// Rate of the first step; it falls to zero along a cosine.
    pub rate: f64,
}

/// Queries that are worked on at once: they see keys up to the last of them only.
const BLOCK: usize = 64;
/// How often a descent looks at the sequence that is kept aside.
const LOOKS: usize = 8;
/// Adam's usual constants (Kingma and Ba, algorithm 1).
const BETA: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// The parameters of one attention, in single precision.
#[derive(Debug, Clone, Default)]
struct Weights {
    /// [G*d, r].
    w_dk: Vec<f32>,
    /// [G, d, r].
    w_uk: Vec<Vec<f32>>,
    /// [G*dv, r].
    w_dv: Vec<f32>,
    /// [G, r, dv].
    w_uv: Vec<Vec<f32>>,
    /// [H, dv], in units of the cached values.
    bias: Vec<f32>,
}

/// One attention with its widths at hand.
struct Layer<'a> {
    is: &'a Attention,
    key_rank: usize,
    value_rank: usize,
    readers: Option<Vec<f32>>,
}

/// The attention's outputs [T, H*dv] on `sequence`, without any factors.
pub fn outputs(attention: &Attention, sequence: &Sequence) -> Vec<f32> {
    Layer {
        is: attention,
        key_rank: 0,
        value_rank: 0,
        readers: None,
    }
    .target(sequence)
}

/// Relative squared error of the attention's output, as o_proj reads it, over `sequences`; all queries count.
pub fn error(attention: &Attention, factors: &Factors, sequences: &[Sequence]) -> f64 {
    let layer = Layer::new(attention, factors);
    let weights = Weights::of(factors, attention);
    let (mut lost, mut whole) = (0.0, 0.0);
    for sequence in sequences {
        let target = layer.target(sequence);
        let queries: Vec<usize> = (0..sequence.length).collect();
        lost += layer.step(sequence, &target, &queries, &weights, None);
        whole += layer.energy(&target, sequence.length);
    }
    if whole > 0.0 { lost / whole } else { 0.0 }
}

/// The gradient of the squared error on the queries `queries` of `sequence`, in the order of [`Factors`]: w_dk, w_uk,
/// w_dv, w_uv as [G, dv, r], bias. For checks against finite differences.
pub fn gradient(
    attention: &Attention,
    factors: &Factors,
    sequence: &Sequence,
    queries: &[usize],
) -> (f64, Factors) {
    let layer = Layer::new(attention, factors);
    let weights = Weights::of(factors, attention);
    let mut gradient = weights.zeros();
    let target = layer.target(sequence);
    let loss = layer.step(sequence, &target, queries, &weights, Some(&mut gradient));
    (loss, gradient.factors(attention, factors))
}

/// Descends from `start`. The last sequence is kept aside: the result is the best on it of what the descent passes
/// through, and never worse than `start`.
/// `progress` is told after each step how many are done, and the relative squared error of that step.
pub fn reconstruct(
    attention: &Attention,
    moments: &Moments,
    start: &Factors,
    sequences: &[Sequence],
    descent: Descent,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<(Factors, [f64; 2]), SpectralError> {
    let (aside, used) = match sequences.split_last() {
        Some((aside, used)) if !used.is_empty() => (std::slice::from_ref(aside), used),
        _ => (sequences, sequences),
    };
    let before = error(attention, start, aside);
    let layer = Layer::new(attention, start);
    let targets: Vec<Vec<f32>> = used.iter().map(|s| layer.target(s)).collect();
    let energy: f64 = used
        .iter()
        .zip(&targets)
        .map(|(s, t)| layer.energy(t, s.length))
        .sum();
    let tokens: usize = used.iter().map(|s| s.length).sum();
    if energy <= 0.0 || !energy.is_finite() || tokens == 0 {
        return Ok((start.clone(), [before, before]));
    }
    // Mean energy of one query's target: losses become relative.
    let unit = energy / tokens as f64;
    let frame = Frame::new(moments, attention, unit)?;
    let mut point = frame.enter(start);
    let mut adam = Adam::new(point.len());
    let mut weights = Weights::of(start, attention);
    // A short text is soon learnt by heart: what is best on the sequence kept aside is what counts.
    let (mut best, mut least) = (start.clone(), before);
    for step in 0..descent.steps {
        let which = step % used.len();
        let (Some(sequence), Some(target)) = (used.get(which), targets.get(which)) else {
            break;
        };
        let queries = picked(sequence.length, descent.queries, step / used.len());
        let mut slope = weights.zeros();
        let loss = layer.step(sequence, target, &queries, &weights, Some(&mut slope));
        let relative = loss / (unit * queries.len().max(1) as f64);
        let slope = slope.factors(attention, start);
        let slope = frame.pull(&slope, unit * queries.len().max(1) as f64);
        let rate = descent.rate
            * 0.5
            * (1.0 + (std::f64::consts::PI * step as f64 / descent.steps as f64).cos());
        adam.step(&mut point, &slope, rate);
        let factors = frame.leave(&point, start);
        weights = Weights::of(&factors, attention);
        let last = step + 1 == descent.steps;
        if last || (step + 1) % descent.steps.div_ceil(LOOKS) == 0 {
            let now = error(attention, &factors, aside);
            if now < least {
                (best, least) = (factors, now);
            }
        }
        progress(step + 1, relative);
    }
    Ok((best, [before, least]))
}

/// `count` of `length` queries, evenly spaced; the pass `round` begins at another place.
fn picked(length: usize, count: usize, round: usize) -> Vec<usize> {
    let stride = length.div_ceil(count.max(1)).max(1);
    // Rounds walk through all places before one comes again, in an order without neighbours.
    let first = (round * (stride / 2 + 1 - stride % 2).max(1)) % stride;
    (first..length).step_by(stride).collect()
}

impl<'a> Layer<'a> {
    fn new(attention: &'a Attention, factors: &Factors) -> Self {
        Self {
            is: attention,
            key_rank: factors.key.down.ncols(),
            value_rank: factors.value.down.ncols(),
            readers: attention.readers.as_ref().map(single),
        }
    }

    fn group(&self, head: usize) -> usize {
        head / (self.is.heads / self.is.kv_heads.max(1)).max(1)
    }

    /// The original's outputs [T, H*dv].
    fn target(&self, sequence: &Sequence) -> Vec<f32> {
        let (heads, d, dv) = (self.is.heads, self.is.key_size, self.is.value_size);
        let all: Vec<usize> = (0..sequence.length).collect();
        let mut target = vec![0.0; sequence.length * heads * dv];
        let (mut scores, mut out) = (Vec::new(), Vec::new());
        for head in 0..heads {
            let group = self.group(head);
            let keys = columns(&sequence.keys, self.is.kv_heads * d, group * d, d);
            let values = columns(&sequence.values, self.is.kv_heads * dv, group * dv, dv);
            for block in all.chunks(BLOCK) {
                let seen = block.last().map_or(0, |last| last + 1);
                let queries = rows(&sequence.queries, head * sequence.length, block, d);
                product(
                    &mut scores,
                    false,
                    View::new(&queries, block.len(), d),
                    View::new(&keys, seen, d).t(),
                    self.is.scale as f32,
                );
                self.probabilities(&mut scores, block, seen, None);
                product(
                    &mut out,
                    false,
                    View::new(&scores, block.len(), seen),
                    View::new(&values, seen, dv),
                    self.is.value_scale as f32,
                );
                for (&row, made) in block.iter().zip(out.chunks(dv)) {
                    let at = (row * heads + head) * dv;
                    if let Some(place) = target.get_mut(at..at + dv) {
                        place.copy_from_slice(made);
                    }
                }
            }
        }
        target
    }

    /// Squared length of `outputs` [count, H*dv] as o_proj reads them.
    fn energy(&self, outputs: &[f32], count: usize) -> f64 {
        let read = self.read(outputs, count);
        dot(outputs, &read)
    }

    /// `outputs` times W_O W_Oᵀ.
    fn read(&self, outputs: &[f32], count: usize) -> Vec<f32> {
        let width = self.is.heads * self.is.value_size;
        match &self.readers {
            None => outputs.to_vec(),
            Some(readers) => {
                let mut read = Vec::new();
                product(
                    &mut read,
                    false,
                    View::new(outputs, count, width),
                    View::new(readers, width, width),
                    1.0,
                );
                read
            }
        }
    }

    /// Scores of `queries` against the first `seen` positions become probabilities. `bent` takes the slope of the bound.
    fn probabilities(
        &self,
        scores: &mut [f32],
        queries: &[usize],
        seen: usize,
        mut bent: Option<&mut Vec<f32>>,
    ) {
        if let Some(bent) = bent.as_deref_mut() {
            bent.clear();
        }
        if let Some(cap) = self.is.softcap {
            let cap = cap as f32;
            for score in scores.iter_mut() {
                let bounded = (*score / cap).tanh();
                *score = cap * bounded;
                if let Some(bent) = bent.as_deref_mut() {
                    bent.push(1.0 - bounded * bounded);
                }
            }
        }
        for (&query, row) in queries.iter().zip(scores.chunks_mut(seen.max(1))) {
            let first = self
                .is
                .window
                .map_or(0, |window| (query + 1).saturating_sub(window));
            let end = (query + 1).min(seen);
            let mut largest = f32::NEG_INFINITY;
            for score in row.get(first..end).unwrap_or_default() {
                largest = largest.max(*score);
            }
            let mut sum = 0.0f32;
            for (position, score) in row.iter_mut().enumerate() {
                *score = if position >= first && position < end {
                    (*score - largest).exp()
                } else {
                    0.0
                };
                sum += *score;
            }
            let share = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            row.iter_mut().for_each(|p| *p *= share);
        }
    }

    /// Squared error of the outputs at `queries`, and its gradient added to `slope`.
    fn step(
        &self,
        sequence: &Sequence,
        target: &[f32],
        queries: &[usize],
        weights: &Weights,
        mut slope: Option<&mut Weights>,
    ) -> f64 {
        let (n, m) = (
            self.is.kv_heads * self.is.key_size,
            self.is.kv_heads * self.is.value_size,
        );
        let (rk, rv) = (self.key_rank, self.value_rank);
        let seen = queries.last().map_or(0, |last| last + 1);
        let keys = View::new(&sequence.keys, seen, n);
        let values = View::new(&sequence.values, seen, m);
        let (mut latent_keys, mut latent_values) = (Vec::new(), Vec::new());
        product(
            &mut latent_keys,
            false,
            keys,
            View::new(&weights.w_dk, n, rk),
            1.0,
        );
        product(
            &mut latent_values,
            false,
            values,
            View::new(&weights.w_dv, m, rv),
            1.0,
        );
        let mut back = Latents {
            keys: vec![0.0; seen * rk],
            values: vec![0.0; seen * rv],
        };
        let mut lost = 0.0;
        for block in queries.chunks(BLOCK) {
            let seen = block.last().map_or(0, |last| last + 1);
            let latents = (
                View::new(&latent_keys, seen, rk),
                View::new(&latent_values, seen, rv),
            );
            let made: Vec<Head> = (0..self.is.heads)
                .map(|head| self.forward(sequence, block, head, weights, latents))
                .collect();
            let difference = self.difference(&made, target, block, weights);
            let read = self.read(&difference, block.len());
            lost += dot(&difference, &read);
            if let Some(slope) = slope.as_deref_mut() {
                for (head, made) in made.iter().enumerate() {
                    self.backward(
                        head,
                        made,
                        &read,
                        block.len(),
                        weights,
                        latents,
                        slope,
                        &mut back,
                    );
                }
            }
        }
        if let Some(slope) = slope {
            product(
                &mut slope.w_dk,
                true,
                keys.t(),
                View::new(&back.keys, seen, rk),
                1.0,
            );
            product(
                &mut slope.w_dv,
                true,
                values.t(),
                View::new(&back.values, seen, rv),
                1.0,
            );
        }
        lost
    }

    fn forward(
        &self,
        sequence: &Sequence,
        block: &[usize],
        head: usize,
        weights: &Weights,
        (keys, values): (View, View),
    ) -> Head {
        let (d, dv) = (self.is.key_size, self.is.value_size);
        let (rk, rv) = (self.key_rank, self.value_rank);
        let group = self.group(head);
        let seen = block.last().map_or(0, |last| last + 1);
        let empty = Vec::new();
        let (up_key, up_value) = (
            weights.w_uk.get(group).unwrap_or(&empty),
            weights.w_uv.get(group).unwrap_or(&empty),
        );
        let mut made = Head {
            queries: rows(&sequence.queries, head * sequence.length, block, d),
            ..Head::default()
        };
        product(
            &mut made.latent_queries,
            false,
            View::new(&made.queries, block.len(), d),
            View::new(up_key, d, rk),
            1.0,
        );
        product(
            &mut made.p,
            false,
            View::new(&made.latent_queries, block.len(), rk),
            keys.t(),
            self.is.scale as f32,
        );
        self.probabilities(&mut made.p, block, seen, Some(&mut made.bent));
        product(
            &mut made.mixed,
            false,
            View::new(&made.p, block.len(), seen),
            values,
            self.is.value_scale as f32,
        );
        product(
            &mut made.out,
            false,
            View::new(&made.mixed, block.len(), rv),
            View::new(up_value, rv, dv),
            1.0,
        );
        made
    }

    /// Outputs minus target, [block, H*dv].
    fn difference(
        &self,
        made: &[Head],
        target: &[f32],
        block: &[usize],
        weights: &Weights,
    ) -> Vec<f32> {
        let (heads, dv) = (self.is.heads, self.is.value_size);
        let width = heads * dv;
        let value_scale = self.is.value_scale as f32;
        let mut difference = vec![0.0; block.len() * width];
        for (row, (place, &query)) in difference.chunks_mut(width.max(1)).zip(block).enumerate() {
            let wanted = target
                .get(query * width..(query + 1) * width)
                .unwrap_or_default();
            for (head, place) in place.chunks_mut(dv.max(1)).enumerate() {
                let out = made
                    .get(head)
                    .and_then(|m| m.out.get(row * dv..(row + 1) * dv))
                    .unwrap_or_default();
                let bias = weights
                    .bias
                    .get(head * dv..(head + 1) * dv)
                    .unwrap_or_default();
                let wanted = wanted.get(head * dv..(head + 1) * dv).unwrap_or_default();
                for (((x, o), b), t) in place.iter_mut().zip(out).zip(bias).zip(wanted) {
                    *x = o + value_scale * b - t;
                }
            }
        }
        difference
    }

    #[allow(clippy::too_many_arguments)] // The chain rule needs everything that the way forward has made.
    fn backward(
        &self,
        head: usize,
        made: &Head,
        read: &[f32],
        count: usize,
        weights: &Weights,
        (keys, values): (View, View),
        slope: &mut Weights,
        back: &mut Latents,
    ) {
        let (d, dv) = (self.is.key_size, self.is.value_size);
        let (rk, rv) = (self.key_rank, self.value_rank);
        let group = self.group(head);
        let seen = made.p.len() / count.max(1);
        let (scale, value_scale) = (self.is.scale as f32, self.is.value_scale as f32);
        // The loss is e G eᵀ, so its slope at e is 2 e G.
        let width = self.is.heads * dv;
        let mut d_out = columns(read, width, head * dv, dv);
        d_out.iter_mut().for_each(|x| *x *= 2.0);
        let d_out = View::new(&d_out, count, dv);
        if let Some(bias) = slope.bias.get_mut(head * dv..(head + 1) * dv) {
            for row in columns(read, width, head * dv, dv).chunks(dv.max(1)) {
                let slopes = bias.iter_mut().zip(row);
                slopes.for_each(|(b, x)| *b += 2.0 * value_scale * x);
            }
        }
        let empty = Vec::new();
        let up_value = weights.w_uv.get(group).unwrap_or(&empty);
        let mixed = View::new(&made.mixed, count, rv);
        if let Some(slope) = slope.w_uv.get_mut(group) {
            product(slope, true, mixed.t(), d_out, 1.0);
        }
        let mut d_mixed = Vec::new();
        product(
            &mut d_mixed,
            false,
            d_out,
            View::new(up_value, rv, dv).t(),
            1.0,
        );
        let d_mixed = View::new(&d_mixed, count, rv);
        let p = View::new(&made.p, count, seen);
        add_rows(&mut back.values, p.t(), d_mixed, seen, rv, value_scale);
        let mut d_score = Vec::new();
        product(&mut d_score, false, d_mixed, values.t(), value_scale);
        for (slopes, row) in d_score
            .chunks_mut(seen.max(1))
            .zip(made.p.chunks(seen.max(1)))
        {
            let mean: f32 = slopes.iter().zip(row).map(|(s, p)| s * p).sum();
            slopes
                .iter_mut()
                .zip(row)
                .for_each(|(s, p)| *s = p * (*s - mean));
        }
        if self.is.softcap.is_some() {
            d_score
                .iter_mut()
                .zip(&made.bent)
                .for_each(|(s, b)| *s *= b);
        }
        let d_score = View::new(&d_score, count, seen);
        let latent_queries = View::new(&made.latent_queries, count, rk);
        add_rows(&mut back.keys, d_score.t(), latent_queries, seen, rk, scale);
        let mut d_queries = Vec::new();
        product(&mut d_queries, false, d_score, keys, scale);
        if let Some(slope) = slope.w_uk.get_mut(group) {
            let queries = View::new(&made.queries, count, d);
            product(
                slope,
                true,
                queries.t(),
                View::new(&d_queries, count, rk),
                1.0,
            );
        }
    }
}

/// What one head makes of a block of queries.
#[derive(Default)]
struct Head {
    /// [block, d].
    queries: Vec<f32>,
    /// [block, r].
    latent_queries: Vec<f32>,
    /// Probabilities [block, seen].
    p: Vec<f32>,
    /// Slope of the bound of the scores, [block, seen]; empty without one.
    bent: Vec<f32>,
    /// `p c_v`, [block, r].
    mixed: Vec<f32>,
    /// [block, dv].
    out: Vec<f32>,
}

/// Slopes of the latent rows, [seen, r].
struct Latents {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Adds `a b` to the first `count` rows of `out`, `width` wide.
fn add_rows(out: &mut Vec<f32>, a: View, b: View, count: usize, width: usize, alpha: f32) {
    let mut rows = Vec::new();
    product(&mut rows, false, a, b, alpha);
    out.resize(out.len().max(count * width), 0.0);
    out.iter_mut().zip(rows).for_each(|(x, y)| *x += y);
}

/// The rows `at` of a matrix `width` wide that begins at row `first` of `data`.
fn rows(data: &[f32], first: usize, at: &[usize], width: usize) -> Vec<f32> {
    let mut picked = Vec::with_capacity(at.len() * width);
    for row in at {
        let start = (first + row) * width;
        picked.extend_from_slice(data.get(start..start + width).unwrap_or_default());
    }
    picked
}

/// The columns `first..first + count` of a matrix `width` wide.
fn columns(data: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    let mut picked = Vec::with_capacity(data.len() / width.max(1) * count);
    for row in data.chunks(width.max(1)) {
        picked.extend_from_slice(row.get(first..first + count).unwrap_or_default());
    }
    picked
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(x, y)| f64::from(*x) * f64::from(*y))
        .sum()
}

fn single(matrix: &Array2<f64>) -> Vec<f32> {
    matrix.iter().map(|&x| x as f32).collect()
}

impl Weights {
    fn of(factors: &Factors, attention: &Attention) -> Self {
        let up = |side: &SideFactors| -> Vec<Array2<f64>> {
            side.up.outer_iter().map(|block| block.to_owned()).collect()
        };
        Self {
            w_dk: single(&factors.key.down),
            w_uk: up(&factors.key).iter().map(single).collect(),
            w_dv: single(&factors.value.down),
            w_uv: up(&factors.value)
                .iter()
                .map(|block| single(&block.t().as_standard_layout().to_owned()))
                .collect(),
            bias: match &factors.bias {
                Some(bias) => single(bias),
                None => vec![0.0; attention.heads * attention.value_size],
            },
        }
    }

    fn zeros(&self) -> Self {
        let zeros = |x: &Vec<f32>| vec![0.0; x.len()];
        Self {
            w_dk: zeros(&self.w_dk),
            w_uk: self.w_uk.iter().map(zeros).collect(),
            w_dv: zeros(&self.w_dv),
            w_uv: self.w_uv.iter().map(zeros).collect(),
            bias: zeros(&self.bias),
        }
    }

    /// As factors of the shapes of `like`.
    fn factors(&self, attention: &Attention, like: &Factors) -> Factors {
        let matrix = |data: &[f32], rows: usize, columns: usize| {
            Array2::from_shape_fn((rows, columns), |(i, j)| {
                data.get(i * columns + j).copied().map_or(0.0, f64::from)
            })
        };
        let (rk, rv) = (like.key.down.ncols(), like.value.down.ncols());
        let blocks = |parts: &[Vec<f32>], size: usize, rank: usize, turned: bool| {
            Array3::from_shape_fn((parts.len(), size, rank), |(g, i, j)| {
                let at = if turned { j * size + i } else { i * rank + j };
                parts
                    .get(g)
                    .and_then(|p| p.get(at))
                    .copied()
                    .map_or(0.0, f64::from)
            })
        };
        let (heads, dv) = (attention.heads, attention.value_size);
        Factors {
            key: SideFactors {
                down: matrix(&self.w_dk, like.key.down.nrows(), rk),
                up: blocks(&self.w_uk, attention.key_size, rk, false),
                predicted_error: like.key.predicted_error,
            },
            value: SideFactors {
                down: matrix(&self.w_dv, like.value.down.nrows(), rv),
                up: blocks(&self.w_uv, dv, rv, true),
                predicted_error: like.value.predicted_error,
            },
            bias: Some(matrix(&self.bias, heads, dv)),
        }
    }
}

/// The coordinates in which the descent walks: A = M⁻¹ w_d, B = M w_u, and the bias in units of a typical output.
struct Frame {
    key: SideRoots,
    value: SideRoots,
    bias: f64,
}

impl Frame {
    fn new(moments: &Moments, attention: &Attention, unit: f64) -> Result<Self, SpectralError> {
        let reader = attention.readers.as_ref().map_or(1.0, |g| {
            g.diag().mean().unwrap_or(1.0).max(f64::MIN_POSITIVE)
        });
        let width = (attention.heads * attention.value_size) as f64;
        Ok(Self {
            key: SideRoots::of(&moments.key)?,
            value: SideRoots::of(&moments.value)?,
            bias: (unit / reader / width.max(1.0)).sqrt(),
        })
    }

    fn enter(&self, factors: &Factors) -> Vec<f64> {
        let mut point = Vec::new();
        for (roots, side) in [(&self.key, &factors.key), (&self.value, &factors.value)] {
            point.extend(roots.inverse_times(&side.down.view()).iter());
            point.extend(roots.times(&stacked(&side.up).view()).iter());
        }
        if let Some(bias) = &factors.bias {
            point.extend(bias.iter().map(|b| b / self.bias));
        }
        point
    }

    fn leave(&self, point: &[f64], like: &Factors) -> Factors {
        let mut rest = point;
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at(count.min(rest.len()));
            rest = left;
            Array1::from(taken.to_vec())
        };
        let mut side = |roots: &SideRoots, like: &SideFactors| {
            let shape = like.down.dim();
            let down = take(like.down.len()).into_shape_with_order(shape);
            let up = take(like.up.len()).into_shape_with_order(shape);
            SideFactors {
                down: roots.times(&down.unwrap_or_else(|_| like.down.clone()).view()),
                up: blocks(
                    &roots.inverse_times(&up.unwrap_or_else(|_| like.down.clone()).view()),
                    like.up.dim(),
                ),
                predicted_error: like.predicted_error,
            }
        };
        let (key, value) = (side(&self.key, &like.key), side(&self.value, &like.value));
        let bias = like.bias.as_ref().map(|bias| {
            let values = take(bias.len()).into_shape_with_order(bias.dim());
            values.unwrap_or_else(|_| bias.clone()) * self.bias
        });
        Factors { key, value, bias }
    }

    /// The slope at factors, over `norm`, as a slope in these coordinates: w_d = M A and w_u = M⁻¹ B.
    fn pull(&self, slope: &Factors, norm: f64) -> Vec<f64> {
        let mut pulled = Vec::new();
        for (roots, side) in [(&self.key, &slope.key), (&self.value, &slope.value)] {
            pulled.extend(roots.times(&side.down.view()).iter().map(|x| x / norm));
            pulled.extend(
                roots
                    .inverse_times(&stacked(&side.up).view())
                    .iter()
                    .map(|x| x / norm),
            );
        }
        if let Some(bias) = &slope.bias {
            pulled.extend(bias.iter().map(|b| b * self.bias / norm));
        }
        pulled
    }
}

/// [G, d, r] as [G*d, r].
fn stacked(up: &Array3<f64>) -> Array2<f64> {
    let (heads, size, rank) = up.dim();
    Array2::from_shape_fn((heads * size, rank), |(i, j)| {
        up.get((i / size.max(1), i % size.max(1), j))
            .copied()
            .unwrap_or_default()
    })
}

/// [G*d, r] as [G, d, r].
fn blocks(matrix: &Array2<f64>, (heads, size, rank): (usize, usize, usize)) -> Array3<f64> {
    let mut up = Array3::zeros((heads, size, rank));
    for (head, mut block) in up.outer_iter_mut().enumerate() {
        let rows: ArrayView2<f64> = matrix.slice(s![head * size..(head + 1) * size, ..]);
        block.assign(&rows);
    }
    up
}

/// Adam, on one long vector.
struct Adam {
    mean: Vec<f64>,
    square: Vec<f64>,
    steps: i32,
}

impl Adam {
    fn new(length: usize) -> Self {
        Self {
            mean: vec![0.0; length],
            square: vec![0.0; length],
            steps: 0,
        }
    }

    fn step(&mut self, point: &mut [f64], slope: &[f64], rate: f64) {
        self.steps += 1;
        let (b1, b2) = BETA;
        let (c1, c2) = (1.0 - b1.powi(self.steps), 1.0 - b2.powi(self.steps));
        let state = self.mean.iter_mut().zip(&mut self.square);
        for ((x, g), (m, v)) in point.iter_mut().zip(slope).zip(state) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *x -= rate * (*m / c1) / ((*v / c2).sqrt() + EPSILON);
        }
    }
}
