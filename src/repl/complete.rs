//! What the Tab key offers: commands, their fixed words, and the names of adapters. Pure.

use super::help;
use crate::text;

/// The byte where the completed word begins, and the words it may become.
pub fn complete(line: &str, position: usize, adapter_names: impl FnOnce() -> Vec<String>) -> (usize, Vec<String>) {
    let Some(before) = line.get(..position).filter(|before| before.starts_with('/') && !before.starts_with("//"))
    else {
        return (position, Vec::new());
    };
    let words: Vec<&str> = before.split(char::is_whitespace).collect();
    let last = words.last().copied().unwrap_or_default();
    let start = position - last.len();
    let found = match words.as_slice() {
        [_] => starting(last, help::COMMANDS.iter().map(|entry| entry.name)),
        ["/help", _] => starting(last, help::COMMANDS.iter().map(|entry| entry.name.trim_start_matches('/'))),
        [command, _] => starting(last, help::find(command).map_or(&[][..], |entry| entry.words).iter().copied()),
        ["/adapters", "show" | "load" | "delete" | "rollback", _] => {
            let names = adapter_names();
            // A name that would not show as it is cannot be offered.
            let shown = names.iter().map(String::as_str).filter(|name| text::sanitize(name) == *name);
            starting(last, shown)
        }
        _ => Vec::new(),
    };
    (start, found)
}

fn starting<'a>(beginning: &str, words: impl Iterator<Item = &'a str>) -> Vec<String> {
    words.filter(|word| word.starts_with(beginning)).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(line: &str) -> (usize, Vec<String>) {
        complete(line, line.len(), || vec!["lora_a".into(), "lora_b".into(), "lora\x1b[2J".into(), "other".into()])
    }

    #[test]
    fn commands_complete_in_the_first_word() {
        assert_eq!(offered("/ad"), (0, vec!["/adapters".into()]));
        assert_eq!(offered("/c"), (0, vec!["/critical".into(), "/correct".into(), "/clear".into()]));
        assert_eq!(offered("/").1.len(), help::COMMANDS.len());
    }

    #[test]
    fn fixed_words_and_adapter_names_follow() {
        assert_eq!(offered("/adapters l"), (10, vec!["list".into(), "load".into()]));
        assert_eq!(offered("/train "), (7, vec!["status".into(), "cancel".into()]));
        assert_eq!(offered("/adapters load lora"), (15, vec!["lora_a".into(), "lora_b".into()]));
        assert_eq!(offered("/adapters delete ").1.len(), 3);
        assert_eq!(offered("/help un"), (6, vec!["undo".into()]));
    }

    #[test]
    fn prompts_and_notes_are_left_alone() {
        for line in ["what", "", "//ad", "/critical note l", "/adapters load lora_a x", "ad /ad"] {
            assert!(offered(line).1.is_empty(), "{line}");
        }
        assert!(complete("é", 1, Vec::new).1.is_empty(), "a position inside a character");
    }
}
