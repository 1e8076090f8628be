//! Runs that are killed, that the system refuses something, or that meet each other: the output is the old one or the new
//! one, whole.

use super::*;
use crate::common::root;
use gqa2mla::files::load::load;
use gqa2mla::validate::scenario::Random;
use std::time::{Duration, Instant};

/// Two rewrites of one model that differ.
const WAYS: [&[&str]; 2] = [&["--rank", "16"], &["--rank", "8"]];

/// What each of [`WAYS`] writes, by file name, and how long it takes.
fn references() -> ([BTreeMap<String, Vec<u8>>; 2], Duration) {
    let place = folder();
    let started = Instant::now();
    let written = WAYS.map(|way| {
        let out = place.path().join(way.concat()).join("model.onnx");
        let ran = rewrite(&fixture(MODEL), &out, way);
        assert_eq!(ran.code, 0, "{ran:?}");
        files(out.parent().unwrap())
    });
    assert!(written[0] != written[1]);
    (written, started.elapsed() / 2)
}

/// Asserts that the model in `folder` loads and is one of `references`, its weights with it; which one.
fn whole(folder: &Path, references: &[BTreeMap<String, Vec<u8>>], what: &str) -> usize {
    let model = load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{what}: {e}"));
    let found = files(folder);
    let is_whole = |reference: &BTreeMap<String, Vec<u8>>| {
        let names = model.sources.keys().cloned();
        let mut names = names.chain(["model.onnx".to_owned()]);
        names.all(|name| found.get(&name) == reference.get(&name))
    };
    let which = references.iter().position(is_whole);
    which.unwrap_or_else(|| panic!("{what}: the output is neither of both"))
}

