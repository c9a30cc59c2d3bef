//! `finch train --data` against torch and PEFT: loss, gradient norm and learning rate of every step, and the adapter at
//! the end, for every computed trajectory.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{computed_values, subfolders};
use finch::adapter::peft;
use finch::model::config::ModelConfig;
use serde_json::Value;

/// Relative, of loss and gradient norm.
const STEP_TOLERANCE: f64 = 1e-4;
/// Absolute, of the final adapter's values.
const ADAPTER_TOLERANCE: f32 = 1e-4;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Trains on `network` as `expected` says; the metrics, and the final adapter's greatest distance from the reference.
fn follow(values: &Path, folder: &Path, network: &str) {
    let name = format!("{} on {network}", folder.file_name().unwrap().to_str().unwrap());
    let expected = json(&folder.join("expected.json"));
    let model = values.join("models").join(expected["base"].as_str().unwrap());
    let home = tempfile::tempdir().unwrap();
    let (output, metrics) = (home.path().join("adapter"), home.path().join("metrics.jsonl"));
    let text = |key: &str| expected[key].as_str().map_or_else(|| expected[key].to_string(), str::to_string);
    let path = |path: &Path| path.to_str().unwrap().to_string();
    let arguments: Vec<String> = [
        ["--model", &path(&model)],
        ["--data", &path(&folder.join("data.jsonl"))],
        ["--init-adapter", &path(&folder.join("init"))],
        ["--output", &path(&output)],
        ["--metrics", &path(&metrics)],
        ["--objective", &text("kind")],
        ["--order", "file"],
        ["--steps", &text("steps")],
        ["--batch-size", "1"],
        ["--gradient-accumulation", &text("accumulation")],
        ["--learning-rate", &text("learning_rate")],
        ["--warmup-steps", &text("warmup_steps")],
        ["--schedule", &text("schedule")],
        ["--weight-decay", "0"],
        ["--max-grad-norm", &text("max_grad_norm")],
    ]
    .concat()
    .into_iter()
    .map(String::from)
    .collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_finch"));
    command.arg("train").args(arguments).env("FINCH_HOME", home.path().join("finch"));
    command.env("FINCH_NETWORK", network);
    if text("kind") != "sft" {
        command.args(["--beta", &text("beta")]);
    }
    let run = command.output().unwrap();
    assert!(run.status.success(), "{name}: {}", String::from_utf8_lossy(&run.stderr));
    assert!(run.stdout.is_empty(), "progress goes to standard error");

    let log = expected["log"].as_array().unwrap();
    let rows = fs::read_to_string(&metrics).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), log.len(), "{name}");
    for (row, expected) in rows.iter().zip(log) {
        let mut fields: Vec<&String> = row.as_object().unwrap().keys().collect();
        fields.sort();
        assert_eq!(fields, ["grad_norm", "learning_rate", "loss", "step"]);
        assert_eq!(row["step"], expected["step"]);
        for (found, wanted) in [("loss", "loss"), ("grad_norm", "grad_norm"), ("learning_rate", "lr")] {
            let (found_value, wanted) = (row[found].as_f64().unwrap(), expected[wanted].as_f64().unwrap());
            let off = (found_value - wanted).abs();
            assert!(off <= STEP_TOLERANCE * wanted.abs(), "{name}: {found} of step {} is off by {off}", row["step"]);
        }
    }

    let config = ModelConfig::from_json(&fs::read(model.join("config.json")).unwrap()).unwrap();
    let found = peft::read(&output, &config).unwrap();
    let wanted = peft::read(&folder.join("final"), &config).unwrap();
    assert_eq!(found.weights.modules, wanted.weights.modules, "{name}");
    let pairs = found.weights.data.iter().zip(&wanted.weights.data);
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= ADAPTER_TOLERANCE, "{name}: the final adapter is off by {worst}");
    assert_eq!(found.settings.alpha, wanted.settings.alpha);
}

fn follow_all(kind: &str) {
    for values in computed_values() {
        for folder in subfolders(&values.join("training")) {
            if folder.to_str().unwrap().ends_with(&format!("--{kind}")) {
                ["cpu", "candle"].into_iter().for_each(|network| follow(&values, &folder, network));
            }
        }
    }
}

#[test]
fn sft_follows_torch() {
    follow_all("sft");
}

#[test]
fn dora_and_rslora_follow_torch() {
    follow_all("sft-dora");
    follow_all("sft-rslora");
}

#[test]
fn dpo_follows_torch() {
    follow_all("dpo");
}

#[test]
fn dpo_from_an_adapter_keeps_the_base_as_reference() {
    follow_all("dpo-continued");
}

#[test]
fn kto_follows_torch() {
    follow_all("kto");
}
