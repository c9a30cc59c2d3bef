//! Decoding: one sequence, a KV cache that grows by doubling, logits for the last token only.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::attention::attention;
use super::forward::{Forward, Rope, by_head};
use super::pairs::Pairs;
use super::{Shared, head, ops};
use crate::error::Result;
use crate::model::Decoder;

/// Tokens that go through the network at once: attention takes memory by this times all tokens before.
const CHUNK: usize = 256;

/// Keys and values of one layer, `[kv_heads, capacity, head_dim]` f32.
struct Cache {
    k: Tensor,
    v: Tensor,
}

pub(super) struct CandleDecoder {
    shared: Arc<Shared>,
    pairs: Option<Pairs>,
    rope: Arc<Rope>,
    caches: Vec<Cache>,
    len: usize,
    /// Tokens that the caches have room for.
    pub(super) capacity: usize,
}

impl CandleDecoder {
    pub fn new(shared: Arc<Shared>, pairs: Option<Pairs>) -> Result<Self> {
        let rope = shared.rope(0)?;
        Ok(CandleDecoder { shared, pairs, rope, caches: Vec::new(), len: 0, capacity: 0 })
    }

    /// Appends `ids`, few and checked; hidden states of all of them, `[ids, hidden]`.
    fn append(&mut self, ids: &[u32]) -> Result<Tensor> {
        let (past, all) = (self.len, self.len + ids.len());
        self.reserve(all)?;
        self.rope = self.shared.rope(all)?;
        let positions: Vec<u32> = (past as u32..all as u32).collect();
        let (cos, sin) = self.rope.at(&positions)?;
        let shared = Arc::clone(&self.shared);
        let pass = Forward {
            config: &shared.config,
            weights: &shared.weights,
            pairs: self.pairs.as_ref(),
            dropout: None,
            cos,
            sin,
            courtesy: None,
        };
        let caches = &self.caches;
        let hidden = pass.hidden(ids, &mut |layer, q, k, v| {
            let cache = &caches[layer];
            cache.k.slice_set(&by_head(k)?, 1, past)?;
            cache.v.slice_set(&by_head(v)?, 1, past)?;
            Ok(attention(q, &cache.k.narrow(1, 0, all)?, &cache.v.narrow(1, 0, all)?)?)
        })?;
        self.len = all; // only now: a failed forward leaves the cache as it was
        Ok(hidden)
    }

    /// Appends `ids` in chunks, with `take(start, chunk, hidden)` after each; all of them, or on an error none.
    fn append_all(&mut self, ids: &[u32], mut take: impl FnMut(usize, &[u32], &Tensor) -> Result<()>) -> Result<()> {
        self.shared.check_ids(ids)?;
        let past = self.len;
        let done = (0..ids.len()).step_by(CHUNK).try_for_each(|start| {
            let chunk = &ids[start..ids.len().min(start + CHUNK)];
            let hidden = self.append(chunk)?;
            take(start, chunk, &hidden)
        });
        if done.is_err() {
            self.truncate(past);
        }
        done
    }

    /// Room for `tokens`; what is cached is copied, and copied rarely.
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        if tokens <= self.capacity {
            return Ok(());
        }
        let config = &self.shared.config;
        // Doubling, but not past what the model can use: a token takes 0.2 MB in Qwen3-0.6B, and contexts are long.
        let capacity = tokens.next_power_of_two().max(256).min(config.context.max(tokens));
        let grow = |old: Option<&Tensor>| -> Result<Tensor> {
            let shape = (config.kv_heads, capacity, config.head_dim);
            let new = Tensor::zeros(shape, DType::F32, &self.shared.device)?;
            if let (Some(old), 1..) = (old, self.len) {
                new.slice_set(&old.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
            }
            Ok(new)
        };
        let caches = (0..config.layers)
            .map(|layer| {
                let old = self.caches.get(layer);
                Ok(Cache { k: grow(old.map(|c| &c.k))?, v: grow(old.map(|c| &c.v))? })
            })
            .collect::<Result<Vec<_>>>()?;
        self.caches = caches;
        self.capacity = capacity;
        Ok(())
    }
}

impl Decoder for CandleDecoder {
    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let shared = Arc::clone(&self.shared);
        shared.run(|| {
            let mut logits = Vec::new();
            self.append_all(ids, |start, chunk, hidden| {
                if start + chunk.len() == ids.len() {
                    let last = hidden.narrow(0, chunk.len() - 1, 1)?;
                    logits =
                        ops::linear(&last, &shared.weights.head)?.squeeze(0)?.to_device(&Device::Cpu)?.to_vec1()?;
                }
                Ok(())
            })?;
            Ok(logits)
        })
    }

    fn forward_each(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        let shared = Arc::clone(&self.shared);
        shared.run(|| {
            let mut each = Vec::with_capacity(ids.len());
            self.append_all(ids, |_, _, hidden| {
                let logits = ops::linear(hidden, &shared.weights.head)?.to_device(&Device::Cpu)?;
                each.extend(logits.to_vec2::<f32>()?);
                Ok(())
            })?;
            Ok(each)
        })
    }

    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let shared = Arc::clone(&self.shared);
        shared.run(|| {
            let mut logprobs = Vec::with_capacity(ids.len().saturating_sub(1));
            self.append_all(ids, |start, chunk, hidden| {
                let next = &ids[start + 1..ids.len().min(start + chunk.len() + 1)];
                let predicting = hidden.narrow(0, 0, next.len())?;
                logprobs.extend(head::logprobs(&predicting, next, &shared.weights.head)?);
                Ok(())
            })?;
            Ok(logprobs)
        })
    }
}
