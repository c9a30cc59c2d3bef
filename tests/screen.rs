//! The chat's input in a pseudo-terminal: editing, background lines, keys typed during an answer.
//!
//! The program under test is this file's own `child`, started again inside the terminal: the real editor and printer, with
//! a stand-in for the model.
#![cfg(unix)]

#[path = "common/pty.rs"]
mod pty;

use std::sync::Arc;
use std::time::Duration;

use finch::repl::input::{Input, Line};
use finch::repl::terminal::QuietKeys;
use pty::{ALT_ENTER, CTRL_C, CTRL_D, ENTER, Terminal};

/// Set for the program inside the terminal.
const CHILD: &str = "FINCH_TEST_CHILD";

/// Not a test of its own: inside the terminal of the other tests, a loop over lines, as the chat has it.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let _quiet = QuietKeys::start();
    let home = std::path::PathBuf::from(std::env::var_os("FINCH_HOME").unwrap());
    let names = Arc::new(|| vec!["lora_one".to_string(), "lora_two".to_string()]);
    let mut input = Input::open(&home.join("history.txt"), names).unwrap();
    let printer = input.printer();
    println!("ready");
    loop {
        match input.read("> ").unwrap() {
            Line::End => break,
            Line::Interrupted => println!("interrupted"),
            Line::Text(text) if text == "slow" => {
                for word in ["one ", "two ", "three ", "four ", "five "] {
                    printer.say(format!("[news during {}]\n", word.trim()));
                    print!("{word}");
                    std::io::Write::flush(&mut std::io::stdout()).unwrap();
                    std::thread::sleep(Duration::from_millis(150));
                }
                println!("done");
            }
            Line::Text(text) if text == "news" => {
                let printer = printer.clone();
                std::thread::spawn(move || {
                    for n in 1..=20 {
                        std::thread::sleep(Duration::from_millis(40));
                        printer.say(format!("[news {n}]\n"));
                    }
                });
            }
            Line::Text(text) if text == "progress" => {
                let printer = printer.clone();
                std::thread::spawn(move || {
                    for n in 1..=30 {
                        printer.progress(Some(format!("progress {n}")));
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    printer.progress(None);
                    printer.say("finished\n");
                });
            }
            Line::Text(text) if text == "ask" => println!("{}", input.confirm("Delete it?").unwrap()),
            Line::Text(text) => println!("got {text:?}"),
        }
    }
    println!("bye");
}

struct Chat {
    terminal: Terminal,
    home: tempfile::TempDir,
}

