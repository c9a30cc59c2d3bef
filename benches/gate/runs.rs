//! One training each: a user's small buffer, spoiled in one of several ways or not at all, and what the gate makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use finch::adapter::peft;
use finch::adapter::provenance::Provenance;
use finch::config::{Auto, Config};
use finch::error::Result;
use finch::feedback::example::Origin;
use finch::feedback::{Example, Finish, NewFeedback, NewInteraction};
use finch::learn::canaries::{self, conversation};
use finch::learn::gate::Evidence;
use finch::learn::publish::{Candidate, publish};
use finch::learn::recipe::Recipe;
use finch::learn::round::{Ended, Round, Trial};
use finch::model::courtesy::Courtesy;
use finch::model::load::Model;
use finch::model::message::Message;
use finch::paths::Paths;
use finch::store::Store;
use finch::train::lanes::Lanes;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

/// Corrections that a run trains; each has two paraphrases held out.
const CORRECTIONS: usize = 6;
/// Answered well already, and praised.
const PRAISED: [&str; 3] = ["What is an adapter?", "How do I undo the last commit?", "Hello!"];

/// How a run is spoiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Healthy,
    LearningRate,
    Shuffled,
    Garbage,
    OneRow,
    NanInLoss,
    NanInWeights,
    Swapped,
}

impl Kind {
    pub const SABOTAGED: [Kind; 7] = [
        Kind::LearningRate,
        Kind::Shuffled,
        Kind::Garbage,
        Kind::OneRow,
        Kind::NanInLoss,
        Kind::NanInWeights,
        Kind::Swapped,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Healthy => "healthy",
            Kind::LearningRate => "learning rate x 1000",
            Kind::Shuffled => "shuffled completions",
            Kind::Garbage => "garbage completions",
            Kind::OneRow => "one row x 1000",
            Kind::NanInLoss => "NaN in a row's weight",
            Kind::NanInWeights => "NaN in the weights",
            Kind::Swapped => "chosen and rejected swapped",
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub live: bool,
    /// Why it is not live: the gate's reasons, or the error that stopped it.
    pub why: String,
    /// The gate's figures, where it came to that.
    pub measured: serde_json::Value,
}

#[derive(Debug, Clone, Deserialize)]
struct Taught {
    question: String,
    answer: String,
    note: String,
    paraphrases: Vec<String>,
}

/// What all runs share.
pub struct Ground {
    model: Model,
    taught: Vec<Taught>,
    /// The base's own answers.
    own: BTreeMap<String, String>,
    steps: usize,
}

impl Ground {
    /// `steps`: the most that a training takes.
    pub fn new(model: Model, steps: usize) -> Result<Ground> {
        #[derive(Deserialize)]
        struct File {
            lesson: Vec<Taught>,
        }
        let file: File = toml::from_str(include_str!("lessons.toml")).expect("the file beside this one");
        let taught = file.lesson;
        let mut own = BTreeMap::new();
        let questions = taught.iter().flat_map(|t| std::iter::once(&t.question).chain(&t.paraphrases));
        let lanes = Lanes::shared(64);
        for question in questions.cloned().chain(PRAISED.map(String::from)) {
            let answered = canaries::answer(&model, &[conversation(&question)], 64, &lanes, &Courtesy::default())?;
            own.insert(question, model.tokenizer.decode(&answered[0].answer));
        }
        Ok(Ground { model, taught, own, steps })
    }

    /// One run in a data folder of its own; `seed` chooses what it is taught.
    pub fn run(&self, kind: Kind, seed: u64) -> Result<Outcome> {
        let folder = tempfile::tempdir()?;
        let paths = Paths::at(folder.path());
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut taught: Vec<&Taught> = self.taught.iter().collect();
        taught.shuffle(&mut rng);
        taught.truncate(CORRECTIONS);
        if kind == Kind::NanInWeights {
            return self.broken_weights(&paths);
        }
        let mut config = Config::default();
        config.lora.training.max_steps = self.steps;
        config.lora.training.seed = seed;
        if kind == Kind::LearningRate {
            config.lora.training.learning_rate = Auto::Value(1.0);
        }
        let store = Store::open(&paths.db())?;
        self.fill(&store, &config, &taught, kind, &mut rng)?;
        let held_out = self.held_out(&taught);
        let broken = |recipe: &mut Recipe| recipe.replay_weight = f64::NAN;
        let adjust = (kind == Kind::NanInLoss).then_some(&broken as &dyn Fn(&mut Recipe));
        let round = Round {
            store: &store,
            paths: &paths,
            config: &config,
            model: &self.model,
            need: 1,
            keep_interrupted: false,
            threads: 1,
            courtesy: Arc::default(),
        };
        let (live, why, measured) = match round.run_trial(&Trial { adjust, held_out: Some(&held_out) }, &mut |_| {}) {
            Ok(Ended::Live(receipt)) => (true, String::new(), receipt.measured),
            Ok(Ended::Refused(receipt)) => (false, receipt.reasons.join("; "), receipt.measured),
            Ok(other) => (false, format!("{other:?}"), None),
            Err(error) => (false, error.to_string(), None),
        };
        Ok(Outcome { live, why, measured: serde_json::to_value(measured)? })
    }

