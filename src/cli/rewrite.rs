use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use gqa2mla::compress::{Compressed, Compressor, Progress};
use gqa2mla::factors::Factorization;
use gqa2mla::model::load::{LoadedModel, load};
use gqa2mla::ports::subject;
use gqa2mla::reconstruct::{self, Outcome as Reconstructed};
use gqa2mla::text::Text;
use gqa2mla::validate::ValidateError;
use gqa2mla_passes::lower::Target;
use gqa2mla_passes::{LatentForm, RewriteOptions};
use serde_json::{Value, json};

use super::factors::FactorArgs;
use super::layout::{LayoutArg, Layouts, better_layout};
use super::screen::{Bar, complain, emit, emit_json, progress};
use super::search::{Searched, search};
use super::size::Size;
use super::summary::Summary;
use super::validate::{Report, ValidateArgs};
use super::{Outcome, UsageError, no_text};

/// Rewrite every attention to latent attention, write the model, and validate it.
///
/// Without a size the latent is as wide as the cached heads and nothing is lost. With one, give statistics or a text:
/// factors from weights alone lose much more. The output appears under its name only when it is complete and has passed;
/// one that fails is kept in a folder <name>.rejected.
///
/// Example: gqa2mla rewrite fixtures/optimum-llama -o out/model.onnx
#[derive(Debug, Args)]
pub struct Rewrite {
    /// A .onnx file, or a folder that holds one.
    model: PathBuf,
    /// The output: a .onnx path, or a folder, which then gets the input's file name.
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
    /// Write the model without running it.
    #[arg(long)]
    no_validate: bool,
    #[command(flatten)]
    how: ValidateArgs,
}

