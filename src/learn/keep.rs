//! What becomes of a training, whatever its rows came from: its entry in the store from the first moment to the last, the
//! adapter's provenance, what the gate is to ask, and the registry.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::canaries::Answered;
use super::compliance::Check;
use super::fit::{Ending, Trained};
use super::gate::Evidence;
use super::held_out::Unseen;
use super::publish::{self, Candidate, Published, publish};
use crate::adapter::peft::LoraSettings;
use crate::adapter::provenance::Provenance;
use crate::error::{Context, Result};
use crate::model::Network;
use crate::model::courtesy::Courtesy;
use crate::model::load::Model;
use crate::paths::Paths;
use crate::store::{NewRun, Outcome, RunResult, Store};

/// Runs `train` as a run of the store, which is begun before it and finished after it, whatever came of it. `train` gets
/// the run's id, and leaves what it has in the result: an error is noted there as well. `started`: when the work began.
pub fn as_run<T>(
    store: &Store,
    new: &NewRun,
    started: Instant,
    train: impl FnOnce(i64, &mut RunResult) -> Result<T>,
) -> Result<T> {
    let run = store.begin_run(new)?;
    let mut result = RunResult {
        outcome: Outcome::Failed,
        reason: None,
        adapter: None,
        loss_before: None,
        loss_after: None,
        seconds: 0.0,
        curve: Vec::new(),
        gate: Value::Null,
    };
    let ended = train(run, &mut result);
    result.seconds = started.elapsed().as_secs_f64();
    match &ended {
        Ok(_) => {}
        Err(e) if e.is_interrupted() => result.outcome = Outcome::Cancelled,
        Err(e) => result.reason = Some(e.to_string()),
    }
    let noted = store.finish_run(run, &result).with_context(|| match (&result.adapter, result.outcome) {
        (Some(name), Outcome::Completed) => format!("adapter {name} is live, but its run could not be noted"),
        _ => "the run could not be noted".to_string(),
    });
    match ended {
        Err(e) if !e.is_interrupted() => Err(e),
        ended => noted.and(ended),
    }
}

/// A finished training.
pub struct Made {
    pub trained: Trained,
    pub settings: LoraSettings,
    /// Rows trained on.
    pub examples: usize,
    /// How it was trained, as an object.
    pub parameters: Value,
    pub seconds: f64,
}

impl Made {
    /// Before and after on the rows that were trained on; `None`: it was interrupted, and the state that is kept is not
    /// measured or not to be judged.
    pub fn loss(&self) -> Option<(f64, f64)> {
        let after = self.trained.after.as_ref().filter(|_| self.trained.ending != Ending::Interrupted)?;
        Some((self.trained.before.loss, after.loss))
    }

    /// What the store keeps of it, before anything is judged.
    pub fn note(&self, result: &mut RunResult) {
        result.loss_before = Some(self.trained.before.loss);
        result.loss_after = self.trained.after.as_ref().map(|figures| figures.loss);
        result.curve = self.trained.curve.iter().map(|step| step.loss).collect();
    }
}

/// What the gate asks beside the loss on the trained rows.
pub struct Exam<'a> {
    pub model: &'a Model,
    /// Rows that were not trained on.
    pub held_out: Vec<Unseen>,
    /// Corrections that were.
    pub checks: Vec<Check>,
    /// Ordinary prompts with the base's answers.
    pub watched: &'a [Answered],
}

/// Keeps the adapters of one base.
pub struct Keeper<'a> {
    pub paths: &'a Paths,
    /// The base's name and the digest of its weights.
    pub model: &'a str,
    pub base: &'a str,
    pub network: &'a dyn Network,
    /// Keep what was interrupted, as an adapter that is not live.
    pub keep_interrupted: bool,
    pub threads: usize,
    pub courtesy: &'a Arc<Courtesy>,
}

impl Keeper<'_> {
    /// All but the gate's verdict. `run`: in the store.
    pub fn provenance(&self, made: &Made, run: Option<i64>) -> Provenance {
        let Made { trained, examples, parameters, seconds, .. } = made;
        let mut parameters = parameters.clone();
        parameters["steps_taken"] = json!(trained.steps);
        parameters["ending"] = json!(trained.ending);
        Provenance {
            run,
            examples: *examples,
            parameters,
            loss_before: Some(trained.before.loss),
            loss_after: trained.after.as_ref().map(|figures| figures.loss),
            seconds: Some(*seconds),
            ..Provenance::new(self.base, self.model)
        }
    }

    /// What the gate goes by; `None`: the training was interrupted.
    pub fn evidence<'e>(&self, made: &Made, exam: &'e Exam) -> Option<Evidence<'e>> {
        Some(Evidence {
            loss: made.loss()?,
            held_out: &exam.held_out,
            corrections: Some((exam.model, &exam.checks)),
            watched: exam.watched,
            ends: &exam.model.generation.eos,
            live: publish::live(self.paths, self.network, self.base),
        })
    }

    /// Saves what the run made, judges it by `exam`, and makes it live if it passes; `result` gathers what came of it.
    /// Without an exam, or interrupted, it is only saved.
    pub fn publish(&self, run: i64, made: Made, exam: Option<&Exam>, result: &mut RunResult) -> Result<Published> {
        let provenance = self.provenance(&made, Some(run));
        let evidence = exam.and_then(|exam| self.evidence(&made, exam));
        let Made { trained, settings, .. } = made;
        let candidate = Candidate { weights: trained.weights, settings, provenance, evidence };
        let published =
            publish(self.paths, self.network, candidate, self.keep_interrupted, self.threads, self.courtesy)?;
        result.adapter = Some(published.adapter.clone());
        result.outcome = match (&published.report, published.live) {
            (None, _) => Outcome::Cancelled,
            (Some(_), true) => Outcome::Completed,
            (Some(_), false) => Outcome::Refused,
        };
        if let Some(report) = &published.report {
            result.gate = serde_json::to_value(report.provenance()?)?;
            result.reason = (!report.passed()).then(|| report.reasons.join("; "));
        }
        Ok(published)
    }
}
