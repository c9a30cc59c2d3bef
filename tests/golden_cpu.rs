//! The CPU network against computed values, through `finch score`: every model, file and adapter, exactly.

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

/// Runs `finch` on the CPU network; standard output, where it ended well.
fn on_cpu(arguments: &[&str], input: &str) -> Result<String, String> {
    let home = tempfile::tempdir().unwrap();
    let mut command = run::command(home.path(), arguments);
    let mut child = command.env("FINCH_NETWORK", "cpu").stdin(std::process::Stdio::piped()).spawn().unwrap();
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
    let scored = on_cpu(&arguments, &input).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    assert_eq!(scored.lines().count(), rows.len());
    for (found, row) in scored.lines().zip(rows) {
        let found: Value = serde_json::from_str(found).unwrap();
        let what = format!("{}, {adapter:?}, {} tokens", model.display(), ids(&row["ids"]).len());
        let logprobs: Vec<f32> = floats(&found["token_logprobs"]).into_iter().map(|p| p as f32).collect();
        assert_close(&logprobs, &floats(&row["token_logprobs"]), tolerance(ids(&row["ids"]).len()), &what);
        assert_greedy(&ids(&found["greedy"]), row, &what);
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
            if expected(&adapter.join("adapter_config.json"))["use_dora"] == true {
                continue; // the candle network's alone
            }
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
    let answer = on_cpu(&["-m", "builtin", "-p", "What is finch?"], "").expect("it answers");
    assert!(answer.trim().len() > 10, "{answer}");
    let shown = on_cpu(&["models", "show", "builtin"], "").unwrap();
    assert!(shown.contains("weights as they are stored"), "{shown}");
    let home = tempfile::tempdir().unwrap();
    let unknown = run::command(home.path(), &["-p", "hello"]).env("FINCH_NETWORK", "gpu").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("it can be candle or cpu"));
    // Training is refused in a sentence, and nothing is measured in its place.
    let refused = on_cpu(&["bench", "-m", "builtin", "--only", "training", "--repeat", "1"], "").unwrap_err();
    assert!(refused.contains("the CPU network does not train yet"), "{refused}");
}
