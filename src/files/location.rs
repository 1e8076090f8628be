//! Allowed locations of external data: the model's folder, and the cache of a model hub, whose snapshots are links.

use std::io;
use std::path::{Component, Path, PathBuf};

/// The data file at `location` of a model in `folder`, or the reason why it is not allowed.
///
/// The location must be inside the folder. Links may point to the folder of the model's real file, and to the `blobs`
/// folder of a hub cache, as in ONNX Runtime.
pub fn data_file(model: &Path, folder: &Path, location: &str) -> Result<PathBuf, String> {
    let relative = Path::new(location);
    let drive = location.get(1..2) == Some(":");
    if location.contains('\\') || drive {
        return Err("it has a drive letter or a backslash".to_owned());
    }
    if relative.is_absolute() {
        return Err("it is an absolute path".to_owned());
    }
    for component in relative.components() {
        match component {
            Component::Normal(_) | Component::CurDir => {}
            _ => return Err("it leaves the model's folder".to_owned()),
        }
    }
    let path = folder.join(relative);
    let real = path.canonicalize().map_err(|error| {
        let way_out = match error.kind() {
            io::ErrorKind::NotFound => {
                ": it holds weights of the model; get it too, from where the model is from, and put it there"
            }
            _ => "",
        };
        format!("{}: {error}{way_out}", path.display())
    })?;
    let allowed = allowed_folders(model, folder);
    if !allowed.iter().any(|folder| real.starts_with(folder)) {
        return Err(format!(
            "it is a link to {}, outside the model's folder",
            real.display()
        ));
    }
    Ok(path)
}

fn allowed_folders(model: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut allowed = own_folders(folder);
    if let Some(real) = model.canonicalize().ok().as_deref().and_then(Path::parent) {
        allowed.push(real.to_path_buf());
    }
    allowed
}

/// The folders that belong to `folder`: itself, and the `blobs` of the hub cache that it is a snapshot of.
pub fn own_folders(folder: &Path) -> Vec<PathBuf> {
    let mut allowed: Vec<PathBuf> = folder.canonicalize().into_iter().collect();
    // <cache>/snapshots/<revision>/[folders/]model.onnx links to <cache>/blobs/<hash>.
    let cache = folder.canonicalize().ok().and_then(|f| {
        f.ancestors()
            .find(|a| a.file_name().is_some_and(|n| n == "snapshots"))
            .and_then(Path::parent)
            .map(Path::to_path_buf)
    });
    allowed.extend(cache.map(|c| c.join("blobs")));
    allowed
}
