//! Where an adapter trained on a data set goes: into a folder of the user's choice, or through the gate into the registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::data::Subject;
use super::screen::{JUDGING, Spinner};
use crate::adapter::peft::{Adapter, LoraSettings};
use crate::adapter::provenance::Provenance;
use crate::adapter::registry;
use crate::commands::ground::Ground;
use crate::error::{Context, Result};
use crate::learn::canaries::Answered;
use crate::learn::fit::{Ending, Trained};
use crate::learn::gate::{self, Evidence, Report};
use crate::learn::publish::{self, Candidate, Published, publish};
use crate::learn::round;
use crate::model::courtesy::Courtesy;
use crate::store::{NewRun, Outcome, RunResult};

/// A finished training.
pub struct Made {
    pub trained: Trained,
    pub settings: LoraSettings,
    /// Rows trained on.
    pub examples: usize,
    pub seconds: f64,
}

/// The steps in short.
pub struct Steps {
    pub ending: Ending,
    /// Steps taken, and steps after which the kept state stood.
    pub steps: usize,
    pub step: usize,
}

/// An adapter that is on disk.
pub struct Kept {
    pub trained: Steps,
    pub examples: usize,
    /// Before and after; absent where it was not measured.
    pub loss: Option<(f64, f64)>,
    pub held_out: Option<(f64, f64)>,
    pub seconds: f64,
    pub path: PathBuf,
    /// Its name in the registry.
    pub adapter: Option<String>,
    /// `None`: it was not judged.
    pub report: Option<Report>,
    pub live: bool,
}

/// Knows where the adapter goes.
pub struct Keeper<'a> {
    pub ground: &'a Ground,
    pub subject: &'a Subject,
    /// `None`: the registry.
    pub output: Option<&'a Path>,
    /// What the gate looks at; `None`: it is not asked.
    pub watched: Option<&'a [Answered]>,
    pub courtesy: Arc<Courtesy>,
}

impl Keeper<'_> {
    /// Trains and keeps what came of it. A training whose adapter goes into the registry stands in the store as a run.
    pub fn around(&self, parameters: &Value, train: impl FnOnce() -> Result<Made>) -> Result<Kept> {
        let Some(output) = self.output else { return self.around_run(parameters, train) };
        let made = train()?;
        let (provenance, mut kept) = self.describe(&made, parameters.clone(), None);
        kept.path = output.to_path_buf();
        let evidence = self.evidence(&kept);
        let adapter = Adapter::new(made.trained.weights, made.settings);
        registry::save_folder(output, &adapter, &provenance)?;
        if let Some(evidence) = evidence {
            let _shown = Spinner::start(JUDGING);
            let (network, threads) = (&*self.subject.network, round::default_threads());
            let report = gate::inspect(network, output, &adapter.weights, &evidence, threads, &self.courtesy);
            let report = report.context("the adapter is saved, but could not be judged")?;
            Provenance { gate: Some(report.provenance()?), ..provenance }.write(output)?;
            kept.report = Some(report);
        }
        Ok(kept)
    }

    fn around_run(&self, parameters: &Value, train: impl FnOnce() -> Result<Made>) -> Result<Kept> {
        let store = self.ground.store()?;
        let (model, base) = (&self.subject.name, &self.subject.digest);
        let run = store.begin_run(&NewRun { model, base, parameters, examples: &[] })?;
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
        let kept = train().and_then(|made| {
            result.curve = made.trained.curve.iter().map(|step| step.loss).collect();
            self.publish(made, parameters.clone(), run)
        });
        match &kept {
            Ok(kept) => {
                result.adapter = kept.adapter.clone();
                (result.loss_before, result.loss_after) = kept.loss.unzip();
                result.seconds = kept.seconds;
                result.outcome = match &kept.report {
                    None => Outcome::Cancelled,
                    Some(report) if report.passed() => Outcome::Completed,
                    Some(_) => Outcome::Refused,
                };
                if let Some(report) = &kept.report {
                    result.gate = serde_json::to_value(report.provenance()?)?;
                    result.reason = (!report.passed()).then(|| report.reasons.join("; "));
                }
            }
            Err(e) if e.is_interrupted() => result.outcome = Outcome::Cancelled,
            Err(e) => result.reason = Some(e.to_string()),
        }
        store.finish_run(run, &result).context("the run could not be noted")?;
        kept
    }

    fn publish(&self, made: Made, parameters: Value, run: i64) -> Result<Kept> {
        let (provenance, mut kept) = self.describe(&made, parameters, Some(run));
        let evidence = self.evidence(&kept);
        let Made { trained, settings, .. } = made;
        let candidate = Candidate { weights: trained.weights, settings, provenance, evidence };
        let network = &*self.subject.network;
        let _shown = candidate.evidence.is_some().then(|| Spinner::start(JUDGING));
        let Published { adapter, path, report, live } =
            publish(&self.ground.paths, network, candidate, true, round::default_threads(), &self.courtesy)?;
        if report.is_none() {
            kept.trained.ending = Ending::Interrupted; // amid the judging, at the latest
        }
        Ok(Kept { path, adapter: Some(adapter), report, live, ..kept })
    }

    /// What the gate goes by; `None`: it is not asked, or has nothing to go by.
    fn evidence(&self, kept: &Kept) -> Option<Evidence<'_>> {
        let ends = self.subject.model.as_ref().map_or(&[][..], |model| &model.generation.eos);
        let loss = kept.loss.filter(|_| kept.trained.ending != Ending::Interrupted)?;
        let live = publish::live(&self.ground.paths, &*self.subject.network, &self.subject.digest);
        Some(Evidence { loss, held_out: &[], corrections: None, watched: self.watched?, ends, live })
    }

    fn describe(&self, made: &Made, mut parameters: Value, run: Option<i64>) -> (Provenance, Kept) {
        let Made { trained, examples, seconds, .. } = made;
        let Trained { ending, steps, kept_step, before, after, .. } = trained;
        parameters["steps_taken"] = json!(steps);
        parameters["ending"] = json!(ending);
        let after = after.as_ref();
        let provenance = Provenance {
            run,
            examples: *examples,
            parameters,
            loss_before: Some(before.loss),
            loss_after: after.map(|figures| figures.loss),
            seconds: Some(*seconds),
            ..Provenance::new(&self.subject.digest, &self.subject.name)
        };
        let kept = Kept {
            trained: Steps { ending: *ending, steps: *steps, step: *kept_step },
            examples: *examples,
            loss: after.map(|after| (before.loss, after.loss)),
            held_out: before.held_out.zip(after.and_then(|after| after.held_out)),
            seconds: *seconds,
            path: PathBuf::new(),
            adapter: None,
            report: None,
            live: false,
        };
        (provenance, kept)
    }
}
