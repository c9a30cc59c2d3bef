//! Adapters trained by finch, read by Python's PEFT: the same log-probabilities on the same base.
//!
//! Runs where Python has torch, transformers and peft (`FINCH_TEST_PYTHON` names another interpreter than `python3`).

#[path = "common/python.rs"]
mod python;
#[path = "common/run.rs"]
mod run;

use std::fs;
use std::path::{Path, PathBuf};

use python::{PEFT, apart, computed, python, scored};
use run::{printed, said};
use serde_json::json;

const TOLERANCE: f64 = 1e-4;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn peft_reads_trained_adapters_with_the_same_log_probabilities() {
    let Some(python) = python(PEFT) else { return };
    let rows: Vec<String> = [7usize, 40, 120]
        .iter()
        .map(|n| json!({"ids": (0..*n).map(|i| (i * 37 + n) % 280).collect::<Vec<_>>()}).to_string() + "\n")
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let input = home.join("rows.jsonl");
    fs::write(&input, rows.concat()).unwrap();
    for (name, model, settings) in [
        ("plain", "qwen2-untied-f16", "--rank 4 --alpha 8"),
        ("some layers", "qwen3-tied-bf16", "--rank 3 --alpha 6 --targets q_proj,v_proj,down_proj"),
        ("rsLoRA", "qwen2-untied-f16", "--rank 4 --alpha 6 --variant rslora"),
        ("DoRA", "qwen3-tied-bf16", "--rank 3 --alpha 6 --variant dora"),
        ("DoRA on biases", "qwen2-untied-f16", "--rank 4 --alpha 8 --variant dora --dropout 0.1"),
    ] {
        let base = fixtures().join("models").join(model);
        let (base, data) = (base.to_str().unwrap(), fixtures().join(format!("training/{model}--sft/data.jsonl")));
        // PEFT's folder, as finch saves it and as it is taken in and exported again.
        let (adapter, exported) = (home.join(format!("{name} adapter")), home.join(format!("{name} exported")));
        let (adapter, exported) = (adapter.to_str().unwrap(), exported.to_str().unwrap());
        let train = ["train", "--model", base, "--objective", "sft", "--data", data.to_str().unwrap()];
        let how = ["--steps", "30", "--learning-rate", "1e-2", "--output", adapter];
        let settings: Vec<&str> = settings.split(' ').collect();
        said(home, &[&train[..], &how, &settings].concat());
        said(home, &["adapters", "import", adapter, "--name", name, "--model", base]);
        said(home, &["adapters", "export", name, exported, "--format", "peft", "--model", base]);

        let score = ["score", "--model", base, "--input", input.to_str().unwrap()];
        let own = scored(&printed(home, &[&score[..], &["--adapter", name]].concat()));
        let bare = scored(&printed(home, &score));
        for folder in [adapter, exported] {
            let theirs = computed(&python, "peft_logprobs.py", &[base, folder], &input);
            let (worst, moved) = (apart(&own, &theirs), apart(&bare, &theirs));
            println!("{name}, {model}: finch and PEFT differ by {worst:.1e}; the adapter moves up to {moved:.2}");
            assert!(worst <= TOLERANCE, "{name}: off by {worst}");
            assert!(moved > 0.1, "{name}: the adapter changes too little to compare: {moved}");
        }
    }
}
