//! The candle network: Qwen2 and Qwen3 on any candle device, differentiable, and the oracle for faster ones.
//!
//! All arithmetic is f32, whatever the storage of the checkpoint.
//!
//! - `ops`, `attention`: building blocks with gradients of their own; `gemm`, `product`: products on the CPU
//! - `weights`: which tensors there are
//! - `pairs`: an adapter's tensors
//! - `forward`: the block, shared by the two users below
//! - `decode`: a KV cache, one token after the other
//! - `learn`: gradients of LoRA pairs, or of all weights
//! - `packed`, `pass`: what a learner runs over, and its forward and backward
//! - `head`: the output layer, in chunks

mod attention;
mod decode;
#[cfg(test)]
mod dora_tests;
mod forward;
mod gemm;
mod head;
mod learn;
mod ops;
mod packed;
mod pairs;
mod pass;
mod product;
#[cfg(test)]
pub(crate) mod tests;
pub mod weights;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{Device, Tensor};

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::courtesy::Courtesy;
use super::lora::{LoraWeights, Target};
use super::memory::Memory;
use super::{Decoder, Learner, Network};
use crate::error::{Context, Error, Result};
use decode::CandleDecoder;
use forward::Rope;
use learn::{CandleLearner, FullLearner};
use pairs::{Pairs, Parts};
use weights::Weights;

/// A Qwen network with its weights on a candle device.
#[derive(Clone)]
pub struct CandleNetwork {
    shared: Arc<Shared>,
}

/// Where a tensor's numbers come from, row-major: its name in checkpoints and its shape.
type Numbers<'a> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>> + 'a;

/// What every decoder and learner of a network shares.
struct Shared {
    config: ModelConfig,
    weights: Weights,
    device: Device,
    rope: Mutex<Arc<Rope>>,
    /// ‖W‖² of each row of the linear layers that DoRA has asked for, `[out]`: they never change.
    row_squares: Vec<[OnceLock<Tensor>; 7]>,
    /// A pool of one thread for networks too small to be worth waking others for.
    small: Option<rayon::ThreadPool>,
}

impl CandleNetwork {
    /// What a network of this shape takes: weights, keys and values are f32, however the file stores them.
    pub fn memory(config: &ModelConfig) -> Result<Memory> {
        let weights = weights::slots(config)?.iter().map(|slot| 4 * slot.len() as u64).sum();
        Ok(Memory { weights, learning: 0, token: 4 * 2 * (config.layers * config.kv_heads * config.head_dim) as u64 })
    }

    /// Reads all tensors of the checkpoint onto `device`, as f32: the narrowest type that holds every number of every
    /// storage and in which products need no conversion.
    pub fn load(config: &ModelConfig, checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        Self::from_numbers(config, device, &mut |name, shape| checkpoint.tensor(name, shape))
    }

    /// A network over a flat vector of all its weights, laid out as [`weights::slots`] says.
    pub fn from_params(config: &ModelConfig, params: &[f32], device: &Device) -> Result<Self> {
        let slots = weights::slots(config)?;
        Self::from_numbers(config, device, &mut |name, _| {
            let slot = slots.iter().find(|s| s.name == name);
            let slot = slot.ok_or_else(|| Error::failure(format!("no place for the weight {name}")))?;
            Ok(params[slot.start..slot.start + slot.len()].to_vec())
        })
    }

    /// A network of the numbers that `numbers` gives for the name and shape of each tensor.
    fn from_numbers(config: &ModelConfig, device: &Device, numbers: &mut Numbers<'_>) -> Result<Self> {
        let weights =
            Weights::gather(config, &mut |name, shape| Ok(Tensor::from_vec(numbers(name, shape)?, shape, device)?))?;
        Self::new(config.clone(), weights, device.clone())
    }

    fn new(config: ModelConfig, weights: Weights, device: Device) -> Result<Self> {
        let rope = Mutex::new(Arc::new(Rope::new(&config, 256.min(config.context.max(1)), &device)?));
        let small = if config.is_small() { Some(single_thread()?) } else { None };
        let row_squares = (0..config.layers).map(|_| Default::default()).collect();
        Ok(CandleNetwork { shared: Arc::new(Shared { config, weights, device, rope, row_squares, small }) })
    }

    /// A learner of *all* weights, for pretraining; parameters as [`weights::slots`] lays them out.
    pub fn full_learner(config: &ModelConfig, device: &Device) -> Result<Box<dyn Learner>> {
        Ok(Box::new(FullLearner::new(config.clone(), device.clone())?))
    }
}

/// candle's products run in the rayon pool that they are called from.
fn single_thread() -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .map_err(|e| Error::failure(format!("cannot start a compute thread: {e}")))
}

impl Shared {
    /// Rotary tables for at least `positions`; made larger rarely, shared by all.
    fn rope(&self, positions: usize) -> Result<Arc<Rope>> {
        let mut rope = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        if rope.positions() < positions {
            *rope = Arc::new(Rope::new(&self.config, positions.next_power_of_two(), &self.device)?);
        }
        Ok(Arc::clone(&rope))
    }

    /// ‖W‖² of each row of a linear layer, `[out]`.
    fn row_squares(&self, layer: usize, target: Target) -> Result<&Tensor> {
        let slot = &self.row_squares[layer][target as usize];
        if slot.get().is_none() {
            let _ = slot.set(self.weights.blocks[layer].linear[target as usize].sqr()?.sum(1)?);
        }
        slot.get().ok_or_else(|| Error::failure("the lengths of the weights' rows were lost"))
    }

    /// An id past the embedding is an error here, not an out-of-bounds read in a kernel.
    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        self.config.check_ids(ids)
    }

    /// Runs `work` where its products belong: on one thread for a small network, on all for others.
    fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.small {
            Some(pool) if rayon::current_num_threads() > 1 => pool.install(work),
            _ => work(), // or this is such a thread already
        }
    }
}

impl Network for CandleNetwork {
    fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    fn row_norms(&self, layer: usize, target: Target) -> Result<Vec<f32>> {
        let shared = &self.shared;
        if layer >= shared.config.layers {
            return Err(Error::failure(format!("the base has no layer {layer}, it has {}", shared.config.layers)));
        }
        shared.run(|| Ok(shared.row_squares(layer, target)?.sqrt()?.to_vec1()?))
    }

    fn decoder(&self, adapter: Option<&LoraWeights>) -> Result<Box<dyn Decoder>> {
        let shared = &self.shared;
        let pairs = adapter
            .map(|lora| {
                shared.config.check_fit(lora).context("the adapter does not fit this base")?;
                let gather = || {
                    Pairs::gather(shared, lora, |m| {
                        let a = Tensor::from_slice(lora.a(m), (m.rank, m.in_features), &shared.device)?;
                        let b = Tensor::from_slice(lora.b(m), (m.out_features, m.rank), &shared.device)?;
                        let magnitude = lora.magnitude(m);
                        let magnitude = magnitude.map(|v| Tensor::from_slice(v, m.out_features, &shared.device));
                        Ok(Parts { a, b, magnitude: magnitude.transpose()? })
                    })
                };
                shared.run(gather)
            })
            .transpose()?;
        Ok(Box::new(CandleDecoder::new(Arc::clone(shared), pairs)?))
    }

    fn learner(&self, layout: &LoraWeights, courtesy: Arc<Courtesy>) -> Result<Box<dyn Learner>> {
        self.shared.config.check_fit(layout).context("the adapter does not fit this base")?;
        Ok(Box::new(CandleLearner::new(Arc::clone(&self.shared), layout, courtesy)?))
    }
}
