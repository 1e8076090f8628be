//! Runs that are stopped, and disks that do not take what is written.

use std::io::{BufRead as _, BufReader};

use super::*;

/// A rewrite that takes long, into `out`; it has begun when this returns.
fn begun(place: &Path, out: &Path) -> Child {
    let child = command()
        .args(["rewrite", "fixtures/optimum-llama", "--cache-ratio", "0.5"])
        .args(["--token-ids", "fixtures/tokens.json", "--length", "64"])
        .args(["--reconstruct", "1000000", "-o"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
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
        let child = begun(place.path(), &place.path().join("out"));
        std::thread::sleep(Duration::from_millis(wait));
        let stopped = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(stopped.unwrap().success());
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        let told = String::from_utf8_lossy(&ended.stderr);
        let kept = told.lines().filter(|line| line.starts_with("stopped; "));
        assert!(
            kept.clone().count() == 1 && told.contains(".gqa2mla-work-layers-"),
            "{told}"
        );
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
    /// Mounts one with `options` on `place`, which takes root's rights.
    fn on(place: &Path, options: &str) -> Self {
        fs::create_dir_all(place).unwrap();
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs"];
        let mount = Command::new("mount").args(arguments).arg(place).output();
        let mount = mount.unwrap();
        assert!(mount.status.success(), "{mount:?}");
        Self(place.to_path_buf())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "mounts a file system, as root"]
fn a_full_disk_leaves_nothing() {
    let place = folder();
    let disk = Mounted::on(&place.path().join("disk"), "size=64k");
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
#[ignore = "mounts a file system, as root"]
fn a_folder_that_cannot_be_written_to_is_a_clear_error() {
    let place = folder();
    let disk = Mounted::on(&place.path().join("disk"), "size=1m,ro");
    for out in [disk.0.clone(), disk.0.join("out"), disk.0.join("out.onnx")] {
        let ran = rewrite(&fixture("optimum-llama"), &out, &["--no-validate"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let words = ["Read-only file system", &disk.0.display().to_string()].map(str::to_owned);
        assert!(
            words.iter().all(|w| ran.stderr.contains(w)),
            "{}",
            ran.stderr
        );
        let plan = rewrite(&fixture("optimum-llama"), &out, &["--dry-run"]);
        assert_eq!(
            (plan.code, plan.stderr),
            (1, ran.stderr),
            "{}",
            out.display()
        );
    }
}

/// The text is read by the model for some seconds before there is anything to keep.
#[test]
fn a_run_that_is_stopped_while_it_reads_says_that_nothing_was_written() {
    let place = folder();
    let many = place.path().join("many.json");
    let ids: Vec<i64> = serde_json::from_slice(&fs::read("fixtures/tokens.json").unwrap()).unwrap();
    fs::write(&many, serde_json::json!(ids.repeat(400)).to_string()).unwrap();
    let mut child = command()
        .args(["rewrite", "fixtures/optimum-llama", "--rank", "16"])
        .args(["--calibration-tokens", "400000", "--token-ids"])
        .arg(&many)
        .arg("-o")
        .arg(place.path().join("out.onnx"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let begun = lines.next().unwrap().unwrap();
    assert!(begun.starts_with("reading text: "), "{begun}");
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let told: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(told, ["stopped; nothing was written"]);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}
