//! An adapter's pairs as the products take them.

use super::Shared;
use super::halves::halved;
use super::interleaved::Interleaved;
use super::matrix::Input;
use super::plane::Plane;
use super::products::{Layer, Pair};
use crate::model::lora::{LoraModule, LoraWeights, Target};

/// By layer and place in [`Target::ALL`].
pub struct Pairs(Vec<[Option<Pair>; 7]>);

impl Pairs {
    /// Packs the pairs of an adapter that fits the base.
    pub fn pack(shared: &Shared, lora: &LoraWeights) -> Pairs {
        let packed = shared.pool.map(lora.modules.len(), |at| {
            let m = &lora.modules[at];
            let (a, down) = halved(shared.level, m.rank, m.in_features, lora.a(m));
            let (b, up) = halved(shared.level, m.out_features, m.rank, lora.b(m));
            Pair { a, b, scale: m.scale * down * up, gain: None }
        });
        let mut pairs: Vec<[Option<Pair>; 7]> = (0..shared.config.layers).map(|_| Default::default()).collect();
        for (m, mut pair) in lora.modules.iter().zip(packed) {
            pair.gain = lora.magnitude(m).map(|magnitudes| {
                magnitudes.iter().zip(inverse_norms(shared, lora, m)).map(|(m, inverse)| m * inverse).collect()
            });
            pairs[m.layer][m.target as usize] = Some(pair);
        }
        Pairs(pairs)
    }

    pub fn get(&self, layer: usize, target: Target) -> Option<&Pair> {
        self.0[layer][target as usize].as_ref()
    }
}

/// 1 / ‖W + s·B A‖ of each row of a module with DoRA, without forming B A:
/// ‖W + s·B A‖² = ‖W‖² + 2s·rowsum((W Aᵀ) ∘ B) + s²·rowsum((B A Aᵀ) ∘ B).
pub fn inverse_norms(shared: &Shared, lora: &LoraWeights, m: &LoraModule) -> Vec<f32> {
    let (rank, scale) = (m.rank, f64::from(m.scale));
    let mut a = Plane::new(rank, m.in_features);
    lora.a(m).chunks_exact(m.in_features).enumerate().for_each(|(at, row)| a.row_mut(at).copy_from_slice(row));
    let mut crossed = Plane::new(rank, m.out_features);
    let layer = Layer { bias: None, ..shared.weights.blocks[m.layer].layer(m.target) };
    let a_taken = Interleaved::new(&shared.pool, shared.level, &a);
    shared.on(true).linear([layer], Input { plane: &a, numbers: &a_taken, rounded: None }, [&mut crossed], false);
    let dot = |i: usize, j: usize| a.row(i).iter().zip(a.row(j)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    let gram: Vec<f64> = (0..rank * rank).map(|at| dot(at / rank, at % rank)).collect();
    let squares = shared.row_squares(m.layer, m.target);
    let rows = lora.b(m).chunks_exact(rank).zip(squares).enumerate();
    rows.map(|(out, (b, square))| {
        let (mut cross, mut own) = (0.0, 0.0);
        for (k, b_k) in b.iter().enumerate() {
            let along: f64 = gram[k * rank..][..rank].iter().zip(b).map(|(g, b)| g * f64::from(*b)).sum();
            cross += f64::from(*b_k) * f64::from(crossed.row(k)[out]);
            own += f64::from(*b_k) * along;
        }
        let square = square + 2.0 * scale * cross + scale * scale * own;
        // A row of zeros has no direction: its output is zero whatever its magnitude.
        if square > 0.0 { (1.0 / square.sqrt()) as f32 } else { 0.0 }
    })
    .collect()
}
