//! The parts of `finch bench`: what each does, timed. What is compared is measured in turn, so that other work on the
//! machine meets both.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::adapter::peft::{LoraSettings, init};
use crate::cli::BenchPart;
use crate::engine::draft::Lookahead;
use crate::engine::{CancelFlag, Draft, Engine, Event, Request, prefill_chunk};
use crate::error::{Error, Result};
use crate::model::courtesy::Courtesy;
use crate::model::lora::LoraWeights;
use crate::model::sampling::Sampling;
use crate::model::{Decoder, Network, Tokens};
use crate::train::lanes::Lanes;
use crate::train::row::Row;
use crate::train::run::{Plan, State, Then, train};
use crate::train::schedule::{Schedule, Shape};

/// Tokens of the prompt that is read, and of the answer that is written behind one token.
const READ: usize = 512;
const WRITTEN: usize = 64;
/// Rows of a training step, and tokens of each; the second half of a row is the completion.
const ROWS: usize = 4;
const ROW_TOKENS: usize = 256;
/// Tokens of the text that a drafted answer quotes, and the one in how many that it changes.
const QUOTED: usize = 256;
const EDITED: usize = 16;
/// Tokens of a question to the chat.
const QUESTION: usize = 64;
/// Between answers beside a training, so that it is in the midst of its work again.
const PAUSE: Duration = Duration::from_millis(200);

/// One quantity, measured several times.
pub struct Measured {
    /// In the table.
    pub name: &'static str,
    /// What its keys in the JSON begin with.
    pub key: &'static str,
    pub unit: Unit,
    /// In ascending order, one a measurement, never empty.
    pub values: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Tokens a second, over this many tokens.
    Rate {
        tokens: usize,
    },
    Seconds,
    /// Of two that were measured in turn.
    Ratio,
}

impl Measured {
    /// `values` in any order, the first of which warmed up and does not count.
    pub fn new(name: &'static str, key: &'static str, unit: Unit, values: &[f64]) -> Measured {
        let mut values = values.iter().skip(1).copied().collect::<Vec<_>>();
        values.sort_by(f64::total_cmp);
        Measured { name, key, unit, values }
    }

    fn rate(name: &'static str, key: &'static str, tokens: usize, seconds: &[f64]) -> Measured {
        let rates: Vec<f64> = seconds.iter().map(|seconds| tokens as f64 / seconds).collect();
        Self::new(name, key, Unit::Rate { tokens }, &rates)
    }

    pub fn median(&self) -> f64 {
        let middle = self.values.len() / 2;
        match self.values.len() % 2 {
            0 => (self.values[middle - 1] + self.values[middle]) / 2.0,
            _ => self.values[middle],
        }
    }

    pub fn lowest(&self) -> f64 {
        self.values[0]
    }

    pub fn highest(&self) -> f64 {
        self.values[self.values.len() - 1]
    }
}

/// What the parts run on.
pub struct Work<'a> {
    pub network: &'a Arc<dyn Network>,
    pub adapter: Option<&'a LoraWeights>,
    /// Measurements of each part, the first of which warms up and is not counted.
    pub times: usize,
    pub threads: usize,
}

