//! When rounds run beside a chat: at the threshold or when asked, one at a time, giving way to every answer.
//!
//! A tokio task waits for reasons to train; the round itself runs on a thread that may block. What happens is told through
//! a channel, and only after it has happened: when `Finished` arrives, the adapter is live and its run stands in the store.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::fit::Progress;
use super::round::{Ended, Event, Receipt, Round};
use super::rows::Skipped;
use crate::config::Config;
use crate::engine::CancelFlag;
use crate::error::{Error, Result};
use crate::fsio::Holder;
use crate::model::courtesy::{ChatGate, Courtesy};
use crate::model::load::Model;
use crate::paths::Paths;
use crate::store::Store;

/// How soon a hurry is seen while a training's end is waited for.
const LOOK_UP: Duration = Duration::from_millis(50);

/// The model that answers now, and the gate at which a training waits while it does.
pub struct Subject {
    pub model: Model,
    pub chat: Arc<ChatGate>,
}

/// What a coordinator works with.
pub struct Parts {
    pub store: Arc<Store>,
    pub paths: Paths,
    pub config: Config,
    /// `None` while the model is being loaded, or could not be.
    pub subject: Box<dyn Fn() -> Option<Subject> + Send + Sync>,
    /// Done before each training's examples are read; ends soon once the courtesy is cancelled.
    pub prepare: Box<dyn Fn(&Courtesy) + Send + Sync>,
    pub threads: usize,
}

/// Why a training starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    Threshold,
    Asked,
}

/// What happened.
#[derive(Debug)]
pub enum LearnEvent {
    Started {
        trigger: Trigger,
        examples: usize,
        skipped: Vec<Skipped>,
    },
    /// The time in it is that since the training was begun, as in [`Status`].
    Progress(Progress),
    /// The steps are done; what they made is saved and measured.
    Judging,
    /// The adapter is live from the next turn on.
    Finished(Receipt),
    /// The gate refused the adapter; answers stay as they were.
    Refused(Receipt),
    /// The examples stay new.
    Cancelled {
        examples: usize,
    },
    /// The examples stay new; answers stay as they were, unless the error says otherwise.
    Failed(Error),
    /// Nothing was started. At the threshold this is told once.
    OtherProcessTrains(Holder),
}

/// What a running training is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Phase {
    /// Waiting for its turn, or asking the base for its own answers.
    Preparing,
    /// The time in it is that of the steps alone.
    Training(Progress),
    /// Saving and measuring what was trained.
    Judging,
}

/// A running training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Status {
    pub trigger: Trigger,
    /// Known once it has started.
    pub examples: Option<usize>,
    pub phase: Phase,
    pub seconds: f64,
}

/// The owner of all background training of a process; dropping it cancels what runs.
pub struct Coordinator {
    shared: Arc<Shared>,
    commands: UnboundedSender<Command>,
}

enum Command {
    /// Look whether enough is new.
    Consider,
    /// Run what [`Shared::reserve`] has made room for.
    Train,
}

struct Shared {
    parts: Parts,
    events: UnboundedSender<LearnEvent>,
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// The buffer, by its examples' stamps, of the last round that was started: it is not tried again as it is.
    tried: Option<Vec<String>>,
    told_of_other: bool,
    closing: bool,
}

struct Running {
    status: Status,
    since: Instant,
    courtesy: Arc<Courtesy>,
}

impl Coordinator {
    /// Starts the task on `runtime`; the events come through the channel.
    pub fn start(parts: Parts, runtime: &Handle) -> (Coordinator, UnboundedReceiver<LearnEvent>) {
        let (events, told) = unbounded_channel();
        let (commands, asked) = unbounded_channel();
        let shared = Arc::new(Shared { parts, events, state: Mutex::default(), idle: Condvar::new() });
        runtime.spawn(Arc::clone(&shared).attend(asked));
        (Coordinator { shared, commands }, told)
    }

    /// Feedback was recorded, or a turn has ended: trains if enough is new. Returns at once.
    pub fn consider(&self) {
        let _ = self.commands.send(Command::Consider); // without its task there is nobody to train
    }

