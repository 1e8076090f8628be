mod clean;
mod ending;
mod report_file;
mod serving;
mod shown;
mod size;
mod summary;

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::forms::{Join, KeptHeads, for_target};
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::{Absorbed, Decoupled, Expanded, Form, LatentPast, RewriteOptions};

use ending::Ending;
use report_file::ReportFile;
use serving::ServingArg;
use size::Size;

use crate::cli::bits::BitsArg;
use crate::cli::exit::{Exit, UsageError, in_options};
use crate::cli::factors::FactorArgs;
use crate::cli::proof::ProofArgs;
use crate::cli::screen::Screen;
use crate::cli::values::output;
use crate::compress::compressor::Destination;
use crate::compress::request::Request;
use crate::compress::run::compress;
use crate::compress::widths::Widths;
use crate::files::load::load;
use crate::files::outputs::{check_model, check_outside};
use crate::files::save::{DataFile, names_a_file, output_path};
use crate::files::staging::Staging;
use crate::serving::folder::{FolderError, FolderRequest, rewrite_folder};

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
    #[arg(short, long, value_name = "OUT", value_parser = output())]
    out: PathBuf,
    #[command(flatten)]
    size: Size,
    /// Bits of a cached number: 16, the model's own floating-point type whatever its width; or integers of 8, 6 or 4 bits, whose
    /// scales come from the text or the statistics. Together with any size; 6 with --target gqa, 4 with it or with --keep-heads. The default is
    /// 16, or with --max-perplexity-increase and --max-kl what makes the cache smallest.
    #[arg(long, value_enum, value_name = "BITS")]
    cache_bits: Option<BitsArg>,
    /// Cache the heads as they are, and no latent of them, as integers of --cache-bits 8 or 4: for models that use
    /// GroupQueryAttention.
    #[arg(long, conflicts_with_all = ["rank", "cache_ratio", "max_perplexity_increase", "max_kl", "form"])]
    keep_heads: bool,
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
    /// What the new tokens of a step are to each other in the form absorbed: `latent`, what later steps read of them; or
    /// `exact`, what they are in the model, so that a prompt that is read at once loses nothing. The past is latent in both.
    #[arg(long, value_enum, default_value_t = NewTokensArg::Latent)]
    new_tokens: NewTokensArg,
    /// How the rows of a step join the cache: `append`, the model makes a present that is longer than the past, as serving
    /// stacks expect; or `inplace`, the past input has room for the new rows and shares one buffer with its present, so that
    /// no step copies the cache: for loops of your own that bind both.
    #[arg(long, value_enum, default_value_t = CacheIoArg::Append)]
    cache_io: CacheIoArg,
    /// How the widths of the layers go together: `uniform`, one width for all, as serving stacks expect; or `free`, a
    /// width for each layer's keys and values under the same budget, by what narrowing each of them costs on the text.
    /// In a folder for onnxruntime-genai, which takes one shape for a layer, the keys and values of a layer stay alike.
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
    /// Rewrite nothing: remove the work that stopped runs have kept beside OUT to go on from.
    #[arg(long)]
    clean: bool,
    /// Print the nodes of the first attention before and after, its initializers, and what changes in the interface.
    #[arg(long)]
    explain: bool,
    /// Write the model without running it.
    #[arg(long)]
    no_validate: bool,
    #[command(flatten)]
    how: ProofArgs,
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NewTokensArg {
    Latent,
    Exact,
}

/// How the rows of a step join the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CacheIoArg {
    Append,
    Inplace,
}

impl From<CacheIoArg> for Join {
    fn from(io: CacheIoArg) -> Self {
        match io {
            CacheIoArg::Append => Self::Append,
            CacheIoArg::Inplace => Self::InPlace,
        }
    }
}

