//! One training on a data set: every number resolved first, then the steps.
//!
//! An explicit objective is exactly that loss. `auto` learns as from feedback: pairs preferred and imitated, weighted draws,
//! replay of the base's own answers, rows held out, and an end when the rows are learned.

use std::sync::Arc;

use serde_json::{Value, json};

use super::canaries::Answered;
use super::compliance;
use super::fit::{Fit, Progress, Stopping, Trained};
use super::held_out::Unseen;
use super::keep::Exam;
use super::mix::{self, Beside};
use super::recipe::{HELD_OUT_MIN, HELD_OUT_SHARE, LARGE_HELD_OUT, REPLAY_ROWS, REPLAY_WEIGHT, Recipe, SMALL_HELD_OUT};
use crate::adapter::peft::{self, Adapter, LoraSettings};
use crate::config::{Auto, LoraSection, TrainingSection, Variant};
use crate::error::{Error, Result};
use crate::model::Network;
use crate::model::config::ModelConfig;
use crate::model::courtesy::Courtesy;
use crate::model::load::Model;
use crate::model::lora::LoraWeights;
use crate::train::data::{DataRow, DataSet, Lesson, Objective};
use crate::train::order::{self, Mark, Order, steps_of};
use crate::train::row::{Row, fill_references};
use crate::train::run::StepReport;
use crate::train::schedule::warmup_steps;

/// Epochs of an explicit objective where neither steps nor epochs are given.
const EPOCHS: usize = 3;
/// Epochs without a better held-out loss after which `auto` stops.
const PATIENCE: usize = 3;

/// What is asked for beside the configuration; `None` leaves it to the objective.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub objective: Objective,
    pub order: Option<Order>,
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
    /// Weight of a replayed row; 0 is off.
    pub replay: Option<f64>,
    /// Share of the rows that is measured and not trained on; the state that is best on it is kept.
    pub held_out: Option<f64>,
}

impl Request {
    /// What a replayed row weighs; `None`: nothing is replayed.
    pub fn replay_weight(&self) -> Option<f64> {
        let default = (self.objective == Objective::Auto).then_some(REPLAY_WEIGHT);
        self.replay.or(default).filter(|weight| *weight > 0.0)
    }
}

/// A training with nothing left to decide.
pub struct Training {
    pub recipe: Recipe,
    pub order: Order,
    request: Request,
    start: LoraWeights,
    settings: LoraSettings,
    rows: Vec<Row>,
    /// Of each row, as the data set has it.
    importance: Vec<f64>,
    draws: Vec<usize>,
    replayed: Vec<Answered>,
    held_out: Vec<Row>,
    /// Where these rows and those stand in the data set.
    split: Split,
}

/// Places of rows in a data set.
struct Split {
    trained: Vec<usize>,
    held_out: Vec<usize>,
}

impl Training {
    /// Resolves the request for these rows. `init`: the adapter to start from, else a new one; `replayed`: the base's own
    /// answers, where the request wants them.
    ///
    /// Errors: no rows, rows that the objective has no use for, more warm-up than steps.
    pub fn prepare(
        network: &dyn Network,
        set: &DataSet,
        lora: &LoraSection,
        init: Option<Adapter>,
        replayed: &[Answered],
        request: Request,
    ) -> Result<Training> {
        let auto = request.objective == Objective::Auto;
        let order = request.order.unwrap_or(if auto { Order::Weighted } else { Order::File });
        let mut all = set.rows(request.objective, request.beta, request.sft_weight)?;
        if auto {
            all.iter_mut().zip(&set.rows).for_each(|(row, data)| prefer(row, &data.lesson));
        }
        let marks = set.marks();
        let split = split(&marks, &request);
        let mut rows: Vec<Row> = split.trained.iter().map(|at| all[*at].clone()).collect();
        let held_out = split.held_out.iter().map(|at| all[*at].clone()).collect();
        let marks: Vec<Mark> = split.trained.iter().map(|at| marks[*at]).collect();
        if rows.is_empty() {
            return Err(Error::failure(format!("{} has no rows to train on", set.name)));
        }
        let importance = rows.iter().map(|row| row.weight).collect();
        if order == Order::Weighted {
            rows.iter_mut().for_each(|row| row.weight = 1.0); // they act through the draws
        }
        let weight = request.replay_weight().unwrap_or_default();
        let replayed = if weight > 0.0 { replayed.to_vec() } else { Vec::new() };
        let (start, settings) = match init {
            Some(adapter) => (adapter.weights, LoraSettings { dropout: lora.dropout, ..adapter.settings }),
            None => {
                let settings = lora.settings();
                (peft::init(network, &settings, lora.training.seed)?, settings)
            }
        };
        // The numbers that `auto` stands for go by the adapter that is trained, not by that of the configuration.
        let variant = if settings.use_rslora { Variant::Rslora } else { Variant::Lora };
        let lora = LoraSection { variant, rank: settings.rank, ..lora.clone() };
        let replay_weight = if replayed.is_empty() { 0.0 } else { weight };
        let recipe = resolve(network.config(), &lora, &request, rows.len(), replay_weight)?;
        let draws = order::draws(order, &marks, recipe.steps.saturating_mul(recipe.batch_size), recipe.seed);
        Ok(Training { recipe, order, request, start, settings, rows, importance, draws, replayed, held_out, split })
    }

