//! Sums over the tokens of a text, from which moments are computed. Only sums and a few sampled rows are kept, so that
//! memory does not grow with the text.

use ndarray::{Array1, Array2, ArrayView2, ArrayView3, Axis};

use crate::factor::joint::JointMoments;
use crate::factor::moments::{Moments, SideMoments};
use crate::factor::position_free::PositionFree;
use crate::factor::rope::Rope;
use crate::factor::sample::Sample;

/// The activations of one attention on one sequence: row-major views of tensors that a runtime returned.
#[derive(Debug, Clone, Copy)]
pub struct Activations<'a> {
    /// Queries [H, T, d] as they enter the score product.
    pub queries: ArrayView3<'a, f32>,
    /// Cached keys [G, T, d].
    pub keys: ArrayView3<'a, f32>,
    /// Cached values [G, T, dv].
    pub values: ArrayView3<'a, f32>,
    /// Unrotated keys [T, G*d], if the rotation is recognised.
    pub unrotated: Option<ArrayView2<'a, f32>>,
    /// Probability that each key position receives from each head, summed over queries, [H, T].
    pub received: ArrayView2<'a, f32>,
    /// The same for the squared probabilities.
    pub received_squared: ArrayView2<'a, f32>,
}

/// Sums of one attention, in f64; n = G*d, m = G*dv.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Number of tokens.
    pub tokens: f64,
    /// Sum of k, `[n]`.
    pub key_sum: Array1<f64>,
    /// Sum of k kᵀ, [n, n].
    pub key_square: Array2<f64>,
    /// Sum of k kᵀ of unrotated keys, [n, n], if the rotation is recognised.
    pub unrotated_square: Option<Array2<f64>>,
    /// Sum of unrotated k, `[n]`.
    pub unrotated_sum: Option<Array1<f64>>,
    /// Sum of k vᵀ with unrotated k, [n, m].
    pub unrotated_value: Option<Array2<f64>>,
    /// Sum of v, `[m]`.
    pub value_sum: Array1<f64>,
    /// Sum of v vᵀ, [m, m].
    pub value_square: Array2<f64>,
    /// Sum of q qᵀ over the heads of each group, one [d, d] per KV head.
    pub query_square: Vec<Array2<f64>>,
    /// Sums of unrotated keys and queries; `None` if the RoPE is unknown. The sums of rotated rows are then valid only
    /// for the positions of the text.
    pub position_free: Option<PositionFree>,
    /// Per head: sum of p over queries and keys, `[H]`.
    pub received: Array1<f64>,
    /// Per head: sum of p v, [H, m].
    pub received_value: Array2<f64>,
    /// Per head: sum of p², `[H]`.
    pub squared: Array1<f64>,
    /// Per head: sum of p² v, [H, m].
    pub squared_value: Array2<f64>,
    /// Sum of p² v vᵀ over heads, [m, m].
    pub squared_square: Array2<f64>,
    /// The cached rows of a random sample of the tokens.
    pub sample: Sample,
}

/// Which moments to compute from the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Weight errors of keys by the queries, and errors of values by o_proj.
    pub weighted: bool,
    /// Centre the keys. Valid only if a constant shift of the scores cancels in the softmax.
    pub centred_keys: bool,
    /// Weight values by their squared attention probability and centre them at each head's mean output, which is
    /// restored by a bias. Valid only if the probabilities sum to one.
    pub received_values: bool,
    /// Use unrotated keys, for the form that caches these.
    pub unrotated: bool,
    /// Number of positions from 0 over which rotated keys and queries are averaged, if their RoPE is known.
    pub positions: usize,
}

impl Statistics {
    /// Empty sums for `heads` (H), `kv_heads` (G), `key_size` (d) and `value_size` (dv). `unrotated`: whether the
    /// activations will have unrotated keys.
    pub fn new(
        heads: usize,
        kv_heads: usize,
        key_size: usize,
        value_size: usize,
        unrotated: bool,
    ) -> Self {
        let (n, m) = (kv_heads * key_size, kv_heads * value_size);
        Self {
            tokens: 0.0,
            key_sum: Array1::zeros(n),
            key_square: Array2::zeros((n, n)),
            unrotated_square: unrotated.then(|| Array2::zeros((n, n))),
            unrotated_sum: unrotated.then(|| Array1::zeros(n)),
            unrotated_value: unrotated.then(|| Array2::zeros((n, m))),
            value_sum: Array1::zeros(m),
            value_square: Array2::zeros((m, m)),
            query_square: vec![Array2::zeros((key_size, key_size)); kv_heads],
            position_free: None,
            received: Array1::zeros(heads),
            received_value: Array2::zeros((heads, m)),
            squared: Array1::zeros(heads),
            squared_value: Array2::zeros((heads, m)),
            squared_square: Array2::zeros((m, m)),
            sample: Sample::default(),
        }
    }

