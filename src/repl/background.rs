//! The training behind the chat: what happens there becomes lines on the screen, when it has happened.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::printer::Printer;
use super::render_training as render;
use super::revisions::Revisions;
use crate::config::Revise;
use crate::engine::CancelFlag;
use crate::error::Result;
use crate::learn::coordinator::{Coordinator, LearnEvent, Parts, Status, Subject};
use crate::learn::round::default_threads;
use crate::session::{ModelHost, ModelState, Session};

/// The adapter that the user was last told about: no need to say it again with the next answer.
#[derive(Clone, Default)]
pub struct Announced(Arc<Mutex<Option<String>>>);

impl Announced {
    pub fn set(&self, name: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    /// The name, once.
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The coordinator and the task that tells of it.
pub struct Background {
    coordinator: Coordinator,
    telling: JoinHandle<()>,
    runtime: Handle,
}

impl Background {
    /// For the chat of `session`; news go to `printer`. Where the configuration makes better answers by itself, a training
    /// waits for `revisions`.
    pub fn start(
        session: &Session,
        printer: Printer,
        announced: Announced,
        revisions: Revisions,
        runtime: &Handle,
    ) -> Background {
        let always = session.config().feedback.revise == Revise::Always;
        let host = Arc::clone(session.host());
        let parts = Parts {
            store: Arc::clone(session.store()),
            paths: session.paths().clone(),
            config: session.config().clone(),
            subject: Box::new(move || subject(&host)),
            prepare: Box::new(move |courtesy| {
                if always {
                    revisions.settle(&|| courtesy.is_cancelled());
                }
            }),
            threads: default_threads(),
        };
        let (coordinator, events) = Coordinator::start(parts, runtime);
        let telling = runtime.spawn(tell(events, printer, announced));
        Background { coordinator, telling, runtime: runtime.clone() }
    }

    pub fn status(&self) -> Option<Status> {
        self.coordinator.status()
    }

    /// Starts a training because the user asked; errors say why not.
    pub fn train_now(&self) -> Result<()> {
        self.coordinator.train_now()
    }

    /// Starts a training if enough is new; for after every turn and every feedback.
    pub fn consider(&self) {
        self.coordinator.consider();
    }

    /// As [`Background::consider`], for feedback that comes from another thread.
    pub fn nudge(&self) -> impl Fn() + Send + use<> {
        self.coordinator.nudge()
    }

    /// Asks the running training to stop; its end is told when it has.
    pub fn cancel(&self) {
        self.coordinator.cancel();
    }

    /// Stops what runs and waits until all of it is told, or no longer once `hurry` is set. False: a training runs on,
    /// to end with the process.
    pub fn stop(self, hurry: &CancelFlag) -> bool {
        let stopped = self.coordinator.shutdown(hurry);
        drop(self.coordinator);
        if stopped {
            // The events end with the coordinator; a telling that broke has nothing more to say.
            let _ = self.runtime.block_on(self.telling);
        }
        stopped
    }
}

fn subject(host: &ModelHost) -> Option<Subject> {
    match host.state() {
        ModelState::Ready(loaded) => Some(Subject { model: loaded.model.clone(), chat: loaded.engine.chat_gate() }),
        ModelState::Loading | ModelState::Failed(_) => None,
    }
}

async fn tell(mut events: UnboundedReceiver<LearnEvent>, printer: Printer, announced: Announced) {
    while let Some(event) = events.recv().await {
        if let LearnEvent::Finished(receipt) = &event {
            announced.set(Some(receipt.adapter.clone()));
        }
        let (lines, progress) = words(&event);
        printer.progress(progress);
        if let Some(lines) = lines {
            printer.say(lines);
        }
    }
}

/// What is said when it has happened: lines that stay, and the one that shows what goes on from then.
fn words(event: &LearnEvent) -> (Option<String>, Option<String>) {
    let over = |lines| (Some(lines), None);
    match event {
        LearnEvent::Started { trigger, skipped, .. } => {
            (Some(render::started(*trigger, skipped)), Some(render::PREPARING.to_string()))
        }
        LearnEvent::Progress(progress) => (None, Some(render::progress(progress))),
        LearnEvent::Judging => (None, Some(render::JUDGING.to_string())),
        LearnEvent::Finished(receipt) => over(render::finished(receipt)),
        LearnEvent::Refused(receipt) => over(render::refused(receipt)),
        LearnEvent::Cancelled { examples } => over(render::cancelled(*examples)),
        LearnEvent::Failed(error) => over(render::failed(error.message(), error.hint_text())),
        LearnEvent::OtherProcessTrains(holder) => over(render::other_trains(holder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::coordinator::Trigger;

    #[test]
    fn while_a_training_runs_a_line_shows_what_it_does() {
        let started = LearnEvent::Started { trigger: Trigger::Asked, examples: 4, skipped: Vec::new() };
        let (lines, doing) = words(&started);
        assert!(lines.is_some_and(|l| l.contains("🔄 Starting")) && doing.is_some_and(|d| d.contains("preparing")));
        let (lines, doing) = words(&LearnEvent::Judging);
        assert!(lines.is_none() && doing.is_some_and(|d| d.contains("judging")));
        let (lines, doing) = words(&LearnEvent::Cancelled { examples: 4 });
        assert!(lines.is_some_and(|l| l.contains("stay new")) && doing.is_none());
    }
}
