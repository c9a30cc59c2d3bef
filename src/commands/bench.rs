//! `finch bench`: how fast this machine reads, writes and trains on a model, and the memory that it takes.
//!
//! The work is that of the field's benches, so that figures can stand side by side: 512 tokens of prompt, 64 tokens written
//! behind one, training steps of 4 rows of 256 tokens. Speed does not depend on what the ids are.

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::ground::Ground;
use super::{print, say};
use crate::adapter::peft::{LoraSettings, init};
use crate::adapter::switch;
use crate::cli::{BenchArgs, BenchPart};
use crate::engine::PREFILL_CHUNK;
use crate::error::{Context, Error, Result};
use crate::learn::round::default_threads;
use crate::model::courtesy::Courtesy;
use crate::model::digest::DigestCache;
use crate::model::load::Base;
use crate::model::lora::LoraWeights;
use crate::model::{Network, Tokens};
use crate::repl::render;
use crate::text;
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
/// The libraries below the network take their number of threads from these, once.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// What was measured, and nothing else.
struct Report {
    model: String,
    adapter: Option<String>,
    threads: usize,
    repeat: usize,
    /// From the files' names to a network that can compute, in seconds; the files may be in the system's cache.
    load: f64,
    parts: Vec<Measured>,
    /// Largest resident set of the process so far, in bytes; None where the system does not say.
    peak_rss: Option<u64>,
}

/// One part's rates, in tokens a second.
struct Measured {
    part: BenchPart,
    /// Tokens of one measurement.
    tokens: usize,
    /// In ascending order, one a measurement.
    rates: Vec<f64>,
}

pub fn run(ground: &Ground, args: &BenchArgs) -> Result<()> {
    let set = std::env::var(THREADS[0]).ok().and_then(|set| set.parse().ok()).filter(|&set| set > 0);
    let threads = args.threads.map(usize::from).or(set).unwrap_or_else(default_threads);
    if THREADS.iter().any(|name| std::env::var(name) != Ok(threads.to_string())) {
        return start_again(threads);
    }
    let report = measure(ground, args, threads)?;
    print(&if args.json { format!("{}\n", report.json()) } else { report.table() })
}

/// The same command in a process of its own, in which the libraries find `threads` when they start.
fn start_again(threads: usize) -> Result<()> {
    let finch = std::env::current_exe().context("finch does not find its own program")?;
    let mut again = Command::new(finch);
    again.args(std::env::args_os().skip(1)).envs(THREADS.map(|name| (name, threads.to_string())));
    let status = again.status().context("finch cannot start itself")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code), // it has said why
        None => Err(Error::failure(format!("the measurement was ended: {status}"))),
    }
}

fn measure(ground: &Ground, args: &BenchArgs, threads: usize) -> Result<Report> {
    let started = Instant::now();
    let base = Base::load(&ground.source()?, &DigestCache::of(&ground.paths))?;
    let load = started.elapsed().as_secs_f64();
    let network: &dyn Network = &*base.network;
    let adapter = args.adapter.as_ref().map(|what| switch::open(&ground.paths, what, network.config(), &base.digest));
    let adapter = adapter.transpose()?.map(|opened| opened.adapter.weights);
    let work = Work { network, adapter: adapter.as_ref(), times: 1 + usize::from(args.repeat), threads };
    let mut parts = Vec::new();
    for part in [BenchPart::Prefill, BenchPart::Decode, BenchPart::Training] {
        if args.only.is_empty() || args.only.contains(&part) {
            say(&format!("Measuring {}…\n", part.name()));
            parts.push(work.measure(part).with_context(|| part.name().to_string())?);
        }
    }
    let (adapter, repeat, peak_rss) = (args.adapter.clone(), usize::from(args.repeat), peak_rss());
    Ok(Report { model: base.name, adapter, threads, repeat, load, parts, peak_rss })
}

/// What the parts run on.
struct Work<'a> {
    network: &'a dyn Network,
    adapter: Option<&'a LoraWeights>,
    /// Measurements of each part, the first of which warms up and is not counted.
    times: usize,
    threads: usize,
}

