//! Better answers on the screen: the question why, the review of what waits, the user's editor, second answers.
#![cfg(unix)]

#[path = "common/pty.rs"]
mod pty;
#[path = "common/run.rs"]
mod run;
#[path = "common/scripted.rs"]
mod scripted;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use finch::feedback::revision::Proposal;
use finch::paths::Paths;
use finch::store::Store;
use pty::{CTRL_C, CTRL_D, Terminal};
use scripted::Then;

const ANSWER: &str = "So it was";

/// A chat with a model that always gives the same answer; `variables` are its environment.
struct Chat {
    terminal: Terminal,
    home: tempfile::TempDir,
}

impl Chat {
    fn start(variables: &[(&str, &str)]) -> Chat {
        Self::start_in(tempfile::tempdir().unwrap(), variables)
    }

    fn start_in(home: tempfile::TempDir, variables: &[(&str, &str)]) -> Chat {
        let model = home.path().join("model");
        scripted::write(&model, &[b"So ", b"it ", b"was"], Then::End);
        let variables: Vec<(&str, &str)> =
            [("FINCH_FEEDBACK_AUTO_TRAIN", "false")].iter().chain(variables).copied().collect();
        let arguments = ["--model", model.to_str().unwrap()];
        let terminal = Terminal::start_with(env!("CARGO_BIN_EXE_finch"), &arguments, home.path(), &variables);
        terminal.wait_for_prompt();
        Chat { terminal, home }
    }

    fn leave(mut self) -> tempfile::TempDir {
        self.terminal.wait_for_prompt();
        self.terminal.send(CTRL_D);
        assert_eq!(self.terminal.wait_for_exit(), 0);
        self.home
    }

    fn store(&self) -> Store {
        Store::open(&Paths::at(self.home.path()).db()).unwrap()
    }
}

/// An editor that runs `script` on the file `"$2"`; the variable that names it has an argument.
fn editor(home: &Path, script: &str) -> String {
    let program = home.join("my editor");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
    format!("'{}' --wait", program.display())
}

#[test]
fn a_note_that_no_candidate_obeys_is_told_and_waits() {
    let mut chat = Chat::start(&[]);
    let t = &mut chat.terminal;
    assert_eq!(t.ask("how?"), ANSWER);
    t.ask("/critical Never say was");
    t.wait_for("💡 No better answer came out (3 against \"no was\"). Your note stays");
    assert!(t.ask("/buffer").contains("🔴 “how?”  note: “Never say was”"));
    t.ask("/buffer review");
    t.wait_for("Waiting: “how?”");
    t.wait_until("a second try", pty::PATIENCE, |t| t.shown().matches("No better answer").count() == 2);
    chat.leave();
}

#[test]
fn a_bad_rating_without_a_note_asks_why_once() {
    let mut chat = Chat::start(&[("FINCH_FEEDBACK_REVISE", "never")]);
    let t = &mut chat.terminal;
    t.ask("how?");
    t.line("👎");
    t.wait_for("Why? ");
    t.line("too short");
    t.wait_for("Noted with your 👎 thumbs down: “too short”");
    assert!(!t.ask("/critical").contains("Why?"), "it was asked about this answer");
    t.ask("again?");
    t.line("/critical");
    t.wait_until("the second why", pty::PATIENCE, |t| t.shown().matches("Why? ").count() == 2);
    t.send(CTRL_C);
    t.wait_for_prompt();
    t.ask("once more?");
    t.line("/down");
    t.wait_until("the third why", pty::PATIENCE, |t| t.shown().matches("Why? ").count() == 3);
    t.line("/stats");
    t.wait_for("Answers:");
    chat.leave();
}

#[test]
fn a_proposal_is_reviewed_in_another_session() {
    let mut chat = Chat::start(&[("FINCH_FEEDBACK_REVISE", "never")]);
    chat.terminal.ask("how?");
    chat.terminal.ask("/medium Be kind.");
    let (interaction, feedback) = chat.store().judged().unwrap().remove(0);
    let proposal = Proposal { text: "Kindly so.".into(), base: interaction.base.unwrap(), gain: 0.5, rejected: false };
    assert!(chat.store().keep_proposal(feedback[0].id, &proposal).unwrap());
    let home = chat.leave();

    let mut chat = Chat::start_in(home, &[]);
    let t = &mut chat.terminal;
    assert!(t.ask("/buffer").contains("💡 one is there"));
    let offered = |t: &Terminal| t.shown().matches("💡 Better answer? From your note “Be kind.”:").count();
    t.ask("/buffer review");
    t.wait_until("the offer", pty::PATIENCE, |t| offered(t) == 1);
    t.wait_for("   Kindly so.");
    assert_eq!(t.ask("another question?"), ANSWER, "any other line is taken as ever");
    assert_eq!(t.ask("a"), ANSWER, "and the offer is closed by it");
    t.ask("/buffer review");
    t.wait_until("the offer again", pty::PATIENCE, |t| offered(t) == 2);
    assert!(t.ask("a").starts_with("📝 Better answer recorded (weight: 3x)\n"));
    assert!(t.ask("/buffer review").contains("No answer with a note waits"));
    assert!(t.ask("/undo").starts_with("Taken back: 📝 correction"));
    t.ask("/buffer review");
    t.wait_until("the third offer", pty::PATIENCE, |t| offered(t) == 3);
    assert!(t.ask("r").starts_with("Rejected."));
    assert!(!t.ask("/buffer").contains("💡"));
    chat.leave();
}

