//! What the engine's thread does: prefill in chunks, then a token at a time, until something ends it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use super::decoders::{Decoders, Slot};
use super::draft::Lookahead;
use super::{CancelFlag, Draft, Drafted, Event, Finished, Job, PREFILL_ASIDE, Reason, Request, prefill_chunk};
use crate::error::{Error, Result};
use crate::model::Network;
use crate::model::config::ModelConfig;
use crate::model::sampling::Sampler;

/// Serves jobs until every sender is gone; `turns` counts those of the chat that wait.
pub(super) fn run(network: Arc<dyn Network>, jobs: &Receiver<Job>, turns: &AtomicUsize, shutdown: &CancelFlag) {
    let config = network.config().clone();
    let mut decoders = Decoders::new(Arc::clone(&network));
    // What is written aside shares prompts with what is written aside after it; a turn of the chat ends that.
    let mut aside = Decoders::new(network);
    for Job { request, cancel, events, aside: is_aside, answering } in jobs {
        if !is_aside {
            turns.fetch_sub(1, Ordering::SeqCst);
            aside.clear();
        }
        let decoders = if is_aside { &mut aside } else { &mut decoders };
        let caller = Caller { events: &events, cancel: &cancel, shutdown, turns: is_aside.then_some(turns) };
        // The decoder in use is owned by the closure, so a panic drops it and nothing half-done stays behind.
        let outcome = catch_unwind(AssertUnwindSafe(|| answer(&config, decoders, &request, &caller)));
        drop(answering); // before the last event: whoever has seen it may count on the gate being open
        let last = match outcome {
            Ok(Ok(finished)) => Event::Done(finished),
            Ok(Err(error)) => Event::Failed(error),
            Err(panic) => Event::Failed(
                Error::panicked("the model's code", &*panic)
                    .hint("this is a fault in finch, not in what you asked; the next question starts afresh"),
            ),
        };
        let _ = events.send(last); // nobody listens any more: fine
    }
}

/// The other end of one job.
struct Caller<'a> {
    events: &'a Sender<Event>,
    cancel: &'a CancelFlag,
    shutdown: &'a CancelFlag,
    /// The turns of the chat that this job gives way to; `None`: it is one.
    turns: Option<&'a AtomicUsize>,
}

impl Caller<'_> {
    /// Why to stop now, if there is a reason.
    fn stops(&self) -> Option<Reason> {
        if self.cancel.is_cancelled() || self.shutdown.is_cancelled() {
            return Some(Reason::Cancelled);
        }
        self.turns.filter(|turns| turns.load(Ordering::SeqCst) > 0).map(|_| Reason::Yielded)
    }

    /// False when nobody listens any more.
    fn tell(&self, event: Event) -> bool {
        self.events.send(event).is_ok()
    }
}

fn answer(config: &ModelConfig, decoders: &mut Decoders, request: &Request, caller: &Caller) -> Result<Finished> {
    check(config, request)?;
    let start = Instant::now();
    let mut finished = Finished {
        reason: Reason::Cancelled,
        prompt_tokens: request.ids.len(),
        reused_tokens: 0,
        generated: 0,
        drafted: Drafted::default(),
        prefill_s: 0.0,
        decode_s: 0.0,
    };
    if let Some(reason) = caller.stops() {
        return Ok(Finished { reason, ..finished });
    }
    let (mut slot, reused) = decoders.take(request.adapter.as_deref(), &request.ids)?;
    finished.reused_tokens = reused;
    let step = if caller.turns.is_some() { PREFILL_ASIDE } else { prefill_chunk(config) };
    let prefilled = prefill(&mut slot, request, reused, step, caller)?;
    finished.prefill_s = start.elapsed().as_secs_f64();
    match prefilled {
        Ok(logits) => {
            let start = Instant::now();
            finished.reason = decode(&mut slot, request, logits, config.context, caller, &mut finished)?;
            finished.decode_s = start.elapsed().as_secs_f64();
        }
        Err(reason) => finished.reason = reason,
    }
    decoders.put_back(slot);
    Ok(finished)
}

/// Refuses what cannot work, before any work.
fn check(config: &ModelConfig, request: &Request) -> Result<()> {
    let (prompt, context) = (request.ids.len(), config.context);
    if prompt == 0 {
        return Err(Error::failure("the prompt is empty"));
    }
    if prompt >= context {
        let message = format!(
            "the conversation is too long for this model: {prompt} tokens, and its context holds {context}, answer included"
        );
        return Err(Error::failure(message).hint("/clear starts a new conversation; or ask with less text"));
    }
    if let Some(id) = request.ids.iter().find(|id| **id as usize >= config.vocab_size) {
        let message = format!("token id {id} is outside the model's vocabulary of {}", config.vocab_size);
        return Err(Error::failure(message).hint("the model's tokenizer.json does not belong to its weights"));
    }
    Ok(())
}

/// Brings the rest of the prompt into the cache, `step` tokens at a time; the logits after it, or why it stopped on the way.
fn prefill(
    slot: &mut Slot,
    request: &Request,
    reused: usize,
    step: usize,
    caller: &Caller,
) -> Result<std::result::Result<Vec<f32>, Reason>> {
    let total = request.ids.len();
    let progress = |done| caller.tell(Event::Prefill { done, total, reused });
    let mut listening = progress(reused);
    let mut logits = None;
    for chunk in request.ids[reused..].chunks(step) {
        let stops = if listening { caller.stops() } else { Some(Reason::Cancelled) };
        if let Some(reason) = stops {
            return Ok(Err(reason));
        }
        logits = Some(slot.forward(chunk)?);
        listening = progress(slot.tokens().len());
    }
    Ok(logits.filter(|_| listening).ok_or(Reason::Cancelled))
}

/// Samples, tells, appends, until a stop id, a limit or a cancellation; counts in `finished` what it told and drafted.
fn decode(
    slot: &mut Slot,
    request: &Request,
    logits: Vec<f32>,
    context: usize,
    caller: &Caller,
    finished: &mut Finished,
) -> Result<Reason> {
    let mut lookahead = Lookahead::default();
    let limit = request.max_tokens.min(context - request.ids.len()); // `check` left room
    let reason = write(slot, request, logits, limit, caller, &mut finished.generated, &mut lookahead)?;
    slot.settle(&mut lookahead);
    finished.drafted = lookahead.drafted();
    Ok(reason)
}

fn write(
    slot: &mut Slot,
    request: &Request,
    mut logits: Vec<f32>,
    limit: usize,
    caller: &Caller,
    generated: &mut usize,
    lookahead: &mut Lookahead,
) -> Result<Reason> {
    let mut sampler = Sampler::new(request.sampling.clone());
    loop {
        if let Some(reason) = caller.stops() {
            return Ok(reason);
        }
        if *generated >= limit {
            return Ok(Reason::Length);
        }
        let token = sampler.sample(&mut logits, slot.tokens())?;
        if request.stop.contains(&token) {
            return Ok(Reason::Stop);
        }
        if !caller.tell(Event::Token(token)) {
            return Ok(Reason::Cancelled);
        }
        *generated += 1;
        if *generated < limit && caller.stops().is_none() {
            logits = match request.draft {
                Draft::Off => slot.forward(&[token])?,
                // The logits after the last token of all are of no use.
                Draft::Prompt => slot.forward_ahead(lookahead, token, limit - *generated - 1)?,
            };
        }
    }
}
