//! One width for all layers, or widths of their own under the same budget: both are made, and the better one is kept.

use gqa2mla_passes::RewriteOptions;

use crate::compress::allot::{Sides, free};
use crate::compress::compressed::Compressed;
use crate::compress::compressor::Compressor;
use crate::compress::error::CompressError;
use crate::compress::events::Observer;
use crate::measure::quality::Quality;
use crate::measure::text::Text;

/// How the latent widths of layers, and of the keys and values of one layer, go together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Widths {
    /// One width for all, as serving stacks expect that compute shapes from a configuration.
    #[default]
    Uniform,
    /// Widths of their own under the budget of one common width, where those lose less.
    Free,
    /// The same with one width for the keys and the values of a layer, as onnxruntime-genai serves it.
    FreeLayers,
}

/// Mean KL in nats of both kinds of widths at the same size, on held-out text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WidthsCompared {
    /// With one width for all.
    pub uniform_kl: f64,
    /// With widths of their own.
    pub free_kl: f64,
}

impl WidthsCompared {
    /// Those that are kept: free widths only where they lose less.
    #[must_use]
    pub fn kept(self) -> Widths {
        match self.free_kl < self.uniform_kl {
            true => Widths::Free,
            false => Widths::Uniform,
        }
    }
}

/// Rewrites with the widths of `options` and with free ones of the same sum, which are fitted to `fitted`, and keeps what
/// loses less on `held_out`; returns that with its quality there.
///
/// # Errors
/// [`CompressError`].
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
