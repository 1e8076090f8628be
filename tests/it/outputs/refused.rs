//! An input is never an output, and what another tool wrote is replaced only when the user says so.

use gqa2mla::files::load::load;

use super::*;

/// Rewriting to `out` is refused as wrong usage, and no file in `place` has changed.
fn is_refused(model: &Path, out: &Path, place: &Path) {
    let before = files(place);
    let listed = names(place);
    let ran = rewrite(model, out, &["--force"]);
    assert_eq!(ran.code, 2, "{}: {ran:?}", out.display());
    assert!(
        ran.stderr.contains("would replace an input")
            && ran.stderr.contains(&out.display().to_string()),
        "{}",
        ran.stderr
    );
    assert!(
        files(place) == before && names(place) == listed,
        "{}",
        out.display()
    );
}

#[cfg(unix)]
#[test]
fn an_input_is_never_an_output() {
    use std::os::unix::fs::symlink;
    let place = folder();
    let model = input(MODEL, place.path());
    let from = model.parent().unwrap();
    let roundabout = from.join("../in/model.onnx");
    let (link, hard) = (from.join("link.onnx"), from.join("hard.onnx"));
    symlink("model.onnx", &link).unwrap();
    fs::hard_link(&model, &hard).unwrap();
    for out in [&model, &roundabout, &link, &hard] {
        is_refused(&model, out, from);
    }
    // The folder of the model, where the output would have the model's name.
    let ran = rewrite(&model, from, &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    // By the name of a data file: the model is another one, its weights are those of the output.
    let other = from.join("other.onnx");
    fs::rename(&model, &other).unwrap();
    fs::remove_file(&link).unwrap();
    fs::remove_file(&hard).unwrap();
    is_refused(&other, &model, from);
}

#[test]
fn a_folder_that_is_read_is_never_written() {
    let place = folder();
    let model = input("optimum-llama", place.path());
    let from = model.parent().unwrap();
    is_refused(from, from, from);
    // Around it: it would be exchanged together with the rest.
    is_refused(from, place.path(), from);
    // A report over a file that goes along.
    let out = place.path().join("out");
    let config = from.join("config.json");
    let ran = rewrite(from, &out, &["--report", &config.display().to_string()]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(!out.exists());
}

#[test]
fn statistics_do_not_replace_what_they_are_made_from() {
    let place = folder();
    let model = input("optimum-llama", place.path());
    let ids = place.path().join("tokens.json");
    fs::copy(fixture("tokens.json"), &ids).unwrap();
    for out in [&model, &ids] {
        let ran = run([
            "calibrate".as_ref(),
            model.as_path(),
            "--token-ids".as_ref(),
            &ids,
            "-o".as_ref(),
            out,
        ]);
        assert_eq!(ran.code, 2, "{ran:?}");
    }
    assert_eq!(
        fs::read(&ids).unwrap(),
        fs::read(fixture("tokens.json")).unwrap()
    );
}

#[test]
fn what_another_tool_wrote_is_replaced_only_by_force() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let other = fs::read(fixture("optimum-llama").join("model.onnx")).unwrap();
    for content in [other.as_slice(), b"not a model"] {
        fs::write(&out, content).unwrap();
        let ran = rewrite(&fixture(MODEL), &out, &[]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
        assert_eq!(fs::read(&out).unwrap(), content);
    }
    assert_eq!(rewrite(&fixture(MODEL), &out, &["--force"]).code, 0);
    // Now it is of this tool.
    let ran = rewrite(&fixture(MODEL), &out, &["--rank", "16"]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn a_folder_keeps_what_no_rewrite_wrote() {
    let place = folder();
    let out = place.path().join("out");
    fs::create_dir_all(out.join("deep")).unwrap();
    fs::write(out.join("deep/notes.txt"), "mine").unwrap();
    let from = fixture("optimum-llama");
    let first = rewrite(&from, &out, &[]);
    assert_eq!(first.code, 0, "{first:?}");
    // Models of other outputs stay, beside this one and below it.
    let other = fixture("optimum-qwen2");
    assert_eq!(rewrite(&other, &out.join("other.onnx"), &[]).code, 0);
    assert_eq!(rewrite(&other, &out.join("deep/qwen"), &[]).code, 0);
    let second = rewrite(&from, &out, &[]);
    assert_eq!(second.code, 0, "{second:?}");
    for model in ["other.onnx", "deep/qwen/model.onnx"] {
        load(&out.join(model)).unwrap();
    }
    fs::remove_dir_all(out.join("deep/qwen")).unwrap();
    for entry in fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("other")
        {
            fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(
        names(&out),
        ["config.json", "deep", "model.onnx", "model.onnx.data"]
    );
    // This one would be left with the data file of the next output.
    fs::rename(out.join("model.onnx"), out.join("old.onnx")).unwrap();
    let shared = rewrite(&from, &out, &[]);
    assert_eq!(shared.code, 2, "{shared:?}");
    for words in ["old.onnx", "model.onnx.data", "--force"] {
        assert!(shared.stderr.contains(words), "{}", shared.stderr);
    }
    fs::rename(out.join("old.onnx"), out.join("model.onnx")).unwrap();
    assert_eq!(
        fs::read_to_string(out.join("deep/notes.txt")).unwrap(),
        "mine"
    );
    // A model of another origin is in the way.
    fs::copy(from.join("model.onnx"), out.join("model.onnx")).unwrap();
    let ran = rewrite(&from, &out, &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    assert_eq!(rewrite(&from, &out, &["--force"]).code, 0);
    assert_eq!(names(place.path()), ["out"]);
}

#[test]
fn a_folder_that_people_work_in_stays_the_same_folder() {
    let place = folder();
    let from = fixture("optimum-llama");
    for _ in 0..2 {
        let ran: Ran = command()
            .current_dir(place.path())
            .arg("rewrite")
            .arg(&from)
            .args(["--no-validate", "-o", "."])
            .output()
            .unwrap()
            .into();
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(
            names(place.path()),
            ["config.json", "model.onnx", "model.onnx.data"]
        );
    }
}
