//! Lessons: notes that act at once, as rules in the system prompt of the turns that follow.
//!
//! A note on a bad rating in force is a lesson until the user drops it. How near it is to a question is [`relevance`]; which
//! lessons a prompt holds is [`choose`]; how they stand there, and how a prompt is read without them, is [`prompt`].
//! An adapter that obeys a note unprompted lists the note's [`digest`] as carried, and the note stays out of its prompts.

pub mod choose;
pub mod prompt;
pub mod relevance;

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::record::{Feedback, Interaction};
use crate::model::message::Role;

/// Names a lesson by its words: lowercase hex of the SHA-256 of the trimmed note. An adapter lists by it what it carries.
pub fn digest(note: &str) -> String {
    Sha256::digest(note.trim().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The note that `feedback` brings as a lesson, trimmed; `None`: it is praise, or says nothing.
pub fn note(feedback: &Feedback) -> Option<&str> {
    let bad = feedback.kind.is_judgement() && feedback.value < 0.0;
    feedback.note.as_deref().map(str::trim).filter(|note| bad && !note.is_empty())
}

/// One rule, however often it was noted.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    /// Of the feedback that brought it first: its number for the user, which never comes to mean another one.
    pub id: i64,
    /// The note on one line, as it stands in a prompt.
    pub text: String,
    /// See [`digest`].
    pub digest: String,
    /// The heaviest of its ratings.
    pub weight: f64,
    /// The questions whose answers it was noted on.
    pub questions: Vec<String>,
    /// The sessions in which it was noted.
    pub sessions: BTreeSet<String>,
    /// The adapters whose answers it was noted on.
    adapters: BTreeSet<String>,
}

impl Lesson {
    /// Whether `adapter`, which says that it carries the notes with the digests `carries`, makes the prompt's reminder
    /// needless. Whatever was measured: one whose own answer got this note does not.
    pub fn is_carried(&self, adapter: &str, carries: &[String]) -> bool {
        carries.contains(&self.digest) && !self.adapters.contains(adapter)
    }
}

/// The lessons that feedback in force amounts to, in the order in which it was given; what brings none is passed over.
pub fn collect<'a>(noted: impl IntoIterator<Item = &'a (Feedback, Interaction)>) -> Vec<Lesson> {
    let mut lessons: Vec<Lesson> = Vec::new();
    for (feedback, interaction) in noted {
        let Some(note) = note(feedback) else { continue };
        let digest = digest(note);
        let at = lessons.iter().position(|lesson| lesson.digest == digest).unwrap_or_else(|| {
            lessons.push(Lesson {
                id: feedback.id,
                text: one_line(note),
                digest,
                weight: feedback.weight,
                questions: Vec::new(),
                sessions: BTreeSet::new(),
                adapters: BTreeSet::new(),
            });
            lessons.len() - 1
        });
        let lesson = &mut lessons[at];
        lesson.weight = lesson.weight.max(feedback.weight);
        lesson.questions.extend(question(interaction).map(String::from));
        lesson.sessions.extend(feedback.session.clone());
        lesson.adapters.extend(interaction.adapter.clone());
    }
    lessons
}

/// The user's turn that was answered.
fn question(interaction: &Interaction) -> Option<&str> {
    interaction.messages.iter().rev().find(|m| m.role == Role::User).map(|m| m.content.as_str())
}

/// Lines joined, so that a note is one rule of the list; within a line nothing changes.
pub fn one_line(note: &str) -> String {
    note.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::feedback::Kind;
    use crate::feedback::example::tests::{feedback, interaction};

    /// A lesson noted on answers to `questions`.
    pub fn lesson(id: i64, text: &str, questions: &[&str]) -> Lesson {
        Lesson {
            id,
            text: text.to_string(),
            digest: digest(text),
            weight: 10.0,
            questions: questions.iter().map(|q| q.to_string()).collect(),
            sessions: BTreeSet::new(),
            adapters: BTreeSet::new(),
        }
    }

    fn noted(id: i64, kind: Kind, note: &str) -> (Feedback, Interaction) {
        (Feedback { note: Some(note.to_string()), ..feedback(id, kind) }, interaction(1, "how?", "so"))
    }

    #[test]
    fn a_digest_names_the_words_and_not_the_space_around_them() {
        assert_eq!(digest("Be brief."), digest("  Be brief.\n"));
        assert_ne!(digest("Be brief."), digest("be brief."));
        assert_eq!(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn notes_of_bad_ratings_are_lessons_and_others_are_not() {
        let given = [
            noted(3, Kind::Critical, " Never  use\n\n  .unwrap()! "),
            noted(4, Kind::Good, "well done"),
            noted(5, Kind::Medium, " \n"),
            noted(6, Kind::Medium, "Shorter, please."),
        ];
        let lessons = collect(&given);
        let texts: Vec<(i64, &str)> = lessons.iter().map(|l| (l.id, l.text.as_str())).collect();
        assert_eq!(texts, [(3, "Never  use .unwrap()!"), (6, "Shorter, please.")]);
        assert_eq!(lessons[0].digest, digest("Never  use\n\n  .unwrap()!"));
    }

    #[test]
    fn a_note_given_twice_is_one_lesson() {
        let (mut again, mut elsewhere) = noted(9, Kind::Critical, "Be brief. ");
        (again.weight, again.session) = (10.0, Some("second".to_string()));
        elsewhere.messages.last_mut().unwrap().content = "and rust?".to_string();
        elsewhere.adapter = Some("lora_1".to_string());
        let mut first = noted(2, Kind::Medium, "Be brief.");
        first.0.weight = 3.0;
        let lessons = collect(&[first, (again, elsewhere)]);
        assert_eq!((lessons.len(), lessons[0].id, lessons[0].weight), (1, 2, 10.0));
        assert!(lessons[0].questions.contains(&"and rust?".to_string()) && lessons[0].questions.len() == 2);
        assert!(lessons[0].sessions.contains("second"));
    }

    #[test]
    fn an_adapter_carries_what_it_lists_unless_its_own_answer_got_the_note() {
        let (given, mut answered) = noted(1, Kind::Critical, "Be brief.");
        answered.adapter = Some("lora_1".to_string());
        let lesson = collect(&[(given, answered)]).remove(0);
        let carries = [digest("Be brief.")];
        assert!(lesson.is_carried("lora_2", &carries));
        assert!(!lesson.is_carried("lora_2", &[digest("Be long.")]));
        assert!(!lesson.is_carried("lora_1", &carries));
    }
}
