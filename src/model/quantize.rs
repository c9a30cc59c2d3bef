//! Quantising: which type each tensor of a model gets, and how numbers become blocks of it.
//!
//! The types are those that llama.cpp chooses (`llama_tensor_get_type`, without an importance matrix), so that a mix is
//! everywhere what its name says. The blocks are made by candle's quantisers, but for those of `affine`.

mod affine;

use std::collections::BTreeMap;
use std::fmt;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use clap::ValueEnum;
use half::{bf16, f16};
use rayon::prelude::*;

use super::candle::weights;
use super::checkpoint::Checkpoint;
use super::config::{Family, ModelConfig};
use super::storage::Storage;
use crate::error::{Error, Result};
use crate::text;

/// Numbers that one thread quantises at a time: whole blocks of every type.
const SHARE: usize = 1 << 14;

/// How the weights of a whole model are to be stored. Vectors (norms and biases) are F32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// As they are, in 32 bits
    #[value(name = "f32")]
    F32,
    /// 16 bits, of numbers up to 65504
    #[value(name = "f16")]
    F16,
    /// 16 bits, as Qwen's own weights
    #[value(name = "bf16")]
    BF16,
    /// 8.5 bits a weight: next to no loss
    #[value(name = "q8_0")]
    Q8_0,
    /// 6.6 bits
    #[value(name = "q6_k")]
    Q6K,
    /// 5.7 bits: Q5_K, with Q6_K where it tells
    #[value(name = "q5_k_m")]
    Q5KM,
    /// 6 bits
    #[value(name = "q5_1")]
    Q5_1,
    /// 5.5 bits
    #[value(name = "q5_0")]
    Q5_0,
    /// 4.8 bits: Q4_K, with Q6_K where it tells
    #[value(name = "q4_k_m")]
    Q4KM,
    /// 5 bits
    #[value(name = "q4_1")]
    Q4_1,
    /// 4.5 bits
    #[value(name = "q4_0")]
    Q4_0,
}

