//! One conversation: assemble the prompt, ask, record, rate. The REPL, one-shot use and scripts all stand on it.
//!
//! A [`Session`] belongs to one caller; what it shares with others are the store, the data folder and the loaded model.
//! Nothing here prints: answers and notices go to the caller as events, ratings come back as figures.

mod adapters;
mod again;
mod answer;
mod host;
mod lessons;
mod prompt;
mod rate;
mod revise;
mod sampling;
mod thoughts;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use chrono::Local;
use serde_json::json;

pub use adapters::AdapterNotice;
pub use again::Again;
pub use host::{Fallback, Fault, Loaded, ModelHost, ModelState};
pub use lessons::{LessonList, LessonRow, Place};
pub use rate::{Acknowledgement, BufferCounts, Undone, record_feedback};
pub use revise::{Revised, Reviser, Stage, Taken};
pub use sampling::choose as choose_sampling;

use crate::config::Config;
use crate::engine::{CancelFlag, Event, Finished, Reason, Request};
use crate::error::{Context, Error, Result};
use crate::feedback::{Finish, Interaction, NewInteraction};
use crate::model::message::Message;
use crate::model::sampling::Sampling;
use crate::paths::Paths;
use crate::store::Store;
use adapters::AdapterWatch;
use again::Retry;
use answer::{Answer, Piece};
use lessons::{Assembled, Rules};

/// What a caller may set for a conversation beside the configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    pub system: Option<String>,
    /// `Some`: force a thinking model to think or not; `None`: as [`crate::model::load::Model::default_thinking`] finds right.
    pub thinking: Option<bool>,
    /// Seed of the first answer's sampling, counted up from there; `None`: a new one each time.
    pub seed: Option<u64>,
}

/// What happens between a question and its answer, in order. All text is safe for a terminal.
#[derive(Debug, Clone, PartialEq)]
pub enum AskEvent {
    /// The model is still being loaded; the question waits.
    Loading,
    /// The configured model could not be loaded and another one answers, for the reason given. Told once.
    Model(String),
    /// Another adapter than for the turn before, or one that cannot be used.
    Adapter(AdapterNotice),
    /// `done` of the prompt's `total` tokens are read, `reused` of them from the turn before.
    Prefill {
        done: usize,
        total: usize,
        reused: usize,
    },
    /// So many lessons are not in the prompt, as the conversation leaves them no room. Told once until there is room again.
    LessonsLeftOut(usize),
    /// The model thinks before it answers.
    Thought(String),
    Text(String),
}

/// The answer that a rating without further words is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// None in this session yet.
    Nothing,
    Recorded(i64),
    /// Shown, but it could not be stored.
    Lost,
}

pub struct Session {
    id: String,
    store: Arc<Store>,
    paths: Paths,
    config: Config,
    host: Arc<ModelHost>,
    options: Options,
    /// User turns and answers so far, without the system prompt; alternating, ending in an answer.
    history: Vec<Message>,
    /// Answers recorded so far.
    turn: u32,
    last: Last,
    /// Feedback was given in this session.
    has_rated: bool,
    adapters: AdapterWatch,
    rules: Rules,
    told_model_notice: bool,
}

impl Session {
    pub fn new(store: Arc<Store>, paths: Paths, config: Config, host: Arc<ModelHost>, options: Options) -> Session {
        Session {
            id: new_id(),
            store,
            paths,
            config,
            host,
            options,
            history: Vec::new(),
            turn: 0,
            last: Last::Nothing,
            has_rated: false,
            adapters: AdapterWatch::default(),
            rules: Rules::default(),
            told_model_notice: false,
        }
    }

    /// Names the session in the store.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model, wherever its loading stands.
    pub fn host(&self) -> &Arc<ModelHost> {
        &self.host
    }

    /// Lets another model answer from the next turn on; the conversation stays.
    pub fn use_model(&mut self, host: Arc<ModelHost>) {
        self.host = host;
        self.adapters = AdapterWatch::default();
        self.told_model_notice = false;
    }

