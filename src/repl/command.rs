//! A line typed in the chat, understood: a prompt, a command, or a slip. Pure; nothing is looked up anywhere.
//!
//! The whole first word decides. What follows `/critical`, `/correct` and their like is kept as it was typed: only the
//! white space that separates it from the command, and that at its very end, is not part of it.

use super::help::{self, ADAPTERS_WORDS, BUFFER_WORDS, LESSONS_WORDS, LEVELS, TRAIN_WORDS};
use crate::feedback::kind::{Kind, Stars};
use crate::nearest::nearest;

/// What a line means.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Nothing but white space.
    Empty,
    /// To be sent to the model.
    Prompt(String),
    Command(Command),
    /// A first word with a slash that is no command; it is not sent to the model.
    Unknown {
        word: String,
        nearest: Option<&'static str>,
    },
    /// A command whose arguments make no sense: how it is used, and what was wrong.
    Invalid {
        usage: String,
        fault: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A judgement of the last answer (never [`Kind::Correction`] or an implicit one), with the note as typed.
    Rate {
        kind: Kind,
        note: Option<String>,
    },
    /// The better answer, as typed.
    Correct(String),
    Fix,
    /// With a hint, as typed.
    Retry(Option<String>),
    Undo,
    Lessons(LessonsAction),
    Adapters(AdaptersAction),
    Train(TrainAction),
    Buffer(BufferAction),
    Stats,
    Model,
    System(SystemAction),
    Clear,
    Help(Option<&'static help::Entry>),
    Quit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LessonsAction {
    List,
    /// The number that the list shows.
    Drop(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdaptersAction {
    List,
    Show(String),
    /// A PEFT folder to copy in, without making it live.
    Import(String),
    /// A name, or the path of a PEFT folder; `force` lets another base's adapter through when its shapes fit.
    Load {
        name: String,
        force: bool,
    },
    Unload,
    Delete(String),
    /// To the one before, or to an earlier one by name.
    Rollback(Option<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferAction {
    Show,
    /// Goes through what waits for a better answer.
    Review,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainAction {
    Now,
    Status,
    Cancel,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemAction {
    Show,
    Set(String),
    Off,
}

/// Understands one line (or several, joined by line feeds).
pub fn parse(line: &str) -> Input {
    let line = line.trim();
    if line.is_empty() {
        return Input::Empty;
    }
    if is_thumb(line)
        && let Some(kind) = Kind::parse(line)
    {
        return Input::Command(Command::Rate { kind, note: None });
    }
    if let Some(literal) = line.strip_prefix("//") {
        return Input::Prompt(format!("/{literal}"));
    }
    if !line.starts_with('/') {
        return Input::Prompt(line.to_string());
    }
    let (word, rest) = first_word(line);
    match help::find(word) {
        Some(entry) => command(entry, rest),
        None => Input::Unknown { word: word.to_string(), nearest: help::nearest_command(word) },
    }
}

/// A sign that rates, where it stands alone; the words that [`Kind::parse`] also knows are prompts.
fn is_thumb(line: &str) -> bool {
    line.starts_with(['👍', '👎']) || matches!(line, "+1" | "-1")
}

/// The first word, and what was typed after it.
fn first_word(line: &str) -> (&str, &str) {
    let end = line.find(char::is_whitespace).unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    // A text that begins on the next line keeps its indentation.
    let blank = rest.len() - rest.trim_start().len();
    let start = rest[..blank].find('\n').map_or(blank, |newline| newline + 1);
    (word, &rest[start..])
}

fn command(entry: &'static help::Entry, rest: &str) -> Input {
    let note = || (!rest.is_empty()).then(|| rest.to_string());
    let rate = |kind| Input::Command(Command::Rate { kind, note: note() });
    let alone = |command| {
        if rest.is_empty() { Input::Command(command) } else { invalid(entry, format!("{} takes no words", entry.name)) }
    };
    match entry.name {
        "/critical" => rate(Kind::Critical),
        "/medium" => rate(Kind::Medium),
        "/good" => rate(Kind::Good),
        "/up" => rate(Kind::ThumbsUp),
        "/down" => rate(Kind::ThumbsDown),
        "/feedback" => feedback(entry, rest),
        "/rate" => stars(entry, rest),
        "/correct" if rest.is_empty() => invalid(entry, "the better answer is missing"),
        "/correct" => Input::Command(Command::Correct(rest.to_string())),
        "/fix" => alone(Command::Fix),
        "/retry" => Input::Command(Command::Retry(note())),
        "/undo" => alone(Command::Undo),
        "/lessons" => lessons(entry, rest),
        "/adapters" => adapters(entry, rest),
        "/train" => match rest {
            "" => Input::Command(Command::Train(TrainAction::Now)),
            "status" => Input::Command(Command::Train(TrainAction::Status)),
            "cancel" => Input::Command(Command::Train(TrainAction::Cancel)),
            other => invalid(entry, unknown_word(other, &TRAIN_WORDS)),
        },
        "/buffer" => match rest {
            "" => Input::Command(Command::Buffer(BufferAction::Show)),
            "review" => Input::Command(Command::Buffer(BufferAction::Review)),
            other => invalid(entry, unknown_word(other, &BUFFER_WORDS)),
        },
        "/stats" => alone(Command::Stats),
        "/model" => alone(Command::Model),
        "/system" => Input::Command(Command::System(match rest {
            "" => SystemAction::Show,
            "off" => SystemAction::Off,
            text => SystemAction::Set(text.to_string()),
        })),
        "/clear" => alone(Command::Clear),
        "/help" => match rest {
            "" => Input::Command(Command::Help(None)),
            word => match help::find(&format!("/{}", word.trim_start_matches('/'))) {
                Some(about) => Input::Command(Command::Help(Some(about))),
                None => invalid(entry, format!("there is no command {word}")),
            },
        },
        "/quit" => alone(Command::Quit),
        // A test goes through the table, so this is reached by no entry of it.
        _ => Input::Unknown { word: entry.name.to_string(), nearest: None },
    }
}

fn feedback(entry: &help::Entry, rest: &str) -> Input {
    let (level, note) = first_word(rest);
    if level.is_empty() {
        return invalid(entry, "the level is missing");
    }
    match Kind::parse(level).filter(|_| LEVELS.contains(&level.to_ascii_lowercase().as_str())) {
        Some(kind) => Input::Command(Command::Rate { kind, note: (!note.is_empty()).then(|| note.to_string()) }),
        None => invalid(entry, unknown_word(level, &LEVELS)),
    }
}

fn stars(entry: &help::Entry, rest: &str) -> Input {
    let (number, note) = first_word(rest);
    match number.parse().ok().and_then(Stars::new) {
        Some(stars) => Input::Command(Command::Rate {
            kind: Kind::Rating(stars),
            note: (!note.is_empty()).then(|| note.to_string()),
        }),
        None => invalid(entry, "the stars are a whole number from 1 to 5"),
    }
}

fn lessons(entry: &help::Entry, rest: &str) -> Input {
    let (action, number) = first_word(rest);
    let action = match (action, number) {
        ("" | "list", "") => LessonsAction::List,
        ("list", _) => return invalid(entry, "list takes no words"),
        ("drop", number) => match number.parse() {
            Ok(id) => LessonsAction::Drop(id),
            Err(_) => return invalid(entry, "the lesson's number is missing; /lessons shows the numbers"),
        },
        (other, _) => return invalid(entry, unknown_word(other, &LESSONS_WORDS)),
    };
    Input::Command(Command::Lessons(action))
}

fn adapters(entry: &help::Entry, rest: &str) -> Input {
    let (action, name) = first_word(rest);
    let action = match (action, name) {
        ("" | "list", "") => AdaptersAction::List,
        ("unload", "") => AdaptersAction::Unload,
        ("rollback", "") => AdaptersAction::Rollback(None),
        ("rollback", name) => AdaptersAction::Rollback(Some(name.to_string())),
        ("import", "") => return invalid(entry, "the folder is missing: one that PEFT saved"),
        ("import", folder) => AdaptersAction::Import(folder.to_string()),
        ("load" | "show" | "delete", "") => {
            return invalid(entry, "the adapter's name is missing; /adapters list shows the names");
        }
        ("load", name) => {
            let (name, force) = match name.strip_suffix("--force").map(str::trim_end) {
                Some(before) if !before.is_empty() && before.len() + "--force".len() < name.len() => (before, true),
                _ => (name, false),
            };
            AdaptersAction::Load { name: name.to_string(), force }
        }
        ("show", name) => AdaptersAction::Show(name.to_string()),
        ("delete", name) => AdaptersAction::Delete(name.to_string()),
        ("list" | "unload", _) => return invalid(entry, format!("{action} takes no words")),
        (other, _) => return invalid(entry, unknown_word(other, &ADAPTERS_WORDS)),
    };
    Input::Command(Command::Adapters(action))
}

fn invalid(entry: &help::Entry, fault: impl Into<String>) -> Input {
    Input::Invalid { usage: help::usage(entry), fault: fault.into() }
}

fn unknown_word(word: &str, known: &[&'static str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("{word:?} is not known here; nearest is {near}"),
        None => format!("{word:?} is not known here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rated(line: &str) -> (Kind, Option<String>) {
        match parse(line) {
            Input::Command(Command::Rate { kind, note }) => (kind, note),
            other => panic!("{line:?}: {other:?}"),
        }
    }

    fn prompt(line: &str) -> String {
        match parse(line) {
            Input::Prompt(text) => text,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    fn fault(line: &str) -> String {
        match parse(line) {
            Input::Invalid { fault, .. } => fault,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    fn stars(n: u8) -> Kind {
        Kind::Rating(Stars::new(n).expect("1 to 5"))
    }

    #[test]
    fn plain_lines_are_prompts() {
        assert_eq!(prompt("what is rust?"), "what is rust?");
        assert_eq!(prompt("  two  spaces inside  "), "two  spaces inside");
        assert_eq!(prompt("fn main() {\n    x\n}"), "fn main() {\n    x\n}");
        assert_eq!(prompt("a /good day"), "a /good day", "only the first word decides");
        for line in ["", "   ", "\n\t"] {
            assert_eq!(parse(line), Input::Empty);
        }
    }

    #[test]
    fn two_slashes_send_one() {
        assert_eq!(prompt("//x"), "/x");
        assert_eq!(prompt("//good is a command?"), "/good is a command?");
        assert_eq!(prompt("///"), "//");
        assert_eq!(prompt("//"), "/");
    }

    #[test]
    fn notes_are_kept_as_typed() {
        let note = "Never use .unwrap()  in \"production\" code!  (really?) — ünï 🔴";
        for (word, kind) in [
            ("/critical", Kind::Critical),
            ("/medium", Kind::Medium),
            ("/good", Kind::Good),
            ("/up", Kind::ThumbsUp),
            ("/down", Kind::ThumbsDown),
            ("/feedback critical", Kind::Critical),
            ("/feedback HIGH", Kind::Critical),
            ("/feedback medium", Kind::Medium),
            ("/feedback good", Kind::Good),
            ("/feedback normal", Kind::Good),
            ("/rate 2", stars(2)),
        ] {
            assert_eq!(rated(&format!("{word} {note}")), (kind, Some(note.to_string())), "{word}");
            assert_eq!(rated(word), (kind, None), "{word}");
            assert_eq!(rated(&format!("  {word}   ")), (kind, None), "{word}");
        }
        assert_eq!(rated("/critical - no, \\ not / that;").1.as_deref(), Some("- no, \\ not / that;"));
        assert_eq!(rated("/critical first\n  second").1.as_deref(), Some("first\n  second"));
    }

    #[test]
    fn the_whole_first_word_decides() {
        for line in ["/criticalnote", "/critical,", "/goodbye", "/Feedbacks x"] {
            assert!(matches!(parse(line), Input::Unknown { .. }), "{line}");
        }
        assert_eq!(rated("/GOOD").0, Kind::Good);
        assert_eq!(rated("/critical\ttabbed").1.as_deref(), Some("tabbed"));
    }

    #[test]
    fn thumbs_rate_only_alone() {
        for line in ["👍", "👍🏻", "👍🏿", "👍\u{FE0F}", " 👍🏽 ", "+1"] {
            assert_eq!(rated(line), (Kind::ThumbsUp, None), "{line}");
        }
        for line in ["👎", "👎🏼", "-1"] {
            assert_eq!(rated(line), (Kind::ThumbsDown, None), "{line}");
        }
        for line in ["👍 thanks", "+1 for that", "-1 + 2", "+10", "👍👍", "👍👎", "good", "up", "critical"] {
            assert_eq!(prompt(line), line);
        }
    }

    #[test]
    fn stars_are_whole_numbers_from_one_to_five() {
        for n in 1..=5 {
            assert_eq!(rated(&format!("/rate {n}")), (stars(n), None));
        }
        for line in ["/rate", "/rate 0", "/rate 6", "/rate 4.5", "/rate 5/5", "/rate five", "/rate -1"] {
            assert!(fault(line).contains("1 to 5"), "{line}");
        }
    }

    #[test]
    fn corrections_keep_their_lines_and_indentation() {
        let correction = |line| match parse(line) {
            Input::Command(Command::Correct(text)) => text,
            other => panic!("{line:?}: {other:?}"),
        };
        assert_eq!(correction("/correct Use `?`  instead."), "Use `?`  instead.");
        assert_eq!(correction("/correct \n    indented\n  less"), "    indented\n  less");
        assert_eq!(correction("/correct /good"), "/good");
        assert!(fault("/correct").contains("missing"));
        assert!(fault("/correct   ").contains("missing"));
    }

    #[test]
    fn lessons_are_dropped_by_number() {
        let lessons = |action| Input::Command(Command::Lessons(action));
        assert_eq!(parse("/lessons"), lessons(LessonsAction::List));
        assert_eq!(parse("/lessons list"), lessons(LessonsAction::List));
        assert_eq!(parse("/lessons drop  3 "), lessons(LessonsAction::Drop(3)));
        for line in ["/lessons drop", "/lessons drop three", "/lessons drop 3 4"] {
            assert!(fault(line).contains("number is missing"), "{line}");
        }
        assert!(fault("/lessons dorp 3").contains("nearest is drop"));
        assert_eq!(parse("/lesson"), Input::Unknown { word: "/lesson".into(), nearest: Some("/lessons") });
    }

    #[test]
    fn adapters_actions() {
        let action = |line| match parse(line) {
            Input::Command(Command::Adapters(action)) => action,
            other => panic!("{line:?}: {other:?}"),
        };
        assert_eq!(action("/adapters"), AdaptersAction::List);
        assert_eq!(action("/adapters list"), AdaptersAction::List);
        assert_eq!(action("/adapters unload"), AdaptersAction::Unload);
        assert_eq!(action("/adapters rollback"), AdaptersAction::Rollback(None));
        assert_eq!(action("/adapters rollback lora_a"), AdaptersAction::Rollback(Some("lora_a".into())));
        assert_eq!(action("/adapters delete a b"), AdaptersAction::Delete("a b".into()));
        assert_eq!(action("/adapters show a b"), AdaptersAction::Show("a b".into()));
        assert_eq!(action("/adapters import ~/my style"), AdaptersAction::Import("~/my style".into()));
        let load = |name: &str, force| AdaptersAction::Load { name: name.into(), force };
        assert_eq!(action("/adapters load /tmp/my adapter"), load("/tmp/my adapter", false));
        assert_eq!(action("/adapters load a --force"), load("a", true));
        assert_eq!(action("/adapters load a--force"), load("a--force", false));
        assert_eq!(action("/adapters load --force"), load("--force", false));
        for line in ["/adapters load", "/adapters delete ", "/adapters show"] {
            assert!(fault(line).contains("name is missing"), "{line}");
        }
        assert!(fault("/adapters import ").contains("folder is missing"));
        assert!(fault("/adapters lst").contains("nearest is list"));
        assert!(fault("/adapters unload now").contains("takes no words"));
    }

    #[test]
    fn train_system_and_help_actions() {
        let train = |action| Input::Command(Command::Train(action));
        assert_eq!(parse("/train"), train(TrainAction::Now));
        assert_eq!(parse("/train status"), train(TrainAction::Status));
        assert_eq!(parse("/train cancel"), train(TrainAction::Cancel));
        assert!(fault("/train stauts").contains("nearest is status"));
        let system = |action| Input::Command(Command::System(action));
        assert_eq!(parse("/system"), system(SystemAction::Show));
        assert_eq!(parse("/system off"), system(SystemAction::Off));
        assert_eq!(parse("/system Be brief.  Always."), system(SystemAction::Set("Be brief.  Always.".into())));
        assert_eq!(parse("/help"), Input::Command(Command::Help(None)));
        for line in ["/help rate", "/help /rate"] {
            assert!(matches!(parse(line), Input::Command(Command::Help(Some(e))) if e.name == "/rate"), "{line}");
        }
        assert!(fault("/help me").contains("me"));
    }

    #[test]
    fn the_buffer_is_shown_or_reviewed_and_a_hint_is_kept_as_typed() {
        let buffer = |action| Input::Command(Command::Buffer(action));
        assert_eq!(parse("/buffer"), buffer(BufferAction::Show));
        assert_eq!(parse("/buffer review"), buffer(BufferAction::Review));
        assert!(fault("/buffer revue").contains("nearest is review"));
        assert_eq!(parse("/retry"), Input::Command(Command::Retry(None)));
        assert_eq!(parse("/retry  in  French"), Input::Command(Command::Retry(Some("in  French".into()))));
    }

    #[test]
    fn commands_without_arguments_take_none() {
        for (line, command) in [
            ("/undo", Command::Undo),
            ("/fix", Command::Fix),
            ("/stats", Command::Stats),
            ("/model", Command::Model),
            ("/clear", Command::Clear),
            ("/quit", Command::Quit),
            ("/exit", Command::Quit),
        ] {
            assert_eq!(parse(line), Input::Command(command));
            assert!(fault(&format!("{line} the table")).contains("takes no words"), "{line}");
        }
    }

    #[test]
    fn every_command_of_the_table_is_understood() {
        for entry in &help::COMMANDS {
            assert!(!matches!(parse(entry.name), Input::Unknown { .. }), "{}", entry.name);
            for word in entry.words {
                let parsed = parse(&format!("{} {word}", entry.name));
                let needs_more = matches!(*word, "load" | "show" | "import" | "delete" | "drop");
                assert!(needs_more || matches!(parsed, Input::Command(_)), "{} {word}: {parsed:?}", entry.name);
            }
        }
    }

    #[test]
    fn unknown_commands_name_the_nearest() {
        let unknown = |word: &str, nearest| Input::Unknown { word: word.into(), nearest };
        assert_eq!(parse("/critcal it is wrong"), unknown("/critcal", Some("/critical")));
        assert_eq!(parse("/etc/passwd holds what?"), unknown("/etc/passwd", None));
        assert_eq!(parse("/"), unknown("/", None));
    }
}
