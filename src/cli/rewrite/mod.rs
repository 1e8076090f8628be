mod attempt;
mod folder;
mod layout;
mod search;
mod size;
mod summary;
mod told;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use gqa2mla::compress::compressor::{Compressed, Compressor, Progress};
use gqa2mla::files::load::{LoadedModel, load};
use gqa2mla::files::save::{DataFile, names_a_file};
use gqa2mla::fit::layer_errors::{LayerError, layer_errors};
use gqa2mla::fit::reconstruct;
use gqa2mla::measure::text::Text;
use gqa2mla::runtime::RuntimeOptions;
use gqa2mla::validate::ValidateError;
use gqa2mla::validate::ports::subject;
use gqa2mla::validate::scenario::Random;
use gqa2mla_passes::{Absorbed, Decoupled, Expanded, Form, Grouped, RewriteOptions};

use attempt::Attempt;
use folder::ServingArg;
use layout::{LayoutArg, better_layout};
use search::search;
use size::Size;
use summary::Summary;
use told::{ReportFile, Told};

use crate::cli::factors::FactorArgs;
use crate::cli::screen::{Bar, progress};
use crate::cli::validate::{Report, ValidateArgs};
use crate::cli::{Outcome, UsageError, no_text};

/// Rewrite every attention to latent attention, write the model, and validate it.
///
/// Without a size the latent is as wide as the cached heads and nothing is lost. With one, give statistics or a text:
/// factors from weights alone lose much more. The output appears under its name only when it is complete and has passed;
/// one that fails is kept in a folder <name>.rejected.
///
/// Example: gqa2mla rewrite fixtures/optimum-llama -o out/model.onnx
#[derive(Debug, Args)]
pub struct Rewrite {
    /// A .onnx file, or a folder as exporters and model hubs lay it out.
    model: PathBuf,
    /// The output: a .onnx path, or a folder. A folder made from a folder gets every other file as well, with the
    /// configurations edited so that the same stack serves it.
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    factors: FactorArgs,
    /// Rewrite what is recognised even where some attentions are not.
    #[arg(long)]
    allow_partial: bool,
    /// What the attentions run as: `matmul`, fastest on CPUs, or `gqa`, which keeps GroupQueryAttention and its
    /// buffer sharing in models that use it.
    #[arg(long, value_enum, default_value_t = TargetArg::Matmul)]
    target: TargetArg,
    /// What is cached: `absorbed`, the latent of rotated keys, fastest to decode; or `expanded`, the latent of keys
    /// before rotation, from which keys are rebuilt at every step: more accurate at a given size, and slower.
    #[arg(long, value_enum, default_value_t = FormArg::Absorbed)]
    form: FormArg,
    /// How the widths of the layers go together: `uniform`, one width for all, as serving stacks expect; or `free`, a
    /// width for each layer's keys and values under the same budget, by what narrowing each of them costs on the text.
    #[arg(long, value_enum, default_value_t = LayoutArg::Uniform)]
    layout: LayoutArg,
    /// Of a folder with several models that keep a cache, rewrite only this one, and leave the others out.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The serving stack whose configuration in the folder is edited; `auto` goes by the files that are there.
    #[arg(long, value_enum, default_value_t = ServingArg::Auto)]
    serving: ServingArg,
    /// Write a report of all that was done and measured: a page (.html) or the same as data (.json).
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the model without running it.
    #[arg(long)]
    no_validate: bool,
    #[command(flatten)]
    how: ValidateArgs,
}

/// Said in front of the reason when the models do not run at all.
const CANNOT_RUN: &str = "the rewrite was not written because the models could not be run (--no-validate writes it unproved)";
/// Tokens that the layers of a report are measured on where no text is given.
const RANDOM_TOKENS: usize = 64;
/// Tokens of the text that nothing is fitted to, at most: what is lost is measured on them; and no more than a third of the text.
const MEASURED: usize = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TargetArg {
    Matmul,
    Gqa,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormArg {
    Absorbed,
    Expanded,
}

impl TargetArg {
    fn name(self) -> &'static str {
        match self {
            Self::Matmul => "matmul",
            Self::Gqa => "gqa",
        }
    }
}

