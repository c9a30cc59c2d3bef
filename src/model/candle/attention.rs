//! Causal attention that never holds all its scores.
//!
//! They grow with the square of a row's length. So they are computed for some queries at a time, and again in the backward,
//! which keeps q, k, v and the result alone.

use candle_core::{CpuStorage, CudaStorage, CustomOp3, D, Layout, MetalStorage, Result, Shape, Tensor, bail};

use super::ops::{cpu_value, cuda_value, matmul, metal_value};

/// Most scores held at once.
const SCORES: usize = 1 << 22;

/// What the tokens of `q` see of `k` and `v`.
///
/// q `[new, heads, head_dim]`, k and v `[kv_heads, all, head_dim]`; the new tokens are the last of all. Each KV head serves
/// heads / kv_heads query heads, without being copied for them. Returns `[new, heads · head_dim]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    within(SCORES, q, k, v)
}

/// As [`attention`], with at most `scores` of them at once, but always those of one token.
fn within(scores: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (new, heads, dim) = q.dims3()?;
    let fixed = Blocks { q: &q.detach(), k: &k.detach(), v: &v.detach(), scores };
    let mixed = fixed.blocks()?.map(|block| fixed.score(block)?.mix()).collect::<Result<Vec<_>>>()?;
    let value = joined(mixed)?.reshape((new, heads * dim))?;
    if q.track_op() || k.track_op() || v.track_op() {
        q.apply_op3(k, v, Attention { value, scores })
    } else {
        Ok(value)
    }
}

/// Queries that are looked at together.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    len: usize,
    /// Keys that the last of them sees.
    seen: usize,
}

struct Blocks<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    scores: usize,
}

/// A block's softmax, and what it was made of, by KV head.
struct Scored {
    /// `[kv_heads, group · len, head_dim]`, scaled.
    q: Tensor,
    /// `[kv_heads, seen, head_dim]`
    k: Tensor,
    v: Tensor,
    /// `[kv_heads, group · len, seen]`
    p: Tensor,
    len: usize,
}

impl Blocks<'_> {
    fn blocks(&self) -> Result<impl Iterator<Item = Block> + use<>> {
        let (new, heads, _) = self.q.dims3()?;
        let all = self.k.dim(1)?;
        let len = (self.scores / (heads * all)).clamp(1, new);
        Ok((0..new).step_by(len).map(move |start| {
            let len = len.min(new - start);
            Block { start, len, seen: all - new + start + len }
        }))
    }

    fn scale(&self) -> Result<f64> {
        Ok(1.0 / (self.q.dim(2)? as f64).sqrt())
    }

    fn score(&self, Block { start, len, seen }: Block) -> Result<Scored> {
        let kv_heads = self.k.dim(0)?;
        let q = by_kv_head(&self.q.narrow(0, start, len)?, kv_heads)?.affine(self.scale()?, 0.0)?;
        let (k, v) = (self.k.narrow(1, 0, seen)?, self.v.narrow(1, 0, seen)?);
        let mut scores = matmul(&q, &k.t()?)?;
        if len > 1 {
            let grouped = scores.dims3()?;
            let mask = causal_mask(len, seen, q.device())?.to_dtype(scores.dtype())?;
            scores = scores.reshape((kv_heads, (), len, seen))?.broadcast_add(&mask)?.reshape(grouped)?;
        }
        let p = candle_nn::ops::softmax_last_dim(&scores)?;
        Ok(Scored { q, k, v, p, len })
    }
}

impl Scored {
    /// `[len, heads, head_dim]`
    fn mix(&self) -> Result<Tensor> {
        by_token(&matmul(&self.p, &self.v)?, self.len)
    }
}

struct Attention {
    /// `[new, heads · head_dim]`
    value: Tensor,
    scores: usize,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        cpu_value(&self.value)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda_value(&self.value)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        metal_value(&self.value)
    }

    /// With P = softmax(s·Q Kᵀ) and O = P V: dV = Pᵀ dO; dS = P ∘ (dP − Σ dP ∘ P), dP = dO Vᵀ; dQ = s·dS K; dK = s·dSᵀ Q.
    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // Detached: else all blocks' scores would live on in the graph of the gradient.
        let fixed = Blocks { q: &q.detach(), k: &k.detach(), v: &v.detach(), scores: self.scores };
        let (kv_heads, all, _) = k.dims3()?;
        let grad = grad.reshape(q.shape())?;
        let (mut dq, mut dk, mut dv) = (Vec::new(), None, None);
        for block in fixed.blocks()? {
            let Scored { q, k, v, p, len } = fixed.score(block)?;
            let d_mixed = by_kv_head(&grad.narrow(0, block.start, len)?, kv_heads)?;
            let dp = matmul(&d_mixed, &v.t()?)?;
            let along = (&dp * &p)?.sum_keepdim(D::Minus1)?;
            let ds = (dp.broadcast_sub(&along)? * &p)?;
            dq.push(by_token(&matmul(&ds, &k)?.affine(fixed.scale()?, 0.0)?, len)?);
            for (sum, part) in [(&mut dk, matmul(&ds.t()?, &q)?), (&mut dv, matmul(&p.t()?, &d_mixed)?)] {
                let part = part.pad_with_zeros(1, 0, all - block.seen)?; // later keys are not seen
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
        }
        Ok((Some(joined(dq)?), dk, dv))
    }
}

