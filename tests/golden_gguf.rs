//! GGUF files against computed values: networks, tokenizers and templates, through the library and the commands.

mod common;
#[path = "common/forward.rs"]
mod forward;
#[path = "common/gguf.rs"]
mod gguf_builder;
#[path = "common/run.rs"]
mod run;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use common::reference;
use finch::adapter::peft::{self, LoraSettings};
use finch::model::Network;
use finch::model::candle::{CandleNetwork, weights};
use finch::model::digest::DigestCache;
use finch::model::gguf::Gguf;
use finch::model::load::{Base, Model, ModelSource};
use finch::model::message::Message;
use finch::model::tokenizer::Tokenizer;
use forward::{check, ids, score};
use gguf_builder::{Builder, with_tokenizer};
use run::{finch, printed};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn source(path: &Path) -> ModelSource {
    ModelSource::resolve(path.to_str().unwrap()).unwrap()
}

fn assert_values(path: &Path, rows: &Value) {
    let base = Base::load(&source(path), &DigestCache::none()).unwrap();
    let mut decoder = base.network.decoder(None).unwrap();
    for row in rows.as_array().unwrap() {
        check(&mut *decoder, row, &base.name);
    }
}

/// Our own: the models of `fixtures/models`, in parts and whole, and what those folders expect.
const OWN: [(&str, &str); 2] = [
    ("gguf/qwen2-untied-f16-F16-00001-of-00003.gguf", "models/qwen2-untied-f16"),
    ("gguf/qwen3-tied-bf16-BF16.gguf", "models/qwen3-tied-bf16"),
];

#[test]
fn files_give_the_values_of_the_folders_that_they_were_made_from() {
    for (file, folder) in OWN {
        assert_values(&fixture(file), &read(&fixture(folder).join("expected.json"))["forward"]);
    }
}

#[test]
fn files_of_all_types_give_the_computed_values() {
    let Some(golden) = reference("golden/gguf") else { return };
    let mut seen = 0;
    for name in ["qwen2-96", "qwen3-256"] {
        let expected = read(&golden.join(format!("{name}.expected.json")));
        for (kind, rows) in expected.as_object().unwrap() {
            assert_values(&golden.join(format!("{name}-{kind}.gguf")), rows);
            seen += 1;
        }
    }
    assert_eq!(seen, 8);
}

#[test]
fn text_and_chats_have_the_ids_of_the_folders() {
    for (file, folder) in OWN {
        let expected = &read(&fixture(folder).join("expected.json"))["tokenizer"];
        let model = Model::load(&source(&fixture(file)), &DigestCache::none()).unwrap();
        assert_eq!(model.tokenizer.encode_text(expected["text"].as_str().unwrap()).unwrap(), ids(&expected["ids"]));
        let chat: Vec<Message> = serde_json::from_value(expected["chat"].clone()).unwrap();
        assert_eq!(model.template.encode(&model.tokenizer, &chat, true, None).unwrap(), ids(&expected["chat_ids"]));
        let original = Model::load(&source(&fixture(folder)), &DigestCache::none()).unwrap();
        assert_eq!(model.generation.eos, original.generation.eos);
        assert_eq!(model.tokenizer.vocab_size(), original.tokenizer.vocab_size());
        assert_eq!(model.tokenizer.added_tokens(), original.tokenizer.added_tokens());
    }
}

/// llama.cpp's test strings and their ids.
fn llama_cpps(qwen: &Path) -> Vec<(String, Vec<u32>)> {
    let input = fs::read_to_string(qwen.join("vocab-qwen2.inp")).unwrap();
    let expected = fs::read_to_string(qwen.join("vocab-qwen2.out")).unwrap();
    let texts: Vec<&str> = input.split_terminator("\n__ggml_vocab_test__\n").collect();
    assert!(texts.len() > 30 && texts.len() == expected.lines().count());
    let rows = expected.lines().map(|row| row.split_whitespace().map(|id| id.parse().unwrap()).collect());
    texts.into_iter().map(str::to_string).zip(rows).collect()
}