fn started(way: &[&str], out: &Path) -> std::process::Child {
    command()
        .arg("rewrite")
        .arg(fixture(MODEL))
        .args(way)
        .args(["--no-validate", "-o"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn two_hundred_kills_leave_the_old_output_or_the_new_one() {
    let (references, takes) = references();
    let place = folder();
    let out = place.path().join("model.onnx");
    assert_eq!(rewrite(&fixture(MODEL), &out, WAYS[0]).code, 0);
    let mut random = Random::new(7);
    let mut seen = [0, 0];
    // How long a run takes depends on its way, and on what else the machine does: the kills follow it.
    let mut paces = [takes; 2];
    for round in 0..200 {
        let new = (round + 1) % 2;
        let way = WAYS[new];
        let mut child = started(way, &out);
        // Up to a little longer than a run takes, most often near its end, where the names are given.
        let share = (random.next_u64() % 1000) as f64 / 1000.0;
        std::thread::sleep(paces[new].mul_f64(1.2 * share.sqrt()));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = whole(place.path(), &references, &format!("kill {round}"));
        paces[new] = paces[new].mul_f64(if found == new { 0.95 } else { 1.05 });
        seen[found] += 1;
    }
    assert!(
        seen.iter().all(|n| *n > 10),
        "{seen:?}: the kills miss the step"
    );
    // What they left is gone after one run that comes to its end.
    assert_eq!(rewrite(&fixture(MODEL), &out, WAYS[0]).code, 0);
    assert!(files(place.path()) == references[0]);
    assert_eq!(names(place.path()).len(), references[0].len());
}

#[test]
fn killed_folders_are_the_old_one_or_the_new_one() {
    let place = folder();
    let reference = WAYS.map(|way| {
        let out = place.path().join(way.concat());
        assert_eq!(rewrite(&fixture(MODEL), &out, way).code, 0);
        files(&out)
    });
    let out = place.path().join("out");
    assert_eq!(rewrite(&fixture(MODEL), &out, WAYS[0]).code, 0);
    let begun = Instant::now();
    assert_eq!(rewrite(&fixture(MODEL), &out, WAYS[0]).code, 0);
    let takes = begun.elapsed();
    let mut random = Random::new(8);
    for round in 0..60 {
        let mut child = started(WAYS[round % 2], &out);
        let share = (random.next_u64() % 1000) as f64 / 1000.0;
        std::thread::sleep(takes.mul_f64(1.2 * share.sqrt()));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = files(&out);
        assert!(
            reference.contains(&found),
            "kill {round}: {:?}",
            found.keys()
        );
    }
    assert_eq!(rewrite(&fixture(MODEL), &out, WAYS[0]).code, 0);
    assert_eq!(names(place.path()), ["--rank16", "--rank8", "out"]);
}

/// Rewrites onto an output of the other way with `limit` in force, a setting of bash's `ulimit`; gives the exit code.
fn limited(limit: &str, out: &Path) -> Ran {
    // Ignored, the signal for files that grow too long becomes an error of the system call.
    let script = format!("trap '' XFSZ; ulimit {limit} && exec \"$@\"");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script, "bash"]);
    bash.arg(env!("CARGO_BIN_EXE_gqa2mla")).arg("rewrite");
    bash.arg(fixture(MODEL)).args(WAYS[1]);
    bash.args(["--no-validate", "-o"]).arg(out);
    bash.output().unwrap().into()
}

#[test]
fn a_call_that_the_system_refuses_leaves_the_old_output() {
    let (references, _) = references();
    let place = folder();
    let out = place.path().join("model.onnx");
    let largest = references[1].values().map(Vec::len).max().unwrap() / 1024 + 2;
    let mut refused = 0;
    // Files no longer than so many KiB: each write fails in turn. So many open files: each opening.
    let lengths = (0..largest).step_by(largest / 24).chain([largest]);
    let limits = lengths
        .map(|length| format!("-f {length}"))
        .chain((4..20).map(|open| format!("-n {open}")));
    for limit in limits {
        assert_eq!(rewrite(&fixture(MODEL), &out, WAYS[0]).code, 0);
        let ran = limited(&limit, &out);
        let which = whole(place.path(), &references, &limit);
        match ran.code {
            0 => assert_eq!(which, 1, "{limit}"),
            // Before it comes to the rewrite, the system's loader needs files as well.
            127 => assert_eq!(which, 0, "{limit}"),
            1 => {
                refused += 1;
                assert_eq!(which, 0, "{limit}: {ran:?}");
                assert!(
                    ran.stderr.contains("error: ") && !ran.stderr.contains("panicked"),
                    "{limit}: {ran:?}"
                );
            }
            _ => panic!("{limit}: {ran:?}"),
        }
        assert!(
            files(place.path()) == references[which],
            "{limit}: something is left"
        );
        // Without files to open a folder cannot be removed either: the next run does that.
        let mut names = names(place.path());
        names.retain(|n| !n.starts_with(".gqa2mla-stage-"));
        assert_eq!(names.len(), references[which].len(), "{limit}");
    }
    assert!(refused > 20, "{refused}");
}

/// Each kind of call in turn, refused in each of two ways: a file system that is full, and a disk that fails.
#[cfg(target_os = "linux")]
#[test]
fn each_kind_of_call_that_fails_leaves_the_old_output() {
    const STEPS: [&str; 10] = [
        "make a folder",
        "create a file",
        "write",
        "copy a range",
        "set a length",
        "flush",
        "lock",
        "permissions",
        "rename",
        "remove",
    ];
    let (references, _) = references();
    let place = folder();
    let out = place.path().join("model.onnx");
    let mut refused = 0;
    for (step, error) in STEPS
        .iter()
        .flat_map(|step| [(step, "EIO"), (step, "ENOSPC")])
    {
        let what = format!("{step}: {error}");
        assert_eq!(rewrite(&fixture(MODEL), &out, WAYS[0]).code, 0);
        let mut python = Command::new(root().join(".venv/bin/python"));
        python.arg(root().join("tests/python/refused_call.py"));
        python.args([step, error, env!("CARGO_BIN_EXE_gqa2mla"), "rewrite"]);
        python.arg(fixture(MODEL)).args(WAYS[1]);
        python.args(["--no-validate", "-o"]).arg(&out);
        let ran: Ran = python.output().unwrap().into();
        assert_ne!(ran.code, 77, "no call can be refused here");
        let which = whole(place.path(), &references, &what);
        // A file system without locks is no obstacle.
        let goes_on = *step == "lock";
        assert_eq!(
            (ran.code, which),
            if goes_on { (0, 1) } else { (1, 0) },
            "{what}: {ran:?}"
        );
        let told = ran.stderr.contains("error: ") && !ran.stderr.contains("panicked");
        assert!(goes_on || told, "{what}: {ran:?}");
        refused += usize::from(!goes_on);
        // What could not be removed is removed by the next run.
        let mut names = names(place.path());
        names.retain(|n| !n.starts_with(".gqa2mla-stage-") || *step != "remove");
        assert_eq!(names.len(), references[which].len(), "{what}: {names:?}");
    }
    assert_eq!(refused, 18);
    assert_eq!(rewrite(&fixture(MODEL), &out, WAYS[0]).code, 0);
    assert_eq!(names(place.path()).len(), references[0].len());
}

#[test]
fn fifty_pairs_of_runs_to_one_output_leave_one_of_both() {
    let (references, _) = references();
    let place = folder();
    let out = place.path().join("model.onnx");
    let mut refused = 0;
    for pair in 0..50 {
        let children = WAYS.map(|way| started(way, &out));
        let codes = children.map(|child| {
            let output = child.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), told)
        });
        for (code, told) in &codes {
            let is_busy = *code == Some(1) && told.contains("another run is writing this output");
            refused += usize::from(is_busy);
            assert!(*code == Some(0) || is_busy, "pair {pair}: {code:?} {told}");
        }
        assert!(
            codes.iter().any(|(code, _)| *code == Some(0)),
            "pair {pair}"
        );
        whole(place.path(), &references, &format!("pair {pair}"));
        assert_eq!(names(place.path()).len(), 2, "pair {pair}");
    }
    assert!(refused > 0, "no two runs met");
}
