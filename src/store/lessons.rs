//! Lessons: the notes that act as rules, and those that the user took away.

use rusqlite::{Transaction, params};

use super::rows::{self, FEEDBACK, INTERACTION, INTERACTION_COLUMNS};
use super::{Step, Store};
use crate::error::{Error, Result};
use crate::feedback::lesson::{self, Lesson};
use crate::feedback::{Feedback, Interaction};

impl Store {
    /// The lessons in force, the earliest first.
    pub fn lessons(&self) -> Result<Vec<Lesson>> {
        Ok(lesson::collect(&self.read(noted)?))
    }

    /// Takes the lesson `id` (see [`Lesson::id`]) away, every note with its words; the ratings stay. On disk when this
    /// returns. Errors: no lesson in force has this number.
    pub fn drop_lesson(&self, id: i64) -> Result<Lesson> {
        self.write(|transaction| {
            let noted = noted(transaction)?;
            let Some(lesson) = lesson::collect(&noted).into_iter().find(|lesson| lesson.id == id) else {
                return Err(Error::failure(format!("there is no lesson {id}"))
                    .hint("/lessons, or `finch feedback lessons`, shows their numbers")
                    .into());
            };
            for (feedback, _) in &noted {
                if lesson::note(feedback).map(lesson::digest).as_ref() == Some(&lesson.digest) {
                    transaction.execute(
                        "INSERT INTO dropped_lessons (feedback, time) VALUES (?1, ?2)",
                        params![feedback.id, rows::millis(rows::now())],
                    )?;
                }
            }
            Ok(lesson)
        })
    }
}

