mod distill;
mod dry_run;
mod ending;
mod fastest;
mod form;
mod serving;
mod shown;
mod size;
mod summary;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use gqa2mla_passes::RewriteOptions;

use distill::DistillArgs;
use dry_run::Plan;
use ending::{Ending, with_kept_heads};
use fastest::{Choice, Draft, check_measurable, fastest};
use form::{FormArgs, TargetArg};
use serving::ServingArg;
use size::Size;

use crate::cli::bench;
use crate::cli::clean::remove_unfinished;
use crate::cli::exit::{Exit, UsageError, in_options};
use crate::cli::factors::FactorArgs;
use crate::cli::proof::ProofArgs;
use crate::cli::report_file::ReportFile;
use crate::cli::screen::Screen;
use crate::cli::values::output;
use crate::compress::compressor::Destination;
use crate::compress::foreseen::foresee;
use crate::compress::request::Request;
use crate::compress::run::compress;
use crate::compress::widths::Widths;
use crate::files::foreseen::check_file;
use crate::files::interrupted::{LAYERS, checkpoint_of};
use crate::files::load::{LoadedModel, load};
use crate::files::outputs::{OtherFile, check_model, check_other, check_outside};
use crate::files::save::{DataFile, names_a_file, output_path};
use crate::files::staging::Staging;
use crate::serving::folder::{FolderError, FolderRequest, rewrite_folder};
use crate::serving::foreseen::{foresee_folder, foresee_request};

/// Rewrite every attention to latent attention, write the model, and validate it.
///
/// Without a size option the rewrite is exact: the latent is as wide as the cached heads. With a size option, give
/// statistics or a text: factors from weights alone lose much more. The output appears at its path only when it is
/// complete and accepted; a rejected output is kept in the folder <name>.rejected.
///
/// Example: gqa2mla rewrite fixtures/optimum-llama -o out/model.onnx
#[derive(Debug, Args)]
pub struct Rewrite {
    /// A .onnx file, or a model folder as exporters write it.
    model: PathBuf,
    /// The output: a .onnx path, or a folder.
    ///
    /// If MODEL and OUT are folders, all other files are copied to OUT, and the configurations are edited so that the same
    /// serving stack can serve it.
    #[arg(short, long, value_name = "OUT", value_parser = output())]
    out: PathBuf,
    /// Show what would be done, without running or writing anything.
    ///
    /// This lists the attentions, their ranks, the bytes per token before and after, the files to be written, and the
    /// serving stack whose configuration would be edited. A rewrite that would be refused is
    /// refused with the same exit code; only errors that depend on weights, the runtime, free disk space or the text's content
    /// are not found.
    #[arg(long, conflicts_with_all = ["clean", "report", "explain", "bench"])]
    dry_run: bool,
    /// Remove the finished work that interrupted runs have kept beside OUT.
    ///
    /// Nothing is rewritten. The next run would have resumed from that work.
    #[arg(hide_short_help = true, long)]
    clean: bool,
    /// Rewrite the recognised attentions even if others are not recognised or cannot be rewritten.
    #[arg(long)]
    allow_partial: bool,
    #[command(flatten, next_help_heading = "Size")]
    size: Size,
    #[command(flatten)]
    form: FormArgs,
    /// Ranks of the layers: one for all, or separate ones.
    ///
    /// `uniform`: one rank for all, as serving stacks expect. `free`: separate ranks for the keys and the values of
    /// each layer with the same total cache size, chosen by the measured loss of each on the text. In a folder for
    /// onnxruntime-genai, the keys and the values of a layer have the same rank.
    #[arg(hide_short_help = true, long, value_enum, hide_possible_values = true, default_value_t = LayoutArg::Uniform, value_name = "uniform|free", help_heading = "Size")]
    layout: LayoutArg,
    #[command(flatten, next_help_heading = "Factors")]
    factors: FactorArgs,
    #[command(flatten, next_help_heading = "Factors")]
    distill: DistillArgs,
    /// The only model to rewrite in a folder with several models.
    ///
    /// Other models with a cache are left out of the output.
    #[arg(long, value_name = "FILE", help_heading = "Folder")]
    file: Option<PathBuf>,
    /// The serving stack whose configuration is edited.
    ///
    /// `auto` detects it by the files in the folder. The others are `genai`, `optimum`, `transformers-js`, `triton` and
    /// `none`.
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = ServingArg::Auto, value_name = "STACK", help_heading = "Folder")]
    serving: ServingArg,
    #[command(flatten, next_help_heading = "Validation")]
    how: ProofArgs,
    /// Write the model without running it.
    #[arg(long, help_heading = "Validation")]
    no_validate: bool,
    /// Write a report of the rewrite: .html or .json.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    report: Option<PathBuf>,
    /// Measure the decode steps and a prefill of both models afterwards.
    ///
    /// The times are printed and added to the report. `gqa2mla bench` measures other lengths, and more models.
    #[arg(long, help_heading = "Output")]
    bench: bool,
    /// Print the first attention before and after the rewrite.
    ///
    /// This shows its nodes, its initializers, and the changed inputs and outputs.
    #[arg(hide_short_help = true, long, help_heading = "Output")]
    explain: bool,
}

