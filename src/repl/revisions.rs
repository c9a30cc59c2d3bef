//! Better answers behind the chat: made while the prompt waits for the next line, offered above it, decided by a word.
//!
//! One thread makes them, one at a time; every turn of the chat goes first. At most one offer is open. What is offered is
//! on disk with its rating, so an offer that nobody answers is found again by `/buffer review`.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::printer::Printer;
use super::render_revision as render;
use super::views;
use crate::engine::CancelFlag;
use crate::error::{Error, Result};
use crate::feedback::revision::{Case, Fault, Proposal};
use crate::session::{Revised, Reviser, Stage, Taken};

/// How often a wait for the end of all work looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(30);

/// What is to happen with an answer that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The user decides.
    Offer,
    /// It is recorded, and then shown.
    Accept,
}

/// A better answer that the user is asked about.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    pub case: Case,
    pub proposal: Proposal,
    /// It need not be about the last answer.
    pub earlier: bool,
}

/// The thread and what it works on; cheap to clone.
#[derive(Clone)]
pub struct Revisions {
    shared: Arc<Shared>,
}

struct Shared {
    reviser: Reviser,
    printer: Printer,
    state: Mutex<State>,
    changed: Condvar,
    /// Called after an answer was accepted without the user's word.
    accepted: Mutex<Option<Box<dyn Fn() + Send>>>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Shown one after the other, each when the offer before it is decided.
    review: VecDeque<Case>,
    /// Stops what is being made now.
    making: Option<CancelFlag>,
    offer: Option<Offer>,
    /// Ratings for which nothing passed here: not tried again by itself.
    tried: HashSet<i64>,
    closing: bool,
}

enum Job {
    Make(Case, Manner),
    /// Everything that still waits is made and accepted.
    CatchUp,
    Review(Case),
}

impl Revisions {
    pub fn start(reviser: Reviser, printer: Printer) -> Result<Revisions> {
        let shared = Arc::new(Shared {
            reviser,
            printer,
            state: Mutex::default(),
            changed: Condvar::new(),
            accepted: Mutex::default(),
        });
        let worker = Arc::clone(&shared);
        let started = thread::Builder::new().name("revisions".into()).spawn(move || worker.work());
        started.map_err(|e| Error::from(e).context("cannot start background work"))?;
        Ok(Revisions { shared })
    }

