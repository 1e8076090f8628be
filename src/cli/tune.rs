use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::cli::bar::Moment;
use crate::cli::exit::{Exit, UsageError, no_text};
use crate::cli::provenance;
use crate::cli::report_file::ReportFile;
use crate::cli::screen::Screen;
use crate::cli::text::TextArgs;
use crate::cli::values::{length, output};
use crate::files::interrupted::checkpoint_of;
use crate::files::load::load;
use crate::files::origin::mark;
use crate::files::outputs::{OtherFile, check_model, check_other};
use crate::files::save::{output_path, save};
use crate::files::staging::Staging;
use crate::fit::context::Context;
use crate::measure::examples::examples;
use crate::report::{self, counted, grouped};
use crate::tune::course::Check;
use crate::tune::run::{Ended, TrainProgress, TuneOptions, Tuned, tune};
use crate::tune::samples::Samples;
use crate::tune::select::Trainable;
use crate::validate::ports::LanguageModel;

/// Train the factors of a rewritten model on text, to recover the loss of a smaller cache.
///
/// With --teacher, the original, the loss is the divergence (KL) from the original's next-token distribution. A part of
/// the text is held out; the state with the lowest loss on it is written, and a run that stops improving ends early. An
/// interrupted run resumes if it is started again with the same options.
///
/// Example: gqa2mla tune out/half.onnx --teacher fixtures/optimum-llama --token-ids fixtures/tokens.json -o out/tuned.onnx
#[derive(Debug, Args)]
pub struct Tune {
    /// The model to train: a .onnx file, or a folder with one model.
    model: PathBuf,
    /// The original model, whose next-token distribution is learnt.
    #[arg(long, value_name = "ORIGINAL")]
    teacher: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// Examples instead of text: a file of JSON lines, each with "prompt" and "answer". The loss is that of the answers.
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["text", "token_ids"])]
    examples: Option<PathBuf>,
    /// The output: a .onnx path, or a folder for the .onnx file.
    #[arg(short, long, value_name = "OUT", value_parser = output())]
    out: PathBuf,
    /// The loss; `distill`, the default, needs --teacher.
    #[arg(long, value_enum, default_value_t = Objective::Distill)]
    objective: Objective,
    /// The initializers to train.
    #[arg(long, value_enum, default_value_t = Train::Factors)]
    train: Train,
    /// Largest number of steps.
    #[arg(long, default_value_t = 100, value_name = "N")]
    steps: usize,
    /// Largest change of a tensor in a step, relative to its root mean square. The default is 0.005; if the KL from the
    /// teacher is below 0.3 nats, less in proportion to its square root, and at least 0.0005.
    #[arg(long, value_name = "RATE")]
    rate: Option<f64>,
    /// Tokens per sequence; longer examples are left out.
    #[arg(long, default_value_t = 512, value_name = "L")]
    length: usize,
    /// Tokens per step: of longer sequences, successive steps read successive chunks, with the tokens before in the cache.
    #[arg(long, default_value_t = 512, value_name = "C")]
    chunk: usize,
    /// Target context length in tokens: sequences are placed at random positions within it, if the model has position
    /// inputs; the default is the maximum in genai_config.json or config.json beside the model, or else 4096.
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
    /// Write the losses of the run, with charts: .html or .json; can be repeated.
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// The JSON report of another run, whose losses are added to the charts of --report; can be repeated.
    #[arg(long, value_name = "FILE.json", requires = "report")]
    beside: Vec<PathBuf>,
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
    /// The weights of all layers, with a tenth of the rate, and the factors of a rewrite if there are any.
    Layers,
}

