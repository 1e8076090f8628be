use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use gqa2mla::calibrate::store;
use gqa2mla::convert::{Staged, stage};
use gqa2mla::factors::{Factorization, from_moments, moments};
use gqa2mla::model::load::load;
use gqa2mla::ports::subject;
use gqa2mla::reconstruct::{self, Job, Progress};
use gqa2mla::validate::ValidateError;
use gqa2mla_passes::factor::reconstruct::Descent;
use gqa2mla_passes::lower::Target;
use gqa2mla_passes::{Layer, RankPlan, RewriteOptions, Rewritten, by_weights};
use serde_json::{Value, json};

use super::Outcome;
use super::inspect::{bytes, rejects_json};
use super::screen::{complain, emit, emit_json, grouped, progress};
use super::text::TextArgs;
use super::validate::{Report, ValidateArgs};

/// Rewrite every attention to latent attention, write the model, and validate it.
///
/// Without --rank the latent is as wide as the cached heads and nothing is lost. The output appears under its name
/// only when it is complete and has passed; one that fails is kept in a folder <name>.rejected.
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
    /// Where the factors come from: `weights` needs no data; the others need statistics. The default is `calibrated`
    /// where statistics or a text are given, else `weights`.
    #[arg(long, value_enum, value_name = "METHOD")]
    factors: Option<Method>,
    /// Statistics of this model, made by `calibrate`.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// Read at most this many tokens of the text.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    text_tokens: usize,
    /// Tokens of the text that are read together.
    #[arg(long, default_value_t = 1024, value_name = "L")]
    text_length: usize,
    /// Steps of local reconstruction in each layer, on the text; 0 leaves it out.
    #[arg(long, default_value_t = 400, value_name = "STEPS")]
    reconstruct: usize,
    /// Queries that one step of the reconstruction looks at.
    #[arg(long, default_value_t = 256, hide = true)]
    reconstruct_queries: usize,
    /// Rate of its first step.
    #[arg(long, default_value_t = 2e-3, hide = true)]
    reconstruct_rate: f64,
    /// Rewrite what is recognised even where some attentions are not.
    #[arg(long)]
    allow_partial: bool,
    /// What the attentions run as: `matmul`, fastest on CPUs, or `gqa`, which keeps GroupQueryAttention and its
    /// buffer sharing in models that use it.
    #[arg(long, value_enum, default_value_t = TargetArg::Matmul)]
    target: TargetArg,
    /// Write the model without running it.
    #[arg(long)]
    no_validate: bool,
    #[command(flatten)]
    how: ValidateArgs,
}

/// How small; nothing is lost without any of these.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Size {
    /// Latent width of keys and of values; the default is the full rank.
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Share of the cache that is kept, above 0 and at most 1.
    #[arg(long, value_name = "SHARE")]
    cache_ratio: Option<f64>,
}

