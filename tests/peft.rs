//! An adapter trained by finch, read by Python's PEFT: the same log-probabilities on the same base.
//!
//! Runs where Python has torch, transformers and peft (`FINCH_TEST_PYTHON` names another interpreter than `python3`).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const TOLERANCE: f64 = 1e-4;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// An interpreter that has what is needed; None is said past the test harness, which would swallow it.
fn python() -> Option<String> {
    let python = std::env::var("FINCH_TEST_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let found = Command::new(&python).args(["-c", "import torch, transformers, peft"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    let _ = writeln!(std::io::stderr(), "NOT RUN: {python} has no torch, transformers and peft to compare with");
    None
}

fn finch(arguments: &[&str], home: &Path) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_finch")).args(arguments).env("FINCH_HOME", home).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn floats(line: &Value) -> Vec<f64> {
    line.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

#[test]
fn peft_reads_a_trained_adapter_with_the_same_log_probabilities() {
    let Some(python) = python() else { return };
    let rows: Vec<String> = [7usize, 40, 120]
        .iter()
        .map(|n| json!({"ids": (0..*n).map(|i| (i * 37 + n) % 280).collect::<Vec<_>>()}).to_string() + "\n")
        .collect();
    let home = tempfile::tempdir().unwrap();
    let input = home.path().join("rows.jsonl");
    fs::write(&input, rows.concat()).unwrap();
    for (model, settings) in [
        ("qwen2-untied-f16", vec!["--rank", "4", "--alpha", "8"]),
        ("qwen3-tied-bf16", vec!["--rank", "3", "--alpha", "6", "--targets", "q_proj,v_proj,down_proj"]),
    ] {
        let base = fixtures().join("models").join(model);
        let (base, data) = (base.to_str().unwrap(), fixtures().join(format!("training/{model}--sft/data.jsonl")));
        let adapter = home.path().join(format!("{model} adapter"));
        let adapter = adapter.to_str().unwrap();
        let train = ["train", "--model", base, "--objective", "sft", "--data", data.to_str().unwrap()];
        let how = ["--steps", "30", "--learning-rate", "1e-2", "--output", adapter];
        finch(&[&train[..], &how, &settings].concat(), home.path());

        let score = ["score", "--model", base, "--input", input.to_str().unwrap()];
        let lines = |output: Output| -> Vec<Value> {
            String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
        };
        let own = lines(finch(&[&score[..], &["--adapter", adapter]].concat(), home.path()));
        let bare = lines(finch(&score, home.path()));

        let peft = Command::new(&python)
            .arg(fixtures().join("peft_logprobs.py"))
            .args([base, adapter])
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::from(fs::File::open(&input).unwrap()))
            .output()
            .unwrap();
        assert!(peft.status.success(), "{}", String::from_utf8_lossy(&peft.stderr));
        let theirs = lines(peft);
        assert_eq!((own.len(), theirs.len()), (rows.len(), rows.len()));

        let off = |ours: &Value, theirs: &Value| {
            let (ours, theirs) = (floats(&ours["token_logprobs"]), floats(theirs));
            assert_eq!(ours.len(), theirs.len());
            ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        let worst = own.iter().zip(&theirs).map(|(a, b)| off(a, b)).fold(0.0, f64::max);
        let moved = bare.iter().zip(&theirs).map(|(a, b)| off(a, b)).fold(0.0, f64::max);
        println!(
            "{model}: finch and PEFT differ by {worst:.1e}; the adapter moves log-probabilities by up to {moved:.2}"
        );
        assert!(worst <= TOLERANCE, "{model}: off by {worst}");
        assert!(moved > 0.1, "{model}: the adapter changes too little to compare: {moved}");
    }
}
