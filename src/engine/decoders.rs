//! Decoders kept between requests: the live adapter's and the one before it, each with the tokens that its cache holds.

use std::collections::VecDeque;
use std::sync::Arc;

use super::EngineAdapter;
use super::draft::Lookahead;
use crate::error::{Context, Result};
use crate::model::{Decoder, Network};

/// The live decoder and the previous one: enough to swap an adapter back without a prefill; each costs a KV cache.
const KEPT: usize = 2;

/// A decoder and the tokens in its cache.
pub(super) struct Slot {
    /// Digest of the adapter; `None`: the base alone.
    adapter: Option<String>,
    decoder: Box<dyn Decoder>,
    tokens: Vec<u32>,
}

impl Slot {
    /// Appends `ids` and returns the logits after the last of them.
    pub fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let logits = self.decoder.forward(ids)?;
        self.tokens.extend_from_slice(ids);
        Ok(logits)
    }

    /// As [`Slot::forward`] of one token, looking ahead by at most `most` tokens.
    pub fn forward_ahead(&mut self, lookahead: &mut Lookahead, token: u32, most: usize) -> Result<Vec<f32>> {
        lookahead.forward(&mut *self.decoder, &mut self.tokens, token, most)
    }

    /// Takes out of the cache what was looked ahead for in vain.
    pub fn settle(&mut self, lookahead: &mut Lookahead) {
        lookahead.settle(&mut *self.decoder, &self.tokens);
    }

    /// All tokens in the cache, oldest first; not those that were drafted.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets what differs from `prompt` and returns how many of its tokens remain, always short of the last one,
    /// whose logits are needed.
    fn rewind_to(&mut self, prompt: &[u32]) -> usize {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = same.min(prompt.len().saturating_sub(1));
        self.decoder.truncate(keep);
        self.tokens.truncate(keep);
        keep
    }
}

/// Decoders of one base by adapter digest, most recently used last.
pub(super) struct Decoders {
    network: Arc<dyn Network>,
    slots: VecDeque<Slot>,
}

impl Decoders {
    pub fn new(network: Arc<dyn Network>) -> Self {
        Decoders { network, slots: VecDeque::with_capacity(KEPT) }
    }

    /// Hands out the adapter's decoder, its cache cut back to what it shares with `prompt`, and how many tokens that is.
    ///
    /// The caller owns it until [`put_back`](Self::put_back): one that failed or panicked is dropped, never used again.
    pub fn take(&mut self, adapter: Option<&EngineAdapter>, prompt: &[u32]) -> Result<(Slot, usize)> {
        let digest = adapter.map(|a| a.digest.as_str());
        let found = self.slots.iter().position(|s| s.adapter.as_deref() == digest);
        if let Some(mut slot) = found.and_then(|at| self.slots.remove(at)) {
            let reused = slot.rewind_to(prompt);
            if slot.decoder.len() == reused {
                return Ok((slot, reused));
            } // else its cache does not do as told: start afresh
        }
        while self.slots.len() >= KEPT {
            self.slots.pop_front(); // before the new one is made, so that memory never holds one more
        }
        let decoder = match adapter {
            None => self.network.decoder(None)?,
            Some(a) => self.network.decoder(Some(&a.weights)).with_context(|| format!("adapter {}", a.name))?,
        };
        Ok((Slot { adapter: digest.map(str::to_owned), decoder, tokens: Vec::new() }, 0))
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    pub fn put_back(&mut self, slot: Slot) {
        self.slots.push_back(slot);
    }
}
