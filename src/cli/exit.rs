//! Exit codes, and the library's errors with command-line options in their text.

use std::process::ExitCode;

use gqa2mla_passes::RewriteError;
use gqa2mla_passes::forms::FormError;

use crate::bench::BenchError;
use crate::compress::convert::ConvertError;
use crate::compress::error::{CompressError, FreeWidthsError, NoScales};
use crate::files::outputs::OutputError;
use crate::fit::context::LongContext;
use crate::fit::reach::TokenLimit;
use crate::runtime::RuntimeError;
use crate::serving::folder::FolderError;
use crate::validate::ValidateError;

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command succeeded.
    Done = 0,
    /// The command failed.
    Failed = 1,
    /// The options are wrong.
    Usage = 2,
    /// There is nothing to rewrite, or only part of the attentions is recognised.
    Nothing = 3,
    /// Validation failed.
    Rejected = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A contradiction between options that clap does not detect.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The error of a command that needs a text and has none.
pub fn no_text() -> anyhow::Error {
    let words = "no text: give --text FILE with --tokenizer FILE, or --token-ids FILE";
    UsageError(words.to_owned()).into()
}

/// Prefix of the error if the models cannot be run.
const CANNOT_RUN: &str = "the rewrite was not written because the models could not be run (--no-validate writes it unproved)";

/// Converts `error` to a text that names the command-line options.
pub fn in_options(error: CompressError) -> anyhow::Error {
    let words = match error {
        CompressError::NoText => return no_text(),
        CompressError::FewTokens(few) => {
            let option = match few.limit {
                TokenLimit::Request(needed) => format!(" (--calibration-tokens {needed})"),
                TokenLimit::Statistics | TokenLimit::Text(_) => String::new(),
            };
            return anyhow::anyhow!("{few}{option}, or accept few with --force");
        }
        CompressError::NoWay(_) => error.to_string(),
        CompressError::ShortText | CompressError::ShortPromise { .. } => error.to_string(),
        CompressError::NoScales(NoScales::NoText) => "--cache-bits 8, 6 and 4 take their scales from a text: give --text FILE, --token-ids FILE or --calibration STATS"
            .to_owned(),
        CompressError::NoScales(NoScales::Unread(factors)) => format!(
            "--cache-bits 8, 6 and 4 take their scales from a text, and --factors {factors} does not read it: leave out --factors"
        ),
        CompressError::FreeWidths(cause) => match cause {
            FreeWidthsError::NoBudget => {
                "--layout free divides a budget: give it with --cache-ratio or --rank"
            }
            FreeWidthsError::OneWidth => {
                "--layout free gives keys and values widths of their own, and GroupQueryAttention has one: leave out --layout free"
            }
            FreeWidthsError::Promise => {
                "--layout free divides a budget, which a promise does not give: leave out --layout free, or give --cache-ratio or --rank in place of --max-perplexity-increase and --max-kl"
            }
            FreeWidthsError::Heads => {
                "--layout free divides ranks, and --keep-heads has none: leave out --layout free"
            }
            FreeWidthsError::OwnLayout => {
                "--layout free has no meaning for --factors transmla, whose layout is its own: leave out --layout free"
            }
        }
        .to_owned(),
        CompressError::Measure(cause @ ValidateError::Token { .. }) => cause.to_string(),
        CompressError::Measure(cause) | CompressError::CannotRun(cause)
            if is_of_options(&cause) =>
        {
            cause.to_string()
        }
        CompressError::CannotRun(cause) => return anyhow::Error::from(cause).context(CANNOT_RUN),
        CompressError::Convert(error) => return CompressError::from(by_option(error)).into(),
        other => return other.into(),
    };
    UsageError(words).into()
}

/// The same error, with the option that selects the form in place of names of forms that only the library uses.
pub fn by_option(mut error: ConvertError) -> ConvertError {
    if let ConvertError::Rewrite { cause, .. } = &mut error
        && let RewriteError::Form { form, .. } = cause.as_mut()
    {
        let option = match form.as_str() {
            "grouped" | "grouped-prompt" => "--target gqa",
            "kept" | "kept-prompt" | "rebased" | "rebased-prompt" => "--keep-heads",
            "latent-past" => "--new-tokens exact",
            "absorbed-prompt" => "--new-tokens prompt",
            "decoupled" => "--factors transmla",
            _ => return error,
        };
        *form = format!("of {option}");
    }
    error
}

/// Whether the error is that an option names a missing library, device or model input.
fn is_of_options(error: &ValidateError) -> bool {
    match error {
        ValidateError::Open { cause, .. } | ValidateError::Model { cause, .. } => {
            is_of_options(cause)
        }
        ValidateError::Input { .. } => true,
        ValidateError::Runtime(cause) => matches!(
            cause,
            RuntimeError::BadLibrary { .. } | RuntimeError::Provider { .. }
        ),
        _ => false,
    }
}

/// The exit code for `error`.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    let wrong_token = |e: &ValidateError| matches!(e, ValidateError::Token { .. });
    let wrong_length =
        |e: &BenchError| !matches!(e, BenchError::Open { .. } | BenchError::Run { .. });
    let folder = error.downcast_ref::<FolderError>();
    if error.is::<UsageError>()
        || error.is::<OutputError>()
        || error.is::<LongContext>()
        || matches!(
            error.downcast_ref(),
            Some(CompressError::LongContext { .. })
        )
        || matches!(folder, Some(FolderError::Output(_)))
        || error
            .downcast_ref::<ValidateError>()
            .is_some_and(wrong_token)
        || error.downcast_ref::<BenchError>().is_some_and(wrong_length)
    {
        return Exit::Usage;
    }
    let convert = match error.downcast_ref::<CompressError>() {
        Some(CompressError::Convert(convert)) => Some(convert),
        _ => error.downcast_ref::<ConvertError>(),
    };
    match convert {
        Some(ConvertError::Output(_)) => Exit::Usage,
        Some(ConvertError::Rewritten(_)) => Exit::Nothing,
        Some(ConvertError::Rewrite { cause, .. }) => match **cause {
            RewriteError::Nothing(_) | RewriteError::Partial { .. } => Exit::Nothing,
            RewriteError::Rank { .. }
            | RewriteError::Ratio(_)
            | RewriteError::Form {
                cause: FormError::Refused(_),
                ..
            } => Exit::Usage,
            _ => Exit::Failed,
        },
        _ => Exit::Failed,
    }
}
