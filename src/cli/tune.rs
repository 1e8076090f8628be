use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::cli::bar::Moment;
use crate::cli::exit::{Exit, UsageError, no_text};
use crate::cli::screen::Screen;
use crate::cli::text::TextArgs;
use crate::cli::values::{length, output};
use crate::files::load::load;
use crate::files::origin::mark;
use crate::files::outputs::check_model;
use crate::files::save::{output_path, save};
use crate::files::staging::Staging;
use crate::fit::context::Context;
use crate::report::{counted, grouped};
use crate::tune::run::{Ended, TrainProgress, TuneOptions, Tuned, tune};
use crate::tune::select::Trainable;
use crate::validate::ports::LanguageModel;

/// Train the factors of a rewritten model on text, to recover the loss of a smaller cache.
///
/// With --teacher, the original, the loss is the divergence (KL) from the original's next-token distribution. A part of
/// the text is held out; the state with the lowest loss on it is written, and a run that stops improving ends early. An
/// interrupted run resumes if it is started again with the same options.
///
/// Example: gqa2mla tune out/model.onnx --teacher fixtures/optimum-llama --token-ids fixtures/tokens.json -o out/tuned.onnx
#[derive(Debug, Args)]
pub struct Tune {
    /// The model to train: a .onnx file, or a folder with one model.
    model: PathBuf,
    /// The original model, whose next-token distribution is learnt.
    #[arg(long, value_name = "ORIGINAL")]
    teacher: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// The output: a .onnx path, or a folder for the .onnx file.
    #[arg(short, long, value_name = "OUT", value_parser = output())]
    out: PathBuf,
    /// The loss; the default is `distill` with --teacher.
    #[arg(long, value_enum, default_value_t = Objective::Distill)]
    objective: Objective,
    /// The initializers to train.
    #[arg(long, value_enum, default_value_t = Train::Factors)]
    train: Train,
    /// Largest number of steps.
    #[arg(long, default_value_t = 100, value_name = "N")]
    steps: usize,
    /// Largest change of a tensor in a step, relative to its root mean square. Use a lower rate if the loss rises at
    /// first, which happens if the rewrite has lost little.
    #[arg(long, default_value_t = 5e-3, value_name = "RATE")]
    rate: f64,
    /// Tokens per sequence.
    #[arg(long, default_value_t = 512, value_name = "L")]
    length: usize,
    /// Target context length in tokens: sequences are placed at random positions within it, if the model has position
    /// inputs; the default is the maximum in config.json or genai_config.json beside the model, or else 4096.
    #[arg(long, value_name = "N", value_parser = length)]
    context: Option<usize>,
    /// Sequences per step. Their gradients are computed one after another, so that the batch needs no more memory.
    #[arg(long, default_value_t = 1, value_name = "B")]
    batch: usize,
    /// Read at most this many tokens of the text.
    #[arg(long, default_value_t = 1 << 20, value_name = "N")]
    tokens: usize,
    /// Seed of the order of the sequences.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace a model that gqa2mla did not write.
    #[arg(long)]
    force: bool,
}

/// The loss of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Objective {
    /// The divergence (KL) from the next-token distribution of --teacher.
    Distill,
    /// The negative log-likelihood of the next token.
    NextToken,
}

/// The initializers that a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Train {
    /// The factors of a rewrite and their biases.
    Factors,
    /// The projections of keys and values, W_K and W_V, and the factors of a rewrite if there are any.
    Kv,
}