    pub fn system(&self) -> Option<&str> {
        self.options.system.as_deref()
    }

    /// Sets the system prompt for the turns to come; none if empty.
    pub fn set_system(&mut self, text: Option<String>) {
        self.options.system = text.filter(|t| !t.trim().is_empty());
    }

    /// See [`Options::thinking`].
    pub fn set_thinking(&mut self, thinking: Option<bool>) {
        self.options.thinking = thinking;
    }

    /// Forgets the conversation so far; ratings still find the last answer.
    pub fn clear(&mut self) {
        self.history.clear();
        self.rules = Rules::default();
    }

    /// The conversation so far, without the system prompt.
    pub fn history(&self) -> &[Message] {
        &self.history
    }

    /// What makes better answers out of notes beside this conversation.
    pub fn reviser(&self) -> Reviser {
        Reviser {
            store: Arc::clone(&self.store),
            paths: self.paths.clone(),
            config: self.config.clone(),
            host: Arc::clone(&self.host),
            session: Some(self.id.clone()),
        }
    }

    /// Name of the adapter that gave the last answer.
    pub fn adapter(&self) -> Option<&str> {
        self.adapters.live()
    }

    /// Asks and waits for the answer, telling what happens on the way. The answer is in the store when this returns.
    ///
    /// A cancelled answer is kept as far as it came, with [`Finish::Interrupted`]; when nothing of it had come, this is an
    /// interrupted error and nothing is recorded.
    pub fn ask(
        &mut self,
        question: &str,
        cancel: &CancelFlag,
        on_event: &mut dyn FnMut(AskEvent),
    ) -> Result<Interaction> {
        self.answer(question, None, cancel, on_event)
    }

    fn answer(
        &mut self,
        question: &str,
        retry: Option<Retry>,
        cancel: &CancelFlag,
        on_event: &mut dyn FnMut(AskEvent),
    ) -> Result<Interaction> {
        let loaded = self.wait_for_model(cancel, on_event)?;
        let (adapter, notice) = self.adapters.refresh(&self.paths, &loaded.model);
        if let Some(notice) = notice {
            on_event(AskEvent::Adapter(notice));
        }
        let thinking = self.options.thinking.or_else(|| loaded.model.default_thinking());
        let Assembled { messages, prompt, mut metadata } =
            self.assemble(&loaded, question, retry.as_ref(), thinking, on_event)?;
        let sampling = self.sampling(&loaded, thinking == Some(true) || prompt.inside_thought);
        let adapter_name = adapter.as_ref().map(|a| a.name.clone());
        let request = Request {
            ids: prompt.ids,
            max_tokens: self.config.generation.max_tokens,
            stop: loaded.model.generation.eos.clone(),
            sampling: sampling.clone(),
            adapter,
            draft: self.config.generation.draft,
        };

        let mut answer = Answer::new(&loaded.model.tokenizer, prompt.inside_thought);
        let ended = receive(&loaded, request, cancel, &mut answer, on_event);
        let (finish, timings, failure) = match ended {
            Ok(finished) if finished.reason == Reason::Cancelled && answer.is_empty() => {
                return Err(Error::interrupted());
            }
            Ok(finished) => (finish(finished.reason), timings(&finished), None),
            Err(error) if answer.is_empty() => return Err(error),
            Err(error) => (Finish::Interrupted, json!({}), Some(error)), // it was seen, so it is kept and can be rated
        };
        let Answer { text, thought, .. } = answer;
        if let Some(retry) = &retry {
            retry.note(&mut metadata);
        }
        if !thought.is_empty() {
            metadata["thought"] = json!(thought);
        }
        if let Some(error) = &failure {
            metadata["error"] = json!(error.to_string());
        }
        if !text.trim().is_empty() {
            self.history.push(Message::user(question));
            self.history.push(Message::assistant(text.clone()));
        }
        let recorded = self.record(NewInteraction {
            session: self.id.clone(),
            turn: self.turn + 1,
            messages,
            response: text,
            model: loaded.model.name.clone(),
            base: Some(loaded.model.base.clone()),
            adapter: adapter_name,
            thinking,
            sampling: sampling_json(&sampling, self.config.generation.max_tokens)?,
            finish,
            timings,
            metadata,
        });
        match failure {
            Some(error) => Err(error),
            None => recorded,
        }
    }