    /// What the gate may ask about the rows of `set`, the one that this training was prepared from: the held-out ones, of
    /// very many the first by content, and the pairs that are trained on.
    pub fn exam<'a>(&self, set: &DataSet, model: &'a Model, watched: &'a [Answered]) -> Result<Exam<'a>> {
        let at = |places: &[usize]| -> Vec<&DataRow> { places.iter().map(|at| &set.rows[*at]).collect() };
        let most = if model.network.config().is_small() { SMALL_HELD_OUT } else { LARGE_HELD_OUT };
        let mut held_out = at(&self.split.held_out);
        held_out.sort_by_key(|row| row.lesson.digest());
        let held_out = held_out.iter().filter_map(|row| Unseen::of(&row.lesson)).take(most).collect();
        let checks = compliance::checks_of_pairs(model, &at(&self.split.trained))?;
        Ok(Exam { model, held_out, checks, watched })
    }

    /// Rows that are trained on, and rows that are held out.
    pub fn sizes(&self) -> (usize, usize) {
        (self.rows.len(), self.held_out.len())
    }

    /// What the adapter's provenance keeps.
    pub fn parameters(&self) -> Result<Value> {
        let mut parameters = serde_json::to_value(&self.recipe)?;
        parameters["objective"] = json!(self.request.objective.name());
        parameters["order"] = json!(self.order.name());
        parameters["rows"] = json!(self.rows.len());
        parameters["held_out_rows"] = json!(self.held_out.len());
        if matches!(self.request.objective, Objective::Dpo | Objective::Kto) {
            parameters["beta"] = json!(self.request.beta);
        }
        if self.request.sft_weight > 0.0 {
            parameters["sft_weight"] = json!(self.request.sft_weight);
        }
        Ok(parameters)
    }

    /// Trains; see [`Fit::run`].
    pub fn run(
        mut self,
        network: &dyn Network,
        threads: usize,
        courtesy: Arc<Courtesy>,
        on_step: &mut dyn FnMut(&StepReport, &Progress) -> Result<()>,
    ) -> Result<(Trained, LoraSettings)> {
        let beside = Beside::new(&self.recipe, &self.replayed, &[]);
        // `auto` goes on until its rows are learned; an explicit objective looks at its own loss.
        let mut measured = None;
        if self.request.objective == Objective::Auto {
            measured = Some(self.rows.iter().map(mix::yardstick).collect::<Vec<_>>());
            self.held_out = self.held_out.iter().map(mix::yardstick).collect();
        }
        let learner = network.learner(&self.start, Arc::clone(&courtesy))?;
        fill_references(&mut self.rows, &*learner)?;
        fill_references(&mut self.held_out, &*learner)?;
        drop(learner);
        let patience = match self.request.objective {
            _ if self.held_out.is_empty() => None,
            Objective::Auto => Some(PATIENCE),
            _ => Some(usize::MAX), // the best state is kept, and all steps are taken
        };
        let fit = Fit {
            network,
            start: self.start,
            rows: &self.rows,
            importance: &self.importance,
            measured: measured.as_ref().unwrap_or(&self.rows),
            draws: &self.draws,
            batch: self.recipe.batch_size,
            beside: &beside,
            held_out: &self.held_out,
            plan: self.recipe.plan(),
            stopping: Stopping { learned: self.recipe.stop_at, settle: self.recipe.settle, patience },
            threads,
            courtesy,
        };
        Ok((fit.run(on_step)?, self.settings))
    }
}

/// As a correction is trained: a pair's better side is preferred, and imitated.
fn prefer(row: &mut Row, lesson: &Lesson) {
    if let Lesson::Pair { chosen, rejected } = lesson {
        *row = mix::pair(chosen.clone(), rejected.clone(), row.weight);
    }
}

