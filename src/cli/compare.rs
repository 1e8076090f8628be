use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum as _};

use crate::cli::bits::BitsArg;
use crate::cli::clean::remove_unfinished;
use crate::cli::compared::{as_json, notes};
use crate::cli::exit::{Exit, UsageError, by_option, in_options};
use crate::cli::factors::FactorArgs;
use crate::cli::frontier::Ways;
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::Screen;
use crate::cli::text::text_source;
use crate::cli::values::share;
use crate::compress::request::TextRequest;
use crate::compress::sizes::LeftOut;
use crate::compress::way::Way;
use crate::compress::ways::{WayMeasured, WaysRequest, compare_ways};
use crate::files::interrupted::ROWS;
use crate::files::load::load;
use crate::report::{counted, measured};

/// Rewrite a model by several methods at several sizes, and compare their losses on a text.
///
/// The rewritten models are not kept; each row of the table is printed when it is measured.
/// An interrupted run keeps its rows in a hidden folder in the working directory, from which the same command resumes. Factors are fitted to the
/// text of --text or --token-ids and, if given, to the statistics of --calibration. The loss is measured on the text of
/// --test-text or --test-token-ids, or else on the last part of the same text, which is then not used for fitting.
///
/// Example: gqa2mla compare fixtures/optimum-llama --token-ids fixtures/tokens.json
#[derive(Debug, Args)]
pub struct Compare {
    /// A .onnx file, or a folder with one model.
    model: PathBuf,
    /// Cache sizes as shares of the original size, such as 50% or 0.5.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.75,0.625,0.5",
        value_parser = share,
        value_name = "SHARES"
    )]
    cache_ratios: Vec<f64>,
    /// Methods to compare; the default is all of them.
    #[arg(long, value_parser = way_parser(), value_delimiter = ',', value_name = "WAYS")]
    ways: Vec<Way>,
    /// Bits of a cached number to compare.
    ///
    /// 16 is the model's own floating-point type. 8, 6 and 4 are integers, which only the methods calibrated,
    /// reconstructed and kept-heads support, and joint with 8. The default is all that a method supports.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "BITS")]
    cache_bits: Vec<BitsArg>,
    /// Number of neighbouring RoPE frequencies that TransMLA treats as one (FreqFold).
    #[arg(long, default_value_t = 1, value_name = "N")]
    freq_fold: usize,
    /// Remove the rows that stopped comparisons kept in this folder; compare nothing.
    #[arg(long)]
    clean: bool,
    #[command(flatten, next_help_heading = "Factors")]
    factors: FactorArgs,
    #[command(flatten, next_help_heading = "Test")]
    test: TestArgs,
    #[command(flatten, next_help_heading = "Run")]
    runtime: RuntimeArgs,
}

/// Where rows are kept, since a comparison has no output.
const HERE: &str = ".";

/// The text for measuring.
#[derive(Debug, Args)]
struct TestArgs {
    /// Text file for measuring.
    #[arg(long, value_name = "FILE", conflicts_with = "test_token_ids")]
    test_text: Option<PathBuf>,
    /// Token ids for measuring: a JSON list, or a .npy file of integers.
    #[arg(long, value_name = "FILE")]
    test_token_ids: Option<PathBuf>,
    /// Measure on at most this many tokens.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    test_tokens: usize,
}

/// Parses the name of a method.
fn way_parser() -> impl TypedValueParser<Value = Way> {
    let values = Way::ALL.map(|way| PossibleValue::new(way.name()).help(way.description()));
    PossibleValuesParser::new(values).try_map(|name| {
        let named = Way::ALL.into_iter().find(|way| way.name() == name);
        named.ok_or_else(|| format!("no way is named {name}"))
    })
}

impl Compare {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        if self.clean {
            return remove_unfinished(Path::new(HERE), ROWS, None, screen);
        }
        let model = load(&self.model)?;
        let mut begun = false;
        let mut row = |row: &WayMeasured| {
            if !begun {
                begun = true;
                screen.line(|| format!("{}\n{}", before(row), lines(row).header()));
            }
            screen.line(|| lines(row).line(&row.point));
        };
        let request = self.request()?;
        let rows = compare_ways(&model, &request, &mut screen.observer(), &mut row);
        let mut compared = rows.map_err(in_options)?;
        let left_out_by = |left: LeftOut| LeftOut {
            cause: by_option(left.cause),
            ..left
        };
        compared.left_out = compared.left_out.into_iter().map(left_out_by).collect();
        let both_named = !self.ways.is_empty() && !self.cache_bits.is_empty();
        for note in notes(&compared, both_named) {
            screen.line(|| note);
        }
        screen.data(|| as_json(&compared));
        Ok(Exit::Done)
    }

    /// The request for the library.
    fn request(&self) -> anyhow::Result<WaysRequest> {
        if self.factors.factorization().is_some() {
            let words = "--factors is for rewrite: name the methods to compare with --ways";
            return Err(UsageError(words.to_owned()).into());
        }
        let files: Vec<PathBuf> = self.test.test_text.iter().cloned().collect();
        let tokenizer = self.factors.text.tokenizer(&self.model);
        let test = text_source(&files, tokenizer, self.test.test_token_ids.as_deref())?;
        Ok(WaysRequest {
            ratios: self.cache_ratios.clone(),
            ways: match self.ways.as_slice() {
                [] => Way::ALL.to_vec(),
                named => named.to_vec(),
            },
            bits: match self.cache_bits.as_slice() {
                [] => BitsArg::value_variants()
                    .iter()
                    .map(|&b| b.into())
                    .collect(),
                named => named.iter().map(|&b| b.into()).collect(),
            },
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
            work: Some(PathBuf::from(HERE)),
        })
    }
}

/// The line above the table, with the perplexity of the original.
fn before(row: &WayMeasured) -> String {
    format!(
        "original: {} bytes a token, perplexity {:.3} on {}\n",
        measured(row.quality.original_cache_bytes),
        row.quality.original_perplexity,
        counted(row.quality.tokens, "token")
    )
}

/// The lines of the table: all rows are measured on the same text.
fn lines(row: &WayMeasured) -> Ways {
    Ways {
        by_position: row.quality.is_by_position(),
    }
}
