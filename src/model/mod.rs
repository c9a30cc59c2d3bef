//! The model: files on disk to a network that can decode and learn.
//!
//! This file is the seam. The engine and the trainer know a network only through the three traits below: token ids in,
//! logits out ([`Decoder`]); token ids in, log-probabilities of completion tokens out, their gradients back in, parameter
//! gradients out ([`Learner`], [`Pass`]). Every training objective is a function of those log-probabilities, and logits are
//! never held whole. Behind the seam stand two networks: the candle one (any device, the oracle in tests) and a faster one for
//! the CPU. Nothing above knows which.

pub mod answers;
pub mod backend;
pub mod builtin;
pub mod candle;
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod courtesy;
pub mod cpu;
pub mod digest;
pub mod dropout;
pub mod generation;
pub mod gguf;
pub mod load;
pub mod lora;
pub mod mapped;
pub mod memory;
pub mod message;
pub mod packed;
pub mod quantize;
pub mod rope;
pub mod safetensors;
pub mod sampling;
pub mod storage;
pub mod template;
pub mod tokenizer;

use std::sync::Arc;

use crate::error::Result;
use config::ModelConfig;
use courtesy::Courtesy;
use lora::{LoraWeights, Target};

/// A loaded base model: frozen weights, shared by every decoder and learner made from it.
pub trait Network: Send + Sync {
    fn config(&self) -> &ModelConfig;

    /// The length (L2) of each row of a linear layer's dequantised weights, `[out]`: where DoRA's magnitudes start.
    fn row_norms(&self, layer: usize, target: Target) -> Result<Vec<f32>>;

    /// A decoder with an empty KV cache, running the base alone or with `adapter` on top.
    ///
    /// Errors when the adapter does not fit the base (the message names the tensor).
    fn decoder(&self, adapter: Option<&LoraWeights>) -> Result<Box<dyn Decoder>>;

    /// A learner for the LoRA parameters laid out as in `layout` (its values are the start values).
    fn learner(&self, layout: &LoraWeights, courtesy: Arc<Courtesy>) -> Result<Box<dyn Learner>>;
}

/// One sequence being decoded: a KV cache and what runs over it.
pub trait Decoder: Send {
    /// Tokens in the cache.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all but the first `len` tokens.
    fn truncate(&mut self, len: usize);

    /// Appends `ids` (not empty) to the cache; returns the logits after the last of them, `[vocab_size]`. On an error the
    /// cache is as it was.
    fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// As [`Decoder::forward`], with the logits after each of `ids`, which are few: `[ids][vocab_size]`. They are those that
    /// the same ids would give one after the other: bit for bit on the CPU network, within f32's rounding on candle.
    fn forward_each(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>>;

    /// Appends `ids` (not empty) to an empty cache; returns the natural-log probability of `ids[i]` given those before it, for
    /// `i = 1..`, so `ids.len() - 1` values.
    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>>;
}

/// One sequence to learn from: which of its tokens are the completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// `targets[i]`: token `i` is predicted and counts. Same length as `ids`; `targets[0]` is false.
    pub targets: Vec<bool>,
}

impl Tokens {
    /// Prompt tokens are masked, completion tokens count.
    pub fn new(prompt: &[u32], completion: &[u32]) -> Self {
        let ids: Vec<u32> = prompt.iter().chain(completion).copied().collect();
        let mut targets: Vec<bool> = (0..ids.len()).map(|i| i >= prompt.len()).collect();
        if let Some(first) = targets.first_mut() {
            *first = false; // nothing stands before it to predict it from
        }
        Tokens { ids, targets }
    }

    /// Number of completion tokens that count.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|t| **t).count()
    }
}

/// How a training forward runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct PassOptions {
    /// Also compute the per-token KL(base ‖ adapted) at the target positions.
    pub kl: bool,
    /// Drop LoRA inputs with this probability, by this seed (PEFT's `lora_dropout`).
    pub dropout: Option<(f32, u64)>,
}

/// The trainable view of a network: a flat f32 parameter vector, ordered by parameter name.
pub trait Learner: Send + Sync {
    /// Number of trainable values.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the parameters for the passes that follow.
    fn load(&mut self, params: &[f32]) -> Result<()>;

    /// Forward over `rows`, packed without padding; each row attends to itself only.
    fn forward<'a>(&'a self, rows: &[&Tokens], options: PassOptions) -> Result<Box<dyn Pass + 'a>>;

    /// The reference model: log-probabilities of each row's target tokens with the adapter off.
    fn reference(&self, rows: &[&Tokens]) -> Result<Vec<Vec<f32>>>;
}

/// A forward waiting for its gradients.
pub trait Pass {
    /// Per row, the natural-log probability of each target token in order.
    fn logprobs(&self) -> &[Vec<f32>];

    /// Per row, KL(base ‖ adapted) in nat at each target token; empty rows unless asked for.
    fn kl(&self) -> &[Vec<f32>];

    /// Given dL/dlogprob (and dL/dKL, if the pass computed it), *adds* dL/dparams to `grads`.
    fn backward(self: Box<Self>, d_logprobs: &[Vec<f32>], d_kl: Option<&[Vec<f32>]>, grads: &mut [f32]) -> Result<()>;
}
