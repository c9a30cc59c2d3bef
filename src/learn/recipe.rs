//! How a buffer is trained: the constants that measurement chose, and the configuration resolved against them.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use serde::Serialize;

use crate::config::{Auto, LoraSection, TrainingSection, Variant};
use crate::model::config::ModelConfig;
use crate::train::order::{steps_of, weighted_draws};
use crate::train::run::Plan;
use crate::train::schedule::{Schedule, Shape, warmup_steps};

// What `auto` means, and what is not configurable. To be chosen by measurement only: benches/learning
// tries them, and its README holds the tables.

/// Learning rate of `auto` for networks of a few million weights, and for larger ones.
pub const SMALL_LEARNING_RATE: f64 = 2e-3;
pub const LARGE_LEARNING_RATE: f64 = 2e-4;
/// `auto` trains until every trained completion is at most at this, in nat a token.
pub const LEARNED: f64 = 0.1;
/// Steps that are still taken then, at a rate that falls to zero: what the last large steps happened to move comes to rest.
pub const SETTLE: usize = 20;
/// Rows of a step on which the adapter is held to the base, and what one of them weighs against a trained row.
pub const REPLAY_ROWS: usize = 8;
pub const REPLAY_WEIGHT: f64 = 8.0;
/// Pull to the reference of pairs and bad answers, as in the papers.
pub const BETA: f64 = 0.1;
/// Share of the better side's own likelihood in a pair's loss: without it a preference is also met by making both sides
/// unlikely.
pub const PAIR_SFT: f64 = 1.0;
/// λ of DPOP, for pairs that differ in few tokens.
pub const DPOP: f64 = 5.0;
/// Bad answers are moved away from only where at least this share of the buffer says what is good.
pub const POSITIVE_SHARE: f64 = 0.25;
/// Other wordings of each taught question that are trained beside it (see `variations`).
pub const WORDINGS: usize = 12;
/// Questions beside each taught one on which the adapter is held to the base, and how many of them there are at most
/// where the base answers slowly.
pub const NEIGHBOURS: usize = 1;
pub const LARGE_NEIGHBOURS: usize = 8;
/// Other wordings of each built-in prompt that are replayed beside it: what rewording a question brings about is then not
/// learned as part of the lesson. Only where the base answers fast.
pub const REPLAY_WORDINGS: usize = 1;
/// Built-in prompts that are replayed and watched where the base answers slowly; small networks take all.
pub const LARGE_REPLAYED: usize = 12;
pub const LARGE_WATCHED: usize = 8;
/// The user's own unrated prompts that are replayed beside them.
pub const SMALL_OWN_PROMPTS: usize = 24;
pub const LARGE_OWN_PROMPTS: usize = 8;
/// Tokens of the base's own answer to one of these prompts, at most; a short context gives them less.
const ANSWER_TOKENS: usize = 64;
/// Share of the rows that is held out, and the fewest held-out rows whose figures mean something.
pub const HELD_OUT_SHARE: f64 = 0.2;
pub const HELD_OUT_MIN: usize = 8;
/// KL(base ‖ adapter) on the watched prompts, in nat a token: from here on a warning, from there on a refusal.
pub const KL_WARN: f64 = 0.05;
pub const KL_REFUSE: f64 = 0.15;
/// The held-out loss may be this many times that of what answers now, and this many nat a token more.
pub const HELD_OUT_RISE: f64 = 1.01;
pub const HELD_OUT_NOISE: f64 = 0.01;
/// Share of the held-out rows whose own answer has to be likelier than answers to other questions.
pub const FITTING_MIN: f64 = 0.7;
/// Fewest held-out pairs whose figures mean something, the share of them whose margin has to grow, and how far their
/// better sides may fall below the base, in nat a token.
pub const PAIRS_MIN: usize = 5;
pub const PAIRS_WON: f64 = 0.6;
pub const PAIRS_FALL: f64 = 0.05;
/// Share of the watched answers that have to stay in order (healthy trainings keep nine in ten).
pub const ORDERLY_MIN: f64 = 0.5;
/// One correction in so many may hold no more.
pub const SLIPS: usize = 10;
/// Corrections that are asked again where the model answers slowly.
pub const LARGE_CHECKS: usize = 8;
/// Pairs of a data set that are asked again where it answers fast: as many as a full buffer has.
pub const SMALL_CHECKS: usize = 100;
/// Held-out rows of a data set that the gate looks at: where the model is fast, and where it is slow, about as many as a full
/// buffer has.
pub const SMALL_HELD_OUT: usize = 100;
pub const LARGE_HELD_OUT: usize = 20;

