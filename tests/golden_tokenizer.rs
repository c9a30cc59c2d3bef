//! Tokenizer and chat templates against reference ids: llama.cpp's test strings for Qwen's vocabulary, and what
//! transformers makes of conversations. The reference folder is no part of the repository: without it the tests say so.

use std::fs;
use std::path::{Path, PathBuf};

use finch::model::tokenizer::Tokenizer;
use serde_json::Value;

/// `../shared/NAME` beside the checkout, if it is there.
fn reference(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("shared").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("NOT RUN: the reference values (../shared/{name}) are not beside this checkout");
    None
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::from_bytes(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn ids_equal_llama_cpps() {
    let Some(qwen) = reference("qwen") else { return };
    let input = fs::read_to_string(qwen.join("vocab-qwen2.inp")).unwrap();
    let expected = fs::read_to_string(qwen.join("vocab-qwen2.out")).unwrap();
    for file in ["qwen2.5-tokenizer.json", "qwen3-tokenizer.json"] {
        let tokenizer = tokenizer(&qwen.join(file));
        let texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
        let rows: Vec<&str> = expected.lines().collect();
        assert!(texts.len() > 30 && texts.len() == rows.len(), "{} texts, {} rows", texts.len(), rows.len());
        for (text, row) in texts.iter().zip(rows) {
            let row: Vec<u32> = row.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode_text(text).unwrap(), row, "{file}: {text:?}");
        }
    }
}

#[test]
fn decoding_gives_the_text_back() {
    let Some(qwen) = reference("qwen") else { return };
    let tokenizer = tokenizer(&qwen.join("qwen3-tokenizer.json"));
    let text = fs::read_to_string(qwen.join("vocab-qwen2.inp")).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode_text(&text).unwrap()), text);
}

#[test]
fn models_own_tokenizers_match() {
    let Some(golden) = reference("golden/models") else { return };
    let mut seen = 0;
    for model in fs::read_dir(golden).unwrap() {
        let model = model.unwrap().path();
        let expected = &json(&model.join("expected.json"))["tokenizer"];
        let tokenizer = tokenizer(&model.join("tokenizer.json"));
        let text = expected["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode_text(text).unwrap(), ids(&expected["ids"]), "{}", model.display());
        seen += 1;
    }
    assert!(seen >= 4, "{seen} models");
}
