//! How a training gives way: to the chat, for which it waits while an answer is generated, and to the user, who can cancel it.
//!
//! A learner calls [`Courtesy::point`] at every layer boundary, or more often.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Shared by an engine and the trainings beside it: is an answer being generated right now?
#[derive(Debug, Default)]
pub struct ChatGate {
    answering: AtomicUsize,
    /// Held while `answering` falls, and by those who wait for that.
    turn: Mutex<()>,
    free: Condvar,
}

impl ChatGate {
    /// Trainings wait for as long as the returned guard lives.
    pub fn answering(self: &Arc<Self>) -> Answering {
        self.answering.fetch_add(1, Ordering::SeqCst);
        Answering(Arc::clone(self))
    }

    fn is_answering(&self) -> bool {
        self.answering.load(Ordering::SeqCst) > 0
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while an answer is generated.
#[derive(Debug)]
pub struct Answering(Arc<ChatGate>);

impl Drop for Answering {
    fn drop(&mut self) {
        let _guard = self.0.lock(); // a waiter is either before its check or asleep, never between
        self.0.answering.fetch_sub(1, Ordering::SeqCst);
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
        let _guard = self.chat.lock(); // as above
        self.chat.free.notify_all();
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Whether [`point`](Self::point) would wait, or err: then the next one should be near.
    pub fn is_wanted(&self) -> bool {
        self.chat.is_answering() || self.is_cancelled()
    }

    /// Waits while an answer is generated; an interrupted error once cancelled.
    pub fn point(&self) -> Result<()> {
        if self.is_wanted() {
            let mut turn = self.chat.lock();
            while self.chat.is_answering() && !self.is_cancelled() {
                turn = self.chat.free.wait(turn).unwrap_or_else(PoisonError::into_inner);
            }
        }
        if self.is_cancelled() { Err(Error::interrupted()) } else { Ok(()) }
    }
}
