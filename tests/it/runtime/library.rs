//! How the library is found and loaded.

use super::*;

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

#[test]
fn the_library_is_found_in_a_python_environment_and_the_newest_wins() {
    let folder = tempfile::tempdir().unwrap();
    let capi = folder
        .path()
        .join(".venv/lib/python3.11/site-packages/onnxruntime/capi");
    fs::create_dir_all(&capi).unwrap();
    for name in [
        "libonnxruntime.so.1.9.0",
        "libonnxruntime.so.1.32.0",
        "libonnxruntime_providers_shared.so",
    ] {
        fs::write(capi.join(name), "").unwrap();
    }
    let around = Surroundings {
        folder: folder.path().to_path_buf(),
        ..Surroundings::default()
    };
    let located = locate(None, &around).unwrap();
    assert!(
        located.path.ends_with("libonnxruntime.so.1.32.0"),
        "{located:?}"
    );
    assert!(!located.by_loader);
}

#[test]
fn with_no_python_the_loader_is_asked_and_the_places_are_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let around = Surroundings {
        folder: folder.path().to_path_buf(),
        ..Surroundings::default()
    };
    let located = locate(None, &around).unwrap();
    assert!(
        located.by_loader && located.looked_in.contains(".venv"),
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
