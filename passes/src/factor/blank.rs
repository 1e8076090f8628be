//! Factors of the right shapes and without content, for a rewrite of which only the graph is of interest. No weight is
//! read for them.

use ndarray::{Array1, Array2, Array3};

use crate::factor::rounding::Levels;
use crate::factor::transmla::DecoupledFactors;
use crate::factor::{CacheBits, Factors, Made, Ranks, Rounding, SideFactors};

/// The sizes of one attention.
#[derive(Debug, Clone, Copy)]
pub struct BlankFactors {
    /// G.
    pub kv_heads: usize,
    /// d, of a key head.
    pub key_size: usize,
    /// dv, of a value head.
    pub value_size: usize,
    /// The ranks.
    pub ranks: Ranks,
    /// Number of heads that are cached: G, or 1 for a latent.
    pub heads: usize,
}

impl BlankFactors {
    /// Latents of keys and values, cached in `bits` a number.
    #[must_use]
    pub fn latent(self, bits: CacheBits) -> Made {
        let factors = Factors {
            key: self.side(self.key_size, self.ranks.key),
            value: self.side(self.value_size, self.ranks.value),
            bias: None,
        };
        if bits == CacheBits::Model {
            return factors.into();
        }
        let rounding = Rounding {
            bits,
            heads: self.heads,
            key: levels(bits, self.ranks.key, self.heads),
            value: levels(bits, self.ranks.value, self.heads),
        };
        Made::Rounded(factors, rounding.into())
    }

    /// TransMLA's factors, whose latent has the rank of the values.
    #[must_use]
    pub fn decoupled(self) -> Made {
        let (groups, d, dv) = (self.kv_heads, self.key_size, self.value_size);
        let rank = self.ranks.value;
        Made::Decoupled(DecoupledFactors {
            rope_key: Array2::zeros((groups * d, d)),
            rope_query: Array3::zeros((groups, d, d)),
            down_key: Array2::zeros((groups * d, rank)),
            down_value: Array2::zeros((groups * dv, rank)),
            up_query: Array3::zeros((groups, d, rank)),
            up_value: Array3::zeros((groups, dv, rank)),
        })
    }

    /// At full rank w_d is the identity, which is left out of the graph.
    fn side(self, size: usize, rank: usize) -> SideFactors {
        let mut down = Array2::zeros((self.kv_heads * size, rank));
        down.diag_mut().fill(1.0);
        SideFactors {
            down,
            up: Array3::zeros((self.kv_heads, size, rank)),
            spectrum: Array1::zeros(0),
        }
    }
}

/// Steps of 1 of every channel and its second digit, of `heads` heads.
fn levels(bits: CacheBits, rank: usize, heads: usize) -> Levels {
    let size = rank / heads.max(1);
    Levels {
        scale: Array1::ones(heads * bits.channels(size)),
        centre: None,
        second_digits: bits.second_digits(size),
    }
}
