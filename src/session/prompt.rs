//! From messages to the ids that a model is asked with, by its own chat template.

use crate::error::Result;
use crate::model::load::Model;
use crate::model::message::Message;

/// A prompt ready for the engine.
pub(super) struct Prompt {
    pub ids: Vec<u32>,
    /// It ends in an open `<think>`: what the model writes first is thought.
    pub inside_thought: bool,
}

/// Renders and encodes a conversation that ends in a user turn, with the opening of the answer.
pub(super) fn encode(model: &Model, messages: &[Message], thinking: Option<bool>) -> Result<Prompt> {
    let ids = model.template.encode(&model.tokenizer, messages, true, thinking)?;
    let tail = &ids[ids.len().saturating_sub(4)..];
    let inside_thought = model.tokenizer.decode(tail).trim_end().ends_with("<think>");
    Ok(Prompt { ids, inside_thought })
}
