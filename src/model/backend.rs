//! Which network computes a model, and where.

use std::sync::Arc;
use std::thread::available_parallelism;

use candle_core::Device;

use super::Network;
use super::candle::CandleNetwork;
use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::cpu::CpuNetwork;
use super::memory::Memory;
use crate::error::{Error, Result};

/// One of the networks behind the seam.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Any device; weights are widened to f32.
    Candle,
    /// Packed weights on the processor's cores.
    Cpu,
}

impl Backend {
    /// `FINCH_NETWORK`: `candle` or `cpu`; without it, candle where there is a GPU to run it on. Errors (usage) on
    /// anything else.
    pub fn from_env() -> Result<Backend> {
        match std::env::var_os("FINCH_NETWORK").as_ref().map(|name| name.to_string_lossy()).as_deref() {
            None | Some("") => Ok(if device().is_cpu() { Backend::Cpu } else { Backend::Candle }),
            Some("candle") => Ok(Backend::Candle),
            Some("cpu") => Ok(Backend::Cpu),
            Some(other) => Err(Error::usage(format!("FINCH_NETWORK is {other:?}; it can be candle or cpu"))),
        }
    }

    /// What a model takes on it.
    pub fn memory(self, config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Memory> {
        match self {
            Backend::Candle => CandleNetwork::memory(config),
            Backend::Cpu => CpuNetwork::memory(config, checkpoint),
        }
    }

    /// Reads the weights. Errors as those of the networks, and when this machine has no room for them.
    pub fn load(self, config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Arc<dyn Network>> {
        self.memory(config, checkpoint)?.check()?;
        Ok(match self {
            Backend::Candle => Arc::new(CandleNetwork::load(config, checkpoint, &device())?),
            Backend::Cpu => Arc::new(CpuNetwork::load(config, checkpoint, threads())?),
        })
    }
}

/// As many as this process may use, or as `RAYON_NUM_THREADS` says, which the candle network goes by.
fn threads() -> usize {
    let set = std::env::var("RAYON_NUM_THREADS").ok().and_then(|set| set.parse().ok()).filter(|&set| set > 0);
    set.unwrap_or_else(|| available_parallelism().map_or(1, usize::from))
}

/// A GPU where this build and machine have one, else the CPU.
fn device() -> Device {
    let gpu = if candle_core::utils::cuda_is_available() {
        Device::new_cuda(0).ok()
    } else if candle_core::utils::metal_is_available() {
        Device::new_metal(0).ok()
    } else {
        None
    };
    gpu.unwrap_or(Device::Cpu)
}
