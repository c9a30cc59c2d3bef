//! Answering the last question again, and the pair that comes of it when the second answer is praised.

use serde_json::json;

use super::{AskEvent, Session};
use crate::engine::CancelFlag;
use crate::error::{Error, Result};
use crate::feedback::example::same_text;
use crate::feedback::{FeedbackConfig, Finish, Interaction, NewFeedback, Source};
use crate::model::message::{Message, Role};
use crate::store::Store;

/// Where an interaction's metadata names the one that it answers again, and the hint that it was asked with.
const RETRY_OF: &str = "retry_of";
const HINT: &str = "hint";

/// A second answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Again {
    pub interaction: Interaction,
    /// It reads as the first one did.
    pub same: bool,
}

/// What a turn that answers an earlier question again is asked with.
pub(super) struct Retry<'a> {
    pub of: i64,
    pub hint: Option<&'a str>,
}

impl Retry<'_> {
    /// The conversation as the model sees it: with the hint behind the question. What is stored has no hint.
    pub fn hinted(&self, messages: &[Message]) -> Vec<Message> {
        let mut messages = messages.to_vec();
        if let (Some(hint), Some(last)) = (self.hint, messages.last_mut()) {
            last.content = format!("{}\n\n{hint}", last.content);
        }
        messages
    }

    pub fn note(&self, metadata: &mut serde_json::Value) {
        metadata[RETRY_OF] = json!(self.of);
        if let Some(hint) = self.hint {
            metadata[HINT] = json!(hint);
        }
    }
}

impl Session {
    /// Answers the last question again, with another seed; the second answer takes the first one's place in the
    /// conversation. `hint` goes into this turn's prompt and nowhere else. Errors and cancelling are as with
    /// [`Session::ask`]; where nothing came, the first answer stays.
    pub fn retry(
        &mut self,
        hint: Option<&str>,
        cancel: &CancelFlag,
        on_event: &mut dyn FnMut(AskEvent),
    ) -> Result<Again> {
        let (first, _) = self.last_answer("give again")?;
        let Some((question, before)) = before(&self.history, &first) else {
            return Err(Error::failure("the last answer has no question that could be asked again"));
        };
        let first_history = std::mem::replace(&mut self.history, before);
        let turns = self.history.len();
        let answered = self.answer(&question, Some(Retry { of: first.id, hint }), cancel, on_event);
        if self.history.len() == turns {
            self.history = first_history;
        }
        let interaction = answered?;
        Ok(Again { same: same_text(&interaction.response, &first.response), interaction })
    }
}

/// The question that `first` answered, and the conversation before it: this session's own, else (it was cleared, or
/// the answer is an earlier session's) the one that was stored.
fn before(history: &[Message], first: &Interaction) -> Option<(String, Vec<Message>)> {
    let (last, stored) = first.messages.split_last()?;
    if last.role != Role::User {
        return None;
    }
    let question = last.content.clone();
    let before = match history {
        [before @ .., asked, answer] if asked.content == question && answer.content == first.response => {
            before.to_vec()
        }
        _ => stored.iter().filter(|m| m.role != Role::System).cloned().collect(),
    };
    Some((question, before))
}

/// What praise for a second answer says about the first: the interaction and its correction. `None`: it says nothing, as
/// this is no praise, no second answer, the same text, or the user typed a better one.
pub(super) fn preferred(
    store: &Store,
    rules: &FeedbackConfig,
    second: &Interaction,
    praise: &NewFeedback,
) -> Result<Option<(i64, NewFeedback)>> {
    let Some(first) = second.metadata.get(RETRY_OF).and_then(|id| id.as_i64()) else { return Ok(None) };
    let praised = praise.kind.is_judgement() && praise.value > 0.0;
    if !praised || second.finish != Finish::Stop || second.response.trim().is_empty() {
        return Ok(None);
    }
    let Some(first) = store.interaction(first)?.filter(|first| !same_text(&first.response, &second.response)) else {
        return Ok(None);
    };
    let better = store.feedback_on(first.id)?.into_iter().filter(|f| f.corrected.is_some()).collect::<Vec<_>>();
    if better.iter().any(|f| f.source() != Some(Source::Retry)) {
        return Ok(None);
    }
    let new = NewFeedback { weight: rules.medium_weight, ..NewFeedback::correction(&second.response, rules) };
    Ok(Some((first.id, new.from_source(Source::Retry, second.base.as_deref()))))
}
