//! `finch score`: log-probability of every token of given text, one JSON row in, one out.

use std::sync::Arc;

use serde::Serialize;

use super::ground::Ground;
use super::{print, say};
use crate::adapter::switch::{self, Opened};
use crate::cli::ScoreArgs;
use crate::error::{Context, Error, Result};
use crate::jsonl::{Lines, Row};
use crate::model::digest::DigestCache;
use crate::model::load::{Base, ChatFiles, ModelSource};
use crate::model::message::{Message, Role};
use crate::model::sampling::{Sampler, Sampling};
use crate::model::{Decoder, Network};
use crate::text;
use crate::train::chat::ChatFormat;

/// One row of the output.
#[derive(Debug, Serialize)]
struct Scored {
    ids: Vec<u32>,
    /// Natural log, one entry a token; nothing stands before the first.
    token_logprobs: Vec<Option<f32>>,
    /// What greedy decoding adds; ids that end a turn do not stop it.
    greedy: Vec<u32>,
}

pub fn run(ground: &Ground, args: &ScoreArgs) -> Result<()> {
    let mut lines = Lines::open(&args.input)?;
    let source = ground.source()?;
    let base = Base::load(&source, &DigestCache::of(&ground.paths))?;
    let network: Arc<dyn Network> = base.network;
    let adapter = args.adapter.as_ref().map(|what| switch::open(&ground.paths, what, network.config(), &base.digest));
    let adapter = adapter.transpose()?.map(|Opened { adapter, foreign, .. }| {
        if foreign {
            let base = text::sanitize(&base.name);
            say(&format!("warning: the adapter was trained on another base than {base}; its shapes fit\n"));
        }
        adapter
    });
    let mut decoder = network.decoder(adapter.as_ref().map(|a| &a.weights))?;
    let mut files = Text { source, files: None };
    while let Some((line, row)) = lines.next_row()? {
        let place = || format!("{}:{line}", lines.name());
        let ids = ids(row, network.config().vocab_size, &mut files).with_context(place)?;
        let scored = score(&mut *decoder, ids, args.continue_tokens, network.config().context).with_context(place)?;
        print(&format!("{}\n", serde_json::to_string(&scored)?))?;
    }
    Ok(())
}

/// Tokenizer and template, read when the first row needs them: rows of ids need neither.
struct Text {
    source: ModelSource,
    files: Option<ChatFiles>,
}

impl Text {
    fn format(&mut self) -> Result<ChatFormat<'_>> {
        let files = match self.files.take() {
            Some(files) => files,
            None => self.source.chat_files()?,
        };
        ChatFormat::of_files(self.files.insert(files))
    }
}

/// The ids of a row: given, or of its text as it stands, or of its conversation as training sees it.
fn ids(mut row: Row, vocab_size: usize, text: &mut Text) -> Result<Vec<u32>> {
    let given = row.ids("ids", vocab_size)?;
    let plain = row.take("text");
    let messages = row.messages("messages")?;
    let thinking = row.yes_or_no("thinking")?;
    let ids = match (given, plain, messages) {
        (Some(ids), None, None) => ids,
        (None, Some(plain), None) => {
            let plain = plain.as_str().ok_or_else(|| crate::jsonl::wrong("text", "a string", &plain))?;
            text.format()?.plain(plain)?
        }
        (None, None, Some(messages)) => conversation(&messages, thinking, &text.format()?)?,
        _ => return Err(Error::failure("a row needs exactly one of \"ids\", \"text\" and \"messages\"")),
    };
    if ids.is_empty() {
        return Err(Error::failure("the row holds no tokens"));
    }
    Ok(ids)
}

/// Up to the answer's opening where the last turn is not the assistant's, else with the answer and the end of its turn.
fn conversation(messages: &[Message], thinking: Option<bool>, format: &ChatFormat) -> Result<Vec<u32>> {
    match messages.split_last() {
        Some((last, before)) if last.role == Role::Assistant => Ok(format.tokens(before, &last.content, thinking)?.ids),
        Some(_) => format.prompt(messages, thinking),
        None => Err(Error::failure("messages is empty")),
    }
}

fn score(decoder: &mut dyn Decoder, ids: Vec<u32>, new_tokens: usize, context: usize) -> Result<Scored> {
    if ids.len() + new_tokens > context {
        return Err(Error::failure(format!(
            "{} tokens and {new_tokens} to continue with are more than the model's context of {context}",
            ids.len()
        )));
    }
    decoder.truncate(0);
    let logprobs = decoder.score(&ids)?;
    if let Some(bad) = logprobs.iter().find(|p| !p.is_finite()) {
        return Err(Error::failure(format!("the model gives {bad} as a log-probability: its weights are damaged")));
    }
    let (mut greedy, mut sampler) = (Vec::with_capacity(new_tokens), Sampler::new(Sampling::GREEDY));
    // The last token once more: scoring keeps no logits.
    decoder.truncate(ids.len() - 1);
    let mut last = *ids.last().ok_or_else(|| Error::failure("the row holds no tokens"))?;
    for _ in 0..new_tokens {
        last = sampler.sample(&mut decoder.forward(&[last])?, &[])?;
        greedy.push(last);
    }
    let token_logprobs = std::iter::once(None).chain(logprobs.into_iter().map(Some)).collect();
    Ok(Scored { ids, token_logprobs, greedy })
}
