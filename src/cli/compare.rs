use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gqa2mla::compress::compressor::Compressor;
use gqa2mla::files::load::load;
use gqa2mla::files::save::DataFile;
use gqa2mla::fit::factors::Factorization;
use gqa2mla::measure::quality::Quality;
use gqa2mla::validate::ports::subject;
use gqa2mla_passes::{Absorbed, Decoupled, Expanded, Form, RankPlan, RewriteOptions};
use serde_json::{Value, json};

use crate::cli::factors::FactorArgs;
use crate::cli::rewrite::bars;
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::{emit, emit_json, progress, table};
use crate::cli::text::TextArgs;
use crate::cli::{Outcome, no_text};

/// Rewrite a model in several ways at several sizes, and compare what each loses on a text.
///
/// Nothing is kept but the table. Factors are fitted to the text of --text or --token-ids (and to the statistics of
/// --calibration, if there are any) and measured on that of --test-text or --test-ids, or else on the last part of the
/// same text, which is then left out of the fit.
///
/// Example: gqa2mla compare fixtures/optimum-llama --token-ids fixtures/tokens.json
#[derive(Debug, Args)]
pub struct Compare {
    /// A .onnx file, or a folder that holds one.
    model: PathBuf,
    /// Shares of the cache that are kept.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.75,0.625,0.5",
        value_name = "SHARES"
    )]
    cache_ratios: Vec<f64>,
    /// Ways to compare.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Way::ALL, value_name = "WAYS")]
    ways: Vec<Way>,
    /// Neighbouring frequencies that TransMLA's recipe takes as one.
    #[arg(long, default_value_t = 1, value_name = "N")]
    freq_fold: usize,
    #[command(flatten)]
    factors: FactorArgs,
    #[command(flatten)]
    test: TestArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// The text to measure on.
#[derive(Debug, Args)]
struct TestArgs {
    /// Text file to measure on; needs --tokenizer.
    #[arg(long, value_name = "FILE", conflicts_with = "test_ids")]
    test_text: Option<PathBuf>,
    /// Token ids to measure on: one JSON list, or a .npy file of integers.
    #[arg(long, value_name = "FILE")]
    test_ids: Option<PathBuf>,
    /// Measure on at most this many tokens.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    test_tokens: usize,
}

/// A factorization with a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Factors from the weights alone.
    Weights,
    /// Unweighted principal components of what is cached.
    Plain,
    /// Weighted by queries and o_proj.
    Weighted,
    /// Weighted, with means given back.
    Calibrated,
    /// Calibrated, then reconstructed layer by layer.
    Reconstructed,
    /// Calibrated, in the expanded form.
    Expanded,
    /// The same, reconstructed layer by layer.
    ExpandedReconstructed,
    /// TransMLA's recipe, in its own cache layout.
    Transmla,
}

impl Way {
    const ALL: [Self; 8] = [
        Self::Weights,
        Self::Plain,
        Self::Weighted,
        Self::Calibrated,
        Self::Reconstructed,
        Self::Expanded,
        Self::ExpandedReconstructed,
        Self::Transmla,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Plain => "plain",
            Self::Weighted => "weighted",
            Self::Calibrated => "calibrated",
            Self::Reconstructed => "reconstructed",
            Self::Expanded => "expanded",
            Self::ExpandedReconstructed => "expanded-reconstructed",
            Self::Transmla => "transmla",
        }
    }

    fn factorization(self, fold: usize) -> Factorization {
        match self {
            Self::Weights => Factorization::Weights,
            Self::Plain => Factorization::Plain,
            Self::Weighted => Factorization::Weighted,
            Self::Transmla => Factorization::TransMla { fold },
            _ => Factorization::Calibrated,
        }
    }

    fn form(self) -> &'static dyn Form {
        match self {
            Self::Expanded | Self::ExpandedReconstructed => &Expanded,
            Self::Transmla => &Decoupled,
            _ => &Absorbed,
        }
    }

    fn reconstructs(self) -> bool {
        matches!(self, Self::Reconstructed | Self::ExpandedReconstructed)
    }
}

/// One line of the table.
struct Row {
    ratio: f64,
    way: Way,
    quality: Quality,
}

impl Compare {
    pub fn run(self, json: bool) -> anyhow::Result<Outcome> {
        let model = load(&self.model)?;
        let vocabulary = subject(&model.model.proto)?.vocabulary;
        let runtime = self.runtime.options(true);
        let (tokens, length) = (self.factors.text_tokens, self.factors.text_length);
        let test = TextArgs::for_test(
            self.test.test_text.clone(),
            self.factors.text.tokenizer(),
            self.test.test_ids.clone(),
        );
        let mut fitted = self.factors.text.read(vocabulary, tokens, length)?;
        let test = match test.read(vocabulary, self.test.test_tokens, length)? {
            Some(test) => test,
            None => {
                let whole = fitted.ok_or_else(no_text)?;
                let parts = whole.hold_out(self.test.test_tokens).ok_or_else(no_text)?;
                fitted = Some(parts.0);
                parts.1
            }
        };
        let statistics = self.factors.statistics(
            Factorization::Calibrated,
            &model,
            fitted.as_ref(),
            &runtime,
        )?;
        let folder = tempfile::tempdir()?;
        let mut rows = Vec::new();
        for &ratio in &self.cache_ratios {
            for &way in &self.ways {
                let data = statistics.as_ref().filter(|_| way != Way::Weights);
                let descent = self.factors.descent(Factorization::Calibrated);
                let compressor = Compressor {
                    model: &model,
                    statistics: data,
                    factorization: way.factorization(self.freq_fold),
                    reconstruction: fitted.as_ref().zip(descent).filter(|_| way.reconstructs()),
                    runtime: &runtime,
                    data: DataFile::Beside,
                    work: None,
                };
                let options = RewriteOptions {
                    ranks: RankPlan::Ratio(ratio),
                    form: way.form(),
                    context: self.factors.context(),
                    ..RewriteOptions::default()
                };
                let made = compressor.rewrite(folder.path(), &options, &mut bars())?;
                let quality = made.quality(&model, &test, &runtime, &mut progress("reading"))?;
                made.discard();
                rows.push(Row {
                    ratio,
                    way,
                    quality,
                });
            }
        }
        match json {
            true => emit_json(&as_json(&rows)),
            false => emit(&as_text(&rows)),
        }
        Ok(Outcome::Done)
    }
}

fn as_text(rows: &[Row]) -> String {
    let mut table = table(&[
        "cache",
        "way",
        "bytes a token",
        "perplexity",
        "increase",
        "KL",
        "top-1",
    ]);
    for row in rows {
        let quality = &row.quality;
        table.add_row([
            format!("{:.1}%", 100.0 * row.ratio),
            row.way.name().to_owned(),
            format!("{}", quality.rewritten_cache_bytes),
            format!("{:.3}", quality.rewritten_perplexity),
            format!("{:+.2}%", 100.0 * quality.increase()),
            format!("{:.4}", quality.mean_kl),
            format!("{:.3}", quality.top1_agreement),
        ]);
    }
    let original = rows.first().map_or(0.0, |r| r.quality.original_perplexity);
    let tokens = rows.first().map_or(0, |r| r.quality.tokens);
    format!("original perplexity {original:.3} on {tokens} tokens\n\n{table}")
}

fn as_json(rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| {
        json!({
            "cache_ratio": row.ratio, "way": row.way.name(), "quality": row.quality,
            "perplexity_increase": row.quality.increase(),
        })
    });
    json!({ "rows": rows.collect::<Vec<_>>() })
}
