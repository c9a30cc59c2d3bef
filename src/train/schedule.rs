//! Learning rate by step: linear warm-up, then cosine, linear or constant (transformers' schedules).

use serde::{Deserialize, Serialize};

/// How the rate goes on after the warm-up, in the configuration, on the command line and here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Cosine,
    Linear,
    Constant,
}

impl Shape {
    pub fn name(self) -> &'static str {
        match self {
            Shape::Cosine => "cosine",
            Shape::Linear => "linear",
            Shape::Constant => "constant",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub shape: Shape,
    pub peak: f64,
    pub warmup: usize,
    pub total: usize,
}

impl Schedule {
    /// How a training that has taken `step` steps (one at least) ends in `steps` more, none beyond its total: the rate
    /// falls in a line from where it stands.
    pub fn settling(&self, step: usize, steps: usize) -> Schedule {
        let last = step.saturating_sub(1);
        let total = self.total.min(step.saturating_add(steps));
        Schedule { shape: Shape::Linear, peak: self.rate(last), warmup: last, total }
    }

    /// Learning rate of step `k`, counted from 0; with a warm-up the first step has rate 0.
    pub fn rate(&self, k: usize) -> f64 {
        if k < self.warmup {
            return self.peak * k as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((k - self.warmup) as f64 / span).min(1.0);
        match self.shape {
            Shape::Cosine => self.peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Shape::Linear => self.peak * (1.0 - done),
            Shape::Constant => self.peak,
        }
    }
}

/// Steps of warm-up for a ratio of all steps, rounded up.
pub fn warmup_steps(ratio: f64, total: usize) -> usize {
    (ratio * total as f64).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_follows_transformers() {
        // get_cosine_schedule_with_warmup(1, 6) at 2e-3, as the golden trajectories record it
        let s = Schedule { shape: Shape::Cosine, peak: 0.002, warmup: 1, total: 6 };
        let expected = [0.0, 0.002, 0.0018090169943749475, 0.0013090169943749475, 0.0006909830056250527];
        for (k, e) in expected.into_iter().enumerate() {
            assert!((s.rate(k) - e).abs() < 1e-12, "step {k}: {} instead of {e}", s.rate(k));
        }
    }

    #[test]
    fn linear_falls_to_zero_and_constant_stays() {
        let s = |shape| Schedule { shape, peak: 1.0, warmup: 2, total: 6 };
        assert_eq!(s(Shape::Linear).rate(0), 0.0);
        assert_eq!(s(Shape::Linear).rate(1), 0.5);
        assert_eq!(s(Shape::Linear).rate(4), 0.5);
        assert_eq!(s(Shape::Linear).rate(6), 0.0);
        assert_eq!(s(Shape::Constant).rate(5), 1.0);
    }

    #[test]
    fn settling_goes_on_from_todays_rate_towards_zero() {
        let s = Schedule { shape: Shape::Constant, peak: 1.0, warmup: 2, total: 10 };
        let settling = s.settling(5, 3);
        assert_eq!((5..8).map(|k| settling.rate(k)).collect::<Vec<_>>(), [0.75, 0.5, 0.25]);
        assert_eq!((settling.total, s.settling(9, 3).total), (8, 10), "never more steps than there were to be");
        assert_eq!(s.settling(1, 3).rate(1), 0.0, "stopped in the warm-up, at a rate of 0");
    }

    #[test]
    fn a_warmup_ratio_rounds_up() {
        assert_eq!(warmup_steps(0.05, 10), 1);
        assert_eq!(warmup_steps(0.05, 100), 5);
        assert_eq!(warmup_steps(0.0, 100), 0);
    }
}
