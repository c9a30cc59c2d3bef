//! What a training learns from, and each row's loss as a pure function of its token log-probabilities.

use crate::model::Tokens;

/// One row of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub goal: Goal,
    /// Its share in the weighted mean over the step; 1 where nothing else is said.
    pub weight: f64,
}

/// What a row asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// Make the completion likely: the token mean of −log p.
    Imitate(Tokens),
    /// Stay with the base on these tokens: the token mean of KL(base ‖ adapted).
    Stay(Tokens),
}

/// A row's loss and how it depends on what the network gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    pub value: f64,
    /// dL/dlog p of every target token of every sequence of the row.
    pub d_logprobs: Vec<Vec<f32>>,
    /// dL/dKL, likewise; empty where the row does not look at the KL.
    pub d_kl: Vec<Vec<f32>>,
}

impl Row {
    pub fn imitate(tokens: Tokens, weight: f64) -> Row {
        Row { goal: Goal::Imitate(tokens), weight }
    }

    pub fn stay(tokens: Tokens, weight: f64) -> Row {
        Row { goal: Goal::Stay(tokens), weight }
    }

    /// The sequences that go through the network for this row.
    pub fn sequences(&self) -> Vec<&Tokens> {
        match &self.goal {
            Goal::Imitate(tokens) | Goal::Stay(tokens) => vec![tokens],
        }
    }

    pub fn needs_kl(&self) -> bool {
        matches!(self.goal, Goal::Stay(_))
    }

    /// Tokens that go through the network for this row.
    pub fn len(&self) -> usize {
        self.sequences().iter().map(|s| s.ids.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `logprobs` and `kl`: one list a sequence, one value a target token.
    pub fn loss(&self, logprobs: &[Vec<f32>], kl: &[Vec<f32>]) -> Loss {
        let zeros = |lists: &[Vec<f32>]| lists.iter().map(|l| vec![0.0; l.len()]).collect::<Vec<_>>();
        match &self.goal {
            Goal::Imitate(_) => {
                let n = logprobs[0].len() as f64;
                Loss {
                    value: -mean(&logprobs[0]),
                    d_logprobs: vec![vec![(-1.0 / n) as f32; logprobs[0].len()]],
                    d_kl: zeros(kl),
                }
            }
            Goal::Stay(_) => {
                let n = kl[0].len() as f64;
                Loss {
                    value: mean(&kl[0]),
                    d_logprobs: zeros(logprobs),
                    d_kl: vec![vec![(1.0 / n) as f32; kl[0].len()]],
                }
            }
        }
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gradient that `loss` states, against differences of its value.
    fn check_gradient(row: &Row, logprobs: &[Vec<f32>], kl: &[Vec<f32>]) {
        let loss = row.loss(logprobs, kl);
        let step = 1e-2f32;
        for s in 0..logprobs.len() {
            for t in 0..logprobs[s].len() {
                let at = |d: f32| {
                    let mut moved = logprobs.to_vec();
                    moved[s][t] += d;
                    row.loss(&moved, kl).value
                };
                let slope = (at(step) - at(-step)) / f64::from(2.0 * step);
                assert!((slope - f64::from(loss.d_logprobs[s][t])).abs() < 1e-4, "log p {s},{t}: {slope}");
            }
            for t in 0..kl[s].len() {
                let at = |d: f32| {
                    let mut moved = kl.to_vec();
                    moved[s][t] += d;
                    row.loss(logprobs, &moved).value
                };
                let slope = (at(step) - at(-step)) / f64::from(2.0 * step);
                assert!((slope - f64::from(loss.d_kl[s][t])).abs() < 1e-4, "kl {s},{t}: {slope}");
            }
        }
    }

    #[test]
    fn stated_gradients_are_the_slopes_of_the_losses() {
        let tokens = Tokens::new(&[1, 2], &[3, 4, 5]);
        let logprobs = vec![vec![-0.5, -2.0, -0.1]];
        let kl = vec![vec![0.2, 0.0, 0.7]];
        check_gradient(&Row::imitate(tokens.clone(), 3.0), &logprobs, &kl);
        check_gradient(&Row::stay(tokens, 1.0), &logprobs, &kl);
    }

    #[test]
    fn imitation_is_the_token_mean() {
        let row = Row::imitate(Tokens::new(&[1], &[2, 3]), 10.0);
        assert!((row.loss(&[vec![-1.0, -3.0]], &[vec![]]).value - 2.0).abs() < 1e-12);
    }
}
