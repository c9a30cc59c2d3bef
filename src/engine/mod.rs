//! The thread that owns a loaded model: requests in, token events out.
//!
//! An [`Engine`] answers one request after another. It knows token ids only: no text, no templates, no store. What it keeps
//! between requests are decoders (KV caches), one an adapter, so that a turn prefills from the first token that differs
//! from the turn before, and an adapter swap costs neither the base weights nor, on the way back, a second prefill.
//!
//! The chat comes first: what is written between its turns ([`Engine::generate_aside`]) has a cache of its own and ends as
//! soon as a turn waits.

mod decoders;
pub mod draft;
mod worker;

#[cfg(test)]
pub(crate) mod mock;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use crate::error::{Context, Error, Result};
use crate::model::Network;
use crate::model::config::ModelConfig;
use crate::model::courtesy::{Answering, ChatGate};
use crate::model::lora::LoraWeights;
use crate::model::sampling::Sampling;
pub use draft::Drafted;

/// Tokens of a prefill step of what is written aside: a turn of the chat waits for one such step at most.
const PREFILL_ASIDE: usize = 60;

/// Tokens of a prefill step of the chat. A cancellation waits for one at most, so the larger the network, the fewer; the more,
/// the less often each weight is widened.
pub fn prefill_chunk(config: &ModelConfig) -> usize {
    /// Multiplications of a step: less than a second of two slow cores, where the network is not too large even for the least.
    const STEP: usize = 80_000_000_000;
    /// Kernels take so many rows at once.
    const ROWS: usize = 12;
    (STEP / config.linear_numbers().max(1)).clamp(PREFILL_ASIDE, 16 * ROWS) / ROWS * ROWS
}

/// An adapter as the engine needs it: what it is called, what identifies it, what it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineAdapter {
    /// For messages.
    pub name: String,
    /// Of tensors and configuration: decoders are kept by it.
    pub digest: String,
    pub weights: LoraWeights,
}

/// One generation to do.
#[derive(Debug, Clone)]
pub struct Request {
    /// The whole prompt, not empty.
    pub ids: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Any of these ends the answer and is not part of it.
    pub stop: Vec<u32>,
    pub sampling: Sampling,
    /// On top of the base for this request; `None`: the base alone.
    pub adapter: Option<Arc<EngineAdapter>>,
    pub draft: Draft,
}

/// Where drafts of an answer come from; they make it faster or not, and no other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Draft {
    /// One token after the other.
    #[default]
    Off,
    /// From what stands in the conversation: see [`draft`].
    Prompt,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The model ended it with a stop id.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The caller cancelled it or stopped listening.
    Cancelled,
    /// A turn of the chat waits, and this was written aside: ask again, and it runs after that turn.
    Yielded,
}

/// What a finished generation did.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub reason: Reason,
    pub prompt_tokens: usize,
    /// How many of the prompt's tokens were in the cache already.
    pub reused_tokens: usize,
    /// Tokens sent as [`Event::Token`]; the stop id is not among them.
    pub generated: usize,
    pub drafted: Drafted,
    /// Seconds from the start of the work to the end of the prompt.
    pub prefill_s: f64,
    /// Seconds from there to the end.
    pub decode_s: f64,
}

/// Progress of a generation, in this order: `Prefill` (at the start and after each chunk), `Token`s, one `Done` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// `done` of the prompt's `total` tokens are in the cache, `reused` of them from earlier.
    Prefill {
        done: usize,
        total: usize,
        reused: usize,
    },
    Token(u32),
    Done(Finished),
    Failed(Error),
}

/// Stops one generation, from any thread, within a token or a prefill chunk.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A request on its way to the thread.
struct Job {
    request: Request,
    cancel: CancelFlag,
    events: Sender<Event>,
    /// Not a turn of the chat.
    aside: bool,
    /// From the asking to the end of the answer, so that a training steps aside at once.
    answering: Answering,
}

/// Handle of the thread that generates; dropping it stops a running generation and the thread.
pub struct Engine {
    jobs: Sender<Job>,
    network: Arc<dyn Network>,
    gate: Arc<ChatGate>,
    /// Turns of the chat that were asked for and not begun.
    turns: Arc<AtomicUsize>,
    shutdown: CancelFlag,
}

impl Engine {
    /// Starts the thread. Fails only when the system refuses a thread.
    pub fn start(network: Arc<dyn Network>) -> Result<Engine> {
        let (jobs, inbox) = channel();
        let shutdown = CancelFlag::new();
        let (theirs, flag) = (Arc::clone(&network), shutdown.clone());
        let turns = Arc::new(AtomicUsize::new(0));
        let waiting = Arc::clone(&turns);
        thread::Builder::new()
            .name("engine".into())
            .spawn(move || worker::run(theirs, &inbox, &waiting, &flag))
            .context("cannot start the thread that runs the model")?;
        Ok(Engine { jobs, network, gate: Arc::default(), turns, shutdown })
    }

    /// Queues a request. The last event received is `Done` or `Failed`; dropping the receiver cancels.
    pub fn generate(&self, request: Request, cancel: CancelFlag) -> Receiver<Event> {
        self.turns.fetch_add(1, Ordering::SeqCst);
        self.queue(request, cancel, false)
    }

    /// As [`Engine::generate`], for what is not a turn of the chat: it leaves the chat's cache alone, and ends with
    /// [`Reason::Yielded`] within a token, or a small step of its prompt, when a turn waits.
    pub fn generate_aside(&self, request: Request, cancel: CancelFlag) -> Receiver<Event> {
        self.queue(request, cancel, true)
    }

    fn queue(&self, request: Request, cancel: CancelFlag, aside: bool) -> Receiver<Event> {
        let (events, receiver) = channel();
        let answering = self.gate.answering();
        if let Err(refused) = self.jobs.send(Job { request, cancel, events, aside, answering }) {
            let stopped = Error::failure("the thread that runs the model has stopped").hint("restart finch");
            let _ = refused.0.events.send(Event::Failed(stopped)); // the receiver is still in our hands
        }
        receiver
    }

    /// The network behind it, for trainings and measurements beside the chat.
    pub fn network(&self) -> &Arc<dyn Network> {
        &self.network
    }

    /// What a training beside this engine waits at while an answer is generated.
    pub fn chat_gate(&self) -> Arc<ChatGate> {
        Arc::clone(&self.gate)
    }

    /// Longest prompt and answer together, in tokens.
    pub fn context(&self) -> usize {
        self.network.config().context
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown.cancel(); // the thread ends by itself once `jobs` is gone; nobody waits for its last chunk
    }
}
