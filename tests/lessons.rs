//! A note, given once, as its user meets it: in the prompts of the answers that follow, in a list, over a restart, in one-shot
//! use, gone when it is dropped or when an adapter carries it. What the model makes of its rules is not asked here.
#![cfg(unix)]

#[path = "common/pty.rs"]
mod pty;
#[path = "common/run.rs"]
mod run;

use std::path::Path;

use finch::adapter::peft::{self, Adapter, LoraSettings};
use finch::adapter::provenance::Provenance;
use finch::adapter::registry::Registry;
use finch::feedback::lesson::digest;
use finch::model::digest::DigestCache;
use finch::model::load::{Model, ModelSource};
use finch::model::lora::Target;
use finch::model::message::Role;
use finch::paths::Paths;
use finch::store::Store;
use pty::{CTRL_D, Terminal};

const NOTE: &str = "Never use .unwrap() in production code";
const RULES: &str = "Follow these rules, which the user gave:\n- Never use .unwrap() in production code";

fn start(home: &Path) -> Terminal {
    let quiet = [("FINCH_FEEDBACK_AUTO_TRAIN", "false"), ("FINCH_FEEDBACK_REVISE", "never")];
    let terminal = Terminal::start_with::<&str>(env!("CARGO_BIN_EXE_finch"), &[], home, &quiet);
    terminal.wait_for_prompt();
    terminal
}

fn leave(mut terminal: Terminal) {
    terminal.wait_for_prompt();
    terminal.send(CTRL_D);
    assert_eq!(terminal.wait_for_exit(), 0);
}

/// The system message before the last answer.
fn system(home: &Path) -> Option<String> {
    let answer = Store::open(&Paths::at(home).db()).unwrap().last_interaction(None).unwrap().unwrap();
    answer.messages.into_iter().find(|m| m.role == Role::System).map(|m| m.content)
}

#[test]
fn a_note_is_a_rule_until_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let mut t = start(home);
    assert!(t.ask("/lessons").contains("There are no lessons"));
    t.ask("How do I read a file?");
    let noted = t.ask(&format!("/critical {NOTE}"));
    assert!(noted.contains("The note stands in the prompt from the next answer on (/lessons)"), "{noted}");
    assert_eq!(
        t.ask("/lessons"),
        format!(
            "1  “{NOTE}”\n   10x, in the prompt from the next answer on\n\
             /lessons drop N takes one away; its rating stays."
        )
    );
    t.ask("/system Answer in one line.");
    t.ask("How do I read all lines of a file?");
    assert_eq!(system(home).unwrap(), format!("Answer in one line.\n\n{RULES}"));
    let listed = t.ask("/lessons");
    assert!(listed.contains("10x, in the prompt; you asked about read, file"), "{listed}");
    assert!(t.ask("/system").contains("System prompt: Answer in one line."));
    assert!(t.ask("/lesson").contains("nearest is /lessons"));
    assert!(t.ask("/lessons drop").contains("number is missing"));
    assert!(t.ask("/lessons drop 7").contains("there is no lesson 7"));
    leave(t);

    assert_eq!(run::finch(home, &["hello"]).code, Some(0));
    assert_eq!(system(home).as_deref(), Some(RULES), "one answer from a script");
    assert_eq!(run::piped(home, &["summarise"], "some notes").code, Some(0));
    assert_eq!(system(home).as_deref(), Some(RULES), "piped text");

    let mut t = start(home);
    t.ask("hello");
    assert_eq!(system(home).as_deref(), Some(RULES), "kept over a restart");
    assert_eq!(t.ask("/lessons drop 1"), format!("Lesson 1 is out of the prompts: “{NOTE}”\n   Its rating stays."));
    t.ask("hello");
    assert_eq!(system(home), None);
    assert!(t.ask("/buffer").contains(&format!("note: “{NOTE}”")));
    t.ask("/medium Be polite.");
    t.ask("hello");
    assert!(system(home).unwrap().ends_with("\n- Be polite."));
    assert!(t.ask("/undo").contains("Taken back: 🟡 medium"));
    t.ask("hello");
    assert_eq!(system(home), None, "taken back with its rating");
    leave(t);
}

#[test]
fn scripts_list_and_drop_lessons() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    run::printed(home, &["hello"]);
    run::said(home, &["feedback", "medium", NOTE]);
    let list = run::printed(home, &["feedback", "lessons"]);
    assert_eq!(
        list,
        format!("1  “{NOTE}”\n   3x, in force\nfinch feedback lessons drop N takes one away; its rating stays.\n")
    );
    assert_eq!(run::printed(home, &["feedback", "lessons", "list"]), list);
    assert!(run::said(home, &["feedback", "lessons", "drop", "1"]).contains("Lesson 1 is out of the prompts"));
    assert!(run::printed(home, &["feedback", "lessons"]).contains("no lessons"));
    let again = run::finch(home, &["feedback", "lessons", "drop", "1"]);
    assert!(again.code == Some(1) && again.error.contains("there is no lesson 1"), "{again:?}");
    let slip = run::finch(home, &["feedback", "lesons"]);
    assert!(slip.code == Some(2) && slip.error.contains("lessons"), "{slip:?}");
}

/// An adapter of the built-in model that changes nothing and says that it carries the note.
fn save_adapter(home: &Path, name: &str) {
    let paths = Paths::at(home);
    let model = Model::load(&ModelSource::Builtin, &DigestCache::of(&paths)).unwrap();
    let settings = LoraSettings { rank: 2, alpha: 4.0, targets: vec![Target::Q], ..LoraSettings::default() };
    let adapter = Adapter::new(peft::init(&*model.network, &settings, 1).unwrap(), settings);
    let made = Provenance { carries: vec![digest(NOTE)], ..Provenance::new(&model.base, &model.name) };
    Registry::new(paths).save(name, &adapter, &made).unwrap();
}

#[test]
fn a_rule_leaves_the_prompt_for_the_adapter_that_carries_it() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let mut t = start(home);
    t.ask("hello");
    t.ask(&format!("/critical {NOTE}"));
    save_adapter(home, "lora_adapter_1");
    assert!(t.ask("/adapters load lora_adapter_1").contains("lora_adapter_1"));
    assert!(t.ask("/lessons").contains("10x, carried by lora_adapter_1"));
    assert!(run::printed(home, &["feedback", "lessons"]).contains("10x, carried by lora_adapter_1"));
    t.ask("hello again");
    assert_eq!(system(home), None);
    assert!(t.ask("/adapters rollback").contains("the base answers"));
    assert!(t.ask("/lessons").contains("10x, in the prompt from the next answer on"));
    t.ask("and again");
    assert_eq!(system(home).as_deref(), Some(RULES));
    leave(t);
}
