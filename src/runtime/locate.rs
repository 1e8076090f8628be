//! Search for the ONNX Runtime library.
//!
//! It is usually installed as a Python package, whose `capi` folder contains the shared library beside the extension
//! module. A path that the user names is never skipped: if it does not contain ONNX Runtime, that is an error.
//!
//! For security, the search uses only absolute paths from the user's environment, never the working directory, which is
//! often the folder of an untrusted model.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::runtime::error::RuntimeError;
use crate::runtime::host::{Interpreter, interpreter};

/// The path of a shared library that should be ONNX Runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The file, or a bare file name for the system's loader.
    pub path: PathBuf,
    /// The origin of the path, for messages.
    pub origin: String,
    /// Whether the search found nothing, so that the system's loader has to find the library.
    pub by_loader: bool,
    /// The searched places, in order, for the message if the loader fails too.
    pub looked_in: String,
}

/// The environment of the process as far as the search uses it.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `ORT_DYLIB_PATH`.
    pub dylib_path: Option<OsString>,
    /// `VIRTUAL_ENV`.
    pub virtual_env: Option<OsString>,
    /// `PATH`.
    pub path: Option<OsString>,
    /// `LD_LIBRARY_PATH`, which the system's loader searches first.
    pub libraries: Option<OsString>,
    /// The path of this program; none if it is a Python interpreter.
    pub program: Option<PathBuf>,
    /// The Python interpreter that has loaded this library.
    pub interpreter: Option<Interpreter>,
}

impl Surroundings {
    /// The environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            dylib_path: set("ORT_DYLIB_PATH"),
            virtual_env: set("VIRTUAL_ENV"),
            path: set("PATH"),
            libraries: set("LD_LIBRARY_PATH"),
            program: match interpreter() {
                Some(_) => None,
                None => std::env::current_exe().ok(),
            },
            interpreter: interpreter().cloned(),
        }
    }
}

/// Finds the library. The order is: the explicit path (a file or a folder), `ORT_DYLIB_PATH`, the packages of the Python
/// interpreter that has loaded this library, the active virtual environment (`VIRTUAL_ENV`, absolute), the installation that
/// contains this program, the first Python in an absolute folder on `PATH`, and the system's loader.
///
/// # Errors
/// [`RuntimeError::BadLibrary`] if the explicit path or the variable names nothing usable; [`RuntimeError::NotFound`]
/// if nothing is found and the system's loader would search the working directory.
pub fn locate(explicit: Option<&Path>, around: &Surroundings) -> Result<Located, RuntimeError> {
    if let Some(path) = explicit {
        return named(path, "--onnxruntime");
    }
    if let Some(path) = &around.dylib_path {
        return named(Path::new(path), "ORT_DYLIB_PATH");
    }
    let mut looked_in = Vec::new();
    if let Some(python) = &around.interpreter {
        let packages = format!("the packages of {}", python.shown());
        let package = python.package("onnxruntime");
        if let Some(path) = package.and_then(|package| in_folder(&package.join("capi"))) {
            return Ok(found(path, packages));
        }
        looked_in.push(packages);
    }
    let active = around.virtual_env.as_ref().map(PathBuf::from);
    if let Some(environment) = active.filter(|path| path.is_absolute()) {
        if let Some(path) = in_prefix(&environment) {
            return Ok(found(path, "VIRTUAL_ENV".to_owned()));
        }
        looked_in.push(environment.display().to_string());
    }
    if let Some(folder) = around.program.as_deref().and_then(Path::parent) {
        // If installed as a Python package, the program is in the `bin` folder of an environment.
        let environment = folder.parent();
        if let Some(path) = in_folder(folder).or_else(|| environment.and_then(in_prefix)) {
            return Ok(found(path, "the installation of gqa2mla".to_owned()));
        }
        looked_in.push(environment.unwrap_or(folder).display().to_string());
    }
    if let Some(python) = first_python(around) {
        if let Some(path) = of_python(&python) {
            return Ok(found(
                path,
                format!("the Python package of {}", python.display()),
            ));
        }
        looked_in.push(format!("the packages of {}", python.display()));
    }
    if searches_the_working_folder(around) {
        looked_in.push(
            "not the system's libraries, as LD_LIBRARY_PATH has an entry that is not absolute"
                .to_owned(),
        );
        return Err(RuntimeError::NotFound {
            looked_in: looked_in.join(", "),
        });
    }
    looked_in.push("the system's libraries".to_owned());
    let name = format!(
        "{}onnxruntime{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    Ok(Located {
        path: PathBuf::from(name),
        origin: "the system's loader".to_owned(),
        by_loader: true,
        looked_in: looked_in.join(", "),
    })
}

