use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

use crate::cli::exit::{Exit, in_options};
use crate::cli::factors::FactorArgs;
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::{Screen, table};
use crate::cli::text::text_source;
use crate::cli::values::share;
use crate::compress::request::TextRequest;
use crate::compress::ways::{Way, WayMeasured, WaysRequest, compare_ways};
use crate::files::load::load;
use crate::report::{grouped, measured};

/// Rewrite a model in several ways at several sizes, and compare what each loses on a text.
///
/// Nothing is kept but the table. Factors are fitted to the text of --text or --token-ids (and to the statistics of
/// --calibration, if there are any) and measured on that of --test-text or --test-token-ids, or else on the last part of the
/// same text, which is then left out of the fit.
///
/// Example: gqa2mla compare fixtures/optimum-llama --token-ids fixtures/tokens.json
#[derive(Debug, Args)]
pub struct Compare {
    /// A .onnx file, or a folder that holds one.
    model: PathBuf,
    /// Shares of the cache that are kept, such as 50% or 0.5.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.75,0.625,0.5",
        value_parser = share,
        value_name = "SHARES"
    )]
    cache_ratios: Vec<f64>,
    /// Ways to compare.
    #[arg(long, value_parser = way_parser(), value_delimiter = ',', default_values = Way::ALL.map(Way::name), value_name = "WAYS")]
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
    /// Text file to measure on.
    #[arg(long, value_name = "FILE", conflicts_with = "test_token_ids")]
    test_text: Option<PathBuf>,
    /// Token ids to measure on: one JSON list, or a .npy file of integers.
    #[arg(long, alias = "test-ids", value_name = "FILE")]
    test_token_ids: Option<PathBuf>,
    /// Measure on at most this many tokens.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    test_tokens: usize,
}

/// Parses a way by its name.
fn way_parser() -> impl TypedValueParser<Value = Way> {
    let values = Way::ALL.map(|way| PossibleValue::new(way.name()).help(way.description()));
    PossibleValuesParser::new(values).try_map(|name| {
        let named = Way::ALL.into_iter().find(|way| way.name() == name);
        named.ok_or_else(|| format!("no way is named {name}"))
    })
}

impl Compare {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let model = load(&self.model)?;
        let rows =
            compare_ways(&model, &self.request()?, &mut screen.observer()).map_err(in_options)?;
        screen.show(|| as_text(&rows), || as_json(&rows));
        Ok(Exit::Done)
    }

    /// The request for the library.
    fn request(&self) -> anyhow::Result<WaysRequest> {
        let files: Vec<PathBuf> = self.test.test_text.iter().cloned().collect();
        let tokenizer = self.factors.text.tokenizer(&self.model);
        let test = text_source(&files, tokenizer, self.test.test_token_ids.as_deref())?;
        Ok(WaysRequest {
            ratios: self.cache_ratios.clone(),
            ways: self.ways.clone(),
            freq_fold: self.freq_fold,
            context: self.factors.context(),
            takes_few_tokens: self.factors.force,
            reconstruction_steps: self.factors.reconstruction_steps(),
            statistics: self.factors.statistics()?,
            text: self.factors.text(&self.model)?,
            test: test.map(|source| TextRequest {
                source,
                tokens: self.test.test_tokens,
                length: self.factors.length,
            }),
            test_tokens: self.test.test_tokens,
            runtime: self.runtime.options(true),
        })
    }
}

fn as_text(rows: &[WayMeasured]) -> String {
    let mut table = table(&[
        "cache",
        "way",
        "bytes a token",
        "perplexity",
        "increase",
        "worst positions",
        "KL",
        "top-1",
    ]);
    for row in rows {
        let quality = &row.quality;
        table.add_row([
            format!("{:.1}%", 100.0 * row.ratio),
            row.way.name().to_owned(),
            measured(quality.rewritten_cache_bytes),
            format!("{:.3}", quality.rewritten_perplexity),
            format!("{:+.2}%", 100.0 * quality.increase()),
            format!("{:+.2}%", 100.0 * quality.worst_increase()),
            format!("{:.4}", quality.mean_kl),
            format!("{:.3}", quality.top1_agreement),
        ]);
    }
    let original = rows.first().map_or(0.0, |r| r.quality.original_perplexity);
    let tokens = rows.first().map_or(0, |r| r.quality.tokens);
    format!(
        "original perplexity {original:.3} on {} tokens\n\n{table}",
        grouped(tokens as u64)
    )
}

fn as_json(rows: &[WayMeasured]) -> Value {
    let rows = rows.iter().map(|row| {
        json!({
            "cache_ratio": row.ratio, "way": row.way.name(), "quality": row.quality,
            "perplexity_increase": row.quality.increase(),
            "worst_perplexity_increase": row.quality.worst_increase(),
        })
    });
    json!({ "rows": rows.collect::<Vec<_>>() })
}
