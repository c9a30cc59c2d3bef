//! The table of the chat's commands: help, completion and "did you mean" all read it, so they cannot disagree.

use crate::nearest::nearest;
use crate::text;

/// One command as the user sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The first word of the line, with its slash.
    pub name: &'static str,
    /// What follows it, in words; empty when nothing does.
    pub arguments: &'static str,
    pub summary: &'static str,
    /// Fixed first words of the arguments, for completion and for naming the nearest one.
    pub words: &'static [&'static str],
}

const fn entry(
    name: &'static str,
    arguments: &'static str,
    summary: &'static str,
    words: &'static [&'static str],
) -> Entry {
    Entry { name, arguments, summary, words }
}

pub const ADAPTERS_WORDS: [&str; 7] = ["list", "show", "load", "unload", "delete", "rollback", "import"];
pub const BUFFER_WORDS: [&str; 1] = ["review"];
pub const LESSONS_WORDS: [&str; 2] = ["list", "drop"];
pub const TRAIN_WORDS: [&str; 2] = ["status", "cancel"];
pub const LEVELS: [&str; 5] = ["critical", "high", "medium", "good", "normal"];

/// Every command, in the order of the help text.
pub const COMMANDS: [Entry; 21] = [
    entry("/critical", "[note]", "the answer is badly wrong; the note says what to do instead", &[]),
    entry("/medium", "[note]", "the answer is somewhat off", &[]),
    entry("/good", "[note]", "the answer is good (so are 👍 and +1 alone on a line)", &[]),
    entry("/feedback", "LEVEL [note]", "the long form: critical, high, medium, good or normal", &LEVELS),
    entry("/up", "[note]", "thumbs up, as 👍", &[]),
    entry("/down", "[note]", "thumbs down, as 👎", &[]),
    entry("/rate", "1-5 [note]", "one to five stars", &[]),
    entry("/correct", "TEXT", "the better answer: finch trains on it", &[]),
    entry("/fix", "", "the last answer in your editor; saving it corrects the answer", &[]),
    entry("/retry", "[hint]", "answer again; 👍 then prefers the second answer to the first", &[]),
    entry("/undo", "", "take the last feedback back", &[]),
    entry("/lessons", "[list | drop N]", "the notes that act as rules; take one away", &LESSONS_WORDS),
    entry(
        "/adapters",
        "[list | show NAME | load NAME | unload | delete NAME | rollback [NAME] | import FOLDER]",
        "what finch has learned, and what is live",
        &ADAPTERS_WORDS,
    ),
    entry("/train", "[status | cancel]", "train now; see how far it is; stop it", &TRAIN_WORDS),
    entry("/buffer", "[review]", "the examples for training; go through what waits for a better answer", &BUFFER_WORDS),
    entry("/stats", "", "what was asked, rated and trained", &[]),
    entry("/model", "", "which model and adapter answer", &[]),
    entry("/system", "[TEXT | off]", "show, set or remove the system prompt", &["off"]),
    entry("/clear", "", "start a new conversation", &[]),
    entry("/help", "[COMMAND]", "this list, or one command", &[]),
    entry("/quit", "", "leave (Ctrl-D does too)", &[]),
];

/// The one line of help at the first start.
pub const FIRST_RUN: &str = "Ask, then rate the answer: /good, /critical NOTE, /correct TEXT. More: /help\n";
/// Ctrl-C with nothing to stop.
pub const HOW_TO_LEAVE: &str = "Ctrl-D or /quit leaves finch.\n";

/// The line at every other start.
pub fn banner() -> String {
    format!("finch {}; /help lists the commands.\n", env!("CARGO_PKG_VERSION"))
}

/// Other first words that mean a command.
const ALIASES: [(&str, &str); 2] = [("/exit", "/quit"), ("/?", "/help")];

/// The command that the first word of a line names; case does not matter.
pub fn find(word: &str) -> Option<&'static Entry> {
    let word = word.to_ascii_lowercase();
    let name = ALIASES.iter().find(|(alias, _)| *alias == word).map_or(word.as_str(), |(_, name)| name);
    COMMANDS.iter().find(|entry| entry.name == name)
}

/// The command that a mistyped first word most likely stands for.
pub fn nearest_command(word: &str) -> Option<&'static str> {
    nearest(word, COMMANDS.iter().map(|entry| entry.name))
}

/// The text of `/help`.
pub fn overview() -> String {
    let usages: Vec<String> = COMMANDS.iter().map(short_usage).collect();
    let column = usages.iter().map(|u| text::width(u)).max().unwrap_or(0);
    let mut help = String::from("Type a question; then say what you think of the answer.\n\n");
    for (entry, usage) in COMMANDS.iter().zip(&usages) {
        let pad = column - text::width(usage);
        help.push_str(&format!("  {usage}{:pad$}  {}\n", "", entry.summary));
    }
    help.push_str(
        "\nAlt-Enter or a \\ at the end of a line continues it on the next. Ctrl-C stops an answer.\n\
         A line that begins with // is sent with one slash: //x sends \"/x\".\n\
         /help COMMAND shows one in full.\n",
    );
    help
}

/// The text of `/help COMMAND`.
pub fn details(entry: &Entry) -> String {
    format!("{}\n   {}\n", usage(entry), entry.summary)
}

/// "/rate 1-5 [note]".
pub fn usage(entry: &Entry) -> String {
    format!("{} {}", entry.name, entry.arguments).trim_end().to_string()
}

/// Keeps the overview's first column narrow: the words of `/adapters` are long enough for a line of their own.
fn short_usage(entry: &Entry) -> String {
    if entry.arguments.len() <= 20 { usage(entry) } else { format!("{} …", entry.name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whatever_their_case_and_by_alias() {
        for entry in &COMMANDS {
            assert_eq!(find(entry.name), Some(entry));
        }
        assert_eq!(find("/GOOD").map(|e| e.name), Some("/good"));
        assert_eq!(find("/exit").map(|e| e.name), Some("/quit"));
        assert_eq!(find("/goods"), None);
        assert_eq!(find("good"), None);
    }

    #[test]
    fn slips_name_the_command_meant() {
        for (typed, meant) in
            [("/criticl", "/critical"), ("/adapter", "/adapters"), ("/hlep", "/help"), ("/stat", "/stats")]
        {
            assert_eq!(nearest_command(typed), Some(meant), "{typed}");
        }
        assert_eq!(nearest_command("/etc/passwd"), None);
    }

    #[test]
    fn the_overview_names_every_command_and_fits_a_terminal() {
        let help = overview();
        for entry in &COMMANDS {
            assert!(help.contains(entry.name), "{}", entry.name);
        }
        for line in help.lines() {
            assert!(text::width(line) <= 100, "{line}");
        }
    }

    #[test]
    fn details_show_the_whole_usage() {
        let entry = find("/adapters").expect("in the table");
        assert!(details(entry).starts_with(
            "/adapters [list | show NAME | load NAME | unload | delete NAME | rollback [NAME] | import FOLDER]\n"
        ));
    }
}