/// Whether the system's loader would search the working directory, which an empty or relative entry means.
fn searches_the_working_folder(around: &Surroundings) -> bool {
    let entries = around.libraries.iter().flat_map(std::env::split_paths);
    entries.into_iter().any(|entry| !entry.is_absolute())
}

fn found(path: PathBuf, origin: String) -> Located {
    // Canonical, so that the same file is recognised when it is loaded again.
    let path = fs::canonicalize(&path).unwrap_or(path);
    Located {
        path,
        origin,
        by_loader: false,
        looked_in: String::new(),
    }
}

fn named(path: &Path, origin: &str) -> Result<Located, RuntimeError> {
    let bad = |reason: &str| RuntimeError::BadLibrary {
        path: path.to_path_buf(),
        origin: origin.to_owned(),
        reason: reason.to_owned(),
    };
    let file = if path.is_dir() {
        let below = ["", "lib", "capi", "onnxruntime/capi"]
            .iter()
            .find_map(|place| in_folder(&path.join(place)));
        below
            .or_else(|| in_prefix(path))
            .ok_or_else(|| bad("the folder holds no ONNX Runtime library"))?
    } else if path.is_file() {
        path.to_path_buf()
    } else {
        return Err(bad("there is no such file or folder"));
    };
    // The loader would search for a relative path like for a name.
    let file = fs::canonicalize(&file).map_err(|error| bad(&error.to_string()))?;
    Ok(found(file, origin.to_owned()))
}

/// The newest ONNX Runtime library directly in `folder`.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    let names = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    names
        .filter(|path| path.is_file() && is_library_name(path))
        .max_by_key(|path| version_numbers(path))
}

fn is_library_name(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let dylib = name
        .strip_prefix("libonnxruntime.")
        .is_some_and(|rest| rest.ends_with("dylib"));
    name.starts_with("libonnxruntime.so") || dylib || name == "onnxruntime.dll"
}

fn version_numbers(path: &Path) -> Vec<u32> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// The library in the packages of a Python installation: `prefix/lib/python3.N/{site,dist}-packages`, or `Lib` on
/// Windows; on Debian also under `local`.
fn in_prefix(prefix: &Path) -> Option<PathBuf> {
    let mut packages = vec![prefix.join("Lib").join("site-packages")];
    for lib in ["lib", "lib64", "local/lib"] {
        let versions = fs::read_dir(prefix.join(lib))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()));
        let is_python = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("python3"))
        };
        for version in versions.filter(is_python) {
            packages.push(version.join("site-packages"));
            packages.push(version.join("dist-packages"));
        }
    }
    packages
        .iter()
        .find_map(|packages| in_folder(&packages.join("onnxruntime").join("capi")))
}

fn first_python(around: &Surroundings) -> Option<PathBuf> {
    let path = around.path.as_ref()?;
    let names = ["python3", "python", "python3.exe", "python.exe"];
    // Relative entries refer to the working directory.
    let mut folders = std::env::split_paths(path).filter(|folder| folder.is_absolute());
    folders.find_map(|folder| {
        names
            .iter()
            .map(|name| folder.join(name))
            .find(|file| file.is_file())
    })
}

fn of_python(python: &Path) -> Option<PathBuf> {
    // `bin/python3` of an environment is a link to another prefix, so the folder of the link is used, not its target.
    let by_layout = if is_script(python) {
        None
    } else {
        python.parent().and_then(Path::parent).and_then(in_prefix)
    };
    by_layout.or_else(|| in_folder(&ask_python(python)?.join("capi")))
}

/// Whether the interpreter is a script such as pyenv's shim, whose path is not that of the Python it starts.
fn is_script(python: &Path) -> bool {
    let mut head = [0_u8; 2];
    fs::File::open(python)
        .and_then(|mut file| file.read_exact(&mut head))
        .is_ok()
        && &head == b"#!"
}

/// Runs the interpreter to find the package, without importing it. It is started in the root directory, because Python
/// searches its working directory for packages.
fn ask_python(python: &Path) -> Option<PathBuf> {
    const QUESTION: &str = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                            print(s.submodule_search_locations[0] if s else '')";
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut child = Command::new(python)
        .args(["-c", QUESTION])
        .current_dir(std::path::MAIN_SEPARATOR_STR)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let started = Instant::now();
    // A single path fits into the pipe's buffer, so the child does not block.
    while child.try_wait().ok()?.is_none() {
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut answer = String::new();
    child.stdout.take()?.read_to_string(&mut answer).ok()?;
    let answer = answer.trim();
    let answer = PathBuf::from(answer);
    answer.is_absolute().then_some(answer)
}