impl Tune {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let started = Instant::now();
        self.check()?;
        let mut model = load(&self.model)?;
        let teacher = match (&self.teacher, self.objective) {
            (Some(path), Objective::Distill) => Some(load(path)?),
            _ => None,
        };
        let shown = model.path.display().to_string();
        let subject = LanguageModel::of(&model.model.proto).with_context(|| shown.clone())?;
        let text = self
            .text
            .read(&self.model, subject.vocabulary, self.tokens, self.length)?
            .ok_or_else(no_text)?;
        let options = TuneOptions {
            trainable: match self.train {
                Train::Factors => Trainable::Factors,
                Train::Kv => Trainable::KeysAndValues,
            },
            steps: self.steps,
            rate: self.rate,
            context: Context::of(self.context, &model)
                .with_context(|| shown.clone())?
                .positions,
            batch: self.batch,
            seed: self.seed,
        };
        let out = output_path(&model.path, &self.out);
        check_model(&model, &out, self.force)?;
        // Claims the output, so that another run for the same output is refused before it computes anything.
        let _held = Staging::model(&out, &model.path)?;
        let mut partial = out.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let tokens_a_step = text.length * self.batch;
        let mut bar = screen.bar();
        let tuned = tune(
            &mut model,
            teacher.as_ref(),
            &text,
            &options,
            &partial,
            &mut |moment| {
                let message = message(&moment, tokens_a_step, &started);
                let at = Moment::of("training", moment.step, moment.steps, "step");
                bar.say(at.with(message));
            },
        )?;
        mark(&mut model.model.proto);
        save(&model, &out)?;
        let _ = std::fs::remove_file(&partial);
        let seconds = started.elapsed().as_secs_f64();
        let out = out.display().to_string();
        screen.show(
            || format!("{}\nwrote {out} in {seconds:.1} s", summary(&tuned)),
            || {
                json!({
                    "model": shown, "out": out, "seconds": seconds,
                    "objective": if teacher.is_some() { "distill" } else { "next-token" },
                    "tokens": text.ids.len(), "length": text.length, "tuned": tuned,
                })
            },
        );
        Ok(Exit::Done)
    }

    fn check(&self) -> Result<(), UsageError> {
        let wrong = |detail: &str| Err(UsageError(detail.to_owned()));
        match (self.objective, &self.teacher) {
            (Objective::Distill, None) => {
                return wrong(
                    "distilling needs --teacher ORIGINAL; --objective next-token needs none",
                );
            }
            (Objective::NextToken, Some(_)) => {
                return wrong(
                    "--objective next-token learns from the text alone, without --teacher",
                );
            }
            _ => {}
        }
        if self.steps == 0 || self.batch == 0 || self.length < 2 {
            return wrong("--steps and --batch are at least 1, --length at least 2");
        }
        if !(self.rate.is_finite() && self.rate > 0.0) {
            return wrong("--rate is above 0");
        }
        Ok(())
    }
}

/// The message of the progress bar: loss, best held-out loss and speed.
fn message(moment: &TrainProgress, tokens_a_step: usize, started: &Instant) -> String {
    let shown = |loss: Option<f64>| loss.map_or_else(|| "-".to_owned(), |l| format!("{l:.4}"));
    let seconds = started.elapsed().as_secs_f64().max(1e-3);
    let speed = (moment.step * tokens_a_step) as f64 / seconds;
    format!(
        ": loss {}, held-out {}, {speed:.0} tokens/s",
        shown(moment.loss),
        shown(moment.best)
    )
}

/// The result as text.
fn summary(tuned: &Tuned) -> String {
    let first = tuned.checks.first().map_or(f64::NAN, |check| check.loss);
    let done = tuned.losses.len();
    let steps = counted(done, "step");
    let ended = match tuned.ended {
        Ended::Finished => steps,
        Ended::Early => format!("{steps}, then no better state was found"),
        Ended::NotFinite => format!(
            "stopped at step {}: its loss is not finite; the best state before it is kept (a lower --rate may help)",
            done + 1
        ),
    };
    let kept = match tuned.best.step {
        0 => "no step made the held-out loss lower: the model stays as it was (a lower --rate may help)".to_owned(),
        step => format!("held-out loss {first:.4} -> {:.4} nats at step {step}", tuned.best.loss),
    };
    let places = match tuned.positions {
        0 => "sequences begin at position 0: the model counts positions itself".to_owned(),
        all => format!(
            "sequences stand anywhere among {} positions",
            grouped(all as u64)
        ),
    };
    format!(
        "{} with {} numbers trained, {ended}\n{places}\n{kept}",
        counted(tuned.tensors, "tensor"),
        grouped(tuned.elements as u64)
    )
}
