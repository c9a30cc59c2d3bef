//! How a training gives way: to the chat, for which it waits while an answer is generated, and to the user, who can cancel it.
//!
//! A learner calls [`Courtesy::point`] at every layer boundary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Shared by an engine and the trainings beside it: is an answer being generated right now?
#[derive(Debug, Default)]
pub struct ChatGate {
    answering: Mutex<usize>,
    free: Condvar,
}

impl ChatGate {
    /// Trainings wait for as long as the returned guard lives.
    pub fn answering(self: &Arc<Self>) -> Answering {
        *self.lock() += 1;
        Answering(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while an answer is generated.
#[derive(Debug)]
pub struct Answering(Arc<ChatGate>);

impl Drop for Answering {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.free.notify_all();
    }
}

/// One training's side of it; `Default` is a training with no chat beside it.
#[derive(Debug, Default)]
pub struct Courtesy {
    cancelled: AtomicBool,
    chat: Arc<ChatGate>,
}

impl Courtesy {
    pub fn beside(chat: Arc<ChatGate>) -> Self {
        Courtesy { cancelled: AtomicBool::new(false), chat }
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        let _guard = self.chat.lock(); // a waiter is either before its check or asleep, never between
        self.chat.free.notify_all();
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Waits while an answer is generated; an interrupted error once cancelled.
    pub fn point(&self) -> Result<()> {
        let mut answering = self.chat.lock();
        while *answering > 0 && !self.is_cancelled() {
            answering = self.chat.free.wait(answering).unwrap_or_else(PoisonError::into_inner);
        }
        drop(answering);
        if self.is_cancelled() { Err(Error::interrupted()) } else { Ok(()) }
    }
}