    /// The same sums, with `rope` as the expected rotation of keys and queries. The position-free sums are kept as long
    /// as the keys of every sequence agree with it.
    #[must_use]
    pub fn expecting(self, rope: Option<Rope>) -> Self {
        let kv_heads = self.query_square.len();
        let fits = |rope: &Rope| rope.size() * kv_heads == self.key_sum.len();
        Self {
            position_free: rope.filter(fits).map(|r| PositionFree::new(r, kv_heads)),
            ..self
        }
    }

    /// Adds one sequence that starts at position 0. Its shapes must be those of [`Statistics::new`].
    pub fn add(&mut self, seen: &Activations) {
        let keys = tokens_by_width(&seen.keys);
        let values = tokens_by_width(&seen.values);
        let received = seen.received.mapv(f64::from);
        let squared = seen.received_squared.mapv(f64::from);
        self.sample
            .add(self.tokens as u64, &keys.view(), &values.view());
        self.tokens += keys.nrows() as f64;
        self.key_sum += &keys.sum_axis(Axis(0));
        self.key_square += &keys.t().dot(&keys);
        self.value_sum += &values.sum_axis(Axis(0));
        self.value_square += &values.t().dot(&values);
        if let (Some(square), Some(rows)) = (&mut self.unrotated_square, &seen.unrotated) {
            let rows = rows.mapv(f64::from);
            *square += &rows.t().dot(&rows);
            if let Some(sum) = &mut self.unrotated_sum {
                *sum += &rows.sum_axis(Axis(0));
            }
            if let Some(cross) = &mut self.unrotated_value {
                *cross += &rows.t().dot(&values);
            }
        }
        self.add_position_free(seen);
        let group = seen.queries.len_of(Axis(0)) / self.query_square.len().max(1);
        for (head, q) in seen.queries.outer_iter().enumerate() {
            let q = q.mapv(f64::from);
            if let Some(sum) = self.query_square.get_mut(head / group.max(1)) {
                *sum += &q.t().dot(&q);
            }
        }
        self.received += &received.sum_axis(Axis(1));
        self.received_value += &received.dot(&values);
        self.squared += &squared.sum_axis(Axis(1));
        self.squared_value += &squared.dot(&values);
        let by_token = squared.sum_axis(Axis(0)).insert_axis(Axis(1));
        self.squared_square += &(&values * &by_token).t().dot(&values);
    }

    /// Adds to the position-free sums, or drops them if the keys are not rotated as expected.
    fn add_position_free(&mut self, seen: &Activations) {
        let keys = rows_of(&seen.keys);
        let width = self.key_sum.len();
        let explained = |sums: &PositionFree| {
            let before = seen.unrotated.as_ref().and_then(|rows| rows.as_slice());
            before.is_some_and(|rows| sums.rope.explains(rows, &keys, width))
        };
        let known = self.position_free.take().filter(explained);
        self.position_free = known.map(|mut sums| {
            let queries: Vec<_> = seen.queries.outer_iter().collect();
            let heads: Vec<&[f32]> = queries.iter().filter_map(|q| q.to_slice()).collect();
            sums.add(&keys, heads.into_iter());
            sums
        });
    }

    /// Whether the shapes are consistent.
    pub fn is_consistent(&self) -> bool {
        let (n, m, heads) = (
            self.key_sum.len(),
            self.value_square.nrows(),
            self.received.len(),
        );
        let groups = self.query_square.len();
        let size = n / groups.max(1);
        groups > 0
            && size * groups == n
            && heads % groups == 0
            && m % groups == 0
            && self.query_square.iter().all(|q| q.dim() == (size, size))
            && self
                .position_free
                .as_ref()
                .is_none_or(|s| s.is_consistent() && s.key_sum.len() == n)
            && self.key_square.dim() == (n, n)
            && self
                .unrotated_square
                .as_ref()
                .is_none_or(|s| s.dim() == (n, n))
            && self
                .unrotated_value
                .as_ref()
                .is_none_or(|s| s.dim() == (n, m))
            && self.unrotated_sum.as_ref().is_none_or(|s| s.len() == n)
            && self.value_sum.len() == m
            && self.value_square.dim() == (m, m)
            && self.squared_square.dim() == (m, m)
            && self.received_value.dim() == (heads, m)
            && self.squared_value.dim() == (heads, m)
            && self.squared.len() == heads
            && self.sample.is_consistent(n, m)
    }

    /// Whether all sums are finite.
    pub fn is_finite(&self) -> bool {
        let vectors = [
            &self.key_sum,
            &self.value_sum,
            &self.received,
            &self.squared,
        ];
        let matrices = [
            &self.key_square,
            &self.value_square,
            &self.received_value,
            &self.squared_value,
            &self.squared_square,
        ];
        let free = self.position_free.as_ref();
        let mut vectors = vectors.into_iter().chain(&self.unrotated_sum);
        vectors.all(|v| v.iter().all(|x| x.is_finite()))
            && free.is_none_or(PositionFree::is_finite)
            && matrices
                .into_iter()
                .chain(&self.query_square)
                .chain(&self.unrotated_square)
                .chain(&self.unrotated_value)
                .all(|m| m.iter().all(|x| x.is_finite()))
    }

