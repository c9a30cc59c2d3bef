//! One user with a data folder of their own, who asks, rates and corrects as one does in the chat.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use finch::adapter::{active, peft, registry::Registry};
use finch::config::Config;
use finch::feedback::exchange;
use finch::feedback::{Finish, Kind, NewFeedback, NewInteraction};
use finch::learn::canaries::conversation;
use finch::learn::recipe::Recipe;
use finch::learn::round::{Ended, Receipt, Round, Trial};
use finch::model::lora::LoraWeights;
use finch::paths::Paths;
use finch::session::record_feedback;
use finch::store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::measure::Asker;
use crate::tasks::Task;

/// How the wrong answer to a task is told; a round has all kinds.
const CRITICAL: usize = 2;
const MEDIUM: usize = 2;
const CORRECTED: usize = 1;

pub struct User<'m> {
    asker: &'m Asker<'m>,
    _folder: TempDir,
    pub paths: Paths,
    pub store: Store,
    pub config: Config,
    turn: u32,
}

impl<'m> User<'m> {
    pub fn new(asker: &'m Asker<'m>) -> Result<User<'m>> {
        let folder = tempfile::tempdir()?;
        let paths = Paths::at(folder.path());
        let store = Store::open(&paths.db())?;
        Ok(User { asker, _folder: folder, paths, store, config: Config::default(), turn: 0 })
    }

    /// The adapter that answers now.
    pub fn live(&self) -> Result<Option<LoraWeights>> {
        let model = self.asker.model;
        let Some(name) = active::read(&self.paths, &model.base)?.live else { return Ok(None) };
        let adapter = Registry::new(self.paths.clone()).open(&name, model.network.config(), &model.base, false)?;
        Ok(Some(adapter.weights))
    }

    /// Ten rows of feedback: two corrections after `/critical` and two after `/medium`, each with a note, one `/correct`, the
    /// others imported as pairs; and `/good` on the model's own answers.
    pub fn give_feedback(&mut self, tasks: &[Task], praised: &[String]) -> Result<()> {
        let adapter = self.live()?;
        let prompts: Vec<&str> =
            tasks.iter().map(|t| t.question.as_str()).chain(praised.iter().map(String::as_str)).collect();
        let answers = self.asker.say(&prompts, adapter.as_ref())?;
        let (to_tasks, to_praised) = answers.split_at(tasks.len());
        let mut pairs = Vec::new();
        for (i, (task, answer)) in tasks.iter().zip(to_tasks).enumerate() {
            let kind = match i {
                0..CRITICAL => Some(Kind::Critical),
                _ if i < CRITICAL + MEDIUM => Some(Kind::Medium),
                _ => None,
            };
            if i >= CRITICAL + MEDIUM + CORRECTED {
                pairs.push(json!({
                    "messages": [{"role": "user", "content": task.question}, {"role": "assistant", "content": answer}],
                    "kind": "critical", "note": task.note, "corrected_response": task.answer,
                }));
                continue;
            }
            let interaction = self.answered(&task.question, answer)?;
            let judgement =
                kind.map(|kind| NewFeedback::new(kind, &self.config.feedback.rules()).with_note(&task.note));
            let correction = NewFeedback::correction(&task.answer, &self.config.feedback.rules());
            for new in judgement.into_iter().chain([correction]) {
                self.record(interaction, new)?;
            }
        }
        for (prompt, answer) in praised.iter().zip(to_praised) {
            let interaction = self.answered(prompt, answer)?;
            self.record(interaction, NewFeedback::new(Kind::Good, &self.config.feedback.rules()))?;
        }
        let lines: String = pairs.iter().map(|pair| format!("{pair}\n")).collect();
        let parsed = exchange::read(&mut lines.as_bytes(), &self.config.feedback.rules())?;
        ensure!(self.store.import(&parsed.rows)?.added == pairs.len(), "not all pairs were imported");
        Ok(())
    }

    fn answered(&mut self, question: &str, answer: &str) -> Result<i64> {
        let model = self.asker.model;
        self.turn += 1;
        let new = NewInteraction {
            session: "bench".into(),
            turn: self.turn,
            messages: conversation(question),
            response: answer.into(),
            model: model.name.clone(),
            base: Some(model.base.clone()),
            adapter: active::read(&self.paths, &model.base)?.live,
            thinking: model.default_thinking(),
            sampling: Value::Null,
            finish: Finish::Stop,
            timings: Value::Null,
            metadata: Value::Null,
        };
        Ok(self.store.add_interaction(&new)?.id)
    }

    fn record(&self, interaction: i64, new: NewFeedback) -> Result<()> {
        let interaction = self.store.interaction(interaction)?.context("an interaction that was just stored")?;
        record_feedback(&self.store, &self.config.feedback.rules(), None, interaction, new)?;
        Ok(())
    }

    /// finch's own round on what has come together; what it made, whether it went live or not.
    pub fn train(&self, adjust: &dyn Fn(&mut Recipe)) -> Result<(Receipt, bool)> {
        let round = Round {
            store: &self.store,
            paths: &self.paths,
            config: &self.config,
            model: self.asker.model,
            need: self.config.feedback.threshold,
            keep_interrupted: false,
            threads: self.asker.threads,
            courtesy: Arc::default(),
        };
        match round.run_trial(&Trial { adjust: Some(adjust), ..Trial::default() }, &mut |_| {})? {
            Ended::Live(receipt) => Ok((receipt, true)),
            Ended::Refused(receipt) => Ok((receipt, false)),
            other => anyhow::bail!("the round did not train: {other:?}"),
        }
    }

    /// The weights of an adapter that a round made.
    pub fn made(&self, receipt: &Receipt) -> Result<LoraWeights> {
        Ok(peft::read(&receipt.path, self.asker.model.network.config())?.weights)
    }
}