/// Rows to train on, and rows to measure on: the share that is asked for; `auto` takes its own if that gives enough.
fn split(marks: &[Mark], request: &Request) -> Split {
    let auto = request.objective == Objective::Auto;
    let share = request.held_out.unwrap_or(if auto { HELD_OUT_SHARE } else { 0.0 });
    let (held_out, trained): (Vec<usize>, Vec<usize>) =
        (0..marks.len()).partition(|at| order::is_held_out(&marks[*at].key, share));
    match request.held_out.is_none() && held_out.len() < HELD_OUT_MIN {
        true => Split { trained: (0..marks.len()).collect(), held_out: Vec::new() },
        false => Split { trained, held_out },
    }
}

/// The configuration and the request in numbers, for this many trained rows.
fn resolve(
    model: &ModelConfig,
    lora: &LoraSection,
    request: &Request,
    rows: usize,
    replay_weight: f64,
) -> Result<Recipe> {
    let batch_size = lora.training.batch_size.saturating_mul(request.accumulation.max(1));
    let training = TrainingSection { batch_size, ..lora.training.clone() };
    let mut recipe = Recipe::resolve(&LoraSection { training, ..lora.clone() }, model, rows);
    let explicit = request.objective != Objective::Auto;
    if let Some(steps) = request.steps {
        (recipe.steps, recipe.stop_at) = (steps, None);
    } else if explicit && lora.training.epochs == Auto::Auto {
        (recipe.steps, recipe.stop_at) = (steps_of(EPOCHS, rows, batch_size), None);
    }
    recipe.warmup_steps = request.warmup_steps.unwrap_or(warmup_steps(lora.training.warmup_ratio, recipe.steps));
    if recipe.warmup_steps > recipe.steps {
        return Err(Error::usage(format!(
            "{} steps of warm-up are more than the {} steps of the training",
            recipe.warmup_steps, recipe.steps
        )));
    }
    recipe.replay_rows = if replay_weight > 0.0 { REPLAY_ROWS } else { 0 };
    recipe.replay_weight = replay_weight;
    Ok(recipe)
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::learn::recipe::PAIR_SFT;
    use crate::model::Tokens;
    use crate::train::data::DataRow;
    use crate::train::row::Goal;

    fn set(rows: usize) -> DataSet {
        let lesson = |i: usize| Lesson::Imitate(Tokens::new(&[1, i as u32 % 200], &[2, i as u32 / 200]));
        let row = |i| DataRow { line: i + 1, weight: 1.0 + i as f64, lesson: lesson(i), question: None };
        DataSet { name: "rows.jsonl".into(), rows: (0..rows).map(row).collect(), ..DataSet::default() }
    }

    fn request(objective: Objective) -> Request {
        Request {
            objective,
            order: None,
            steps: None,
            accumulation: 1,
            warmup_steps: None,
            beta: 0.1,
            sft_weight: 0.0,
            replay: None,
            held_out: None,
        }
    }

    fn prepare(rows: usize, request: Request) -> Result<Training> {
        Training::prepare(
            &testing::network(&testing::config(), 1),
            &set(rows),
            &LoraSection::default(),
            None,
            &[],
            request,
        )
    }

    #[test]
    fn an_explicit_objective_adapts_nothing() {
        let training = prepare(100, request(Objective::Sft)).unwrap();
        assert_eq!((training.order, training.sizes()), (Order::File, (100, 0)));
        let Recipe { steps, stop_at, replay_rows, .. } = training.recipe;
        assert_eq!((steps, stop_at, replay_rows), (75, None, 0), "three epochs at batch 4");
        assert_eq!(training.draws[..5], [0, 1, 2, 3, 4]);
        assert_eq!(training.rows[9].weight, 10.0, "weights act in the loss");
        let steps = Request { steps: Some(6), accumulation: 3, ..request(Objective::Sft) };
        let recipe = prepare(100, steps).unwrap().recipe;
        assert_eq!((recipe.steps, recipe.batch_size, recipe.warmup_steps), (6, 12, 1), "5 % of 6 rounds up");
    }

    #[test]
    fn auto_draws_by_weight_holds_out_and_stops_when_learned() {
        let training = prepare(100, request(Objective::Auto)).unwrap();
        let (trained, held_out) = training.sizes();
        assert_eq!((training.order, trained + held_out), (Order::Weighted, 100));
        assert!(held_out >= HELD_OUT_MIN && training.recipe.stop_at.is_some());
        assert!(training.rows.iter().all(|row| row.weight == 1.0), "weights act through the draws alone");
        assert_eq!(
            training.importance.iter().filter(|w| **w == 1.0).count(),
            usize::from(training.importance[0] == 1.0)
        );
        assert_eq!(prepare(10, request(Objective::Auto)).unwrap().sizes(), (10, 0), "too few to hold any out");
        let steps = Request { steps: Some(6), ..request(Objective::Auto) };
        assert_eq!(prepare(10, steps).unwrap().recipe.stop_at, None, "steps that are asked for are taken");
    }

    #[test]
    fn auto_prefers_and_imitates_a_pair_and_dpo_only_prefers() {
        let pair = |i: u32| Lesson::Pair { chosen: Tokens::new(&[1, i], &[2]), rejected: Tokens::new(&[1, i], &[3]) };
        let row = |i| DataRow { line: 1, weight: 2.0, lesson: pair(i), question: None };
        let set = DataSet { rows: (0..4).map(row).collect(), ..DataSet::default() };
        let sft = |objective| {
            let training = Training::prepare(
                &testing::network(&testing::config(), 1),
                &set,
                &LoraSection::default(),
                None,
                &[],
                request(objective),
            );
            match &training.unwrap().rows[0].goal {
                Goal::Prefer(pair) => pair.sft,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((sft(Objective::Auto), sft(Objective::Dpo)), (PAIR_SFT, 0.0));
    }

    #[test]
    fn a_share_that_is_asked_for_is_held_out() {
        let training = prepare(100, Request { held_out: Some(0.1), ..request(Objective::Sft) }).unwrap();
        let (trained, held_out) = training.sizes();
        assert!((3..25).contains(&held_out) && trained + held_out == 100, "{held_out}");
        assert_eq!(prepare(100, Request { held_out: Some(0.0), ..request(Objective::Auto) }).unwrap().sizes().1, 0);
    }

    #[test]
    fn the_gate_asks_held_out_rows_and_trained_pairs() {
        let model = testing::model(1);
        let tokens = |i: usize, answer: u32| Tokens::new(&[1, i as u32], &[answer]);
        let lesson = |i: usize| match i % 3 {
            0 => Lesson::Pair { chosen: tokens(i, 2), rejected: tokens(i, 3) },
            1 => Lesson::Judged { tokens: tokens(i, 4), good: true },
            _ => Lesson::Judged { tokens: tokens(i, 5), good: false },
        };
        let row = |i| DataRow { line: i + 1, weight: 1.0, lesson: lesson(i), question: None };
        let set = |kinds: &[usize]| DataSet {
            rows: (0..300).filter(|i| kinds.contains(&(i % 3))).map(row).collect(),
            ..DataSet::default()
        };
        let prepared = |set: &DataSet, objective| {
            let request = Request { held_out: Some(0.2), ..request(objective) };
            Training::prepare(&*model.network, set, &LoraSection::default(), None, &[], request).unwrap()
        };

        let judged = set(&[1, 2]);
        let training = prepared(&judged, Objective::Kto);
        let exam = training.exam(&judged, &model, &[]).unwrap();
        assert!(exam.checks.is_empty() && exam.held_out.len() >= HELD_OUT_MIN);
        assert!(exam.held_out.len() < training.sizes().1, "nothing is wanted of the bad ones");
        assert!(exam.held_out.iter().all(|row| mix::completion(&row.tokens) == [4] && row.rejected.is_none()));

        let pairs = set(&[0]);
        let training = prepared(&pairs, Objective::Dpo);
        let exam = training.exam(&pairs, &model, &[]).unwrap();
        assert_eq!((training.rows.len(), exam.held_out.len()), training.sizes());
        assert_eq!(exam.checks.len(), training.rows.len(), "none of those that are held out");
        assert!(exam.held_out.iter().all(|row| row.rejected.is_some()));
    }

    #[test]
    fn replay_is_autos_or_its_own_flags() {
        assert_eq!(request(Objective::Sft).replay_weight(), None);
        assert_eq!(request(Objective::Auto).replay_weight(), Some(REPLAY_WEIGHT));
        assert_eq!(Request { replay: Some(0.0), ..request(Objective::Auto) }.replay_weight(), None);
        assert_eq!(Request { replay: Some(0.5), ..request(Objective::Dpo) }.replay_weight(), Some(0.5));
    }

    #[test]
    fn bad_requests_are_told() {
        assert!(prepare(0, request(Objective::Sft)).err().unwrap().message().contains("no rows to train on"));
        let warmup = Request { steps: Some(6), warmup_steps: Some(7), ..request(Objective::Sft) };
        assert_eq!(prepare(10, warmup).err().unwrap().kind().exit_code(), 2);
    }
}
