//! Uniform or separate ranks with the same total cache size: both are tried, and the better model is kept.

use gqa2mla_passes::RewriteOptions;

use crate::compress::allot::{Sides, free};
use crate::compress::compressed::Compressed;
use crate::compress::compressor::Compressor;
use crate::compress::error::CompressError;
use crate::compress::events::Observer;
use crate::measure::quality::Quality;
use crate::measure::text::Text;

/// Whether all layers, and keys and values, have the same rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Widths {
    /// The same rank for all, as required by serving stacks that compute shapes from a configuration.
    #[default]
    Uniform,
    /// Separate ranks with the total size of a uniform rank, if their loss is smaller.
    Free,
    /// Separate ranks for the layers, with the same rank for the keys and the values of a layer, as onnxruntime-genai
    /// requires.
    FreeLayers,
}

/// Mean KL, in nats, of uniform and separate ranks with the same total cache size, on held-out text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WidthsCompared {
    /// Mean KL with a uniform rank.
    pub uniform_kl: f64,
    /// Mean KL with separate ranks.
    pub free_kl: f64,
}

impl WidthsCompared {
    /// The better of both; uniform ranks if they are equal.
    #[must_use]
    pub fn kept(self) -> Widths {
        match self.free_kl < self.uniform_kl {
            true => Widths::Free,
            false => Widths::Uniform,
        }
    }
}

/// Rewrites the model with the uniform rank of `options`, and with separate ranks with the same sum that are chosen on
/// `fitted`. Returns the model with the smaller loss on `held_out`, and its quality there.
///
/// # Errors
/// [`CompressError`] if a model cannot be rewritten or measured.
pub fn better_widths(
    compressor: &Compressor,
    options: &RewriteOptions,
    sides: Sides,
    (fitted, held_out): (&Text, &Text),
    observer: &mut Observer,
) -> Result<(Compressed, WidthsCompared, Quality), CompressError> {
    let freely = RewriteOptions {
        ranks: free(compressor, options, sides, fitted, observer)?,
        ..options.clone()
    };
    let mut make = |options: &RewriteOptions| -> Result<(Compressed, Quality), CompressError> {
        let made = compressor.rewrite(options, observer)?;
        let quality = made.quality(compressor.model, held_out, compressor.runtime, observer)?;
        Ok((made, quality))
    };
    let (uniform, free) = (make(options)?, make(&freely)?);
    let compared = WidthsCompared {
        uniform_kl: uniform.1.mean_kl,
        free_kl: free.1.mean_kl,
    };
    let (kept, dropped) = match compared.kept() {
        Widths::Free | Widths::FreeLayers => (free, uniform),
        Widths::Uniform => (uniform, free),
    };
    dropped.0.discard();
    Ok((kept.0, compared, kept.1))
}
