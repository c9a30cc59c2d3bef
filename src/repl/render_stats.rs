//! What the store holds, in words: counts, lists of feedback, imports. Plain rows in, text out (see [`super::render`]).

use chrono::{DateTime, Local, Utc};

use super::render::{count, factor, label, quote};
use super::table::{Layout, table};
use crate::feedback::exchange::Parsed;
use crate::feedback::{Feedback, Interaction, Kind};
use crate::model::message::{Message, Role};
use crate::store::{Imported, Stats};
use crate::text;

/// A moment in local time, to the minute.
pub fn local_time(time: DateTime<Utc>) -> String {
    time.with_timezone(&Local).format("%Y-%m-%d %H:%M").to_string()
}

pub fn stats(s: &Stats) -> String {
    let mut out = format!("Answers:   {}", count_u64(s.interactions, "answer"));
    if s.interactions > 0 {
        out += &format!(" in {}", count_u64(s.sessions, "session"));
    }
    if let (Some(first), Some(last)) = (s.first, s.last) {
        out += &format!(", {} to {}", local_time(first), local_time(last));
    }
    if s.imported > 0 {
        out += &format!("; {} imported", s.imported);
    }
    out += "\nFeedback:  ";
    let kinds: Vec<String> = s.feedback.iter().map(|(name, n)| format!("{n} {}", kind_words(name, *n))).collect();
    out += &if kinds.is_empty() { "none yet".to_string() } else { kinds.join(", ") };
    if s.notes > 0 {
        out += &format!("; {} with a note", s.notes);
    }
    out += "\nTrainings: ";
    let runs: Vec<String> = s.runs.iter().map(|(outcome, n)| format!("{n} {}", text::one_line(outcome, 40))).collect();
    out += &if runs.is_empty() { "none yet".to_string() } else { runs.join(", ") };
    out.push('\n');
    out
}

/// "2 corrections", "1 thumbs up".
fn kind_words(name: &str, n: u64) -> String {
    let words = text::one_line(&name.replace('_', " "), 40);
    match name {
        "correction" | "rating" if n != 1 => format!("{words}s"),
        _ => words,
    }
}

fn count_u64(n: u64, noun: &str) -> String {
    count(usize::try_from(n).unwrap_or(usize::MAX), noun)
}

/// The table of `finch feedback list`; `columns`: of the terminal that it is for.
pub fn feedback_list(list: &[(Feedback, Interaction)], columns: Option<usize>) -> String {
    if list.is_empty() {
        return "There is no feedback yet.\n".to_string();
    }
    let mut cells = vec![["answer", "time", "feedback", "weight", "about"].map(String::from)];
    for (feedback, interaction) in list {
        let said = feedback.corrected.as_ref().filter(|_| feedback.kind == Kind::Correction).or(feedback.note.as_ref());
        let said = said.map(|words| format!("  {}", quote_short(words))).unwrap_or_default();
        cells.push([
            interaction.id.to_string(),
            local_time(feedback.time),
            label(feedback.kind),
            format!("{}x", factor(feedback.weight)),
            format!("{}{said}", quote_short(question(&interaction.messages))),
        ]);
    }
    table(&cells, &Layout { right: &[0, 3], spare: &[3, 1], least: 36 }, columns)
}

fn quote_short(words: &str) -> String {
    format!("“{}”", text::one_line(words, 40))
}

/// The user's turn that an interaction answers.
pub fn question(messages: &[Message]) -> &str {
    messages.iter().rev().find(|m| m.role == Role::User).map_or("", |m| m.content.as_str())
}

pub fn imported(done: &Imported) -> String {
    let mut out = format!("{} imported", count(done.added, "row"));
    if done.known > 0 {
        out += &format!(", {} known already", done.known);
    }
    if done.outdated > 0 {
        out += &format!(", {} left out as the answer was judged anew since", done.outdated);
    }
    out.push_str(".\n");
    out
}

/// What an import does not understand, as warnings.
pub fn unknown_keys(parsed: &Parsed) -> Vec<String> {
    parsed.unknown_keys.iter().map(|key| format!("the key {} is not known and left out", quote(key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn an_empty_store_has_plain_words() {
        assert_eq!(stats(&Stats::default()), "Answers:   0 answers\nFeedback:  none yet\nTrainings: none yet\n");
        assert_eq!(feedback_list(&[], None), "There is no feedback yet.\n");
    }

    #[test]
    fn counts_read_as_a_sentence() {
        let map = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(name, n)| (name.to_string(), *n)).collect()
        };
        let s = Stats {
            interactions: 3,
            imported: 2,
            sessions: 1,
            feedback: map(&[("correction", 2), ("critical", 1), ("thumbs_up", 4)]),
            notes: 1,
            runs: map(&[("completed", 1)]),
            ..Stats::default()
        };
        assert_eq!(
            stats(&s),
            "Answers:   3 answers in 1 session; 2 imported\n\
             Feedback:  2 corrections, 1 critical, 4 thumbs up; 1 with a note\n\
             Trainings: 1 completed\n"
        );
    }

    #[test]
    fn imports_say_what_was_left_out_and_why() {
        assert_eq!(imported(&Imported { added: 1, known: 0, outdated: 0 }), "1 row imported.\n");
        assert_eq!(
            imported(&Imported { added: 5, known: 2, outdated: 1 }),
            "5 rows imported, 2 known already, 1 left out as the answer was judged anew since.\n"
        );
        let parsed = Parsed { rows: Vec::new(), unknown_keys: BTreeSet::from(["wieght".to_string()]) };
        assert_eq!(unknown_keys(&parsed), ["the key “wieght” is not known and left out"]);
    }

    #[test]
    fn the_question_is_the_last_turn_of_the_user() {
        let messages = [Message::system("s"), Message::user("a"), Message::assistant("b"), Message::user("c")];
        assert_eq!(question(&messages), "c");
        assert_eq!(question(&[]), "");
    }
}
