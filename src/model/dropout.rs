//! `lora_dropout`, alike in every network: which inputs of a pair are dropped.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::PassOptions;
use super::lora::Target;

/// Draws the masks: a stream of numbers for every layer and target, so that computing a block a second time draws the same.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    pub probability: f32,
    pub seed: u64,
}

impl Dropout {
    /// None where nothing is to be dropped.
    pub fn of(options: &PassOptions) -> Option<Dropout> {
        let dropout = options.dropout.filter(|(probability, _)| *probability > 0.0);
        dropout.map(|(probability, seed)| Dropout { probability, seed })
    }

    /// By what the inputs of a layer are multiplied, one after the other, token by token: 0, or 1/(1 − p).
    pub fn mask(self, layer: usize, target: Target) -> impl Iterator<Item = f32> {
        let keep = 1.0 / (1.0 - self.probability);
        let place = (layer * Target::ALL.len() + target as usize + 1) as u64;
        // Named and not `StdRng`: its numbers may not change with a release of the library.
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        std::iter::repeat_with(move || if rng.random::<f32>() < self.probability { 0.0 } else { keep })
    }
}
