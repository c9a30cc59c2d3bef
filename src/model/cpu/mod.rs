//! The CPU network: Qwen2 and Qwen3 on packed weights, at the file's own bits a number. One copy of them decodes, scores and
//! learns.
//!
//! - `kernels/`: sixteen lanes on each kind of processor, and the products made of them
//! - `matrix`, `pack`, `halves`, `turn`: a weight matrix, how it is made of a file's bytes, or of an adapter's numbers
//! - `in_place`: one that stays where its file has it
//! - `plane`, `interleaved`, `rounded`: activations, as rows, as products read them, and as eight-bit numbers
//! - `panel/`, `room`: products of many rows with every bit, or with sixteen, and what they need on their way
//! - `pool`, `tiles`: the threads, and who of them writes where
//! - `products`, `attention`, `math`: the regions of a layer
//! - `weights`, `pairs`, `decode`: the network, an adapter, and a sequence through both
//! - `learn/`: gradients of an adapter
//!
//! A chat multiplies codes with activations that are rounded to eight bits, and keeps keys and values as f16. Scoring does
//! neither, nor does a small network, which has the time: their numbers are those of the candle network within f32's
//! rounding.

mod attention;
mod decode;
mod halves;
mod in_place;
mod interleaved;
mod kernels;
mod learn;
mod math;
mod matrix;
mod pack;
mod pairs;
mod panel;
mod plane;
mod pool;
mod products;
mod room;
mod rounded;
#[cfg(test)]
mod tests;
mod tiles;
mod turn;
mod weights;

use std::sync::{Arc, OnceLock};

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::courtesy::Courtesy;
use super::lora::{LoraWeights, Target};
use super::memory::{self, Memory};
use super::{Decoder, Learner, Network};
use crate::error::{Context, Error, Result};
use decode::CpuDecoder;
use kernels::Level;
use learn::CpuLearner;
use pairs::Pairs;
use pool::Pool;
use products::On;
use tiles::Regions;
use weights::Weights;

/// A Qwen network on the processor's cores.
pub struct CpuNetwork {
    shared: Arc<Shared>,
}

/// What every decoder of a network shares.
struct Shared {
    config: ModelConfig,
    weights: Weights,
    turns: Turns,
    /// ‖W‖² of each row of the linear layers that were asked for, `[out]`: they never change.
    row_squares: Vec<[OnceLock<Vec<f64>>; 7]>,
    pool: Pool,
    level: Level,
    /// See `CpuDecoder::exact`.
    exact: bool,
}

/// The rotary embedding.
struct Turns {
    /// An angle a position, for each pair of numbers of a head.
    frequencies: Vec<f32>,
    /// Of cosines and sines.
    factor: f32,
}

impl Turns {
    /// The cosines and sines of a position.
    fn of(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let turn = (position as f32 * frequency).sin_cos();
            (*sin, *cos) = (self.factor * turn.0, self.factor * turn.1);
        }
    }
}

impl Shared {
    /// Whether there is work to begin on these tokens.
    fn check(&self, ids: &[u32]) -> Result<()> {
        self.weights.unchanged()?;
        self.config.check_ids(ids)
    }

    fn on(&self, exact: bool) -> On<'_> {
        On { pool: &self.pool, level: self.level, exact }
    }

    /// ‖W‖² of each row of a linear layer, `[out]`.
    fn row_squares(&self, layer: usize, target: Target) -> &[f64] {
        self.row_squares[layer][target as usize].get_or_init(|| {
            let matrix = self.weights.blocks[layer].layer(target).matrix;
            let mut squares = vec![0.0; matrix.rows()];
            self.pool.each(&mut squares, |at, square| {
                let mut row = vec![0.0; self.config.linear_shape(target).0];
                matrix.read(at, &mut row);
                *square = row.iter().map(|w| f64::from(*w).powi(2)).sum();
            });
            squares
        })
    }
}

impl CpuNetwork {
    /// Packs the tensors of the checkpoint, to be computed with on `threads` threads.
    ///
    /// Errors name a tensor that is missing, of another shape, or not finite.
    pub fn load(config: &ModelConfig, checkpoint: &Checkpoint, threads: usize) -> Result<CpuNetwork> {
        // A product of a small network is done before another thread is awake.
        let threads = if config.is_small() { 1 } else { threads };
        let pool = Pool::new(threads).context("cannot start a compute thread")?;
        // Nor does packing its weights take long, once for all its products.
        let weights = match config.is_small() {
            true => Weights::read(config, &checkpoint.unmapped(), &pool)?,
            false => Weights::read(config, checkpoint, &pool)?,
        };
        Ok(Self::new(config, weights, pool, Level::detect(), config.is_small()))
    }

    fn new(config: &ModelConfig, weights: Weights, pool: Pool, level: Level, exact: bool) -> CpuNetwork {
        let (frequencies, factor) = config.rope_scaling.frequencies(config.head_dim, config.rope_theta);
        let turns = Turns { frequencies, factor };
        let row_squares = (0..config.layers).map(|_| Default::default()).collect();
        let shared = Shared { config: config.clone(), weights, turns, row_squares, pool, level, exact };
        CpuNetwork { shared: Arc::new(shared) }
    }

    /// What a network of these weights takes.
    pub fn memory(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Memory> {
        let bytes = if config.is_small() { 4 } else { 2 };
        let token = 2 * bytes * (config.layers * config.kv_heads * config.head_dim) as u64;
        let learning = learn::kept_bytes(config, memory::PASS_TOKENS);
        Ok(Memory { weights: weights::size(config, checkpoint), learning, token })
    }
}

impl Network for CpuNetwork {
    fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    fn row_norms(&self, layer: usize, target: Target) -> Result<Vec<f32>> {
        let layers = self.shared.config.layers;
        if layer >= layers {
            return Err(Error::failure(format!("the base has no layer {layer}, it has {layers}")));
        }
        Ok(self.shared.row_squares(layer, target).iter().map(|square| square.sqrt() as f32).collect())
    }

    fn decoder(&self, adapter: Option<&LoraWeights>) -> Result<Box<dyn Decoder>> {
        let pairs = adapter.map(|lora| {
            self.shared.config.check_fit(lora).context("the adapter does not fit this base")?;
            Ok::<_, Error>(Pairs::pack(&self.shared, lora))
        });
        Ok(Box::new(CpuDecoder::new(Arc::clone(&self.shared), pairs.transpose()?)))
    }

    fn learner(&self, layout: &LoraWeights, courtesy: Arc<Courtesy>) -> Result<Box<dyn Learner>> {
        self.shared.config.check_fit(layout).context("the adapter does not fit this base")?;
        Ok(Box::new(CpuLearner::new(Arc::clone(&self.shared), layout, courtesy)))
    }
}
