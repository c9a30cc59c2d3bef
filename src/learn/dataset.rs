//! One training on a data set with an objective of its own choice: exactly that loss, every number resolved beforehand.

use std::sync::Arc;

use serde_json::json;

use super::fit::{Fit, Progress, Stopping, Trained};
use super::recipe::{LARGE_LEARNING_RATE, SMALL_LEARNING_RATE};
use crate::adapter::peft::{self, Adapter, LoraSettings};
use crate::config::{Auto, LoraSection};
use crate::error::{Error, Result};
use crate::model::Network;
use crate::model::courtesy::Courtesy;
use crate::model::lora::LoraWeights;
use crate::train::data::{DataSet, Objective};
use crate::train::order::{self, Order};
use crate::train::row::{Row, fill_references};
use crate::train::run::{Plan, StepReport};
use crate::train::schedule::{Schedule, warmup_steps};

/// Epochs where neither steps nor epochs are given.
const EPOCHS: usize = 3;

/// What is asked for beside the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Not `Auto`.
    pub objective: Objective,
    pub order: Order,
    /// Overrides epochs; the schedule's total.
    pub steps: Option<usize>,
    /// Forwards of an optimiser step.
    pub accumulation: usize,
    /// Overrides the ratio.
    pub warmup_steps: Option<usize>,
    /// Pull to the reference (dpo, kto).
    pub beta: f64,
    /// Weight of the chosen side's own likelihood (dpo).
    pub sft_weight: f64,
    /// Share of the rows that is measured and not trained on; the state that is best on it is kept.
    pub held_out: Option<f64>,
}

/// A training with nothing left to decide.
pub struct Training {
    pub start: LoraWeights,
    pub settings: LoraSettings,
    pub plan: Plan,
    pub rows_a_step: usize,
    rows: Vec<Row>,
    importance: Vec<f64>,
    draws: Vec<usize>,
    held_out: Vec<Row>,
    request: Request,
}

impl Training {
    /// Resolves the request for these rows; `init`: the adapter to start from, else a new one.
    ///
    /// Errors: no rows, rows that the objective has no use for, numbers outside their range.
    pub fn prepare(
        network: &dyn Network,
        set: &DataSet,
        lora: &LoraSection,
        init: Option<Adapter>,
        request: Request,
    ) -> Result<Training> {
        let Request { objective, order, beta, sft_weight, .. } = request;
        let marks = set.marks();
        let all = set.rows(objective, beta, sft_weight)?;
        let share = request.held_out.unwrap_or(0.0);
        let (mut rows, mut trained_marks, mut held_out) = (Vec::new(), Vec::new(), Vec::new());
        for (row, mark) in all.into_iter().zip(marks) {
            if order::is_held_out(&mark.key, share) {
                held_out.push(row);
            } else {
                trained_marks.push(mark);
                rows.push(row);
            }
        }
        if rows.is_empty() {
            return Err(Error::failure(format!("{} has no rows to train on", set.name)));
        }
        let importance = rows.iter().map(|row| row.weight).collect();
        if order == Order::Weighted {
            rows.iter_mut().for_each(|row| row.weight = 1.0); // they act through the draws
        }
        let rows_a_step = lora.training.batch_size.saturating_mul(request.accumulation.max(1));
        let plan = plan(network, lora, &request, rows.len(), rows_a_step)?;
        let needed = plan.schedule.total.saturating_mul(rows_a_step);
        let draws = order::draws(order, &trained_marks, needed, plan.seed);
        let (start, settings) = match init {
            Some(adapter) => (adapter.weights, LoraSettings { dropout: lora.dropout, ..adapter.settings }),
            None => {
                let settings = lora.settings()?;
                (peft::init(network.config(), &settings, plan.seed), settings)
            }
        };
        Ok(Training { start, settings, plan, rows_a_step, rows, importance, draws, held_out, request })
    }

    /// Rows that are trained on, and rows that are held out.
    pub fn sizes(&self) -> (usize, usize) {
        (self.rows.len(), self.held_out.len())
    }

    /// What `finch.json` keeps.
    pub fn parameters(&self) -> serde_json::Value {
        let Schedule { shape, peak, warmup, total } = self.plan.schedule;
        let mut parameters = json!({
            "objective": self.request.objective.name(),
            "order": self.request.order.name(),
            "steps": total,
            "rows_a_step": self.rows_a_step,
            "learning_rate": peak,
            "schedule": shape,
            "warmup_steps": warmup,
            "weight_decay": self.plan.weight_decay,
            "max_grad_norm": Some(self.plan.max_grad_norm).filter(|norm| norm.is_finite()),
            "dropout": self.plan.dropout,
            "seed": self.plan.seed,
        });
        if self.request.objective != Objective::Sft {
            parameters["beta"] = json!(self.request.beta);
        }
        if self.request.sft_weight > 0.0 {
            parameters["sft_weight"] = json!(self.request.sft_weight);
        }
        parameters
    }

    /// Trains; see [`Fit::run`].
    pub fn run(
        mut self,
        network: &dyn Network,
        threads: usize,
        courtesy: Arc<Courtesy>,
        on_step: &mut dyn FnMut(&StepReport, &Progress) -> Result<()>,
    ) -> Result<(Trained, LoraSettings)> {
        let learner = network.learner(&self.start, Arc::clone(&courtesy))?;
        fill_references(&mut self.rows, &*learner)?;
        fill_references(&mut self.held_out, &*learner)?;
        drop(learner);
        let fit = Fit {
            network,
            start: self.start,
            rows: &self.rows,
            importance: &self.importance,
            draws: &self.draws,
            batch: self.rows_a_step,
            replay: &[],
            replay_draws: &[],
            replay_batch: 0,
            held_out: &self.held_out,
            plan: self.plan,
            // All steps are taken; with held-out rows the best state is kept.
            stopping: Stopping { learned: None, patience: (!self.held_out.is_empty()).then_some(usize::MAX) },
            threads,
            courtesy,
        };
        Ok((fit.run(on_step)?, self.settings))
    }
}

fn plan(network: &dyn Network, lora: &LoraSection, request: &Request, rows: usize, rows_a_step: usize) -> Result<Plan> {
    let training = &lora.training;
    let total = match (request.steps, training.epochs) {
        (Some(steps), _) => steps,
        (None, Auto::Value(epochs)) => order::steps_of(epochs, rows, rows_a_step),
        (None, Auto::Auto) => order::steps_of(EPOCHS, rows, rows_a_step),
    };
    let auto = if network.config().is_small() { SMALL_LEARNING_RATE } else { LARGE_LEARNING_RATE };
    let warmup = request.warmup_steps.unwrap_or_else(|| warmup_steps(training.warmup_ratio, total));
    if warmup > total {
        return Err(Error::usage(format!("{warmup} steps of warm-up are more than the {total} steps of the training")));
    }
    Ok(Plan {
        schedule: Schedule {
            shape: training.schedule,
            peak: training.learning_rate.value().unwrap_or(auto),
            warmup,
            total,
        },
        weight_decay: training.weight_decay,
        max_grad_norm: if training.max_grad_norm > 0.0 { training.max_grad_norm } else { f64::INFINITY },
        dropout: lora.dropout,
        seed: training.seed,
    })
}
