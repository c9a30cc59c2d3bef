//! From logits to the next token: repetition penalty, temperature, top-k, top-p, in transformers' order.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling as Draw};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// How tokens are drawn. The same settings, logits and seed give the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0: greedy; so is what is too small for the arithmetic.
    pub temperature: f64,
    /// Draw among the likeliest tokens that together reach this probability; 1: among all, 0: the likeliest alone.
    pub top_p: f64,
    /// Draw among this many tokens; 0: among all.
    pub top_k: usize,
    /// Divides the logits (multiplies negative ones) of tokens that were there already; 1: off.
    pub repetition_penalty: f32,
    pub seed: u64,
}

impl Sampling {
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 0 };
}

/// Below it the logits' quotients leave f32.
const MIN_TEMPERATURE: f64 = 1e-7;

/// Draws one token after another.
pub struct Sampler {
    sampling: Sampling,
    draw: LogitsProcessor,
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Sampler {
        let Sampling { temperature, top_p, seed, .. } = sampling;
        // Top-k is done before, so that top-p counts probabilities among the k tokens that are left.
        let draw = LogitsProcessor::from_sampling(seed, Draw::TopP { p: top_p, temperature });
        Sampler { sampling, draw }
    }

    /// The next token, given logits `[vocab_size]` (changed in place) and the tokens that the penalty looks back on.
    ///
    /// Errors when the logits are damaged: NaN, +∞, or none that is more than −∞.
    pub fn sample(&mut self, logits: &mut [f32], recent: &[u32]) -> Result<u32> {
        // −∞ alone is fair: a token that cannot come.
        let broken = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
        if logits.iter().any(broken) || logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            return Err(Error::failure("the network gave logits that are not numbers"));
        }
        self.penalise(logits, recent);
        // The library takes a top-p of 0 for none at all.
        if self.sampling.temperature < MIN_TEMPERATURE || self.sampling.top_p <= 0.0 {
            return Ok(greedy(logits));
        }
        let k = self.sampling.top_k;
        if k == 0 || k >= logits.len() {
            return self.draw(logits);
        }
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let order = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
        ids.select_nth_unstable_by(k - 1, order);
        ids.truncate(k);
        ids.sort_unstable_by(order);
        let best: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        Ok(ids[self.draw(&best)? as usize])
    }

    fn penalise(&self, logits: &mut [f32], recent: &[u32]) {
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        for id in recent.iter().collect::<BTreeSet<_>>() {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        let logits = Tensor::new(logits, &Device::Cpu)?;
        self.draw.sample(&logits).context("drawing a token")
    }
}

/// The id of the highest logit, the lowest id where several are equal.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 2.5];

    fn draws(sampling: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..n).map(|_| sampler.sample(&mut LOGITS.clone(), &[]).unwrap()).collect()
    }

    fn set(ids: &[u32]) -> BTreeSet<u32> {
        ids.iter().copied().collect()
    }

    fn hot(top_p: f64, top_k: usize, seed: u64) -> Sampling {
        Sampling { temperature: 1.0, top_p, top_k, repetition_penalty: 1.0, seed }
    }

    #[test]
    fn greedy_takes_the_highest_and_the_first_of_equals() {
        assert_eq!(draws(Sampling::GREEDY, 3), [1, 1, 1]);
        assert_eq!(greedy(&[0.5, 2.0, 2.0]), 1);
        assert_eq!(greedy(&[f32::NEG_INFINITY; 3]), 0);
    }

    #[test]
    fn top_k_draws_among_k() {
        assert_eq!(set(&draws(hot(1.0, 2, 1), 300)), set(&[1, 4]));
        assert_eq!(set(&draws(hot(1.0, 1, 1), 50)), set(&[1]));
        assert_eq!(set(&draws(hot(1.0, 0, 1), 2000)), set(&[0, 1, 2, 3, 4]));
        assert_eq!(set(&draws(hot(1.0, 99, 1), 2000)), set(&[0, 1, 2, 3, 4]));
    }

    #[test]
    fn top_p_draws_among_the_likeliest() {
        // Probabilities: 0.47, 0.28, 0.17, 0.06, 0.01 for ids 1, 4, 2, 0, 3.
        assert_eq!(set(&draws(hot(0.4, 0, 1), 100)), set(&[1]));
        assert_eq!(set(&draws(hot(0.7, 0, 1), 300)), set(&[1, 4]));
        // Among the two best alone, 1 has 0.62: less than 0.7 of all, more than 0.6 of the two.
        assert_eq!(set(&draws(hot(0.6, 2, 1), 300)), set(&[1]));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let ids = draws(hot(1.0, 0, 7), 4000);
        let share = |id| ids.iter().filter(|&&i| i == id).count() as f64 / ids.len() as f64;
        assert!((share(1) - 0.47).abs() < 0.03, "{}", share(1));
        assert!((share(2) - 0.17).abs() < 0.03, "{}", share(2));
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(draws(hot(0.95, 4, 42), 50), draws(hot(0.95, 4, 42), 50));
        assert_ne!(draws(hot(0.95, 4, 42), 50), draws(hot(0.95, 4, 43), 50));
    }

    #[test]
    fn the_penalty_pushes_what_was_there_down_once() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY });
        let mut logits = LOGITS;
        assert_eq!(sampler.sample(&mut logits, &[1, 3, 1, 999]).unwrap(), 4);
        assert_eq!(logits, [1.0, 1.5, 2.0, -2.0, 2.5]);
    }

    #[test]
    fn refuses_what_is_no_number() {
        let mut sampler = Sampler::new(Sampling::GREEDY);
        assert!(sampler.sample(&mut [1.0, f32::NAN], &[]).is_err());
        assert!(sampler.sample(&mut [], &[]).is_err());
        for mut sampler in [sampler, Sampler::new(hot(1.0, 0, 1)), Sampler::new(hot(0.9, 2, 1))] {
            for broken in [f32::NAN, f32::INFINITY] {
                assert!(sampler.sample(&mut [1.0, broken, 2.0], &[]).is_err(), "{broken}");
            }
            assert!(sampler.sample(&mut [f32::NEG_INFINITY; 3], &[]).is_err(), "no token can come");
            assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], &[]).unwrap(), 1);
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_greedy() {
        assert_eq!(set(&draws(hot(0.0, 0, 1), 200)), set(&[1]), "top-p 0, as a model's folder may have it");
        for temperature in [0.0, 1e-300, 1e-39, 1e-8] {
            assert_eq!(set(&draws(Sampling { temperature, ..hot(1.0, 0, 1) }, 50)), set(&[1]), "{temperature}");
        }
        assert_eq!(set(&draws(Sampling { temperature: 1e-6, ..hot(0.9, 3, 1) }, 50)), set(&[1]));
    }
}
