//! A dry run: what the rewrite of a folder would do, without computing factors, running a model or writing a file.

use std::path::PathBuf;

use crate::compress::foreseen::{Foreseen, foresee};
use crate::compress::request::Request;
use crate::files::copy::same_bytes;
use crate::files::foreseen::check_folder;
use crate::files::load::LoadedModel;
use crate::files::save::DataFile;
use crate::serving::bundle::LeftOut;
use crate::serving::edits::place;
use crate::serving::folder::{Checked, FolderError, FolderRequest};
use crate::serving::stack::Stack;

/// The expected result of the rewrite of a folder.
#[derive(Debug, Clone)]
pub struct ForeseenFolder {
    /// The expected result for each model.
    pub models: Vec<ForeseenModel>,
    /// The stacks whose configurations would be edited if their values change.
    pub stacks: Vec<Stack>,
    /// Number of other files that would be copied, without configurations.
    pub copied: usize,
    /// Those of them whose place another file has, relative to the output.
    pub replaced: Vec<PathBuf>,
    /// Files that would be neither rewritten nor copied.
    pub left_out: Vec<LeftOut>,
}

/// The expected result for one model of a folder. Paths are relative to the folder.
#[derive(Debug, Clone)]
pub struct ForeseenModel {
    /// The model in the original folder.
    pub file: PathBuf,
    /// The files that would be written for it.
    pub written: Vec<PathBuf>,
    /// The expected result of the compression.
    pub foreseen: Foreseen,
}

/// The models of a folder that `request` would rewrite, and the options of their compression, adapted to its stacks.
///
/// # Errors
/// The [`FolderError`] with which [`crate::serving::folder::rewrite_folder`] would refuse the request.
pub fn foresee_request<'f>(
    request: &FolderRequest<'f>,
) -> Result<(Vec<LoadedModel>, Request<'f>), FolderError> {
    let mut checked = Checked::of(request)?;
    let models = checked.bundle.take()?;
    checked.check_served(&models)?;
    let models = models.into_iter().map(|(_, model)| model);
    Ok((models.collect(), checked.compression))
}

/// Checks `request` like a rewrite of the folder, and returns what it would do.
///
/// # Errors
/// The [`FolderError`] with which [`crate::serving::folder::rewrite_folder`] would refuse the request.
pub fn foresee_folder(request: &FolderRequest) -> Result<ForeseenFolder, FolderError> {
    let mut checked = Checked::of(request)?;
    check_folder(request.out)?;
    let originals = checked.bundle.take()?;
    checked.check_served(&originals)?;
    let mut models = Vec::new();
    for (file, model) in originals {
        let path = place(&checked.stacks, &checked.texts, &file);
        let data = match checked.data_file(&file, &model)? {
            // For several data files, only the first is listed, because their number depends on the weights.
            DataFile::Named(name) | DataFile::Chunks { name, .. } => {
                Some(path.with_file_name(name))
            }
            DataFile::Beside => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Some(path.with_file_name(format!("{name}.<checksum>.data")))
            }
            DataFile::Inline => None,
        };
        let foreseen = foresee(&model, &checked.compression)?;
        models.push(ForeseenModel {
            written: [path]
                .into_iter()
                .chain(data.filter(|_| foreseen.has_data))
                .collect(),
            foreseen,
            file,
        });
    }
    let edited = |file: &PathBuf| checked.texts.contains_key(file.to_string_lossy().as_ref());
    let others = checked.bundle.others.iter();
    let copied: Vec<&PathBuf> = others.filter(|file| !edited(file)).collect();
    let is_other = |file: &&&PathBuf| {
        let there = request.out.join(file);
        let own = checked.bundle.root.join(file);
        there.exists() && !same_bytes(&own, &there).unwrap_or(false)
    };
    Ok(ForeseenFolder {
        models,
        copied: copied.len(),
        replaced: copied
            .iter()
            .filter(is_other)
            .map(|file| (*file).clone())
            .collect(),
        stacks: checked.stacks,
        left_out: checked.bundle.left_out,
    })
}
