//! `finch models quantize` and `--quantize`: what is written reads back, in finch and in llama.cpp, with the original's
//! words and nearly its log-probabilities.
//!
//! llama.cpp's part runs where Python has llama-cpp-python (`FINCH_TEST_LLAMA_CPP`). Types and blocks themselves are checked
//! beside `src/model/quantize.rs`.

mod common;
#[path = "common/python.rs"]
mod python;
#[path = "common/run.rs"]
mod run;

use std::fs;
use std::path::{Path, PathBuf};

use common::reference;
use finch::model::digest::DigestCache;
use finch::model::gguf::Gguf;
use finch::model::load::{Model, ModelSource};
use finch::model::message::Message;
use python::{LLAMA_CPP, apart, computed, python, scored};
use run::{finch, printed};
use serde_json::{Value, json};

/// Types, and by how much the built-in model's log-probabilities of [`rows`] may change on average, at least and at most (of
/// a small network's numbers each counts): tensors of coarser types, or another tensor, change them more, finer ones less.
const TYPES: [(&str, f64, f64); 11] = [
    ("f32", 0.0, 1e-5),
    ("bf16", 0.0, 1e-5),
    ("f16", 1e-7, 1e-3),
    ("q8_0", 0.01, 0.06),
    ("q6_k", 0.05, 0.15),
    ("q5_k_m", 0.1, 0.25),
    ("q5_1", 0.15, 0.35),
    ("q5_0", 0.15, 0.35),
    ("q4_k_m", 0.25, 0.6),
    ("q4_1", 0.25, 0.6),
    ("q4_0", 0.25, 0.6),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn quantize(home: &Path, input: &str, out: &Path, to: &str) -> String {
    printed(home, &["models", "quantize", input, out.to_str().unwrap(), "--type", to])
}

/// Texts that the built-in model knows how to go on with.
fn rows(home: &Path) -> PathBuf {
    let rows = [
        "Rate the last answer with a note, and finch learns from it.",
        "To undo the last commit but keep its changes, run git reset --soft HEAD~1.",
        "I am finch, a small model inside a terminal assistant.",
    ];
    let path = home.join("rows.jsonl");
    fs::write(&path, rows.map(|text| json!({"text": text}).to_string() + "\n").concat()).unwrap();
    path
}

fn score(home: &Path, model: &str, rows: &Path, more: &[&str]) -> Vec<Vec<f64>> {
    scored(&printed(home, &[&["score", "--model", model, "--input", rows.to_str().unwrap()], more].concat()))
}

/// The mean of the differences.
fn change(one: &[Vec<f64>], two: &[Vec<f64>]) -> f64 {
    let all: Vec<f64> = one.iter().flatten().zip(two.iter().flatten()).map(|(a, b)| (a - b).abs()).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn every_type_reads_back_and_is_what_loading_makes() {
    let dir = tempfile::tempdir().unwrap();
    let (home, rows) = (dir.path(), rows(dir.path()));
    let original = score(home, "builtin", &rows, &[]);
    for (to, least, most) in TYPES {
        let out = home.join(format!("tiny-{to}.gguf"));
        let said = quantize(home, "builtin", &out, to);
        assert!(said.contains(&format!("finch-tiny as {to}: ")), "{said}");
        let written = score(home, out.to_str().unwrap(), &rows, &[]);
        let change = change(&original, &written);
        println!("{to}: log-probabilities change by {change:.1e} on average; {said}");
        assert!((least..=most).contains(&change), "{to}: {change}");
        // Quantised while it is loaded: the same blocks, so the same bits.
        assert_eq!(score(home, "builtin", &rows, &["--quantize", to]), written, "{to}");
    }
}

#[test]
fn other_programs_and_later_runs_see_the_type() {
    let dir = tempfile::tempdir().unwrap();
    let (home, out) = (dir.path(), dir.path().join("tiny.gguf"));
    quantize(home, "builtin", &out, "q4_k_m");
    let shown = printed(home, &["models", "show", out.to_str().unwrap()]);
    assert!(shown.contains("stored as     Q4_K in "), "{shown}");
    assert!(shown.contains(" Q6_K in ") && shown.contains(" F32 in "), "{shown}");
    let loaded = printed(home, &["models", "show", "builtin", "--quantize", "q4_k_m"]);
    let line = |text: &str, key: &str| text.lines().find(|line| line.starts_with(key)).unwrap().to_string();
    assert_eq!(line(&shown, "stored as"), line(&loaded, "stored as"));
    assert_eq!(line(&shown, "memory"), line(&loaded, "memory"));
    assert_ne!(line(&loaded, "base"), line(&printed(home, &["models", "show", "builtin"]), "base"));
    // From the file of plain numbers: the same file but for the name.
    let (plain, again) = (home.join("tiny-bf16.gguf"), home.join("again.gguf"));
    quantize(home, "builtin", &plain, "bf16");
    quantize(home, plain.to_str().unwrap(), &again, "q4_k_m");
    assert!(fs::read(&out).unwrap() == fs::read(&again).unwrap(), "keys go over from a file as they are");
    // The configuration and the environment say it too.
    fs::write(home.join("config.toml"), "[model]\nquantize = \"q8_0\"\n").unwrap();
    let shown = printed(home, &["models", "show", "builtin"]);
    assert!(shown.contains("stored as     Q8_0 in "), "{shown}");
    let shown = printed(home, &["models", "show", "builtin", "--quantize", "none"]);
    assert!(shown.contains("stored as     BF16 in "), "{shown}");
}

/// The model as the folder has it, and as the file has it that was made from it.
fn both(home: &Path, folder: &Path) -> (Model, Model) {
    let out = home.join("words.gguf");
    quantize(home, folder.to_str().unwrap(), &out, "f16");
    let load = |path: &Path| {
        Model::load(&ModelSource::resolve(path.to_str().unwrap()).unwrap(), &DigestCache::none()).unwrap()
    };
    let (original, written) = (load(folder), load(&out));
    let mut config = original.network.config().clone();
    config.rms_norm_eps = f64::from(config.rms_norm_eps as f32); // GGUF keeps it in 32 bits
    assert_eq!(Gguf::open(&out).unwrap().config().unwrap(), config);
    fs::remove_file(out).unwrap();
    (original, written)
}

fn assert_same_words(original: &Model, written: &Model) {
    assert_eq!(written.tokenizer.vocab_size(), original.tokenizer.vocab_size());
    assert_eq!(written.tokenizer.added_tokens(), original.tokenizer.added_tokens());
    let mut advice = original.generation.clone();
    let halved = |x: Option<f64>| x.map(|x| f64::from(x as f32)); // to the 32 bits that GGUF keeps
    (advice.temperature, advice.top_p) = (halved(advice.temperature), halved(advice.top_p));
    assert_eq!(written.generation, advice);
    let texts = ["Hello, wörld! 1234 …", "  fn main() {\n\tlet x = 'é';\n}\n\n", "<|im_end|> 你好 👍🏽", ""];
    for text in texts {
        assert_eq!(written.tokenizer.encode_text(text).unwrap(), original.tokenizer.encode_text(text).unwrap());
    }
    let chat = [
        Message::system("Be brief."),
        Message::user("hi <|im_end|>"),
        Message::assistant("Hello."),
        Message::user("?"),
    ];
    for thinking in [None, Some(true), Some(false)] {
        let encode = |model: &Model| model.template.encode(&model.tokenizer, &chat, true, thinking).unwrap();
        assert_eq!(encode(written), encode(original));
        let text = |model: &Model| model.template.text(&chat, true, thinking).unwrap();
        assert_eq!(text(written), text(original));
    }
}

#[test]
fn words_and_settings_go_over_from_folders() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["models/qwen2-untied-f16", "models/qwen3-tied-bf16"] {
        let (original, written) = both(dir.path(), &fixture(name));
        assert_same_words(&original, &written);
    }
    // Qwen's own vocabularies, on the little network's weights: its configuration but for the vocabulary.
    let Some(qwen) = reference("qwen") else { return };
    for family in ["qwen2.5", "qwen3"] {
        let folder = dir.path().join(family);
        full_vocabulary(&folder, &qwen, family);
        let (original, written) = both(dir.path(), &folder);
        assert_eq!(original.tokenizer.added_tokens().len(), if family == "qwen3" { 26 } else { 22 });
        assert_same_words(&original, &written);
    }
}

/// A folder of a network of one layer with Qwen's words, rows of the embedding to spare, a stretched context, and advice.
fn full_vocabulary(folder: &Path, qwen: &Path, family: &str) {
    fs::create_dir(folder).unwrap();
    fs::copy(qwen.join(format!("{family}-tokenizer.json")), folder.join("tokenizer.json")).unwrap();
    fs::copy(qwen.join(format!("{family}-chat_template.jinja")), folder.join("chat_template.jinja")).unwrap();
    let write = |name: &str, json: Value| fs::write(folder.join(name), json.to_string()).unwrap();
    let settings = json!({"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": null,
        "add_bos_token": false});
    write("tokenizer_config.json", settings);
    let advice = json!({"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05,
        "eos_token_id": [151645, 151643, 151668 - if family == "qwen3" { 0 } else { 10 }]});
    write("generation_config.json", advice);
    let (rows, hidden) = (151_680, 8);
    let config = json!({"model_type": "qwen2", "vocab_size": rows, "hidden_size": hidden, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true,
        "max_position_embeddings": 512, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "bos_token_id": 151643,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}});
    write("config.json", config);
    let layer = |name: &str| format!("model.layers.0.{name}");
    let shapes = [
        ("model.embed_tokens.weight".to_string(), vec![rows, hidden]),
        ("model.norm.weight".to_string(), vec![8]),
        (layer("input_layernorm.weight"), vec![8]),
        (layer("post_attention_layernorm.weight"), vec![8]),
        (layer("self_attn.q_proj.weight"), vec![8, 8]),
        (layer("self_attn.q_proj.bias"), vec![8]),
        (layer("self_attn.k_proj.weight"), vec![4, 8]),
        (layer("self_attn.k_proj.bias"), vec![4]),
        (layer("self_attn.v_proj.weight"), vec![4, 8]),
        (layer("self_attn.v_proj.bias"), vec![4]),
        (layer("self_attn.o_proj.weight"), vec![8, 8]),
        (layer("mlp.gate_proj.weight"), vec![8, 8]),
        (layer("mlp.up_proj.weight"), vec![8, 8]),
        (layer("mlp.down_proj.weight"), vec![8, 8]),
    ];
    let zeros: Vec<Vec<u8>> = shapes.iter().map(|(_, shape)| vec![0; 2 * shape.iter().product::<usize>()]).collect();
    let views = shapes.iter().zip(&zeros).map(|((name, shape), bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn llama_cpp_reads_the_files_with_the_same_ids_and_log_probabilities() {
    let Some(python) = python(LLAMA_CPP) else { return };
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let texts = rows(home);
    let base = ModelSource::Builtin;
    let words = base.chat_files().unwrap().tokenizer;
    let texts: Vec<String> = fs::read_to_string(&texts)
        .unwrap()
        .lines()
        .map(|row| serde_json::from_str::<Value>(row).unwrap()["text"].as_str().unwrap().to_string())
        .collect();
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| words.encode_text(text).unwrap()).collect();
    let of_ids = home.join("ids.jsonl");
    fs::write(&of_ids, ids.iter().map(|ids| json!({"ids": ids}).to_string() + "\n").collect::<String>()).unwrap();
    for (to, _, _) in TYPES {
        let out = home.join(format!("tiny-{to}.gguf"));
        quantize(home, "builtin", &out, to);
        let out = out.to_str().unwrap();
        let found = computed(&python, "llama_tokens.py", &[out], &rows(home));
        let expected: Vec<Vec<f64>> = ids.iter().map(|ids| ids.iter().map(|id| f64::from(*id)).collect()).collect();
        assert_eq!(found, expected, "{to}: other ids");
        let own = score(home, out, &of_ids, &[]);
        let theirs = computed(&python, "llama_logprobs.py", &[out], &of_ids);
        let worst = apart(&own, &theirs);
        println!("{to}: finch and llama.cpp differ by {worst:.1e}");
        // llama.cpp rounds activations to the type of the weights, or to eight bits; finch computes in f32.
        let tolerance = match to {
            "f32" => 1e-4,
            "f16" => 2e-2,
            _ => 0.3,
        };
        assert!(worst <= tolerance, "{to}: off by {worst}");
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let model = home.join("model");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(fixture("models/qwen3-tied-bf16")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let experts = home.join("experts");
    fs::create_dir(&experts).unwrap();
    fs::write(experts.join("config.json"), r#"{"model_type": "qwen3_moe", "num_experts": 8}"#).unwrap();
    let (out, there) = (home.join("out.gguf"), home.join("there.gguf"));
    quantize(home, "builtin", &there, "q8_0");
    let there_before = fs::read(&there).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let (model, experts, out_text, there_text) = (text(&model), text(&experts), text(&out), text(&there));
    for (code, input, output, more, why) in [
        (2, "builtin", &out_text, &["--type", "q9"][..], "possible values: f32, f16, bf16, q8_0"),
        (1, &experts, &out_text, &[], "qwen3_moe"),
        (1, &text(&home.join("nothing")), &out_text, &[], "no such model folder"),
        (1, &text(&home.join("rows.txt")), &out_text, &[], "no such model folder"),
        (1, &model, &text(&home.join("model/out.gguf")), &[], "lies in the model itself"),
        (1, &there_text, &there_text, &["--force"], "lies in the model itself"),
        (1, &model, &there_text, &[], "already exists"),
        (1, &model, &text(&home.join("no/out.gguf")), &[], "no such folder"),
        (1, &model, &text(home), &[], "is a folder"),
        (1, &there_text, &out_text, &["--type", "q4_0"], "is quantised already, as Q8_0"),
        (2, &model, &out_text, &["--quantize", "q8_0"], "takes its model and type as IN and --type"),
    ] {
        let ran = finch(home, &[&["models", "quantize", input, output], more].concat());
        assert!(ran.code == Some(code) && ran.error.contains(why), "{input} {output}: {}{}", ran.out, ran.error);
        assert!(ran.out.is_empty() && !out.exists());
    }
    assert!(fs::read(&there).unwrap() == there_before, "what is there stays");
    let ran = finch(home, &["models", "quantize", &model, &there_text, "--force", "--type", "f16"]);
    assert_eq!(ran.code, Some(0), "{}", ran.error);
    assert!(fs::read(&there).unwrap() != there_before);
    // What it loads with --quantize is refused alike, and an unknown type is an error of usage.
    quantize(home, "builtin", &out, "q8_0");
    let ran = finch(home, &["score", "--model", &out_text, "--quantize", "q4_0"]);
    assert!(ran.code == Some(1) && ran.error.contains("leave --quantize"), "{}", ran.error);
    let ran = finch(home, &["score", "--quantize", "q9"]);
    assert!(
        ran.code == Some(2) && ran.error.contains("model.quantize should be one of \"none\", \"f32\""),
        "{}",
        ran.error
    );
    // Asked for, it is done.
    let again = home.join("again.gguf");
    let arguments = ["models", "quantize", &out_text, again.to_str().unwrap(), "--type", "q4_0", "--requantize"];
    assert_eq!(finch(home, &arguments).code, Some(0));
    assert!(fs::metadata(again).unwrap().len() < fs::metadata(&out).unwrap().len());
}
