//! What a base says greedily to a prompt never changes: it is worked out once for as long as the model is loaded.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;

/// More are forgotten, all at once: a prompt and its answer take about a kilobyte.
const MOST: usize = 8192;

/// An answer without the id that ended it, and that id; None: it was cut at the most tokens.
pub type Said = (Vec<u32>, Option<u32>);

/// By prompt and the most tokens of an answer.
#[derive(Debug, Default)]
pub struct Answers(Mutex<HashMap<(Vec<u32>, usize), Said>>);

impl Answers {
    /// The answer to a prompt, made by `answer` where it is not known; what fails is not kept.
    pub fn of(&self, prompt: &[u32], max_tokens: usize, answer: impl FnOnce() -> Result<Said>) -> Result<Said> {
        let key = (prompt.to_vec(), max_tokens);
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = known().get(&key) {
            return Ok(said.clone());
        }
        let said = answer()?;
        let mut known = known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, said.clone());
        Ok(said)
    }
}
