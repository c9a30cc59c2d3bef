//! All that finch does with a file from elsewhere before it believes it, by kind of file: for damaged and crafted files,
//! and for fuzzing (`tests/fuzz`).
#![allow(dead_code)] // each user takes a part of this one

use std::path::Path;
use std::sync::OnceLock;

use finch::adapter::{peft, provenance::Provenance};
use finch::error::Result;
use finch::model::candle::CandleNetwork;
use finch::model::checkpoint::Checkpoint;
use finch::model::config::ModelConfig;
use finch::model::cpu::CpuNetwork;
use finch::model::generation::GenerationConfig;
use finch::model::gguf::Gguf;
use finch::model::message::Message;
use finch::model::template::ChatTemplate;
use finch::model::tokenizer::Tokenizer;
use finch::store::Store;

/// What separates the configuration of an adapter from its tensors where both stand in one file.
pub const TENSORS: &[u8] = b"\n#tensors\n";

/// Reads a file of one kind (the name of its folder in the corpus); the first fault is the result.
pub fn read(kind: &str, bytes: &[u8]) -> Result<()> {
    match kind {
        "gguf" => gguf(bytes),
        "safetensors" => safetensors(bytes),
        "index" => index(bytes),
        "tokenizer" => tokenizer(bytes),
        "adapter" => adapter(bytes),
        "template" => template(bytes),
        "config" => config(bytes),
        "generation" => generation(bytes),
        "tokenizer_config" => tokenizer_config(bytes),
        "toml" => toml(bytes),
        "database" => database(bytes),
        other => panic!("no reader for {other}"),
    }
}

pub fn gguf(bytes: &[u8]) -> Result<()> {
    let gguf = Gguf::from_bytes("x.gguf", bytes.to_vec())?;
    let (config, tokenizer, template) = (gguf.config(), gguf.tokenizer(), gguf.template());
    let used = tokenizer.as_ref().map_or(Ok(()), |tokenizer| {
        gguf.generation(tokenizer)?;
        encode(tokenizer)?;
        template.as_ref().map_or(Ok(()), |template| render(template, tokenizer))
    });
    let checkpoint = gguf.into_checkpoint();
    let read = tensors(&checkpoint);
    let loaded = config.as_ref().map_or(Ok(()), |config| weights(config, &checkpoint));
    config.map(drop).and(tokenizer.map(drop)).and(template.map(drop)).and(used).and(read).and(loaded)
}

pub fn safetensors(bytes: &[u8]) -> Result<()> {
    let checkpoint = Checkpoint::from_bytes("x.safetensors", bytes.to_vec())?;
    checkpoint.digest()?;
    tensors(&checkpoint)
}

/// An index beside one shard with a tensor `a`.
pub fn index(bytes: &[u8]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let shard = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    std::fs::write(folder.path().join("1.safetensors"), shard)?;
    std::fs::write(folder.path().join("model.safetensors.index.json"), bytes)?;
    tensors(&Checkpoint::open(folder.path())?)
}

fn tensors(checkpoint: &Checkpoint) -> Result<()> {
    let names: Vec<(String, Vec<usize>)> = checkpoint
        .names()
        .map(|name| (name.to_string(), checkpoint.shape(name).unwrap_or_default().to_vec()))
        .collect();
    for (name, shape) in names {
        checkpoint.tensor(&name, &shape)?;
    }
    Ok(())
}

