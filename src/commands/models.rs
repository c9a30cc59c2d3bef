//! `finch models`: what a model is.

use super::ground::Ground;
use super::print;
use crate::cli::ModelsCommand;
use crate::error::Result;
use crate::model::backend::Backend;
use crate::model::config::{Family, ModelConfig};
use crate::model::digest::DigestCache;
use crate::model::load::{Facts, ModelSource};
use crate::paths::Paths;
use crate::repl::render::bytes;
use crate::text;

pub fn run(ground: &Ground, command: ModelsCommand) -> Result<()> {
    match command {
        ModelsCommand::Show { name } => {
            let source = ModelSource::resolve(name.as_deref().unwrap_or(&ground.config.model.name))?;
            print(&show(&source, &DigestCache::of(&ground.paths))?)
        }
    }
}

fn show(source: &ModelSource, digests: &DigestCache) -> Result<String> {
    let facts = source.facts(digests)?;
    let config = &facts.config;
    let family = match config.family {
        Family::Qwen2 => "Qwen2",
        Family::Qwen3 => "Qwen3",
    };
    let place = match source {
        ModelSource::Builtin => "inside finch".to_string(),
        ModelSource::Folder(path) | ModelSource::Gguf(path) => Paths::display(path),
    };
    let format = facts.gguf.map_or("safetensors".to_string(), |version| format!("GGUF version {version}"));
    let (tokenizer, template) = texts(source);
    let rows = [
        ("model", source.name()),
        ("from", place),
        ("format", format!("{format}, {} of weights", bytes(facts.stored.iter().map(|(_, _, bytes)| bytes).sum()))),
        ("architecture", format!("{family}, {} layers, hidden {}", config.layers, config.hidden_size)),
        (
            "attention",
            format!("{} heads, {} for keys and values, of {}", config.heads, config.kv_heads, config.head_dim),
        ),
        ("feed-forward", config.intermediate_size.to_string()),
        ("parameters", parameters(facts.parameters)),
        ("stored as", stored(&facts)),
        ("vocabulary", format!("{} tokens, {}", config.vocab_size, tied(config))),
        ("tokenizer", tokenizer),
        ("template", template),
        ("context", format!("{} tokens", config.context)),
        ("memory", memory(&facts)),
        ("base", facts.digest),
    ];
    Ok(rows.iter().map(|(what, value)| format!("{what:14}{}\n", text::one_line(value, 200))).collect())
}

/// "Q4_0 in 15 tensors (122 MB), F32 in 11 (0.1 MB)".
fn stored(facts: &Facts) -> String {
    let types = facts.stored.iter().enumerate().map(|(at, (storage, count, size))| {
        let noun = if at == 0 { " tensors" } else { "" };
        format!("{storage} in {count}{noun} ({})", bytes(*size))
    });
    types.collect::<Vec<_>>().join(", ")
}

fn memory(facts: &Facts) -> String {
    let whole = facts.memory.weights + facts.memory.token * facts.config.context as u64;
    let weights = match facts.backend {
        Backend::Candle => "weights in F32",
        Backend::Cpu => "weights as they are stored",
    };
    let learning = match facts.memory.learning {
        0 => String::new(),
        more => format!("; {} more while it trains", bytes(more)),
    };
    format!(
        "{} ({weights}), and {} a token of a chat: {} with the context full{learning}",
        bytes(facts.memory.weights),
        bytes(facts.memory.token),
        bytes(whole)
    )
}

/// What the tokenizer and the template are; scoring ids needs neither, so a model may lack them.
fn texts(source: &ModelSource) -> (String, String) {
    match source.chat_files() {
        Ok(files) => {
            let template = match (files.template.is_own(), files.template.has_thinking()) {
                (false, _) => "none of its own: Qwen's plain turns",
                (true, true) => "its own, with thinking on or off",
                (true, false) => "its own",
            };
            (
                format!("{} ids, {} of them added", files.tokenizer.vocab_size(), files.tokenizer.added_tokens().len()),
                template.to_string(),
            )
        }
        Err(e) => (format!("not usable: {e}"), "not usable".to_string()),
    }
}

fn tied(config: &ModelConfig) -> &'static str {
    if config.tied_embeddings { "output tied to the embeddings" } else { "output apart from the embeddings" }
}

/// "4.2 million".
fn parameters(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}
