//! The option of a distillation, and what a build without training says to it.

use clap::Args;
#[cfg(feature = "train")]
use gqa2mla_passes::{RankPlan, factor::CacheBits};

use crate::cli::exit::UsageError;
use crate::cli::factors::FactorArgs;
use crate::cli::rewrite::form::FormArgs;
use crate::cli::rewrite::size::Size;

/// The option of a distillation.
#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct DistillArgs {
    /// Steps of distillation from MODEL after the rewrite; 0: none.
    ///
    /// The factors of all layers are trained together on the text, to match the next-token distribution of MODEL.
    /// `gqa2mla tune` has more options.
    #[arg(long = "distill", default_value_t = 0, value_name = "STEPS")]
    pub steps: usize,
}

#[cfg(feature = "train")]
impl DistillArgs {
    /// Refuses a distillation that the other options exclude, before anything is computed.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn check(
        &self,
        size: &Size,
        form: &FormArgs,
        factors: &FactorArgs,
    ) -> Result<(), UsageError> {
        let wrong = |detail: &str| Err(UsageError(format!("--distill {detail}")));
        if self.steps == 0 {
            return Ok(());
        }
        if !factors.text.is_given() {
            return wrong("trains on a text: give --text FILE or --token-ids FILE");
        }
        let every_rank = size.plan() == RankPlan::Full && size.promise().is_none();
        if every_rank && form.bits() == CacheBits::Model {
            return wrong(
                "recovers a loss, and this rewrite is exact: give --cache-ratio, --rank, --cache-bits or a limit of the loss",
            );
        }
        form.check_trainable(every_rank)
    }
}

/// Not available: this program was built without the feature `train`.
#[cfg(not(feature = "train"))]
#[derive(Debug, Args)]
pub struct DistillArgs {
    /// Not available: this program was built without the feature `train`.
    #[arg(long = "distill", hide = true)]
    steps: Option<String>,
}

#[cfg(not(feature = "train"))]
impl DistillArgs {
    /// Says how to get a program with training, if a distillation is requested.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn check(&self, _: &Size, _: &FormArgs, _: &FactorArgs) -> Result<(), UsageError> {
        match self.steps {
            Some(_) => Err(UsageError(format!(
                "--distill: {}",
                crate::cli::untrained::UNTRAINED
            ))),
            None => Ok(()),
        }
    }
}
