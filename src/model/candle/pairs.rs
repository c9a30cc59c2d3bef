//! The pairs of an adapter as tensors, beside the layers that they sit on.

use candle_core::Tensor;

use super::{Shared, ops};
use crate::error::Result;
use crate::model::lora::{LoraModule, LoraWeights, Target};

/// The tensors of one module, whether they learn or not.
pub(super) struct Parts {
    /// `[rank, in]`
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
    /// DoRA's, `[out]`.
    pub magnitude: Option<Tensor>,
}

/// A LoRA pair, ready to use.
pub(super) struct Pair {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
    dora: Option<Dora>,
}

struct Dora {
    magnitude: Tensor,
    /// 1 / ‖W + s·B A‖ of each row, `[out]`. A constant also in training, as in PEFT: no gradient flows through it.
    inverse_norms: Tensor,
}

impl Pair {
    /// DoRA's factor of each output, `[out]`; `None`: plain LoRA.
    pub fn gain(&self) -> Result<Option<Tensor>> {
        let gain = self.dora.as_ref().map(|dora| &dora.magnitude * &dora.inverse_norms);
        Ok(gain.transpose()?)
    }
}

/// The pairs of an adapter, by layer and place in [`Target::ALL`].
#[derive(Default)]
pub(super) struct Pairs(Vec<[Option<Pair>; 7]>);

impl Pairs {
    /// Lays out what `make` gives for each module. The lengths of DoRA's rows are those of these values.
    pub fn gather(
        shared: &Shared,
        lora: &LoraWeights,
        mut make: impl FnMut(&LoraModule) -> Result<Parts>,
    ) -> Result<Pairs> {
        let mut pairs: Vec<[Option<Pair>; 7]> = (0..shared.config.layers).map(|_| Default::default()).collect();
        for module in &lora.modules {
            let Parts { a, b, magnitude } = make(module)?;
            let scale = f64::from(module.scale);
            let dora = magnitude.map(|magnitude| {
                let inverse_norms = inverse_norms(shared, module, &a.detach(), &b.detach(), scale)?;
                Ok::<_, crate::error::Error>(Dora { magnitude, inverse_norms })
            });
            let dora = dora.transpose()?;
            pairs[module.layer][module.target as usize] = Some(Pair { a, b, scale, dora });
        }
        Ok(Pairs(pairs))
    }

    pub fn get(&self, layer: usize, target: Target) -> Option<&Pair> {
        self.0.get(layer).and_then(|l| l[target as usize].as_ref())
    }
}

/// 1 / ‖W + s·B A‖ of each row without forming B A:
/// ‖W + s·B A‖² = ‖W‖² + 2s·rowsum((W Aᵀ) ∘ B) + s²·rowsum((B A Aᵀ) ∘ B).
fn inverse_norms(shared: &Shared, module: &LoraModule, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let weight = &shared.weights.blocks[module.layer].linear[module.target as usize];
    let cross = (ops::linear(weight, a)? * b)?.sum(1)?;
    let own = (ops::linear(b, &ops::linear(a, a)?)? * b)?.sum(1)?;
    let squares = (cross.affine(2.0 * scale, 0.0)? + own.affine(scale * scale, 0.0)?)?;
    let squares = (shared.row_squares(module.layer, module.target)? + squares)?.to_vec1::<f32>()?;
    // A row of zeros has no direction: its output is zero whatever its magnitude.
    let inverse: Vec<f32> = squares.iter().map(|n| if *n > 0.0 { 1.0 / n.sqrt() } else { 0.0 }).collect();
    Ok(Tensor::from_vec(inverse, module.out_features, &shared.device)?)
}
