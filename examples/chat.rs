//! A chat in a hundred lines: load a model, stream its answers, remember the conversation.
//!
//! ```text
//! cargo run --release --example chat                      # the built-in model
//! cargo run --release --example chat -- ~/models/Qwen3-0.6B
//! echo "How do I undo a commit?" | cargo run --release --example chat
//! ```
//!
//! A line in, an answer out; the end of the input ends it. Answers go to standard output, figures to standard error. finch
//! itself puts a store, ratings and adapters around the same few calls, in `session/`.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin, stdout};
use std::sync::Arc;

use anyhow::{Result, bail};
use finch::config::GenerationSection;
use finch::engine::{CancelFlag, Draft, Engine, Event, Finished, Request};
use finch::model::digest::DigestCache;
use finch::model::load::{Model, ModelSource};
use finch::model::message::Message;
use finch::session::choose_sampling;
use finch::text::{Sanitizer, Utf8Stream};

/// Most tokens of an answer.
const MAX_TOKENS: usize = 512;

fn main() -> Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "builtin".into());
    let model = Model::load(&ModelSource::resolve(&name)?, &DigestCache::none())?;
    let engine = Engine::start(Arc::clone(&model.network))?;
    eprintln!("{}: {} tokens of context", model.name, engine.context());

    // The whole memory of a conversation: the messages. Every turn sends all of them; the engine reads only what is new.
    let mut messages = Vec::new();
    loop {
        let Some(question) = read_question()? else { return Ok(()) };
        messages.push(Message::user(question));
        let (text, done) = answer(&model, &engine, &messages)?;
        messages.push(Message::assistant(text));

        let Finished { reason, prompt_tokens, reused_tokens, generated, prefill_s, decode_s, .. } = done;
        eprintln!(
            "[{reason:?}: read {} of {prompt_tokens} tokens in {prefill_s:.3} s, {reused_tokens} were known; \
             wrote {generated} in {decode_s:.3} s]",
            prompt_tokens - reused_tokens,
        );
    }
}

/// The next line that is not empty; `None` at the end of the input.
fn read_question() -> Result<Option<String>> {
    loop {
        if stdin().is_terminal() {
            eprint!("> ");
            stderr().flush()?;
        }
        let mut line = String::new();
        if stdin().lock().read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if !line.trim().is_empty() {
            return Ok(Some(line.trim().to_owned()));
        }
    }
}

/// Prints the answer while it is generated; returns it whole, with what it took.
fn answer(model: &Model, engine: &Engine, messages: &[Message]) -> Result<(String, Finished)> {
    // Text becomes token ids by the model's own template: the engine knows nothing of text.
    let thinking = model.default_thinking();
    let ids = model.template.encode(&model.tokenizer, messages, true, thinking)?;
    let unset = GenerationSection::default();
    let sampling = choose_sampling(&unset, &model.generation, model.builtin, thinking == Some(true), rand::random());
    let request = Request {
        ids,
        max_tokens: MAX_TOKENS,
        stop: model.generation.eos.clone(),
        sampling,
        adapter: None,
        draft: Draft::Off,
    };

    // A token is a few bytes, maybe a part of a character; what a model writes is untrusted until it is sanitised.
    let (mut utf8, mut screen, mut text) = (Utf8Stream::default(), Sanitizer::default(), String::new());
    let mut out = stdout().lock();
    for event in engine.generate(request, CancelFlag::new()) {
        match event {
            Event::Prefill { .. } => {}
            Event::Token(token) => {
                let chunk = utf8.push(&model.tokenizer.token_bytes(token).unwrap_or_default());
                write!(out, "{}", screen.push(&chunk))?;
                out.flush()?;
                text.push_str(&chunk);
            }
            Event::Done(finished) => {
                let rest = utf8.finish();
                writeln!(out, "{}", screen.push(&rest))?;
                return Ok((text + &rest, finished));
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    bail!("the thread that runs the model has stopped")
}
