//! Tokenizer and chat templates against reference ids: llama.cpp's test strings for Qwen's vocabulary, and what
//! transformers makes of conversations.

mod common;

use std::fs;
use std::path::Path;

use common::reference;
use finch::model::message::Message;
use finch::model::template::ChatTemplate;
use finch::model::tokenizer::Tokenizer;
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
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
        let texts: Vec<&str> = input.split_terminator("\n__ggml_vocab_test__\n").collect();
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
        let jinja = fs::read_to_string(model.join("chat_template.jinja")).unwrap();
        let config = fs::read(model.join("tokenizer_config.json")).unwrap();
        let template = ChatTemplate::from_files(Some(&jinja), Some(&config)).unwrap();
        let chat = template.encode(&tokenizer, &messages(&expected["chat"]), true, None).unwrap();
        assert_eq!(chat, ids(&expected["chat_ids"]), "{}", model.display());
        seen += 1;
    }
    assert!(seen >= 4, "{seen} models");
}

#[test]
fn chats_equal_transformers() {
    let Some(qwen) = reference("qwen") else { return };
    let cases = json(&qwen.join("chat_cases.json"));
    let cases = cases.as_array().unwrap();
    let (mut plain, mut injections) = (0, 0);
    for model in ["qwen2.5", "qwen3"] {
        let tokenizer = tokenizer(&qwen.join(format!("{model}-tokenizer.json")));
        let jinja = fs::read_to_string(qwen.join(format!("{model}-chat_template.jinja"))).unwrap();
        let template = ChatTemplate::from_files(Some(&jinja), None).unwrap();
        assert_eq!(template.has_thinking(), model == "qwen3");
        for case in cases.iter().filter(|case| case["model"] == model) {
            let (messages, expected) = (messages(&case["messages"]), case["text"].as_str().unwrap());
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let thinking = case["enable_thinking"].as_bool();
            let name = format!("{model} {} {prompt} {thinking:?}", case["case"]);
            assert_eq!(template.text(&messages, prompt, thinking).unwrap(), expected, "{name}");
            let found = template.encode(&tokenizer, &messages, prompt, thinking).unwrap();
            assert_eq!(tokenizer.decode_with_control(&found), expected, "{name}");
            if case["ids"].is_null() {
                // The user wrote one end and one start of a turn: the ids have only the template's own.
                for (token, by_user) in [("<|im_start|>", 1), ("<|im_end|>", 1)] {
                    let id = tokenizer.special_id(token).unwrap();
                    let own = expected.matches(token).count() - by_user;
                    assert_eq!(found.iter().filter(|&&i| i == id).count(), own, "{name}: {token}");
                }
                injections += 1;
            } else {
                assert_eq!(found, ids(&case["ids"]), "{name}");
                plain += 1;
            }
        }
    }
    assert_eq!(plain + injections, cases.len());
    assert!(plain > 50 && injections >= 4, "{plain} cases, {injections} injections");
}
