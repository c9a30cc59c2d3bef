//! A network's values against computed ones, through the library and through `finch score`.
#![allow(dead_code)] // each test file uses a part of this one

use std::fs;
use std::path::Path;
use std::process::Command;

use finch::model::Decoder;
use serde_json::Value;

const TOLERANCE: f64 = 1e-4;
/// Of prompts with more than two thousand tokens.
const LONG_TOLERANCE: f64 = 1e-3;
/// Where the two best logits are nearer than this, either is right.
const MARGIN: f64 = 1e-3;

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

pub fn tolerance(tokens: usize) -> f64 {
    if tokens > 2000 { LONG_TOLERANCE } else { TOLERANCE }
}

pub fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

/// Follows the reference's choices as long as they are clear.
pub fn assert_greedy(found: &[u32], row: &Value, what: &str) {
    let (choices, margins) = (ids(&row["greedy"]), floats(&row["greedy_margin"]));
    assert_eq!(found.len(), choices.len(), "{what}");
    for (at, margin) in margins.iter().enumerate() {
        if found[at] != choices[at] {
            assert!(*margin < MARGIN, "{what}: token {at} is {} instead of {}", found[at], choices[at]);
            return; // from here on the two texts differ
        }
    }
}

pub fn check(decoder: &mut dyn Decoder, row: &Value, what: &str) {
    let prompt = ids(&row["ids"]);
    let what = format!("{what}, {} tokens", prompt.len());
    decoder.truncate(0);
    let logprobs = decoder.score(&prompt).unwrap();
    assert_close(&logprobs, &floats(&row["token_logprobs"]), tolerance(prompt.len()), &format!("{what}: scored"));

    // The same prompt as a chat reads it: in pieces, then token by token.
    decoder.truncate(0);
    for piece in prompt[..prompt.len() - 1].chunks(64) {
        decoder.forward(piece).unwrap();
    }
    let mut logits = decoder.forward(&prompt[prompt.len() - 1..]).unwrap();
    // Logits are not normalised and some are large: compare them as log-probabilities are, by their own tolerance.
    assert_close(&logits, &floats(&row["last_logits"]), 2.0 * tolerance(prompt.len()), &format!("{what}: logits"));
    let mut greedy = Vec::new();
    for _ in 0..ids(&row["greedy"]).len() {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        greedy.push(best);
        logits = decoder.forward(&[best]).unwrap();
    }
    assert_greedy(&greedy, row, &what);
}

/// Runs `finch score` over the rows; its rows, or what it said on standard error.
pub fn score(model: &Path, arguments: &[&str], rows: &[Value]) -> Result<Vec<Value>, String> {
    let home = tempfile::tempdir().unwrap();
    let input = home.path().join("rows.jsonl");
    let text: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&input, text.concat()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_finch"))
        .args(["score", "--model", model.to_str().unwrap(), "--input", input.to_str().unwrap()])
        .args(arguments)
        .env("FINCH_HOME", home.path().join("finch"))
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    let stdout = String::from_utf8(output.stdout).unwrap();
    Ok(stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}
