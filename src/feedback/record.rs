//! What the store keeps of a conversation: interactions and the feedback on them, as plain data.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::kind::{FeedbackConfig, Kind};
use super::lesson::prompt::without_lessons;
use crate::model::message::Message;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// The token limit or the context cut it off.
    Length,
    /// The user stopped it.
    Interrupted,
}

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Interrupted => "interrupted",
        }
    }

    pub fn from_name(name: &str) -> Option<Finish> {
        [Finish::Stop, Finish::Length, Finish::Interrupted].into_iter().find(|finish| finish.name() == name)
    }
}

/// One user turn and its answer, as the store gives it back.
#[derive(Debug, Clone, PartialEq)]
pub struct Interaction {
    pub id: i64,
    pub time: DateTime<Utc>,
    /// The session it was part of, and its turn there, counted from 1; imported rows that name none: `import`, 0.
    pub session: String,
    pub turn: u32,
    /// All messages that were before the model: system, history, the user's turn. The answer is not among them.
    pub messages: Vec<Message>,
    /// The answer as far as it came; may be empty.
    pub response: String,
    /// The model's name, for people.
    pub model: String,
    /// Digest of the weights that answered; `None`: imported without it, so not known to be a model's own answer.
    pub base: Option<String>,
    /// Name of the adapter that was live.
    pub adapter: Option<String>,
    /// The chat template's thinking switch; `None` where the template was left to its default.
    pub thinking: Option<bool>,
    /// Temperature, seed and so on, as an object.
    pub sampling: Value,
    pub finish: Finish,
    /// Token counts and seconds, as an object.
    pub timings: Value,
    /// Free, an object; what `lesson::prompt` writes there tells which lessons stood in the messages.
    pub metadata: Value,
}

impl Interaction {
    /// The messages as the user gave them, without the lessons: what rules and training go by.
    pub fn prompt(&self) -> Vec<Message> {
        without_lessons(&self.messages, &self.metadata)
    }
}

/// An interaction to be stored; the store gives id and time.
#[derive(Debug, Clone, PartialEq)]
pub struct NewInteraction {
    pub session: String,
    pub turn: u32,
    pub messages: Vec<Message>,
    pub response: String,
    pub model: String,
    pub base: Option<String>,
    pub adapter: Option<String>,
    pub thinking: Option<bool>,
    pub sampling: Value,
    pub finish: Finish,
    pub timings: Value,
    pub metadata: Value,
}

impl NewInteraction {
    /// Digest of the messages without the lessons: the same prompt has the same one, whoever asked it when, and whatever was
    /// noted in between.
    pub fn prompt_digest(&self) -> [u8; 32] {
        prompt_digest(&without_lessons(&self.messages, &self.metadata))
    }

    /// Digest of what makes an interaction this one: where it happened, the prompt, the answer and who gave it. Importing
    /// what is there already is noticed by it.
    pub fn content_digest(&self) -> [u8; 32] {
        let mut hash = FieldHash::new("interaction");
        hash.field(self.session.as_bytes());
        hash.field(&self.turn.to_le_bytes());
        hash.field(&self.prompt_digest());
        hash.field(self.response.as_bytes());
        hash.field(self.base.as_deref().unwrap_or("").as_bytes());
        hash.finish()
    }
}

/// Digest of a list of messages.
pub fn prompt_digest(messages: &[Message]) -> [u8; 32] {
    let mut hash = FieldHash::new("messages");
    for message in messages {
        hash.field(message.role.name().as_bytes());
        hash.field(message.content.as_bytes());
    }
    hash.finish()
}

/// SHA-256 over fields, each with its length before it, so that moving text from one field to the next changes it.
pub(super) struct FieldHash(Sha256);

impl FieldHash {
    /// `purpose` keeps digests of different things apart.
    pub(super) fn new(purpose: &str) -> FieldHash {
        let mut hash = FieldHash(Sha256::new());
        hash.field(purpose.as_bytes());
        hash
    }

    pub(super) fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// One signal about an interaction, as the store gives it back.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    pub id: i64,
    pub time: DateTime<Utc>,
    pub interaction: i64,
    /// The session in which it was given; `None` for imports and scripts.
    pub session: Option<String>,
    pub kind: Kind,
    /// −1…+1.
    pub value: f64,
    pub weight: f64,
    /// What should have been done instead, exactly as typed.
    pub note: Option<String>,
    /// The better answer, exactly as typed.
    pub corrected: Option<String>,
    pub metadata: Value,
}