/// `[tokens, heads, head_dim]` → `[kv_heads, group · tokens, head_dim]`
fn by_kv_head(x: &Tensor, kv_heads: usize) -> Result<Tensor> {
    let (tokens, heads, dim) = x.dims3()?;
    let grouped = x.reshape((tokens, kv_heads, heads / kv_heads, dim))?.permute((1, 2, 0, 3))?.contiguous()?;
    grouped.reshape((kv_heads, (), dim))
}

/// `[kv_heads, group · tokens, head_dim]` → `[tokens, heads, head_dim]`
fn by_token(x: &Tensor, tokens: usize) -> Result<Tensor> {
    let (kv_heads, rows, dim) = x.dims3()?;
    let apart = x.reshape((kv_heads, rows / tokens, tokens, dim))?.permute((2, 0, 1, 3))?.contiguous()?;
    apart.reshape((tokens, (), dim))
}

fn joined(parts: Vec<Tensor>) -> Result<Tensor> {
    match parts.as_slice() {
        [] => bail!("attention of no tokens"),
        [one] => Ok(one.clone()),
        many => Tensor::cat(many, 0),
    }
}

/// 0 where row i (the token seen − new + i) may look, −∞ after it; f32 `[new, seen]`.
fn causal_mask(new: usize, seen: usize, device: &candle_core::Device) -> Result<Tensor> {
    let past = seen - new;
    let mask: Vec<f32> =
        (0..new).flat_map(|i| (0..seen).map(move |j| if j <= past + i { 0.0 } else { f32::NEG_INFINITY })).collect();
    Tensor::from_vec(mask, (new, seen), device)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// q, k, v of `new` tokens behind `past` ones, with four query heads over two.
    fn variables(new: usize, past: usize) -> [Var; 3] {
        let make = |seed: usize, shape: (usize, usize, usize)| {
            let values = (0..shape.0 * shape.1 * shape.2).map(|i| ((i * 7919 + seed * 31) % 97) as f32 / 48.0 - 1.0);
            Var::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
        };
        [make(1, (new, 4, 6)), make(2, (2, past + new, 6)), make(3, (2, past + new, 6))]
    }

    /// A token and a head at a time, in candle's own differentiable operations.
    fn plainly(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (new, heads, dim) = q.dims3().unwrap();
        let all = k.dim(1).unwrap();
        let rows: Vec<Tensor> = (0..new * heads)
            .map(|i| {
                let (token, head) = (i / heads, i % heads);
                let seen = all - new + token + 1;
                let of = |x: &Tensor| x.get(head / 2).unwrap().narrow(0, 0, seen).unwrap();
                let scores = of(k).matmul(&q.get(token).unwrap().get(head).unwrap().unsqueeze(1).unwrap()).unwrap();
                let p = candle_nn::ops::softmax(&(scores / (dim as f64).sqrt()).unwrap(), 0).unwrap();
                of(v).t().unwrap().matmul(&p).unwrap().squeeze(1).unwrap()
            })
            .collect();
        Tensor::cat(&rows, 0).unwrap().reshape((new, heads * dim)).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor, what: &str) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in values(a).into_iter().zip(values(b)) {
            assert!((a - b).abs() < 1e-5, "{what}: {a} and {b}");
        }
    }

    #[test]
    fn blocks_of_any_size_give_the_value_and_gradients_of_the_whole() {
        for (new, past) in [(1, 0), (1, 4), (7, 0), (5, 3)] {
            let variables = variables(new, past);
            let [q, k, v] = variables.each_ref().map(|var| var.as_tensor());
            let expected = plainly(q, k, v);
            let weights = (Tensor::arange(0f32, (new * 24) as f32, &Device::Cpu).unwrap() / 50.0).unwrap();
            let weigh = |y: &Tensor| (y.flatten_all().unwrap() * &weights).unwrap().sum_all().unwrap();
            let slopes = weigh(&expected).backward().unwrap();
            for scores in [1, 4 * 2 * (new + past), usize::MAX] {
                let value = within(scores, q, k, v).unwrap();
                close(&value, &expected, "value");
                let stated = weigh(&value).backward().unwrap();
                for (var, name) in [(q, "q"), (k, "k"), (v, "v")] {
                    close(stated.get(var).unwrap(), slopes.get(var).unwrap(), name);
                }
            }
        }
    }

    #[test]
    fn without_variables_there_is_no_graph() {
        let [q, k, v] = variables(3, 2).map(|var| var.as_detached_tensor());
        assert!(!attention(&q, &k, &v).unwrap().track_op());
    }
}