impl Rewrite {
    pub fn run(self, json: bool) -> anyhow::Result<Outcome> {
        let started = Instant::now();
        self.check_layout()?;
        let report = self.report.as_deref().map(ReportFile::begin).transpose()?;
        if self.model.is_dir() && !names_a_file(&self.out) {
            return self.folder(started, json, report);
        }
        if self.file.is_some() || self.serving != ServingArg::Auto {
            let words = "--file and --serving speak of folders: give a folder as MODEL and as OUT";
            return Err(UsageError(words.to_owned()).into());
        }
        let model = load(&self.model)?;
        let attempt = self.attempt(&model, &self.out, DataFile::Beside, None)?;
        let mut told = Told::new(&self.model, started);
        told.add(&model.path, &attempt, self.report.is_some());
        let output = match attempt.accepted {
            true => attempt.compressed.publish()?,
            false => attempt.compressed.reject()?,
        };
        told.finish(&output, json, report)
    }

    /// Rewrites one model beside `out` and looks at the result, before it gets its name.
    fn attempt(
        &self,
        model: &LoadedModel,
        out: &Path,
        data: DataFile,
        work: Option<&Path>,
    ) -> anyhow::Result<Attempt> {
        let mut options = RewriteOptions {
            ranks: self.size.plan(),
            allow_partial: self.allow_partial,
            form: self.form()?,
            context: self.factors.context(),
            ..RewriteOptions::default()
        };
        let factorization = self.factors.factorization(self.size.is_exact());
        let runtime = self.how.runtime(true);
        let mut compressor = Compressor {
            model,
            statistics: None,
            factorization,
            reconstruction: None,
            runtime: &runtime,
            data,
            work,
        };
        // What cannot be done at all is refused before a text is read.
        if !self.size.is_exact() {
            compressor.check(&options)?;
        }
        let (fitted, held_out) = self.texts(model)?;
        let statistics =
            self.factors
                .statistics(factorization, model, fitted.as_ref(), &runtime)?;
        compressor.statistics = statistics.as_ref();
        compressor.reconstruction = fitted.as_ref().zip(self.factors.descent(factorization));
        let mut searched = None;
        if let Some(promise) = self.size.promise() {
            let held_out = held_out.as_ref().ok_or_else(|| self.no_held_out())?;
            let found = search(&compressor, &options, promise, out, held_out)?;
            options.ranks = found.plan();
            searched = Some(found);
        }
        let mut layouts = None;
        let mut quality = None;
        let compressed = match self.layout {
            LayoutArg::Uniform => compressor.rewrite(out, &options, &mut bars())?,
            LayoutArg::Free => {
                let texts = fitted.as_ref().zip(held_out.as_ref());
                let texts = texts.ok_or_else(|| self.no_held_out())?;
                let (made, both, kept) = better_layout(&compressor, &options, out, texts)?;
                (layouts, quality) = (Some(both), Some(Ok(kept)));
                made
            }
        };
        let summary = Summary::of(&compressed.staged.rewritten, self.target.name());
        let (validation, failure) = match self.no_validate {
            true => (None, None),
            false => match self.validate(model, &compressed) {
                Ok(report) => (Some(report), None),
                // The original runs and the rewritten model does not: that is a verdict.
                Err(error) if is_about_the_rewritten(&error) => (None, Some(format!("{error:#}"))),
                Err(error) => return Err(error.context(CANNOT_RUN)),
            },
        };
        // A smaller latent is an approximation: its numbers are reported. Only an exact rewrite is held to a tolerance,
        // or one for which the user gives it.
        let held = !summary.lossy || self.how.has_tolerance();
        let passes = |r: &Report| r.is_finite() && (!held || r.passed());
        let accepted = failure.is_none() && validation.as_ref().is_none_or(passes);
        let wanted = accepted && summary.lossy && !self.no_validate;
        let unknown = held_out.filter(|_| wanted && quality.is_none());
        let quality = quality.or(unknown.map(|text| {
            let measured = compressed.quality(model, &text, &runtime, &mut progress("reading"));
            measured.map_err(|e| e.to_string())
        }));
        let measured = self.report.is_some().then(|| {
            let tokens = fitted.as_ref().and_then(|t| t.sequences().next());
            measured_layers(model, &compressed, tokens, &runtime)
        });
        Ok(Attempt {
            measured,
            compressed,
            summary,
            searched,
            layouts,
            validation,
            failure,
            quality,
            accepted,
        })
    }

