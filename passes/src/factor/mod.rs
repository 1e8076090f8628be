//! Low-rank factorization: from second moments and ranks to factors. Independent of graphs and files.

pub mod blank;
mod dense;
mod even;
pub mod joint;
pub mod moments;
pub mod position_free;
pub mod readers;
pub mod reconstruct;
pub mod registers;
pub mod rope;
pub mod rounding;
pub mod sample;
pub mod spectral;
pub mod statistics;
pub mod transmla;
pub mod weighted;
pub mod weights_only;

use ndarray::{Array2, Axis, s};

pub use joint::JointFactors;
pub use moments::{Moments, SideMoments};
pub use rounding::{CacheBits, Rounding};
pub use spectral::SpectralError;
pub use statistics::{Recipe, Statistics};
pub use weighted::SideFactors;

/// The factors of one layer.
#[derive(Debug, Clone)]
pub struct Factors {
    /// w_dk [G*d, r] and w_uk [G, d, r] ([H, d, r] after [`Made::for_every_head`]).
    pub key: SideFactors,
    /// w_dv [G*dv, r] and w_uv [G, dv, r], likewise (transposed in the graph).
    pub value: SideFactors,
    /// Bias correction [H, dv], added to the output of each head: the part of its mean that the latent loses.
    pub bias: Option<Array2<f64>>,
}

/// The result of a factorization; the variant depends on the target form.
#[derive(Debug, Clone)]
pub enum Made {
    /// One latent for keys and one for values.
    Latent(Factors),
    /// The same, with the latents cached as integers.
    Rounded(Factors, Box<Rounding>),
    /// One latent for keys before rotation and values together.
    Joint(Box<JointFactors>),
    /// The same, cached as integers.
    JointRounded(Box<JointFactors>, Box<Rounding>),
    /// TransMLA's factors: one rotated head, and one latent of all other components.
    Decoupled(transmla::DecoupledFactors),
}

/// The error of a form that is given factors of another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the factors are those of another form")]
pub struct NotLatent;

impl Made {
    /// The factors of a latent of keys and one of values.
    ///
    /// # Errors
    /// [`NotLatent`] if the factors are those of another form.
    pub fn latent(&self) -> Result<&Factors, NotLatent> {
        match self {
            Self::Latent(factors) | Self::Rounded(factors, _) => Ok(factors),
            Self::Joint(_) | Self::JointRounded(..) | Self::Decoupled(_) => Err(NotLatent),
        }
    }

    /// The factors of one latent of keys and values; two latents are parts of one.
    ///
    /// # Errors
    /// [`NotLatent`] if the factors are TransMLA's.
    pub fn joint(&self) -> Result<JointFactors, NotLatent> {
        match self {
            Self::Latent(factors) | Self::Rounded(factors, _) => Ok(factors.into()),
            Self::Joint(factors) | Self::JointRounded(factors, _) => Ok((**factors).clone()),
            Self::Decoupled(_) => Err(NotLatent),
        }
    }

    /// The integer format of the latents, if they are cached as integers.
    pub fn rounding(&self) -> Option<&Rounding> {
        match self {
            Self::Rounded(_, rounding) | Self::JointRounded(_, rounding) => Some(rounding),
            Self::Latent(_) | Self::Joint(_) | Self::Decoupled(_) => None,
        }
    }

    /// The factors with a block of w_uk and w_uv for each of the H = `heads` query heads, equal to that of its KV head.
    /// TransMLA's factors are unchanged.
    #[must_use]
    pub fn for_every_head(&self, heads: usize) -> Self {
        let mut own = self.clone();
        let sides = match &mut own {
            Self::Latent(factors) | Self::Rounded(factors, _) => {
                Some([&mut factors.key, &mut factors.value])
            }
            Self::Joint(factors) | Self::JointRounded(factors, _) => {
                factors.key_bias = factors.key_bias.as_ref().map(|bias| {
                    let group = (heads / bias.nrows().max(1)).max(1);
                    let read: Vec<usize> = (0..heads).map(|head| head / group).collect();
                    bias.select(Axis(0), &read)
                });
                Some([&mut factors.key, &mut factors.value])
            }
            Self::Decoupled(_) => None,
        };
        if let Some(sides) = sides {
            for side in sides {
                let kv_heads = side.up.len_of(Axis(0));
                let group = (heads / kv_heads.max(1)).max(1);
                let last = kv_heads.saturating_sub(1);
                let read: Vec<usize> = (0..heads).map(|head| (head / group).min(last)).collect();
                side.up = side.up.select(Axis(0), &read);
            }
        }
        own
    }
}

impl From<Factors> for Made {
    fn from(factors: Factors) -> Self {
        Self::Latent(factors)
    }
}

/// The ranks of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranks {
    /// Rank of the keys.
    pub key: usize,
    /// Rank of the values.
    pub value: usize,
}

impl Ranks {
    /// The same rank for keys and values.
    pub fn uniform(rank: usize) -> Self {
        Self {
            key: rank,
            value: rank,
        }
    }
}

/// Weighted principal components of keys and values, with bias correction if the moments have mean outputs.
pub fn factor(moments: &Moments, kv_heads: usize, ranks: Ranks) -> Result<Factors, SpectralError> {
    let key = weighted::factors(&moments.key, kv_heads, ranks.key)?;
    let value = weighted::factors(&moments.value, kv_heads, ranks.value)?;
    let lossy = ranks.value < moments.value.cached.nrows();
    let mean = moments.mean_output.as_ref().filter(|_| lossy);
    Ok(Factors {
        bias: mean.map(|mean| given_back(mean, &value)),
        key,
        value,
    })
}

/// Bias correction [H, dv]: the part of each head's mean output that the projection loses. It is row h of `mean` [H,
/// G*dv] minus its projection, at the columns of the head's KV head.
fn given_back(mean: &Array2<f64>, side: &SideFactors) -> Array2<f64> {
    let (kv_heads, size, _) = side.up.dim();
    let heads = mean.nrows();
    let group = (heads / kv_heads.max(1)).max(1);
    let latent = mean.dot(&side.down);
    let mut bias = Array2::zeros((heads, size));
    let rows = bias.outer_iter_mut().zip(mean.outer_iter());
    for ((head, (mut row, mean)), latent) in rows.enumerate().zip(latent.outer_iter()) {
        let own = head / group;
        let up = side.up.slice(s![own, .., ..]);
        let lost = &mean.slice(s![own * size..(own + 1) * size]) - &up.dot(&latent);
        row.assign(&lost);
    }
    bias
}
