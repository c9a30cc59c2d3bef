//! A program in a pseudo-terminal, and what its user sees: keys in, screen out.
//!
//! The screen is tall enough never to scroll, so a test can look at all that was shown. Every wait has a limit and fails
//! with a picture of the screen.
#![allow(dead_code)] // each test file uses a part of it

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

const ROWS: u16 = 400;
const COLUMNS: u16 = 100;
/// Longest wait unless a test says otherwise: generous, as machines may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";
pub const ALT_ENTER: &str = "\x1b\r";
pub const ENTER: &str = "\r";

pub struct Terminal {
    screen: Arc<Mutex<vt100::Parser>>,
    /// Every byte the program wrote.
    raw: Arc<Mutex<Vec<u8>>>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    reader: Option<JoinHandle<()>>,
    _master: Box<dyn MasterPty + Send>,
}

impl Terminal {
    /// Starts `program` with a plain environment and `FINCH_HOME` at `home`.
    pub fn start<S: AsRef<OsStr>>(program: &str, arguments: &[S], home: &Path) -> Terminal {
        Self::start_with(program, arguments, home, &[])
    }

    /// The finch binary of this build.
    pub fn finch<S: AsRef<OsStr>>(arguments: &[S], home: &Path) -> Terminal {
        Self::start(env!("CARGO_BIN_EXE_finch"), arguments, home)
    }

    pub fn start_with<S: AsRef<OsStr>>(
        program: &str,
        arguments: &[S],
        home: &Path,
        environment: &[(&str, &str)],
    ) -> Terminal {
        let size = PtySize { rows: ROWS, cols: COLUMNS, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).expect("a pseudo-terminal");
        let mut command = CommandBuilder::new(program);
        command.args(arguments);
        command.env("TERM", "xterm-256color");
        command.env("FINCH_HOME", home);
        command.env("NO_COLOR", "1");
        for (name, value) in environment {
            command.env(name, value);
        }
        command.cwd(home);
        let child = pair.slave.spawn_command(command).expect("the program starts");
        drop(pair.slave);
        let mut output = pair.master.try_clone_reader().expect("a reader");
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let raw = Arc::new(Mutex::new(Vec::new()));
        let (seen, kept) = (Arc::clone(&screen), Arc::clone(&raw));
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut chunk) {
                seen.lock().unwrap().process(&chunk[..n]);
                kept.lock().unwrap().extend_from_slice(&chunk[..n]);
            }
        });
        let keys = pair.master.take_writer().expect("a writer");
        Terminal { screen, raw, keys, child, reader: Some(reader), _master: pair.master }
    }

    /// Types keys as they are.
    pub fn send(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the program reads keys");
        self.keys.flush().expect("the program reads keys");
    }

    /// Types a line and Enter.
    pub fn line(&mut self, line: &str) {
        self.send(&format!("{line}{ENTER}"));
    }

    /// The rows shown so far, without blanks at their ends, down to the last that is not empty.
    pub fn rows(&self) -> Vec<String> {
        let screen = self.screen.lock().unwrap();
        let mut rows: Vec<String> = screen.screen().rows(0, COLUMNS).map(|row| row.trim_end().to_string()).collect();
        while rows.last().is_some_and(String::is_empty) {
            rows.pop();
        }
        rows
    }

    pub fn shown(&self) -> String {
        self.rows().join("\n")
    }

    /// Row and column of the cursor, from 0.
    pub fn cursor(&self) -> (u16, u16) {
        self.screen.lock().unwrap().screen().cursor_position()
    }

    /// Every byte that reached the terminal.
    pub fn raw(&self) -> Vec<u8> {
        self.raw.lock().unwrap().clone()
    }

    /// Waits until the screen is as wanted; `what` names it in the failure.
    pub fn wait_until(&self, what: &str, limit: Duration, wanted: impl Fn(&Terminal) -> bool) {
        let start = Instant::now();
        while !wanted(self) {
            assert!(start.elapsed() < limit, "waited {limit:?} for {what}; the screen:\n{}", self.picture());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `text` is on the screen.
    pub fn wait_for(&self, text: &str) {
        self.wait_until(&format!("{text:?}"), PATIENCE, |t| t.shown().contains(text));
    }

    pub fn wait_for_within(&self, text: &str, limit: Duration) {
        self.wait_until(&format!("{text:?}"), limit, |t| t.shown().contains(text));
    }

    /// Waits for an empty prompt `> ` at the bottom with the cursor behind it.
    pub fn wait_for_prompt(&self) {
        self.wait_until("an empty prompt", PATIENCE, |t| t.at_prompt());
    }

    pub fn at_prompt(&self) -> bool {
        let rows = self.rows();
        let (row, column) = self.cursor();
        rows.last().is_some_and(|last| last == ">") && usize::from(row) + 1 == rows.len() && column == 2
    }

    /// Types a line at the prompt and gives the rows that came before the next prompt, progress lines left out.
    pub fn ask(&mut self, line: &str) -> String {
        self.ask_within(line, PATIENCE)
    }

    pub fn ask_within(&mut self, line: &str, limit: Duration) -> String {
        self.wait_for_prompt();
        let echo = format!("> {line}");
        let before = self.rows().iter().filter(|row| **row == echo).count();
        self.line(line);
        let answered = |t: &Terminal| t.rows().iter().filter(|row| **row == echo).count() > before && t.at_prompt();
        self.wait_until(&format!("the answer to {line:?}"), limit, answered);
        let rows = self.rows();
        let asked = rows.iter().rposition(|row| *row == echo).expect("the line is on the screen");
        let answer = &rows[asked + 1..rows.len() - 1];
        let kept: Vec<&str> =
            answer.iter().map(String::as_str).filter(|row| !row.starts_with("🔄 Training:")).collect();
        kept.join("\n").trim_end().to_string()
    }

    /// Waits for the program's end and gives its exit code.
    pub fn wait_for_exit(&mut self) -> u32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the program can be waited for") {
                return status.exit_code();
            }
            assert!(start.elapsed() < PATIENCE, "the program does not end; the screen:\n{}", self.picture());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn process_id(&self) -> Option<u32> {
        self.child.process_id()
    }

    /// SIGKILL. All that the program wrote until then is in [`Terminal::raw`].
    pub fn kill(&mut self) {
        // The library's own kill begins with SIGHUP.
        let child: &mut dyn Child = &mut *self.child;
        let child = child.downcast_mut::<std::process::Child>().expect("a process of this system");
        child.kill().expect("the program can be killed");
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the terminal is read to its end");
        }
    }

    fn picture(&self) -> String {
        let frame = "-".repeat(40);
        let rows: String = self.rows().iter().map(|row| format!("| {row}\n")).collect();
        format!("{frame}\n{rows}{frame} cursor at {:?}", self.cursor())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}