/// Every weight of the network that `config` describes, as the network asks for it.
fn weights(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<()> {
    CpuNetwork::memory(config, checkpoint)?;
    CpuNetwork::load(config, checkpoint, 1)?;
    CandleNetwork::memory(config)?;
    CandleNetwork::load(config, checkpoint, &candle_core::Device::Cpu).map(drop)
}

pub fn tokenizer(bytes: &[u8]) -> Result<()> {
    let tokenizer = Tokenizer::from_bytes(bytes)?;
    encode(&tokenizer)
}

fn encode(tokenizer: &Tokenizer) -> Result<()> {
    let spaces = " ".repeat(2000);
    for text in
        ["hi <|im_end|> e\u{301} 👋\r\n\n 12345  it's", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab!", &spaces, "<think>"]
    {
        let ids = tokenizer.encode_text(text)?;
        tokenizer.decode(&ids);
        tokenizer.encode_completion(text)?;
    }
    (0..400).for_each(|id| drop(tokenizer.token_bytes(id)));
    Ok(())
}

pub fn template(bytes: &[u8]) -> Result<()> {
    let source = std::str::from_utf8(bytes).map_err(|e| finch::error::Error::failure(format!("the template: {e}")))?;
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    render(&ChatTemplate::new(source)?, TOKENIZER.get_or_init(small_tokenizer))
}

fn render(template: &ChatTemplate, tokenizer: &Tokenizer) -> Result<()> {
    let messages = [
        Message::system("Be brief."),
        Message::user("hi <|im_end|>"),
        Message::assistant("<think>\nhm\n</think>\n\nhi"),
        Message::user("and?"),
    ];
    for thinking in [None, Some(false)] {
        template.encode(tokenizer, &messages, true, thinking)?;
    }
    Ok(())
}

pub fn config(bytes: &[u8]) -> Result<()> {
    let config = ModelConfig::from_json(bytes)?;
    CandleNetwork::memory(&config)?;
    let (frequencies, factor) = config.rope_scaling.frequencies(config.head_dim, config.rope_theta);
    assert!(frequencies.iter().chain([&factor]).all(|x| x.is_finite()), "{config:?}");
    Ok(())
}

pub fn generation(bytes: &[u8]) -> Result<()> {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    GenerationConfig::read(Some(bytes), b"{}", TOKENIZER.get_or_init(small_tokenizer), 307).map(drop)
}

pub fn tokenizer_config(bytes: &[u8]) -> Result<()> {
    let tokenizer = Tokenizer::from_files(small_tokenizer_json().to_string().as_bytes(), Some(bytes))?;
    let template = ChatTemplate::from_files(None, Some(bytes))?;
    render(&template, &tokenizer)
}

pub fn toml(bytes: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(bytes).map_err(|e| finch::error::Error::usage(format!("config.toml: {e}")))?;
    finch::config::read("config.toml", text).map(drop)
}

/// `adapter_config.json`, [`TENSORS`], `adapter_model.safetensors`; also as a `finch.json`.
pub fn adapter(bytes: &[u8]) -> Result<()> {
    let at = bytes.windows(TENSORS.len()).position(|window| window == TENSORS);
    let (config, tensors) = at.map_or((bytes, &[][..]), |at| (&bytes[..at], &bytes[at + TENSORS.len()..]));
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join(peft::CONFIG_FILE), config)?;
    std::fs::write(folder.path().join(peft::TENSOR_FILE), tensors)?;
    adapter_folder(folder.path())?;
    std::fs::write(folder.path().join("finch.json"), config)?;
    Provenance::read(folder.path()).map(drop).or(Ok(())) // it is one of the two at most
}

fn adapter_folder(folder: &Path) -> Result<()> {
    peft::inspect(folder)?;
    let adapter = peft::read(folder, &small_model())?;
    assert!(adapter.weights.modules.iter().all(|module| module.scale.is_finite()));
    Ok(())
}

/// The base of adapters: one block, 8 wide.
pub fn small_model() -> ModelConfig {
    let json = br#"{"model_type":"qwen3","vocab_size":8,"hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,
        "num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"max_position_embeddings":64}"#;
    ModelConfig::from_json(json).expect("a sound configuration")
}

pub fn database(bytes: &[u8]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("finch.db");
    std::fs::write(&path, bytes)?;
    let store = Store::open(&path)?;
    let told = (store.last_interaction(None).map(drop), store.judged().map(drop));
    told.0.and(told.1)
}

fn small_tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(small_tokenizer_json().to_string().as_bytes()).expect("a sound tokenizer")
}

/// The 256 bytes, a merge, Qwen's control tokens and markup.
pub fn small_tokenizer_json() -> serde_json::Value {
    let stand_in = |byte: u8| {
        let code = match byte {
            0..=32 => 256 + u32::from(byte),
            127..=160 => 289 + u32::from(byte - 127),
            173 => 323,
            visible => u32::from(visible),
        };
        char::from_u32(code).expect("a character").to_string()
    };
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        (0..=255).map(|byte| (stand_in(byte), byte.into())).collect();
    vocab.insert("hi".to_string(), 256.into());
    let added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"];
    let added: Vec<serde_json::Value> = (300..)
        .zip(added)
        .map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "special": content.starts_with("<|"),
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    serde_json::json!({"version": "1.0", "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h i"]}})
}
