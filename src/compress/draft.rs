//! A rewritten model whose factors are blank: a step of it takes the time of a step of the real one.

use std::path::Path;

use crate::compress::blank::blank;
use crate::compress::compressor::analysis;
use crate::compress::convert::{Staged, stage};
use crate::compress::error::CompressError;
use crate::compress::prepared::options;
use crate::compress::request::Request;
use crate::files::load::LoadedModel;
use crate::files::save::DataFile;

/// The data file of a draft, which needs no checksum in its name.
const DATA: &str = "draft.data";

/// Rewrites `model` with blank factors into a staging folder beside the path `out`. No text is read. The files are removed
/// when the result is dropped.
///
/// # Errors
/// A [`CompressError`] with which [`crate::compress::run::compress`] would refuse the request, or that of writing a file.
pub fn draft(model: &LoadedModel, request: &Request, out: &Path) -> Result<Staged, CompressError> {
    let (_, options) = options(model, request)?;
    let analysis = analysis(model, &options)?;
    Ok(stage(
        (model, &analysis),
        (out, &DataFile::Named(DATA.to_owned())),
        &options,
        &mut blank(request.factorization(), request.options.form),
        &mut |_| None,
        &mut |_, _| {},
    )?)
}
