//! `finch` without a subcommand: one answer for words and piped text, else the chat.

use std::io::{IsTerminal, Read, stderr, stdin, stdout};
use std::sync::Arc;

use super::ground::Ground;
use super::say;
use crate::cli::ChatArgs;
use crate::engine::CancelFlag;
use crate::error::{Error, Result};
use crate::feedback::Finish;
use crate::repl::answer::{AnswerScreen, Style};
use crate::repl::interrupts::Interrupts;
use crate::repl::{Repl, cut_off, open_input, show, terminal};
use crate::session::{AdapterNotice, AskEvent, Fallback, ModelHost, Options, Session};

/// More piped text than any context holds, in bytes.
const MAX_PIPED: u64 = 64 << 20;

pub fn run(ground: Ground, prompt: Option<String>, args: ChatArgs) -> Result<()> {
    match question(prompt)? {
        Some(question) => one_answer(ground, &question, args),
        None => chat(ground, args),
    }
}

/// Piped text before the words; None: neither, on a terminal.
fn question(words: Option<String>) -> Result<Option<String>> {
    if stdin().is_terminal() {
        return Ok(words);
    }
    let mut piped = Vec::new();
    stdin().lock().take(MAX_PIPED + 1).read_to_end(&mut piped).map_err(|e| Error::from(e).context("standard input"))?;
    if piped.len() as u64 > MAX_PIPED {
        return Err(Error::failure("standard input holds more than any model can read"));
    }
    let piped = String::from_utf8_lossy(&piped);
    join(piped.trim_end(), words.as_deref()).map(Some)
}

fn join(piped: &str, words: Option<&str>) -> Result<String> {
    match (piped.trim().is_empty(), words) {
        (false, Some(words)) => Ok(format!("{piped}\n\n{words}")),
        (false, None) => Ok(piped.to_string()),
        (true, Some(words)) => Ok(words.to_string()),
        (true, None) => Err(Error::usage("there is no prompt, and standard input is empty")
            .hint("finch \"a question\", or finch alone on a terminal for the chat")),
    }
}

fn session(ground: Ground, args: ChatArgs, fallback: Fallback) -> Result<Session> {
    let store = Arc::new(ground.store()?);
    let host = Arc::new(ModelHost::start(&ground.config.model, &ground.paths, fallback));
    let thinking = args.thinking();
    let options = Options { system: args.system, thinking, seed: args.seed };
    Ok(Session::new(store, ground.paths, ground.config, host, options))
}

/// The runtime of background work; it does not own the main thread.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|e| Error::from(e).context("cannot start background work"))
}

/// Answer to standard output, all else to standard error.
fn one_answer(ground: Ground, question: &str, args: ChatArgs) -> Result<()> {
    let mut session = session(ground, args, Fallback::Nothing)?;
    let runtime = runtime()?;
    let interrupts = Interrupts::listen(runtime.handle());
    let cancel = CancelFlag::new();
    let colours = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let style = Style { live: terminal::is_capable(&stderr()), colours };
    let mut screen = AnswerScreen::new(stdout(), stderr(), style, terminal::columns);
    let mut trouble = None;
    let answered = interrupts.during(&cancel, || {
        session.ask(question, &cancel, &mut |event| {
            // With one answer there is no change to tell.
            if matches!(event, AskEvent::Adapter(AdapterNotice::Live { .. })) {
                return;
            }
            if let Err(error) = show(&mut screen, event, None) {
                trouble = Some(error);
                cancel.cancel();
            }
        })
    });
    if let Some(error) = trouble.or(screen.finish().err()) {
        // A reader that has seen enough is no fault; the answer is stored as far as it came.
        let enough = error.kind() == std::io::ErrorKind::BrokenPipe;
        return if enough { Ok(()) } else { Err(Error::from(error).context("standard output")) };
    }
    let interaction = answered?;
    if let Some(notice) = cut_off(&interaction) {
        say(&notice);
    }
    if interaction.finish == Finish::Interrupted { Err(Error::interrupted()) } else { Ok(()) }
}

fn chat(ground: Ground, args: ChatArgs) -> Result<()> {
    // The store first: the history file lies in the folder that it makes.
    let session = session(ground, args, Fallback::Builtin)?;
    let input = open_input(session.paths())?;
    let runtime = runtime()?;
    let left = Repl::new(session, input, runtime.handle())?.run();
    if left.as_ref().is_err_and(Error::is_interrupted) {
        runtime.shutdown_background(); // whoever was in a hurry does not wait for what still runs
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piped_text_comes_before_the_words() {
        assert_eq!(join("notes", Some("summarise")).expect("both"), "notes\n\nsummarise");
        assert_eq!(join("notes", None).expect("piped"), "notes");
        assert_eq!(join(" \n", Some("hello")).expect("words"), "hello");
        assert_eq!(join("", None).expect_err("nothing").kind().exit_code(), 2);
    }
}
