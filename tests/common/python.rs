//! Other people's readers, in Python: which interpreter has them, and what they compute.
#![allow(dead_code)] // each test file uses a part of it

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// torch, transformers and peft.
pub const PEFT: (&str, &str) = ("FINCH_TEST_PYTHON", "torch, transformers, peft");
/// llama.cpp's Python package.
pub const LLAMA_CPP: (&str, &str) = ("FINCH_TEST_LLAMA_CPP", "llama_cpp");

/// An interpreter that can import what is needed: the one that the variable names, else `python3`. None is said past the
/// test harness, which would swallow it.
pub fn python((variable, modules): (&str, &str)) -> Option<String> {
    let python = std::env::var(variable).unwrap_or_else(|_| "python3".to_string());
    let found = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    let _ = writeln!(
        std::io::stderr(),
        "NOT RUN: {python} has no {modules} to compare with; {variable} names another interpreter"
    );
    None
}

/// Runs a script of `tests/fixtures` on `rows`; each line that it prints as numbers.
pub fn computed(python: &str, script: &str, arguments: &[&str], rows: &Path) -> Vec<Vec<f64>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(script);
    let output = Command::new(python)
        .arg(script)
        .args(arguments)
        .env("OMP_NUM_THREADS", "1")
        .stdin(Stdio::from(File::open(rows).unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lines(&output.stdout).iter().map(floats).collect()
}

/// `finch score`'s log-probabilities of each row.
pub fn scored(printed: &str) -> Vec<Vec<f64>> {
    lines(printed.as_bytes()).iter().map(|line| floats(&line["token_logprobs"])).collect()
}

fn lines(text: &[u8]) -> Vec<Value> {
    std::str::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn floats(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

/// The greatest difference between two lists of rows of the same lengths.
pub fn apart(one: &[Vec<f64>], two: &[Vec<f64>]) -> f64 {
    assert_eq!(one.iter().map(Vec::len).collect::<Vec<_>>(), two.iter().map(Vec::len).collect::<Vec<_>>());
    one.iter().flatten().zip(two.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
