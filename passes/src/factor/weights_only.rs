//! Moments from the weights alone: the layer's normalized input is taken to be white.

use ndarray::{Array2, s};

use crate::factor::moments::SideMoments;

/// How channels are rotated by their position.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Angle a position of each pair, [d/2].
    pub frequencies: Vec<f64>,
    /// Whether a pair is two neighbours; else it is a channel of the first half and one of the second.
    pub interleaved: bool,
}

/// The moments of `x W` for a white `x` [E]: Wᵀ W, for a projection `weight` [E, G*d].
pub fn white_input(weight: &Array2<f64>) -> SideMoments {
    SideMoments {
        cached: weight.t().dot(weight),
        weight: None,
        measured: false,
    }
}

/// The mean over positions 0 to `context` - 1 of the moment `c` [G*d, G*d] of rows that are rotated by their position.
///
/// With z = x + iy the complex value of a pair, E[z_a conj(z_b)] is multiplied by phi(theta_a - theta_b) and E[z_a z_b]
/// by phi(theta_a + theta_b), where phi(t) is the mean of e^(itn) over the positions n.
pub fn over_positions(c: &Array2<f64>, turn: &Turn, context: usize) -> Array2<f64> {
    let half = turn.frequencies.len();
    let size = 2 * half;
    let pairs = c.nrows() / 2;
    let place = |pair: usize| {
        let (head, frequency) = (pair / half.max(1), pair % half.max(1));
        match turn.interleaved {
            true => (head * size + 2 * frequency, head * size + 2 * frequency + 1),
            false => (head * size + frequency, head * size + frequency + half),
        }
    };
    let angle = |pair: usize| {
        turn.frequencies
            .get(pair % half.max(1))
            .copied()
            .unwrap_or(0.0)
    };
    let at = |i: usize, j: usize| c.get((i, j)).copied().unwrap_or(0.0);
    let mut mean = Array2::zeros(c.dim());
    for a in 0..pairs {
        for b in 0..pairs {
            let ((xa, ya), (xb, yb)) = (place(a), place(b));
            let (xx, xy, yx, yy) = (at(xa, xb), at(xa, yb), at(ya, xb), at(ya, yb));
            // E[z_a conj(z_b)] and E[z_a z_b], as real and imaginary parts.
            let apart = times((xx + yy, yx - xy), phi(angle(a) - angle(b), context));
            let along = times((xx - yy, xy + yx), phi(angle(a) + angle(b), context));
            let block = [
                ((xa, xb), apart.0 + along.0),
                ((ya, yb), apart.0 - along.0),
                ((xa, yb), along.1 - apart.1),
                ((ya, xb), along.1 + apart.1),
            ];
            for (place, twice) in block {
                if let Some(x) = mean.get_mut(place) {
                    *x = twice / 2.0;
                }
            }
        }
    }
    mean
}

/// Second moments of the queries of each group from W_Q [E, H*d], rotated like the keys: [d, d] a KV head.
pub fn readers_of_keys(
    weight: &Array2<f64>,
    heads: usize,
    kv_heads: usize,
    turn: Option<&Turn>,
    context: usize,
) -> Vec<Array2<f64>> {
    let size = weight.ncols() / heads.max(1);
    let group = (heads / kv_heads.max(1)).max(1);
    let of_head = |head: usize| {
        let columns = weight.slice(s![.., head * size..(head + 1) * size]);
        let moment = columns.t().dot(&columns);
        turn.map_or_else(|| moment.clone(), |t| over_positions(&moment, t, context))
    };
    let of_group = |j: usize| {
        let heads = (j * group..(j + 1) * group).map(of_head);
        heads.fold(Array2::zeros((size, size)), |sum, c| sum + c)
    };
    (0..kv_heads).map(of_group).collect()
}

/// The mean of e^(itn) over n = 0 to `count` - 1, a geometric sum.
fn phi(t: f64, count: usize) -> (f64, f64) {
    let n = count.max(1) as f64;
    let half = (t / 2.0).sin();
    if half.abs() < 1e-12 {
        return (1.0, 0.0);
    }
    let size = (n * t / 2.0).sin() / (n * half);
    let turn = (n - 1.0) * t / 2.0;
    (size * turn.cos(), size * turn.sin())
}

fn times(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}
