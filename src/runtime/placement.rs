//! Check that a model ran on its device: the provider of each node, read from ONNX Runtime's profile of a run.
//!
//! Nodes without a kernel in a provider run in the CPU provider, and the session reports success. Shape arithmetic on the
//! CPU is intended; a node that computes with floating-point tensors there is a fallback, and an error.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::TempDir;

/// The provider that runs nodes without a kernel in other providers.
const CPU: &str = "CPUExecutionProvider";
/// The names of floating-point types in a profile.
const FLOATS: [&str; 4] = ["float", "float16", "bfloat16", "double"];
/// Largest number of nodes that an error names.
const NAMED: usize = 3;

/// Number of runs in a profile: a model that reads a prompt and later steps in two branches of an `If` runs both.
const RUNS: usize = 2;

/// The temporary folder of a profile, which is removed after its runs have been checked.
pub struct Profile {
    folder: TempDir,
    /// Number of runs that are still missing.
    missing: usize,
}

impl Profile {
    /// An empty folder for the profile of one session.
    ///
    /// # Errors
    /// I/O errors.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            folder: TempDir::with_prefix("gqa2mla-profile-")?,
            missing: RUNS,
        })
    }

    /// The path prefix of the profile's files.
    pub fn prefix(&self) -> PathBuf {
        self.folder.path().join("nodes")
    }

    /// Counts a run. Returns whether the profile is complete.
    pub fn has_all_after_this(&mut self) -> bool {
        self.missing = self.missing.saturating_sub(1);
        self.missing == 0
    }

    /// Reads the profile at `path`, and removes it.
    ///
    /// # Errors
    /// A text for messages: the nodes that ran on the CPU, or the reason why the profile cannot be read.
    pub fn check(self, path: &Path) -> Result<(), String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("its profile {}: {error}", path.display()))?;
        let fallen = fallen(&text).map_err(|error| format!("its profile: {error}"))?;
        let Some(first) = fallen
            .get(..NAMED.min(fallen.len()))
            .filter(|f| !f.is_empty())
        else {
            return Ok(());
        };
        let more = match fallen.len() - first.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(format!(
            "it has no kernel for {}{more}: ONNX Runtime runs them on the CPU. Write another form (--target, \
             --cache-bits), or validate with --provider cpu",
            first.join(", ")
        ))
    }
}

/// One event of a profile. Events other than runs of nodes lack most fields.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    name: String,
    #[serde(default)]
    args: Args,
}

#[derive(Deserialize, Default)]
struct Args {
    #[serde(default)]
    provider: String,
    #[serde(default)]
    op_name: String,
    #[serde(default)]
    input_type_shape: Vec<Typed>,
    #[serde(default)]
    output_type_shape: Vec<Typed>,
}

/// The shape of a tensor, with the name of its element type as key.
type Typed = std::collections::BTreeMap<String, Vec<i64>>;

/// The nodes of `profile` that computed with floating-point tensors on the CPU, as `name (operator)`.
fn fallen(profile: &str) -> serde_json::Result<Vec<String>> {
    let events: Vec<Event> = serde_json::from_str(profile)?;
    let fell = events.into_iter().filter(|event| {
        let args = &event.args;
        let tensors = args.input_type_shape.iter().chain(&args.output_type_shape);
        args.provider == CPU
            && tensors
                .flatten()
                .any(|(name, shape)| is_number(name, shape))
    });
    let label = |event: Event| {
        let name = event.name.trim_end_matches("_kernel_time");
        format!("{name} ({})", event.args.op_name)
    };
    Ok(fell.map(label).collect())
}

/// Whether a tensor has several floating-point elements. A single one, such as a scale, takes no time on either device.
fn is_number(name: &str, shape: &[i64]) -> bool {
    FLOATS.contains(&name) && shape.iter().product::<i64>() > 1
}

#[cfg(test)]
mod tests {
    use super::fallen;

    fn event(provider: &str, types: &str) -> String {
        format!(
            r#"[{{"cat":"Session","name":"model_loading","args":{{}}}},{{"cat":"Node","name":"scores_kernel_time",
            "args":{{"provider":"{provider}","op_name":"MatMul","input_type_shape":[{types}]}}}}]"#
        )
    }

    #[test]
    fn a_product_on_the_cpu_is_a_fallback() {
        let profile = event("CPUExecutionProvider", r#"{"float16":[1,4,8]}"#);
        assert_eq!(fallen(&profile).unwrap(), ["scores (MatMul)"]);
    }

    #[test]
    fn shapes_and_single_numbers_may_be_computed_on_the_cpu() {
        for types in [r#"{"int64":[4]}"#, r#"{"float":[]},{"float":[1]}"#] {
            let profile = event("CPUExecutionProvider", types);
            assert!(fallen(&profile).unwrap().is_empty(), "{types}");
        }
    }

    #[test]
    fn a_product_on_the_device_is_none() {
        let profile = event("CUDAExecutionProvider", r#"{"float":[1,4,8]}"#);
        assert!(fallen(&profile).unwrap().is_empty());
    }
}
