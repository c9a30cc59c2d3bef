//! The network's tensors: read from a checkpoint, or taken from a flat vector when all weights are trained.

use candle_core::{DType, Device, Tensor, Var};

use crate::error::{Context, Result};
use crate::model::config::{Family, ModelConfig};
use crate::model::lora::Target;

/// One transformer block; every matrix is `[out, in]`.
pub(super) struct Block {
    pub input_norm: Tensor,
    pub post_norm: Tensor,
    /// The seven linear layers in the order of [`Target::ALL`].
    pub linear: Vec<Tensor>,
    /// Bias of q, k, v (and o), where the model has them.
    pub bias: Vec<Option<Tensor>>,
    /// Qwen3's norms over each head of q and k.
    pub q_norm: Option<Tensor>,
    pub k_norm: Option<Tensor>,
}

/// All tensors of a network.
pub(super) struct Weights {
    /// `[vocab, hidden]`
    pub embed: Tensor,
    pub blocks: Vec<Block>,
    pub norm: Tensor,
    /// `[vocab, hidden]`; the embedding itself where they are tied.
    pub head: Tensor,
}

/// Where a tensor comes from: its name in the checkpoint and its shape.
pub(super) type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor> + 'a;

impl Weights {
    /// Asks `source` for every tensor that the configuration calls for.
    pub fn gather(config: &ModelConfig, source: &mut Source<'_>) -> Result<Weights> {
        let hidden = config.hidden_size;
        let embed = source("model.embed_tokens.weight", &[config.vocab_size, hidden])?;
        let blocks = (0..config.layers).map(|layer| block(config, layer, source)).collect::<Result<Vec<_>>>()?;
        let norm = source("model.norm.weight", &[hidden])?;
        let head = if config.tied_embeddings {
            embed.clone()
        } else {
            source("lm_head.weight", &[config.vocab_size, hidden])?
        };
        Ok(Weights { embed, blocks, norm, head })
    }
}

fn block(config: &ModelConfig, layer: usize, source: &mut Source<'_>) -> Result<Block> {
    let hidden = config.hidden_size;
    let prefix = format!("model.layers.{layer}");
    let mut linear = Vec::new();
    let mut bias = Vec::new();
    for target in Target::ALL {
        let (inputs, outputs) = config.linear_shape(target);
        let module = format!("{prefix}.{}.{}", target.block(), target.name());
        linear.push(source(&format!("{module}.weight"), &[outputs, inputs])?);
        bias.push(if config.has_bias(target) { Some(source(&format!("{module}.bias"), &[outputs])?) } else { None });
    }
    let mut head_norm = |name: &str| -> Result<Option<Tensor>> {
        match config.family {
            Family::Qwen2 => Ok(None),
            Family::Qwen3 => source(&format!("{prefix}.self_attn.{name}.weight"), &[config.head_dim]).map(Some),
        }
    };
    let (q_norm, k_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
    Ok(Block {
        input_norm: source(&format!("{prefix}.input_layernorm.weight"), &[hidden])?,
        post_norm: source(&format!("{prefix}.post_attention_layernorm.weight"), &[hidden])?,
        linear,
        bias,
        q_norm,
        k_norm,
    })
}

/// A trainable tensor's name, shape and place in the flat parameter vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    pub name: String,
    pub shape: Vec<usize>,
    pub start: usize,
}

impl Slot {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The places of all weights of a network in one flat vector, ordered by name.
pub fn slots(config: &ModelConfig) -> Result<Vec<Slot>> {
    let mut slots = Vec::new();
    // The shapes alone are wanted: an empty tensor stands in for each.
    let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
    Weights::gather(config, &mut |name, shape| {
        slots.push(Slot { name: name.to_string(), shape: shape.to_vec(), start: 0 });
        Ok(nothing.clone())
    })?;
    slots.sort_by(|a, b| a.name.cmp(&b.name));
    let mut at = 0;
    for slot in &mut slots {
        slot.start = at;
        at += slot.len();
    }
    Ok(slots)
}

/// Weights as variables over a flat vector, and the variables in the order of `slots`.
pub(super) fn variables(
    config: &ModelConfig,
    slots: &[Slot],
    params: &[f32],
    device: &Device,
) -> Result<(Weights, Vec<Var>)> {
    let vars = slots
        .iter()
        .map(|s| Ok(Var::from_slice(&params[s.start..s.start + s.len()], s.shape.as_slice(), device)?))
        .collect::<Result<Vec<Var>>>()?;
    let weights = Weights::gather(config, &mut |name, _| {
        let at = slots.binary_search_by(|s| s.name.as_str().cmp(name));
        let at = at.map_err(|_| crate::error::Error::failure(format!("no place for the weight {name}")))?;
        Ok(vars[at].as_tensor().clone())
    })
    .context("training all weights")?;
    Ok((weights, vars))
}
