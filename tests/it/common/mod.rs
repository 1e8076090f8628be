//! What the tests share: fixtures, rewriting one into a folder, comparing two models, and running the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gqa2mla::files::load::{LoadedModel, load};
use gqa2mla::files::save::save;
use gqa2mla::runtime::{RuntimeKind, RuntimeOptions, Session, open};
use gqa2mla::validate::compare::Comparison;
use gqa2mla::validate::ports::LanguageModel;
use gqa2mla::validate::{ValidateOptions, validate};
use gqa2mla_passes::forms::{Form, GroupedQuery};
use gqa2mla_passes::onnx::{GraphProto, NodeProto};
use gqa2mla_passes::pipeline::factorize::Factorize;
use gqa2mla_passes::{
    RankPlan, RewriteError, RewriteOptions, Rewritten, by_weights, inspect, rewrite,
};
use tempfile::TempDir;

/// Largest logit difference of an exact rewrite in fp32, relative to the largest logit. The sums have up to 64 terms and
/// are added in another order; that gives 1e-6 in two layers, and anything that is wrong gives 1e-3 or more.
pub const SINGLE: f64 = 2e-5;
/// The same in half precision, whose rounding is 5e-4 in fp16 and 4e-3 in bf16, in each of some ten products in a row.
pub const HALF: f64 = 2e-2;
/// What a wrong rewrite has to move the logits by to be sure to be seen.
pub const SEEN: f64 = 100.0 * SINGLE;
/// The one fixture in bf16, for which ONNX Runtime's CPU has no kernels.
pub const IN_BF16: &str = "dynamo18-llama-bf16";

/// The form that keeps GroupQueryAttention.
pub fn grouped() -> &'static dyn Form {
    &GroupedQuery
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    root().join("fixtures").join(name)
}

/// A fixture, loaded.
pub fn loaded(name: &str) -> LoadedModel {
    load(&fixture(name)).unwrap()
}

/// The model at `path`.
pub fn model_at(path: &Path) -> LoadedModel {
    load(path).unwrap()
}

/// Names of all fixtures, near misses aside.
pub fn fixtures() -> Vec<String> {
    let folders = fs::read_dir(root().join("fixtures")).unwrap();
    let mut names: Vec<String> = folders
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("model.onnx").is_file())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 30, "the fixtures are not there: {names:?}");
    names
}

/// The fixtures of which every attention is recognised.
pub fn recognised_fixtures() -> Vec<String> {
    let whole = |name: &String| {
        let found = inspect(&loaded(name).model).unwrap();
        !found.sites.is_empty() && found.rejects.is_empty()
    };
    fixtures().into_iter().filter(whole).collect()
}

/// Rewrites in memory; new tensors stay inline.
pub fn rewritten(
    model: &mut LoadedModel,
    options: RewriteOptions,
) -> Result<Rewritten, RewriteError> {
    rewritten_with(model, options, &mut by_weights)
}

/// The same, with factors of the caller's.
pub fn rewritten_with(
    model: &mut LoadedModel,
    options: RewriteOptions,
    factorize: &mut Factorize,
) -> Result<Rewritten, RewriteError> {
    rewrite(
        &mut model.model,
        &options,
        factorize,
        &mut |tensor| Ok(tensor),
        &mut |_, _| {},
    )
}

/// A fixture before and after.
pub fn pair(name: &str, options: RewriteOptions) -> (LoadedModel, LoadedModel) {
    let before = loaded(name);
    let mut after = loaded(name);
    rewritten(&mut after, options).unwrap_or_else(|error| panic!("{name}: {error}"));
    (before, after)
}

/// The model rewritten to `form`; new tensors stay inline.
pub fn rewritten_to(model: &LoadedModel, form: &'static dyn Form, ranks: RankPlan) -> LoadedModel {
    let mut after = model.clone();
    let options = RewriteOptions {
        form,
        ranks,
        ..RewriteOptions::default()
    };
    rewritten(&mut after, options).unwrap_or_else(|e| panic!("{}: {e}", form.name()));
    after
}

