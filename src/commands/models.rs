//! `finch models`: what a model is.

use super::ground::Ground;
use super::print;
use crate::cli::ModelsCommand;
use crate::error::Result;
use crate::model::config::{Family, ModelConfig};
use crate::model::digest::DigestCache;
use crate::model::load::ModelSource;
use crate::paths::Paths;
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
        ModelSource::Folder(folder) => Paths::display(folder),
    };
    let rows = [
        ("model", source.name()),
        ("from", place),
        ("architecture", format!("{family}, {} layers, hidden {}", config.layers, config.hidden_size)),
        (
            "attention",
            format!("{} heads, {} for keys and values, of {}", config.heads, config.kv_heads, config.head_dim),
        ),
        ("feed-forward", config.intermediate_size.to_string()),
        ("parameters", parameters(facts.parameters)),
        ("stored as", facts.types.join(", ")),
        ("vocabulary", format!("{} tokens, {}", config.vocab_size, tied(config))),
        ("context", format!("{} tokens", config.context)),
        ("base", facts.digest),
    ];
    Ok(rows.iter().map(|(what, value)| format!("{what:14}{}\n", text::one_line(value, 200))).collect())
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
