//! What a training learns from, and each row's loss as a pure function of its token log-probabilities.

use crate::error::Result;
use crate::model::{Learner, Tokens};

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
    /// Prefer one completion to another (DPO, Rafailov et al. 2023; DPOP, Pal et al. 2024).
    Prefer(Prefer),
    /// Move towards a good completion or away from a bad one (apo_zero_unpaired, D'Oosterlinck et al. 2024, as in TRL).
    Judge(Judge),
}

/// −log σ(β·(d − λ·max(0, lp_ref(chosen) − lp(chosen)))) + s·SFT(chosen), with
/// d = (lp − lp_ref)(chosen) − (lp − lp_ref)(rejected) and lp the sum over the completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Prefer {
    pub chosen: Tokens,
    pub rejected: Tokens,
    pub beta: f64,
    /// λ of DPOP; 0 is plain DPO.
    pub dpop: f64,
    /// s, the share of the chosen side's own likelihood; 0 is plain DPO.
    pub sft: f64,
    /// lp_ref of chosen and rejected; see [`fill_references`].
    pub reference: Option<[f64; 2]>,
}

/// Good: 1 − σ(β·r), bad: σ(β·r), with r = lp − lp_ref.
#[derive(Debug, Clone, PartialEq)]
pub struct Judge {
    pub tokens: Tokens,
    pub good: bool,
    pub beta: f64,
    /// lp_ref; see [`fill_references`].
    pub reference: Option<f64>,
}

/// Computes the reference log-probabilities (adapter off) of the rows that need them, once for a whole training.
pub fn fill_references(rows: &mut [Row], learner: &dyn Learner) -> Result<()> {
    let sum = |lists: &[Vec<f32>]| -> Vec<f64> { lists.iter().map(|l| total(l)).collect() };
    for row in rows {
        match &mut row.goal {
            Goal::Prefer(p) if p.reference.is_none() => {
                let lp = sum(&learner.reference(&[&p.chosen, &p.rejected])?);
                p.reference = Some([lp[0], lp[1]]);
            }
            Goal::Judge(j) if j.reference.is_none() => {
                j.reference = sum(&learner.reference(&[&j.tokens])?).first().copied();
            }
            _ => {}
        }
    }
    Ok(())
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
            Goal::Prefer(p) => vec![&p.chosen, &p.rejected],
            Goal::Judge(j) => vec![&j.tokens],
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

    /// `logprobs` and `kl`: one list a sequence, one value a target token. A missing reference gives NaN, which stops the
    /// training: it is never taken for zero.
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
            Goal::Prefer(p) => {
                let [ref_chosen, ref_rejected] = p.reference.unwrap_or([f64::NAN; 2]);
                let lp_chosen = total(&logprobs[0]);
                let shortfall = (ref_chosen - lp_chosen).max(0.0);
                let d = (lp_chosen - ref_chosen) - (total(&logprobs[1]) - ref_rejected);
                let margin = p.beta * (d - p.dpop * shortfall);
                // d/dm of −log σ(m) is −σ(−m)
                let slope = -sigmoid(-margin) * p.beta;
                let n = logprobs[0].len() as f64;
                let for_chosen = slope * (1.0 + if shortfall > 0.0 { p.dpop } else { 0.0 }) - p.sft / n;
                Loss {
                    value: softplus(-margin) - p.sft * mean(&logprobs[0]),
                    d_logprobs: vec![
                        vec![for_chosen as f32; logprobs[0].len()],
                        vec![-slope as f32; logprobs[1].len()],
                    ],
                    d_kl: zeros(kl),
                }
            }
            Goal::Judge(j) => {
                let s = sigmoid(j.beta * (total(&logprobs[0]) - j.reference.unwrap_or(f64::NAN)));
                let sign = if j.good { -1.0 } else { 1.0 };
                Loss {
                    value: if j.good { 1.0 - s } else { s },
                    d_logprobs: vec![vec![(sign * s * (1.0 - s) * j.beta) as f32; logprobs[0].len()]],
                    d_kl: zeros(kl),
                }
            }
        }
    }
}

fn total(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum()
}

fn mean(values: &[f32]) -> f64 {
    total(values) / values.len() as f64
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// log(1 + eˣ) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
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
        check_gradient(&Row::stay(tokens.clone(), 1.0), &logprobs, &kl);
        for good in [true, false] {
            let judge = Judge { tokens: tokens.clone(), good, beta: 0.3, reference: Some(-2.0) };
            check_gradient(&Row { goal: Goal::Judge(judge), weight: 1.0 }, &logprobs, &kl);
        }
        for (dpop, sft, reference) in [(0.0, 0.0, [-3.0, -1.0]), (5.0, 0.0, [-1.0, -1.0]), (5.0, 0.7, [-3.0, -2.0])] {
            let rejected = Tokens::new(&[1, 2], &[6, 7]);
            let prefer = Prefer { chosen: tokens.clone(), rejected, beta: 0.2, dpop, sft, reference: Some(reference) };
            let both = [logprobs[0].clone(), vec![-0.3, -0.9]];
            check_gradient(&Row { goal: Goal::Prefer(prefer), weight: 1.0 }, &both, &[vec![], vec![]]);
        }
    }

    #[test]
    fn preference_begins_at_log_two_and_falls_with_the_margin() {
        let loss = |chosen: f32| {
            let (chosen_tokens, rejected) = (Tokens::new(&[1], &[2]), Tokens::new(&[1], &[3]));
            let reference = Some([-1.0, -1.0]);
            let prefer = Prefer { chosen: chosen_tokens, rejected, beta: 0.1, dpop: 0.0, sft: 0.0, reference };
            Row { goal: Goal::Prefer(prefer), weight: 1.0 }.loss(&[vec![chosen], vec![-1.0]], &[vec![], vec![]]).value
        };
        assert!((loss(-1.0) - std::f64::consts::LN_2).abs() < 1e-9);
        assert!(loss(-0.5) < loss(-1.0));
    }

    #[test]
    fn a_missing_reference_is_not_taken_for_zero() {
        let judge = Judge { tokens: Tokens::new(&[1], &[2]), good: true, beta: 0.1, reference: None };
        assert!(Row { goal: Goal::Judge(judge), weight: 1.0 }.loss(&[vec![-1.0]], &[vec![]]).value.is_nan());
    }

    #[test]
    fn imitation_is_the_token_mean() {
        let row = Row::imitate(Tokens::new(&[1], &[2, 3]), 10.0);
        assert!((row.loss(&[vec![-1.0, -3.0]], &[vec![]]).value - 2.0).abs() < 1e-12);
    }
}
