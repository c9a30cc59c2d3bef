//! The training loop: it reads from the first batch to the last step.

use super::lanes::{Lanes, StepOptions};
use super::optimizer::{AdamW, clip};
use super::row::Row;
use super::schedule::Schedule;
use crate::error::{Error, Result};
use crate::model::Learner;
use crate::model::courtesy::Courtesy;

/// How to train; everything is resolved, nothing is `auto` any more.
#[derive(Debug, Clone)]
pub struct Plan {
    pub schedule: Schedule,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    /// Probability of `lora_dropout`.
    pub dropout: f32,
    pub seed: u64,
}

/// One finished optimiser step: a row of `--metrics`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct StepReport {
    /// Counted from 1.
    pub step: usize,
    /// Weighted mean over the step's rows, before the update.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Loss of each of the step's rows.
    #[serde(skip)]
    pub row_losses: Vec<f64>,
}

/// What the caller wants after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    GoOn,
    Stop,
}

/// Where training stands: parameters and optimiser, enough to go on later.
pub struct State {
    pub params: Vec<f32>,
    pub optimizer: AdamW,
    /// Steps taken.
    pub step: usize,
}

impl State {
    pub fn new(params: Vec<f32>, weight_decay: f64) -> Self {
        let optimizer = AdamW::new(params.len(), weight_decay);
        State { params, optimizer, step: 0 }
    }
}

/// Takes the steps from `state.step` to the schedule's total.
///
/// `batch(k)` gives the rows of step k (from 0); `after(report, params)` sees each finished step and may stop the run.
/// Interruption leaves `state` as it was after the last whole step. A loss or gradient that is not finite is an error
/// within its step, before any parameter has changed.
pub fn train<'r>(
    learner: &mut dyn Learner,
    lanes: &Lanes,
    state: &mut State,
    plan: &Plan,
    courtesy: &Courtesy,
    batch: &mut dyn FnMut(usize) -> Vec<&'r Row>,
    after: &mut dyn FnMut(&StepReport, &[f32]) -> Result<Then>,
) -> Result<()> {
    while state.step < plan.schedule.total {
        courtesy.point()?;
        let rows = batch(state.step);
        let dropout = (plan.dropout > 0.0).then_some((plan.dropout, plan.seed.wrapping_add(state.step as u64)));

        learner.load(&state.params)?;
        let mut sum = lanes.step(learner, &rows, StepOptions { dropout })?;
        let grad_norm = clip(&mut sum.grads, plan.max_grad_norm);
        if !sum.loss.is_finite() || !grad_norm.is_finite() {
            return Err(not_finite(state.step + 1, sum.loss, grad_norm));
        }
        let learning_rate = plan.schedule.rate(state.step);
        state.optimizer.step(&mut state.params, &sum.grads, learning_rate);
        state.step += 1;

        let (step, loss, row_losses) = (state.step, sum.loss, sum.row_losses);
        let report = StepReport { step, loss, grad_norm, learning_rate, row_losses };
        if after(&report, &state.params)? == Then::Stop {
            break;
        }
    }
    Ok(())
}

fn not_finite(step: usize, loss: f64, grad_norm: f64) -> Error {
    Error::failure(format!("training stopped at step {step}: loss {loss}, gradient norm {grad_norm}"))
        .hint("lower the learning rate, or look for broken rows in the data")
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
