//! Differentiable building blocks for the candle network.
//!
//! candle's fused kernels (`rms_norm`, `softmax_last_dim`, `rope`) are fast but cut the gradient silently, and its matmul
//! computes and keeps a gradient for frozen weights. Each block here takes its value from the fast kernel and brings a
//! backward of its own, written with tensor operations, so that it works on any device.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, D, Layout, MetalStorage, Result, Shape, Storage, Tensor, bail,
};

use super::gemm;

/// x · Wᵀ, for x `[tokens, in]` and W `[out, in]`.
///
/// A frozen W gets no gradient: half of a matmul's backward is saved and nothing is kept for it.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if weight.track_op() {
        x.apply_op2(weight, TrainedLinear)
    } else {
        x.apply_op1(FrozenLinear { weight: weight.clone() })
    }
}

/// a · b for `[…, m, k]` and `[…, k, n]`, without a graph.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2_no_bwd(b, &Matmul)
}

/// (batch, m, n, k) of a · b, and the shape of the product, for devices with kernels of candle's.
fn dimensions(a: &Layout, b: &Layout) -> Result<((usize, usize, usize, usize), Shape)> {
    let (&[.., m, k], &[.., inner, n]) = (a.dims(), b.dims()) else { bail!("a product of less than matrices") };
    let batch = &a.dims()[..a.dims().len() - 2];
    if inner != k || batch != &b.dims()[..b.dims().len() - 2] {
        bail!("a product of {:?} and {:?}", a.dims(), b.dims())
    }
    Ok(((batch.iter().product(), m, n, k), Shape::from([batch, &[m, n]].concat())))
}

struct Matmul;

impl CustomOp2 for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        gemm::product(a, la, b, lb)
    }

    fn cuda_fwd(&self, a: &CudaStorage, la: &Layout, b: &CudaStorage, lb: &Layout) -> Result<(CudaStorage, Shape)> {
        let (bmnk, shape) = dimensions(la, lb)?;
        Ok((a.matmul(b, bmnk, la, lb)?, shape))
    }

    fn metal_fwd(&self, a: &MetalStorage, la: &Layout, b: &MetalStorage, lb: &Layout) -> Result<(MetalStorage, Shape)> {
        let (bmnk, shape) = dimensions(la, lb)?;
        Ok((a.matmul(b, bmnk, la, lb)?, shape))
    }
}

/// x · Wᵀ with both gradients, that of W in W's own layout (a matmul's would have to be transposed).
struct TrainedLinear;

impl CustomOp2 for TrainedLinear {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        Matmul.cpu_fwd(x, lx, w, &lw.transpose(0, 1)?)
    }

    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, w: &CudaStorage, lw: &Layout) -> Result<(CudaStorage, Shape)> {
        Matmul.cuda_fwd(x, lx, w, &lw.transpose(0, 1)?)
    }

    fn metal_fwd(&self, x: &MetalStorage, lx: &Layout, w: &MetalStorage, lw: &Layout) -> Result<(MetalStorage, Shape)> {
        Matmul.metal_fwd(x, lx, w, &lw.transpose(0, 1)?)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(matmul(grad, w)?), Some(matmul(&grad.t()?, x)?)))
    }
}

struct FrozenLinear {
    /// `[out, in]`
    weight: Tensor,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        match &*weight {
            Storage::Cpu(w) => TrainedLinear.cpu_fwd(storage, layout, w, weight_layout),
            _ => bail!("linear: the weight is on another device than its input"),
        }
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        match &*weight {
            Storage::Cuda(w) => TrainedLinear.cuda_fwd(storage, layout, w, weight_layout),
            _ => bail!("linear: the weight is on another device than its input"),
        }
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        match &*weight {
            Storage::Metal(w) => TrainedLinear.metal_fwd(storage, layout, w, weight_layout),
            _ => bail!("linear: the weight is on another device than its input"),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(matmul(grad, &self.weight)?))
    }
}

/// A value that a fast kernel has computed already, put into the graph as a function of its input with this backward.
struct Computed<F> {
    name: &'static str,
    value: Tensor,
    backward: F,
}

