//! From moments and ranks to factors. Knows neither graphs nor files.

pub mod moments;
pub mod spectral;
pub mod weighted;
pub mod weights_only;

pub use moments::{Moments, SideMoments};
pub use spectral::SpectralError;
pub use weighted::SideFactors;

/// The four maps of one layer.
#[derive(Debug, Clone)]
pub struct Factors {
    /// w_dk and w_uk.
    pub key: SideFactors,
    /// w_dv and w_uv (as [G, dv, r]; the graph holds it transposed).
    pub value: SideFactors,
}

/// Weighted principal components of both sides, of rank `rank` each.
pub fn factor(moments: &Moments, kv_heads: usize, rank: usize) -> Result<Factors, SpectralError> {
    Ok(Factors {
        key: weighted::factors(&moments.key, kv_heads, rank)?,
        value: weighted::factors(&moments.value, kv_heads, rank)?,
    })
}
