//! Interruption: a process that saves one model after another is killed.

use super::*;

const VICTIM: &str = "GQA2MLA_TEST_SAVE_UNTIL_KILLED";

const THIS_TEST: &str = "model_files::killed::a_killed_save_leaves_only_whole_models";

fn interrupted_model() -> ModelProto {
    model(vec![
        raw("a", pattern(3 << 20, 1)),
        raw("b", pattern(1 << 20, 2)),
    ])
}

#[test]
fn a_killed_save_leaves_only_whole_models() {
    if let Some(folder) = std::env::var_os(VICTIM) {
        save_until_killed(Path::new(&folder));
    }
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("input")).unwrap();
    write(&folder.path().join("input"), &interrupted_model());
    let expected = interrupted_model();
    for round in 0..5 {
        let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", THIS_TEST, "--test-threads=1"])
            .env(VICTIM, folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !folder.path().join("0.onnx").exists() {
            assert!(victim.try_wait().unwrap().is_none(), "it saves nothing");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(20 + 7 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();
        for name in entries(folder.path()) {
            let path = folder.path().join(&name);
            if name.ends_with(".onnx") {
                assert!(inlined(&load(&path).unwrap().model) == expected, "{name}");
            } else {
                let expected = name == "input"
                    || name.ends_with(".data")
                    || name.starts_with(".gqa2mla-stage-");
                assert!(expected, "{name}");
            }
            match path.is_dir() {
                true if name == "input" => {}
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
    }
}

/// What the process does that is killed: this test again, in a process of its own.
fn save_until_killed(folder: &Path) -> ! {
    let input = load(&folder.join("input/model.onnx")).unwrap();
    for number in 0.. {
        save(&input, &folder.join(format!("{number}.onnx"))).unwrap();
    }
    unreachable!("it is killed before the numbers end")
}
