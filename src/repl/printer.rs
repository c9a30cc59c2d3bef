//! Background lines on a screen where someone types: they come above the prompt, whole, and never into an answer.
//!
//! A worker thread hands them to the line editor, but only while the editor really waits for keys: it is told so from
//! inside the editor ([`Printer::opened`], [`Printer::shut`]). At any other time lines wait; the main thread writes them
//! out between two turns ([`Printer::drain`]). Progress is one line that is rewritten in place while it stands right above
//! the prompt.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::terminal;
use crate::text;

/// Shortest time between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Longest wait for a line that is being handed over; a worker stuck with the editor is left to the next prompt.
const HAND_OVER: Duration = Duration::from_millis(100);
/// Goes to the line above and erases it.
const ERASE_LINE_ABOVE: &str = "\x1b[1A\x1b[2K";

/// Prints text above the prompt while the editor is open; the line editor's external printer in practice.
pub type Above = Box<dyn FnMut(String) + Send>;

/// Cheap to clone; all clones write to the same screen.
#[derive(Clone)]
pub struct Printer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Without an editor lines go to standard error at once.
    plain: bool,
}

#[derive(Default)]
struct State {
    /// The editor waits for keys.
    open: bool,
    /// The worker is handing a line over.
    writing: bool,
    lines: VecDeque<String>,
    progress: Option<String>,
    /// `progress` is not on the screen yet.
    progress_due: bool,
    /// The line right above the prompt is a progress line.
    progress_above: bool,
    last_progress: Option<Instant>,
}

impl Printer {
    /// For a screen without a line editor.
    pub fn plain() -> Printer {
        Printer { shared: Arc::new(Shared { state: Mutex::default(), wake: Condvar::new(), plain: true }) }
    }

    /// For a line editor; `above` prints over its prompt. The worker lives as long as the process.
    pub fn above(above: Above) -> Printer {
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new(), plain: false });
        let worker = Arc::clone(&shared);
        // Without a thread the lines still come, between two turns.
        let _ = std::thread::Builder::new().name("printer".into()).spawn(move || work(&worker, above));
        Printer { shared }
    }

    /// Shows whole lines (text of finch's own making, sanitised where it holds others') as soon as that garbles nothing.
    pub fn say(&self, lines: impl Into<String>) {
        let lines = lines.into();
        if self.shared.plain {
            let _ = std::io::stderr().write_all(lines.as_bytes());
            return;
        }
        self.shared.lock().lines.push_back(lines);
        self.shared.wake.notify_all();
    }

    /// Shows how far something is, in one line above the prompt; None: it is over. Only the latest one is kept.
    pub fn progress(&self, line: Option<String>) {
        let mut state = self.shared.lock();
        state.progress_due = line.is_some();
        state.progress = line;
        self.shared.wake.notify_all();
    }

    /// The editor shows its prompt and waits for keys.
    pub(super) fn opened(&self) {
        let mut state = self.shared.lock();
        if !state.open {
            state.open = true;
            self.shared.wake.notify_all();
        }
    }

    /// The editor is done with its line: from here on nothing is printed until it opens again.
    pub(super) fn shut(&self) {
        let mut state = self.shared.lock();
        state.open = false;
        state.progress_above = false;
        state.progress_due = state.progress.is_some(); // it stands above the next prompt again
        let until = Instant::now() + HAND_OVER;
        while state.writing && Instant::now() < until {
            state = self.shared.wait(state, Some(HAND_OVER));
        }
    }

    /// Writes what waits straight to the screen; for the main thread, between two turns and at the end.
    pub fn drain(&self) {
        let lines = std::mem::take(&mut self.shared.lock().lines);
        let mut out = std::io::stdout();
        for line in lines {
            let _ = out.write_all(terminal::in_rows(&line).as_bytes());
        }
        let _ = out.flush();
    }
}

impl Shared {
    /// A panic while the lock was held leaves nothing half-done here.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: Option<Duration>) -> MutexGuard<'a, State> {
        match at_most {
            None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(time) => self.wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
        }
    }
}

