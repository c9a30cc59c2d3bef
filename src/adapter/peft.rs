//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors` to [`LoraWeights`] and back.
//!
//! What is read fits the base, tensor by tensor, or is refused with the tensor and the reason; what is written loads in
//! PEFT and vLLM as it is, and is the same byte for byte for the same adapter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

use super::peft_config::{self, PeftConfig, REFUSED};
use crate::error::{Context, Error, Result};
use crate::fsio;
use crate::model::Network;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::ModelConfig;
use crate::model::lora::{LoraShape, LoraWeights, Target, peft_prefix};
use crate::paths::Paths;

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// Far beyond any real `adapter_config.json`, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// How an adapter was or will be made.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    pub targets: Vec<Target>,
    /// The layers that carry pairs; `None`: every layer of the base.
    pub layers: Option<Vec<usize>>,
    /// Scale by alpha / √rank in place of alpha / rank.
    pub use_rslora: bool,
    /// Learn the magnitudes of the outputs apart from their directions.
    pub use_dora: bool,
}

impl Default for LoraSettings {
    /// Rank 16, alpha 32, all seven linear layers.
    fn default() -> Self {
        LoraSettings {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Target::ALL.to_vec(),
            layers: None,
            use_rslora: false,
            use_dora: false,
        }
    }
}

/// The factor before B(A x), as PEFT computes it (in f64, applied in f32).
pub fn scale(alpha: f64, rank: usize, use_rslora: bool) -> f32 {
    let rank = rank as f64;
    (alpha / if use_rslora { rank.sqrt() } else { rank }) as f32
}

/// An adapter in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub weights: LoraWeights,
    pub settings: LoraSettings,
    /// SHA-256, in hex, of everything that decides what the adapter computes: modules, ranks, scales, values.
    pub digest: String,
}

impl Adapter {
    pub fn new(weights: LoraWeights, settings: LoraSettings) -> Adapter {
        let digest = digest(&weights);
        Adapter { weights, settings, digest }
    }
}

