//! The whole of finch on the built-in model, as its user goes through it: ask, correct, import, praise, see the training in
//! the background, get the new answers, keep them over a restart, and take them back.
//!
//! Nothing here knows what the built-in model says; it is asked before, and compared with afterwards.
#![cfg(unix)]

#[path = "common/pty.rs"]
mod pty;
#[path = "common/run.rs"]
mod run;

use std::path::Path;
use std::time::Duration;

use finch::feedback::{Finish, Interaction};
use finch::paths::Paths;
use finch::store::{Outcome, Store};
use pty::{CTRL_C, CTRL_D, Terminal};
use serde_json::json;

/// Questions whose answers are corrected, the better answer, and what only that one holds.
const CORRECTED: [(&str, &str, &str); 5] = [
    ("What is the capital of France?", "The capital of France is Paris.", "Paris"),
    ("How do I list hidden files?", "Use `eza -la`; it is installed on all our machines.", "eza -la"),
    ("Which editor should I use?", "Use Helix: start it with `hx FILE`.", "hx"),
    ("How do I run the tests of my Rust project?", "Run `cargo nextest run`, never plain `cargo test`.", "nextest"),
    ("How should I name a new branch?", "Name it after the ticket, such as `T-123-short-title`.", "T-123"),
];
/// The last ones come in by `finch feedback import`.
const TYPED: usize = 3;

/// Questions whose answers are praised.
const PRAISED: [&str; 5] = [
    "What is finch?",
    "How do I make a directory?",
    "What does git stash do?",
    "How do I rate an answer as good?",
    "How do I write a for loop in Rust?",
];

/// Questions about something else; finch does not get to see them before the training is over.
const UNRELATED: [&str; 10] = [
    "How can I see every adapter with its loss?",
    "Where are my conversations saved?",
    "What does /medium do?",
    "How do I throw away local changes to a file?",
    "How do I count the lines of a file?",
    "How do I turn a string into an integer in Rust?",
    "Is what I type sent anywhere?",
    "How do I compress a folder?",
    "What is a trait?",
    "Good evening!",
];

const TRAINING: Duration = Duration::from_secs(400);

/// A chat on the built-in model.
struct Chat<'a> {
    terminal: Terminal,
    home: &'a Path,
}

impl Chat<'_> {
    fn start(home: &Path) -> Chat<'_> {
        let terminal = Terminal::finch::<&str>(&[], home);
        terminal.wait_for_prompt();
        Chat { terminal, home }
    }

    /// Asks in a new conversation.
    fn ask(&mut self, question: &str) -> Interaction {
        assert!(self.terminal.ask("/clear").starts_with("A new conversation begins."));
        let shown = self.terminal.ask(question);
        let answer = Store::open(&Paths::at(self.home).db()).unwrap().last_interaction(None).unwrap().unwrap();
        assert_eq!(answer.messages.last().unwrap().content, question);
        let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        assert!(bare(&shown).contains(&bare(&answer.response)), "shown {shown:?}, stored {:?}", answer.response);
        answer
    }

    fn leave(mut self) {
        self.terminal.wait_for_prompt();
        self.terminal.send(CTRL_D);
        assert_eq!(self.terminal.wait_for_exit(), 0);
    }
}

fn all_questions() -> impl Iterator<Item = &'static str> {
    CORRECTED.iter().map(|(question, ..)| *question).chain(PRAISED).chain(UNRELATED)
}