    /// From now on `hear` is called after each answer that was accepted without the user's word: it is on disk then.
    pub fn when_accepted(&self, hear: impl Fn() + Send + 'static) {
        *self.shared.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hear));
    }

    /// Makes a better answer as soon as the chat leaves time for it.
    pub fn make(&self, case: Case, manner: Manner) {
        self.shared.change(|state| state.queue.push_back(Job::Make(case, manner)));
    }

    /// Makes and accepts what waits from before, but for what was tried or rejected.
    pub fn catch_up(&self) {
        self.shared.change(|state| state.queue.push_back(Job::CatchUp));
    }

    /// As [`Revisions::catch_up`], and waits until it is done or `stop` says that it need not be.
    pub fn settle(&self, stop: &dyn Fn() -> bool) {
        self.catch_up();
        let mut state = self.shared.lock();
        while (state.making.is_some() || !state.queue.is_empty()) && !state.closing && !stop() {
            state = self.shared.changed.wait_timeout(state, GLANCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Offers these one after the other; a proposal from before is shown as it is.
    pub fn review(&self, cases: Vec<Case>) {
        self.shared.change(|state| {
            state.offer = None;
            state.review = cases.into();
        });
    }

    /// Something is being made or will be.
    pub fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        state.making.is_some() || !state.queue.is_empty()
    }

    /// The offer that a word decides now.
    pub fn offer(&self) -> Option<Offer> {
        self.shared.lock().offer.clone()
    }

    /// The offer is decided; a review goes on with the next.
    pub fn decided(&self) {
        self.shared.change(|state| state.offer = None);
    }

    /// The user went on to something else: the offer stays on disk, a review ends.
    pub fn leave_offer(&self) {
        self.shared.change(|state| {
            state.offer = None;
            state.review.clear();
        });
    }

    /// Stops what is being made and forgets what was to be.
    pub fn cancel(&self) {
        self.shared.change(|state| {
            state.queue.clear();
            state.review.clear();
            state.making.iter().for_each(CancelFlag::cancel);
        });
    }

    /// Nothing is made any more. What is being written ends within a token, and nobody waits for it.
    pub fn stop(&self) {
        self.cancel();
        self.shared.change(|state| state.closing = true);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// The thread: one job after the other until the end.
    fn work(&self) {
        while let Some((job, cancel)) = self.next() {
            let done = self.carry_out(job, &cancel);
            self.printer.progress(None);
            if let Err(error) = done
                && !error.is_interrupted()
            {
                self.printer.say(render::failed(error.message(), error.hint_text()));
            }
            self.change(|state| state.making = None);
        }
    }

    /// Waits for the next job; from then on it counts as being made.
    fn next(&self) -> Option<(Job, CancelFlag)> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            let reviewed = |state: &mut State| match state.offer {
                None => state.review.pop_front().map(Job::Review),
                Some(_) => None,
            };
            if let Some(job) = state.queue.pop_front().or_else(|| reviewed(&mut state)) {
                let cancel = CancelFlag::new();
                state.making = Some(cancel.clone());
                return Some((job, cancel));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn carry_out(&self, job: Job, cancel: &CancelFlag) -> Result<()> {
        match job {
            Job::Make(case, Manner::Offer) => self.offer(case, cancel, false),
            Job::Make(case, Manner::Accept) => self.accept(&case, cancel, false),
            Job::Review(case) => {
                self.printer.say(render::reviewed(&views::about(&case.interaction)));
                match Proposal::of(&case.rating).filter(|proposal| !proposal.rejected) {
                    Some(proposal) => {
                        self.open(Offer { case, proposal, earlier: true });
                        Ok(())
                    }
                    None => self.offer(case, cancel, true),
                }
            }
            Job::CatchUp => {
                let tried = self.lock().tried.clone();
                for case in self.reviser.undecided(cancel)? {
                    if !tried.contains(&case.rating.id) {
                        self.accept(&case, cancel, true)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// `earlier`: it need not be about the last answer.
    fn offer(&self, case: Case, cancel: &CancelFlag, earlier: bool) -> Result<()> {
        match self.reviser.make(&case, cancel, &mut |stage| self.show(stage))? {
            Revised::Proposed(proposal) => self.open(Offer { case, proposal, earlier }),
            Revised::NonePassed(faults) => self.none_passed(&case, &faults, earlier),
            Revised::Settled => {}
        }
        Ok(())
    }

    fn accept(&self, case: &Case, cancel: &CancelFlag, earlier: bool) -> Result<()> {
        match self.reviser.take(case, cancel, &mut |stage| self.show(stage))? {
            Taken::Recorded { text, weight } => {
                self.printer.say(render::accepted_by_itself(case.note(), &text, weight, "/undo"));
                if let Some(hear) = &*self.accepted.lock().unwrap_or_else(PoisonError::into_inner) {
                    hear();
                }
            }
            Taken::NonePassed(faults) => {
                self.lock().tried.insert(case.rating.id);
                self.none_passed(case, &faults, earlier);
            }
            Taken::Settled => {}
        }
        Ok(())
    }

    fn show(&self, stage: Stage) {
        self.printer.progress(Some(render::progress(stage)));
    }

    fn none_passed(&self, case: &Case, faults: &[Fault], earlier: bool) {
        let earlier = earlier.then_some(&case.interaction);
        self.printer.say(render::none_passed(faults, self.reviser.notes_are_lessons(), earlier));
    }

    /// Open before it is shown: whoever answers what stands there is understood.
    fn open(&self, offer: Offer) {
        let shown = render::offer(offer.case.note(), &offer.proposal.text);
        self.change(|state| state.offer = Some(offer));
        self.printer.say(shown);
    }
}
