//! A network for tests: the next token is a function of the tokens so far, and every call is written down.

use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::model::config::{Family, ModelConfig};
use crate::model::courtesy::Courtesy;
use crate::model::lora::{LoraWeights, Target};
use crate::model::{Decoder, Learner, Network};

/// What a mock decoder was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// A decoder was made, with an adapter or without.
    Made { adapted: bool },
    /// `tokens` were appended to a cache of `at`.
    Forward { at: usize, tokens: usize },
}

/// Tokens in the cache and the adapter's first value → the next token.
type Next = dyn Fn(&[u32], Option<f32>) -> Result<u32> + Send + Sync;

#[derive(Clone)]
pub(crate) struct MockNetwork {
    config: ModelConfig,
    next: Arc<Next>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl MockNetwork {
    pub fn new(
        vocab_size: usize,
        context: usize,
        next: impl Fn(&[u32], Option<f32>) -> Result<u32> + Send + Sync + 'static,
    ) -> Self {
        let config = ModelConfig {
            family: Family::Qwen3,
            vocab_size,
            hidden_size: 4,
            intermediate_size: 4,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 4,
            context,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            rope_scaling: crate::model::rope::RopeScaling::None,
            attention_bias: false,
            tied_embeddings: true,
        };
        MockNetwork { config, next: Arc::new(next), calls: Arc::default() }
    }

    /// The calls since the last time this was asked.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl Network for MockNetwork {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn row_norms(&self, _: usize, _: Target) -> Result<Vec<f32>> {
        Err(Error::failure("the mock has no weights"))
    }

    fn decoder(&self, adapter: Option<&LoraWeights>) -> Result<Box<dyn Decoder>> {
        let adapter = match adapter.map(|a| a.data.first().copied()) {
            Some(None) => return Err(Error::failure("tensor mock.lora_A.weight is missing")),
            Some(value) => value,
            None => None,
        };
        self.note(Call::Made { adapted: adapter.is_some() });
        Ok(Box::new(MockDecoder { network: self.clone(), adapter, tokens: Vec::new() }))
    }

    fn learner(&self, _: &LoraWeights, _: Arc<Courtesy>) -> Result<Box<dyn Learner>> {
        Err(Error::failure("the mock does not learn"))
    }
}

struct MockDecoder {
    network: MockNetwork,
    adapter: Option<f32>,
    tokens: Vec<u32>,
}

impl MockDecoder {
    fn append(&mut self, ids: &[u32]) {
        assert!(!ids.is_empty(), "forward of nothing");
        self.network.note(Call::Forward { at: self.tokens.len(), tokens: ids.len() });
        self.tokens.extend_from_slice(ids);
        assert!(self.tokens.len() <= self.network.config.context, "beyond the context");
    }

    /// After the first `end` tokens: 10 for the expected one, 0 for the others.
    fn logits(&self, end: usize) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; self.network.config.vocab_size];
        logits[(self.network.next)(&self.tokens[..end], self.adapter)? as usize] = 10.0;
        Ok(logits)
    }
}

impl Decoder for MockDecoder {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
    }

    fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.append(ids);
        self.logits(self.tokens.len())
    }

    fn forward_each(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        let before = self.tokens.len();
        self.append(ids);
        (before + 1..=self.tokens.len()).map(|end| self.logits(end)).collect()
    }

    /// ln p of each token under logits of 10 for the expected one and 0 for the others.
    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        assert!(self.tokens.is_empty() && !ids.is_empty(), "a score of nothing, or on a cache");
        let others = (self.network.config.vocab_size - 1) as f32;
        let certain = -(1.0 + others * (-10f32).exp()).ln();
        let mut logprobs = Vec::new();
        for at in 1..ids.len() {
            let expected = (self.network.next)(&ids[..at], self.adapter)? == ids[at];
            logprobs.push(if expected { certain } else { certain - 10.0 });
        }
        self.tokens.extend_from_slice(ids);
        Ok(logprobs)
    }
}