/// Every node of `graph` and of the graphs inside it, in order.
pub fn all_nodes(graph: &GraphProto) -> Vec<&NodeProto> {
    let mut nodes = Vec::new();
    for node in &graph.node {
        nodes.push(node);
        for body in gqa2mla_passes::graph::subgraphs(node) {
            nodes.extend(all_nodes(body));
        }
    }
    nodes
}

/// How a comparison is made.
#[derive(Debug, Clone, Copy)]
pub struct How {
    pub runtime: RuntimeKind,
    pub tolerance: f64,
}

/// In ONNX Runtime, within a tolerance.
pub fn in_ort(tolerance: f64) -> How {
    How {
        runtime: RuntimeKind::Ort,
        tolerance,
    }
}

/// Changes the fixture, rewrites it to `form`, and asserts that nothing is lost in ONNX Runtime. Gives the changed original
/// and what was done.
pub fn exact_after(
    fixture: &str,
    what: &str,
    change: fn(&mut GraphProto),
    form: &dyn Form,
) -> (LoadedModel, Rewritten) {
    let mut before = loaded(fixture);
    change(before.model.proto.graph.as_mut().unwrap());
    let mut after = before.clone();
    let options = RewriteOptions {
        form,
        ..RewriteOptions::default()
    };
    let done = rewritten(&mut after, options);
    let done = done.unwrap_or_else(|error| panic!("{fixture}, {what}: {error}"));
    let comparison = compared(&before, &after, in_ort(SINGLE))
        .unwrap_or_else(|error| panic!("{fixture}, {what}: {error}"));
    assert!(
        comparison.passed(),
        "{fixture}, {what}: {:e}",
        comparison.max_ratio()
    );
    (before, done)
}

/// Exchanges the blocks of KV heads 0 and 1 of the up-projection of the first layer's keys.
pub fn exchange_two_heads(model: &mut LoadedModel) {
    let graph = model.model.proto.graph.as_mut().unwrap();
    let up = graph
        .initializer
        .iter_mut()
        .find(|t| t.name().contains("mla/w_uk"))
        .unwrap();
    let mut bytes = up.raw_data.as_ref().unwrap().to_vec();
    let block = bytes.len() / usize::try_from(up.dims[0]).unwrap();
    let (first, rest) = bytes.split_at_mut(block);
    first.swap_with_slice(&mut rest[..block]);
    up.raw_data = Some(bytes.into());
}

/// Opens a model with the runtime's own optimizations off.
pub fn session(path: &Path, runtime: RuntimeKind) -> Result<Box<dyn Session>, String> {
    let options = RuntimeOptions {
        runtime,
        threads: 1,
        ..RuntimeOptions::default()
    };
    open(path, &options).map_err(|error| match error {
        gqa2mla::runtime::RuntimeError::NotFound { .. } => panic!("run `make test`: {error}"),
        other => other.to_string(),
    })
}

