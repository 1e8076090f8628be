//! What a run that does not end well leaves: the next one clears it and says so.

use super::*;
use std::time::{Duration, Instant};

/// Starts a rewrite that takes long, into `out`, and waits until it has work to keep.
fn working(place: &Path, out: &Path) -> std::process::Child {
    let child = command()
        .args(["rewrite", "fixtures/optimum-llama", "--cache-ratio", "0.5"])
        .args(["--token-ids", "fixtures/tokens.json", "--length", "64"])
        .args(["--reconstruct", "1000000", "-o"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !names(place).iter().any(|n| n.starts_with(".gqa2mla-work-")) {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "nothing is begun"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn a_stopped_run_says_what_stays_and_clean_removes_it() {
    let place = folder();
    let out = place.path().join("out");
    let child = working(place.path(), &out);
    // Another run leaves the work of one that is running alone.
    let clean = || {
        run([
            "rewrite".as_ref(),
            fixture("optimum-llama").as_path(),
            "-o".as_ref(),
            &out,
            "--clean".as_ref(),
        ])
    };
    let ran = clean();
    assert!(
        ran.code == 0 && ran.stdout.starts_with("no unfinished work"),
        "{ran:?}"
    );
    let stopped = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(stopped.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let left = names(place.path());
    let [work] = left.as_slice() else {
        panic!("{left:?}");
    };
    for part in [work, "the same command goes on", "--clean", "B)"] {
        assert!(told.contains(part), "no '{part}' in: {told}");
    }
    let ran = clean();
    assert!(ran.code == 0 && ran.stdout.contains(work), "{ran:?}");
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn the_next_run_clears_what_a_killed_one_left_and_names_it() {
    let place = folder();
    let out = place.path().join("out");
    let mut child = working(place.path(), &out);
    child.kill().unwrap();
    child.wait().unwrap();
    let staged = |names: Vec<String>| -> Vec<String> {
        let mut names = names;
        names.retain(|n| n.starts_with(".gqa2mla-stage-"));
        names
    };
    let left = staged(names(place.path()));
    assert_eq!(left.len(), 1, "{left:?}");
    // Of another output in the same folder.
    let ran = rewrite(&fixture(MODEL), &place.path().join("other.onnx"), &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr.contains(&left[0]) && ran.stderr.contains("removed"),
        "{}",
        ran.stderr
    );
    assert_eq!(staged(names(place.path())), [""; 0]);
}

#[test]
fn a_second_writer_of_one_output_is_refused() {
    let place = folder();
    let out = place.path().join("out");
    let mut child = working(place.path(), &out);
    let ran = rewrite(&fixture("optimum-llama"), &out, &[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("another run is writing this output"),
        "{}",
        ran.stderr
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(rewrite(&fixture("optimum-llama"), &out, &[]).code, 0);
}
