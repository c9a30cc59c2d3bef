//! Lines from the user: a line editor on a terminal, plain lines elsewhere.
//!
//! Alt-Enter, or a `\` at the end of a line, continues it on the next. Ctrl-C clears what is typed; on an empty line it is
//! reported. Background lines come through the [`Printer`] that belongs to the editor.

use std::borrow::Cow;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Cmd, CompletionType, ConditionalEventHandler, Context as EditorContext, Editor, Event, EventContext, EventHandler,
    ExternalPrinter, Helper, KeyCode, KeyEvent, Modifiers, Movement, RepeatCount,
};

use super::complete::complete;
use super::printer::Printer;
use crate::error::{Error, Result};

/// Lines that the history file keeps.
const HISTORY_LINES: usize = 1000;

/// Tells the names of adapters when Tab asks for them.
pub type AdapterNames = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Without its line end; may hold line feeds.
    Text(String),
    /// Ctrl-C on an empty line.
    Interrupted,
    /// Ctrl-D, or the input's end.
    End,
}

/// Where lines come from.
pub struct Input {
    source: Source,
    printer: Printer,
}

enum Source {
    Editor { editor: Box<Editor<Keys, FileHistory>>, history: PathBuf, continued: Continued },
    Plain { prompt: bool },
}

impl Input {
    /// The line editor if both standard input and output are a terminal that can hold one, else plain lines.
    ///
    /// `history`: where typed lines are kept; a missing or unreadable file is an empty history.
    pub fn open(history: &Path, adapter_names: AdapterNames) -> Result<Input> {
        let terminal = std::io::stdin().is_terminal();
        if terminal
            && std::io::stdout().is_terminal()
            && let Some(input) = Self::editor(history, adapter_names)?
        {
            return Ok(input);
        }
        Ok(Input { source: Source::Plain { prompt: terminal }, printer: Printer::plain() })
    }

    fn editor(history: &Path, adapter_names: AdapterNames) -> Result<Option<Input>> {
        let config = rustyline::Config::builder()
            .completion_type(CompletionType::List)
            .bell_style(rustyline::config::BellStyle::None)
            .max_history_size(HISTORY_LINES)
            .map_err(unusable)?
            .build();
        let mut editor: Editor<Keys, FileHistory> = Editor::with_config(config).map_err(unusable)?;
        // A terminal that cannot hold an editor has no such printer.
        let Ok(mut external) = editor.create_external_printer() else { return Ok(None) };
        let printer = Printer::above(Box::new(move |text| {
            let _ = external.print(text); // a terminal that is gone shows nothing
        }));
        editor.set_helper(Some(Keys { adapter_names, printer: printer.clone(), accepted: AtomicBool::new(false) }));
        let continued = Continued::default();
        let newline = || EventHandler::Simple(Cmd::Newline);
        for key in ['\r', '\n'] {
            editor.bind_sequence(KeyEvent::new(key, Modifiers::ALT), newline());
            editor.bind_sequence(
                KeyEvent::new(key, Modifiers::NONE),
                EventHandler::Conditional(Box::new(Continue(Arc::clone(&continued)))),
            );
        }
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), newline());
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(ClearLine)));
        let _ = editor.load_history(history);
        let history = history.to_path_buf();
        Ok(Some(Input { source: Source::Editor { editor: Box::new(editor), history, continued }, printer }))
    }

    /// Prints background lines on this screen.
    pub fn printer(&self) -> Printer {
        self.printer.clone()
    }

    /// Whether the terminal holds a line editor, and so understands control sequences.
    pub fn is_edited(&self) -> bool {
        matches!(self.source, Source::Editor { .. })
    }

    /// Whether a person sits there who can be asked.
    pub fn is_interactive(&self) -> bool {
        match self.source {
            Source::Editor { .. } => true,
            Source::Plain { prompt } => prompt,
        }
    }

    /// The next line; blocks. `prompt` is plain text.
    pub fn read(&mut self, prompt: &str) -> Result<Line> {
        let line = self.read_unkept(prompt)?;
        if let (Line::Text(text), Source::Editor { editor, history, .. }) = (&line, &mut self.source)
            && !text.trim().is_empty()
            && editor.add_history_entry(text).unwrap_or(false)
        {
            // At once, so that nothing typed is lost; a history that cannot be written is no reason to stop.
            if let Err(error) = editor.append_history(history) {
                tracing::warn!(%error, "the history was not written");
            }
        }
        Ok(line)
    }

    /// A question with yes or no; no where nobody answers.
    pub fn confirm(&mut self, question: &str) -> Result<bool> {
        if !self.is_interactive() {
            return Ok(false);
        }
        let answer = self.read_unkept(&format!("{question} [y/N] "))?;
        Ok(matches!(&answer, Line::Text(text) if matches!(text.trim().to_lowercase().as_str(), "y" | "yes")))
    }

    fn read_unkept(&mut self, prompt: &str) -> Result<Line> {
        self.printer.drain();
        match &mut self.source {
            Source::Editor { editor, continued, .. } => {
                if let Some(keys) = editor.helper() {
                    keys.accepted.store(false, Ordering::SeqCst);
                }
                let line = editor.readline(prompt);
                self.printer.shut();
                let continued = std::mem::take(&mut *lock(continued));
                match line {
                    Ok(text) => Ok(Line::Text(without_continuations(text, continued))),
                    Err(ReadlineError::Eof) => Ok(Line::End),
                    Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Ok(Line::Interrupted),
                    Err(error) => Err(unusable(error)),
                }
            }
            Source::Plain { prompt: wanted } => {
                if *wanted {
                    eprint!("{prompt}");
                }
                plain_line(&mut std::io::stdin().lock())
            }
        }
    }
}