/// Everything that one training of a buffer is done with; nothing is `auto` any more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    pub learning_rate: f64,
    /// Trained rows of a step.
    pub batch_size: usize,
    /// Steps of the schedule; with `stop_at` most end earlier.
    pub steps: usize,
    pub warmup_steps: usize,
    pub schedule: Shape,
    /// Stop when every row's loss is at most this, in nat a token; `None`: take all steps.
    pub stop_at: Option<f64>,
    /// Steps that are still taken then, at a rate that falls to zero.
    pub settle: usize,
    pub weight_decay: f64,
    /// 0 is off.
    pub max_grad_norm: f64,
    pub dropout: f32,
    pub seed: u64,
    /// Replayed rows of a step, in addition to `batch_size`.
    pub replay_rows: usize,
    pub replay_weight: f64,
    /// Whether a better answer is preferred to the one that it corrects; else it is imitated and nothing more.
    pub pairs: bool,
    /// Whether bad answers that nothing corrects are moved away from.
    pub faults: bool,
    /// Replayed rows are imitated, not held to the base by KL.
    pub replay_imitates: bool,
    /// Other wordings of each question that is trained.
    pub wordings: usize,
    /// Questions beside each corrected one that are replayed.
    pub neighbours: usize,
    /// Other wordings of each built-in prompt that are replayed.
    pub replay_wordings: usize,
    /// The layers that carry pairs; `None`: all. A small network is trained in its upper half: there the wordings of a
    /// question have come together, and what it makes of other questions is left alone.
    pub layers: Option<Vec<usize>>,
}

impl Recipe {
    /// What the configuration means for a buffer of `rows` trained rows on this network. Explicit settings are taken as
    /// they are: with explicit epochs there is no early stop, `max_steps` does not bound them, and no question is reworded.
    pub fn resolve(lora: &LoraSection, model: &ModelConfig, rows: usize) -> Recipe {
        let TrainingSection { batch_size, warmup_ratio, weight_decay, max_grad_norm, seed, .. } = lora.training;
        let (steps, stop_at) = match lora.training.epochs {
            Auto::Auto => (lora.training.max_steps, Some(LEARNED)),
            Auto::Value(epochs) => (steps_of(epochs, rows, batch_size), None),
        };
        let auto = if model.is_small() { SMALL_LEARNING_RATE } else { LARGE_LEARNING_RATE };
        // A step of AdamW is as long as the rate whatever the gradient, and B A is then multiplied by the scale: rsLoRA's is
        // √rank times the one that `auto` was measured with.
        let auto = if lora.variant == Variant::Rslora { auto / (lora.rank as f64).sqrt() } else { auto };
        Recipe {
            learning_rate: lora.training.learning_rate.value().unwrap_or(auto),
            batch_size,
            steps,
            warmup_steps: warmup_steps(warmup_ratio, steps),
            schedule: lora.training.schedule,
            stop_at,
            settle: SETTLE,
            weight_decay,
            max_grad_norm,
            dropout: lora.dropout,
            seed,
            replay_rows: REPLAY_ROWS,
            replay_weight: REPLAY_WEIGHT,
            pairs: true,
            faults: true,
            replay_imitates: false,
            wordings: if stop_at.is_some() { WORDINGS } else { 0 },
            neighbours: NEIGHBOURS,
            replay_wordings: if model.is_small() { REPLAY_WORDINGS } else { 0 },
            layers: model.is_small().then(|| (model.layers / 2..model.layers).collect()),
        }
    }

    pub fn plan(&self) -> Plan {
        Plan {
            schedule: Schedule {
                shape: self.schedule,
                peak: self.learning_rate,
                warmup: self.warmup_steps,
                total: self.steps,
            },
            weight_decay: self.weight_decay,
            max_grad_norm: if self.max_grad_norm > 0.0 { self.max_grad_norm } else { f64::INFINITY },
            dropout: self.dropout,
            seed: self.seed,
        }
    }

    /// The trained rows of all steps, one step behind the other: P(i) = wᵢ / Σw, balanced within every epoch.
    ///
    /// `rows` are (content, weight); the draws follow from content and seed, whatever the rows' order.
    pub fn draws(&self, rows: &[([u8; 32], f64)]) -> Vec<usize> {
        weighted_draws(rows, self.steps * self.batch_size, self.seed)
    }

    /// The replayed rows of all steps, one step behind the other: all of `rows` in a new order, again and again.
    pub fn replay_draws(&self, rows: usize) -> Vec<usize> {
        self.in_turn(rows, self.replay_rows)
    }