#[test]
fn the_vocabulary_of_llama_cpp_gives_its_ids() {
    let Some(qwen) = reference("qwen") else { return };
    let file = Gguf::open(&qwen.join("vocab-qwen2.gguf")).unwrap();
    let tokenizer = file.tokenizer().unwrap();
    for (text, expected) in llama_cpps(&qwen) {
        assert_eq!(tokenizer.encode_text(&text).unwrap(), expected, "{text:?}");
    }
    let ends: Vec<u32> = ["<|endoftext|>", "<|im_end|>"].map(|token| tokenizer.special_id(token).unwrap()).to_vec();
    assert_eq!(file.generation(&tokenizer).unwrap().eos, ends);
    let prompt = file.template().unwrap().encode(&tokenizer, &[Message::user("hi")], true, None).unwrap();
    let said = tokenizer.decode_with_control(&prompt);
    assert!(said.ends_with("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"), "{said}");
    let error = Base::load(&source(&qwen.join("vocab-qwen2.gguf")), &DigestCache::none()).unwrap_err();
    assert!(error.to_string().contains("vocab-qwen2.gguf: tensor token_embd.weight is missing"), "{error}");
}

#[test]
fn full_vocabularies_are_the_same_through_both_formats() {
    let Some(qwen) = reference("qwen") else { return };
    let folder = tempfile::tempdir().unwrap();
    let cases = read(&qwen.join("chat_cases.json"));
    for family in ["qwen2.5", "qwen3"] {
        let json = fs::read(qwen.join(format!("{family}-tokenizer.json"))).unwrap();
        let original = Tokenizer::from_bytes(&json).unwrap();
        let jinja = fs::read_to_string(qwen.join(format!("{family}-chat_template.jinja"))).unwrap();
        let builder = with_tokenizer(Builder::default(), &serde_json::from_slice(&json).unwrap());
        let path = folder.path().join(format!("{family}.gguf"));
        fs::write(&path, builder.text("tokenizer.chat_template", &jinja).bytes()).unwrap();
        let file = Gguf::open(&path).unwrap();
        let tokenizer = file.tokenizer().unwrap();
        assert_eq!(tokenizer.vocab_size(), original.vocab_size());
        assert_eq!(tokenizer.added_tokens(), original.added_tokens());
        for id in (0..original.vocab_size() as u32).step_by(13) {
            assert_eq!(tokenizer.token_bytes(id), original.token_bytes(id), "{family}: {id}");
        }
        for (text, expected) in llama_cpps(&qwen) {
            assert_eq!(tokenizer.encode_text(&text).unwrap(), expected, "{family}: {text:?}");
        }
        let template = file.template().unwrap();
        let mut seen = 0;
        for case in cases.as_array().unwrap().iter().filter(|case| case["model"] == family && !case["ids"].is_null()) {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let (prompt, thinking) = (case["add_generation_prompt"].as_bool(), case["enable_thinking"].as_bool());
            let found = template.encode(&tokenizer, &messages, prompt.unwrap(), thinking).unwrap();
            assert_eq!(found, ids(&case["ids"]), "{family} {}", case["case"]);
            seen += 1;
        }
        assert!(seen > 10, "{family}: {seen} cases");
    }
}

#[test]
fn finch_score_reads_files_and_any_of_their_parts() {
    let expected = read(&fixture("models/qwen2-untied-f16/expected.json"));
    let rows: Vec<Value> = expected["forward"].as_array().unwrap().iter().map(|r| json!({"ids": r["ids"]})).collect();
    let whole = score(&fixture("models/qwen2-untied-f16"), &["--continue", "4"], &rows).unwrap();
    for part in 1..=3 {
        let file = fixture(&format!("gguf/qwen2-untied-f16-F16-0000{part}-of-00003.gguf"));
        let found = score(&file, &["--continue", "4"], &rows).unwrap();
        assert_eq!(found, whole, "F16 and F32 hold the same numbers");
    }
    let file = fixture("gguf/qwen3-tied-bf16-BF16.gguf");
    let text = &read(&fixture("models/qwen3-tied-bf16/expected.json"))["tokenizer"];
    let found = score(&file, &[], &[json!({"text": text["text"]})]).unwrap();
    assert_eq!(found[0]["ids"], text["ids"]);
}

#[test]
fn finch_models_show_says_what_is_inside() {
    let home = tempfile::tempdir().unwrap();
    let file = fixture("gguf/qwen2-untied-f16-F16-00001-of-00003.gguf");
    let shown = printed(home.path(), &["models", "show", file.to_str().unwrap()]);
    for expected in [
        "model         qwen2-untied-f16-F16\n",
        "format        GGUF version 3, ",
        "architecture  Qwen2, 2 layers, hidden 24\n",
        "stored as     F16 in 16 tensors (",
        ", F32 in 11 (",
        "vocabulary    280 tokens, output apart from the embeddings\n",
        "tokenizer     280 ids, 3 of them added\n",
        "template      its own\n",
        "memory        ",
    ] {
        assert!(shown.contains(expected), "{expected:?} in\n{shown}");
    }
}

