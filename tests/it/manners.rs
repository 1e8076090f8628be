//! How the command talks: help, progress, colour, and refusals that name the reader's own options.

use std::path::Path;

use crate::common::{IDS, Ran, fixture, folder, rewrite_fixture, with};

/// The commands that the help lists.
const COMMANDS: [&str; 10] = [
    "inspect",
    "calibrate",
    "rewrite",
    "compare",
    "validate",
    "bench",
    "print",
    "diff",
    "completions",
    "man",
];

#[test]
fn short_help_fits_a_screen_and_long_help_says_more() {
    for command in COMMANDS {
        let help = |option: &str| {
            let mut told = crate::common::command();
            Ran::from(
                told.args([command, option])
                    .env("COLUMNS", "80")
                    .output()
                    .unwrap(),
            )
        };
        let (short, long) = (help("-h"), help("--help"));
        let lines = short.stdout.lines().count();
        assert!(lines < 80, "{command} -h has {lines} lines");
        assert!(long.stdout.lines().count() > lines, "{command}");
        assert!(short.stdout.contains("\nOutput:\n"), "{}", short.stdout);
    }
    let help = with(&[&"rewrite", &"-h"]).stdout;
    for heading in ["Size", "Form", "Factors", "Folder", "Validation", "Output"] {
        assert!(
            help.contains(&format!("\n{heading}:\n")),
            "{heading}: {help}"
        );
    }
}

#[test]
fn stages_are_told_on_standard_error_as_loudly_as_asked() {
    let place = folder();
    let out = place.path().join("stats");
    let llama = fixture("optimum-llama");
    let calibrate = |manner: &'static str| {
        let ran = with(&[&"calibrate", &llama, &"-o", &out, &IDS[0], &IDS[1], &manner]);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran
    };
    let usual = calibrate("--color=never");
    assert_eq!(usual.stderr, "reading text: 1,024 tokens\n");
    let quiet = calibrate("-q");
    assert_eq!(quiet.stderr, "");
    let verbose = calibrate("-v");
    for words in ["reading text: 1,024 tokens, ", "took "] {
        assert!(verbose.stderr.contains(words), "{}", verbose.stderr);
    }
    let result = |ran: &Ran| ran.stdout.lines().last().map(str::to_owned);
    assert_eq!(result(&usual), result(&quiet));
    assert_eq!(result(&usual), result(&verbose));
    assert_eq!(with(&[&"inspect", &llama, &"-q", &"-v"]).code, 2);
}

#[test]
fn a_measurement_on_text_tells_its_stages_and_no_rounding_before_it_rounds() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let bits = ["--cache-bits", "8", IDS[0], IDS[1]];
    let ran = rewrite_fixture("optimum-llama", &out, &bits);
    assert_eq!(ran.code, 0, "{ran:?}");
    // Every number is kept: what rounding loses is measured, and not predicted.
    assert!(!ran.stdout.contains("predicted loss"), "{ran:?}");
    let llama = fixture("optimum-llama");
    let ran = with(&[&"validate", &llama, &out, &IDS[0], &IDS[1]]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let stages: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(
        stages,
        [
            "reading text with both models: 1,024 tokens",
            "measuring layers: 2 runs"
        ]
    );
    assert!(ran.stdout.contains("without rounding"), "{ran:?}");
    let narrow = [&bits[..], &["--rank", "16", "--reconstruct", "0"]].concat();
    let ran = rewrite_fixture("optimum-llama", &out, &narrow);
    let words = "predicted loss of the worst layer, without rounding: ";
    assert!(ran.stdout.contains(words), "{ran:?}");
}

