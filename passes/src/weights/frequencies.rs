//! The RoPE frequencies of a model, read from constants of its graph.

use crate::factor::rope::Rope;
use crate::facts::Facts;
use crate::graph::{Graph, is_contrib};
use crate::onnx::NodeProto;
use crate::onnx::stored::Model;
use crate::recognize::rotation::{Rotated, Rotation};
use crate::weights::matrix::numbers;

/// Largest error of a stored cosine or sine with respect to position times frequency. Tables are computed in fp32,
/// where angles are off by 0.01 at position 100,000, and may be stored in fp16.
const STRAY: f64 = 2e-2;

/// The RoPE of `rotated` for heads of `size` channels. `None` if no constant, or several different ones, can be the
/// frequencies: a model may change its frequencies with the context length.
pub fn rope(
    model: &Model,
    graph: &Graph,
    facts: &Facts,
    rotated: &Rotated,
    size: usize,
) -> Option<Rope> {
    let rotation = match rotated {
        Rotated::No => return Rope::new(size, Vec::new(), Vec::new()),
        Rotated::Unknown(_) => return None,
        Rotated::By(rotation) => rotation,
    };
    let part = rotation.part.as_ref();
    let (first, width) = part.map_or((0, size), |part| (part.first, part.size));
    let known = ConstantLookup {
        model,
        graph,
        facts,
        half: width / 2,
    };
    let frequencies = known.frequencies(rotation)?;
    let half = frequencies.len();
    if half > known.half || rotation.whole && half != known.half {
        return None;
    }
    let pair = |l: usize| match rotation.interleaved {
        true => (first + 2 * l, first + 2 * l + 1),
        false => (first + l, first + l + half),
    };
    Rope::new(size, (0..half).map(pair).collect(), frequencies)
}

/// The graph whose constants are searched.
struct ConstantLookup<'s> {
    model: &'s Model,
    graph: &'s Graph<'s>,
    facts: &'s Facts,
    /// Largest number of pairs.
    half: usize,
}

impl ConstantLookup<'_> {
    /// The frequency of each pair, in radians per position.
    fn frequencies(&self, rotation: &Rotation) -> Option<Vec<f64>> {
        let nodes = || {
            let all = rotation.tables.iter().chain(&rotation.nodes);
            all.filter_map(|id| self.graph.node(*id))
        };
        if let Some(operator) = nodes().find(|n| is_contrib(n, "RotaryEmbedding")) {
            return self.of_tables(operator);
        }
        let mut found = nodes().flat_map(|n| self.constants(n));
        let first = found.next()?;
        found.all(|other| other == first).then_some(first)
    }

    /// All inputs of `node` that can be frequencies: constant, positive, not increasing.
    fn constants(&self, node: &NodeProto) -> Vec<Vec<f64>> {
        let constant = |input: &String| {
            let known = self.facts.floats(input).map(<[f64]>::to_vec);
            let stored = || {
                let tensor = self.graph.initializer(self.graph.resolve(input))?;
                let count: i64 = tensor.dims.iter().product();
                let fits = (2..=self.half as i64).contains(&count);
                fits.then(|| numbers(self.model, tensor))?
            };
            let values = known.or_else(stored)?;
            let falls = values.windows(2).all(|w| matches!(w, [a, b] if a >= b));
            let fits = (2..=self.half).contains(&values.len());
            (fits && falls && values.iter().all(|&x| x > 0.0)).then_some(values)
        };
        node.input.iter().filter_map(constant).collect()
    }

    /// The frequencies from the cos and sin tables [positions, pairs] of `operator`.
    ///
    /// Row 1 gives a coarse estimate of each frequency, and each row 2n halves the error of the estimate from row n.
    /// `None` if later rows have other frequencies than the first ones.
    fn of_tables(&self, operator: &NodeProto) -> Option<Vec<f64>> {
        let table = |at: usize| {
            let name = operator.input.get(at)?;
            let tensor = self.graph.initializer(self.graph.resolve(name))?;
            let [rows, columns] = tensor.dims.as_slice() else {
                return None;
            };
            let shape = (
                usize::try_from(*rows).ok()?,
                usize::try_from(*columns).ok()?,
            );
            Some((shape, numbers(self.model, tensor)?))
        };
        let (((rows, half), cos), (shape, sin)) = (table(2)?, table(3)?);
        if shape != (rows, half) || rows < 2 {
            return None;
        }
        let at = |row: usize, pair: usize| {
            let place = row * half + pair;
            Some((*cos.get(place)?, *sin.get(place)?))
        };
        let doubling = || std::iter::successors(Some(1), |n| Some(2 * n));
        let frequency = |pair: usize| {
            let size = at(0, pair)?.0;
            let mut frequency = 0.0;
            for row in doubling().take_while(|&n| n < rows).chain([rows - 1]) {
                let (cos, sin) = at(row, pair)?;
                let n = row as f64;
                // The row gives the angle modulo 2 pi; the current estimate determines the number of full turns.
                let (now_sin, now_cos) = (frequency * n).sin_cos();
                let ahead = (sin * now_cos - cos * now_sin).atan2(cos * now_cos + sin * now_sin);
                frequency += ahead / n;
                let (sin_n, cos_n) = (frequency * n).sin_cos();
                let off = (cos - size * cos_n).hypot(sin - size * sin_n);
                if off > STRAY * size || (row > 1 && ahead.abs() > 1.0) {
                    return None;
                }
            }
            Some(frequency)
        };
        (0..half).map(frequency).collect()
    }
}