#[test]
fn finch_trains_on_a_file_and_scores_with_the_adapter() {
    let home = tempfile::tempdir().unwrap();
    let file = fixture("gguf/qwen3-tied-bf16-BF16.gguf");
    let (model, data) = (file.to_str().unwrap(), home.path().join("rows.jsonl"));
    let row = json!({"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]});
    fs::write(&data, format!("{row}\n")).unwrap();
    let rows = [json!({"ids": [5, 6, 7, 8, 9]})];
    let sum = |arguments: &[&str]| -> f64 {
        let scored = score(&file, arguments, &rows).unwrap();
        scored[0]["token_logprobs"].as_array().unwrap()[2..].iter().filter_map(Value::as_f64).sum()
    };
    let (before, digest) = (sum(&[]), Base::load(&source(&file), &DigestCache::none()).unwrap().digest);
    for variant in ["lora", "rslora", "dora"] {
        let adapter = home.path().join(variant);
        let (data, output) = (data.to_str().unwrap(), adapter.to_str().unwrap());
        let arguments =
            ["train", "--model", model, "--data", data, "--objective", "sft", "--output", output, "--steps", "20"];
        let ran = finch(home.path(), &[&arguments[..], &["--learning-rate", "0.01", "--variant", variant]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.error);
        let after = sum(&["--adapter", output]);
        assert!(after > before + 0.5, "{variant}: {before} → {after}");
        let provenance = read(&adapter.join("finch.json"));
        assert!(provenance.to_string().contains(&digest), "{provenance}");
        let config = read(&adapter.join("adapter_config.json"));
        assert_eq!(
            (config["use_rslora"] == true, config["use_dora"] == true),
            (variant == "rslora", variant == "dora")
        );
    }
}

#[test]
fn dora_over_a_file_takes_the_lengths_of_the_dequantised_rows() {
    let mut files = vec![fixture("gguf/qwen3-tied-bf16-BF16.gguf")];
    if let Some(golden) = reference("golden/gguf") {
        files.extend(
            ["qwen2-96-Q8_0", "qwen2-96-Q4_0", "qwen3-256-Q8_0"].map(|name| golden.join(name).with_extension("gguf")),
        );
    }
    for file in files {
        let base = Base::load(&source(&file), &DigestCache::none()).unwrap();
        let config = base.network.config();
        let settings = LoraSettings { rank: 3, alpha: 6.0, use_dora: true, ..LoraSettings::default() };
        let mut lora = peft::init(&*base.network, &settings, 1).unwrap();
        for (i, value) in lora.data.iter_mut().enumerate() {
            *value = *value * (1.0 + 0.3 * (i as f32).sin()) + 0.05 * (i as f32 * 1.7).cos();
        }
        // Each row of W + s · B A, made as long as its magnitude, in place of W: dequantised here, in f64.
        let (weights, slots) = (Gguf::open(&file).unwrap().into_checkpoint(), weights::slots(config).unwrap());
        let mut params: Vec<f32> = slots.iter().flat_map(|s| weights.tensor(&s.name, &s.shape).unwrap()).collect();
        for module in &lora.modules {
            let name = format!("{}.weight", module.path());
            let start = slots.iter().find(|slot| slot.name == name).unwrap().start;
            let (n, rank, a, b) = (module.in_features, module.rank, lora.a(module), lora.b(module));
            for (o, magnitude) in lora.magnitude(module).unwrap().iter().enumerate() {
                let row = &mut params[start + o * n..][..n];
                let low =
                    |i: usize| (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * n + i])).sum::<f64>();
                let moved: Vec<f64> = (0..n).map(|i| f64::from(row[i]) + f64::from(module.scale) * low(i)).collect();
                let length = moved.iter().map(|v| v * v).sum::<f64>().sqrt();
                row.iter_mut().zip(moved).for_each(|(to, v)| *to = (f64::from(*magnitude) * v / length) as f32);
            }
        }
        let merged = CandleNetwork::from_params(config, &params, &Device::Cpu).unwrap();
        let ids: Vec<u32> = (0..40).map(|i| i * 37 % 270).collect();
        let found = base.network.decoder(Some(&lora)).unwrap().score(&ids).unwrap();
        let wanted = merged.decoder(None).unwrap().score(&ids).unwrap();
        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{}: off by {worst:.1e}", base.name);
        assert!(worst < 1e-4, "{}: off by {worst}", base.name);
        let bare = base.network.decoder(None).unwrap().score(&ids).unwrap();
        assert!(bare.iter().zip(&found).any(|(a, b)| (a - b).abs() > 0.1), "it changes something");
    }
}