/// Feedback in force with notes that were not dropped, the earliest first.
fn noted(transaction: &Transaction) -> Step<Vec<(Feedback, Interaction)>> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {INTERACTION}, {FEEDBACK} FROM feedback_in_force f JOIN interactions i ON i.id = f.interaction
         WHERE f.note IS NOT NULL AND f.value < 0 AND f.id NOT IN (SELECT feedback FROM dropped_lessons)
         ORDER BY f.id"
    ))?;
    rows::collect(statement.query([])?, |row| Ok((rows::feedback(row, INTERACTION_COLUMNS)?, rows::interaction(row)?)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::super::schema;
    use super::*;
    use crate::feedback::{FeedbackConfig, Finish, Kind, NewFeedback, NewInteraction, exchange};
    use crate::model::message::Message;

    fn turn(question: &str) -> NewInteraction {
        NewInteraction {
            session: "s".into(),
            turn: 1,
            messages: vec![Message::user(question)],
            response: "so".into(),
            model: "m".into(),
            base: Some("b".into()),
            adapter: None,
            thinking: None,
            sampling: json!({}),
            finish: Finish::Stop,
            timings: json!({}),
            metadata: json!({}),
        }
    }

    fn answered(store: &Store, question: &str) -> i64 {
        store.add_interaction(&turn(question)).unwrap().id
    }

    fn rate(store: &Store, interaction: i64, kind: Kind, note: &str) -> i64 {
        let new = NewFeedback::new(kind, &FeedbackConfig::default()).with_note(note).in_session("s");
        store.add_feedback(interaction, new).unwrap().feedback.id
    }

    fn texts(store: &Store) -> Vec<(i64, String)> {
        store.lessons().unwrap().into_iter().map(|lesson| (lesson.id, lesson.text)).collect()
    }

    #[test]
    fn a_lesson_lasts_until_it_is_dropped_undone_or_judged_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("finch.db");
        let store = Store::open(&path).unwrap();
        let (a, b, c) = (answered(&store, "a"), answered(&store, "b"), answered(&store, "c"));
        let brief = rate(&store, a, Kind::Critical, "Be brief.");
        rate(&store, b, Kind::Good, "Well said.");
        let polite = rate(&store, c, Kind::Medium, "Be polite.");
        assert_eq!(texts(&store), [(brief, "Be brief.".to_string()), (polite, "Be polite.".to_string())]);

        assert_eq!(store.drop_lesson(brief).unwrap().text, "Be brief.");
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(texts(&store), [(polite, "Be polite.".to_string())], "dropped over a restart");
        assert_eq!(store.feedback_on(a).unwrap().len(), 1, "its rating stays");
        for gone in [brief, 99] {
            let error = store.drop_lesson(gone).unwrap_err();
            assert!(error.message().contains(&format!("no lesson {gone}")) && error.hint_text().is_some(), "{error}");
        }

        store.undo_last(Some("s")).unwrap().unwrap();
        assert!(texts(&store).is_empty());
        let again = rate(&store, c, Kind::Critical, "Be polite.");
        assert_eq!(texts(&store)[0].0, again);
        rate(&store, c, Kind::Good, "");
        assert!(texts(&store).is_empty(), "the answer is good after all");
    }

    #[test]
    fn a_note_given_often_is_dropped_at_once_and_returns_when_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("finch.db")).unwrap();
        let first = rate(&store, answered(&store, "a"), Kind::Critical, "Be brief.");
        rate(&store, answered(&store, "b"), Kind::Medium, " Be brief.\n");
        rate(&store, answered(&store, "c"), Kind::Medium, "Be polite.");
        assert_eq!(texts(&store).len(), 2);
        store.drop_lesson(first).unwrap();
        assert_eq!(texts(&store).len(), 1);
        let again = rate(&store, answered(&store, "d"), Kind::Critical, "Be brief.");
        assert_eq!(texts(&store)[1], (again, "Be brief.".to_string()));
    }

    #[test]
    fn an_answer_under_lessons_is_exported_and_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| Store::open(&folder.path().join(name)).unwrap();
        let (here, there) = (open("here.db"), open("there.db"));
        let first = rate(&here, answered(&here, "a"), Kind::Critical, "Be brief.");
        let lessons = here.lessons().unwrap();
        let mut metadata = json!({});
        lesson::prompt::record(&mut metadata, Some("own"), &[&lessons[0]]);
        let system = lesson::prompt::system_message(Some("own"), &["Be brief."]).unwrap();
        let shaped =
            NewInteraction { messages: vec![Message::system(system), Message::user("b")], metadata, ..turn("b") };
        let shaped = here.add_interaction(&shaped).unwrap();
        rate(&here, shaped.id, Kind::Good, "");
        let lines: String = here.all_feedback().unwrap().iter().map(|(f, i)| exchange::to_line(i, f) + "\n").collect();
        assert!(lines.contains("Follow these rules"), "{lines}");

        let rows = exchange::read(&mut lines.as_bytes(), &FeedbackConfig::default()).unwrap().rows;
        assert_eq!(there.import(&rows).unwrap().added, 2);
        let again = there.import(&rows).unwrap();
        assert_eq!((again.added, again.known), (0, 2));
        let (_, came) = there.all_feedback().unwrap().pop().unwrap();
        assert_eq!(came.prompt(), [Message::system("own"), Message::user("b")]);
        assert_eq!((texts(&there)[0].1.as_str(), first), ("Be brief.", 1));
    }

    /// As the first version of finch left it: one answer with a critical note.
    fn file_of_version_1(path: &Path) {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.execute_batch(schema::VERSION_1).unwrap();
        connection
            .execute_batch(
                "PRAGMA application_id = 1718510440; PRAGMA user_version = 1;
                 INSERT INTO interactions VALUES (7, 1, 's', 1, '[{\"role\":\"user\",\"content\":\"q\"}]', 'r', 'm', 'b',
                     NULL, NULL, '{}', 'stop', '{}', '{}', 0, x'00', x'00');
                 INSERT INTO feedback VALUES (4, 2, 7, 's', 'critical', 1, -1.0, 10.0, 'Be brief.', NULL, '{}', NULL, NULL);",
            )
            .unwrap();
    }

    #[test]
    fn notes_of_a_version_1_file_are_lessons_and_can_be_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("finch.db");
        file_of_version_1(&path);
        let store = Store::open(&path).unwrap();
        assert_eq!(texts(&store), [(4, "Be brief.".to_string())]);
        assert_eq!(store.interaction(7).unwrap().unwrap().response, "r", "what was there stays");
        store.drop_lesson(4).unwrap();
        drop(store);
        assert!(texts(&Store::open(&path).unwrap()).is_empty());
    }
}
