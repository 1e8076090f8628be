//! The free layout: made beside the uniform one, and kept where it loses less.

use std::path::Path;

use clap::ValueEnum;
use gqa2mla::compress::allot::free;
use gqa2mla::compress::compressor::{Compressed, Compressor};
use gqa2mla::measure::quality::Quality;
use gqa2mla::measure::text::Text;
use gqa2mla_passes::RewriteOptions;
use serde_json::{Value, json};

use crate::cli::rewrite::bars;
use crate::cli::screen::progress;

/// How the widths of layers and sides go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    /// One width for all.
    Uniform,
    /// A width for each side of each layer.
    Free,
}

/// Mean KL of both layouts at the same size, on text that nothing was fitted to.
#[derive(Debug, Clone, Copy)]
pub struct Layouts {
    uniform: f64,
    free: f64,
}

impl Layouts {
    fn keeps_free(self) -> bool {
        self.free < self.uniform
    }

    /// For people.
    pub fn text(self) -> String {
        let kept = match self.keeps_free() {
            true => "free",
            false => "uniform, as free is no better",
        };
        format!(
            "layouts: KL {:.4} free, {:.4} uniform, on held-out text: kept {kept}\n",
            self.free, self.uniform
        )
    }

    /// For programs.
    pub fn json(self) -> Value {
        json!({
            "free_kl": self.free, "uniform_kl": self.uniform,
            "kept": if self.keeps_free() { "free" } else { "uniform" },
        })
    }
}

/// Rewrites with the widths of `options` and with free ones of the same sum, and keeps what loses less on `held_out`;
/// gives that with its quality there.
pub fn better_layout(
    compressor: &Compressor,
    options: &RewriteOptions,
    out: &Path,
    (fitted, held_out): (&Text, &Text),
) -> anyhow::Result<(Compressed, Layouts, Quality)> {
    let (model, runtime) = (compressor.model, compressor.runtime);
    let freely = RewriteOptions {
        ranks: free(compressor, options, out, fitted, &mut progress("probing"))?,
        ..options.clone()
    };
    let make = |options: &RewriteOptions| -> anyhow::Result<(Compressed, Quality)> {
        let made = compressor.rewrite(out, options, &mut bars())?;
        let quality = made.quality(model, held_out, runtime, &mut progress("reading"))?;
        Ok((made, quality))
    };
    let (uniform, free) = (make(options)?, make(&freely)?);
    let layouts = Layouts {
        uniform: uniform.1.mean_kl,
        free: free.1.mean_kl,
    };
    let (kept, dropped) = match layouts.keeps_free() {
        true => (free, uniform),
        false => (uniform, free),
    };
    dropped.0.discard();
    Ok((kept.0, layouts, kept.1))
}
