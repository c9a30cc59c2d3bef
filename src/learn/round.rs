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
use super::gate::Measurements;
use super::held_out::Unseen;
use super::keep::{self, Exam, Keeper, Made};
use super::mix::{self, Beside};
use super::recipe::{self, Recipe};
use super::rows::{self, Fault, Lesson, Skipped};
use super::split::split;
use super::variations;
use crate::adapter::peft::{self, LoraSettings};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::feedback::Example;
use crate::feedback::example::Origin;
use crate::fsio::{self, Attempt, Holder, Lock};
use crate::model::courtesy::Courtesy;
use crate::model::load::Model;
use crate::paths::Paths;
use crate::store::{NewRun, RunResult, Store, TrainingSet};
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

/// Who trains on the data folder now, in this process or in another; `None`: nobody does.
pub fn trainer(paths: &Paths) -> Result<Option<Holder>> {
    Lock::holder(&paths.lock(LOCK))
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
        let Material { set, .. } = &material;
        let (model, base) = (self.model.name.as_str(), self.model.base.as_str());
        let new = NewRun { model, base, parameters: &parameters, examples: set.buffer.examples() };
        let examples = material.trained.len();
        let ended = keep::as_run(self.store, &new, started, |run, result| {
            on_event(Event::Started { run, examples, skipped: material.skipped.clone() });
            self.train(run, &material, parameters.clone(), started, result, on_event)
        });
        match ended {
            Err(e) if e.is_interrupted() => Ok(Ended::Cancelled { examples, kept: None }),
            ended => ended,
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
        material: &Material,
        parameters: Value,
        started: Instant,
        result: &mut RunResult,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Ended> {
        let Material { set, trained: lessons, held_out, skipped, settings, .. } = material;
        let (replayed, watched) = self.base_answers(set.buffer.examples(), &material.recipe)?;
        let trained = self.fit(material, &replayed, on_event)?;
        let seconds = started.elapsed().as_secs_f64();
        let made = Made { trained, settings: settings.clone(), examples: lessons.len(), parameters, seconds };
        made.note(result);
        let Trained { ending, steps, before, .. } = &made.trained;
        let (ending, steps, loss_before) = (*ending, *steps, before.loss);
        if ending == Ending::Interrupted && !self.keep_interrupted {
            return Err(Error::interrupted());
        }

        on_event(Event::Judging);
        let exam = Exam {
            model: self.model,
            held_out: held_out.iter().map(Unseen::from).collect(),
            checks: compliance::checks(self.model, set.buffer.examples())?,
            watched: &watched,
        };
        let published = self.keeper().publish(run, made, Some(&exam), result)?;
        let judged = published.report.is_some();
        let report = published.report.unwrap_or_default();
        let receipt = Receipt {
            run,
            adapter: published.adapter,
            path: published.path,
            examples: lessons.len(),
            skipped: skipped.clone(),
            loss_before,
            loss_after: result.loss_after,
            measured: judged.then_some(report.measured),
            reasons: report.reasons,
            warnings: report.warnings,
            steps,
            ending,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok(match (judged, published.live) {
            (true, true) => Ended::Live(receipt),
            (true, false) => Ended::Refused(receipt),
            (false, _) => Ended::Cancelled { examples: receipt.examples, kept: Some(receipt) },
        })
    }

    fn keeper(&self) -> Keeper<'_> {
        Keeper {
            paths: self.paths,
            model: &self.model.name,
            base: &self.model.base,
            network: self.model.network.as_ref(),
            keep_interrupted: self.keep_interrupted,
            threads: self.threads,
            courtesy: &self.courtesy,
        }
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