impl Size {
    fn plan(&self) -> RankPlan {
        match (self.rank, self.cache_ratio) {
            (Some(rank), _) => RankPlan::Uniform(rank),
            (None, Some(ratio)) => RankPlan::Ratio(ratio),
            (None, None) => RankPlan::Full,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Weights,
    Plain,
    Weighted,
    Calibrated,
}

/// Said in front of the reason when the models do not run at all.
const CANNOT_RUN: &str = "the rewrite was not written because the models could not be run (--no-validate writes it unproved)";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TargetArg {
    Matmul,
    Gqa,
}

impl Rewrite {
    pub fn run(self, json: bool) -> anyhow::Result<Outcome> {
        let started = Instant::now();
        let options = RewriteOptions {
            ranks: self.size.plan(),
            allow_partial: self.allow_partial,
            target: match self.target {
                TargetArg::Matmul => Target::MatMul,
                TargetArg::Gqa => Target::Gqa,
            },
        };
        let statistics = self.calibration.as_deref().map(store::load).transpose()?;
        let method = match self.factors {
            Some(Method::Plain) => Factorization::Plain,
            Some(Method::Weighted) => Factorization::Weighted,
            Some(Method::Calibrated) => Factorization::Calibrated,
            None if statistics.is_some() => Factorization::Calibrated,
            _ => Factorization::Weights,
        };
        let model = load(&self.model)?;
        let vocabulary = subject(&model.model.proto)?.vocabulary;
        let text = self
            .text
            .read(vocabulary, self.text_tokens, self.text_length)?;
        let plan = self.size.plan();
        let target = options.target;
        let reconstruction = match (&text, &statistics) {
            (Some(text), Some(statistics)) if self.reconstruct > 0 => {
                let job = Job {
                    model: &model,
                    text,
                    statistics,
                    factorization: method,
                    ranks: &|layer| plan.of(&layer.id, &layer.site, target),
                    descent: Descent {
                        steps: self.reconstruct,
                        queries: self.reconstruct_queries,
                        rate: self.reconstruct_rate,
                    },
                    runtime: &self.how.runtime(true),
                };
                let mut bar = progress("reconstructing");
                let folder = self.out.with_extension("reconstruct");
                Some(reconstruct::run(&job, &folder, &mut |p| {
                    if let Progress::Descending(done, of, _) = p {
                        bar(done, of);
                    }
                })?)
            }
            _ => None,
        };
        if let Some(done) = &reconstruction {
            for outcome in &done.outcomes {
                complain(&format!("{outcome:?}"));
            }
        }
        let mut factorize = |layer: &Layer| {
            if let Some(factors) = reconstruction
                .as_ref()
                .and_then(|r| r.factors(layer.id).transpose())
                .transpose()?
            {
                return Ok(factors);
            }
            let Some(statistics) = statistics.as_ref().and_then(|s| s.layers.get(layer.id)) else {
                return by_weights(layer);
            };
            let moments = moments(
                layer.site,
                layer.scoring().as_ref(),
                layer.output_projection().as_ref(),
                statistics,
                method,
            );
            Ok(from_moments(layer.site, &moments, layer.ranks)?)
        };
        let staged = stage(
            &self.model,
            &self.out,
            &options,
            &mut factorize,
            &mut progress("rewriting"),
        )?;
        let seconds = started.elapsed().as_secs_f64();
        let summary = Summary::of(&staged.rewritten, self.target);
        let (report, failure) = match self.no_validate {
            true => (None, None),
            false => match self.validate(&staged) {
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
        let (path, outcome) = match accepted {
            true => (staged.publish()?, Outcome::Done),
            false => (staged.reject()?, Outcome::Rejected),
        };
        let path = path.display().to_string();
        if json {
            let value = json!({
                "output": path,
                "accepted": accepted,
                "seconds": seconds,
                "rewrite": summary.json(),
                "validation": report.as_ref().map(Report::json),
                "failure": failure,
            });
            emit_json(&value);
        } else {
            let mut text = summary.text();
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

    fn validate(&self, staged: &Staged) -> anyhow::Result<Report> {
        // The loaded model holds the rewritten messages by now; the original's are read again from the mapped file.
        let original = load(&self.model)?;
        let rewritten = staged.path();
        self.how.compare(
            (&original.path, &original.model.proto),
            (&rewritten, &staged.model.model.proto),
        )
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

struct Summary {
    target: &'static str,
    sites: usize,
    rejects: Vec<Value>,
    not_rewritten: usize,
    heads: String,
    ranks: (usize, usize),
    cached: bool,
    before: u64,
    after: u64,
    predicted: (f64, f64),
    lossy: bool,
}

impl Summary {
    fn of(rewritten: &Rewritten, target: TargetArg) -> Self {
        let sites = &rewritten.sites;
        let ranks = sites.iter().flat_map(|s| [s.ranks.key, s.ranks.value]);
        let worst = |of: fn(&gqa2mla_passes::pipeline::RewrittenSite) -> f64| {
            sites.iter().map(of).fold(0.0, f64::max)
        };
        let cached = || sites.iter().filter(|s| s.site.is_cached());
        let first = sites.first().map(|s| &s.site);
        Self {
            target: match target {
                TargetArg::Matmul => "matmul",
                TargetArg::Gqa => "gqa",
            },
            sites: sites.len(),
            rejects: rejects_json(&rewritten.rejects),
            not_rewritten: rewritten.rejects.len(),
            heads: first.map_or_else(String::new, |s| {
                format!("H={} G={} d={}", s.heads, s.kv_heads, s.key.size)
            }),
            ranks: (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)),
            cached: sites.iter().any(|s| s.site.is_cached()),
            before: cached()
                .map(|s| bytes(s.site.elem_type, s.site.cached_numbers()))
                .sum(),
            after: cached()
                .map(|s| bytes(s.site.elem_type, s.ranks.key + s.ranks.value))
                .sum(),
            predicted: (worst(|s| s.key_error), worst(|s| s.value_error)),
            lossy: sites
                .iter()
                .any(|s| s.ranks.key.min(s.ranks.value) < s.site.full_rank()),
        }
    }

    fn text(&self) -> String {
        let rank = match self.ranks {
            (low, high) if low == high => format!("rank {low}"),
            (low, high) => format!("ranks {low} to {high}"),
        };
        let kind = if self.lossy {
            "an approximation"
        } else {
            "exact"
        };
        let mut text = format!(
            "{} attentions rewritten ({}), {rank}, target {}: {kind}\n",
            self.sites, self.heads, self.target
        );
        match self.cached {
            true => text.push_str(&format!(
                "cache: {} -> {} bytes a token ({:.1}%)\n",
                grouped(self.before),
                grouped(self.after),
                100.0 * self.after as f64 / self.before.max(1) as f64
            )),
            false => {
                text.push_str("no cache in this export, so none shrinks; the latent is internal\n")
            }
        }
        if self.lossy {
            text.push_str(&format!(
                "predicted loss of the worst layer: {:.1}% of the keys' second moment, {:.1}% of the values'\n",
                100.0 * self.predicted.0,
                100.0 * self.predicted.1
            ));
        }
        if self.not_rewritten > 0 {
            text.push_str(&format!(
                "{} attentions left as they were\n",
                self.not_rewritten
            ));
        }
        text
    }

    fn json(&self) -> Value {
        json!({
            "rewritten": self.sites, "target": self.target, "not_rewritten": self.not_rewritten, "rejects": self.rejects, "exact": !self.lossy,
            "rank_min": self.ranks.0, "rank_max": self.ranks.1,
            "cache_bytes_per_token_before": self.before, "cache_bytes_per_token_after": self.after,
            "predicted_key_loss": self.predicted.0, "predicted_value_loss": self.predicted.1,
        })
    }
}