/// [`compared`] in ONNX Runtime, where the rewritten model has to pass.
pub fn proved(
    name: &str,
    (before, after): (&LoadedModel, &LoadedModel),
    tolerance: f64,
) -> Comparison {
    let found =
        compared(before, after, in_ort(tolerance)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let ratio = found.max_ratio();
    assert!(found.passed(), "{name}: {ratio:e}: {found:#?}");
    found
}

/// Runs both models, each as it lies in memory, through every scenario of validation.
pub fn compared(before: &LoadedModel, after: &LoadedModel, how: How) -> Result<Comparison, String> {
    let folder = tempfile::tempdir().unwrap();
    let paths = (
        folder.path().join("before.onnx"),
        folder.path().join("after.onnx"),
    );
    save(before, &paths.0).unwrap();
    save(after, &paths.1).unwrap();
    let subjects = (
        LanguageModel::of(&before.model.proto).unwrap(),
        LanguageModel::of(&after.model.proto).unwrap(),
    );
    let mut original = session(&paths.0, how.runtime).map_err(|e| format!("the original: {e}"))?;
    let mut changed = session(&paths.1, how.runtime).map_err(|e| format!("the rewritten: {e}"))?;
    let options = ValidateOptions {
        vocabulary: subjects.0.vocabulary,
        tokens: None,
        seed: 1,
        right_padded_only: subjects.0.right_padded_only,
        tolerance: Some(how.tolerance),
    };
    let result = validate(
        original.as_mut(),
        changed.as_mut(),
        &subjects.0.interface,
        &subjects.1.interface,
        &options,
        &mut |_, _| {},
    );
    result.map_err(|error| error.to_string())
}

/// What a run of the command gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in the output: {self:?}"))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("the command was killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The command, in the repository; cargo names `.venv` as the environment in which it finds ONNX Runtime.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gqa2mla"));
    command.current_dir(root());
    command
}

/// Runs the command with `arguments`, separated by blanks or one by one where they hold paths.
pub fn run<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Ran {
    command().args(arguments).output().unwrap().into()
}

/// An empty folder that goes away.
pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs the command with arguments that are paths or words.
pub fn with(arguments: &[&dyn AsRef<Path>]) -> Ran {
    run(arguments.iter().map(|a| a.as_ref().to_path_buf()))
}

/// What a script of the test environment prints; it has onnx, onnxruntime and numpy.
pub fn python(script: &str, arguments: &[&Path]) -> String {
    let program = root().join(".venv/bin/python");
    assert!(
        program.exists(),
        "{} is missing: run `make test`",
        program.display()
    );
    let output = Command::new(program)
        .arg("-c")
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    let ran = Ran::from(output);
    assert_eq!(
        ran.code, 0,
        "the script failed: {}\n{}",
        ran.stdout, ran.stderr
    );
    ran.stdout
}

/// Held by a test that writes copies of a trained model: each fills two cores and more than a gigabyte of disk.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder of `variant`, put together if it is not there yet.
pub fn real_model(variant: &str) -> PathBuf {
    let folder = std::env::var_os("GQA2MLA_MODELS")
        .map_or_else(|| root().join("target/real-models"), PathBuf::from);
    let target = folder.join(variant);
    if target.join("model.onnx").is_file() {
        return target;
    }
    let script = shared("models/assemble.py");
    let program = root().join(".venv/bin/python");
    assert!(
        program.exists(),
        "{} is missing: run `make test`",
        program.display()
    );
    fs::create_dir_all(&folder).unwrap();
    // Complete or not at all: a run that is stopped leaves no half of a model under its name.
    let staged = tempfile::tempdir_in(&folder).unwrap();
    let status = Command::new(program)
        .arg(script)
        .arg(variant)
        .arg(staged.path())
        .status()
        .unwrap();
    assert!(status.success(), "{variant} could not be put together");
    fs::rename(staged.keep(), &target).unwrap();
    target
}

/// A file or folder of the models and exports that lie beside the repository, or where `GQA2MLA_SHARED` says.
pub fn shared(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("GQA2MLA_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: `make test MODELS=none` runs the tests that do without",
        path.display()
    );
    path
}

/// Token ids of which the fixtures are calibrated.
pub const IDS: [&str; 2] = ["--token-ids", "fixtures/tokens.json"];

/// `rewrite` of the fixture `model` to `out`.
pub fn rewrite_fixture(model: &str, out: &Path, options: &[&str]) -> Ran {
    let model = fixture(model);
    let mut all: Vec<&dyn AsRef<Path>> = vec![&"rewrite", &model, &"-o", &out];
    all.extend(options.iter().map(|o| o as &dyn AsRef<Path>));
    with(&all)
}
