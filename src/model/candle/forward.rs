//! The forward pass of a Qwen block, shared by decoding and training.
//!
//! Tokens of all rows lie behind each other, `[tokens, hidden]`: nothing is padded. What differs between decoding (a KV
//! cache) and training (each row for itself) is only who is attended to, and that is the caller's.

use candle_core::{DType, Device, Tensor};

use super::ops;
use super::pairs::Pairs;
use super::weights::{Block, Weights};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::courtesy::Courtesy;
use crate::model::dropout::Dropout;
use crate::model::lora::Target;

/// Rotary tables: cos and sin of every position, times the model's attention factor, f32 `[positions, head_dim/2]`.
///
/// In half precision they would lose whole positions past 2,048.
pub(super) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub fn new(config: &ModelConfig, positions: usize, device: &Device) -> Result<Rope> {
        let (frequency, factor) = config.rope_scaling.frequencies(config.head_dim, config.rope_theta);
        let angles: Vec<f32> = (0..positions).flat_map(|p| frequency.iter().map(move |f| p as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (positions, frequency.len()), device)?;
        let scaled = |table: Tensor| if factor == 1.0 { Ok(table) } else { table.affine(factor.into(), 0.0) };
        Ok(Rope { cos: scaled(angles.cos()?)?, sin: scaled(angles.sin()?)? })
    }

    /// The rows of `positions`.
    pub fn at(&self, positions: &[u32]) -> Result<(Tensor, Tensor)> {
        let index = Tensor::from_slice(positions, positions.len(), self.cos.device())?;
        Ok((self.cos.index_select(&index, 0)?, self.sin.index_select(&index, 0)?))
    }

    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }
}

/// What one forward runs over and with.
pub(super) struct Forward<'a> {
    pub config: &'a ModelConfig,
    pub weights: &'a Weights,
    pub pairs: Option<&'a Pairs>,
    pub dropout: Option<Dropout>,
    /// Rotary rows of the tokens.
    pub cos: Tensor,
    pub sin: Tensor,
    pub courtesy: Option<&'a Courtesy>,
}

/// From the queries, keys and values of the new tokens to what they see: q `[tokens, heads, head_dim]`, k and v
/// `[tokens, kv_heads, head_dim]`, to `[tokens, heads · head_dim]`. The layer is told for those who keep a cache.
pub(super) type Attend<'a> = dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor> + 'a;

impl Forward<'_> {
    /// The first hidden states, `[tokens, hidden]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let index = Tensor::from_slice(ids, ids.len(), self.weights.embed.device())?;
        Ok(self.weights.embed.index_select(&index, 0)?)
    }

    /// One block, `[tokens, hidden]` to the same.
    pub fn block(&self, layer: usize, x: &Tensor, attend: &mut Attend<'_>) -> Result<Tensor> {
        if let Some(courtesy) = self.courtesy {
            courtesy.point()?;
        }
        let block = &self.weights.blocks[layer];
        let h = ops::rms_norm(x, &block.input_norm, self.config.rms_norm_eps)?;
        let x = (x + self.attention(layer, block, &h, attend)?)?;
        let h = ops::rms_norm(&x, &block.post_norm, self.config.rms_norm_eps)?;
        Ok((&x + self.mlp(layer, block, &h)?)?)
    }

    /// The final norm.
    pub fn norm(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x, &self.weights.norm, self.config.rms_norm_eps)?)
    }

    /// All of it: hidden states after the final norm, `[tokens, hidden]`.
    pub fn hidden(&self, ids: &[u32], attend: &mut Attend<'_>) -> Result<Tensor> {
        let layers = 0..self.weights.blocks.len();
        let x = layers.into_iter().try_fold(self.embed(ids)?, |x, layer| self.block(layer, &x, attend))?;
        self.norm(&x)
    }

    fn attention(&self, layer: usize, block: &Block, h: &Tensor, attend: &mut Attend<'_>) -> Result<Tensor> {
        let (tokens, dim) = (h.dims()[0], self.config.head_dim);
        let q = self.linear(layer, block, Target::Q, h)?.reshape((tokens, self.config.heads, dim))?;
        let k = self.linear(layer, block, Target::K, h)?.reshape((tokens, self.config.kv_heads, dim))?;
        let v = self.linear(layer, block, Target::V, h)?.reshape((tokens, self.config.kv_heads, dim))?;
        let q = ops::rope(&self.head_norm(q, block.q_norm.as_ref())?, &self.cos, &self.sin)?;
        let k = ops::rope(&self.head_norm(k, block.k_norm.as_ref())?, &self.cos, &self.sin)?;
        let mixed = attend(layer, &q, &k, &v)?;
        self.linear(layer, block, Target::O, &mixed)
    }

    fn head_norm(&self, x: Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        match norm {
            Some(weight) => Ok(ops::rms_norm(&x, weight, self.config.rms_norm_eps)?),
            None => Ok(x),
        }
    }

    fn mlp(&self, layer: usize, block: &Block, h: &Tensor) -> Result<Tensor> {
        let gate = self.linear(layer, block, Target::Gate, h)?;
        let up = self.linear(layer, block, Target::Up, h)?;
        self.linear(layer, block, Target::Down, &ops::swiglu(&gate, &up)?)
    }

    /// W x + b + s · B(A(d)), with d = dropout(x). With DoRA, as PEFT has it: W x + b + (g − 1) · W d + g · s · B(A(d)), with
    /// g = magnitude / row length, which without dropout is g · (W x + s · B(A x)) + b.
    fn linear(&self, layer: usize, block: &Block, target: Target, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (&block.linear[target as usize], block.bias[target as usize].as_ref());
        let biased = |y: Tensor| bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias));
        let y = ops::linear(x, weight)?;
        let Some(pair) = self.pairs.and_then(|p| p.get(layer, target)) else { return Ok(biased(y)?) };
        let dropped = self.dropout.map(|dropout| {
            let mask: Vec<f32> = dropout.mask(layer, target).take(x.elem_count()).collect();
            x * Tensor::from_vec(mask, x.shape(), x.device())?
        });
        let dropped = dropped.transpose()?;
        let low = ops::linear(dropped.as_ref().unwrap_or(x), &pair.a)?;
        let low = ops::linear(&low, &pair.b)?.affine(pair.scale, 0.0)?;
        let Some(gain) = pair.gain()? else { return Ok((biased(y)? + low)?) };
        let y = match &dropped {
            None => (y + low)?.broadcast_mul(&gain)?,
            Some(dropped) => {
                let base = ops::linear(dropped, weight)?;
                ((y - &base)? + (base + low)?.broadcast_mul(&gain)?)?
            }
        };
        Ok(biased(y)?)
    }
}

/// `[tokens, kv_heads, head_dim]` → `[kv_heads, tokens, head_dim]`, as [`super::attention`] takes keys and values.
pub(super) fn by_head(x: &Tensor) -> Result<Tensor> {
    Ok(x.transpose(0, 1)?.contiguous()?.to_dtype(DType::F32)?)
}