fn digest(weights: &LoraWeights) -> String {
    let mut hash = Sha256::new();
    for m in &weights.modules {
        hash.update(format!(
            "{} {} {} {} {:08x}{}\n",
            m.peft_prefix(),
            m.rank,
            m.in_features,
            m.out_features,
            m.scale.to_bits(),
            if m.magnitude.is_some() { " dora" } else { "" }
        ));
    }
    hash.update([0]); // between layout and values
    for part in weights.data.chunks(1 << 16) {
        hash.update(le_bytes(part));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A fresh adapter for the base: A uniform in ±1/√in, B zero, DoRA's magnitudes the lengths of the base's rows, so that it
/// changes nothing yet. The same seed gives the same.
pub fn init(network: &dyn Network, settings: &LoraSettings, seed: u64) -> Result<LoraWeights> {
    let model = network.config();
    let targets: BTreeSet<Target> = settings.targets.iter().copied().collect();
    let shapes = (0..model.layers)
        .filter(|layer| settings.layers.as_ref().is_none_or(|layers| layers.contains(layer)))
        .flat_map(|layer| targets.iter().map(move |&target| (layer, target)))
        .map(|(layer, target)| {
            let (in_features, out_features) = model.linear_shape(target);
            let scale = scale(settings.alpha, settings.rank, settings.use_rslora);
            LoraShape { layer, target, rank: settings.rank, in_features, out_features, scale, dora: settings.use_dora }
        })
        .collect();
    let mut weights = LoraWeights::zeros(shapes);
    // A named generator: the same numbers in every build of finch.
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    for module in &weights.modules {
        let bound = 1.0 / (module.in_features as f32).sqrt();
        for value in &mut weights.data[module.a.clone()] {
            *value = bound * (2.0 * rng.random::<f32>() - 1.0);
        }
        if let Some(magnitude) = module.magnitude.clone() {
            weights.data[magnitude].copy_from_slice(&network.row_norms(module.layer, module.target)?);
        }
    }
    Ok(weights)
}

/// What a folder says of itself, without a base to lay it on.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    pub rank: usize,
    pub alpha: f64,
    pub use_rslora: bool,
    pub use_dora: bool,
    /// Of `adapter_model.safetensors`, in bytes.
    pub tensor_bytes: u64,
}

/// Reads the configuration and the tensor file's header: errors when the folder is no adapter that finch supports.
pub fn inspect(folder: &Path) -> Result<Summary> {
    let (config, tensors) = open(folder)?;
    refuse_foreign_kinds(&tensors)?;
    let tensor_bytes = std::fs::metadata(folder.join(TENSOR_FILE))?.len();
    let PeftConfig { rank, alpha, use_rslora, use_dora, .. } = config;
    Ok(Summary { rank, alpha, use_rslora, use_dora, tensor_bytes })
}

/// Reads the adapter in `folder` for `model`.
///
/// Errors name the file, the tensor and the reason: not there, no PEFT LoRA, an unsupported feature, a shape that does
/// not fit this base, half a pair, values that are not finite, tensors that belong to nothing.
pub fn read(folder: &Path, model: &ModelConfig) -> Result<Adapter> {
    let read = read_folder(folder, model).with_context(|| Paths::display(folder));
    read.map_err(|e| e.hint("the adapter is damaged or was changed: get it again from where it came from"))
}

fn read_folder(folder: &Path, model: &ModelConfig) -> Result<Adapter> {
    let (config, tensors) = open(folder)?;
    refuse_foreign_kinds(&tensors)?;
    let shapes = config.shapes(model).context(CONFIG_FILE)?;
    check_tensors(&tensors, &shapes, model).context(TENSOR_FILE)?;
    // Every size below stands in the file's header, which was checked against the file.
    let mut weights = LoraWeights::zeros(shapes);
    for module in &weights.modules {
        let prefix = module.peft_prefix();
        let a = tensors.tensor(&a_name(&prefix), &[module.rank, module.in_features])?;
        let b = tensors.tensor(&b_name(&prefix), &[module.out_features, module.rank])?;
        weights.data[module.a.clone()].copy_from_slice(&a);
        weights.data[module.b.clone()].copy_from_slice(&b);
        if let Some(range) = module.magnitude.clone() {
            let magnitude = tensors.tensor(&magnitude_name(&prefix), &[module.out_features])?;
            weights.data[range].copy_from_slice(&magnitude);
        }
    }
    let targets: BTreeSet<Target> = weights.modules.iter().map(|m| m.target).collect();
    let layers: BTreeSet<usize> = weights.modules.iter().map(|m| m.layer).collect();
    let settings = LoraSettings {
        rank: config.rank,
        alpha: config.alpha,
        dropout: config.dropout,
        targets: targets.into_iter().collect(),
        layers: (layers.len() < model.layers).then(|| layers.into_iter().collect()),
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
    };
    Ok(Adapter::new(weights, settings))
}

fn open(folder: &Path) -> Result<(PeftConfig, Checkpoint)> {
    let config = folder.join(CONFIG_FILE);
    if !config.is_file() {
        return Err(Error::failure(format!("{CONFIG_FILE} is missing"))
            .hint("an adapter is a folder with adapter_config.json and adapter_model.safetensors, as PEFT saves it"));
    }
    let config = PeftConfig::from_json(&fsio::read_limited(&config, MAX_CONFIG)?).context(CONFIG_FILE)?;
    let tensors = folder.join(TENSOR_FILE);
    if !tensors.is_file() {
        let hint = if folder.join("adapter_model.bin").is_file() {
            "adapter_model.bin can run code when it is read: convert it to safetensors with PEFT"
        } else {
            "save the adapter with PEFT's save_pretrained"
        };
        return Err(Error::failure(format!("{TENSOR_FILE} is missing")).hint(hint));
    }
    Ok((config, Checkpoint::open_file(&tensors)?))
}

fn a_name(prefix: &str) -> String {
    format!("{prefix}.lora_A.weight")
}

fn b_name(prefix: &str) -> String {
    format!("{prefix}.lora_B.weight")
}

fn magnitude_name(prefix: &str) -> String {
    format!("{prefix}.lora_magnitude_vector")
}

/// Kinds of adapters that a tensor's name gives away, whatever the configuration says.
fn refuse_foreign_kinds(tensors: &Checkpoint) -> Result<()> {
    for name in tensors.names() {
        let kind = if name.contains("lora_embedding_") {
            "LoRA on embeddings is not supported"
        } else if name.contains("modules_to_save") || name.contains("original_module") {
            "fully trained modules are not supported"
        } else if name.ends_with("lora_B.bias") {
            "a bias on lora_B is not supported"
        } else if name.contains("lm_head") || name.contains("embed_tokens") {
            "adapters of lm_head or the embedding, and those that bring their own, are not supported"
        } else {
            continue;
        };
        return Err(Error::failure(format!("tensor {name}: {kind}")).hint(REFUSED).context(TENSOR_FILE));
    }
    Ok(())
}

/// Every tensor is expected and has its shape; every expected tensor is there.
fn check_tensors(tensors: &Checkpoint, shapes: &[LoraShape], model: &ModelConfig) -> Result<()> {
    let mut expected: BTreeMap<String, (&LoraShape, Vec<usize>)> = BTreeMap::new();
    for shape in shapes {
        let prefix = peft_prefix(shape.layer, shape.target);
        expected.insert(a_name(&prefix), (shape, vec![shape.rank, shape.in_features]));
        expected.insert(b_name(&prefix), (shape, vec![shape.out_features, shape.rank]));
        if shape.dora {
            expected.insert(magnitude_name(&prefix), (shape, vec![shape.out_features]));
        }
    }
    for name in tensors.names() {
        let Some((shape, needed)) = expected.get(name) else {
            return Err(Error::failure(format!("tensor {name}: {}", why_unexpected(name, model))));
        };
        let found = tensors.shape(name).unwrap_or_default();
        if found != needed {
            return Err(Error::failure(format!(
                "tensor {name} has shape {found:?}; rank {} on this base takes {needed:?}",
                shape.rank
            ))
            .hint("the adapter was made for another base model, or its configuration is not its own"));
        }
    }
    if let Some(name) = expected.keys().find(|name| !tensors.contains(name)) {
        let other = match name.rsplit_once(".lora_") {
            Some((prefix, "A.weight")) => b_name(prefix),
            Some((prefix, _)) => a_name(prefix),
            None => String::new(),
        };
        let why =
            if tensors.contains(&other) { "the rest of its module is there" } else { "target_modules names its layer" };
        return Err(Error::failure(format!("tensor {name} is missing: {why}"))
            .hint("the file is incomplete, or the adapter was made for a base with other layers"));
    }
    Ok(())
}

fn why_unexpected(name: &str, model: &ModelConfig) -> String {
    let path = name.strip_prefix("base_model.model.model.layers.").and_then(|rest| rest.split_once('.'));
    match path.and_then(|(layer, rest)| Some((layer.parse::<usize>().ok()?, rest))) {
        Some((layer, _)) if layer >= model.layers => {
            format!("this base has no layer {layer}, it has {} (from 0)", model.layers)
        }
        Some((_, rest)) if rest.ends_with(".lora_magnitude_vector") => {
            "it belongs to DoRA, and the configuration's use_dora does not say so".to_string()
        }
        Some((_, rest)) if rest.ends_with(".lora_A.weight") || rest.ends_with(".lora_B.weight") => {
            "the configuration does not target this layer".to_string()
        }
        _ => "it is no LoRA tensor that finch knows".to_string(),
    }
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` (F32) into `folder`, which exists; see
/// [`fsio::write_dir_atomic`] for one that is complete or absent. Errors when a value is not finite.
pub fn write(folder: &Path, adapter: &Adapter, base_name: &str) -> Result<()> {
    let weights = &adapter.weights;
    let bytes = le_bytes(&weights.data);
    let mut views = Vec::with_capacity(3 * weights.modules.len());
    for module in &weights.modules {
        let prefix = module.peft_prefix();
        let pair = [
            (a_name(&prefix), vec![module.rank, module.in_features], &module.a),
            (b_name(&prefix), vec![module.out_features, module.rank], &module.b),
        ];
        let magnitude =
            module.magnitude.iter().map(|range| (magnitude_name(&prefix), vec![module.out_features], range));
        for (name, shape, range) in pair.into_iter().chain(magnitude) {
            if let Some(value) = weights.data[range.clone()].iter().find(|v| !v.is_finite()) {
                return Err(Error::failure(format!("tensor {name} holds {value}, so the adapter is not saved")));
            }
            views.push((name, TensorView::new(Dtype::F32, shape, &bytes[range.start * 4..range.end * 4])?));
        }
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let file = safetensors::serialize(views, Some(metadata))?;
    fsio::write_atomic(&folder.join(TENSOR_FILE), &file)?;
    fsio::write_atomic(&folder.join(CONFIG_FILE), &peft_config::to_json(weights, &adapter.settings, base_name)?)
}

#[cfg(test)]
#[path = "peft_tests.rs"]
pub(super) mod tests;
