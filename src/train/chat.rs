//! Conversations as token sequences to learn from: the prompt as the model is asked, the completion as it would answer.

use crate::error::{Error, Result};
use crate::model::Tokens;
use crate::model::load::{ChatFiles, Model};
use crate::model::message::Message;
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::Tokenizer;

/// What text becomes token ids with.
#[derive(Clone, Copy)]
pub struct ChatFormat<'m> {
    tokenizer: &'m Tokenizer,
    template: &'m ChatTemplate,
    /// Ends an answer; part of every completion.
    end_of_turn: u32,
}

impl<'m> ChatFormat<'m> {
    /// Errors when the model has no token that ends a turn.
    pub fn of(model: &'m Model) -> Result<ChatFormat<'m>> {
        Self::new(&model.tokenizer, &model.template, &model.generation.eos)
    }

    /// As [`ChatFormat::of`], without the weights.
    pub fn of_files(files: &'m ChatFiles) -> Result<ChatFormat<'m>> {
        Self::new(&files.tokenizer, &files.template, &files.generation.eos)
    }

    fn new(tokenizer: &'m Tokenizer, template: &'m ChatTemplate, eos: &[u32]) -> Result<ChatFormat<'m>> {
        let end_of_turn = tokenizer.special_id("<|im_end|>").or_else(|| eos.first().copied()).ok_or_else(|| {
            Error::failure("the model has no token that ends a turn, so nothing can be learned from it")
        })?;
        Ok(ChatFormat { tokenizer, template, end_of_turn })
    }

    /// The conversation by the model's template, opened for an answer; `thinking` as [`ChatTemplate::encode`] takes it.
    pub fn prompt(&self, messages: &[Message], thinking: Option<bool>) -> Result<Vec<u32>> {
        self.template.encode(self.tokenizer, messages, true, thinking)
    }

    /// Text as it stands, without a template.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode_text(text)
    }

    /// An answer, tokenised apart from its prompt, and the token that ends it.
    pub fn completion(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_completion(text)?;
        ids.push(self.end_of_turn);
        Ok(ids)
    }

    /// An answer that a person typed, as [`ChatFormat::completion`]; what looks like markup in it is text.
    pub fn typed(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_text(text)?;
        ids.push(self.end_of_turn);
        Ok(ids)
    }

    /// A prompt and its answer: what training sees of an example.
    pub fn tokens(&self, messages: &[Message], completion: &str, thinking: Option<bool>) -> Result<Tokens> {
        Ok(Tokens::new(&self.prompt(messages, thinking)?, &self.completion(completion)?))
    }
}