/// The worker: waits for an open editor and something to show, for ever.
fn work(shared: &Shared, mut above: Above) {
    let mut state = shared.lock();
    loop {
        match next(&mut state, Instant::now()) {
            Next::Print(text) => {
                state.writing = true;
                drop(state);
                above(text);
                state = shared.lock();
                state.writing = false;
                shared.wake.notify_all();
            }
            Next::Wait(time) => state = shared.wait(state, time),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Next {
    Print(String),
    /// At most so long, or until something changes.
    Wait(Option<Duration>),
}

/// What to print now: all waiting lines at once, else progress when it is due.
fn next(state: &mut State, now: Instant) -> Next {
    if !state.open {
        return Next::Wait(None);
    }
    if !state.lines.is_empty() {
        let erase = if std::mem::take(&mut state.progress_above) { ERASE_LINE_ABOVE } else { "" };
        let lines: String = state.lines.drain(..).map(|lines| terminal::in_rows(&lines)).collect();
        return Next::Print(format!("{erase}{lines}"));
    }
    let Some(line) = state.progress.clone().filter(|_| state.progress_due) else { return Next::Wait(None) };
    let since = state.last_progress.map(|last| now.duration_since(last));
    if let Some(rest) = since.and_then(|since| PROGRESS_INTERVAL.checked_sub(since)).filter(|rest| !rest.is_zero()) {
        return Next::Wait(Some(rest));
    }
    state.progress_due = false;
    state.last_progress = Some(now);
    let erase = if std::mem::replace(&mut state.progress_above, true) { ERASE_LINE_ABOVE } else { "" };
    // One row exactly: the next one erases one row.
    let row = text::one_line(&line, terminal::columns().map_or(80, |columns| columns.saturating_sub(1)));
    Next::Print(format!("{erase}{row}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn open(progress: Option<&str>) -> State {
        State { open: true, progress: progress.map(String::from), progress_due: progress.is_some(), ..State::default() }
    }

    #[test]
    fn nothing_is_printed_while_the_editor_is_shut() {
        let mut state = State { open: false, ..open(Some("half")) };
        state.lines.push_back("news\n".into());
        assert_eq!(next(&mut state, Instant::now()), Next::Wait(None));
    }

    #[test]
    fn progress_is_rewritten_in_place_and_not_too_often() {
        let start = Instant::now();
        let mut state = open(Some("1 %"));
        assert_eq!(next(&mut state, start), Next::Print("1 %\n".into()));
        assert_eq!(next(&mut state, start), Next::Wait(None), "the same line once");
        (state.progress, state.progress_due) = (Some("2 %".into()), true);
        let soon = start + PROGRESS_INTERVAL / 2;
        assert_eq!(next(&mut state, soon), Next::Wait(Some(PROGRESS_INTERVAL / 2)));
        let later = start + PROGRESS_INTERVAL;
        assert_eq!(next(&mut state, later), Next::Print(format!("{ERASE_LINE_ABOVE}2 %\n")));
    }

    #[test]
    fn a_line_takes_the_place_of_the_progress_above_the_prompt() {
        let mut state = open(Some("99 %"));
        next(&mut state, Instant::now());
        state.lines.extend(["done\n".to_string(), "saved\n".to_string()]);
        assert_eq!(next(&mut state, Instant::now()), Next::Print(format!("{ERASE_LINE_ABOVE}done\nsaved\n")));
        state.lines.push_back("more\n".into());
        assert_eq!(next(&mut state, Instant::now()), Next::Print("more\n".into()));
    }

    #[test]
    fn the_worker_prints_lines_said_before_and_while_the_editor_is_open() {
        let (sender, printed) = mpsc::channel();
        let printer = Printer::above(Box::new(move |text| {
            let _ = sender.send(text);
        }));
        printer.say("early\n");
        assert!(printed.recv_timeout(Duration::from_millis(100)).is_err(), "the editor is not open yet");
        printer.opened();
        assert_eq!(printed.recv_timeout(Duration::from_secs(5)).as_deref(), Ok("early\n"));
        printer.say("late\n");
        assert_eq!(printed.recv_timeout(Duration::from_secs(5)).as_deref(), Ok("late\n"));
        printer.shut();
        printer.say("after\n");
        assert!(printed.recv_timeout(Duration::from_millis(100)).is_err(), "the editor is shut");
    }
}
