//! Folders in, folders out: what goes along, what is refused, and what is left when something goes wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ran, command, fixture, folder, root, run};
use serde_json::json;

fn rewrite(from: &Path, to: &Path, more: &[&str]) -> Ran {
    let mut arguments = vec![
        PathBuf::from("rewrite"),
        from.into(),
        "-o".into(),
        to.into(),
    ];
    arguments.extend(more.iter().map(PathBuf::from));
    run(arguments)
}

/// Every file under `folder` with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let relative = path.strip_prefix(folder).unwrap().to_path_buf();
                    found.insert(relative, fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

fn names(files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<String> {
    files
        .keys()
        .map(|name| name.display().to_string())
        .collect()
}

/// A folder as a hub lays it out: two decoders, another model, and what people put beside them.
fn hub(place: &Path) -> PathBuf {
    let hub = place.join("hub");
    fs::create_dir_all(hub.join("onnx")).unwrap();
    let model = |name: &str| fixture(name).join("model.onnx");
    fs::copy(model("optimum-llama"), hub.join("onnx/model.onnx")).unwrap();
    fs::copy(model("optimum14-llama"), hub.join("onnx/model_other.onnx")).unwrap();
    fs::copy(
        fixture("optimum-llama").join("config.json"),
        hub.join("config.json"),
    )
    .unwrap();
    for (name, text) in [
        ("README.md", "# A model"),
        ("tokenizer.json", "{ \"not\": \"touched\" }"),
        ("generation_config.json", "{\"eos_token_id\": 2}"),
        (".gitattributes", "*.onnx filter=lfs"),
        ("notes/more/deep.txt", "kept"),
    ] {
        let path = hub.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::create_dir_all(hub.join(".git")).unwrap();
    fs::write(hub.join(".git/HEAD"), "ref").unwrap();
    hub
}

#[test]
fn what_the_rewrite_does_not_concern_is_copied_as_it_is() {
    let place = folder();
    let (hub, out) = (hub(place.path()), place.path().join("out"));
    let ran = rewrite(&hub, &out, &["--json", "--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let (before, after) = (contents(&hub), contents(&out));
    let mut expected = names(&before);
    expected.retain(|name| !name.starts_with(".git/"));
    assert_eq!(names(&after), expected);
    let changed = after
        .iter()
        .filter(|(name, data)| before.get(*name) != Some(*data));
    let changed: Vec<_> = changed
        .map(|(name, _)| name.display().to_string())
        .collect();
    assert_eq!(
        changed,
        ["config.json", "onnx/model.onnx", "onnx/model_other.onnx"]
    );
    let told = ran.json();
    assert_eq!(told["models"].as_array().unwrap().len(), 2);
    assert_eq!(told["folder"]["copied"], json!(5));
    // A second time, into the folder that is there now.
    let again = rewrite(&hub, &out, &["--no-validate"]);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(contents(&out), after);
}

#[test]
fn one_model_of_several_can_be_asked_for() {
    let place = folder();
    let (hub, out) = (hub(place.path()), place.path().join("out"));
    let ran = rewrite(
        &hub,
        &out,
        &["--json", "--no-validate", "--file", "onnx/model.onnx"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.json()["folder"]["left_out"],
        json!(["onnx/model_other.onnx"])
    );
    assert!(
        !out.join("onnx/model_other.onnx").exists(),
        "its cache is not what the configuration says"
    );
    let ran = rewrite(&hub, &place.path().join("no"), &["--file", "model.onnx"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .contains("onnx/model.onnx, onnx/model_other.onnx"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_configuration_keeps_what_it_has_beyond_the_edited_keys() {
    let place = folder();
    let (from, out) = (place.path().join("from"), place.path().join("out"));
    fs::create_dir_all(&from).unwrap();
    fs::copy(
        fixture("optimum-llama").join("model.onnx"),
        from.join("model.onnx"),
    )
    .unwrap();
    let text = "{\n  // as exported\n  \"zebra\": [1, 2.50, 1e-05],\n\t\"model_type\": \"llama\", \"hidden_size\": 64,\n  \"unknown\": {\"num_key_value_heads\": 2},\n  \"num_attention_heads\": 8,\n  \"num_key_value_heads\": 2, /* two */\n  \"name\": \"caf\\u00e9\"\n}\n";
    fs::write(from.join("config.json"), text).unwrap();
    let ran = rewrite(&from, &out, &["--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let expected = text
        .replace("\"hidden_size\": 64", "\"hidden_size\": 256")
        .replace(
            "\"num_key_value_heads\": 2, /* two */",
            "\"num_key_value_heads\": 1, /* two */",
        );
    assert_eq!(
        fs::read_to_string(out.join("config.json")).unwrap(),
        expected
    );
    for line in ["num_key_value_heads 2 -> 1", "hidden_size 64 -> 256"] {
        assert!(ran.stdout.contains(line), "{}", ran.stdout);
    }
}

#[test]
fn a_key_that_a_stack_would_fill_in_is_added() {
    let place = folder();
    let (from, out) = (place.path().join("from"), place.path().join("out"));
    fs::create_dir_all(&from).unwrap();
    fs::copy(
        fixture("optimum-llama").join("model.onnx"),
        from.join("model.onnx"),
    )
    .unwrap();
    let text = "{\"model_type\": \"mistral\", \"hidden_size\": 64, \"num_attention_heads\": 8}";
    fs::write(from.join("config.json"), text).unwrap();
    let ran = rewrite(&from, &out, &["--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (&told["num_key_value_heads"], &told["hidden_size"]),
        (&json!(1), &json!(256))
    );
}

#[test]
fn what_cannot_be_served_is_refused_and_nothing_is_written() {
    let place = folder();
    let broken = |name: &str, config: &str, text: &str| {
        let from = place.path().join(name);
        fs::create_dir_all(&from).unwrap();
        fs::copy(
            fixture("optimum-llama").join("model.onnx"),
            from.join("model.onnx"),
        )
        .unwrap();
        fs::write(from.join(config), text).unwrap();
        from
    };
    let out = place.path().join("out");
    let free = [
        "--layout",
        "free",
        "--cache-ratio",
        "0.5",
        "--token-ids",
        "fixtures/tokens.json",
    ];
    let odd = "{\"model_type\": \"falcon\", \"hidden_size\": 64, \"num_attention_heads\": 8}";
    let pipeline = "{\"model\": {\"decoder\": {\"pipeline\": [{}]}}}";
    let cases: [(PathBuf, &[&str], &str); 9] = [
        (
            broken("json", "config.json", "{\"a\": 1,, }"),
            &[],
            "config.json: ",
        ),
        (
            broken("list", "genai_config.json", "[1]"),
            &[],
            "expected a JSON object",
        ),
        (
            broken("pbtxt", "config.pbtxt", "input [\n{ name: \"x }"),
            &[],
            "line 2: a string has no end",
        ),
        (
            broken("empty", "config.json", "{}"),
            &[],
            "hidden_size and num_attention_heads",
        ),
        (broken("falcon", "config.json", odd), &[], "falcon"),
        (
            broken("pipeline", "genai_config.json", pipeline),
            &[],
            "pipeline of models",
        ),
        (fixture("optimum-llama"), &free, "--layout uniform"),
        (
            fixture("optimum-llama"),
            &["--serving", "genai"],
            "genai reads genai_config.json, which is not in the folder",
        ),
        (
            folder_of_text(place.path()),
            &[],
            "no .onnx file in this folder",
        ),
    ];
    for (from, more, words) in cases {
        let ran = rewrite(&from, &out, &[more, &["--no-validate"]].concat());
        assert_eq!(ran.code, 1, "{}: {ran:?}", from.display());
        assert!(
            ran.stderr.contains(words),
            "{}: {}",
            from.display(),
            ran.stderr
        );
        assert!(!out.exists(), "{}", from.display());
    }
    let left: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with('.')),
        "{left:?}"
    );
    // What is refused for one stack is written as it is for none.
    let ran = rewrite(
        &place.path().join("falcon"),
        &out,
        &["--no-validate", "--serving", "none"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let file = rewrite(
        &fixture("optimum-llama").join("model.onnx"),
        &out,
        &["--serving", "genai"],
    );
    assert_eq!(file.code, 2, "{file:?}");
}

fn folder_of_text(place: &Path) -> PathBuf {
    let from = place.join("text");
    fs::create_dir_all(&from).unwrap();
    fs::write(from.join("config.json"), "{}").unwrap();
    from
}

#[test]
fn a_rejected_folder_is_kept_under_another_name() {
    let place = folder();
    let out = place.path().join("out");
    let strict = ["--tolerance", "1e-30", "--rank", "8"];
    for _ in 0..2 {
        let ran = rewrite(&fixture("optimum-llama"), &out, &strict);
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(!out.exists());
        assert!(place.path().join("out.rejected/config.json").is_file());
    }
    let names: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["out.rejected"]);
}

/// A rewrite that takes long, into `out`; it has begun when this returns.
fn begun(place: &Path, out: &Path) -> Child {
    let child = command()
        .args(["rewrite", "fixtures/optimum-llama", "--cache-ratio", "0.5"])
        .args(["--token-ids", "fixtures/tokens.json", "--text-length", "64"])
        .args(["--reconstruct", "1000000", "-o"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The folder for the output is there first, then the one for the work.
    let started = Instant::now();
    while fs::read_dir(place).unwrap().count() < 2 {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "nothing is begun"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn a_rewrite_that_the_user_stops_leaves_only_its_work() {
    // Wherever it is: reading the text, in a library's threads, or descending.
    for (signal, code, wait) in [("-INT", 130, 0), ("-TERM", 143, 50), ("-INT", 130, 400)] {
        let place = folder();
        let mut child = begun(place.path(), &place.path().join("out"));
        std::thread::sleep(Duration::from_millis(wait));
        let stopped = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(stopped.unwrap().success());
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{status:?}");
        let names = fs::read_dir(place.path())
            .unwrap()
            .map(|e| e.unwrap().file_name());
        let names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        let only_work = names.iter().all(|n| n.starts_with(".gqa2mla-work-"));
        assert!(names.len() == 1 && only_work, "{names:?}");
    }
}

#[test]
fn a_killed_rewrite_leaves_nothing_under_the_name_and_the_next_one_is_whole() {
    let place = folder();
    let out = place.path().join("out");
    let mut child = begun(place.path(), &out);
    child.kill().unwrap();
    child.wait().unwrap();
    let names: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        !names.is_empty()
            && names
                .iter()
                .all(|n| n.to_string_lossy().starts_with(".gqa2mla-")),
        "{names:?}"
    );
    let ran = rewrite(&fixture("optimum-llama"), &out, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(out.join("model.onnx").is_file() && out.join("config.json").is_file());
}

/// A file system in memory that goes away.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts one with `options` on `place`; `None` where that is not allowed.
    fn on(place: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(place).unwrap();
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs"];
        let mount = Command::new("mount").args(arguments).arg(place).output();
        if mount.is_ok_and(|m| m.status.success()) {
            return Some(Self(place.to_path_buf()));
        }
        // The test harness hides what a passing test prints; this is to be seen.
        let words = "NOT RUN: mounting a file system is not allowed here\n";
        let _ = std::io::stderr().write_all(words.as_bytes());
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    let place = folder();
    let Some(disk) = Mounted::on(&place.path().join("disk"), "size=64k") else {
        return;
    };
    let model = fixture("optimum-llama");
    assert!(fs::metadata(model.join("model.onnx")).unwrap().len() > 64 << 10);
    for out in [disk.0.clone(), disk.0.join("out"), disk.0.join("out.onnx")] {
        let ran = rewrite(&model, &out, &["--no-validate"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
        assert_eq!(
            fs::read_dir(&disk.0).unwrap().count(),
            0,
            "{}",
            out.display()
        );
    }
}

#[test]
fn a_folder_that_cannot_be_written_to_is_a_clear_error() {
    let place = folder();
    let Some(disk) = Mounted::on(&place.path().join("disk"), "size=1m,ro") else {
        return;
    };
    for out in [disk.0.clone(), disk.0.join("out"), disk.0.join("out.onnx")] {
        let ran = rewrite(&fixture("optimum-llama"), &out, &["--no-validate"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let words = ["Read-only file system", &disk.0.display().to_string()].map(str::to_owned);
        assert!(
            words.iter().all(|w| ran.stderr.contains(w)),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn a_folder_is_rewritten_in_its_own_place_and_out_of_the_way_of_its_output() {
    let place = folder();
    let from = place.path().join("model");
    fs::create_dir_all(&from).unwrap();
    for name in ["model.onnx", "config.json"] {
        fs::copy(fixture("optimum-llama").join(name), from.join(name)).unwrap();
    }
    let written = ["config.json", "model.onnx", "model.onnx.data"];
    // The output lies in the input: it is no part of it, also the second time.
    let inside = from.join("latent");
    for _ in 0..2 {
        let ran = rewrite(&from, &inside, &[]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(names(&contents(&inside)), written);
    }
    fs::remove_dir_all(&inside).unwrap();
    let ran = rewrite(&from, &from, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(names(&contents(&from)), written);
    assert_eq!(
        run([PathBuf::from("inspect"), from]).code,
        3,
        "it is latent now"
    );
    assert!(root().join("fixtures/optimum-llama/model.onnx").is_file());
}
