//! How the library is found and loaded.

use super::*;
use crate::common::command;

#[test]
fn a_named_library_that_is_missing_is_an_error_that_names_it() {
    let error = locate(
        Some(Path::new("/no/such/libonnxruntime.so")),
        &Surroundings::default(),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("/no/such/libonnxruntime.so"),
        "{error}"
    );

    let around = Surroundings {
        dylib_path: Some("/no/such/place".into()),
        ..Surroundings::default()
    };
    let error = locate(None, &around).unwrap_err().to_string();
    assert!(
        error.contains("/no/such/place") && error.contains("ORT_DYLIB_PATH"),
        "{error}"
    );
}

#[test]
fn a_folder_without_a_library_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = locate(Some(folder.path()), &Surroundings::default()).unwrap_err();
    assert!(
        error.to_string().contains("holds no ONNX Runtime"),
        "{error}"
    );
}

#[test]
fn a_library_that_is_not_onnx_runtime_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libonnxruntime.so");
    fs::write(&file, "not a library").unwrap();
    let options = RuntimeOptions {
        onnxruntime: Some(file.clone()),
        ..RuntimeOptions::default()
    };
    let error = open(&fixture("optimum-llama"), &options).err().unwrap();
    // Another test may have loaded the real one before, which this one then cannot replace.
    assert!(
        matches!(
            error,
            RuntimeError::BadLibrary { .. } | RuntimeError::AlreadyLoaded { .. }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("libonnxruntime.so"), "{error}");
}

/// ONNX Runtime would write the events to the cache folder of the user.
#[test]
fn the_command_runs_without_the_telemetry_of_onnx_runtime() {
    let cache = tempfile::tempdir().unwrap();
    let model = fixture("optimum-llama");
    let done = command()
        .env_remove("ORT_DISABLE_TELEMETRY")
        .env("XDG_CACHE_HOME", cache.path())
        .args(["validate", "--runtime", "ort"])
        .args([&model, &model])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let written = fs::read_dir(cache.path()).unwrap().count();
    assert_eq!(written, 0);
}

/// An environment in `folder` that holds two versions of a library which are no libraries.
fn environment(folder: &Path) {
    let capi = folder.join("lib/python3.11/site-packages/onnxruntime/capi");
    fs::create_dir_all(&capi).unwrap();
    for name in [
        "libonnxruntime.so.1.9.0",
        "libonnxruntime.so.1.32.0",
        "libonnxruntime_providers_shared.so",
    ] {
        fs::write(capi.join(name), "").unwrap();
    }
}

#[test]
fn the_library_is_found_in_the_active_environment_and_the_newest_wins() {
    let folder = tempfile::tempdir().unwrap();
    environment(folder.path());
    let around = Surroundings {
        virtual_env: Some(folder.path().into()),
        ..Surroundings::default()
    };
    let located = locate(None, &around).unwrap();
    assert!(
        located.path.ends_with("libonnxruntime.so.1.32.0"),
        "{located:?}"
    );
    assert!(!located.by_loader && located.origin == "VIRTUAL_ENV");
}

#[test]
fn the_library_is_found_where_the_command_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    environment(folder.path());
    let around = Surroundings {
        program: Some(folder.path().join("bin/gqa2mla")),
        ..Surroundings::default()
    };
    let located = locate(None, &around).unwrap();
    assert_eq!(located.origin, "the installation of gqa2mla");
}

#[test]
fn the_interpreter_that_loaded_the_library_comes_before_the_active_environment() {
    let (own, active) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    environment(own.path());
    environment(active.path());
    let around = |packages: &str| Surroundings {
        interpreter: Some(Interpreter {
            program: own.path().join("bin/python"),
            packages: vec![packages.into(), own.path().join(packages)],
        }),
        virtual_env: Some(active.path().into()),
        ..Surroundings::default()
    };
    let located = locate(None, &around("lib/python3.11/site-packages")).unwrap();
    let program = own.path().join("bin/python");
    assert_eq!(
        located.origin,
        format!("the packages of {}", program.display())
    );
    assert!(
        located
            .path
            .starts_with(fs::canonicalize(own.path()).unwrap())
    );
    // Where it has none, the rest is searched as ever.
    let located = locate(None, &around("elsewhere")).unwrap();
    assert_eq!(located.origin, "VIRTUAL_ENV");
}

#[test]
fn with_no_python_the_loader_is_asked_and_the_places_are_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let around = Surroundings {
        virtual_env: Some(folder.path().into()),
        ..Surroundings::default()
    };
    let located = locate(None, &around).unwrap();
    let place = folder.path().display().to_string();
    assert!(
        located.by_loader && located.looked_in.contains(&place),
        "{located:?}"
    );
    let error = RuntimeError::NotFound {
        looked_in: located.looked_in,
    };
    assert!(
        error
            .to_string()
            .contains("pip install onnxruntime==1.32.0"),
        "{error}"
    );
}

/// A model's folder is often the working folder. Nothing in it is run: no library, no interpreter, no package.
#[cfg(unix)]
#[test]
fn no_code_of_the_working_folder_is_run() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    for prefix in [".venv", "env", "lib"] {
        environment(&place.join(prefix));
    }
    fs::write(place.join("libonnxruntime.so"), "").unwrap();
    fs::create_dir(place.join("onnxruntime")).unwrap();
    fs::write(
        place.join("onnxruntime/__init__.py"),
        "open('RAN', 'w').close()",
    )
    .unwrap();
    fs::create_dir(place.join("onnxruntime/capi")).unwrap();
    fs::write(place.join("onnxruntime/capi/libonnxruntime.so"), "").unwrap();
    for script in ["python3", "bin/python3"] {
        let path = place.join(script);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "#!/bin/sh\ntouch RAN\necho $PWD/onnxruntime\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::copy(fixture("optimum-llama"), place.join("model.onnx")).unwrap();
    // An interpreter of the system that would find the package in the working folder.
    let system = ["/usr/bin", "/usr/local/bin"]
        .into_iter()
        .find(|folder| Path::new(folder).join("python3").exists())
        .unwrap();
    for (path, libraries) in [
        (".:bin:", ""),
        ("", ":"),
        (system, "."),
        (&format!("bin:{system}"), ""),
    ] {
        for arguments in [
            &["--version"] as &[&str],
            &["rewrite", "model.onnx", "-o", "out.onnx", "--force"],
        ] {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gqa2mla"));
            command.env_clear().current_dir(place).args(arguments);
            command.env("PATH", path).env("VIRTUAL_ENV", ".venv");
            if !libraries.is_empty() {
                command.env("LD_LIBRARY_PATH", libraries);
            }
            let output = command.output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            // Without tract there is nothing that could validate, and the rewrite says so.
            let ends_well = cfg!(feature = "tract") || arguments == ["--version"];
            assert!(
                output.status.success() || !ends_well,
                "{path}: {arguments:?}: {output:?}"
            );
            assert!(
                !told.contains(&place.display().to_string()),
                "{path}: {told}"
            );
            assert!(!place.join("RAN").exists(), "{path}: {arguments:?}");
        }
    }
}
