//! The CPU network: Qwen2 and Qwen3 on packed weights, at the file's own bits a number. It decodes and scores; it does not
//! train yet.
//!
//! - `kernels/`: sixteen lanes on each kind of processor, and the products made of them
//! - `matrix`, `pack`: a weight matrix, and how it is made of a file's bytes
//! - `rounded`, `plane`: activations, as eight-bit numbers and as they are
//! - `pool`, `tiles`: the threads, and who of them writes where
//! - `products`, `attention`, `math`: the regions of a layer
//! - `weights`, `decode`: the network, and a sequence through it
//!
//! A chat multiplies codes with activations that are rounded to eight bits, and keeps keys and values as f16. Scoring does
//! neither: its numbers are those of the candle network within f32's rounding.

mod attention;
mod decode;
mod kernels;
mod math;
mod matrix;
mod pack;
mod plane;
mod pool;
mod products;
mod rounded;
#[cfg(test)]
mod tests;
mod tiles;
mod weights;

use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::courtesy::Courtesy;
use super::lora::{LoraWeights, Target};
use super::{Decoder, Learner, Memory, Network};
use crate::error::{Context, Error, Result};
use decode::{CpuDecoder, Pairs};
use kernels::Level;
use pool::Pool;
use weights::Weights;

/// A Qwen network on the processor's cores.
pub struct CpuNetwork {
    shared: Arc<Shared>,
}

/// What every decoder of a network shares.
struct Shared {
    config: ModelConfig,
    weights: Weights,
    /// Of the rotary embedding: an angle a position for each pair of a head, and a factor of cosines and sines.
    turns: (Vec<f32>, f32),
    pool: Pool,
    level: Level,
}

impl CpuNetwork {
    /// Packs the tensors of the checkpoint, to be computed with on `threads` threads.
    ///
    /// Errors name a tensor that is missing, of another shape, or not finite.
    pub fn load(config: &ModelConfig, checkpoint: &Checkpoint, threads: usize) -> Result<CpuNetwork> {
        // A product of a small network is done before another thread is awake.
        let threads = if config.is_small() { 1 } else { threads };
        let pool = Pool::new(threads).context("cannot start a compute thread")?;
        let weights = Weights::read(config, checkpoint)?;
        Ok(Self::new(config, weights, pool, Level::detect()))
    }

    fn new(config: &ModelConfig, weights: Weights, pool: Pool, level: Level) -> CpuNetwork {
        let turns = config.rope_scaling.frequencies(config.head_dim, config.rope_theta);
        CpuNetwork { shared: Arc::new(Shared { config: config.clone(), weights, turns, pool, level }) }
    }

    /// What a network of these weights takes.
    pub fn memory(config: &ModelConfig, checkpoint: &Checkpoint) -> Memory {
        let token = 2 * 2 * (config.layers * config.kv_heads * config.head_dim) as u64;
        Memory { weights: weights::size(config, checkpoint), token }
    }
}

impl Network for CpuNetwork {
    fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    fn row_norms(&self, layer: usize, target: Target) -> Result<Vec<f32>> {
        let Some(block) = self.shared.weights.blocks.get(layer) else {
            let layers = self.shared.config.layers;
            return Err(Error::failure(format!("the base has no layer {layer}, it has {layers}")));
        };
        let matrix = block.layer(target).matrix;
        let mut row = vec![0.0; self.shared.config.linear_shape(target).0];
        let norm = |at: usize| {
            matrix.read(at, &mut row);
            row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt() as f32
        };
        Ok((0..matrix.rows()).map(norm).collect())
    }

    fn decoder(&self, adapter: Option<&LoraWeights>) -> Result<Box<dyn Decoder>> {
        let config = &self.shared.config;
        let pairs = adapter.map(|lora| {
            config.check_fit(lora).context("the adapter does not fit this base")?;
            if lora.modules.iter().any(|module| module.magnitude.is_some()) {
                return Err(Error::failure("the CPU network does not compute DoRA adapters yet")
                    .hint("answer with FINCH_NETWORK=candle, or without it"));
            }
            Pairs::pack(config.layers, lora)
        });
        Ok(Box::new(CpuDecoder::new(Arc::clone(&self.shared), pairs.transpose()?)))
    }

    fn learner(&self, _: &LoraWeights, _: Arc<Courtesy>) -> Result<Box<dyn Learner>> {
        Err(Error::failure("the CPU network does not train yet").hint("train with FINCH_NETWORK=candle, or without it"))
    }
}