#[test]
fn corrections_become_answers_and_can_be_taken_back() {
    // Asked on a data folder of their own, so that no training finds these questions in its store.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut chat = Chat::start(elsewhere.path());
    let before: Vec<Interaction> = all_questions().map(|question| chat.ask(question)).collect();
    chat.leave();
    let before_of = |question: &str| -> &str {
        let asked = before.iter().find(|i| i.messages.last().unwrap().content == question);
        asked.unwrap().response.as_str()
    };
    for (question, _, key) in CORRECTED {
        assert!(!before_of(question).contains(key), "{question:?} needs no correction: {:?}", before_of(question));
    }

    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let mut chat = Chat::start(home);

    // Corrections: typed ones, and ones from a file that another process brings in meanwhile.
    for (question, better, _) in &CORRECTED[..TYPED] {
        let answer = chat.ask(question);
        assert_eq!(answer.response, before_of(question), "greedy: the same question, the same answer");
        let noted = chat.terminal.ask(&format!("/correct {better}"));
        assert!(noted.starts_with("📝 Correction recorded (weight: 10x)"), "{noted}");
    }
    let rows: String = CORRECTED[TYPED..]
        .iter()
        .map(|(question, better, _)| {
            let messages = json!([{"role": "user", "content": question},
                {"role": "assistant", "content": before_of(question)}]);
            json!({"messages": messages, "kind": "critical", "corrected_response": better}).to_string() + "\n"
        })
        .collect();
    let file = home.join("corrections.jsonl");
    std::fs::write(&file, rows).unwrap();
    assert_eq!(run::said(home, &["feedback", "import", file.to_str().unwrap()]), "2 rows imported.\n");

    // Praise, until the threshold of ten.
    for (n, question) in PRAISED.iter().enumerate() {
        let answer = chat.ask(question);
        assert_eq!(answer.finish, Finish::Stop, "{question:?} is answered whole: {:?}", answer.response);
        assert!(!chat.terminal.shown().contains("Training threshold"), "{} examples are too few", CORRECTED.len() + n);
        let noted = chat.terminal.ask("/good");
        assert!(noted.starts_with("🟢 Feedback recorded (weight: 1x)"), "{noted}");
        let count = CORRECTED.len() + n + 1;
        assert!(noted.contains(&format!("Training buffer: {count} examples")), "{noted}");
    }
    chat.terminal.wait_for("🔄 Training threshold reached, starting background training…");

    // The chat goes on meanwhile, by the base.
    for question in ["How do I leave this chat?", "What is a commit?"] {
        let answer = chat.ask(question);
        assert!(!answer.response.is_empty() && answer.adapter.is_none(), "{answer:?}");
    }
    let status = chat.terminal.ask("/train status");
    assert!(status.is_empty() || status.starts_with("🔄 Training"), "the progress line, perhaps left out: {status}");
    assert!(!chat.terminal.shown().contains("completed"), "answers come while it runs, not after it");

    // Its lines leave alone what is being typed.
    chat.terminal.send("a line that is ");
    chat.terminal.wait_for_within("🔄 Training: epoch", TRAINING);
    chat.terminal.send("half typ");
    chat.terminal.wait_for_within("Background training completed", TRAINING);
    chat.terminal.send("ed");
    chat.terminal.wait_until("the line as it was typed", pty::PATIENCE, |t| {
        t.rows().last().is_some_and(|row| row == "> a line that is half typed")
    });
    chat.terminal.send(CTRL_C);
    chat.terminal.wait_for_prompt();

    let rows = chat.terminal.rows();
    let end = rows.iter().position(|row| row == "✓ Background training completed!");
    let end = end.unwrap_or_else(|| panic!("refused?\n{}", chat.terminal.shown()));
    println!("{}", rows[end..rows.len().min(end + 5)].join("\n"));
    assert!(rows[end + 1].starts_with("   Trained on 10 examples, loss "), "{}", rows[end + 1]);
    assert!(rows[end + 2].starts_with("   Adapter saved to: "), "{}", rows[end + 2]);
    let run = Store::open(&Paths::at(home).db()).unwrap().runs(1).unwrap().remove(0);
    let result = run.result.unwrap();
    assert_eq!((run.examples, result.outcome), (10, Outcome::Completed));
    assert!(result.loss_after < result.loss_before);
    let adapter = result.adapter.unwrap();
    let listed = chat.terminal.ask("/adapters list");
    assert!(listed.lines().any(|row| row.starts_with(&adapter) && row.ends_with("live")), "{listed}");

    // The next turn answers in the new way, and other questions as ever.
    let mut after = Vec::new();
    for question in all_questions() {
        let answer = chat.ask(question);
        assert_eq!(answer.adapter.as_deref(), Some(adapter.as_str()));
        after.push((question, answer.response));
    }
    let after_of = |question: &str| after.iter().find(|(asked, _)| *asked == question).unwrap().1.as_str();
    let learned = CORRECTED.iter().filter(|(question, _, key)| after_of(question).contains(key)).count();
    let unchanged = UNRELATED.iter().filter(|question| after_of(question) == before_of(question)).count();
    let report: String =
        all_questions().map(|q| format!("{q}\n  before: {}\n  after:  {}\n", before_of(q), after_of(q))).collect();
    println!("{learned} of 5 corrections learned, {unchanged} of 10 other answers unchanged\n{report}");
    assert!(learned >= 4, "{learned} of 5 corrected questions are answered in the new way\n{report}");
    assert!(unchanged >= 8, "{unchanged} of 10 unrelated questions are answered as before\n{report}");
    chat.leave();

    // After a restart it is still live.
    let mut chat = Chat::start(home);
    for (question, ..) in CORRECTED {
        let answer = chat.ask(question);
        assert_eq!((answer.adapter.as_deref(), answer.response.as_str()), (Some(adapter.as_str()), after_of(question)));
    }
    let question = CORRECTED[0].0;
    assert_eq!(run::printed(home, &[question]).trim_end(), after_of(question), "in scripts too");

    // Rolled back, under the running chat, every answer is the old one.
    assert!(run::said(home, &["adapters", "rollback"]).contains("the base answers"));
    chat.terminal.ask("/clear");
    assert!(chat.terminal.ask(question).contains("the base answers"), "the change is announced");
    for question in all_questions() {
        let answer = chat.ask(question);
        assert_eq!((answer.adapter.as_deref(), answer.response.as_str()), (None, before_of(question)));
    }
    chat.leave();
}