    fn wait_for_model(&mut self, cancel: &CancelFlag, on_event: &mut dyn FnMut(AskEvent)) -> Result<Arc<Loaded>> {
        if matches!(self.host.state(), ModelState::Loading) {
            on_event(AskEvent::Loading);
        }
        let loaded = self.host.wait(cancel)?;
        if let Some(notice) = loaded.notice.as_ref().filter(|_| !self.told_model_notice) {
            self.told_model_notice = true;
            on_event(AskEvent::Model(crate::text::sanitize(notice).into_owned()));
        }
        Ok(loaded)
    }

    fn sampling(&self, loaded: &Loaded, thinking: bool) -> Sampling {
        let seed = match self.options.seed {
            Some(first) => first.wrapping_add(u64::from(self.turn)),
            None => u64::from(rand::random::<u32>()), // 32 bits: exact in any JSON reader
        };
        let model = &loaded.model;
        sampling::choose(&self.config.generation, &model.generation, model.builtin, thinking, seed)
    }

    fn record(&mut self, new: NewInteraction) -> Result<Interaction> {
        self.last = Last::Lost;
        let interaction = self.store.add_interaction(&new).context("the answer could not be recorded")?;
        self.last = Last::Recorded(interaction.id);
        self.turn += 1;
        Ok(interaction)
    }
}

/// Feeds the engine's events into `answer` until the last one.
fn receive(
    loaded: &Loaded,
    request: Request,
    cancel: &CancelFlag,
    answer: &mut Answer,
    on_event: &mut dyn FnMut(AskEvent),
) -> Result<Finished> {
    let mut ended = Err(Error::failure("the thread that runs the model has stopped").hint("restart finch"));
    for event in loaded.engine.generate(request, cancel.clone()) {
        match event {
            Event::Prefill { done, total, reused } => on_event(AskEvent::Prefill { done, total, reused }),
            Event::Token(token) => answer.push(token, &mut |piece| on_event(piece.into())),
            Event::Done(finished) => ended = Ok(finished),
            Event::Failed(error) => ended = Err(error),
        }
    }
    answer.finish(&mut |piece| on_event(piece.into()));
    ended
}

impl From<Piece> for AskEvent {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Thought(thought) => AskEvent::Thought(thought),
            Piece::Text(text) => AskEvent::Text(text),
        }
    }
}

fn finish(reason: Reason) -> Finish {
    match reason {
        Reason::Stop => Finish::Stop,
        Reason::Length => Finish::Length,
        Reason::Cancelled | Reason::Yielded => Finish::Interrupted,
    }
}

fn timings(finished: &Finished) -> serde_json::Value {
    json!({
        "prompt_tokens": finished.prompt_tokens,
        "reused_tokens": finished.reused_tokens,
        "generated_tokens": finished.generated,
        "prefill_s": finished.prefill_s,
        "decode_s": finished.decode_s,
    })
}

fn sampling_json(sampling: &Sampling, max_tokens: usize) -> Result<serde_json::Value> {
    let mut json = serde_json::to_value(sampling)?;
    json["max_tokens"] = json!(max_tokens);
    Ok(json)
}

/// A name that sorts by time and that two finches started in the same second do not share.
fn new_id() -> String {
    format!("{}_{:08x}", Local::now().format("%Y%m%d_%H%M%S"), rand::random::<u32>())
}