    /// The target form that the options ask for.
    fn form(&self) -> Result<&'static dyn Form, UsageError> {
        let transmla = self.factors.is_transmla();
        match (self.target, self.form) {
            (TargetArg::Matmul, _) if transmla => Ok(&Decoupled),
            (TargetArg::Matmul, FormArg::Absorbed) => Ok(&Absorbed),
            (TargetArg::Matmul, FormArg::Expanded) => Ok(&Expanded),
            (TargetArg::Gqa, FormArg::Absorbed) if !transmla => Ok(&Grouped),
            (TargetArg::Gqa, _) => Err(UsageError(
                "the target gqa caches what its operator reads, which is the form absorbed: use --target matmul"
                    .to_owned(),
            )),
        }
    }

    /// Why there is no text to measure on.
    fn no_held_out(&self) -> anyhow::Error {
        match self.factors.text.source() {
            None => no_text(),
            Some(_) => UsageError(
                "the text is too short to measure on a part of it: give one of some hundred tokens"
                    .to_owned(),
            )
            .into(),
        }
    }

    /// A free layout divides the budget of a size that is given, and its widths differ.
    fn check_layout(&self) -> Result<(), UsageError> {
        if self.layout == LayoutArg::Uniform {
            return Ok(());
        }
        let words = if self.size.is_exact() || self.size.promise().is_some() {
            "--layout free divides a budget: give it with --cache-ratio or --rank"
        } else if self.target == TargetArg::Gqa {
            "--layout free gives keys and values widths of their own, and GroupQueryAttention has one: use --target matmul"
        } else if self.factors.is_transmla() {
            "--layout free has no meaning for transmla, whose layout is its own"
        } else {
            return Ok(());
        };
        Err(UsageError(words.to_owned()))
    }

    /// The text to fit factors to, and the one to measure on.
    fn texts(&self, model: &LoadedModel) -> anyhow::Result<(Option<Text>, Option<Text>)> {
        let (args, length) = (&self.factors, self.factors.text_length);
        if args.text.source().is_none() {
            return Ok((None, None));
        }
        let vocabulary = subject(&model.model.proto)?.vocabulary;
        if self.size.is_exact() {
            return Ok((args.text.read(vocabulary, args.text_tokens, length)?, None));
        }
        let wanted = args.text_tokens.saturating_add(MEASURED);
        let Some(text) = args.text.read(vocabulary, wanted, length)? else {
            return Ok((None, None));
        };
        // Too short a text is fitted to as a whole, and nothing can be promised on it.
        Ok(match text.hold_out(MEASURED) {
            Some((fitted, measured)) => (Some(fitted), Some(measured)),
            None => (Some(text), None),
        })
    }

    fn validate(&self, original: &LoadedModel, compressed: &Compressed) -> anyhow::Result<Report> {
        let staged = &compressed.staged;
        let rewritten = staged.path();
        self.how.compare(
            (&original.path, &original.model.proto),
            (&rewritten, &staged.model.model.proto),
        )
    }
}

/// The errors of each layer, on `tokens` or else on random ones.
fn measured_layers(
    model: &LoadedModel,
    compressed: &Compressed,
    tokens: Option<&[i64]>,
    runtime: &RuntimeOptions,
) -> Result<Vec<LayerError>, String> {
    let known = subject(&model.model.proto).map_err(|e| e.to_string())?;
    let mut random = Random::new(0);
    let vocabulary = known.vocabulary.max(1) as u64;
    let drawn: Vec<i64> = (0..RANDOM_TOKENS)
        .map(|_| (random.next_u64() % vocabulary) as i64)
        .collect();
    let rewritten = load(&compressed.staged.path()).map_err(|e| e.to_string())?;
    let errors = layer_errors(model, &rewritten, tokens.unwrap_or(&drawn), runtime);
    errors.map_err(|e| e.to_string())
}

/// The progress bars of one rewrite.
pub fn bars() -> impl FnMut(Progress) + Send {
    let mut recording = progress("reading the text");
    let mut descending = Bar::new("reconstructing");
    let mut rewriting = progress("rewriting");
    move |at| match at {
        Progress::Reconstructing(reconstruct::Progress::Recording(n, of)) => recording(n, of),
        Progress::Reconstructing(reconstruct::Progress::Descending(n, of, error)) => {
            descending.say(n, of, &format!("reconstructing, error {error:.4}"));
        }
        Progress::Rewriting(n, of) => rewriting(n, of),
    }
}

/// Whether validation ended because of the rewritten model and not of its surroundings.
fn is_about_the_rewritten(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref::<ValidateError>(),
            Some(
                ValidateError::Model {
                    which: "rewritten",
                    ..
                } | ValidateError::Logits { .. }
            )
        )
    })
}
