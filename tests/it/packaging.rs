//! The command as people install and call it: a Python wheel, its version, completions and manual pages.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{fixture, folder, root, run, with};

fn done(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    told
}

#[test]
#[ignore = "builds a wheel and installs it, with network access"]
fn a_wheel_installed_into_a_clean_environment_finds_the_runtime_beside_it() {
    let place = folder();
    let python = root().join(".venv/bin/python");
    done(
        Command::new(python.with_file_name("maturin"))
            .current_dir(root())
            .args(["build", "--release", "--locked", "--quiet", "--out"])
            .arg(place.path()),
    );
    let wheels: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    let [wheel] = wheels.as_slice() else {
        panic!("expected one wheel: {wheels:?}");
    };
    // One wheel for every Python that pyproject.toml allows.
    let name = wheel.file_name().unwrap().to_string_lossy();
    assert!(name.starts_with("gqa2mla-0.1.0-cp39-abi3-"), "{name}");
    let environment = place.path().join("environment");
    done(Command::new(&python).args(["-m", "venv"]).arg(&environment));
    let pip = environment.join("bin/pip");
    let version = fs::read_to_string(root().join("tests/requirements.txt")).unwrap();
    let pinned = version
        .lines()
        .find(|l| l.starts_with("onnxruntime=="))
        .unwrap();
    done(
        Command::new(&pip)
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .arg(wheel),
    );
    // From anywhere, with nothing of the surroundings: by itself, and with the runtime in the same environment.
    let installed = |arguments: &[&dyn AsRef<Path>]| {
        let mut command = Command::new(environment.join("bin/gqa2mla"));
        command.current_dir(place.path()).env_clear();
        command.args(arguments.iter().map(|a| a.as_ref()));
        done(&mut command)
    };
    let alone = installed(&[&"--version"]);
    assert!(
        alone.starts_with("gqa2mla 0.1.0\nno ONNX Runtime"),
        "{alone}"
    );
    done(Command::new(&pip).args(["install", "--quiet", "--disable-pip-version-check", pinned]));
    let told = installed(&[&"--version"]);
    let expected = format!(
        "ONNX Runtime {} (",
        pinned.trim_start_matches("onnxruntime==")
    );
    assert!(
        told.contains(&expected) && told.contains("environment/lib"),
        "{told}"
    );
    let out = place.path().join("out");
    let told = installed(&[&"rewrite", &fixture("optimum-llama"), &"-o", &out]);
    assert!(
        told.contains(&format!(
            "{}CPU, optimizations off: passed",
            expected.replace(" (", ", ")
        )),
        "{told}"
    );
    // And as a module: tests/python/module.py.
    let calls = place.path().join("calls");
    fs::create_dir(&calls).unwrap();
    let told = done(
        Command::new(environment.join("bin/python"))
            .current_dir(root())
            .env_clear()
            .arg("tests/python/module.py")
            .arg(&calls),
    );
    assert_eq!(told, "every call did what it should\n");
}

#[test]
fn completions_are_scripts_that_their_shells_can_read() {
    let told = with(&[&"completions", &"bash"]);
    assert_eq!(told.code, 0, "{told:?}");
    let mut bash = Command::new("bash")
        .arg("-n")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut bash.stdin.take().unwrap(), told.stdout.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
    // Asked in bash itself: what comes after `gqa2mla rewrite --max`.
    let ask = format!(
        "{}\nCOMP_WORDS=(gqa2mla rewrite --max); COMP_CWORD=2; _gqa2mla gqa2mla --max rewrite; echo \"${{COMPREPLY[@]}}\"",
        told.stdout
    );
    let reply = done(Command::new("bash").args(["-c", &ask]));
    assert_eq!(reply.trim(), "--max-perplexity-increase --max-kl");
    // Commands that are not built in are not offered.
    let ask = format!(
        "{}\nCOMP_WORDS=(gqa2mla ''); COMP_CWORD=1; _gqa2mla gqa2mla '' gqa2mla; echo \"${{COMPREPLY[@]}}\"",
        told.stdout
    );
    let offered = done(Command::new("bash").args(["-c", &ask]));
    let has = |word: &str| offered.split_whitespace().any(|w| w == word);
    assert!(has("rewrite") && has("help"), "{offered}");
    for word in ["tune", "factors"] {
        assert_eq!(has(word), cfg!(feature = "train"), "{offered}");
    }
    for shell in ["zsh", "fish", "powershell", "elvish"] {
        let told = with(&[&"completions", &shell]);
        assert!(
            told.code == 0 && told.stdout.contains("max-perplexity-increase"),
            "{shell}"
        );
        let offers = told.stdout.contains("tune");
        assert_eq!(offers, cfg!(feature = "train"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page_that_names_its_options() {
    let place = folder();
    let told = with(&[&"man", &"-o", &place.path()]);
    assert_eq!(told.code, 0, "{told:?}");
    let help = run(["--help"]).stdout;
    let commands = help
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("Options:")
        .next()
        .unwrap();
    let names = commands
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .filter(|n| *n != "help");
    let mut seen = 0;
    for name in names.filter(|n| help.contains(&format!("\n  {n} "))) {
        let page = fs::read_to_string(place.path().join(format!("gqa2mla-{name}.1"))).unwrap();
        let page = page.replace("\\-", "-");
        let options = run([name, "--help"]).stdout;
        for option in options
            .split_whitespace()
            .filter(|w| w.starts_with("--") && w.len() > 2)
        {
            let option = option.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            assert!(page.contains(option), "{name}: {option}");
        }
        seen += 1;
    }
    // `tune` and `factors` need a build with training.
    let trained = if cfg!(feature = "train") { 2 } else { 0 };
    assert_eq!(seen, 10 + trained);
}