impl Chat {
    fn start() -> Chat {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(home: tempfile::TempDir) -> Chat {
        let program = std::env::current_exe().unwrap();
        let arguments = ["--exact", "child", "--nocapture", "--test-threads=1"];
        let terminal = Terminal::start_with(program.to_str().unwrap(), &arguments, home.path(), &[(CHILD, "1")]);
        terminal.wait_for("ready");
        terminal.wait_for_prompt();
        Chat { terminal, home }
    }

    fn leave(mut self) -> tempfile::TempDir {
        self.terminal.send(CTRL_D);
        self.terminal.wait_for("bye");
        self.home
    }
}

#[test]
fn lines_are_read_and_ctrl_d_leaves() {
    let mut chat = Chat::start();
    assert_eq!(chat.terminal.ask("hello there"), r#"got "hello there""#);
    chat.leave();
}

#[test]
fn alt_enter_and_a_trailing_backslash_continue_a_line() {
    let mut chat = Chat::start();
    chat.terminal.send(&format!("one{ALT_ENTER}two{ENTER}"));
    chat.terminal.wait_for(r#"got "one\ntwo""#);
    chat.terminal.send(&format!("three \\{ENTER}four{ENTER}"));
    chat.terminal.wait_for(r#"got "three \nfour""#);
    chat.terminal.send(&format!("path\\\\{ENTER}"));
    chat.terminal.wait_for(r#"got "path\\\\""#);
    chat.leave();
}

#[test]
fn a_pasted_text_is_one_line() {
    let mut chat = Chat::start();
    chat.terminal.send("\x1b[200~first \\\nsecond\n\x1b[201~");
    chat.terminal.send(ENTER);
    chat.terminal.wait_for(r#"got "first \\\nsecond\n""#);
    chat.leave();
}

#[test]
fn ctrl_c_clears_what_is_typed_and_is_reported_on_an_empty_line() {
    let mut chat = Chat::start();
    chat.terminal.send("rubbish");
    chat.terminal.wait_for("> rubbish");
    chat.terminal.send(CTRL_C);
    chat.terminal.wait_for_prompt();
    assert!(!chat.terminal.shown().contains("rubbish"));
    assert_eq!(chat.terminal.ask("kept"), r#"got "kept""#);
    chat.terminal.send(CTRL_C);
    chat.terminal.wait_for("interrupted");
    chat.leave();
}

#[test]
fn tab_completes_commands_and_adapter_names() {
    let mut chat = Chat::start();
    chat.terminal.send("/ad\tload lora_o\t\r");
    chat.terminal.wait_for(r#"got "/adapters load lora_one ""#);
    chat.leave();
}

#[test]
fn background_lines_come_above_what_is_being_typed() {
    let mut chat = Chat::start();
    chat.terminal.line("news");
    for key in "a question that is typed slowly".chars() {
        chat.terminal.send(&key.to_string());
        std::thread::sleep(Duration::from_millis(25));
    }
    chat.terminal.wait_for("[news 20]");
    chat.terminal.wait_for("> a question that is typed slowly");
    chat.terminal.send(ENTER);
    chat.terminal.wait_for(r#"got "a question that is typed slowly""#);
    let rows = chat.terminal.rows();
    for n in 1..=20 {
        assert_eq!(rows.iter().filter(|row| **row == format!("[news {n}]")).count(), 1, "{rows:#?}");
    }
    assert_eq!(rows.iter().filter(|row| row.starts_with("> a")).count(), 1, "{rows:#?}");
    chat.leave();
}

#[test]
fn keys_typed_during_an_answer_garble_nothing_and_wait_for_the_prompt() {
    let mut chat = Chat::start();
    chat.terminal.line("slow");
    chat.terminal.wait_for("two");
    chat.terminal.send(&format!("first ahead{ENTER}second ahead{ENTER}third"));
    chat.terminal.wait_for(r#"got "second ahead""#);
    chat.terminal.wait_for("> third");
    let rows = chat.terminal.rows();
    assert!(rows.contains(&"one two three four five done".to_string()), "{rows:#?}");
    assert!(rows.contains(&r#"got "first ahead""#.to_string()), "{rows:#?}");
    for word in ["one", "two", "three", "four", "five"] {
        assert!(rows.contains(&format!("[news during {word}]")), "{rows:#?}");
    }
    let done = rows.iter().position(|row| row.ends_with("done")).unwrap();
    assert!(rows.iter().position(|row| row.starts_with("[news")).unwrap() > done, "{rows:#?}");
    chat.terminal.send(CTRL_C);
    chat.terminal.wait_for_prompt();
    chat.leave();
}

#[test]
fn progress_is_rewritten_in_one_line() {
    let mut chat = Chat::start();
    chat.terminal.line("progress");
    chat.terminal.wait_for("progress ");
    chat.terminal.send("typing");
    chat.terminal.wait_for("finished");
    chat.terminal.wait_for("> typing");
    let rows = chat.terminal.rows();
    assert!(!rows.iter().any(|row| row.starts_with("progress ")), "the last one gives way: {rows:#?}");
    let raw = String::from_utf8_lossy(&chat.terminal.raw()).into_owned();
    let shown = raw.matches("progress ").count();
    assert!((3..=6).contains(&shown), "shown {shown} times in 1.5 s");
    chat.terminal.send(CTRL_C);
    chat.terminal.wait_for_prompt();
    chat.leave();
}

#[test]
fn questions_take_yes_only() {
    let mut chat = Chat::start();
    for (answer, result) in [("y", "true"), ("", "false"), ("Yes", "true"), ("no", "false")] {
        chat.terminal.wait_for_prompt();
        let before = chat.terminal.rows().len();
        chat.terminal.line("ask");
        chat.terminal.wait_until("the question", Duration::from_secs(60), |t| {
            t.rows().len() > before && t.rows().last().is_some_and(|row| row == "Delete it? [y/N]")
        });
        chat.terminal.line(answer);
        chat.terminal.wait_for_prompt();
        assert_eq!(chat.terminal.rows()[before + 1], result, "{answer}");
    }
    chat.leave();
}

#[test]
fn the_history_is_kept_privately_and_comes_back() {
    let mut chat = Chat::start();
    chat.terminal.ask("remember me");
    let history = chat.home.path().join("history.txt");
    chat.terminal.wait_until("the history file", Duration::from_secs(60), |_| history.exists());
    chat.terminal.kill();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&history).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut again = Chat::start_in(chat.home);
    again.terminal.send("\x1b[A");
    again.terminal.wait_for("> remember me");
    again.terminal.send(CTRL_C);
    again.leave();
}
