use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::bench::{BenchRequest, Benched, Io, bench, memory};
use crate::cli::exit::{Exit, UsageError};
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::{Screen, table};
use crate::files::load::{LoadedModel, load};
use crate::fit::context::Context;
use crate::report::{counted, grouped, size};
use crate::runtime::RuntimeOptions;
use crate::runtime::host::this_program;
use crate::validate::interface::Interface;
use crate::validate::ports::LanguageModel;

/// The default lengths, if the context of the model allows them.
const PAST: [usize; 3] = [512, 2048, 7900];
const PREFILL: [usize; 2] = [512, 2048];

/// Measure the times of decode steps and prefills, and the memory, of several models.
///
/// Every round runs each model once, and ratios compare runs of the same round with the first model, so that other load
/// on the machine affects both. One round before the first is a warm-up and not counted. The peak memory is that of a
/// separate process which runs only one model, at the longest lengths.
///
/// Example: gqa2mla bench fixtures/optimum-llama out/model.onnx --past 16 --prefill 16 --rounds 4
#[derive(Debug, Args)]
pub struct Bench {
    /// The models: .onnx files, or folders with one model each.
    ///
    /// The other models are compared with the first one.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Past lengths of the decode steps, such as 512,2048, or none.
    ///
    /// The default is 512,2048,7900, without lengths that exceed the context.
    #[arg(long, value_parser = lengths, value_name = "LENGTHS")]
    past: Option<Lengths>,
    /// Lengths of the prefills in tokens, such as 512,2048, or none.
    ///
    /// The default is 512,2048, without lengths that exceed the context.
    #[arg(long, value_parser = lengths, value_name = "LENGTHS")]
    prefill: Option<Lengths>,
    /// Batch sizes, comma-separated; each is run with every length.
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "SIZES", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Rounds of each decode length; a prefill has a quarter of them.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// How caches are passed from one run to the next.
    #[arg(long, value_enum, default_value_t = Travel::Shared, value_name = "HOW")]
    io: Travel,
    #[command(flatten, next_help_heading = "Run")]
    runtime: RuntimeArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Travel {
    /// Past and present in one buffer, if the model (--cache-io inplace) or its operator (GroupQueryAttention) writes
    /// in place; otherwise as `bound`.
    Shared,
    /// Inputs and outputs are bound: no copy outside the model.
    Bound,
    /// Outputs are copied into memory of the caller.
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

/// Lengths in tokens, all above 0.
#[derive(Debug, Clone)]
struct Lengths(Vec<usize>);

/// Parses `512,2048` or `none`.
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

/// Number of rounds of each decode length in `rewrite --bench`.
const FEW_ROUNDS: usize = 8;

/// Measures `rewritten` against `original`, with decode steps and a prefill of the default lengths that the context
/// allows, or else of half of the context.
pub fn beside(
    original: &Path,
    rewritten: &Path,
    runtime: RuntimeOptions,
    screen: &Screen,
) -> anyhow::Result<Benched> {
    let models = [load(original)?, load(rewritten)?];
    let context = Context::of(None, &models[0])?.positions;
    usual(&models, context, &PREFILL[..1], runtime, screen)
}

/// The number of positions of `context` that a run of a model can have: those of its past and one more, if its past has a
/// constant number of rows.
fn within(interface: &Interface, context: usize) -> usize {
    let window = interface.window().filter(|&rows| rows > 0);
    window.map_or(context, |rows| context.min(rows.saturating_add(1)))
}

/// Measures `models`, with decode steps and with prefills of `prefill` tokens. Lengths are the default ones that a
/// context of `context` positions allows, or else half of the context.
pub fn usual(
    models: &[LoadedModel],
    context: usize,
    prefill: &[usize],
    runtime: RuntimeOptions,
    screen: &Screen,
) -> anyhow::Result<Benched> {
    let first = models.first().context("no model")?;
    let interface = LanguageModel::of(&first.model.proto)?.interface;
    let context = within(&interface, context);
    let fitting = |lengths: &[usize], new: usize| -> Vec<usize> {
        let fits = |length: &&usize| **length + new <= context;
        let fitting: Vec<usize> = lengths.iter().filter(fits).copied().collect();
        match fitting.is_empty() && !lengths.is_empty() {
            true => vec![(context / 2).max(1)],
            false => fitting,
        }
    };
    let request = BenchRequest {
        past: match (interface.caches.is_empty(), interface.fixed_length()) {
            (false, None | Some(1)) => fitting(&PAST, 1),
            _ => Vec::new(),
        },
        prefill: match interface.fixed_length() {
            None => fitting(prefill, 0),
            Some(1) => Vec::new(),
            Some(length) => vec![length],
        },
        batches: vec![interface.fixed_batch.unwrap_or(1)],
        rounds: FEW_ROUNDS,
        io: Io::Shared,
        runtime,
    };
    let progress = &mut screen.progress("measuring", "round");
    Ok(bench(models, &request, progress)?)
}

impl Bench {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let models = self.models.iter().map(|path| load(path));
        let models = models.collect::<Result<Vec<_>, _>>()?;
        let first = models.first();
        let context = match first {
            Some(model) => {
                let interface = LanguageModel::of(&model.model.proto).map(|m| m.interface);
                let all = Context::of(None, model)?.positions;
                interface.map_or(all, |interface| within(&interface, all))
            }
            None => 0,
        };
        let request = self.request(context)?;
        // The peak memory of several models in one process, or in the process of a caller, would not be that of one
        // model.
        let alone = match models.as_slice() {
            [_] if screen.owns_the_process() => None,
            several => {
                let peaks = several
                    .iter()
                    .map(|model| self.peak_of(&model.path, &request));
                Some(peaks.collect::<Result<Vec<_>, _>>()?)
            }
        };
        let benched = bench(
            &models,
            &request,
            &mut screen.progress("measuring", "round"),
        )?;
        let peaks = alone.unwrap_or_else(|| vec![memory::peak()]);
        let data = as_json(&benched, &peaks)?;
        screen.show(|| as_text(&benched, &peaks), || data);
        Ok(Exit::Done)
    }

    /// The request for models with this context length.
    fn request(&self, context: usize) -> Result<BenchRequest, UsageError> {
        let mut left_out = Vec::new();
        let mut given = |lengths: &Option<Lengths>, usual: &[usize], new: usize, name: &str| {
            if let Some(Lengths(given)) = lengths {
                return given.clone();
            }
            let fits = |length: &&usize| **length + new <= context;
            let long = usual.iter().filter(|length| !fits(length));
            left_out.extend(long.map(|length| format!("{name} {}", grouped(*length as u64))));
            usual.iter().filter(fits).copied().collect()
        };
        let past: Vec<usize> = given(&self.past, &PAST, 1, "--past");
        let prefill: Vec<usize> = given(&self.prefill, &PREFILL, 0, "--prefill");
        if past.is_empty() && prefill.is_empty() && !left_out.is_empty() {
            return Err(UsageError(format!(
                "nothing to measure: {} do not fit the context of {} tokens: give shorter lengths with --past or --prefill",
                left_out.join(", "),
                grouped(context as u64)
            )));
        }
        Ok(BenchRequest {
            past,
            prefill,
            batches: self.batch.iter().map(|&size| size as usize).collect(),
            rounds: self.rounds as usize,
            io: self.io.into(),
            runtime: self.runtime.options(true),
        })
    }

    /// The peak memory of a separate process that runs only `model`, at the longest lengths and the largest batch size.
    fn peak_of(&self, model: &Path, request: &BenchRequest) -> anyhow::Result<Option<u64>> {
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

/// The times as text, with the peak memory of each model if it was measured.
pub fn as_text(benched: &Benched, peaks: &[Option<u64>]) -> String {
    let mut text = String::new();
    for (number, model) in benched.models.iter().enumerate() {
        let peak = peaks.get(number).copied();
        let peak = peak
            .flatten()
            .map_or_else(String::new, |peak| format!(", peak memory {}", size(peak)));
        text.push_str(&format!(
            "{}  {}\n   caches {}, {} bytes a token{peak}\n",
            number + 1,
            model.model,
            io_text(model.io),
            grouped(model.cache_bytes_per_token as u64),
        ));
    }
    for ran in &benched.phases {
        let mut times = table(&["model", "median ms", "min..max", "ratio", "min..max"]);
        for (number, timing) in ran.timings.iter().enumerate() {
            let (time, ratio) = (timing.milliseconds, timing.ratio);
            times.add_row([
                format!("{}", number + 1),
                format!("{:.2}", time.median),
                format!("{:.2}..{:.2}", time.min, time.max),
                format!("{:.3}", ratio.median),
                format!("{:.3}..{:.3}", ratio.min, ratio.max),
            ]);
        }
        let rounds = counted(ran.rounds, "round");
        text.push_str(&format!("\n{}, {rounds}:\n{times}\n", ran.phase));
    }
    let threads = match benched.threads {
        0 => "threads chosen by the runtime".to_owned(),
        threads => format!("threads: {threads}"),
    };
    format!("{text}\n{}, {threads}", benched.runtime)
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
