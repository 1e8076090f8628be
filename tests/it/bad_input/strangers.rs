//! Files of strangers: names that a terminal would obey, headers that claim what is not there, files that are cut.

use super::*;
use crate::common::{Ran, loaded, run};
use gqa2mla::files::save::save;

/// Sets the terminal's colour, begins a line anew, and the 8-bit form of an escape.
const OBEYED: &str = "\u{1b}[31m\r\u{9b}2J";

/// `optimum-llama` with control characters in the names of its nodes, inputs, weights and metadata.
fn hostile(place: &Path) -> PathBuf {
    let mut model = loaded("optimum-llama");
    let proto = &mut model.model.proto;
    proto.producer_name = Some(format!("{OBEYED}producer"));
    let graph = proto.graph.as_mut().unwrap();
    for node in &mut graph.node {
        node.name = Some(format!("{OBEYED}{}", node.name()));
    }
    let renamed = graph.initializer[0].name().to_owned();
    let name = format!("{OBEYED}{renamed}");
    graph.initializer[0].name = Some(name.clone());
    for node in &mut graph.node {
        for input in node.input.iter_mut().filter(|i| **i == renamed) {
            input.clone_from(&name);
        }
    }
    let path = place.join("hostile.onnx");
    save(&model, &path).unwrap();
    path
}

fn is_obeyed(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

#[test]
fn control_characters_of_names_are_shown_and_not_sent() {
    let place = folder();
    let model = hostile(place.path());
    let named = place.path().join("a\u{1b}[2Jb.onnx");
    let good = fixture("optimum-llama");
    let out = place.path().join("out.onnx");
    let page = place.path().join("report.html");
    let data = place.path().join("report.json");
    let small: &[&dyn AsRef<Path>] = &[&"rewrite", &model, &"-o", &out, &"--rank", &"99"];
    let mut shown = 0;
    let runs: Vec<Ran> = vec![
        with(&[&"inspect", &model, &"--why"]),
        with(&[&"inspect", &model, &"--json"]),
        with(&[&"print", &model]),
        with(&[&"print", &model, &"--json"]),
        with(&[&"diff", &good, &model]),
        with(&[&"diff", &good, &model, &"--json"]),
        with(small),
        with(&[&"inspect", &named]),
        with(&[&"rewrite", &model, &"-o", &out, &"--report", &page]),
        with(&[
            &"rewrite",
            &model,
            &"-o",
            &out,
            &"--report",
            &data,
            &"--json",
        ]),
    ];
    for ran in &runs {
        for text in [&ran.stdout, &ran.stderr] {
            assert!(!text.contains(is_obeyed), "{text:?}");
            shown += usize::from(text.contains("\\u{1b}") || text.contains("\\u001b"));
        }
    }
    assert!(shown >= 5, "{shown} of the runs show a name: {runs:#?}");
    for report in [page, data] {
        let text = fs::read_to_string(report).unwrap();
        assert!(!text.contains(is_obeyed));
    }
}

#[test]
fn a_header_that_claims_more_than_the_file_holds_is_an_error() {
    let place = folder();
    let npy = |name: &str, header: &str| {
        let path = place.path().join(name);
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(1_i64.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        path
    };
    let shaped =
        |shape: &str| format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n");
    let huge = shaped("(1152921504606846976,)");
    let product = shaped("(4294967296, 4294967296, 4294967296)");
    let cases = [
        npy("huge.npy", &huge),
        npy("product.npy", &product),
        npy("short.npy", &shaped("(2,)")),
        npy("negative.npy", &shaped("(-1,)")),
        npy("none.npy", "{}"),
        {
            let path = place.path().join("cut.npy");
            fs::write(&path, b"\x93NUMPY\x02\x00\xff\xff\xff\xff").unwrap();
            path
        },
    ];
    for path in cases {
        let out = place.path().join("stats");
        let model = fixture("optimum-llama");
        let ran = with(&[&"calibrate", &model, &"--token-ids", &path, &"-o", &out]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let shown = path.display().to_string();
        assert!(
            ran.stderr.contains(&shown) && ran.stderr.contains(".npy file of integers"),
            "{}",
            ran.stderr
        );
        assert!(
            !ran.stderr.contains("panicked") && !out.exists(),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn sixty_truncations_are_errors_that_name_the_file() {
    let place = folder();
    let model = copy("genai-llama", place.path());
    let data = model.with_extension("onnx.data");
    let whole = [&model, &data].map(|path| fs::read(path).unwrap());
    let mut random = Random::new(3);
    for round in 0..60 {
        let which = round % 2;
        let path = [&model, &data][which];
        let keep = random.next_u64() as usize % whole[which].len();
        fs::write(path, &whole[which][..keep]).unwrap();
        let out = place.path().join("out.onnx");
        let ran = with(&[&"rewrite", &model, &"-o", &out, &"--no-validate"]);
        let what = format!("{} of {} bytes: {ran:?}", keep, path.display());
        // A beginning of the messages may be a smaller model, in which there is nothing to rewrite.
        assert!(ran.code == 1 || (which == 0 && ran.code == 3), "{what}");
        assert!(ran.stderr.contains("model.onnx"), "{what}");
        assert!(!ran.stderr.contains("panicked") && !out.exists(), "{what}");
        fs::write(path, &whole[which]).unwrap();
    }
}

/// Names the folder of a model for the process below.
const READER: &str = "GQA2MLA_TEST_READ_WHAT_IS_TRUNCATED";

/// Not a test by itself: the process that reads a file that is truncated after it was mapped.
#[test]
fn read_what_is_truncated() {
    let Some(path) = std::env::var_os(READER).map(PathBuf::from) else {
        return;
    };
    gqa2mla::files::mapped::report_truncation().unwrap();
    let source = gqa2mla::files::mapped::Source::map(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();
    let error = source.open().unwrap_err().to_string();
    assert!(error.contains("was truncated while it was read"), "{error}");
    let sum: u64 = source.bytes().iter().map(|b| u64::from(*b)).sum();
    panic!("the bytes of a file without bytes were read: {sum}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_truncated_while_it_is_read_is_a_clear_error() {
    let place = folder();
    let path = place.path().join("weights");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bad_input::strangers::read_what_is_truncated"])
        .args(["--test-threads=1", "--nocapture"])
        .env(READER, &path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let expected = format!(
        "error: {}: the file was truncated while it was read\n",
        path.display()
    );
    assert!(told.ends_with(&expected), "{told}");
}

#[test]
fn an_input_that_is_truncated_during_a_rewrite_ends_it_with_a_message() {
    let place = folder();
    let model = copy("genai-llama", place.path());
    let data = model.with_extension("onnx.data");
    let bytes = fs::read(&data).unwrap();
    let mut random = Random::new(4);
    for round in 0..40 {
        fs::write(&data, &bytes).unwrap();
        let out = place.path().join("out.onnx");
        let child = crate::common::command()
            .arg("rewrite")
            .arg(&model)
            .args(["--no-validate", "--rank", "16", "--force", "-o"])
            .arg(&out)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_micros(random.next_u64() % 40_000));
        let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
        file.set_len(random.next_u64() % bytes.len() as u64)
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        assert!(
            code == Some(0) || (code == Some(1) && told.contains("truncated")),
            "round {round}: {code:?} {told}"
        );
    }
    assert_eq!(
        run(["inspect".as_ref(), fixture("genai-llama").as_path()]).code,
        0
    );
}