/// Whether layers and sides have separate ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LayoutArg {
    /// One rank for all.
    Uniform,
    /// A separate rank for the keys and the values of each layer.
    Free,
}

impl Rewrite {
    /// Runs the command of the command line `arguments`.
    pub fn run(mut self, arguments: &[OsString], screen: &Screen) -> anyhow::Result<Exit> {
        let started = Instant::now();
        if self.clean {
            let checkpoint = self.checkpoint();
            return remove_unfinished(&self.work_folder(), LAYERS, Some(&checkpoint), screen);
        }
        if let Some(report) = &self.report {
            self.check_report(report)?;
        }
        let choice = self.choose_target(screen)?;
        let request = self.request(&self.form)?;
        request.check_widths().map_err(|e| in_options(e.into()))?;
        if self.dry_run {
            return self.foresee(&request, screen);
        }
        let report = self.report.as_deref().map(ReportFile::begin).transpose()?;
        let in_detail = report.is_some();
        let mut ending = Ending::new(&self.model, self.form.target(), in_detail, started);
        ending.explains = self.explain;
        ending.choice = choice;
        ending.with_kept_heads = with_kept_heads(arguments);
        let output = if self.is_of_folder() {
            self.folder(&request, &mut ending, screen)?
        } else {
            self.one(&request, &mut ending, screen)?
        };
        if self.bench && ending.accepted {
            for (original, rewritten) in ending.pairs(&self.model, &output) {
                let runtime = self.how.runtime();
                // The rewrite is published already, even if the measurement of its times fails.
                match bench::beside(&original, &rewritten, runtime, screen) {
                    Ok(times) => ending.add_times(&times)?,
                    Err(error) => screen.complain(&format!("times were not measured: {error:#}")),
                }
            }
        }
        ending.finish(&output, arguments, screen, report)
    }

    /// Rewrites a folder to a folder; returns the path of the new one.
    fn folder(
        &self,
        request: &Request<'static>,
        ending: &mut Ending,
        screen: &Screen,
    ) -> anyhow::Result<PathBuf> {
        let folder = rewrite_folder(&self.folder_request(request), &mut screen.observer());
        let folder = folder.map_err(folder_in_options)?;
        ending.folder(&folder);
        for (file, compression) in &folder.models {
            ending.add(file, compression);
        }
        Ok(folder.finish()?)
    }

    /// Rewrites one model to a file; returns its path.
    fn one(
        &self,
        request: &Request<'static>,
        ending: &mut Ending,
        screen: &Screen,
    ) -> anyhow::Result<PathBuf> {
        let (model, target) = self.loaded()?;
        // Claims the output, so that another run for the same output is refused before it computes anything.
        let _held = Staging::model(&target, &model.path)?;
        let destination = Destination {
            out: &self.out,
            data: DataFile::Beside,
            work: None,
            checkpoint: self.checkpoint(),
        };
        let observer = &mut screen.observer();
        let made = compress(&model, &destination, request, observer);
        let compression = made.map_err(in_options)?;
        ending.add(&model.path, &compression);
        ending.configurations_left(&model.path);
        Ok(match compression.accepted {
            true => compression.compressed.publish()?,
            false => compression.compressed.reject()?,
        })
    }

    /// Prints what the rewrite would do.
    fn foresee(&self, request: &Request<'static>, screen: &Screen) -> anyhow::Result<Exit> {
        let target = self.form.target();
        if self.is_of_folder() {
            let folder = foresee_folder(&self.folder_request(request));
            let folder = folder.map_err(folder_in_options)?;
            let plans = folder.models.iter().map(|model| Plan {
                file: &model.file,
                foreseen: &model.foreseen,
                written: model.written.iter().map(|f| self.out.join(f)).collect(),
            });
            let plans: Vec<Plan> = plans.collect();
            screen.show(
                || dry_run::as_text(&plans, Some(&folder), target),
                || dry_run::as_json(&plans, Some(&folder), target),
            );
            return Ok(Exit::Done);
        }
        let (model, output) = self.loaded()?;
        check_file(&output)?;
        let foreseen = foresee(&model, request).map_err(in_options)?;
        let plans = [Plan {
            file: &model.path,
            foreseen: &foreseen,
            written: dry_run::written(&model.path, &self.out, foreseen.has_data),
        }];
        screen.show(
            || dry_run::as_text(&plans, None, target),
            || dry_run::as_json(&plans, None, target),
        );
        Ok(Exit::Done)
    }