impl Feedback {
    /// Where a correction came from; `None`: typed as one.
    pub fn source(&self) -> Option<Source> {
        Source::from_name(self.metadata.get("source")?.as_str()?)
    }

    /// Digest of the weights that wrote the better answer; `None`: a person did.
    pub fn written_by(&self) -> Option<&str> {
        self.metadata.get("base")?.as_str()
    }
}

/// Where a better answer came from, when it was not typed as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The answer, edited.
    Fix,
    /// A second answer to the same question, which was praised.
    Retry,
    /// Made from the note of a bad rating.
    Revision,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Source::Fix => "fix",
            Source::Retry => "retry",
            Source::Revision => "revision",
        }
    }

    pub fn from_name(name: &str) -> Option<Source> {
        [Source::Fix, Source::Retry, Source::Revision].into_iter().find(|source| source.name() == name)
    }
}

/// A signal to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewFeedback {
    pub session: Option<String>,
    pub kind: Kind,
    pub value: f64,
    pub weight: f64,
    pub note: Option<String>,
    pub corrected: Option<String>,
    pub metadata: Value,
}

impl NewFeedback {
    /// A signal of `kind` with its value and its configured weight, no note.
    pub fn new(kind: Kind, config: &FeedbackConfig) -> NewFeedback {
        NewFeedback {
            session: None,
            kind,
            value: kind.value(),
            weight: kind.weight(config),
            note: None,
            corrected: None,
            metadata: Value::Object(Default::default()),
        }
    }

    /// The better answer, typed by the user.
    pub fn correction(text: impl Into<String>, config: &FeedbackConfig) -> NewFeedback {
        NewFeedback { corrected: Some(text.into()), ..NewFeedback::new(Kind::Correction, config) }
    }

    /// Notes where the better answer came from, and the digest of the weights that wrote it (`None`: a person did).
    pub fn from_source(mut self, source: Source, written_by: Option<&str>) -> NewFeedback {
        self.metadata["source"] = source.name().into();
        if let Some(base) = written_by {
            self.metadata["base"] = base.into();
        }
        self
    }

    pub fn with_note(mut self, note: impl Into<String>) -> NewFeedback {
        self.note = Some(note.into());
        self
    }

    /// Notes in which session it is given, so that `/undo` there finds it.
    pub fn in_session(mut self, session: impl Into<String>) -> NewFeedback {
        self.session = Some(session.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interaction() -> NewInteraction {
        NewInteraction {
            session: "s".into(),
            turn: 1,
            messages: vec![Message::user("ab"), Message::assistant("c")],
            response: "d".into(),
            model: "m".into(),
            base: Some("b".into()),
            adapter: None,
            thinking: None,
            sampling: Value::Null,
            finish: Finish::Stop,
            timings: Value::Null,
            metadata: Value::Null,
        }
    }

    #[test]
    fn a_digest_tells_apart_what_is_different_and_nothing_else() {
        let one = interaction();
        let moved = NewInteraction { messages: vec![Message::user("a"), Message::assistant("bc")], ..one.clone() };
        assert_ne!(one.prompt_digest(), moved.prompt_digest());
        let role = NewInteraction { messages: vec![Message::user("ab"), Message::user("c")], ..one.clone() };
        assert_ne!(one.prompt_digest(), role.prompt_digest());
        assert_ne!(one.content_digest(), NewInteraction { turn: 2, ..one.clone() }.content_digest());
        assert_ne!(one.content_digest(), NewInteraction { base: None, ..one.clone() }.content_digest());
        let same = NewInteraction { model: "other name".into(), timings: Value::Bool(true), ..one.clone() };
        assert_eq!(one.content_digest(), same.content_digest());
    }

    #[test]
    fn every_finish_is_found_by_its_name() {
        for finish in [Finish::Stop, Finish::Length, Finish::Interrupted] {
            assert_eq!(Finish::from_name(finish.name()), Some(finish));
        }
        assert_eq!(Finish::from_name("done"), None);
    }
}
