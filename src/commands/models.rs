//! `finch models`: what a model is, and the same model with smaller weights.

use std::io::stderr;
use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ground::Ground;
use super::{print, say};
use crate::cli::ModelsCommand;
use crate::error::Result;
use crate::model::backend::Backend;
use crate::model::config::{Family, ModelConfig};
use crate::model::convert::{self, Written};
use crate::model::digest::DigestCache;
use crate::model::load::{Facts, ModelSource};
use crate::model::storage::Storage;
use crate::paths::Paths;
use crate::repl::render::{bytes, duration};
use crate::repl::terminal;
use crate::text;

pub fn run(ground: &Ground, command: ModelsCommand) -> Result<()> {
    match command {
        ModelsCommand::Show { name } => {
            let mut model = ground.config.model.clone();
            model.name = name.unwrap_or(model.name);
            print(&show(&model.source()?, &DigestCache::of(&ground.paths))?)
        }
        ModelsCommand::Quantize { input, output, to, force, requantize } => {
            let options = convert::Options { to, replace: force, again: requantize };
            print(&quantize(&ModelSource::resolve(&input)?, &output, options)?)
        }
    }
}

/// Writes the file and says what came of it; how far it is goes to standard error.
fn quantize(source: &ModelSource, out: &Path, options: convert::Options) -> Result<String> {
    let started = Instant::now();
    let terminal = terminal::is_capable(&stderr());
    let bar = ProgressBar::with_draw_target(
        None,
        if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
    );
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {elapsed}, {eta} left") {
        bar.set_style(style);
    }
    let mut tenths = 0;
    let written = convert::write(source, out, options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        // Plain lines where there is no terminal, not many.
        let now = done * 10 / total.max(1);
        if !terminal && now > tenths {
            say(&format!("{} of {} written\n", bytes(done), bytes(total)));
            tenths = now;
        }
    });
    bar.finish_and_clear();
    let Written { before, after, stored } = written?;
    let taken = duration(started.elapsed().as_secs_f64());
    let (name, out) = (source.name(), Paths::display(out));
    let line = format!(
        "{name} as {}: {} of weights became {out}, {} ({}), in {taken}",
        options.to,
        bytes(before),
        bytes(after),
        types(&stored)
    );
    Ok(format!("{}\n", text::sanitize(&line)))
}

fn show(source: &ModelSource, digests: &DigestCache) -> Result<String> {
    let facts = source.facts(digests)?;
    let config = &facts.config;
    let family = match config.family {
        Family::Qwen2 => "Qwen2",
        Family::Qwen3 => "Qwen3",
    };
    let place = match source.files() {
        ModelSource::Folder(path) | ModelSource::Gguf(path) => Paths::display(path),
        _ => "inside finch".to_string(),
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
        ("stored as", types(&facts.stored)),
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
fn types(stored: &[(Storage, usize, u64)]) -> String {
    let types = stored.iter().enumerate().map(|(at, (storage, count, size))| {
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
