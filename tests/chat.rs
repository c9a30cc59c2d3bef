//! The real program on the built-in model, as a user meets it: the chat in a pseudo-terminal, and one answer from scripts.
//! Training is not part of it (see `end_to_end.rs`).
#![cfg(unix)]

#[path = "common/endless.rs"]
mod endless;
#[path = "common/pty.rs"]
mod pty;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use pty::{CTRL_C, CTRL_D, Terminal};

/// A chat without automatic training on a data folder of its own.
struct Chat {
    terminal: Terminal,
    home: tempfile::TempDir,
}

impl Chat {
    fn start(arguments: &[&str]) -> Chat {
        Self::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    fn start_in(home: tempfile::TempDir, arguments: &[&str]) -> Chat {
        let finch = env!("CARGO_BIN_EXE_finch");
        // Better answers are another file's (`revisions.rs`).
        let variables = [("FINCH_FEEDBACK_AUTO_TRAIN", "false"), ("FINCH_FEEDBACK_REVISE", "never")];
        let terminal = Terminal::start_with(finch, arguments, home.path(), &variables);
        terminal.wait_for_prompt();
        Chat { terminal, home }
    }

    fn leave(mut self) -> tempfile::TempDir {
        self.terminal.wait_for_prompt();
        self.terminal.send(CTRL_D);
        assert_eq!(self.terminal.wait_for_exit(), 0);
        self.home
    }
}

/// One run without a terminal; `input` is piped in.
fn finch(home: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_finch"))
        .args(arguments)
        .env("FINCH_HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(input.as_bytes()).unwrap();
    drop(pipe);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn answers_are_rated_corrected_and_taken_back() {
    let mut chat = Chat::start(&[]);
    let t = &mut chat.terminal;
    assert!(t.shown().contains("Ask, then rate the answer"), "the first start shows one line of help");
    assert!(t.ask("/good").contains("no answer to rate yet"));
    let answer = t.ask("hello");
    assert!(!answer.is_empty() && !answer.contains("error"), "{answer}");
    assert_eq!(
        t.ask("/critical Never use .unwrap() in production code"),
        "🔴 Feedback recorded (weight: 10x)\n   \
         The note stands in the prompt from the next answer on (/lessons)\n   \
         Training buffer: 0 examples (0.0 weighted), 1 waiting for a better answer (/correct …)"
    );
    assert_eq!(
        t.ask("/correct Good morning to you!"),
        "📝 Correction recorded (weight: 10x)\n   Training buffer: 1 example (10.0 weighted)"
    );
    assert!(t.ask("/undo").starts_with("Taken back: 📝 correction on “hello”"));
    let replaced = t.ask("👍🏽");
    assert!(replaced.starts_with("👍 Feedback recorded (weight: 1x)"), "{replaced}");
    assert!(replaced.contains("It replaces your earlier rating of this answer: 🔴 critical"), "{replaced}");
    assert!(t.ask("/buffer").contains("Training buffer: 1 of 100 examples (1.0 weighted), 1 new"));
    assert!(t.ask("/stats").contains("1 thumbs up"));
    chat.leave();
}

#[test]
fn the_last_answer_can_be_rated_after_a_restart() {
    let mut chat = Chat::start(&[]);
    let answer = chat.terminal.ask("hello");
    let home = chat.leave();
    let mut again = Chat::start_in(home, &[]);
    let rated = again.terminal.ask("/good");
    assert!(rated.starts_with("About the last answer of an earlier session:\n   > hello\n"), "{rated}");
    let beginning: String = answer.chars().take(20).collect();
    assert!(rated.contains(&beginning), "{rated}");
    again.leave();
}

#[test]
fn a_terminal_without_control_sequences_has_a_plain_chat() {
    let home = tempfile::tempdir().unwrap();
    let mut t = Terminal::start_with::<&str>(
        env!("CARGO_BIN_EXE_finch"),
        &[],
        home.path(),
        &[("TERM", "dumb"), ("NO_COLOR", "")],
    );
    assert!(!t.ask("What is finch?").is_empty());
    assert!(t.ask("/good").contains("Feedback recorded"));
    t.line("/train");
    t.wait_for("Starting background training");
    t.send(CTRL_D);
    assert_eq!(t.wait_for_exit(), 0);
    assert!(!t.raw().contains(&0x1b), "{}", String::from_utf8_lossy(&t.raw()));
}

#[test]
fn slips_are_not_sent_and_two_slashes_are() {
    let mut chat = Chat::start(&[]);
    let t = &mut chat.terminal;
    assert!(t.ask("/critcal no").contains("nearest is /critical"));
    assert!(t.ask("/rate 7").contains("Usage: /rate 1-5 [note]"));
    assert!(t.ask("/good").contains("no answer to rate yet"), "nothing was sent");
    assert!(!t.ask("//good is what?").contains("Feedback"));
    assert!(t.ask("/good").contains("🟢 Feedback recorded"));
    assert!(t.ask("/model").contains("finch-tiny"));
    assert!(t.ask("/help").contains("/adapters"));
    chat.leave();
}

/// Arguments for answers that go on until they are stopped.
fn endless(folder: &Path) -> Vec<String> {
    endless::write(folder, 32_768);
    ["--model", folder.to_str().unwrap(), "--temperature", "0", "--max-tokens", "30000"].map(String::from).to_vec()
}

#[test]
fn ctrl_c_stops_an_answer_and_keeps_what_came() {
    let model = tempfile::tempdir().unwrap();
    let arguments = endless(model.path());
    let mut chat = Chat::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let t = &mut chat.terminal;
    t.line("hello");
    t.wait_for("!!!!!!!!");
    t.send(CTRL_C);
    t.wait_for("(Stopped; the part above is kept.)");
    assert!(t.ask("/good").contains("the answer was cut off"));
    t.line("again, please");
    t.wait_until("a second answer", Duration::from_secs(60), |t| t.rows().last().is_some_and(|r| r.starts_with("!!!")));
    // Keys typed meanwhile wait for the prompt; Ctrl-C drops them, as everywhere on a terminal.
    t.send("/stats\r");
    t.send(CTRL_C);
    t.wait_for_prompt();
    assert!(!t.shown().contains("Answers:"), "{}", t.shown());
    let home = chat.leave();
    let list = text(&finch(home.path(), &["feedback", "list"], "").stdout);
    assert!(list.contains("🟢 good"), "{list}");
}

#[test]
fn an_interrupted_answer_of_a_script_ends_with_130() {
    let (home, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut arguments = endless(model.path());
    arguments.push("hello".to_string());
    let mut t = Terminal::start(env!("CARGO_BIN_EXE_finch"), &arguments, home.path());
    t.wait_for("!!!!!!!!");
    t.send(CTRL_C);
    assert_eq!(t.wait_for_exit(), 130);
    let stats = text(&finch(home.path(), &["stats"], "").stdout);
    assert!(stats.starts_with("Answers:   1 answer in 1 session"), "what came is kept: {stats}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault() {
    let (home, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_finch"))
        .args(endless(model.path()))
        .arg("hello")
        .env("FINCH_HOME", home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut some = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(0), String::new()));
}

#[test]
fn one_answer_to_standard_output() {
    let home = tempfile::tempdir().unwrap();
    let words = finch(home.path(), &["hello"], "");
    assert_eq!(words.status.code(), Some(0), "{}", text(&words.stderr));
    let answer = text(&words.stdout);
    assert!(answer.ends_with('\n') && answer.trim().len() > 1, "{answer:?}");
    assert!(!answer.contains("<|"), "no special token is shown: {answer:?}");
    let piped = finch(home.path(), &[], "hello\n");
    assert_eq!((piped.status.code(), text(&piped.stdout)), (Some(0), answer.clone()), "piped, and greedy the same");
    let forced = finch(home.path(), &["-p", "stats"], "");
    assert_eq!(forced.status.code(), Some(0));
    assert!(!text(&forced.stdout).starts_with("Answers:"), "-p forces a prompt");
    let stats = text(&finch(home.path(), &["stats"], "").stdout);
    assert!(stats.starts_with("Answers:   3 answers in 3 sessions"), "{stats}");
}

#[test]
fn exit_codes_of_wrong_use() {
    let home = tempfile::tempdir().unwrap();
    for (arguments, code, word) in [
        (&[][..], 2, "no prompt"),
        (&["adapter", "list"], 2, "finch adapters list"),
        (&["--no-such-flag"], 2, "--no-such-flag"),
        (&["adapters", "lst"], 2, "list"),
        (&["--temperature", "9", "hi"], 2, "temperature"),
        (&["--model", "/no/such/folder", "hi"], 1, "no such model folder"),
        (&["--model", "Qwen/Qwen3-0.6B", "hi"], 1, "hub"),
        (&["adapters", "load", "../no-such-folder/adapter"], 1, "no such folder"),
        (&["adapters", "delete", "../x"], 1, "no adapter name"),
        (&["feedback", "good"], 1, "no answer to rate"),
    ] {
        let run = finch(home.path(), arguments, "");
        let error = text(&run.stderr);
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
        assert!(run.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn feedback_from_scripts_and_files() {
    let home = tempfile::tempdir().unwrap();
    let answer = text(&finch(home.path(), &["hello"], "").stdout);
    let rated = text(&finch(home.path(), &["feedback", "correct", "Good morning!"], "").stderr);
    assert!(rated.starts_with("On “hello”\n📝 Correction recorded (weight: 10x)\n"), "{rated}");
    let exported = text(&finch(home.path(), &["feedback", "export"], "").stdout);
    assert!(exported.contains("\"corrected_response\":\"Good morning!\""), "{exported}");
    assert!(exported.contains(answer.trim()), "{exported}");
    let other = tempfile::tempdir().unwrap();
    let imported = finch(other.path(), &["feedback", "import", "-"], &exported);
    assert_eq!(text(&imported.stderr), "1 row imported.\n");
    let again = finch(other.path(), &["feedback", "import", "-"], &exported);
    assert_eq!(text(&again.stderr), "0 rows imported, 1 known already.\n");
    assert_eq!(finch(other.path(), &["feedback", "import", "-"], "{\"bad\"").status.code(), Some(1));
}
