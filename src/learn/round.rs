//! One training round: the store's buffer → rows → trained weights → gate → the live adapter, with all bookkeeping.
//!
//! It holds the training lock from its first look at the store to its last word about the run. It blocks, and can be
//! cancelled through its courtesy: then its examples stay new.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::canaries::{self, Answered, REPLAYED};
use super::compliance;
use super::fit::{Ending, Fit, Progress, Stopping, Trained};
use super::gate::{Evidence, Measurements};
use super::mix::{self, Beside};
use super::publish::{self, Candidate, Published, publish};
use super::recipe::{self, Recipe};
use super::rows::{self, Fault, Lesson, Skipped};
use super::split::split;
use super::variations;
use crate::adapter::peft::{self, LoraSettings};
use crate::adapter::provenance::Provenance;
use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::feedback::Example;
use crate::feedback::example::Origin;
use crate::fsio::{self, Attempt, Holder, Lock};
use crate::model::courtesy::Courtesy;
use crate::model::load::Model;
use crate::paths::Paths;
use crate::store::{NewRun, Outcome, RunResult, Store, TrainingSet};
use crate::train::lanes::Lanes;
use crate::train::row::{Row, fill_references};

/// A round to do.
pub struct Round<'a> {
    pub store: &'a Store,
    pub paths: &'a Paths,
    pub config: &'a Config,
    pub model: &'a Model,
    /// Fewest new examples to train for; with fewer nothing is done.
    pub need: usize,
    /// Keep the best state so far when interrupted, as an adapter that is not live.
    pub keep_interrupted: bool,
    /// They change the time and no bit of the result.
    pub threads: usize,
    pub courtesy: Arc<Courtesy>,
}

/// What a measurement changes about a round; the default changes nothing.
#[derive(Default)]
pub struct Trial<'a> {
    /// Changes the recipe, once it is resolved.
    pub adjust: Option<&'a dyn Fn(&mut Recipe)>,
    /// Rows for the gate to measure on, instead of those that the round would hold out.
    pub held_out: Option<&'a [Example]>,
}

/// What happens on the way.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The run stands in the store and training begins.
    Started {
        run: i64,
        examples: usize,
        skipped: Vec<Skipped>,
    },
    Progress(Progress),
    /// The steps are done; the adapter is saved and judged.
    Judging,
}

/// How a round ended without a fault.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// There is not enough to train on.
    Nothing { examples: usize, new: usize },
    /// Another process trains.
    Busy(Holder),
    /// The adapter is live, and the run stands in the store.
    Live(Receipt),
    /// The gate refused it: it is kept and not live.
    Refused(Receipt),
    /// Stopped; its examples stay new. With an adapter: the best state so far, kept and not live.
    Cancelled { examples: usize, kept: Option<Receipt> },
}

/// What a round made, every figure measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    pub run: i64,
    pub adapter: String,
    pub path: PathBuf,
    /// Rows trained on.
    pub examples: usize,
    pub skipped: Vec<Skipped>,
    pub loss_before: f64,
    /// `None`: interrupted before it could be measured.
    pub loss_after: Option<f64>,
    /// What the gate measured; `None`: it did not come to that.
    pub measured: Option<Measurements>,
    /// Why it was refused.
    pub reasons: Vec<String>,
    pub warnings: Vec<String>,
    pub steps: usize,
    pub ending: Ending,
    pub seconds: f64,
}

/// The name of the lock that a training holds, within the data folder.
pub const LOCK: &str = "training";

/// Cores to train on: all that there are.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Takes the training lock of the data folder, or says who has it.
pub fn lock(paths: &Paths) -> Result<Attempt> {
    fsio::create_private_dir(paths.root())?;
    Lock::attempt(&paths.lock(LOCK), "training")
}