impl Work<'_> {
    /// Measures a part; loading is measured before there is a network.
    pub fn measure(&self, part: BenchPart) -> Result<Vec<Measured>> {
        let context = self.network.config().context;
        let written = WRITTEN.min(context.saturating_sub(1));
        match part {
            BenchPart::Load => Ok(Vec::new()),
            BenchPart::Prefill => self.prefill(READ.min(context)),
            BenchPart::Decode => self.decode(written),
            BenchPart::Adapter => self.with_adapter(written),
            BenchPart::Swap => self.swap(),
            BenchPart::Draft => self.draft(WRITTEN.min(context / 3), QUOTED.min(context / 3)),
            BenchPart::Training => self.training(ROW_TOKENS.min(context)),
            BenchPart::Chat => self.chat(WRITTEN.min(context / 2), QUESTION.min(context / 2)),
        }
    }

    /// Ids spread over the vocabulary.
    fn ids(&self, tokens: usize) -> Vec<u32> {
        (0..tokens).map(|i| (i * 37 % self.network.config().vocab_size) as u32).collect()
    }

    /// Reads a prompt into an empty cache, as the chat does: in chunks between which it can be cancelled.
    fn prefill(&self, tokens: usize) -> Result<Vec<Measured>> {
        let (ids, mut decoder) = (self.ids(tokens), self.network.decoder(self.adapter)?);
        let step = prefill_chunk(self.network.config());
        let seconds = (0..self.times).map(|_| {
            decoder.truncate(0);
            timed(|| ids.chunks(step).try_for_each(|chunk| decoder.forward(chunk).map(drop)))
        });
        Ok(vec![Measured::rate("prefill", "prefill", tokens, &seconds.collect::<Result<Vec<_>>>()?)])
    }

    /// Writes behind one token. Which tokens is settled beforehand: choosing is no work of the network.
    fn decode(&self, tokens: usize) -> Result<Vec<Measured>> {
        let (ids, mut decoder) = (self.ids(1 + tokens), self.network.decoder(self.adapter)?);
        let seconds = (0..self.times).map(|_| write(&mut *decoder, &ids)).collect::<Result<Vec<_>>>()?;
        Ok(vec![Measured::rate("decode", "decode", tokens, &seconds)])
    }

    /// As [`Work::decode`] under an adapter, a new one unless one was named, and in turn without.
    fn with_adapter(&self, tokens: usize) -> Result<Vec<Measured>> {
        let fresh = self.fresh(1)?;
        let (mut with, mut without) =
            (self.network.decoder(Some(self.adapter.unwrap_or(&fresh)))?, self.network.decoder(None)?);
        let (ids, mut seconds, mut ratios) = (self.ids(1 + tokens), Vec::new(), Vec::new());
        for _ in 0..self.times {
            let (adapted, bare) = (write(&mut *with, &ids)?, write(&mut *without, &ids)?);
            seconds.push(adapted);
            ratios.push(bare / adapted);
        }
        Ok(vec![
            Measured::rate("with an adapter", "adapter_decode", tokens, &seconds),
            Measured::new("to without", "adapter_decode_ratio", Unit::Ratio, &ratios),
        ])
    }

    /// From an adapter in memory to a decoder that runs it, two in turn.
    fn swap(&self) -> Result<Vec<Measured>> {
        let adapters = [self.fresh(1)?, self.fresh(2)?];
        let mut live = None;
        let seconds = (0..self.times).map(|n| {
            timed(|| {
                live = Some(self.network.decoder(Some(&adapters[n % 2]))?);
                Ok(())
            })
        });
        let seconds = seconds.collect::<Result<Vec<_>>>()?;
        drop(live);
        Ok(vec![Measured::new("adapter swap", "swap", Unit::Seconds, &seconds)])
    }

    /// A rank 16 adapter on all linear layers; its numbers are no matter.
    fn fresh(&self, seed: u64) -> Result<LoraWeights> {
        let mut weights = init(&**self.network, &LoraSettings::default(), seed)?;
        weights.data.iter_mut().filter(|value| **value == 0.0).for_each(|value| *value = 1e-3);
        Ok(weights)
    }

    /// Writes what stood in the prompt, with a change now and then, with drafts from there and in turn without.
    fn draft(&self, tokens: usize, quoted: usize) -> Result<Vec<Measured>> {
        let (mut decoder, prompt) = (self.network.decoder(self.adapter)?, self.ids(quoted));
        let other = |id: u32| (id + 1) % self.network.config().vocab_size as u32;
        let edited = |(at, id): (usize, &u32)| if at % EDITED == EDITED - 1 { other(*id) } else { *id };
        let answer: Vec<u32> = prompt.iter().take(tokens).enumerate().map(edited).collect();
        decoder.forward(&prompt)?;
        let (mut seconds, mut ratios, mut share) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.times {
            decoder.truncate(prompt.len());
            let (mut lookahead, mut all) = (Lookahead::default(), prompt.clone());
            let drafted = timed(|| {
                let left = (0..answer.len()).rev();
                let mut next = answer.iter().zip(left);
                next.try_for_each(|(id, most)| lookahead.forward(&mut *decoder, &mut all, *id, most).map(drop))
            })?;
            decoder.truncate(prompt.len());
            let plain = timed(|| answer.iter().try_for_each(|id| decoder.forward(&[*id]).map(drop)))?;
            seconds.push(drafted);
            ratios.push(plain / drafted);
            share.push(lookahead.drafted().accepted as f64 / answer.len() as f64);
        }
        Ok(vec![
            Measured::rate("quotes, drafted", "draft_decode", answer.len(), &seconds),
            Measured::new("to without", "draft_decode_ratio", Unit::Ratio, &ratios),
            Measured::new("from drafts", "draft_share", Unit::Ratio, &share),
        ])
    }

    /// Steps of the training loop on a new adapter of rank 16 on all linear layers.
    fn training(&self, row_tokens: usize) -> Result<Vec<Measured>> {
        let (mut seconds, mut started) = (Vec::new(), Instant::now());
        self.train(row_tokens, &Arc::default(), self.times, &mut || {
            seconds.push(started.elapsed().as_secs_f64());
            started = Instant::now();
        })?;
        Ok(vec![Measured::rate("training", "train", ROWS * row_tokens, &seconds)])
    }

    fn train(&self, row_tokens: usize, courtesy: &Arc<Courtesy>, steps: usize, after: &mut dyn FnMut()) -> Result<()> {
        let ids = self.ids(ROWS * row_tokens);
        let rows: Vec<Row> = ids
            .chunks(row_tokens)
            .map(|row| row.split_at(row_tokens / 2))
            .map(|(prompt, completion)| Row::imitate(Tokens::new(prompt, completion), 1.0))
            .collect();
        let start = init(&**self.network, &LoraSettings::default(), 42)?;
        let mut learner = self.network.learner(&start, Arc::clone(courtesy))?;
        let lanes = Lanes::for_network(self.network.config(), self.threads)?;
        let schedule = Schedule { shape: Shape::Constant, peak: 1e-4, warmup: 0, total: steps };
        let plan = Plan { schedule, weight_decay: 0.0, max_grad_norm: 1.0, dropout: 0.0, seed: 42 };
        let mut state = State::new(start.data, plan.weight_decay);
        train(&mut *learner, &lanes, &mut state, &plan, courtesy, &mut |_| rows.iter().collect(), &mut |_, _| {
            after();
            Ok(Then::GoOn)
        })
    }

    /// Answers of the engine alone, then while a training runs beside it.
    fn chat(&self, tokens: usize, question: usize) -> Result<Vec<Measured>> {
        let engine = Engine::start(Arc::clone(self.network))?;
        let alone = (0..self.times).map(|n| self.ask(&engine, n, tokens, question)).collect::<Result<Vec<_>>>()?;
        let courtesy = Arc::new(Courtesy::beside(engine.chat_gate()));
        let (stepped, steps) = channel();
        let beside = thread::scope(|scope| {
            let training = scope.spawn(|| {
                let row_tokens = ROW_TOKENS.min(self.network.config().context);
                self.train(row_tokens, &courtesy, usize::MAX, &mut || {
                    let _ = stepped.send(()); // the first one is waited for
                })
            });
            while steps.recv_timeout(PAUSE).is_err() && !training.is_finished() {}
            let answers = (0..self.times).map(|n| {
                thread::sleep(PAUSE);
                self.ask(&engine, n + self.times, tokens, question)
            });
            let answers = answers.collect::<Result<Vec<_>>>();
            courtesy.cancel();
            match training.join() {
                Ok(Err(error)) if !error.is_interrupted() => Err(error),
                Ok(_) => answers,
                Err(panic) => Err(Error::panicked("the training", &*panic)),
            }
        })?;
        let firsts = |all: &[(f64, f64)]| all.iter().map(|(first, _)| *first).collect::<Vec<_>>();
        let rests = |all: &[(f64, f64)]| all.iter().map(|(_, rest)| *rest).collect::<Vec<_>>();
        Ok(vec![
            Measured::rate("chat", "chat_decode", tokens - 1, &rests(&alone)),
            Measured::new("first token", "chat_first_token", Unit::Seconds, &firsts(&alone)),
            Measured::rate("beside a training", "beside_training_decode", tokens - 1, &rests(&beside)),
            Measured::new("first token", "beside_training_first_token", Unit::Seconds, &firsts(&beside)),
        ])
    }

    /// Seconds from a question to the first token of its answer, and from there to the last. Each `n` is another question.
    fn ask(&self, engine: &Engine, n: usize, tokens: usize, question: usize) -> Result<(f64, f64)> {
        let mut ids = self.ids(question + n + 1);
        ids.drain(..=n);
        let request = Request {
            ids,
            max_tokens: tokens,
            stop: Vec::new(),
            sampling: Sampling::GREEDY,
            adapter: None,
            draft: Draft::Off,
        };
        let (started, mut first) = (Instant::now(), None);
        for event in engine.generate(request, CancelFlag::new()) {
            match event {
                Event::Token(_) => first = first.or_else(|| Some(started.elapsed().as_secs_f64())),
                Event::Failed(error) => return Err(error),
                _ => {}
            }
        }
        let first = first.ok_or_else(|| Error::failure("the answer has no token"))?;
        Ok((first, started.elapsed().as_secs_f64() - first))
    }
}

/// Seconds that `ids` take behind the first of them.
fn write(decoder: &mut dyn Decoder, ids: &[u32]) -> Result<f64> {
    decoder.truncate(0);
    decoder.forward(&ids[..1])?;
    timed(|| ids[1..].iter().try_for_each(|id| decoder.forward(&[*id]).map(drop)))
}

/// Seconds that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}
