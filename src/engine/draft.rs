//! Prompt-lookup drafting: an answer that quotes or edits what stands in the conversation goes on as it went on there.
//!
//! Where the last tokens were there before, those that followed are a draft. One forward over several tokens costs little
//! more than one over one, and gives the logits after each of them; every token is then sampled as it would have been, and
//! a draft is used as far as it is what was sampled. So the answer is that without drafts, token for token, under every way
//! of sampling: accepting a draft where it was drawn, and what was drawn where it was not, is speculative sampling with a
//! draft that is certain.

use std::collections::VecDeque;

use crate::error::Result;
use crate::model::Decoder;

/// Tokens in a row that must have been there before.
const FAMILIAR: usize = 3;
/// Drafted tokens at first, and at most: with the one that is certain, a forward of sixteen.
const FIRST: usize = 4;
const MOST: usize = 15;
/// Tokens that are written without a draft after as many useless ones as there can be in a row, at most: 2 to the power.
const LONGEST_PAUSE: u32 = 6;

/// How drafts did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drafted {
    /// Tokens that were drafted, and those among them that the answer had.
    pub proposed: usize,
    pub accepted: usize,
}

/// What was computed ahead of an answer, and how far to look.
#[derive(Debug)]
pub struct Lookahead {
    /// Drafted tokens whose keys and values are in the cache already, and the logits after each.
    ahead: VecDeque<(u32, Vec<f32>)>,
    /// Tokens to draft next time.
    length: usize,
    /// Tokens to write before the next draft, and drafts in a row of which nothing was of use.
    pause: usize,
    useless: u32,
    /// Of the draft under way.
    accepted: usize,
    drafted: Drafted,
}

impl Default for Lookahead {
    fn default() -> Self {
        let (ahead, drafted) = (VecDeque::new(), Drafted::default());
        Lookahead { ahead, length: FIRST, pause: 0, useless: 0, accepted: 0, drafted }
    }
}

impl Lookahead {
    /// Appends `token` to `tokens` and to the cache, which holds them, and returns the logits after it. At most `most`
    /// tokens are drafted behind it: the cache is ahead of `tokens` by those until [`Lookahead::settle`].
    pub fn forward(
        &mut self,
        decoder: &mut dyn Decoder,
        tokens: &mut Vec<u32>,
        token: u32,
        most: usize,
    ) -> Result<Vec<f32>> {
        if self.ahead.front().is_some_and(|(drafted, _)| *drafted == token)
            && let Some((_, logits)) = self.ahead.pop_front()
        {
            tokens.push(token);
            self.accepted += 1;
            self.drafted.accepted += 1;
            if self.ahead.is_empty() {
                self.length = (2 * self.length).min(MOST); // all of it was of use
                self.useless = 0;
            }
            return Ok(logits);
        }
        if !self.ahead.is_empty() {
            self.learn_from_miss();
        }
        self.settle(decoder, tokens);
        self.accepted = 0;
        tokens.push(token);
        let logits = self.compute(decoder, tokens, most);
        if logits.is_err() {
            tokens.pop(); // the cache is as it was
        }
        logits
    }

    /// Takes out of the cache what was drafted and not used.
    pub fn settle(&mut self, decoder: &mut dyn Decoder, tokens: &[u32]) {
        self.ahead.clear();
        if decoder.len() > tokens.len() {
            decoder.truncate(tokens.len());
        }
    }

    pub fn drafted(&self) -> Drafted {
        self.drafted
    }

    /// The logits after the last of `tokens`, which alone is not in the cache yet.
    fn compute(&mut self, decoder: &mut dyn Decoder, tokens: &[u32], most: usize) -> Result<Vec<f32>> {
        let last = &tokens[tokens.len() - 1..];
        let draft = match self.pause {
            0 => familiar(tokens, self.length.min(most)),
            _ => &[],
        };
        self.pause = self.pause.saturating_sub(1);
        if draft.is_empty() {
            return decoder.forward(last);
        }
        let mut logits = decoder.forward_each(&[last, draft].concat())?.into_iter();
        let first = logits.next().unwrap_or_default(); // there are as many as ids
        self.ahead = draft.iter().copied().zip(logits).collect();
        self.drafted.proposed += draft.len();
        Ok(first)
    }

    /// The draft under way went another way than the answer.
    fn learn_from_miss(&mut self) {
        if self.accepted > 0 {
            self.length = (self.accepted + 1).min(MOST);
            self.useless = 0;
            return;
        }
        self.useless = (self.useless + 1).min(LONGEST_PAUSE);
        self.pause = 1 << self.useless;
        self.length = (self.length / 2).max(1);
    }
}

/// What followed the last tokens where they were the last time before; at most `most` tokens.
fn familiar(tokens: &[u32], most: usize) -> &[u32] {
    let Some(before) = tokens.len().checked_sub(1) else { return &[] };
    let Some(start) = tokens.len().checked_sub(FAMILIAR) else { return &[] };
    let wanted = &tokens[start..];
    let found = tokens[..before].windows(FAMILIAR).rposition(|seen| seen == wanted);
    let Some(next) = found.map(|at| at + FAMILIAR) else { return &[] };
    &tokens[next..tokens.len().min(next + most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_continuation_is_the_draft() {
        let tokens = [1, 2, 3, 9, 9, 1, 2, 3, 7, 8, 1, 2, 3];
        assert_eq!(familiar(&tokens, 2), [7, 8]);
        assert_eq!(familiar(&tokens, 100), [7, 8, 1, 2, 3]);
        assert!(familiar(&tokens, 0).is_empty());
        assert_eq!(familiar(&[5, 5, 5, 5], 4), [5], "it may reach into itself");
        for strange in [&[][..], &[1], &[1, 2, 3], &[1, 2, 3, 4, 2, 3]] {
            assert!(familiar(strange, 4).is_empty(), "{strange:?}");
        }
    }
}