/// The examples of a run, ready for training.
struct Material {
    set: TrainingSet,
    trained: Vec<Lesson>,
    /// What the steps draw from: the trained lessons, then other wordings of their questions.
    practice: Vec<Lesson>,
    held_out: Vec<Lesson>,
    faults: Vec<Fault>,
    skipped: Vec<Skipped>,
    recipe: Recipe,
    settings: LoraSettings,
}

impl Round<'_> {
    /// Runs the round, telling what happens on the way.
    ///
    /// Errors: what the configuration asks for cannot be trained, no example fits into the model's context, a loss is not
    /// finite, the disk or the network fails. The run is then marked as failed and its examples stay new.
    pub fn run(self, on_event: &mut dyn FnMut(Event)) -> Result<Ended> {
        self.run_trial(&Trial::default(), on_event)
    }

    /// As [`Round::run`], for measurements of what a round should be.
    pub fn run_trial(self, trial: &Trial, on_event: &mut dyn FnMut(Event)) -> Result<Ended> {
        let _lock = match lock(self.paths)? {
            Attempt::Acquired(lock) => lock,
            Attempt::Held(holder) => return Ok(Ended::Busy(holder)),
        };
        let set = self.store.training_set(&self.model.base, self.config.feedback.buffer_capacity)?;
        if set.buffer.is_empty() || set.new < self.need {
            return Ok(Ended::Nothing { examples: set.buffer.len(), new: set.new });
        }
        let started = Instant::now();
        let material = self.material(set, trial)?;
        let parameters = parameters(&material)?;
        let run = self.store.begin_run(&NewRun {
            model: &self.model.name,
            base: &self.model.base,
            parameters: &parameters,
            examples: material.set.buffer.examples(),
        })?;
        let examples = material.trained.len();
        on_event(Event::Started { run, examples, skipped: material.skipped.clone() });

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
        let ended = self.train(run, material, parameters, started, &mut result, on_event);
        result.seconds = started.elapsed().as_secs_f64();
        match &ended {
            Ok(_) => {}
            Err(e) if e.is_interrupted() => result.outcome = Outcome::Cancelled,
            Err(e) => result.reason = Some(e.to_string()),
        }
        let noted = self.store.finish_run(run, &result).with_context(|| match (&result.adapter, result.outcome) {
            (Some(name), Outcome::Completed) => format!("adapter {name} is live, but its run could not be noted"),
            _ => "the run could not be noted".to_string(),
        });
        match ended {
            Err(e) if e.is_interrupted() => noted.map(|()| Ended::Cancelled { examples, kept: None }),
            Err(e) => Err(e),
            Ok(ended) => noted.map(|()| ended),
        }
    }

    fn material(&self, set: TrainingSet, trial: &Trial) -> Result<Material> {
        let (lessons, skipped) = rows::lessons(self.model, set.buffer.examples())?;
        if lessons.is_empty() {
            let first = skipped.first().map(|s| format!(": {s}")).unwrap_or_default();
            return Err(Error::failure(format!("no example fits into the model's context{first}")));
        }
        let (trained, held_out) = match trial.held_out {
            Some(held_out) => (lessons, rows::lessons(self.model, held_out)?.0),
            None => split(lessons),
        };
        let mut recipe = Recipe::resolve(&self.config.lora, self.model.network.config(), trained.len());
        if let Some(adjust) = trial.adjust {
            adjust(&mut recipe);
        }
        let settings = LoraSettings { layers: recipe.layers.clone(), ..self.config.lora.settings() };
        let faults = mix::admitted(&recipe, rows::faults(self.model, &set.bad)?, trained.len());
        let practice = self.practice(set.buffer.examples(), &trained, &recipe)?;
        Ok(Material { set, trained, practice, held_out, faults, skipped, recipe, settings })
    }

    /// The trained lessons, then other wordings of them; a lesson and its wordings share its weight.
    fn practice(&self, examples: &[Example], trained: &[Lesson], recipe: &Recipe) -> Result<Vec<Lesson>> {
        let keys: HashSet<[u8; 32]> = trained.iter().map(|lesson| lesson.key).collect();
        let (mut questions, mut wordings) = (Vec::new(), Vec::new());
        for example in examples.iter().filter(|example| keys.contains(&example.content_digest())) {
            let mut all = variations::of_example(example, &REPLAYED, recipe.wordings, recipe.seed).into_iter();
            questions.extend(all.next());
            wordings.extend(all);
        }
        // A wording that is too long for the context is no loss: the question itself fits.
        let lessons = |examples: &[Example]| rows::lessons(self.model, examples).map(|(lessons, _)| lessons);
        Ok([lessons(&questions)?, lessons(&wordings)?].concat())
    }

    /// Everything between the run's first and last entry in the store; `result` gathers what the last one says.
    fn train(
        &self,
        run: i64,
        material: Material,
        parameters: Value,
        started: Instant,
        result: &mut RunResult,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Ended> {
        let (replayed, watched) = self.base_answers(material.set.buffer.examples(), &material.recipe)?;
        let trained = self.fit(&material, &replayed, on_event)?;
        let Material { set, trained: lessons, held_out, skipped, settings, .. } = material;
        let Trained { weights, ending, steps, before, after, curve, .. } = trained;
        result.loss_before = Some(before.loss);
        result.loss_after = after.as_ref().map(|figures| figures.loss);
        result.curve = curve.iter().map(|step| step.loss).collect();
        let interrupted = ending == Ending::Interrupted;
        if interrupted && !self.keep_interrupted {
            return Err(Error::interrupted());
        }

        on_event(Event::Judging);
        let mut provenance = Provenance::new(&self.model.base, &self.model.name);
        provenance.run = Some(run);
        provenance.examples = lessons.len();
        provenance.parameters = parameters;
        provenance.parameters["steps_taken"] = json!(steps);
        provenance.parameters["ending"] = json!(ending);
        (provenance.loss_before, provenance.loss_after) = (result.loss_before, result.loss_after);
        provenance.seconds = Some(started.elapsed().as_secs_f64());
        let checks = compliance::checks(self.model, set.buffer.examples())?;
        let evidence = after.filter(|_| !interrupted).map(|after| Evidence {
            loss: (before.loss, after.loss),
            held_out: &held_out,
            corrections: Some((self.model, &checks)),
            watched: &watched,
            ends: &self.model.generation.eos,
            live: publish::live(self.paths, self.model.network.as_ref(), &self.model.base),
        });
        let candidate = Candidate { weights, settings, provenance, evidence };
        let network = self.model.network.as_ref();
        let Published { adapter, path, report, live } =
            publish(self.paths, network, candidate, self.keep_interrupted, self.threads, &self.courtesy)?;

        result.adapter = Some(adapter.clone());
        if let Some(report) = &report {
            result.gate = serde_json::to_value(report.provenance()?)?;
        }
        let report_known = report.is_some();
        let report = report.unwrap_or_default();
        result.reason = (!report.reasons.is_empty()).then(|| report.reasons.join("; "));
        let receipt = Receipt {
            run,
            adapter,
            path,
            examples: lessons.len(),
            skipped,
            loss_before: before.loss,
            loss_after: result.loss_after,
            measured: report_known.then_some(report.measured),
            reasons: report.reasons,
            warnings: report.warnings,
            steps,
            ending,
            seconds: started.elapsed().as_secs_f64(),
        };
        let (outcome, ended) = match (report_known, live) {
            (true, true) => (Outcome::Completed, Ended::Live(receipt)),
            (true, false) => (Outcome::Refused, Ended::Refused(receipt)),
            (false, _) => {
                let ended = Ended::Cancelled { examples: receipt.examples, kept: Some(receipt) };
                (Outcome::Cancelled, ended)
            }
        };
        result.outcome = outcome;
        Ok(ended)
    }

    /// The base's own answers: to replay, and to watch.
    fn base_answers(&self, examples: &[Example], recipe: &Recipe) -> Result<(Vec<Answered>, Vec<Answered>)> {
        let (own, neighbours) = match self.model.network.config().is_small() {
            true => (recipe::SMALL_OWN_PROMPTS, usize::MAX),
            false => (recipe::LARGE_OWN_PROMPTS, recipe::LARGE_NEIGHBOURS),
        };
        let (mut replayed, watched) = canaries::part(self.store.unrated_prompts(&self.model.base, own)?);
        let mut corrected: Vec<&Example> = examples.iter().filter(|e| e.origin == Origin::Correction).collect();
        corrected.sort_by_key(|e| e.content_digest()); // the first ones are the same whatever came first
        let beside =
            corrected.iter().flat_map(|e| variations::beside_example(e, &REPLAYED, recipe.neighbours, recipe.seed));
        replayed.extend(beside.take(neighbours));
        let reworded = |prompt| variations::wordings(prompt, &[], recipe.replay_wordings, recipe.seed);
        replayed.extend(REPLAYED.iter().flat_map(|p| reworded(p)).map(|p| canaries::conversation(&p)));
        let taught = examples.iter().map(|e| e.messages.as_slice());
        let lanes = Lanes::for_network(self.model.network.config(), self.threads)?;
        canaries::ordinary(self.model, (replayed, watched), taught, &lanes, &self.courtesy)
    }

    fn fit(&self, material: &Material, replayed: &[Answered], on_event: &mut dyn FnMut(Event)) -> Result<Trained> {
        let Material { trained: lessons, practice, held_out, faults, recipe, settings, .. } = material;
        let network = self.model.network.as_ref();
        let start = peft::init(network, settings, recipe.seed)?;
        let mut rows: Vec<Row> = practice.iter().map(|lesson| mix::lesson(lesson, recipe)).collect();
        let mut beside = Beside::new(recipe, replayed, faults);
        let learner = network.learner(&start, Arc::clone(&self.courtesy))?;
        fill_references(&mut rows, learner.as_ref())?;
        fill_references(&mut beside.rows, learner.as_ref())?;
        drop(learner);
        let weights: Vec<_> = practice.iter().map(|l| (l.key, l.weight)).collect();
        let fit = Fit {
            network,
            start,
            rows: &rows,
            measured: &rows[..lessons.len()].iter().map(mix::yardstick).collect::<Vec<_>>(),
            importance: &lessons.iter().map(|l| l.weight).collect::<Vec<_>>(),
            draws: &recipe.draws(&weights),
            batch: recipe.batch_size,
            beside: &beside,
            held_out: &held_out.iter().map(|l| Row::imitate(l.tokens.clone(), 1.0)).collect::<Vec<_>>(),
            plan: recipe.plan(),
            stopping: Stopping { learned: recipe.stop_at, settle: recipe.settle, patience: None },
            threads: self.threads,
            courtesy: Arc::clone(&self.courtesy),
        };
        fit.run(&mut |_, progress| {
            on_event(Event::Progress(*progress));
            Ok(())
        })
    }
}

/// What the store and the adapter's provenance say about how it was trained.
fn parameters(material: &Material) -> Result<Value> {
    let Material { trained, practice, held_out, faults, recipe, settings, .. } = material;
    let mut parameters = serde_json::to_value(recipe)?;
    let pairs = trained.iter().filter(|lesson| lesson.rejected.is_some()).count();
    let more = json!({
        "objective": "auto",
        "pair_rows": pairs,
        "bad_rows": faults.len(),
        "order": "weighted",
        "rank": settings.rank,
        "alpha": settings.alpha,
        "targets": settings.targets.iter().map(|t| t.name()).collect::<Vec<_>>(),
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "rows": trained.len(),
        "wordings_trained": practice.len() - trained.len(),
        "held_out_rows": held_out.len(),
    });
    if let (Value::Object(parameters), Value::Object(more)) = (&mut parameters, more) {
        parameters.extend(more);
    }
    Ok(parameters)
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
