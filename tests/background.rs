//! The training behind the chat, in the real program: it starts at the threshold, garbles nothing, can be cancelled and left.
#![cfg(unix)]

#[path = "common/pty.rs"]
mod pty;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use finch::fsio::Lock;
use finch::paths::Paths;
use finch::store::{NewRun, Store};
use pty::{CTRL_C, CTRL_D, Terminal};

const LONG: Duration = Duration::from_secs(300);

/// Ten corrections, as many as the threshold asks for.
fn import_corrections(home: &Path) {
    let rows: String = (0..10)
        .map(|n| {
            let row = serde_json::json!({
                "messages": [
                    {"role": "user", "content": format!("What is the code of room {n}?")},
                    {"role": "assistant", "content": "I do not know."},
                ],
                "kind": "correction",
                "corrected_response": format!("The code of room {n} is {}.", 17 * n + 3),
            });
            format!("{row}\n")
        })
        .collect();
    let file = home.join("corrections.jsonl");
    std::fs::write(&file, rows).unwrap();
    let finch = env!("CARGO_BIN_EXE_finch");
    let run = Command::new(finch).args(["feedback", "import"]).arg(&file).env("FINCH_HOME", home).output().unwrap();
    assert_eq!(String::from_utf8(run.stderr).unwrap(), "10 rows imported.\n");
}

fn start(home: &Path) -> Terminal {
    let terminal = Terminal::finch::<&str>(&[], home);
    terminal.wait_for_prompt();
    terminal
}

/// `/train status` of a chat that trains nothing by itself.
fn status(home: &Path) -> String {
    let finch = env!("CARGO_BIN_EXE_finch");
    let mut t = Terminal::start_with::<&str>(finch, &[], home, &[("FINCH_FEEDBACK_AUTO_TRAIN", "false")]);
    t.ask("hello"); // the model is loaded from here on
    let status = t.ask("/train status");
    t.send(CTRL_D);
    assert_eq!(t.wait_for_exit(), 0);
    status
}

#[test]
fn a_threshold_met_before_the_start_trains_after_the_first_turn_and_can_be_cancelled() {
    let home = tempfile::tempdir().unwrap();
    import_corrections(home.path());
    let mut t = start(home.path());
    t.wait_for_prompt();
    assert!(t.ask("/train status").contains("10 new examples"), "nothing starts before the first turn");
    t.line("hello");
    t.wait_for_within("🔄 Training threshold reached, starting background training…", LONG);
    t.wait_for_within("🔄 Training: epoch 1, batch 1/", LONG);
    // What is typed meanwhile stays whole.
    t.send("/train stat");
    t.wait_until("progress above what is typed", LONG, |t| {
        let rows = t.rows();
        let goes_on = |row: &String| row.starts_with("🔄 Training: epoch") && !row.contains("epoch 1, batch 1/");
        rows.last().is_some_and(|row| row == "> /train stat") && rows.iter().any(goes_on)
    });
    t.send("us\r");
    t.wait_until("the status", LONG, |t| {
        t.rows().iter().filter(|row| row.starts_with("🔄 Training: epoch")).count() > 0
    });
    assert!(!t.ask("What is finch?").is_empty(), "the chat goes on");
    assert!(t.ask("/train").contains("running already"));
    t.ask("/train cancel");
    t.wait_for_within("Training cancelled; its 10 examples stay new.", LONG);
    assert!(t.ask("/train cancel").contains("No training is running"));
    assert!(t.ask("/adapters").contains("no adapters yet"));
    t.send(CTRL_D);
    assert_eq!(t.wait_for_exit(), 0);
}

#[test]
fn leaving_during_a_training_cancels_it_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    import_corrections(home.path());
    let mut t = start(home.path());
    t.line("hello");
    t.wait_for_within("🔄 Training: epoch 1", LONG);
    t.wait_for_prompt();
    t.send(CTRL_D);
    t.wait_for_within("Training cancelled; its 10 examples stay new.", LONG);
    assert!(t.shown().contains("Stopping the running training…"));
    assert_eq!(t.wait_for_exit(), 0);
    assert!(status(home.path()).contains("10 new examples"));
}

#[test]
fn ctrl_c_leaves_at_once_where_a_training_takes_long_to_stop() {
    let home = tempfile::tempdir().unwrap();
    import_corrections(home.path());
    let mut t = start(home.path());
    t.line("hello");
    t.wait_for_within("🔄 Training: epoch 1", LONG);
    t.wait_for_prompt();
    // Another program that writes to the store: the end of the run cannot be noted meanwhile.
    let writer = rusqlite::Connection::open(home.path().join("finch.db")).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    t.send(CTRL_D);
    t.wait_for("Stopping the running training…");
    t.send(CTRL_C);
    t.wait_for("dropped unfinished");
    assert_eq!(t.wait_for_exit(), 130);
    writer.execute_batch("ROLLBACK").unwrap();
    let status = status(home.path());
    assert!(status.contains("10 new examples") && status.contains(", unfinished, as its finch ended"), "{status}");
}

#[test]
fn a_training_of_another_finch_is_told() {
    let home = tempfile::tempdir().unwrap();
    let paths = Paths::at(home.path());
    let store = Store::open(&paths.db()).unwrap();
    let parameters = serde_json::json!({});
    store.begin_run(&NewRun { model: "m", base: "b0", parameters: &parameters, examples: &[] }).unwrap();
    let _lock = Lock::try_acquire(&paths.lock("training"), "training").unwrap();
    let status = status(home.path());
    let other = format!("Another finch (process {}) is training on this data", std::process::id());
    assert!(status.starts_with(&other) && status.ends_with(", running"), "{status}");
}

#[test]
fn the_train_command_asks_for_something_to_train_on() {
    let home = tempfile::tempdir().unwrap();
    let status = status(home.path());
    assert_eq!(status, "No training is running; 0 new examples, it starts with /train (auto_train is off).");
    let mut t = start(home.path());
    t.ask("hello");
    let refused = t.ask("/train");
    assert!(refused.contains("nothing to train on yet"), "{refused}");
    t.send(CTRL_D);
    assert_eq!(t.wait_for_exit(), 0);
}