impl Quantization {
    /// As the command line, the configuration and names of files have it.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::F32 => "f32",
            Quantization::F16 => "f16",
            Quantization::BF16 => "bf16",
            Quantization::Q8_0 => "q8_0",
            Quantization::Q6K => "q6_k",
            Quantization::Q5KM => "q5_k_m",
            Quantization::Q5_1 => "q5_1",
            Quantization::Q5_0 => "q5_0",
            Quantization::Q4KM => "q4_k_m",
            Quantization::Q4_1 => "q4_1",
            Quantization::Q4_0 => "q4_0",
        }
    }

    /// llama.cpp's number of it (`llama_ftype`), which a file states.
    pub fn file_type(self) -> u32 {
        match self {
            Quantization::F32 => 0,
            Quantization::F16 => 1,
            Quantization::Q4_0 => 2,
            Quantization::Q4_1 => 3,
            Quantization::Q8_0 => 7,
            Quantization::Q5_0 => 8,
            Quantization::Q5_1 => 9,
            Quantization::Q4KM => 15,
            Quantization::Q5KM => 17,
            Quantization::Q6K => 18,
            Quantization::BF16 => 32,
        }
    }

    /// What most matrices get.
    fn storage(self) -> Storage {
        match self {
            Quantization::F32 => Storage::F32,
            Quantization::F16 => Storage::F16,
            Quantization::BF16 => Storage::BF16,
            Quantization::Q8_0 => Storage::Q8_0,
            Quantization::Q6K => Storage::Q6K,
            Quantization::Q5KM => Storage::Q5K,
            Quantization::Q5_1 => Storage::Q5_1,
            Quantization::Q5_0 => Storage::Q5_0,
            Quantization::Q4KM => Storage::Q4K,
            Quantization::Q4_1 => Storage::Q4_1,
            Quantization::Q4_0 => Storage::Q4_0,
        }
    }

    /// The type of the matrix `name` (as in Hugging Face's files) with rows of `columns` numbers.
    fn of_matrix(self, config: &ModelConfig, name: &str, columns: usize) -> Storage {
        let most = self.storage();
        if most.block().0 == 1 {
            return most;
        }
        let is_output = match config.tied_embeddings {
            true => name == "model.embed_tokens.weight",
            false => name == "lm_head.weight",
        };
        let is_values = name.ends_with(".v_proj.weight");
        let mixed = matches!(self, Quantization::Q4KM | Quantization::Q5KM);
        let wanted = if is_output {
            // Its errors go straight into the choice of tokens.
            if most == Storage::Q8_0 || !fits(most, columns) { Storage::Q8_0 } else { Storage::Q6K }
        } else if mixed
            && (is_values || name.ends_with(".down_proj.weight"))
            && layer_of(name).is_some_and(|layer| needs_more_bits(layer, config.layers))
        {
            Storage::Q6K
        } else if is_values && most == Storage::Q4K && config.family == Family::Qwen2 && config.layers == 80 {
            Storage::Q5K // eight heads share it in models of 70 billion
        } else {
            most
        };
        fitting(wanted, columns)
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first and the last eighth of the layers, and every third between.
fn needs_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

fn fits(storage: Storage, columns: usize) -> bool {
    columns.is_multiple_of(storage.block().0)
}

/// `wanted`, or what llama.cpp takes for it where its blocks do not divide the rows: Qwen2.5-0.5B's are 896 wide.
fn fitting(wanted: Storage, columns: usize) -> Storage {
    let instead = match wanted {
        _ if fits(wanted, columns) => wanted,
        Storage::Q4K => Storage::Q5_0,
        Storage::Q5K => Storage::Q5_1,
        Storage::Q6K => Storage::Q8_0,
        _ => Storage::F16,
    };
    if fits(instead, columns) { instead } else { Storage::F16 }
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// A tensor of a network, by Hugging Face's name, and the type it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub storage: Storage,
}

/// Every tensor that a network of this configuration has, layer by layer, with its type.
pub fn plan(config: &ModelConfig, to: Quantization) -> Result<Vec<Planned>> {
    let planned = |weights::Slot { name, shape, .. }| {
        let storage = match shape.as_slice() {
            &[_, columns] => to.of_matrix(config, &name, columns),
            _ => Storage::F32,
        };
        Planned { name, shape, storage }
    };
    let mut all: Vec<Planned> = weights::slots(config)?.into_iter().map(planned).collect();
    all.sort_by_key(|tensor| layer_of(&tensor.name)); // the others first; those of a layer stay in order
    Ok(all)
}

/// The weights of `checkpoint` as they are when they are quantised: nothing is read yet, every tensor will be quantised
/// on its way from the file.
///
/// Errors when matrices are quantised already, and not to the same type, unless `again`.
pub fn quantized(checkpoint: Checkpoint, config: &ModelConfig, to: Quantization, again: bool) -> Result<Checkpoint> {
    let mut types = BTreeMap::new();
    for Planned { name, storage, .. } in plan(config, to)? {
        let Some(stored) = checkpoint.storage(&name) else { continue }; // whoever reads it says that it is missing
        if stored.decode().is_some() && stored.block().0 > 1 && stored != storage && !again {
            return Err(Error::failure(format!("tensor {name} is quantised already, as {stored}")));
        }
        types.insert(name, storage);
    }
    Ok(checkpoint.planned(to, types))
}

/// The numbers as they are stored: whole blocks, computed on all cores.
///
/// Errors name a number that is not finite, or too large for the type.
pub fn encode(storage: Storage, numbers: &[f32]) -> Result<Vec<u8>> {
    let parts: Vec<Vec<u8>> =
        numbers.par_chunks(SHARE).map(|part| encode_part(storage, part)).collect::<Result<_>>()?;
    Ok(parts.concat())
}

fn encode_part(storage: Storage, numbers: &[f32]) -> Result<Vec<u8>> {
    let bytes = match storage {
        Storage::F32 => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
        Storage::F16 => numbers.iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect(),
        Storage::BF16 => numbers.iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()).collect(),
        Storage::Q8_0 => by_candle(GgmlDType::Q8_0, numbers)?,
        Storage::Q4_0 => by_candle(GgmlDType::Q4_0, numbers)?,
        Storage::Q4_1 => by_candle(GgmlDType::Q4_1, numbers)?,
        Storage::Q5_0 => by_candle(GgmlDType::Q5_0, numbers)?,
        Storage::Q5_1 => by_candle(GgmlDType::Q5_1, numbers)?,
        Storage::Q4K => affine::q4_k(numbers),
        Storage::Q5K => affine::q5_k(numbers),
        Storage::Q6K => by_candle(GgmlDType::Q6K, numbers)?,
        Storage::Other(_) => return Err(Error::failure(format!("nothing is quantised to {storage}"))),
    };
    checked(storage, numbers, bytes)
}

fn by_candle(dtype: GgmlDType, numbers: &[f32]) -> Result<Vec<u8>> {
    let mut blocks = dtype.cpu_zeros(numbers.len());
    blocks.from_float(numbers);
    Ok(QTensor::new(QStorage::Cpu(blocks), numbers.len())?.data()?.into_owned())
}

/// `bytes`, if they hold finite numbers alone.
fn checked(storage: Storage, numbers: &[f32], bytes: Vec<u8>) -> Result<Vec<u8>> {
    let mut read = Vec::with_capacity(numbers.len());
    if let Some(decode) = storage.decode() {
        decode(&bytes, &mut read);
    }
    let Some(bad) = numbers.iter().zip(&read).position(|(number, read)| !number.is_finite() || !read.is_finite())
    else {
        return Ok(bytes);
    };
    // The largest number of a block decides over all of its numbers.
    let (block, _) = storage.block();
    let around = &numbers[bad / block * block..][..block];
    let worst = around.iter().fold(0f32, |worst, n| if n.abs() > worst.abs() || n.is_nan() { *n } else { worst });
    let worst = text::number(f64::from(worst));
    Err(Error::failure(format!("holds {worst}, which {storage} cannot hold")))
}

#[cfg(test)]
#[path = "quantize_tests.rs"]
mod tests;