    /// `a_step` of `rows` rows for each step, all of them in a new order, again and again; none without rows.
    pub fn in_turn(&self, rows: usize, a_step: usize) -> Vec<usize> {
        let needed = if rows == 0 { 0 } else { self.steps * a_step };
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        let mut draws = Vec::with_capacity(needed + rows);
        while draws.len() < needed {
            let mut order: Vec<usize> = (0..rows).collect();
            order.shuffle(&mut rng);
            draws.extend(order);
        }
        draws.truncate(needed);
        draws
    }
}

/// How long an answer to a built-in or unrated prompt may be, in tokens.
pub fn answer_tokens(model: &ModelConfig) -> usize {
    ANSWER_TOKENS.min(model.context / 16).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    fn large() -> ModelConfig {
        let config = testing::config();
        ModelConfig { vocab_size: 150_000, hidden_size: 1024, ..config }
    }

    #[test]
    fn auto_goes_by_the_size_of_the_network() {
        let lora = LoraSection::default();
        let small = Recipe::resolve(&lora, &testing::config(), 10);
        assert_eq!((small.learning_rate, small.steps, small.stop_at), (SMALL_LEARNING_RATE, 300, Some(LEARNED)));
        assert_eq!(small.warmup_steps, 15);
        assert_eq!(Recipe::resolve(&lora, &large(), 10).learning_rate, LARGE_LEARNING_RATE);
        let rate =
            |variant, rank| Recipe::resolve(&LoraSection { variant, rank, ..lora.clone() }, &large(), 10).learning_rate;
        assert_eq!(rate(Variant::Dora, 16), LARGE_LEARNING_RATE);
        assert_eq!(rate(Variant::Rslora, 16), LARGE_LEARNING_RATE / 4.0, "at four times the scale");
    }

    #[test]
    fn explicit_settings_are_taken_exactly() {
        let mut lora = LoraSection { dropout: 0.1, ..LoraSection::default() };
        lora.training.learning_rate = Auto::Value(3e-5);
        lora.training.epochs = Auto::Value(40);
        lora.training.max_steps = 7;
        lora.training.schedule = Shape::Constant;
        lora.training.max_grad_norm = 0.0;
        let recipe = Recipe::resolve(&lora, &testing::config(), 33);
        assert_eq!((recipe.learning_rate, recipe.steps, recipe.stop_at), (3e-5, 330, None));
        assert_eq!((recipe.schedule, recipe.dropout), (Shape::Constant, 0.1));
        assert_eq!(recipe.plan().max_grad_norm, f64::INFINITY, "0 is off, not a gradient of length 0");
    }

    fn rows(n: u8) -> Vec<([u8; 32], f64)> {
        (0..n).map(|i| ([i; 32], if i == 0 { 10.0 } else { 1.0 })).collect()
    }

    #[test]
    fn every_epoch_draws_by_weight() {
        let recipe = Recipe::resolve(&LoraSection::default(), &testing::config(), 5);
        let draws = recipe.draws(&rows(5));
        assert_eq!(draws.len(), 300 * 4);
        for epoch in draws.chunks_exact(5) {
            let heavy = epoch.iter().filter(|i| **i == 0).count();
            assert!((3..=4).contains(&heavy), "10/14 of 5 draws are {heavy}");
        }
        let heavy = draws.iter().filter(|i| **i == 0).count() as f64;
        assert!((heavy / 1200.0 - 10.0 / 14.0).abs() < 0.02, "{heavy}");
    }

    #[test]
    fn draws_follow_the_content_not_the_order() {
        let recipe = Recipe::resolve(&LoraSection::default(), &testing::config(), 5);
        let (forward, mut backward) = (rows(5), rows(5));
        backward.reverse();
        let keys = |rows: &[([u8; 32], f64)]| -> Vec<u8> { recipe.draws(rows).iter().map(|i| rows[*i].0[0]).collect() };
        assert_eq!(keys(&forward), keys(&backward));
        assert!(recipe.draws(&[]).is_empty() && recipe.draws(&[([0; 32], 0.0)]).is_empty());
    }

    #[test]
    fn replay_goes_through_all_rows_before_it_repeats_one() {
        let recipe = Recipe::resolve(&LoraSection::default(), &testing::config(), 5);
        let draws = recipe.replay_draws(20);
        assert_eq!(draws.len(), 300 * REPLAY_ROWS);
        let mut first: Vec<usize> = draws[..20].to_vec();
        first.sort_unstable();
        assert_eq!(first, (0..20).collect::<Vec<_>>());
        assert!(recipe.replay_draws(0).is_empty());
    }
}