    /// Rates and corrects as a user would, or as one who wants to do harm.
    fn fill(
        &self,
        store: &Store,
        config: &Config,
        taught: &[&Taught],
        kind: Kind,
        rng: &mut Xoshiro256PlusPlus,
    ) -> Result<()> {
        let rules = config.feedback.rules();
        let ask = |question: &str, response: &str| -> Result<i64> {
            let new = NewInteraction {
                session: "bench".into(),
                turn: 1,
                messages: vec![Message::user(question)],
                response: response.into(),
                model: self.model.name.clone(),
                base: Some(self.model.base.clone()),
                adapter: None,
                thinking: None,
                sampling: serde_json::json!({}),
                finish: Finish::Stop,
                timings: serde_json::json!({}),
                metadata: serde_json::json!({}),
            };
            Ok(store.add_interaction(&new)?.id)
        };
        for (i, taught_one) in taught.iter().enumerate() {
            let Taught { question, answer, note, .. } = taught_one;
            let own = &self.own[question];
            let (response, better) = match kind {
                Kind::Shuffled => (own.clone(), taught[(i + 1) % taught.len()].answer.clone()),
                Kind::Garbage => (own.clone(), garbage(rng)),
                Kind::Swapped => (answer.clone(), own.clone()),
                _ => (own.clone(), answer.clone()),
            };
            let mut given = NewFeedback::correction(better, &rules).with_note(note.clone());
            if kind == Kind::OneRow && i == 0 {
                given.weight *= 1000.0;
            }
            store.add_feedback(ask(question, &response)?, given)?;
        }
        for question in PRAISED {
            let given = NewFeedback::new(finch::feedback::Kind::Good, &rules);
            store.add_feedback(ask(question, &self.own[question])?, given)?;
        }
        Ok(())
    }

    /// Honest, whatever is trained: the lessons' paraphrases with the right answers.
    fn held_out(&self, taught: &[&Taught]) -> Vec<Example> {
        let row = |taught: &Taught, question: &String| Example {
            interaction: 0,
            messages: conversation(question),
            completion: taught.answer.clone(),
            rejected: Some(self.own[question].clone()),
            weight: 1.0,
            thinking: None,
            origin: Origin::Correction,
            note: None,
        };
        taught.iter().flat_map(|t| t.paraphrases.iter().map(|question| row(t, question))).collect()
    }

    /// What a training with broken arithmetic would hand over, with the best of losses.
    fn broken_weights(&self, paths: &Paths) -> Result<Outcome> {
        let network = self.model.network.as_ref();
        let settings = Config::default().lora.settings();
        let mut weights = peft::init(network, &settings, 1)?;
        let middle = weights.data.len() / 2;
        weights.data[middle] = f32::NAN;
        let evidence = Evidence {
            loss: (2.0, 0.1),
            held_out: &[],
            corrections: None,
            watched: &[],
            ends: &self.model.generation.eos,
            live: None,
        };
        let provenance = Provenance::new(&self.model.base, &self.model.name);
        let candidate = Candidate { weights, settings, provenance, evidence: Some(evidence) };
        let published = publish(paths, network, candidate, false, 1, &Arc::default());
        let (live, why) = match published {
            Ok(published) => (published.live, published.report.map(|r| r.reasons.join("; ")).unwrap_or_default()),
            Err(error) => (false, error.to_string()),
        };
        Ok(Outcome { live, why, measured: serde_json::Value::Null })
    }
}

fn garbage(rng: &mut Xoshiro256PlusPlus) -> String {
    let word = |rng: &mut Xoshiro256PlusPlus| -> String {
        (0..rng.random_range(2..8)).map(|_| char::from(b'a' + rng.random_range(0..26u8))).collect()
    };
    (0..rng.random_range(5..15)).map(|_| word(rng)).collect::<Vec<_>>().join(" ")
}
