//! Both networks against computed values, through `finch score`: every model, file and adapter, exactly.

mod common;
#[path = "common/forward.rs"]
mod forward;
#[path = "common/run.rs"]
mod run;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::{computed_values, reference, subfolders};
use forward::{assert_close, assert_greedy, floats, ids, tolerance};
use serde_json::{Value, json};

fn expected(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Runs `finch` on a network; standard output, where it ended well.
fn finch(network: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let home = tempfile::tempdir().unwrap();
    let mut command = run::command(home.path(), arguments);
    let mut child = command.env("FINCH_NETWORK", network).stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Scores and continues all rows.
fn check(model: &Path, adapter: Option<&Path>, rows: &[Value]) {
    let input: String = rows.iter().map(|row| format!("{}\n", json!({"ids": row["ids"]}))).collect();
    let greedy = ids(&rows[0]["greedy"]).len().to_string();
    let mut arguments = vec!["score", "--model", model.to_str().unwrap(), "--continue", &greedy];
    if let Some(adapter) = adapter {
        arguments.extend(["--adapter", adapter.to_str().unwrap()]);
    }
    for network in ["cpu", "candle"] {
        let scored = finch(network, &arguments, &input).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        assert_eq!(scored.lines().count(), rows.len());
        for (found, row) in scored.lines().zip(rows) {
            let found: Value = serde_json::from_str(found).unwrap();
            let what = format!("{network}: {}, {adapter:?}, {} tokens", model.display(), ids(&row["ids"]).len());
            let logprobs: Vec<f32> = floats(&found["token_logprobs"]).into_iter().map(|p| p as f32).collect();
            assert_close(&logprobs, &floats(&row["token_logprobs"]), tolerance(ids(&row["ids"]).len()), &what);
            assert_greedy(&ids(&found["greedy"]), row, &what);
        }
    }
}

fn rows(expected: &Value) -> &[Value] {
    expected.as_array().unwrap()
}

#[test]
fn folders_give_the_computed_values() {
    for place in computed_values() {
        for model in subfolders(&place.join("models")) {
            check(&model, None, rows(&expected(&model.join("expected.json"))["forward"]));
        }
    }
}

#[test]
fn adapters_give_the_computed_values() {
    let mut seen = 0;
    for place in computed_values() {
        for adapter in subfolders(&place.join("adapters")) {
            let name = adapter.file_name().unwrap().to_str().unwrap().to_string();
            let (base, _) = name.split_once("--").unwrap();
            let forward = &expected(&adapter.join("expected.json"))["forward"];
            check(&place.join("models").join(base), Some(&adapter), rows(forward));
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen}");
}

#[test]
fn files_of_all_types_give_the_computed_values() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let file: PathBuf = own.join("gguf/qwen2-untied-f16-F16-00001-of-00003.gguf");
    check(&file, None, rows(&expected(&own.join("models/qwen2-untied-f16/expected.json"))["forward"]));
    let Some(golden) = reference("golden/gguf") else { return };
    for name in ["qwen2-96", "qwen3-256"] {
        let expected = expected(&golden.join(format!("{name}.expected.json")));
        for (kind, forward) in expected.as_object().unwrap() {
            check(&golden.join(format!("{name}-{kind}.gguf")), None, rows(forward));
        }
    }
}

#[test]
fn networks_are_chosen_by_name() {
    let home = tempfile::tempdir().unwrap();
    let finch = |network: &str, arguments: &[&str]| {
        let output = run::command(home.path(), arguments).env("FINCH_NETWORK", network).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    for (network, weights) in [("", "as they are stored"), ("cpu", "as they are stored"), ("candle", "in F32")] {
        let (_, shown, _) = finch(network, &["models", "show", "builtin"]);
        assert!(shown.contains(weights), "{network}: {shown}");
    }
    let question = ["-m", "builtin", "--temperature", "0", "-p", "What is finch?"];
    let (cpu, candle) = (finch("cpu", &question), finch("candle", &question));
    assert_eq!(cpu.0, Some(0));
    assert!(cpu.1.trim().len() > 10, "{}", cpu.1);
    // A small network computes with every bit.
    assert_eq!(cpu.1, candle.1);
    let unknown = finch("gpu", &question);
    assert_eq!(unknown.0, Some(2));
    assert!(unknown.2.contains("it can be candle or cpu"), "{}", unknown.2);
    // What trains has the same weights.
    let (code, measured, error) = finch("cpu", &["bench", "-m", "builtin", "--only", "training", "--repeat", "1"]);
    assert!(code == Some(0) && measured.contains("tokens a second"), "{error}");
}
