//! Adapters in the formats of other programs: PEFT's folder, llama.cpp's GGUF adapter, mlx-lm's folder.
//!
//! llama.cpp and mlx-lm know one scale for a whole adapter. Where the pairs differ in theirs, what differs is multiplied
//! into B, so that s · B A is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::ValueEnum;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::peft::{self, Adapter};
use super::peft_config::alpha_of;
use super::provenance;
use crate::error::{Context, Error, Result};
use crate::fsio;
use crate::model::config::{Family, ModelConfig};
use crate::model::gguf::own_name;
use crate::model::gguf::write::{Item, Plain, file};
use crate::model::lora::{LoraModule, LoraWeights};
use crate::paths::Paths;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A folder for PEFT, transformers and vLLM: adapter_config.json and adapter_model.safetensors
    Peft,
    /// A file for llama.cpp and Ollama (not DoRA, which they do not run)
    Gguf,
    /// A folder for mlx-lm: adapter_config.json and adapters.safetensors
    Mlx,
}

/// Writes the adapter of `folder`, which was read as `adapter` for `model`, to `out`: a new file (GGUF), or a folder that
/// is new or empty. It is complete or absent.
///
/// Errors: `out` is there already; DoRA for llama.cpp.
pub fn export(folder: &Path, adapter: &Adapter, model: &ModelConfig, format: Format, out: &Path) -> Result<()> {
    match format {
        Format::Peft => fsio::write_dir_atomic(out, |unfinished| copy(folder, adapter, model, unfinished)),
        Format::Gguf => {
            if out.symlink_metadata().is_ok() {
                return Err(Error::failure(format!("{} already exists", Paths::display(out)))
                    .hint("name a file that does not exist yet"));
            }
            let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
            fsio::write_atomic(out, &gguf(adapter, model, &name)?)
        }
        Format::Mlx => fsio::write_dir_atomic(out, |unfinished| mlx(adapter, model, unfinished)),
    }
}

/// Copies a PEFT folder, and finch's provenance where there is one, which other programs do not look at. Errors when it is
/// not the adapter that was checked.
pub(super) fn copy(folder: &Path, adapter: &Adapter, model: &ModelConfig, into: &Path) -> Result<()> {
    for file in [peft::CONFIG_FILE, peft::TENSOR_FILE, provenance::FILE] {
        let from = folder.join(file);
        if from.is_file() {
            std::fs::copy(&from, into.join(file)).with_context(|| Paths::display(&from))?;
        }
    }
    if peft::read(into, model)?.digest != adapter.digest {
        return Err(Error::failure(format!("{} changed while it was copied", Paths::display(folder))).hint("try again"));
    }
    Ok(())
}

/// B of `module`, `[out, rank]`, times `factor`.
fn scaled_b(weights: &LoraWeights, module: &LoraModule, factor: f64) -> Vec<f32> {
    let b = weights.b(module);
    // A factor of 1 up to rounding is a matter of spelling: the values stay as they are.
    if (factor - 1.0).abs() < 1e-6 { b.to_vec() } else { b.iter().map(|v| (f64::from(*v) * factor) as f32).collect() }
}

/// The most frequent of the modules' values; of equal ones the smallest.
fn common(values: impl Iterator<Item = f64>) -> f64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value.to_bits()).or_default() += 1;
    }
    // Positive numbers are ordered as their bits are.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map_or(1.0, |(bits, _)| f64::from_bits(bits))
}

/// llama.cpp's adapter: y += alpha / rank · B(A x) with one alpha for all, its names, F32, as its own converter writes it
/// (save that the converter leaves the scale of rsLoRA out).
fn gguf(adapter: &Adapter, model: &ModelConfig, name: &str) -> Result<Vec<u8>> {
    let weights = &adapter.weights;
    if weights.modules.iter().any(|module| module.magnitude.is_some()) {
        return Err(Error::failure("llama.cpp does not run DoRA: its adapters have no place for the magnitudes").hint(
            "export it for PEFT or mlx-lm, or train with [lora] variant = \"lora\" or \"rslora\" for llama.cpp",
        ));
    }
    let alpha = common(weights.modules.iter().map(|module| alpha_of(module, false)));
    let architecture = match model.family {
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    };
    let text = |text: &str| Item::Text(text.to_string());
    let keys = [
        ("general.architecture", text(architecture)),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("general.name", text(name)),
        ("adapter.lora.alpha", Item::F32(alpha as f32)),
        ("general.quantization_version", Item::U32(2)),
    ];
    let mut tensors = Vec::with_capacity(2 * weights.modules.len());
    for module in &weights.modules {
        let own = own_name(&format!("{}.weight", module.path())).into_owned();
        let factor = alpha_of(module, false) / alpha;
        tensors.push(Plain {
            name: format!("{own}.lora_a"),
            shape: vec![module.rank, module.in_features],
            values: weights.a(module).to_vec(),
        });
        tensors.push(Plain {
            name: format!("{own}.lora_b"),
            shape: vec![module.out_features, module.rank],
            values: scaled_b(weights, module, factor),
        });
    }
    file(&keys, &tensors)
}

/// mlx-lm's folder: y += scale · (x · lora_a) · lora_b, so both are transposed; DoRA's magnitudes are called m.
///
/// mlx-lm puts pairs on the named modules of the last `num_layers` blocks; where the adapter has none, its fresh ones
/// change nothing.
fn mlx(adapter: &Adapter, model: &ModelConfig, into: &Path) -> Result<()> {
    let (weights, settings) = (&adapter.weights, &adapter.settings);
    let scale = common(weights.modules.iter().map(|module| f64::from(module.scale)));
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::with_capacity(3 * weights.modules.len());
    for module in &weights.modules {
        let LoraModule { rank, in_features, out_features, .. } = *module;
        let b = scaled_b(weights, module, f64::from(module.scale) / scale);
        let path = module.path();
        tensors.push((
            format!("{path}.lora_a"),
            vec![in_features, rank],
            peft::le_bytes(&transposed(weights.a(module), in_features)),
        ));
        tensors.push((format!("{path}.lora_b"), vec![rank, out_features], peft::le_bytes(&transposed(&b, rank))));
        if let Some(magnitude) = weights.magnitude(module) {
            tensors.push((format!("{path}.m"), vec![out_features], peft::le_bytes(magnitude)));
        }
    }
    let views =
        tensors.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let file = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?;
    fsio::write_atomic(&into.join("adapters.safetensors"), &file)?;
    let mut config = serde_json::to_vec_pretty(&mlx_config(weights, settings.rank, scale, settings.dropout, model))?;
    config.push(b'\n');
    fsio::write_atomic(&into.join(peft::CONFIG_FILE), &config)
}

fn mlx_config(weights: &LoraWeights, rank: usize, scale: f64, dropout: f32, model: &ModelConfig) -> Value {
    let first = weights.modules.iter().map(|module| module.layer).min().unwrap_or(0);
    let keys: BTreeSet<String> =
        weights.modules.iter().map(|m| format!("{}.{}", m.target.block(), m.target.name())).collect();
    let dora = weights.modules.iter().any(|module| module.magnitude.is_some());
    json!({
        "fine_tune_type": if dora { "dora" } else { "lora" },
        "num_layers": model.layers - first,
        "lora_parameters": { "rank": rank, "scale": scale, "dropout": dropout, "keys": keys },
    })
}

/// Row-major `[rows, columns]` → `[columns, rows]`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