fn unusable(error: ReadlineError) -> Error {
    match error {
        ReadlineError::Io(error) => Error::from(error).context("the terminal"),
        other => Error::failure(format!("the terminal: {other}")),
    }
}

/// A line that does not end in `\`, with those before it that do.
fn plain_line(input: &mut impl BufRead) -> Result<Line> {
    let mut text = String::new();
    loop {
        let mut bytes = Vec::new();
        if input.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(if text.is_empty() { Line::End } else { Line::Text(text) });
        }
        let line = String::from_utf8_lossy(&bytes);
        text.push_str(line.trim_end_matches(['\r', '\n']));
        if !continues(&text) {
            return Ok(Line::Text(text));
        }
        text.pop();
        text.push('\n');
    }
}

/// A single `\` at the end; two are text.
fn continues(line: &str) -> bool {
    line.ends_with('\\') && !line.ends_with("\\\\")
}

/// What stood before the cursor each time that Enter came after a `\` at the end. The editor cannot take the `\` away
/// itself, and in pasted text it is to stay.
type Continued = Arc<Mutex<Vec<String>>>;

/// Enter after a `\` at the end begins a new line.
struct Continue(Continued);

impl ConditionalEventHandler for Continue {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext) -> Option<Cmd> {
        let at_end = context.pos() == context.line().len();
        (at_end && continues(context.line())).then(|| {
            lock(&self.0).push(context.line().to_string());
            Cmd::Newline
        })
    }
}

fn lock(continued: &Continued) -> MutexGuard<'_, Vec<String>> {
    continued.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes away every `\` that only served to continue a line; one that was edited since stays.
fn without_continuations(mut text: String, mut continued: Vec<String>) -> String {
    continued.sort_by_key(|before| std::cmp::Reverse(before.len()));
    continued.dedup();
    for before in continued {
        if text.strip_prefix(&before).is_some_and(|after| after.starts_with('\n')) {
            text.remove(before.len() - 1); // `before` ends in the backslash
        }
    }
    text
}

/// Ctrl-C clears what is typed (Ctrl-Y brings it back); with nothing typed it stays an interrupt.
struct ClearLine;

impl ConditionalEventHandler for ClearLine {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext) -> Option<Cmd> {
        (!context.line().is_empty()).then_some(Cmd::Kill(Movement::WholeBuffer))
    }
}

/// What the editor asks while it runs; it tells the printer when the editor is open.
struct Keys {
    adapter_names: AdapterNames,
    printer: Printer,
    /// Enter was pressed: what the editor redraws after it is no open prompt.
    accepted: AtomicBool,
}

impl Helper for Keys {}

impl Completer for Keys {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &EditorContext<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, words) = complete(line, position, || (self.adapter_names)());
        let pair = |word: String| Pair { display: word.clone(), replacement: format!("{word} ") };
        Ok((start, words.into_iter().map(pair).collect()))
    }
}

impl Hinter for Keys {
    type Hint = String;

    /// Shows no hint; the editor calls it first thing when it draws an open prompt.
    fn hint(&self, _: &str, _: usize, _: &EditorContext<'_>) -> Option<String> {
        if !self.accepted.load(Ordering::SeqCst) {
            self.printer.opened();
        }
        None
    }
}

impl Validator for Keys {
    /// Every line is fine; this is the moment of Enter.
    fn validate(&self, _: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        self.accepted.store(true, Ordering::SeqCst);
        self.printer.shut();
        Ok(ValidationResult::Valid(None))
    }
}

impl Highlighter for Keys {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        Cow::Owned(format!("\x1b[1m{prompt}\x1b[0m"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_typed_continuations_lose_their_backslash() {
        let joined = |text: &str, continued: &[&str]| {
            without_continuations(text.to_string(), continued.iter().map(ToString::to_string).collect())
        };
        assert_eq!(joined("a\\\nb\\\nc", &["a\\", "a\\\nb\\"]), "a\nb\nc");
        assert_eq!(joined("a\\\nb\\\nc", &["a\\\nb\\"]), "a\\\nb\nc", "the first was pasted");
        assert_eq!(joined("x\\\nb", &["a\\"]), "x\\\nb", "edited since");
        assert_eq!(joined("a\\b", &["a\\"]), "a\\b", "the line end was taken back");
    }

    #[test]
    fn plain_lines_are_joined_over_a_trailing_backslash() {
        let mut input = &b"one\r\ntwo \\\nthree\n\nregex \\\\\nlast\\"[..];
        let mut lines = Vec::new();
        loop {
            match plain_line(&mut input).expect("readable") {
                Line::End => break,
                Line::Text(text) => lines.push(text),
                Line::Interrupted => panic!("no signal was sent"),
            }
        }
        assert_eq!(lines, ["one", "two \nthree", "", "regex \\\\", "last\n"]);
    }
}