    /// [`Coordinator::consider`] for whoever records feedback elsewhere; it keeps no coordinator alive.
    pub fn nudge(&self) -> impl Fn() + Send + use<> {
        let commands = self.commands.downgrade();
        move || {
            if let Some(commands) = commands.upgrade() {
                let _ = commands.send(Command::Consider);
            }
        }
    }

    /// Starts a training because the user asked for one. Errors say why not.
    pub fn train_now(&self) -> Result<()> {
        let subject = self.shared.subject().ok_or_else(|| {
            Error::failure("the model is not loaded, so there is nothing to train").hint("/model shows where it stands")
        })?;
        let capacity = self.shared.parts.config.feedback.buffer_capacity;
        let set = self.shared.parts.store.training_set(&subject.model.base, capacity)?;
        if set.buffer.is_empty() {
            return Err(Error::failure("there is nothing to train on yet").hint("rate answers good, or correct them"));
        }
        if set.new == 0 {
            return Err(Error::failure("there is nothing new since the last training"));
        }
        if !self.shared.reserve(Trigger::Asked) {
            return Err(Error::failure("a training is running already").hint("/train status shows how far it is"));
        }
        if self.commands.send(Command::Train).is_err() {
            self.shared.release();
            return Err(Error::failure("the training task has ended").hint("restart finch"));
        }
        Ok(())
    }

    /// The running training, if there is one.
    pub fn status(&self) -> Option<Status> {
        let state = self.shared.lock();
        state.running.as_ref().map(|r| Status { seconds: r.since.elapsed().as_secs_f64(), ..r.status })
    }

    /// Asks the running training to stop; false: none runs. It stops within a layer, and `Cancelled` tells when it has.
    pub fn cancel(&self) -> bool {
        let state = self.shared.lock();
        state.running.as_ref().map(|r| r.courtesy.cancel()).is_some()
    }