/// How the widths of layers and sides go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LayoutArg {
    /// One width for all.
    Uniform,
    /// A width for each side of each layer.
    Free,
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
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let started = Instant::now();
        if self.clean {
            return clean::remove_unfinished(&self.model, &self.out, screen);
        }
        let request = self.request()?;
        request.check_widths().map_err(|e| in_options(e.into()))?;
        let report = self.report.as_deref().map(ReportFile::begin).transpose()?;
        let in_detail = report.is_some();
        let mut ending = Ending::new(&self.model, self.target(), in_detail, started);
        ending.explains = self.explain;
        let output = if self.model.is_dir() && !names_a_file(&self.out) {
            self.folder(&request, &mut ending, screen)?
        } else {
            self.one(&request, &mut ending, screen)?
        };
        ending.finish(&output, screen, report)
    }

    /// Rewrites a folder to a folder; returns the path of the new one.
    fn folder(
        &self,
        request: &Request,
        ending: &mut Ending,
        screen: &Screen,
    ) -> anyhow::Result<PathBuf> {
        if let Some(report) = &self.report {
            check_outside(report, &self.model)?;
        }
        let request = FolderRequest {
            folder: &self.model,
            only: self.file.as_deref(),
            out: &self.out,
            force: self.factors.force,
            stacks: self.serving.stacks(),
            compression: request,
        };
        let folder =
            rewrite_folder(&request, &mut screen.observer()).map_err(|error| match error {
                FolderError::Compress(error) => in_options(error),
                error => error.into(),
            })?;
        ending.folder(&folder);
        for (file, compression) in &folder.models {
            ending.add(file, compression);
        }
        Ok(folder.finish()?)
    }

    /// Rewrites one model to a file; returns its path.
    fn one(
        &self,
        request: &Request,
        ending: &mut Ending,
        screen: &Screen,
    ) -> anyhow::Result<PathBuf> {
        if self.file.is_some() || self.serving != ServingArg::Auto {
            let words = "--file and --serving speak of folders: give a folder as MODEL and as OUT";
            return Err(UsageError(words.to_owned()).into());
        }
        let model = load(&self.model)?;
        let target = output_path(&model.path, &self.out);
        check_model(&model, &target, self.factors.force)?;
        // Claims the output, so that another run for the same output is refused before it computes anything.
        let _held = Staging::model(&target, &model.path)?;
        let destination = Destination {
            out: &self.out,
            data: DataFile::Beside,
            work: None,
        };
        let made = compress(&model, &destination, request, &mut screen.observer());
        let compression = made.map_err(in_options)?;
        ending.add(&model.path, &compression);
        Ok(match compression.accepted {
            true => compression.compressed.publish()?,
            false => compression.compressed.reject()?,
        })
    }

    /// What the attentions run as.
    fn target(&self) -> &'static str {
        match self.keep_heads {
            true => TargetArg::Gqa.name(),
            false => self.target.name(),
        }
    }

    /// Bits of a cached number.
    fn bits(&self) -> CacheBits {
        self.cache_bits.map(Into::into).unwrap_or_default()
    }

    /// The target form that the options ask for.
    fn form(&self) -> Result<&'static dyn Form, UsageError> {
        let transmla = self.factors.is_transmla();
        let rounds = self.bits() != CacheBits::Model;
        if self.new_tokens == NewTokensArg::Exact {
            let absorbed = self.target == TargetArg::Matmul && self.form == FormArg::Absorbed;
            let words = "--new-tokens exact goes with --target matmul and the form absorbed, and not with --factors transmla or --keep-heads";
            return match absorbed && !transmla && !self.keep_heads {
                true => Ok(&LatentPast),
                false => Err(UsageError(words.to_owned())),
            };
        }
        if self.keep_heads {
            return match rounds && !transmla {
                true => Ok(&KeptHeads),
                false => Err(UsageError(
                    "--keep-heads saves bytes in fewer bits alone: add --cache-bits 8".to_owned(),
                )),
            };
        }
        match (self.target, self.form) {
            (TargetArg::Matmul, _) if transmla => Ok(&Decoupled),
            (TargetArg::Matmul, FormArg::Absorbed) => Ok(&Absorbed),
            (TargetArg::Matmul, FormArg::Expanded) => Ok(&Expanded),
            (TargetArg::Gqa, _) => for_target(Target::Gqa)
                .filter(|_| self.form == FormArg::Absorbed && !transmla)
                .ok_or_else(|| UsageError(
                    "the target gqa caches what its operator reads, which is the form absorbed: use --target matmul"
                        .to_owned(),
                )),
        }
    }

    /// How the rows of a step join the cache in `form`.
    fn join(&self, form: &dyn Form) -> Result<Join, UsageError> {
        let join = Join::from(self.cache_io);
        match form.hinders_in_place().filter(|_| join == Join::InPlace) {
            Some((why, instead)) => Err(UsageError(format!(
                "--cache-io inplace does not go with the form {}: {why}; {instead}",
                form.name()
            ))),
            None => Ok(join),
        }
    }

    /// The request for the library.
    fn request(&self) -> anyhow::Result<Request<'static>> {
        let form = self.form()?;
        Ok(Request {
            options: RewriteOptions {
                ranks: self.size.plan(),
                bits: self.bits(),
                allow_partial: self.allow_partial,
                join: self.join(form)?,
                form,
                context: self.factors.context(),
                ..RewriteOptions::default()
            },
            promise: self.size.promise(),
            searches_bits: self.cache_bits.is_none(),
            widths: match self.layout {
                LayoutArg::Uniform => Widths::Uniform,
                LayoutArg::Free => Widths::Free,
            },
            factorization: self.factors.factorization(),
            takes_few_tokens: self.factors.force,
            statistics: self.factors.statistics()?,
            text: self.factors.text(&self.model)?,
            reconstruction_steps: self.factors.reconstruction_steps(),
            runtime: self.how.runtime(),
            proof: (!self.no_validate).then(|| self.how.options()),
            measure_layers: self.report.is_some(),
        })
    }
}