/// Said in front of the reason when the models do not run at all.
const CANNOT_RUN: &str = "the rewrite was not written because the models could not be run (--no-validate writes it unproved)";
/// Tokens that a promise is measured on, at most; and no more than a third of the text.
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
        let model = load(&self.model)?;
        let mut options = RewriteOptions {
            ranks: self.size.plan(),
            allow_partial: self.allow_partial,
            target: match self.target {
                TargetArg::Matmul => Target::MatMul,
                TargetArg::Gqa => Target::Gqa,
            },
            form: match self.form {
                FormArg::Absorbed => LatentForm::Absorbed,
                FormArg::Expanded => LatentForm::Expanded,
            },
        };
        self.check_layout()?;
        let factorization = self.factors.factorization(self.size.is_exact());
        if matches!(factorization, Factorization::TransMla { .. }) {
            options.form = LatentForm::Decoupled;
        }
        let runtime = self.how.runtime(true);
        let mut compressor = Compressor {
            model: &model,
            statistics: None,
            factorization,
            reconstruction: None,
            runtime: &runtime,
        };
        // What cannot be done at all is refused before a text is read.
        if !self.size.is_exact() {
            compressor.check(&options)?;
        }
        let (fitted, held_out) = self.texts(&model)?;
        let statistics =
            self.factors
                .statistics(factorization, &model, fitted.as_ref(), &runtime)?;
        compressor.statistics = statistics.as_ref();
        compressor.reconstruction = fitted.as_ref().zip(self.factors.descent(factorization));
        let mut searched = None;
        if let Some(promise) = self.size.promise() {
            let held_out = held_out.as_ref().ok_or_else(no_text)?;
            let found = search(&compressor, &options, promise, &self.out, held_out)?;
            options.ranks = found.plan();
            searched = Some(found);
        }
        let (compressed, layouts) = match self.layout {
            LayoutArg::Uniform => (compressor.rewrite(&self.out, &options, &mut bars())?, None),
            LayoutArg::Free => {
                let texts = fitted.as_ref().zip(held_out.as_ref()).ok_or_else(no_text)?;
                let (made, layouts) = better_layout(&compressor, &options, &self.out, texts)?;
                (made, Some(layouts))
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        self.finish(&model, compressed, seconds, (searched, layouts), json)
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

    /// The text to fit factors to, and the one to keep a promise on.
    fn texts(&self, model: &LoadedModel) -> anyhow::Result<(Option<Text>, Option<Text>)> {
        let (args, length) = (&self.factors, self.factors.text_length);
        if args.text.source().is_none() {
            return Ok((None, None));
        }
        let vocabulary = subject(&model.model.proto)?.vocabulary;
        if self.size.promise().is_none() && self.layout == LayoutArg::Uniform {
            return Ok((args.text.read(vocabulary, args.text_tokens, length)?, None));
        }
        let wanted = args.text_tokens.saturating_add(MEASURED);
        let Some(text) = args.text.read(vocabulary, wanted, length)? else {
            return Ok((None, None));
        };
        let (fitted, measured) = text.hold_out(MEASURED).ok_or_else(no_text)?;
        Ok((Some(fitted), Some(measured)))
    }

    fn finish(
        &self,
        model: &LoadedModel,
        compressed: Compressed,
        seconds: f64,
        (searched, layouts): (Option<Searched>, Option<Layouts>),
        json: bool,
    ) -> anyhow::Result<Outcome> {
        let summary = Summary::of(&compressed.staged.rewritten, self.target.name());
        let (report, failure) = match self.no_validate {
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
        let accepted = failure.is_none() && report.as_ref().is_none_or(passes);
        let outcomes = compressed.outcomes.clone();
        let (path, outcome) = match accepted {
            true => (compressed.publish()?, Outcome::Done),
            false => (compressed.reject()?, Outcome::Rejected),
        };
        let path = path.display().to_string();
        if json {
            let value = json!({
                "output": path,
                "accepted": accepted,
                "seconds": seconds,
                "rewrite": summary.json(),
                "search": searched.as_ref().map(Searched::json),
                "layouts": layouts.map(Layouts::json),
                "reconstruction": outcomes.iter().map(outcome_json).collect::<Vec<_>>(),
                "validation": report.as_ref().map(Report::json),
                "failure": failure,
            });
            emit_json(&value);
        } else {
            let mut text = summary.text();
            text.push_str(&searched.as_ref().map(Searched::text).unwrap_or_default());
            text.push_str(&layouts.map(Layouts::text).unwrap_or_default());
            text.push_str(&outcomes_text(&outcomes));
            match &report {
                Some(report) => text.push_str(&format!("\n{}\n", report.text(summary.lossy))),
                None => match &failure {
                    Some(failure) => text.push_str(&format!("{failure}\n")),
                    None => text.push_str("not validated (--no-validate)\n"),
                },
            }
            match accepted {
                true => text.push_str(&format!(
                    "wrote {path} ({seconds:.1} s without validation)\n"
                )),
                false => text.push_str(&format!(
                    "VALIDATION FAILED; the rejected model is kept in {path}\n"
                )),
            }
            emit(&text);
        }
        if !accepted {
            complain(&format!(
                "error: validation failed; the rejected model is kept in {path}"
            ));
        }
        Ok(outcome)
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

fn outcomes_text(outcomes: &[Reconstructed]) -> String {
    let errors: Vec<[f64; 2]> = outcomes.iter().filter_map(|o| o.error).collect();
    let mean = |of: usize| {
        let sum: f64 = errors.iter().filter_map(|e| e.get(of)).sum();
        sum / errors.len().max(1) as f64
    };
    let mut text = String::new();
    if !errors.is_empty() {
        text.push_str(&format!(
            "local reconstruction: error of attention outputs {:.4} -> {:.4} (mean of {} layers, relative, squared, held out)\n",
            mean(0),
            mean(1),
            errors.len()
        ));
    }
    for (layer, why) in outcomes
        .iter()
        .filter_map(|o| Some((o.layer, o.left.as_ref()?)))
    {
        text.push_str(&format!("  layer {layer} not reconstructed: {why}\n"));
    }
    text
}

fn outcome_json(outcome: &Reconstructed) -> Value {
    json!({
        "layer": outcome.layer,
        "error_before": outcome.error.map(|e| e[0]),
        "error_after": outcome.error.map(|e| e[1]),
        "not_reconstructed": outcome.left,
    })
}
