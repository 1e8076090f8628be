//! The options that select the form.

use clap::{Args, ValueEnum};
use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::forms::{
    AbsorbedPrompt, GROUPED_PROMPT, GroupedQuery, Join, KEPT_PROMPT, KeptHeads, REBASED_PROMPT,
    RebasedHeads,
};
use gqa2mla_passes::{Absorbed, Decoupled, Expanded, Form, Joint, LatentPast};

use crate::cli::bits::BitsArg;
use crate::cli::exit::UsageError;

/// The options of the cached numbers and of the attention that reads them.
#[derive(Debug, Clone, Copy, Args)]
pub struct FormArgs {
    /// Bits of a cached number.
    ///
    /// 16 is the model's own floating-point type, whatever its width. 8, 6 and 4 are integers, whose scales are
    /// computed from the text or the statistics. 6 is a mean: half of the channels, where errors cost most, have two
    /// 4-bit integers, the others one. Bits can be combined with every size. 6 and 4 need --target gqa or --keep-heads.
    /// The default is 16; with --max-perplexity-increase and --max-kl it is the fewest bits at which
    /// the full rank keeps the promise.
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "16|8|6|4",
        help_heading = "Size"
    )]
    pub cache_bits: Option<BitsArg>,
    /// Cache the KV heads without a latent, and let GroupQueryAttention read them.
    ///
    /// A model that is written as products then takes less time for a long past, and loses nothing. With --cache-bits 8, 6 or 4
    /// the heads are cached as integers; with 6 and 4 each head in a basis of its own, in which rounding costs least.
    #[arg(long, conflicts_with_all = ["rank", "cache_ratio", "max_perplexity_increase", "max_kl", "form"], help_heading = "Size")]
    keep_heads: bool,
    /// The operators of the rewritten attentions.
    ///
    /// `matmul`: standard operators. `gqa`: the operator GroupQueryAttention of ONNX Runtime, which can share the buffer of
    /// past and present; attentions that are written as products become it. `auto`: the one with the shortest decode step at
    /// the longest usual past, found by running both on this machine, with the factors left blank. The default is `matmul`, and `gqa` with --keep-heads.
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "matmul|gqa|auto",
        help_heading = "Form"
    )]
    target: Option<TargetArg>,
    /// Whether the latents of keys are computed after or before RoPE.
    ///
    /// `absorbed`: latents of rotated keys, fastest to decode. `expanded`: latents of keys before rotation, from which
    /// keys are rebuilt at every step; more accurate at a given size, and slower. `joint`: as `expanded`, with one latent of
    /// keys and values together; most accurate, and slowest.
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = FormArg::Absorbed, value_name = "absorbed|expanded|joint", help_heading = "Form")]
    form: FormArg,
    /// How the new tokens of a step read each other's keys and values.
    ///
    /// For the form absorbed. The past is latent in all cases. `latent`: as latents, like later steps; the default with
    /// --target matmul. `prompt`: as in the original model where they fill an empty cache, so that a prompt that is read
    /// in one step loses nothing and takes little more time; the default with --target gqa and --keep-heads. `exact`: as in
    /// the original model in every step; with --target matmul.
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "latent|prompt|exact",
        help_heading = "Form"
    )]
    new_tokens: Option<NewTokensArg>,
    /// How the new rows of a step are appended to the cache.
    ///
    /// `append`: the model returns a present that is longer than the past, as serving stacks expect. `inplace`: the
    /// past input has space for the new rows and shares a buffer with its present, so that no step copies the cache;
    /// for decode loops of your own that bind both.
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = CacheIoArg::Append, value_name = "append|inplace", help_heading = "Form")]
    cache_io: CacheIoArg,
    /// Give every query head its own up-projections, equal at first to those of its KV head.
    ///
    /// The model computes the same and its cache has the same size; `gqa2mla tune` has more factors to train. The file
    /// grows, and a step reads more weights.
    #[arg(hide_short_help = true, long, help_heading = "Form")]
    per_head: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TargetArg {
    Matmul,
    Gqa,
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormArg {
    Absorbed,
    Expanded,
    Joint,
}

impl FormArg {
    /// The option that selects it.
    fn option(self) -> &'static str {
        match self {
            Self::Absorbed => "--form absorbed",
            Self::Expanded => "--form expanded",
            Self::Joint => "--form joint",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NewTokensArg {
    Latent,
    Prompt,
    Exact,
}

/// How the new rows of a step are appended to the cache.
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

impl TargetArg {
    pub fn name(self) -> &'static str {
        match self {
            Self::Matmul => "matmul",
            Self::Gqa => "gqa",
            Self::Auto => "auto",
        }
    }
}

impl FormArgs {
    /// The operators of the rewritten attentions.
    pub fn target(&self) -> &'static str {
        match self.keep_heads {
            true => TargetArg::Gqa.name(),
            false => self.target.unwrap_or(TargetArg::Matmul).name(),
        }
    }

    /// The same options with another target.
    pub fn with(self, target: TargetArg) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    /// Whether the target is to be found by measuring. Kept heads have only one.
    pub fn chooses_target(&self) -> bool {
        self.target == Some(TargetArg::Auto) && !self.keep_heads
    }

    /// Bits of a cached number.
    pub fn bits(&self) -> CacheBits {
        self.cache_bits.map(Into::into).unwrap_or_default()
    }

    /// The form that the options select.
    pub fn form(&self, transmla: bool) -> Result<&'static dyn Form, UsageError> {
        let absorbed = self.form == FormArg::Absorbed && !transmla;
        let few = self.bits().are_few();
        if self.keep_heads {
            return match (self.target, self.bits()) {
                (Some(TargetArg::Matmul), _) => Err(UsageError(
                    "--keep-heads keeps the operator that reads the heads: leave out --target matmul"
                        .to_owned(),
                )),
                _ if transmla => Err(UsageError(
                    "--factors transmla has a cache of its own, without heads: leave out --keep-heads".to_owned(),
                )),
                _ => match self.new_tokens {
                    Some(NewTokensArg::Exact) => Err(self.exact_in_the_operator()),
                    Some(NewTokensArg::Latent) if few => Ok(&RebasedHeads),
                    Some(NewTokensArg::Latent) => Ok(&KeptHeads),
                    // Heads in the model's own type are exact without a branch for prompts.
                    _ if self.bits() == CacheBits::Model => Ok(&KeptHeads),
                    _ if few => Ok(&REBASED_PROMPT),
                    _ => Ok(&KEPT_PROMPT),
                },
            };
        }
        if !absorbed && !matches!(self.new_tokens, None | Some(NewTokensArg::Latent)) {
            let words = "--new-tokens prompt and exact go with the form absorbed, and not with --factors transmla";
            return Err(UsageError(words.to_owned()));
        }
        let target = match self.target {
            Some(TargetArg::Gqa) => TargetArg::Gqa,
            _ => TargetArg::Matmul,
        };
        match (target, self.new_tokens) {
            (TargetArg::Gqa, _) if !absorbed => {
                let option = match transmla {
                    true => "--factors transmla",
                    false => self.form.option(),
                };
                let or_matmul = match self.bits() {
                    CacheBits::Model => ", or use --target matmul",
                    _ => "",
                };
                Err(UsageError(format!(
                    "--target gqa caches what its operator reads, which is the form absorbed: leave out {option}{or_matmul}"
                )))
            }
            (TargetArg::Gqa, Some(NewTokensArg::Exact)) => Err(self.exact_in_the_operator()),
            (TargetArg::Gqa, Some(NewTokensArg::Latent)) => Ok(&GroupedQuery),
            (TargetArg::Gqa, _) => Ok(&GROUPED_PROMPT),
            (TargetArg::Matmul, _) if transmla => Ok(&Decoupled),
            (TargetArg::Matmul, _) if self.form == FormArg::Expanded => Ok(&Expanded),
            (TargetArg::Matmul, _) if self.form == FormArg::Joint => Ok(&Joint),
            (TargetArg::Matmul, Some(NewTokensArg::Exact)) => Ok(&LatentPast),
            (TargetArg::Matmul, Some(NewTokensArg::Prompt)) => Ok(&AbsorbedPrompt),
            (TargetArg::Matmul | TargetArg::Auto, _) => Ok(&Absorbed),
        }
    }

    /// Refuses forms that cannot be trained. `every_rank`: no rank is below the full one.
    #[cfg(feature = "train")]
    pub fn check_trainable(&self, every_rank: bool) -> Result<(), UsageError> {
        let wrong = |detail: &str| Err(UsageError(format!("--distill {detail}")));
        let few = self.bits().are_few();
        if self.keep_heads && !few {
            return wrong(
                "trains factors, and heads of 16 and 8 bits have none: leave out --keep-heads, or use --cache-bits 6 or 4",
            );
        }
        if Join::from(self.cache_io) == Join::InPlace {
            return wrong(
                "cannot train a model that writes in place: leave out --cache-io inplace",
            );
        }
        let gqa = self.target == Some(TargetArg::Gqa) && !self.keep_heads;
        if gqa && every_rank && !few {
            return wrong(
                "trains factors, and latents of all numbers in 8 bits have none in the operator: use --cache-bits 6 or 4, --cache-ratio, or --target matmul",
            );
        }
        match self.new_tokens {
            Some(NewTokensArg::Exact) => wrong(
                "cannot train a model whose steps read their own tokens exactly: use --new-tokens prompt or latent",
            ),
            _ => Ok(()),
        }
    }

    /// How the new rows of a step are appended to the cache in `form`.
    pub fn join(&self, form: &dyn Form, transmla: bool) -> Result<Join, UsageError> {
        let join = Join::from(self.cache_io);
        match form.hinders_in_place().filter(|_| join == Join::InPlace) {
            Some((why, instead)) => Err(UsageError(format!(
                "--cache-io inplace does not go with {}: {why}; {instead}",
                self.chosen_by(transmla)
            ))),
            None => Ok(join),
        }
    }

    /// Whether every query head gets factors of its own in `form`.
    pub fn per_head(&self, form: &dyn Form, transmla: bool) -> Result<bool, UsageError> {
        match form.hinders_per_head().filter(|_| self.per_head) {
            Some((why, instead)) => Err(UsageError(format!(
                "--per-head does not go with {}: {why}; {instead}",
                self.chosen_by(transmla)
            ))),
            None => Ok(self.per_head),
        }
    }

    /// The error of `--new-tokens exact` for an attention that stays an operator.
    fn exact_in_the_operator(&self) -> UsageError {
        // Exact new tokens go with floating-point caches, and heads are kept in the operator alone.
        let or_matmul = match (self.bits(), self.keep_heads) {
            (CacheBits::Model, false) => " or --target matmul",
            _ => "",
        };
        UsageError(format!(
            "the operator reads past and new tokens alike: use --new-tokens prompt{or_matmul}"
        ))
    }

    /// The option that selects the form.
    fn chosen_by(&self, transmla: bool) -> &'static str {
        if self.keep_heads {
            "--keep-heads"
        } else if self.new_tokens == Some(NewTokensArg::Exact) {
            "--new-tokens exact"
        } else if transmla {
            "--factors transmla"
        } else if self.target == Some(TargetArg::Gqa) {
            "--target gqa"
        } else {
            self.form.option()
        }
    }
}
