//! The network's tensors, packed from a checkpoint.

use super::matrix::Matrix;
use super::pack::{Packer, packed_size, plain};
use super::pool::Pool;
use super::products::Layer;
use crate::error::{Context, Error, Result};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{Family, ModelConfig};
use crate::model::lora::{Target, module_path};
use crate::model::mapped::Bytes;

pub struct Weights {
    /// `[vocab, hidden]`
    pub embed: Matrix,
    pub blocks: Vec<Block>,
    pub norm: Vec<f32>,
    /// `[vocab, hidden]`; None where the embedding serves.
    head: Option<Matrix>,
    /// Where matrices stay in files, a piece of each file.
    files: Vec<Bytes>,
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
    /// Packs the matrices side by side.
    pub fn read(config: &ModelConfig, checkpoint: &Checkpoint, pool: &Pool) -> Result<Weights> {
        let shapes = matrices(config);
        let one = |at: usize| matrix(checkpoint, &shapes[at]);
        let packed = pool.map(shapes.len(), one).into_iter().collect::<Result<Vec<_>>>()?;
        let mut files: Vec<Bytes> = Vec::new();
        for stays in packed.iter().filter_map(Matrix::stays) {
            if !files.iter().any(|file| file.beside(stays.bytes())) {
                files.push(stays.bytes().clone());
            }
        }
        let mut packed = packed.into_iter();
        let missing = || Error::failure("a matrix was not packed"); // not reached: there are as many as shapes
        let mut next = || packed.next().ok_or_else(missing);
        let (embed, head) = (next()?, if config.tied_embeddings { None } else { Some(next()?) });
        let mut seven = || Target::ALL.iter().map(|_| next()).collect::<Result<Vec<_>>>();
        let blocks = (0..config.layers).map(|layer| block(config, layer, checkpoint, seven()?));
        Ok(Weights {
            embed,
            head,
            blocks: blocks.collect::<Result<_>>()?,
            norm: checkpoint.tensor("model.norm.weight", &[config.hidden_size])?,
            files,
        })
    }

    /// Bytes of matrices that stay in files: memory that the system calls free and could take back, which would have each
    /// product read the disk.
    pub fn in_files(&self) -> u64 {
        let layers = self.blocks.iter().flat_map(|block| &block.matrices);
        let stays = layers.chain([&self.embed]).chain(&self.head).filter_map(Matrix::stays);
        stays.map(|matrix| matrix.bytes().len() as u64).sum()
    }

    /// An error once another program has written to a file that matrices stay in.
    pub fn unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(Bytes::unchanged)
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

/// A matrix by its name in checkpoints.
struct Named {
    name: String,
    rows: usize,
    columns: usize,
}

/// The matrices of a network: embedding, output layer where it is another, then the seven of each block.
fn matrices(config: &ModelConfig) -> Vec<Named> {
    let vocabulary = |name: &str| Named { name: name.into(), rows: config.vocab_size, columns: config.hidden_size };
    let head = (!config.tied_embeddings).then(|| vocabulary("lm_head.weight"));
    let linear = |layer: usize, target: Target| {
        let (columns, rows) = config.linear_shape(target);
        Named { name: format!("{}.weight", module_path(layer, target)), rows, columns }
    };
    let blocks = (0..config.layers).flat_map(|layer| Target::ALL.map(|target| linear(layer, target)));
    std::iter::once(vocabulary("model.embed_tokens.weight")).chain(head).chain(blocks).collect()
}

fn block(config: &ModelConfig, layer: usize, checkpoint: &Checkpoint, matrices: Vec<Matrix>) -> Result<Block> {
    let norm = |name: &str, len| checkpoint.tensor(&format!("model.layers.{layer}.{name}.weight"), &[len]);
    let head_norm = |name: &str| match config.family {
        Family::Qwen2 => Ok(None),
        Family::Qwen3 => norm(&format!("self_attn.{name}"), config.head_dim).map(Some),
    };
    let bias = |target: Target| {
        let name = format!("{}.bias", module_path(layer, target));
        let bias = config.has_bias(target).then(|| checkpoint.tensor(&name, &[config.linear_shape(target).1]));
        bias.transpose()
    };
    Ok(Block {
        input_norm: norm("input_layernorm", config.hidden_size)?,
        post_norm: norm("post_attention_layernorm", config.hidden_size)?,
        matrices,
        biases: Target::ALL.into_iter().map(bias).collect::<Result<_>>()?,
        q_norm: head_norm("q_norm")?,
        k_norm: head_norm("k_norm")?,
    })
}

fn matrix(checkpoint: &Checkpoint, Named { name, rows, columns }: &Named) -> Result<Matrix> {
    let shape = [*rows, *columns];
    // Nothing is allocated for a tensor that is not there: reading it says what is wrong.
    let (Some(storage), true) = (checkpoint.storage(name), checkpoint.shape(name) == Some(&shape)) else {
        return checkpoint.tensor(name, &shape).map(|numbers| plain(*rows, *columns, &numbers));
    };
    if let Some(bytes) = checkpoint.mapped(name, &shape)
        && let Some(matrix) =
            Matrix::in_place(*rows, *columns, storage, bytes).with_context(|| format!("tensor {name}"))?
    {
        return Ok(matrix);
    }
    let mut packer = Packer::new(*rows, *columns, storage).with_context(|| format!("tensor {name}"))?;
    checkpoint.stored(name, &shape, |bytes| packer.take(bytes))?;
    packer.finish().with_context(|| format!("tensor {name}"))
}

/// Bytes that the matrices of `checkpoint` take when they are packed.
pub fn size(config: &ModelConfig, checkpoint: &Checkpoint) -> u64 {
    let of = |Named { name, rows, columns }: &Named| {
        checkpoint.storage(name).map_or(0, |storage| packed_size(*rows, *columns, storage))
    };
    matrices(config).iter().map(of).sum()
}