#[test]
fn the_answer_is_edited_in_the_users_editor() {
    let home = tempfile::tempdir().unwrap();
    let script = "test \"$1\" = --wait || exit 9\nstty -a > \"$FINCH_HOME/modes\"\necho 'And so it is.' >> \"$2\"";
    let editor = editor(home.path(), script);
    let mut chat = Chat::start_in(home, &[("EDITOR", "false"), ("VISUAL", &editor)]);
    let t = &mut chat.terminal;
    assert!(t.ask("/fix").contains("there is no answer to fix yet"));
    t.ask("how?");
    assert!(t.ask("/fix").starts_with("📝 Correction recorded (weight: 10x)\n"));
    let modes = std::fs::read_to_string(chat.home.path().join("modes")).unwrap();
    assert!(modes.contains(" echo ") && modes.contains(" icanon "), "the terminal was handed over: {modes}");
    let (_, feedback) = chat.store().judged().unwrap().remove(0);
    assert_eq!(feedback[0].corrected.as_deref(), Some("So it was\nAnd so it is."));
    let left: Vec<_> = std::fs::read_dir(chat.home.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("edit-")), "{left:?}");
    let t = &mut chat.terminal;
    assert_eq!(t.ask("still here?"), ANSWER, "and taken back");
    chat.leave();
}

#[test]
fn an_editor_that_changes_nothing_or_fails_records_nothing() {
    let home = tempfile::tempdir().unwrap();
    let editor = editor(home.path(), "test -e \"$FINCH_HOME/fail\" && exit 7\nexit 0");
    let mut chat = Chat::start_in(home, &[("FINCH_EDITOR", &editor)]);
    let t = &mut chat.terminal;
    t.ask("how?");
    assert!(t.ask("/fix").contains("The text is unchanged; nothing was recorded."));
    std::fs::write(chat.home.path().join("fail"), "").unwrap();
    let failed = chat.terminal.ask("/fix");
    assert!(failed.contains("exit status: 7") && failed.contains("nothing was recorded"), "{failed}");
    assert!(chat.store().judged().unwrap().is_empty());
    chat.leave();
}

#[test]
fn a_second_answer_that_is_the_same_is_told() {
    let mut chat = Chat::start(&[]);
    let t = &mut chat.terminal;
    assert!(t.ask("/retry").contains("there is no answer to give again yet"));
    t.ask("how?");
    let again = t.ask("/retry");
    assert!(again.starts_with(ANSWER) && again.contains("(The same answer again"), "{again}");
    chat.leave();
}

/// What `finch train` says with this setting of `feedback.revise`.
fn train(home: &Path, revise: &str) -> run::Ran {
    let model = home.join("model");
    let mut command = run::command(home, &["train", "--epochs", "1", "--model", model.to_str().unwrap()]);
    let output = command.env("FINCH_FEEDBACK_REVISE", revise).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    run::Ran { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

#[test]
fn a_training_without_a_chat_makes_better_answers_only_where_nobody_is_to_be_asked() {
    let home = tempfile::tempdir().unwrap();
    scripted::write(&home.path().join("model"), &[b"So ", b"it ", b"was"], Then::End);
    let model = home.path().join("model");
    for (question, note) in [("how?", "Be kind."), ("why?", "Never say was")] {
        assert_eq!(run::finch(home.path(), &["--model", model.to_str().unwrap(), question]).out.trim_end(), ANSWER);
        assert!(run::said(home.path(), &["feedback", "critical", note]).contains("Feedback recorded"));
    }
    // What the chat offered, and nobody decided about.
    let store = Store::open(&Paths::at(home.path()).db()).unwrap();
    let (interaction, feedback) = store.judged().unwrap().remove(0);
    let proposal = Proposal { text: "Kindly so.".into(), base: interaction.base.unwrap(), gain: 0.5, rejected: false };
    assert!(store.keep_proposal(feedback[0].id, &proposal).unwrap());

    let asked = train(home.path(), "ask").error;
    assert!(asked.contains("2 bad answers wait for a better one. 2 of them have a note:"), "{asked}");
    assert!(asked.contains("There is nothing to train on yet") && !asked.contains("💡"), "{asked}");

    let made = train(home.path(), "always").error;
    let order = [
        "2 answers with a note wait for a better one: making them…",
        "   > how?\n   So it was\n💡 Better answer recorded (weight: 10x), from your note “Be kind.”:\n   Kindly so.\n",
        "   `finch feedback undo` takes it back",
        "💡 No better answer came out for “why?” (3 against \"no was\")",
        "1 bad answer waits for a better one. It has a note:",
        "Training on 1 example\n",
    ];
    let at: Vec<Option<usize>> = order.iter().map(|words| made.find(words)).collect();
    assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?} in {made}");
    let given: Vec<String> = store.all_feedback().unwrap().into_iter().filter_map(|(f, _)| f.corrected).collect();
    assert_eq!(given, ["Kindly so."]);
}
