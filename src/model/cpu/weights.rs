//! The network's tensors, packed from a checkpoint.

use super::matrix::Matrix;
use super::pack::{Packer, packed_size};
use super::products::Layer;
use crate::error::{Context, Result};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{Family, ModelConfig};
use crate::model::lora::Target;
use crate::model::storage::Storage;

pub struct Weights {
    /// `[vocab, hidden]`
    pub embed: Matrix,
    pub blocks: Vec<Block>,
    pub norm: Vec<f32>,
    /// `[vocab, hidden]`; None where the embedding serves.
    head: Option<Matrix>,
}

/// One transformer block; every matrix is `[out, in]`.
pub struct Block {
    pub input_norm: Vec<f32>,
    pub post_norm: Vec<f32>,
    /// In the order of [`Target::ALL`].
    matrices: Vec<Matrix>,
    biases: Vec<Option<Vec<f32>>>,
    /// Qwen3's norms over each head of q and k.
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
}

impl Weights {
    pub fn read(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Weights> {
        let hidden = config.hidden_size;
        let vocabulary = |name| matrix(checkpoint, name, config.vocab_size, hidden);
        Ok(Weights {
            embed: vocabulary("model.embed_tokens.weight")?,
            blocks: (0..config.layers).map(|layer| block(config, layer, checkpoint)).collect::<Result<_>>()?,
            norm: checkpoint.tensor("model.norm.weight", &[hidden])?,
            head: if config.tied_embeddings { None } else { Some(vocabulary("lm_head.weight")?) },
        })
    }

    /// The output layer.
    pub fn head(&self) -> Layer<'_> {
        Layer { matrix: self.head.as_ref().unwrap_or(&self.embed), bias: None, pair: None }
    }
}

impl Block {
    /// Without an adapter.
    pub fn layer(&self, target: Target) -> Layer<'_> {
        let at = target as usize;
        Layer { matrix: &self.matrices[at], bias: self.biases[at].as_deref(), pair: None }
    }
}

fn module(layer: usize, target: Target) -> String {
    format!("model.layers.{layer}.{}.{}", target.block(), target.name())
}

fn block(config: &ModelConfig, layer: usize, checkpoint: &Checkpoint) -> Result<Block> {
    let norm = |name: &str, len| checkpoint.tensor(&format!("model.layers.{layer}.{name}.weight"), &[len]);
    let head_norm = |name: &str| match config.family {
        Family::Qwen2 => Ok(None),
        Family::Qwen3 => norm(&format!("self_attn.{name}"), config.head_dim).map(Some),
    };
    let (mut matrices, mut biases) = (Vec::new(), Vec::new());
    for target in Target::ALL {
        let (inputs, outputs) = config.linear_shape(target);
        let module = module(layer, target);
        matrices.push(matrix(checkpoint, &format!("{module}.weight"), outputs, inputs)?);
        let bias = config.has_bias(target).then(|| checkpoint.tensor(&format!("{module}.bias"), &[outputs]));
        biases.push(bias.transpose()?);
    }
    Ok(Block {
        input_norm: norm("input_layernorm", config.hidden_size)?,
        post_norm: norm("post_attention_layernorm", config.hidden_size)?,
        matrices,
        biases,
        q_norm: head_norm("q_norm")?,
        k_norm: head_norm("k_norm")?,
    })
}

fn matrix(checkpoint: &Checkpoint, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
    let shape = [rows, columns];
    // Nothing is allocated for a tensor that is not there: reading it says what is wrong.
    let (Some(storage), true) = (checkpoint.storage(name), checkpoint.shape(name) == Some(&shape)) else {
        return checkpoint.tensor(name, &shape).and_then(|numbers| Packer::plain(rows, columns, &numbers));
    };
    let mut packer = Packer::new(rows, columns, storage).with_context(|| format!("tensor {name}"))?;
    checkpoint.stored(name, &shape, |bytes| packer.take(bytes))?;
    packer.finish().with_context(|| format!("tensor {name}"))
}

/// Bytes that the matrices of `checkpoint` take when they are packed.
pub fn size(config: &ModelConfig, checkpoint: &Checkpoint) -> u64 {
    let of = |name: &str, rows, columns| {
        checkpoint.storage(name).map_or(0, |storage: Storage| packed_size(rows, columns, storage))
    };
    let vocabulary = |name| of(name, config.vocab_size, config.hidden_size);
    let blocks = (0..config.layers).flat_map(|layer| Target::ALL.map(|target| (layer, target)));
    let blocks = blocks.map(|(layer, target)| {
        let (inputs, outputs) = config.linear_shape(target);
        of(&format!("{}.weight", module(layer, target)), outputs, inputs)
    });
    let head = if config.tied_embeddings { 0 } else { vocabulary("lm_head.weight") };
    vocabulary("model.embed_tokens.weight") + head + blocks.sum::<u64>()
}
