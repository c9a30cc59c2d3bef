//! The real program without a terminal.
#![allow(dead_code)] // each test file uses a part of it

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What came of one run.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None`: ended by a signal.
    pub code: Option<i32>,
    pub out: String,
    pub error: String,
}

/// Runs finch on the data folder `home` with nothing piped in.
pub fn finch<S: AsRef<std::ffi::OsStr>>(home: &Path, arguments: &[S]) -> Ran {
    piped(home, arguments, "")
}

/// Runs finch with `input` piped in.
pub fn piped<S: AsRef<std::ffi::OsStr>>(home: &Path, arguments: &[S], input: &str) -> Ran {
    let mut child = command(home, arguments).stdin(Stdio::piped()).spawn().expect("finch starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input.as_bytes()).expect("finch reads its input");
    drop(pipe);
    let Output { status, stdout, stderr } = child.wait_with_output().expect("finch ends");
    let text = |bytes| String::from_utf8(bytes).expect("finch writes UTF-8");
    Ran { code: status.code(), out: text(stdout), error: text(stderr) }
}

/// As [`finch`]; what it printed, where it ended well.
pub fn printed<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(home: &Path, arguments: &[S]) -> String {
    let ran = finch(home, arguments);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.out, ran.error);
    ran.out
}

/// As [`finch`]; what it said on standard error, where it ended well.
pub fn said<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(home: &Path, arguments: &[S]) -> String {
    let ran = finch(home, arguments);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{arguments:?}: {}", ran.error);
    ran.error
}

/// A run to be started, its output piped.
pub fn command<S: AsRef<std::ffi::OsStr>>(home: &Path, arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_finch"));
    command.args(arguments).env("FINCH_HOME", home);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