    /// Checks that the report would replace no input, no file of another origin, and no file of the output.
    fn check_report(&self, report: &Path) -> anyhow::Result<()> {
        let read: Vec<&Path> = self.factors.files().chain([self.model.as_path()]).collect();
        check_other(report, &read, OtherFile::Report, self.factors.force)?;
        if self.model.is_dir() {
            check_outside(report, &self.model)?;
        }
        let in_output = report.strip_prefix(&self.out).ok();
        let clashes = in_output.is_some_and(|name| {
            name.as_os_str().is_empty() || self.model.is_dir() && self.model.join(name).exists()
        });
        match clashes {
            true => Err(UsageError(format!(
                "--report {}: the output has a file of this name: give another one",
                report.display()
            ))
            .into()),
            false => Ok(()),
        }
    }

    /// The file with the state of an interrupted distillation, beside the output.
    fn checkpoint(&self) -> PathBuf {
        match self.is_of_folder() {
            true => checkpoint_of(&self.out),
            false => checkpoint_of(&output_path(&self.model, &self.out)),
        }
    }

    /// The folder of the work from which a stopped run would go on: that of the output.
    fn work_folder(&self) -> PathBuf {
        let target = match self.is_of_folder() {
            true => self.out.clone(),
            false => output_path(&self.model, &self.out),
        };
        match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        }
    }

    /// Whether both the input and the output are folders.
    fn is_of_folder(&self) -> bool {
        self.model.is_dir() && !names_a_file(&self.out)
    }

    fn folder_request<'f>(&'f self, request: &'f Request<'static>) -> FolderRequest<'f> {
        FolderRequest {
            folder: &self.model,
            only: self.file.as_deref(),
            out: &self.out,
            force: self.factors.force,
            stacks: self.serving.stacks(),
            compression: request,
        }
    }

    /// The loaded model, and the path of its output file.
    fn loaded(&self) -> anyhow::Result<(LoadedModel, PathBuf)> {
        if self.file.is_some() || self.serving != ServingArg::Auto {
            let words = "--file and --serving speak of folders: give a folder as MODEL and as OUT";
            return Err(UsageError(words.to_owned()).into());
        }
        let model = load(&self.model)?;
        let target = output_path(&model.path, &self.out);
        check_model(&model, &target, self.factors.force)?;
        Ok((model, target))
    }

    /// Replaces the target `auto` by the faster one; `None` if another is given.
    fn choose_target(&mut self, screen: &Screen) -> anyhow::Result<Option<Choice>> {
        if !self.form.chooses_target() {
            return Ok(None);
        }
        check_measurable(self.size.promise(), self.dry_run, self.no_validate)?;
        let choice = fastest(&|target| self.draft(target), self.how.runtime(), screen)?;
        self.form = self.form.with(choice.target);
        Ok(Some(choice))
    }

    /// The rewrite to `target` with blank factors.
    fn draft(&self, target: TargetArg) -> anyhow::Result<Draft> {
        let request = self.request(&self.form.with(target))?;
        request.check_widths().map_err(|e| in_options(e.into()))?;
        if self.is_of_folder() {
            let folder = foresee_request(&self.folder_request(&request));
            let (models, request) = folder.map_err(folder_in_options)?;
            // In the output, if it is there: the folder around it may be read-only.
            let place = match self.out.is_dir() {
                true => self.out.join("model"),
                false => self.out.clone(),
            };
            return Draft::of(target, &models, &request, &place);
        }
        let (model, output) = self.loaded()?;
        Draft::of(target, &[model], &request, &output)
    }

    /// The request for the library, with the form of `form_args`.
    fn request(&self, form_args: &FormArgs) -> anyhow::Result<Request<'static>> {
        let transmla = self.factors.is_transmla();
        let form = form_args.form(transmla)?;
        self.distill.check(&self.size, form_args, &self.factors)?;
        self.factors.check_used()?;
        self.factors.check_reconstructed(form)?;
        if self.no_validate {
            self.how.unused("--no-validate compares none")?;
        }
        Ok(Request {
            options: RewriteOptions {
                ranks: self.size.plan(),
                bits: form_args.bits(),
                allow_partial: self.allow_partial,
                join: form_args.join(form, transmla)?,
                per_head: form_args.per_head(form, transmla)?,
                form,
                context: self.factors.context(),
                ..RewriteOptions::default()
            },
            promise: self.size.promise(),
            searches_bits: form_args.cache_bits.is_none(),
            widths: match self.layout {
                LayoutArg::Uniform => Widths::Uniform,
                LayoutArg::Free => Widths::Free,
            },
            factorization: self.factors.factorization(),
            takes_few_tokens: self.factors.force,
            statistics: self.factors.statistics()?,
            text: self.factors.text(&self.model)?,
            reconstruction_steps: self.factors.reconstruction_steps(),
            #[cfg(feature = "train")]
            distillation_steps: self.distill.steps,
            runtime: self.how.runtime(),
            proof: (!self.no_validate).then(|| self.how.options()),
            in_detail: self.report.is_some(),
        })
    }
}

/// The error of a folder, with command-line options in its text.
fn folder_in_options(error: FolderError) -> anyhow::Error {
    match error {
        FolderError::Compress(error) => in_options(error),
        error => error.into(),
    }
}