    /// The moments that `recipe` selects. `readers` holds L_j, one [dv, dv] per KV head: the sum of W_O,h W_O,hᵀ over
    /// the heads of the group; `None`: the identity.
    pub fn moments(&self, recipe: Recipe, readers: Option<Vec<Array2<f64>>>) -> Moments {
        let tokens = self.tokens.max(1.0);
        let anywhere = self.position_free.as_ref();
        let anywhere = anywhere.map(|sums| sums.over(recipe.positions));
        let (mean, square, queries) = match &anywhere {
            Some(sums) => (&sums.key_sum, &sums.key_square, &sums.query_square),
            None => (&self.key_sum, &self.key_square, &self.query_square),
        };
        let unrotated = self.unrotated_square.as_ref().filter(|_| recipe.unrotated);
        let mut cached = unrotated.unwrap_or(square) / tokens;
        // A constant part of unrotated keys is not constant after rotation.
        if recipe.centred_keys && unrotated.is_none() {
            let mean = mean / tokens;
            cached -= &outer(&mean, &mean);
        }
        let key = SideMoments {
            cached,
            weight: recipe
                .weighted
                .then(|| queries.iter().map(|q| q / tokens).collect()),
            measured: true,
        };
        let mut value_mean = None;
        let cached = if recipe.received_values {
            let means = self.mean_outputs();
            value_mean = Some(means.clone());
            self.about(&means)
        } else {
            &self.value_square / tokens
        };
        Moments {
            key,
            value: SideMoments {
                cached,
                weight: readers.filter(|_| recipe.weighted),
                measured: true,
            },
            mean_output: value_mean,
        }
    }

    /// The moments of unrotated keys and of values together, for attentions whose errors are weighted as `moments` has it;
    /// `None` if the keys before rotation are not known. If `centred`, the means are left out, which a bias restores.
    #[must_use]
    pub fn joint(&self, moments: &Moments, centred: bool) -> Option<JointMoments> {
        let (square, sum, cross) = (
            self.unrotated_square.as_ref()?,
            self.unrotated_sum.as_ref()?,
            self.unrotated_value.as_ref()?,
        );
        let tokens = self.tokens.max(1.0);
        let part = |all: &Array2<f64>, a: &Array1<f64>, b: &Array1<f64>| match centred {
            true => all / tokens - outer(a, b) / tokens.powi(2),
            false => all / tokens,
        };
        let side = |cached, weight: &SideMoments| SideMoments {
            cached,
            weight: weight.weight.clone(),
            measured: true,
        };
        let value = &self.value_sum;
        Some(JointMoments {
            key: side(part(square, sum, sum), &moments.key),
            value: side(part(&self.value_square, value, value), &moments.value),
            cross: part(cross, sum, value),
            means: centred.then(|| (sum / tokens, value / tokens)),
        })
    }

    /// Mean over queries of `sum p v` over all cached values, [H, m]: the mean output of each head before the selection
    /// of its KV head.
    pub fn mean_outputs(&self) -> Array2<f64> {
        let received = self.received.mapv(|p| if p > 0.0 { p } else { 1.0 });
        &self.received_value / &received.insert_axis(Axis(1))
    }

    /// `sum p² (v - mean_h)(v - mean_h)ᵀ` over heads and tokens, per query.
    fn about(&self, means: &Array2<f64>) -> Array2<f64> {
        let mut sum = self.squared_square.clone();
        let by_head = means
            .outer_iter()
            .zip(self.squared_value.outer_iter())
            .zip(&self.squared);
        for ((mean, value), weight) in by_head {
            let (mean, value) = (mean.to_owned(), value.to_owned());
            let cross = outer(&mean, &value);
            sum = sum - &cross - cross.t() + outer(&mean, &mean) * *weight;
        }
        sum / self.tokens.max(1.0)
    }
}

fn outer(a: &Array1<f64>, b: &Array1<f64>) -> Array2<f64> {
    let column = a.view().insert_axis(Axis(1));
    let row = b.view().insert_axis(Axis(0));
    column.dot(&row)
}

/// [G, T, d] as rows [T, G*d] in f64.
fn tokens_by_width(heads: &ArrayView3<f32>) -> Array2<f64> {
    let (count, length, size) = heads.dim();
    let rows = rows_of(heads).into_iter().map(f64::from).collect();
    Array2::from_shape_vec((length, count * size), rows).unwrap_or_default()
}

/// [G, T, d] as rows [T, G*d].
fn rows_of(heads: &ArrayView3<f32>) -> Vec<f32> {
    let by_token = heads.view().permuted_axes([1, 0, 2]);
    by_token.iter().copied().collect()
}