#[test]
fn one_thing_is_told_in_the_singular() {
    let place = folder();
    let ran = rewrite_fixture("genai-gemma2-ring", &place.path().join("out.onnx"), &[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stderr.contains("1 attention recognised, 1 not"),
        "{ran:?}"
    );
}

#[test]
fn verdicts_alone_are_coloured() {
    let llama = fixture("optimum-llama");
    let coloured = with(&[&"validate", &llama, &llama, &"--color", &"always"]).stdout;
    assert!(
        coloured.contains("\u{1b}[32mpassed\u{1b}[0m"),
        "{coloured:?}"
    );
    let plain = coloured
        .replace("\u{1b}[1m", "")
        .replace("\u{1b}[32m", "")
        .replace("\u{1b}[0m", "");
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
    for color in ["auto", "never"] {
        let ran = with(&[&"validate", &llama, &llama, &"--color", &color]);
        assert_eq!(ran.stdout, plain);
    }
    // clap's own messages too.
    let refused = with(&[&"inspect", &"--color", &"always", &"--no-such-option"]);
    assert!(refused.stderr.contains('\u{1b}'), "{refused:?}");
}

#[test]
fn tables_fit_60_columns() {
    let llama = fixture("optimum-llama");
    let place = folder();
    let out = place.path().join("model.onnx");
    let ran = rewrite_fixture("optimum-llama", &out, &["--rank", "16"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let runs = [
        with(&[&"validate", &llama, &out]),
        with(&[&"validate", &llama, &out, &IDS[0], &IDS[1]]),
        with(&[
            &"bench",
            &llama,
            &out,
            &"--past",
            &"16",
            &"--prefill",
            &"16",
            &"--rounds",
            &"2",
        ]),
    ];
    for ran in runs {
        let mut lines = ran.stdout.lines();
        let tables = lines.by_ref().filter(|line| {
            let cells = line.split("  ").filter(|cell| !cell.is_empty()).count();
            cells >= 4
        });
        let tables: Vec<&str> = tables.collect();
        assert!(tables.len() >= 3, "{ran:?}");
        for line in tables {
            assert!(line.trim_end().len() <= 60, "{line}");
        }
    }
    // Layers that are alike are one line.
    let same = with(&[&"validate", &llama, &llama, &IDS[0], &IDS[1]]).stdout;
    assert!(same.contains("\n0-1 "), "{same}");
}

#[test]
fn a_negative_loss_is_refused_by_what_is_wrong_with_it() {
    let place = folder();
    let out = place.path().join("out.onnx");
    for (option, value, words) in [
        ("--max-kl", "-1", "not negative"),
        (
            "--max-perplexity-increase",
            "-2%",
            "an increase is not negative",
        ),
        ("--cache-ratio", "-50%", "above 0 and at most 1"),
    ] {
        let ran = rewrite_fixture("optimum-llama", &out, &[option, value]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
        assert!(!ran.stderr.contains("-- -"), "{ran:?}");
    }
}

#[cfg(not(feature = "train"))]
#[test]
fn commands_that_are_not_built_in_say_how_to_get_them() {
    let lines: [&[&dyn AsRef<Path>]; 3] = [
        &[
            &"tune",
            &"model.onnx",
            &"--teacher",
            &"original",
            &"-o",
            &"out",
        ],
        &[&"factors", &"export", &"model.onnx", &"-o", &"out"],
        &[&"tune"],
    ];
    for line in lines {
        let ran = with(line);
        assert_eq!(ran.code, 2, "{ran:?}");
        let words = "this gqa2mla is built without training: build it with --features train";
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
    assert!(!with(&[&"--help"]).stdout.contains("tune"));
}

#[test]
fn lengths_that_no_context_holds_are_named() {
    let ran = with(&[&"bench", &fixture("optimum-llama")]);
    assert_eq!(ran.code, 2, "{ran:?}");
    for words in [
        "nothing to measure",
        "--past 512",
        "--prefill 2,048",
        "context of 256 tokens",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
}

#[test]
fn refusals_name_the_option_that_chose_the_form_and_their_way_out_works() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let bits = ["--cache-bits", "8", IDS[0], IDS[1]];
    let cases: [(&str, Vec<&str>, Vec<&str>); 3] = [
        (
            "genai-llama",
            vec!["--target", "gqa"],
            vec!["--target", "gqa"],
        ),
        (
            "genai-llama",
            [&["--keep-heads"][..], &bits].concat(),
            [&["--keep-heads"][..], &bits].concat(),
        ),
        (
            "optimum-llama",
            vec!["--new-tokens", "exact"],
            vec!["--new-tokens", "latent", "--cache-io", "inplace"],
        ),
    ];
    for (model, options, way_out) in cases {
        let refused = rewrite_fixture(
            model,
            &out,
            &[&options[..], &["--cache-io", "inplace"]].concat(),
        );
        assert_eq!(refused.code, 2, "{refused:?}");
        let named = format!("does not go with {}", options[0]);
        assert!(refused.stderr.contains(&named), "{refused:?}");
        let ran = rewrite_fixture(model, &out, &way_out);
        assert_eq!(ran.code, 0, "{way_out:?}: {ran:?}");
    }
    for options in [
        vec!["--target", "gqa"],
        [&["--keep-heads"][..], &bits].concat(),
    ] {
        let refused = rewrite_fixture("dynamo18-dv", &out, &options);
        assert_eq!(refused.code, 2, "{refused:?}");
        let named = format!("the form of {}", options[0]);
        assert!(refused.stderr.contains(&named), "{refused:?}");
    }
}

#[test]
fn a_search_tells_what_breaks_the_promise_and_what_keeps_it_as_cheaply() {
    let place = folder();
    let out = place.path().join("out");
    let search = [
        "--max-kl",
        "0.001",
        "--reconstruct",
        "0",
        "--context",
        "64",
        "--force",
        IDS[0],
        IDS[1],
    ];
    let ran = rewrite_fixture("genai-llama", &out, &search);
    assert_eq!(ran.code, 0, "{ran:?}");
    for words in ["  kept, chosen\n", "  fails: KL\n", " heads "] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
    // Its command works as it stands.
    let told = ran
        .stdout
        .lines()
        .find(|line| line.contains("--keep-heads"));
    let (_, command) = told.unwrap().split_once(": gqa2mla ").unwrap();
    assert!(command.contains("--context 64"), "{command}");
    let words: Vec<&str> = command.split(' ').collect();
    let again = crate::common::run(words);
    assert_eq!(again.code, 0, "{command}: {again:?}");
    let told = rewrite_fixture("genai-llama", &out, &[&search[..], &["--json"]].concat()).json();
    let search = &told["search"];
    assert_eq!(search["kept_heads_do"], true);
    let curve = search["curve"].as_array().unwrap();
    for point in curve {
        let broken = [&point["broken_by"]["perplexity"], &point["broken_by"]["kl"]];
        let kept = broken.iter().all(|by| *by == false);
        assert_eq!(point["keeps"], kept, "{point}");
        assert_eq!(point["loss"].as_f64().unwrap() <= 0.001, kept, "{point}");
    }
    assert!(curve.iter().any(|point| point["keeps"] == false));
}

#[test]
fn a_rewrite_counts_the_attentions_of_branches_as_inspect_does() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let ran = rewrite_fixture("merged-llama", &out, &["--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("rewriting: 2 attentions"), "{ran:?}");
}

#[test]
fn a_loss_that_no_text_has_measured_is_said_last_with_how_to_measure_it() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let last = |options: &[&str]| {
        let ran = rewrite_fixture("optimum-llama", &out, options);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout.lines().last().map(str::to_owned).unwrap()
    };
    let told = last(&["--rank", "16"]);
    assert!(told.contains("loss was not measured"), "{told}");
    let (_, command) = told.split_once(": gqa2mla ").unwrap();
    let command = command.strip_suffix(" --text FILE measures it").unwrap();
    let words: Vec<&str> = command.split(' ').chain(IDS).collect();
    assert_eq!(crate::common::run(words).code, 0, "{command}");
    let measured = ["--rank", "16", "--reconstruct", "0", IDS[0], IDS[1]];
    for options in [&measured[..], &[]] {
        assert!(last(options).starts_with("wrote "));
    }
}

#[test]
fn models_that_cannot_be_compared_are_both_named() {
    let (one, other) = (fixture("optimum-llama"), fixture("genai-gptoss"));
    for more in [&[][..], &IDS] {
        let mut arguments: Vec<&dyn AsRef<Path>> = vec![&"validate", &one, &other];
        arguments.extend(more.iter().map(|m| m as &dyn AsRef<Path>));
        let ran = with(&arguments);
        assert_eq!(ran.code, 1, "{ran:?}");
        for path in [&one, &other] {
            assert!(ran.stderr.contains(&path.display().to_string()), "{ran:?}");
        }
    }
}

#[test]
fn options_without_an_effect_are_refused_by_name() {
    let place = folder();
    let llama = fixture("optimum-llama");
    let out = place.path().join("out.onnx");
    let cases: [(&[&str], &str); 6] = [
        (&["--reconstruct", "10"], "--reconstruct is about a text"),
        (&["--length", "10"], "--length is about a text"),
        (&["--calibration-tokens", "10"], "--calibration-tokens"),
        (&["--no-validate", "--tolerance", "1e-3"], "--tolerance"),
        (&["--no-validate", "--seed", "1"], "--seed"),
        (&["--dry-run", "--bench"], "--bench"),
    ];
    for (options, words) in cases {
        let ran = rewrite_fixture("optimum-llama", &out, options);
        assert_eq!(ran.code, 2, "{options:?}: {ran:?}");
        assert!(ran.stderr.contains(words), "{options:?}: {}", ran.stderr);
        assert!(!out.exists());
    }
    let ran = with(&[&"compare", &llama, &IDS[0], &IDS[1], &"--factors", &"plain"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("--ways"), "{}", ran.stderr);
}
