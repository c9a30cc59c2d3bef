//! The output layer in chunks: log-probabilities and KL from hidden states, and their gradients by hand.
//!
//! A row of Qwen's logits is 0.6 MB; only a chunk of rows exists at a time, in the forward and again in the backward.

use candle_core::{D, Tensor};

use super::ops;
use crate::error::Result;

/// Most logits held at once. With a small vocabulary they stay below the size from which candle shares an operation
/// between threads: several passes run side by side then, and would wait for each other.
fn chunk_values(vocab: usize) -> usize {
    if vocab <= 8192 { 60_000 } else { 1 << 23 }
}

fn chunks(rows: usize, vocab: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = (chunk_values(vocab) / vocab).max(1);
    (0..rows).step_by(size).map(move |start| (start, size.min(rows - start)))
}

/// log p of each target, for `hidden` `[targets, hidden]` and `head` `[vocab, hidden]`, natural log.
pub(super) fn logprobs(hidden: &Tensor, targets: &[u32], head: &Tensor) -> Result<Vec<f32>> {
    let mut out = Vec::with_capacity(targets.len());
    for (start, len) in chunks(targets.len(), head.dims()[0]) {
        let logits = ops::linear(&hidden.narrow(0, start, len)?, &head.detach())?;
        let index = Tensor::from_slice(&targets[start..start + len], (len, 1), head.device())?;
        let chosen = logits.gather(&index, 1)?.squeeze(1)?;
        out.extend((chosen - log_sum_exp(&logits)?.squeeze(1)?)?.to_vec1::<f32>()?);
    }
    Ok(out)
}

/// KL(base ‖ adapted) in nat of each row of hidden states.
pub(super) fn kl(adapted: &Tensor, base: &Tensor, head: &Tensor) -> Result<Vec<f32>> {
    let mut out = Vec::with_capacity(adapted.dims()[0]);
    for (start, len) in chunks(adapted.dims()[0], head.dims()[0]) {
        let log = |h: &Tensor| log_softmax(&ops::linear(&h.narrow(0, start, len)?, &head.detach())?);
        let (log_base, log_adapted) = (log(base)?, log(adapted)?);
        out.extend((log_base.exp()? * (log_base - log_adapted)?)?.sum(D::Minus1)?.to_vec1::<f32>()?);
    }
    Ok(out)
}

/// Gradients that flow back from the output layer.
pub(super) struct HeadGrad {
    /// `[targets, hidden]`
    pub hidden: Tensor,
    /// `[vocab, hidden]`, where the output layer is trained.
    pub head: Option<Tensor>,
}

/// What the backward of the output layer is given.
pub(super) struct HeadBackward<'a> {
    pub hidden: &'a Tensor,
    pub targets: &'a [u32],
    pub head: &'a Tensor,
    /// dL/dlog p of each target.
    pub d_logprobs: &'a [f32],
    /// The base's hidden states and dL/dKL of each target.
    pub kl: Option<(&'a Tensor, &'a [f32])>,
    pub head_trains: bool,
}

impl HeadBackward<'_> {
    /// d log p(t)/d logits = onehot(t) − p; dKL/d logits = p − p_base.
    pub fn run(&self) -> Result<HeadGrad> {
        let (rows, vocab) = (self.targets.len(), self.head.dims()[0]);
        let (device, head) = (self.head.device(), self.head.detach());
        let column = |v: &[f32]| Tensor::from_slice(v, (v.len(), 1), device);
        let (mut d_hidden, mut d_head) = (Vec::new(), None::<Tensor>);
        for (start, len) in chunks(rows, vocab) {
            let hidden = self.hidden.narrow(0, start, len)?;
            let p = log_softmax(&ops::linear(&hidden, &head)?)?.exp()?;
            let d_logprob = column(&self.d_logprobs[start..start + len])?;
            let mut d_logits = p.broadcast_mul(&d_logprob.neg()?)?;
            if let Some((base, d_kl)) = self.kl {
                let p_base = log_softmax(&ops::linear(&base.narrow(0, start, len)?, &head)?)?.exp()?;
                d_logits = (d_logits + (&p - p_base)?.broadcast_mul(&column(&d_kl[start..start + len])?)?)?;
            }
            let index = Tensor::from_slice(&self.targets[start..start + len], (len, 1), device)?;
            let d_logits = d_logits.scatter_add(&index, &d_logprob, 1)?;
            if self.head_trains {
                let part = ops::matmul(&d_logits.t()?, &hidden)?;
                d_head = Some(match d_head {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
            d_hidden.push(ops::matmul(&d_logits, &head)?);
        }
        Ok(HeadGrad { hidden: Tensor::cat(&d_hidden, 0)?, head: d_head })
    }
}

/// `[rows, 1]`
fn log_sum_exp(logits: &Tensor) -> Result<Tensor> {
    let max = logits.max_keepdim(D::Minus1)?;
    Ok((logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?)
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    Ok(logits.broadcast_sub(&log_sum_exp(logits)?)?)
}