fn computed<F>(x: &Tensor, name: &'static str, value: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    if x.track_op() { x.apply_op1(Computed { name, value, backward }) } else { Ok(value) }
}

impl<F> CustomOp1 for Computed<F>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        cpu_value(&self.value)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda_value(&self.value)
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        metal_value(&self.value)
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(&x.detach(), &y.detach(), grad).map(Some) // no graph of the gradient
    }
}

/// What a forward gives that was computed before.
pub fn cpu_value(value: &Tensor) -> Result<(CpuStorage, Shape)> {
    let (storage, layout) = value.storage_and_layout();
    match &*storage {
        Storage::Cpu(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
        _ => bail!("a value is on another device than its input"),
    }
}

/// As [`cpu_value`].
pub fn cuda_value(value: &Tensor) -> Result<(CudaStorage, Shape)> {
    let (storage, layout) = value.storage_and_layout();
    match &*storage {
        Storage::Cuda(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
        _ => bail!("a value is on another device than its input"),
    }
}

/// As [`cpu_value`].
pub fn metal_value(value: &Tensor) -> Result<(MetalStorage, Shape)> {
    let (storage, layout) = value.storage_and_layout();
    match &*storage {
        Storage::Metal(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
        _ => bail!("a value is on another device than its input"),
    }
}

/// x / rms(x) · w over the last dimension; the sum of squares is taken in f32.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    if weight.track_op() {
        return normalise(&x, eps)?.broadcast_mul(weight); // pretraining: the weight learns too
    }
    let value = candle_nn::ops::rms_norm(&x.detach(), weight, eps as f32)?;
    let weight = weight.clone();
    computed(&x, "rms-norm", value, move |x, _, grad| {
        let gw = grad.broadcast_mul(&weight)?;
        rms_backward(x, &gw, eps)
    })
}

/// x / rms(x), differentiable.
fn normalise(x: &Tensor, eps: f64) -> Result<Tensor> {
    let value = x.detach().broadcast_mul(&inverse_rms(&x.detach(), eps)?)?;
    computed(x, "normalise", value, move |x, _, grad| rms_backward(x, grad, eps))
}

/// 1 / √(mean(x²) + eps), `[…, 1]`.
fn inverse_rms(x: &Tensor, eps: f64) -> Result<Tensor> {
    let n = x.dim(D::Minus1)? as f64;
    ((x.sqr()?.sum_keepdim(D::Minus1)? / n)? + eps)?.sqrt()?.recip()
}

/// With r = 1/rms: dx = r·g − x·r³/n·Σ(g·x).
fn rms_backward(x: &Tensor, grad: &Tensor, eps: f64) -> Result<Tensor> {
    let n = x.dim(D::Minus1)? as f64;
    let r = inverse_rms(x, eps)?;
    let along = ((grad * x)?.sum_keepdim(D::Minus1)? * r.powf(3.0)?)?.affine(1.0 / n, 0.0)?;
    grad.broadcast_mul(&r)? - x.broadcast_mul(&along)?
}

/// Rotates each head of x `[tokens, heads, head_dim]` by its token's position; cos, sin are f32 `[tokens, head_dim/2]`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let rotate = |x: &Tensor, cos: &Tensor, sin: &Tensor| -> Result<Tensor> {
        let x = x.contiguous()?.unsqueeze(0)?;
        candle_nn::rotary_emb::rope_thd(&x, cos, sin)?.squeeze(0)
    };
    let value = rotate(&x.detach(), cos, sin)?;
    let (cos, back) = (cos.clone(), sin.neg()?);
    computed(x, "rope", value, move |_, _, grad| rotate(grad, &cos, &back))
}

/// silu(gate) · up.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let value = gate.detach().silu()?;
    let activated = computed(gate, "silu", value, |x, y, grad| {
        // silu' = σ + y·(1 − σ)
        let sigma = candle_nn::ops::sigmoid(x)?;
        let slope = (&sigma + (y * sigma.affine(-1.0, 1.0)?)?)?;
        grad * slope
    })?;
    activated * up
}