    /// Cancels the running training, starts no other, and waits until it has ended, or no longer once `hurry` is set.
    /// False: it runs on, and is to end with the process; the next run in the store marks it as abandoned. Blocks: not
    /// for async code.
    pub fn shutdown(&self, hurry: &CancelFlag) -> bool {
        let mut state = self.shared.lock();
        state.closing = true;
        if let Some(running) = &state.running {
            running.courtesy.cancel();
        }
        while state.running.is_some() && !hurry.is_cancelled() {
            state = self.shared.idle.wait_timeout(state, LOOK_UP).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.running.is_none()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.cancel();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subject(&self) -> Option<Subject> {
        (self.parts.subject)()
    }

    fn tell(&self, event: LearnEvent) {
        let _ = self.events.send(event); // nobody has to listen
    }

    /// The task: one reason after the other, one training at a time.
    async fn attend(self: Arc<Self>, mut asked: UnboundedReceiver<Command>) {
        while let Some(command) = asked.recv().await {
            let shared = Arc::clone(&self);
            let work = tokio::task::spawn_blocking(move || match command {
                Command::Consider if shared.is_due() && shared.reserve(Trigger::Threshold) => shared.train(),
                Command::Consider => {}
                Command::Train => shared.train(),
            });
            if work.await.is_err() {
                self.release();
                self.tell(LearnEvent::Failed(Error::failure("the training ended unexpectedly")));
            }
        }
        self.release(); // what was reserved and never begun
    }

    /// Whether the threshold is met by a buffer that was not tried as it is.
    fn is_due(&self) -> bool {
        let feedback = &self.parts.config.feedback;
        let Some(subject) = self.subject().filter(|_| feedback.auto_train) else { return false };
        match self.parts.store.training_set(&subject.model.base, feedback.buffer_capacity) {
            Ok(set) => {
                let stamps = stamps(set.buffer.examples(), &subject.model.base);
                set.new >= feedback.threshold && self.lock().tried.as_ref() != Some(&stamps)
            }
            Err(error) => {
                tracing::warn!("the training buffer cannot be read: {error}");
                false
            }
        }
    }

    /// Makes room for a training that begins soon; false: one runs, or finch is being left.
    fn reserve(&self, trigger: Trigger) -> bool {
        let Some(subject) = self.subject() else { return false };
        let mut state = self.lock();
        if state.running.is_some() || state.closing {
            return false;
        }
        let status = Status { trigger, examples: None, phase: Phase::Preparing, seconds: 0.0 };
        let courtesy = Arc::new(Courtesy::beside(subject.chat));
        state.running = Some(Running { status, since: Instant::now(), courtesy });
        true
    }

    fn release(&self) {
        self.lock().running = None;
        self.idle.notify_all();
    }

    /// Runs the reserved training to its end and tells what came of it.
    fn train(&self) {
        let reserved = self.lock().running.as_ref().map(|r| (r.status.trigger, Arc::clone(&r.courtesy)));
        let Some((trigger, courtesy)) = reserved else { return };
        (self.parts.prepare)(&courtesy);
        let ended = match self.subject() {
            Some(subject) => self.round(&subject, trigger, courtesy),
            None => Err(Error::failure("the model was unloaded before its training began")),
        };
        let told_before = std::mem::replace(&mut self.lock().told_of_other, matches!(ended, Ok(Ended::Busy(_))));
        let event = match ended {
            Ok(Ended::Nothing { .. }) => None, // another finch was quicker
            Ok(Ended::Busy(_)) if trigger == Trigger::Threshold && told_before => None,
            Ok(Ended::Busy(holder)) => Some(LearnEvent::OtherProcessTrains(holder)),
            Ok(Ended::Live(receipt)) => Some(LearnEvent::Finished(receipt)),
            Ok(Ended::Refused(receipt)) => Some(LearnEvent::Refused(receipt)),
            Ok(Ended::Cancelled { examples, .. }) => Some(LearnEvent::Cancelled { examples }),
            Err(error) => Some(LearnEvent::Failed(error)),
        };
        self.release(); // first, so that whoever hears of the end can start another
        event.into_iter().for_each(|event| self.tell(event));
    }

    fn round(&self, subject: &Subject, trigger: Trigger, courtesy: Arc<Courtesy>) -> Result<Ended> {
        let Parts { store, paths, config, threads, .. } = &self.parts;
        let Subject { model, .. } = subject;
        let need = match trigger {
            Trigger::Threshold => config.feedback.threshold,
            Trigger::Asked => 1,
        };
        let set = store.training_set(&model.base, config.feedback.buffer_capacity)?;
        let tried = stamps(set.buffer.examples(), &model.base);
        let round = Round { store, paths, config, model, need, keep_interrupted: false, threads: *threads, courtesy };
        let ended = round.run(&mut |event| self.follow(trigger, event));
        if !matches!(ended, Ok(Ended::Busy(_))) {
            self.lock().tried = Some(tried);
        }
        ended
    }

    fn follow(&self, trigger: Trigger, event: Event) {
        let update = |change: &dyn Fn(&mut Status)| {
            if let Some(running) = &mut self.lock().running {
                change(&mut running.status);
            }
        };
        match event {
            Event::Started { examples, skipped, .. } => {
                update(&|status| status.examples = Some(examples));
                self.tell(LearnEvent::Started { trigger, examples, skipped });
            }
            Event::Progress(progress) => {
                update(&|status| status.phase = Phase::Training(progress));
                let seconds =
                    self.lock().running.as_ref().map_or(progress.seconds, |r| r.since.elapsed().as_secs_f64());
                self.tell(LearnEvent::Progress(Progress { seconds, ..progress }));
            }
            Event::Judging => {
                update(&|status| status.phase = Phase::Judging);
                self.tell(LearnEvent::Judging);
            }
        }
    }
}

/// What a buffer holds, for a base.
fn stamps(examples: &[crate::feedback::Example], base: &str) -> Vec<String> {
    let mut stamps: Vec<String> = examples.iter().map(|e| format!("{} {}", e.interaction, e.stamp())).collect();
    stamps.push(base.to_owned());
    stamps
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;
