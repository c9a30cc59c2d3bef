//! How lessons stand in a prompt, and how it is read without them.
//!
//! The form is fixed: the built-in model is trained on exactly this one.

use serde_json::{Value, json};

use super::Lesson;
use crate::model::message::{Message, Role};

/// What stands before the first rule.
pub const HEADING: &str = "Follow these rules, which the user gave:";
/// Keys of an interaction's metadata.
const LESSONS: &str = "lessons";
const SYSTEM: &str = "system";

/// The system message of a prompt: the user's own system prompt, then the rules (see [`Lesson::text`]); `None` where
/// there is neither.
pub fn system_message(own: Option<&str>, rules: &[&str]) -> Option<String> {
    if rules.is_empty() {
        return own.map(String::from);
    }
    let list: String = rules.iter().map(|rule| line(rule)).collect();
    Some(match own {
        Some(own) => format!("{own}\n\n{HEADING}{list}"),
        None => format!("{HEADING}{list}"),
    })
}

/// What a rule adds to the system message.
pub fn line(rule: &str) -> String {
    format!("\n- {rule}")
}

/// What an interaction's metadata says of the lessons in its prompt, for [`without_lessons`]: their numbers and texts, and
/// the user's own system prompt.
pub fn record(metadata: &mut Value, own: Option<&str>, lessons: &[&Lesson]) {
    if !lessons.is_empty() {
        metadata[LESSONS] = lessons.iter().map(|lesson| json!({"id": lesson.id, "text": lesson.text})).collect();
        metadata[SYSTEM] = json!(own);
    }
}

/// A prompt as the user gave it: the lessons that `metadata` names are taken out of the system message. Where the two do
/// not agree (rows from elsewhere) the prompt stays as it is.
pub fn without_lessons(messages: &[Message], metadata: &Value) -> Vec<Message> {
    let plain = || messages.to_vec();
    let Some((system, rest)) = messages.split_first().filter(|(first, _)| first.role == Role::System) else {
        return plain();
    };
    let Some(lessons) = metadata.get(LESSONS).and_then(Value::as_array) else { return plain() };
    let rules: Vec<&str> = lessons.iter().filter_map(|lesson| lesson.get("text")?.as_str()).collect();
    let own = metadata.get(SYSTEM).and_then(Value::as_str);
    if rules.is_empty() || system_message(own, &rules).as_deref() != Some(&system.content) {
        return plain();
    }
    own.map(Message::system).into_iter().chain(rest.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::lesson;
    use super::*;

    #[test]
    fn the_form_is_the_one_that_models_are_trained_on() {
        assert_eq!(system_message(None, &[]), None);
        assert_eq!(system_message(Some("Be brief."), &[]).as_deref(), Some("Be brief."));
        assert_eq!(
            system_message(Some("Be brief."), &["Never use .unwrap() in production code", "Say “finch”."]).unwrap(),
            "Be brief.\n\nFollow these rules, which the user gave:\n\
             - Never use .unwrap() in production code\n- Say “finch”."
        );
        assert_eq!(system_message(None, &["x"]).unwrap(), "Follow these rules, which the user gave:\n- x");
    }

    fn prompt(own: Option<&str>, lessons: &[&Lesson]) -> (Vec<Message>, Value) {
        let rules: Vec<&str> = lessons.iter().map(|l| l.text.as_str()).collect();
        let mut metadata = json!({"thought": "hm"});
        record(&mut metadata, own, lessons);
        let system = system_message(own, &rules).map(Message::system);
        (system.into_iter().chain([Message::user("q")]).collect(), metadata)
    }

    #[test]
    fn a_prompt_is_read_without_its_lessons() {
        let (one, two) = (lesson(3, "a", &[]), lesson(5, "b", &[]));
        for own in [None, Some("Be brief."), Some("Follow these rules, which the user gave:\n- a")] {
            for lessons in [&[][..], &[&one], &[&one, &two]] {
                let (messages, metadata) = prompt(own, lessons);
                assert_eq!(without_lessons(&messages, &metadata), prompt(own, &[]).0, "{own:?} {messages:?}");
                assert_eq!(metadata.get("lessons").is_some(), !lessons.is_empty());
            }
        }
        let (_, metadata) = prompt(Some("Be brief."), &[&one, &two]);
        assert_eq!(metadata["lessons"], json!([{"id": 3, "text": "a"}, {"id": 5, "text": "b"}]));
        assert_eq!((&metadata["system"], &metadata["thought"]), (&json!("Be brief."), &json!("hm")));
    }

    #[test]
    fn a_prompt_that_does_not_fit_its_metadata_stays_as_it_is() {
        let one = lesson(3, "a", &[]);
        let (messages, metadata) = prompt(Some("Be brief."), &[&one]);
        let other = [Message::system("something else"), Message::user("q")];
        assert_eq!(without_lessons(&other, &metadata), other);
        assert_eq!(without_lessons(&other[1..], &metadata), &other[1..]);
        for strange in [json!(null), json!({"lessons": 3}), json!({"lessons": [{"text": 1}]}), json!({"lessons": []})] {
            assert_eq!(without_lessons(&messages, &strange), messages, "{strange}");
        }
    }
}
