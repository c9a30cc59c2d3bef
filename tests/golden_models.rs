//! The network against transformers and PEFT: log-probabilities, logits and greedy choices of small random models, alone
//! and under adapters, through the library and through `finch score`.

mod common;
#[path = "common/forward.rs"]
mod forward;

use std::fs;
use std::path::Path;

use common::{computed_values, subfolders};
use finch::adapter::peft;
use finch::model::digest::DigestCache;
use finch::model::load::{Base, ModelSource};
use forward::{assert_close, assert_greedy, check, floats, ids, score, tolerance};
use serde_json::{Value, json};

fn base(folder: &Path) -> Base {
    let source = ModelSource::resolve(folder.to_str().unwrap()).unwrap();
    Base::load(&source, &DigestCache::none()).unwrap()
}

fn expected(folder: &Path) -> Vec<Value> {
    let json: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    json["forward"].as_array().unwrap().clone()
}

#[test]
fn models_give_the_computed_values() {
    for values in computed_values() {
        for folder in subfolders(&values.join("models")) {
            let base = base(&folder);
            let mut decoder = base.network.decoder(None).unwrap();
            for row in expected(&folder) {
                check(&mut *decoder, &row, &base.name);
            }
        }
    }
}

#[test]
fn stretched_contexts_give_the_computed_values() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut seen = 0;
    for entry in fs::read_dir(fixtures.join("rope")).unwrap() {
        let path = entry.unwrap().path();
        let case: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let weights = fixture(case["base"].as_str().unwrap()).join("model.safetensors");
        fs::copy(weights, folder.path().join("model.safetensors")).unwrap();
        let (new, mut old) = (case["config"].clone(), case["config"].clone());
        old["rope_scaling"] = old.as_object_mut().unwrap().remove("rope_parameters").unwrap();
        old["rope_theta"] = old["rope_scaling"].as_object_mut().unwrap().remove("rope_theta").unwrap();
        old["rope_scaling"]["type"] = old["rope_scaling"].as_object_mut().unwrap().remove("rope_type").unwrap();
        for (spelling, config) in [("transformers 5", new), ("transformers 4", old)] {
            fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let mut decoder = base(folder.path()).network.decoder(None).unwrap();
            for row in case["forward"].as_array().unwrap() {
                check(&mut *decoder, row, &format!("{name}, {spelling}"));
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn adapters_give_the_computed_values() {
    for values in computed_values() {
        for folder in subfolders(&values.join("adapters")) {
            let name = folder.file_name().unwrap().to_str().unwrap().to_string();
            let (model, _) = name.split_once("--").unwrap();
            let base = base(&values.join("models").join(model));
            let adapter = peft::read(&folder, base.network.config()).unwrap();
            let mut decoder = base.network.decoder(Some(&adapter.weights)).unwrap();
            for row in expected(&folder) {
                check(&mut *decoder, &row, &name);
            }
        }
    }
}

#[test]
fn finch_score_prints_the_computed_values() {
    for values in computed_values() {
        let model = values.join("models/qwen3-tied-bf16");
        let adapter = values.join("adapters/qwen3-tied-bf16--rslora");
        for (folder, arguments) in [(&model, vec![]), (&adapter, vec!["--adapter", adapter.to_str().unwrap()])] {
            let expected = expected(folder);
            let tokens = expected[0]["greedy"].as_array().unwrap().len().to_string();
            let rows: Vec<Value> = expected.iter().map(|row| json!({"ids": row["ids"]})).collect();
            let arguments = [&["--continue", &tokens], arguments.as_slice()].concat();
            let scored = score(&model, &arguments, &rows).unwrap();
            assert_eq!(scored.len(), expected.len());
            for (found, row) in scored.iter().zip(&expected) {
                let what = format!("{} tokens", ids(&row["ids"]).len());
                assert_eq!(found["ids"], row["ids"]);
                assert_eq!(found["token_logprobs"][0], Value::Null);
                let logprobs: Vec<f32> = floats(&found["token_logprobs"]).into_iter().map(|v| v as f32).collect();
                assert_close(&logprobs, &floats(&row["token_logprobs"]), tolerance(logprobs.len()), &what);
                assert_greedy(&ids(&found["greedy"]), row, &what);
            }
        }
    }
}

#[test]
fn finch_score_reads_text_and_conversations() {
    for values in computed_values() {
        for model in subfolders(&values.join("models")) {
            let json: Value = serde_json::from_slice(&fs::read(model.join("expected.json")).unwrap()).unwrap();
            let tokenizer = &json["tokenizer"];
            let rows = [json!({"text": tokenizer["text"]}), json!({"messages": tokenizer["chat"]})];
            let scored = score(&model, &[], &rows).unwrap();
            assert_eq!(scored[0]["ids"], tokenizer["ids"]);
            assert_eq!(scored[1]["ids"], tokenizer["chat_ids"]);
            assert_eq!(scored[0]["greedy"], json!([]));
        }
    }
}

#[test]
fn finch_score_needs_no_tokenizer_for_ids() {
    let from = fixture("qwen2-untied-f16");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    assert_eq!(score(folder.path(), &[], &[json!({"ids": [1, 2]})]).unwrap().len(), 1);
    let error = score(folder.path(), &[], &[json!({"text": "x"})]).unwrap_err();
    assert!(error.contains("tokenizer.json is missing"), "{error}");
}

#[test]
fn finch_score_scores_an_answer_with_the_end_of_its_turn() {
    let model = fixture("qwen3-tied-bf16");
    let question = json!({"role": "user", "content": "sing"});
    let rows =
        [json!({"messages": [question]}), json!({"messages": [question, {"role": "assistant", "content": "no"}]})];
    let scored = score(&model, &[], &rows).unwrap();
    let (prompt, whole) = (ids(&scored[0]["ids"]), ids(&scored[1]["ids"]));
    assert!(whole.starts_with(&prompt) && whole.len() > prompt.len());
    assert_eq!(whole.last(), Some(&279), "<|im_end|>");
}

#[test]
fn finch_score_names_the_bad_row() {
    let model = fixture("qwen2-untied-f16");
    for (row, expected) in [
        (json!({"ids": [280]}), "rows.jsonl:2: ids[0] is 280; the model's token ids go from 0 to 279"),
        (json!({"ids": []}), "rows.jsonl:2: the row holds no tokens"),
        (json!({"id": [1]}), "rows.jsonl:2: a row needs exactly one of"),
        (json!({"ids": [1], "text": "x"}), "rows.jsonl:2: a row needs exactly one of"),
        (json!({"ids": vec![1; 600]}), "600 tokens and 0 to continue with are more than the model's context of 512"),
    ] {
        let error = score(&model, &[], &[json!({"ids": [1, 2]}), row]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

fn fixture(model: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model)
}
