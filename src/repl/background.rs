//! The training behind the chat: what happens there becomes lines on the screen, when it has happened.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::printer::Printer;
use super::render_training as render;
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
    /// For the chat of `session`; news go to `printer`.
    pub fn start(session: &Session, printer: Printer, announced: Announced, runtime: &Handle) -> Background {
        let host = Arc::clone(session.host());
        let parts = Parts {
            store: Arc::clone(session.store()),
            paths: session.paths().clone(),
            config: session.config().clone(),
            subject: Box::new(move || subject(&host)),
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

    /// Asks the running training to stop; its end is told when it has.
    pub fn cancel(&self) {
        self.coordinator.cancel();
    }

    /// Stops what runs and waits until all of it is told.
    pub fn stop(self) {
        self.coordinator.shutdown();
        drop(self.coordinator);
        // The events end with the coordinator; a telling that broke has nothing more to say.
        let _ = self.runtime.block_on(self.telling);
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
        if let LearnEvent::Progress(progress) = &event {
            printer.progress(Some(render::progress(progress)));
            continue;
        }
        if let LearnEvent::Finished(receipt) = &event {
            announced.set(Some(receipt.adapter.clone()));
        }
        printer.progress(None);
        printer.say(words(&event));
    }
}

/// What is said when it has happened.
fn words(event: &LearnEvent) -> String {
    match event {
        LearnEvent::Started { trigger, skipped, .. } => render::started(*trigger, skipped),
        LearnEvent::Progress(progress) => render::progress(progress) + "\n",
        LearnEvent::Finished(receipt) => render::finished(receipt),
        LearnEvent::Refused(receipt) => render::refused(receipt),
        LearnEvent::Cancelled { examples } => render::cancelled(*examples),
        LearnEvent::Failed(error) => render::failed(error.message(), error.hint_text()),
        LearnEvent::OtherProcessTrains(holder) => render::other_trains(holder),
    }
}