impl Work<'_> {
    fn measure(&self, part: BenchPart) -> Result<Measured> {
        let context = self.network.config().context;
        let (tokens, seconds) = match part {
            BenchPart::Prefill => self.prefill(READ.min(context))?,
            BenchPart::Decode => self.decode(WRITTEN.min(context.saturating_sub(1)))?,
            BenchPart::Training => self.training(ROW_TOKENS.min(context))?,
        };
        let mut rates: Vec<f64> = seconds.iter().skip(1).map(|seconds| tokens as f64 / seconds).collect();
        rates.sort_by(f64::total_cmp);
        Ok(Measured { part, tokens, rates })
    }

    /// Ids spread over the vocabulary.
    fn ids(&self, tokens: usize) -> Vec<u32> {
        (0..tokens).map(|i| (i * 37 % self.network.config().vocab_size) as u32).collect()
    }

    /// Reads a prompt into an empty cache, as the chat does: in chunks between which it can be cancelled.
    fn prefill(&self, tokens: usize) -> Result<(usize, Vec<f64>)> {
        let (ids, mut decoder) = (self.ids(tokens), self.network.decoder(self.adapter)?);
        let seconds = (0..self.times).map(|_| {
            decoder.truncate(0);
            timed(|| ids.chunks(PREFILL_CHUNK).try_for_each(|chunk| decoder.forward(chunk).map(drop)))
        });
        Ok((tokens, seconds.collect::<Result<_>>()?))
    }

    /// Writes behind one token. Which tokens is settled beforehand: choosing is no work of the network.
    fn decode(&self, tokens: usize) -> Result<(usize, Vec<f64>)> {
        let (ids, mut decoder) = (self.ids(1 + tokens), self.network.decoder(self.adapter)?);
        let seconds = (0..self.times).map(|_| {
            decoder.truncate(0);
            decoder.forward(&ids[..1])?;
            timed(|| ids[1..].iter().try_for_each(|id| decoder.forward(&[*id]).map(drop)))
        });
        Ok((tokens, seconds.collect::<Result<_>>()?))
    }

    /// Steps of the training loop on a new adapter of rank 16 on all linear layers.
    fn training(&self, row_tokens: usize) -> Result<(usize, Vec<f64>)> {
        let config = self.network.config();
        let ids = self.ids(ROWS * row_tokens);
        let rows: Vec<Row> = ids
            .chunks(row_tokens)
            .map(|row| row.split_at(row_tokens / 2))
            .map(|(prompt, completion)| Row::imitate(Tokens::new(prompt, completion), 1.0))
            .collect();
        let start = init(self.network, &LoraSettings::default(), 42)?;
        let courtesy = Arc::new(Courtesy::default());
        let mut learner = self.network.learner(&start, Arc::clone(&courtesy))?;
        let lanes = Lanes::for_network(config, self.threads)?;
        let schedule = Schedule { shape: Shape::Constant, peak: 1e-4, warmup: 0, total: self.times };
        let plan = Plan { schedule, weight_decay: 0.0, max_grad_norm: 1.0, dropout: 0.0, seed: 42 };
        let mut state = State::new(start.data, plan.weight_decay);
        let (mut seconds, mut started) = (Vec::new(), Instant::now());
        train(&mut *learner, &lanes, &mut state, &plan, &courtesy, &mut |_| rows.iter().collect(), &mut |_, _| {
            seconds.push(started.elapsed().as_secs_f64());
            started = Instant::now();
            Ok(Then::GoOn)
        })?;
        Ok((ids.len(), seconds))
    }
}

/// Seconds that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

impl BenchPart {
    fn name(self) -> &'static str {
        match self {
            BenchPart::Prefill => "prefill",
            BenchPart::Decode => "decode",
            BenchPart::Training => "training",
        }
    }

    /// What its keys in the JSON begin with.
    fn key(self) -> &'static str {
        match self {
            BenchPart::Training => "train",
            other => other.name(),
        }
    }
}

impl Measured {
    fn median(&self) -> f64 {
        let middle = self.rates.len() / 2;
        match self.rates.len() % 2 {
            0 => (self.rates[middle - 1] + self.rates[middle]) / 2.0,
            _ => self.rates[middle],
        }
    }

    fn lowest(&self) -> f64 {
        self.rates[0]
    }

    fn highest(&self) -> f64 {
        self.rates[self.rates.len() - 1]
    }
}

impl Report {
    /// A part that was left out has no keys.
    fn json(&self) -> Value {
        let hundredths = |x: f64| (x * 100.0).round() / 100.0;
        let mut out = json!({
            "model": self.model,
            "threads": self.threads,
            "adapter": self.adapter,
            "repeat": self.repeat,
            "load_s": hundredths(self.load),
            "peak_rss_gb": self.peak_rss.map(|bytes| hundredths(bytes as f64 / 1e9)),
        });
        for measured in &self.parts {
            let key = measured.part.key();
            out[format!("{key}_tok_s")] = json!(hundredths(measured.median()));
            out[format!("{key}_tok_s_range")] = json!([measured.lowest(), measured.highest()].map(hundredths));
            out[format!("{key}_tokens")] = json!(measured.tokens);
        }
        out
    }

    fn table(&self) -> String {
        let mut rows = vec![("model", self.model.clone())];
        rows.extend(self.adapter.clone().map(|adapter| ("adapter", adapter)));
        rows.push(("threads", self.threads.to_string()));
        rows.push(("load", format!("{:.2} s", self.load)));
        for measured in &self.parts {
            let (median, low, high) = (measured.median(), measured.lowest(), measured.highest());
            let spread = format!("{} tokens, {} times: {low:.1} to {high:.1}", measured.tokens, self.repeat);
            rows.push((measured.part.name(), format!("{median:.1} tokens a second ({spread})")));
        }
        rows.push(("peak memory", self.peak_rss.map_or("not known on this system".to_string(), render::bytes)));
        rows.iter().map(|(what, value)| format!("{what:14}{}\n", text::one_line(value, 200))).collect()
    }
}

/// Largest resident set of this process so far, in bytes.
#[cfg(unix)]
fn peak_rss() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    getrusage(UsageWho::RUSAGE_SELF).ok().and_then(|usage| u64::try_from(usage.max_rss()).ok()).map(|n| n * unit)
}

#[cfg(not(unix))]
fn peak_rss() -> Option<u64> {
    None
}
