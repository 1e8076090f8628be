use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::bench::{BenchRequest, Benched, Io, bench, memory};
use crate::cli::exit::Exit;
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::{Screen, size, table};
use crate::files::load::load;
use crate::fit::context::Context;
use crate::report::grouped;
use crate::runtime::host::this_program;

/// Lengths that are measured where none are given, as far as the context of the model holds them.
const PAST: [usize; 3] = [512, 2048, 7900];
const PREFILL: [usize; 2] = [512, 2048];

/// Measure decode steps, prefills and memory of models, in turns.
///
/// Every round runs each model once, and a ratio compares runs of the same round with the first model, so that other work
/// on the machine slows down both. A first round warms up and does not count. The peak memory is that of a process that
/// runs one model alone at the longest lengths.
///
/// Example: gqa2mla bench fixtures/optimum-llama out/model.onnx --past 16 --prefill 16 --rounds 4
#[derive(Debug, Args)]
pub struct Bench {
    /// The models: .onnx files or folders that hold one each. The first one is what the others are compared with.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Past tokens of the decode steps, comma-separated, or `none`; the default is 512,2048,7900 as far as the context
    /// holds them.
    #[arg(long, value_parser = lengths, value_name = "LENGTHS")]
    past: Option<Lengths>,
    /// Tokens of the prefills, comma-separated, or `none`; the default is 512,2048 as far as the context holds them.
    #[arg(long, value_parser = lengths, value_name = "LENGTHS")]
    prefill: Option<Lengths>,
    /// Batch sizes, comma-separated, each with every length.
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "SIZES", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Rounds of each decode length; a prefill has a fourth of them.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// How caches travel from run to run.
    #[arg(long, value_enum, default_value_t = Travel::Shared)]
    io: Travel,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Travel {
    /// Past and present in one buffer where the model (--cache-io inplace) or its operator (GroupQueryAttention) writes in
    /// place, else bound.
    Shared,
    /// Inputs and outputs bound: no copy outside the model.
    Bound,
    /// Outputs copied into the caller's memory.
    Copied,
}

impl From<Travel> for Io {
    fn from(travel: Travel) -> Self {
        match travel {
            Travel::Shared => Self::Shared,
            Travel::Bound => Self::Bound,
            Travel::Copied => Self::Copied,
        }
    }
}

/// Lengths in tokens, none of them 0.
#[derive(Debug, Clone)]
struct Lengths(Vec<usize>);

/// Reads `512,2048` or `none`.
fn lengths(text: &str) -> Result<Lengths, String> {
    if text == "none" {
        return Ok(Lengths(Vec::new()));
    }
    let numbers = text.split(',').map(|part| match part.trim().parse() {
        Ok(0) | Err(_) => Err(format!(
            "{part:?} is no length: give numbers of tokens such as 512,2048, or none"
        )),
        Ok(length) => Ok(length),
    });
    Ok(Lengths(numbers.collect::<Result<_, _>>()?))
}

impl Bench {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let models = self.models.iter().map(|path| load(path));
        let models = models.collect::<Result<Vec<_>, _>>()?;
        let first = models.first();
        let context = first.map(|model| Context::of(None, model)).transpose()?;
        let context = context.map_or(0, |context| context.positions);
        let request = self.request(context);
        // Several models in one process would be measured together, and with what a caller holds.
        let alone = match models.as_slice() {
            [_] if screen.owns_the_process() => None,
            several => {
                let peaks = several
                    .iter()
                    .map(|model| self.peak_of(&model.path, &request));
                Some(peaks.collect::<Result<Vec<_>, _>>()?)
            }
        };
        let benched = bench(&models, &request, &mut screen.progress("measuring"))?;
        let peaks = alone.unwrap_or_else(|| vec![memory::peak()]);
        let data = as_json(&benched, &peaks)?;
        screen.show(|| as_text(&benched, &peaks), || data);
        Ok(Exit::Done)
    }

