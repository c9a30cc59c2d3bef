//! One answer as it streams in: token ids to text, thought apart from answer, safe for the screen as it is told.

use super::thoughts::{Part, Splitter};
use crate::model::tokenizer::Tokenizer;
use crate::text::{Sanitizer, Utf8Stream};

/// A piece of an answer for the screen, sanitised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Thought(String),
    Text(String),
}

/// Collects an answer exactly as the model wrote it, and tells it in printable pieces.
pub(super) struct Answer<'a> {
    tokenizer: &'a Tokenizer,
    utf8: Utf8Stream,
    splitter: Splitter,
    /// Apart, so that a sequence begun in a thought cannot swallow the answer.
    thought_screen: Sanitizer,
    text_screen: Sanitizer,
    /// The thinking, verbatim.
    pub thought: String,
    /// The answer without the thinking, verbatim.
    pub text: String,
}

impl<'a> Answer<'a> {
    /// `thinking`: the prompt ends inside a thought.
    pub fn new(tokenizer: &'a Tokenizer, thinking: bool) -> Self {
        Answer {
            tokenizer,
            utf8: Utf8Stream::default(),
            splitter: Splitter::new(thinking),
            thought_screen: Sanitizer::default(),
            text_screen: Sanitizer::default(),
            thought: String::new(),
            text: String::new(),
        }
    }

    /// Takes a token; tells what became readable by it.
    pub fn push(&mut self, token: u32, tell: &mut dyn FnMut(Piece)) {
        let Some(bytes) = self.tokenizer.token_bytes(token) else { return }; // control tokens are never shown
        let chunk = self.utf8.push(&bytes);
        for part in self.splitter.push(&chunk) {
            self.take(part, tell);
        }
    }

    /// Tells what was held back for the end.
    pub fn finish(&mut self, tell: &mut dyn FnMut(Piece)) {
        let chunk = self.utf8.finish();
        let parts = self.splitter.push(&chunk);
        for part in parts.into_iter().chain(self.splitter.finish()) {
            self.take(part, tell);
        }
    }

    /// Nothing readable came.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.thought.is_empty()
    }

    fn take(&mut self, part: Part, tell: &mut dyn FnMut(Piece)) {
        let piece = match part {
            Part::Thought(thought) => {
                self.thought.push_str(&thought);
                Piece::Thought(self.thought_screen.push(&thought))
            }
            Part::Answer(text) => {
                self.text.push_str(&text);
                Piece::Text(self.text_screen.push(&text))
            }
        };
        if !matches!(&piece, Piece::Thought(t) | Piece::Text(t) if t.is_empty()) {
            tell(piece);
        }
    }
}
