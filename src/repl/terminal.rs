//! The terminal's modes outside the line editor: no echo while an answer is written, and its width.
//!
//! While a chat with a line editor runs, keys are never echoed by the terminal itself: what is typed during an answer
//! waits unseen in the terminal's queue and comes up at the next prompt. Ctrl-C stays a signal. On systems without termios
//! nothing changes.

use std::io::IsTerminal;

use super::wrap::wrapped;

/// Restores the terminal's modes when dropped.
#[derive(Debug)]
pub struct QuietKeys {
    #[cfg(unix)]
    original: rustix::termios::Termios,
    #[cfg(unix)]
    quiet: rustix::termios::Termios,
}

/// While it lives the terminal is as it was before the chat, for another program; then quiet again, whatever that one left.
#[derive(Debug)]
pub struct Lifted<'a>(#[cfg_attr(not(unix), expect(dead_code))] &'a QuietKeys);

impl QuietKeys {
    /// Turns echo and line-wise input off; None where standard input is no terminal.
    #[cfg(unix)]
    pub fn start() -> Option<QuietKeys> {
        use rustix::termios::{InputModes, LocalModes, tcgetattr};
        let original = tcgetattr(std::io::stdin()).ok()?;
        let mut quiet = original.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON);
        // Enter stays what it is in the queue: the editor tells it from Ctrl-J.
        quiet.input_modes.remove(InputModes::ICRNL);
        // The kernel would empty both queues on Ctrl-C, but after the signal: what is said about it could be lost.
        quiet.local_modes.insert(LocalModes::NOFLSH);
        set(&quiet).then_some(QuietKeys { original, quiet })
    }

    #[cfg(not(unix))]
    pub fn start() -> Option<QuietKeys> {
        None
    }

    /// Hands the terminal to another program for as long as the guard lives.
    pub fn lift(&self) -> Lifted<'_> {
        #[cfg(unix)]
        set(&self.original);
        Lifted(self)
    }
}

/// False: the terminal is gone, and nothing can be done about it.
#[cfg(unix)]
fn set(modes: &rustix::termios::Termios) -> bool {
    rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Drain, modes).is_ok()
}

#[cfg(unix)]
impl Drop for QuietKeys {
    fn drop(&mut self) {
        set(&self.original);
    }
}

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        #[cfg(unix)]
        set(&self.0.quiet);
    }
}

/// Drops what was typed and not read yet, as Ctrl-C does everywhere on a terminal.
pub fn drop_typed() {
    #[cfg(unix)]
    let _ = rustix::termios::tcflush(std::io::stdin(), rustix::termios::QueueSelector::IFlush);
}

/// Whether a stream goes to a terminal that understands control sequences: rows are rewritten there, and coloured.
pub fn is_capable(stream: &impl IsTerminal) -> bool {
    let dumb = std::env::var("TERM").is_ok_and(|term| matches!(term.as_str(), "dumb" | "cons25" | "emacs"));
    stream.is_terminal() && !dumb
}

/// Columns of the terminal that standard output goes to; None: it goes elsewhere, or the terminal does not tell.
pub fn columns() -> Option<usize> {
    columns_of(std::io::stdout())
}

#[cfg(unix)]
fn columns_of(stream: impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}

#[cfg(not(unix))]
fn columns_of(_: impl IsTerminal) -> Option<usize> {
    None
}

/// Text for standard output, broken between words where that is a terminal.
pub fn in_rows(text: &str) -> String {
    columns().map_or_else(|| text.to_string(), |columns| wrapped(text, columns))
}

/// Says what is no result: on standard error, broken between words where that is a terminal.
pub fn tell(text: &str) {
    eprint!("{}", columns_of(std::io::stderr()).map_or_else(|| text.to_string(), |columns| wrapped(text, columns)));
}