    fn request(&self, context: usize) -> BenchRequest {
        let given = |lengths: &Option<Lengths>, usual: &[usize], new: usize| match lengths {
            Some(Lengths(given)) => given.clone(),
            None => {
                let fit = usual.iter().filter(|length| *length + new <= context);
                fit.copied().collect()
            }
        };
        BenchRequest {
            past: given(&self.past, &PAST, 1),
            prefill: given(&self.prefill, &PREFILL, 0),
            batches: self.batch.iter().map(|&size| size as usize).collect(),
            rounds: self.rounds as usize,
            io: self.io.into(),
            runtime: self.runtime.options(true),
        }
    }

    /// The peak memory of a process that runs the longest lengths of `model` in the largest batch, and no other model.
    fn peak_of(
        &self,
        model: &std::path::Path,
        request: &BenchRequest,
    ) -> anyhow::Result<Option<u64>> {
        let longest = |lengths: &[usize]| match lengths.iter().max() {
            Some(length) => length.to_string(),
            None => "none".to_owned(),
        };
        let io = self.io.to_possible_value();
        let mut command = this_program()?;
        command
            .args([OsString::from("bench"), "--json".into(), model.into()])
            .args(["--past", &longest(&request.past)])
            .args(["--prefill", &longest(&request.prefill)])
            .args(["--batch", &longest(&request.batches)])
            .args([
                "--io",
                io.as_ref().map_or("shared", |value| value.get_name()),
            ])
            .args(["--rounds", "1"])
            .args(self.runtime.arguments())
            .stdin(Stdio::null());
        let output = command
            .output()
            .context("starting a process that measures memory")?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if !output.status.success() {
            let words = answer.get("error").and_then(Value::as_str);
            anyhow::bail!(
                "{}",
                words.unwrap_or("the process that measures memory was stopped")
            );
        }
        Ok(answer
            .pointer("/models/0/peak_memory_bytes")
            .and_then(Value::as_u64))
    }
}

fn as_text(benched: &Benched, peaks: &[Option<u64>]) -> String {
    let mut models = table(&["", "model", "caches", "bytes a token", "peak memory"]);
    for (number, (model, peak)) in benched.models.iter().zip(peaks).enumerate() {
        models.add_row([
            format!("{}", number + 1),
            model.model.clone(),
            io_text(model.io).to_owned(),
            grouped(model.cache_bytes_per_token as u64),
            peak.map_or_else(|| "-".to_owned(), size),
        ]);
    }
    let mut times = table(&[
        "run",
        "batch",
        "tokens",
        "past",
        "rounds",
        "model",
        "median ms",
        "min..max",
        "ratio",
        "min..max",
    ]);
    for ran in &benched.phases {
        for (number, timing) in ran.timings.iter().enumerate() {
            let (time, ratio) = (timing.milliseconds, timing.ratio);
            times.add_row([
                if ran.phase.is_prefill() {
                    "prefill"
                } else {
                    "decode"
                }
                .to_owned(),
                ran.phase.batch.to_string(),
                ran.phase.tokens.to_string(),
                ran.phase.past.to_string(),
                ran.rounds.to_string(),
                format!("{}", number + 1),
                format!("{:.2}", time.median),
                format!("{:.2}..{:.2}", time.min, time.max),
                format!("{:.3}", ratio.median),
                format!("{:.3}..{:.3}", ratio.min, ratio.max),
            ]);
        }
    }
    let threads = match benched.threads {
        0 => "threads chosen by the runtime".to_owned(),
        threads => format!("threads: {threads}"),
    };
    format!("{models}\n\n{times}\n\n{}, {threads}", benched.runtime)
}

fn io_text(io: Io) -> &'static str {
    match io {
        Io::Shared => "shared",
        Io::Bound => "bound",
        Io::Copied => "copied",
    }
}

fn as_json(benched: &Benched, peaks: &[Option<u64>]) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(benched)?;
    let models = value.get_mut("models").and_then(Value::as_array_mut);
    for (model, peak) in models.into_iter().flatten().zip(peaks) {
        if let Some(model) = model.as_object_mut() {
            model.insert("peak_memory_bytes".to_owned(), json!(peak));
        }
    }
    Ok(value)
}