impl Tune {
    /// Runs the command of the command line `arguments`.
    pub fn run(self, arguments: &[OsString], screen: &Screen) -> anyhow::Result<Exit> {
        let started = Instant::now();
        self.check()?;
        let beside = self.beside.iter().map(|file| other_run(file));
        let beside: Vec<Value> = beside.collect::<Result<_, _>>()?;
        let reports = self.report.iter().map(|file| self.begin(file));
        let reports: Vec<ReportFile> = reports.collect::<Result<_, _>>()?;
        let mut model = load(&self.model)?;
        let teacher = match (&self.teacher, self.objective) {
            (Some(path), Objective::Distill) => Some(load(path)?),
            _ => None,
        };
        let shown = model.path.display().to_string();
        let subject = LanguageModel::of(&model.model.proto).with_context(|| shown.clone())?;
        let samples = self.samples(subject.known_vocabulary())?;
        let options = TuneOptions {
            trainable: match self.train {
                Train::Factors => Trainable::Factors,
                Train::Kv => Trainable::KeysAndValues,
                Train::Layers => Trainable::Layers,
            },
            steps: self.steps,
            rate: self.rate,
            context: Context::of(self.context, &model)
                .with_context(|| shown.clone())?
                .positions,
            chunk: self.chunk,
            batch: self.batch,
            seed: self.seed,
            given: Vec::new(),
        };
        let out = output_path(&model.path, &self.out);
        check_model(&model, &out, self.force)?;
        // Claims the output, so that another run for the same output is refused before it computes anything.
        let _held = Staging::model(&out, &model.path)?;
        let partial = checkpoint_of(&out);
        let sequences = samples.train.len() + samples.held_out.len();
        let tokens_a_step = (samples.tokens() / sequences).min(self.chunk) * self.batch;
        let mut bar = screen.bar();
        let tuned = tune(
            &mut model,
            teacher.as_ref(),
            &samples,
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
        let data = json!({
            "model": shown, "teacher": self.teacher, "out": out, "seconds": seconds,
            "objective": if teacher.is_some() { "distill" } else { "next-token" },
            "sequences": samples.train.len(), "held_out": samples.held_out.len(),
            "tokens": samples.tokens(), "length": samples.longest(), "tuned": tuned,
        });
        if !reports.is_empty() {
            let mut data = data.clone();
            let more = [
                ("schema", json!(report::SCHEMA)),
                ("version", json!(env!("CARGO_PKG_VERSION"))),
                ("command", json!(provenance::command(arguments))),
                ("date", json!(provenance::now())),
                ("beside", json!(beside)),
            ];
            if let Some(object) = data.as_object_mut() {
                object.extend(more.map(|(key, value)| (key.to_owned(), value)));
            }
            for file in reports {
                file.write(&data, report::training_html)?;
            }
        }
        screen.show(
            || format!("{}\nwrote {out} in {seconds:.1} s", summary(&tuned)),
            || data.clone(),
        );
        Ok(Exit::Done)
    }

    /// Checks the path of the report.
    fn begin(&self, file: &Path) -> anyhow::Result<ReportFile> {
        let read = self.text.files().chain(self.examples.as_deref());
        let read = read.chain(self.beside.iter().map(PathBuf::as_path));
        let read: Vec<&Path> = read.chain([self.model.as_path()]).collect();
        check_other(file, &read, OtherFile::Report, self.force)?;
        ReportFile::begin(file)
    }

    /// The sequences of the text or of the examples.
    fn samples(&self, vocabulary: usize) -> anyhow::Result<Samples> {
        let Some(file) = &self.examples else {
            let text = self
                .text
                .read(&self.model, vocabulary, self.tokens, self.length)?;
            let text = text.ok_or_else(no_text)?;
            let few = || {
                anyhow::anyhow!(
                    "the text has {}, and training needs at least 6: a part is held out to choose the best state",
                    counted(text.ids.len(), "token")
                )
            };
            return Samples::of_text(&text).ok_or_else(few);
        };
        let tokenizer = self.text.tokenizer(&self.model).ok_or_else(|| {
            UsageError("examples need the model's tokenizer, and there is no tokenizer.json beside the model: give --tokenizer FILE".to_owned())
        })?;
        let read = examples(file, &tokenizer, vocabulary)?;
        let all = read.len();
        let fit = read.iter().filter(|e| e.ids.len() <= self.length).count();
        Samples::of_examples(read, self.length).ok_or_else(|| {
            anyhow::anyhow!(
                "{}: {fit} of {} have at most {} tokens (--length), and training needs at least 3: a part is held out to choose the best state",
                file.display(),
                counted(all, "example"),
                self.length
            )
        })
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
        if self.steps == 0 || self.batch == 0 || self.length < 2 || self.chunk < 2 {
            return wrong("--steps and --batch are at least 1, --length and --chunk at least 2");
        }
        if !self.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0) {
            return wrong("--rate is above 0");
        }
        Ok(())
    }
}

/// The losses in the JSON report `file` of another run.
fn other_run(file: &Path) -> anyhow::Result<Value> {
    let shown = file.display().to_string();
    let text = std::fs::read(file).with_context(|| shown.clone())?;
    let data: Value = serde_json::from_slice(&text).with_context(|| shown.clone())?;
    let tuned = data
        .get("tuned")
        .filter(|run| run.get("checks").is_some_and(Value::is_array));
    let Some(tuned) = tuned else {
        anyhow::bail!(
            "{shown}: not the JSON report of a training run: write one with `gqa2mla tune --report FILE.json`"
        );
    };
    Ok(json!({ "name": shown, "tuned": tuned }))
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
    let ended = match tuned.resumed_at {
        0 => ended,
        steps => format!("{ended} ({} of an interrupted run)", counted(steps, "step")),
    };
    let kept = match tuned.best.step {
        0 => "no step made the held-out loss lower: the model stays as it was (a lower --rate may help)".to_owned(),
        step => format!("held-out loss {first:.4} -> {:.4} nats at step {step}", tuned.best.loss),
    };
    let right = |check: Option<&Check>| check.and_then(|check| check.right);
    let answers = match (right(tuned.checks.first()), right(Some(&tuned.best))) {
        (Some(before), Some(after)) => format!(
            "\nright answers {:.1}% -> {:.1}% of the held-out examples",
            100.0 * before,
            100.0 * after
        ),
        _ => String::new(),
    };
    let places = match tuned.positions {
        0 => "sequences begin at position 0: the model counts positions itself".to_owned(),
        all => format!(
            "sequences stand anywhere among {} positions",
            grouped(all as u64)
        ),
    };
    let alone = match tuned.factors_alone {
        true => {
            "\nfactors of the rewrite alone: no other weight can be trained, as those that are quantized cannot"
        }
        false => "",
    };
    format!(
        "{} with {} numbers trained, {ended}{alone}\n{places}\n{kept}{answers}",
        counted(tuned.tensors, "tensor"),
        grouped(tuned.elements as u64)
    )
}
