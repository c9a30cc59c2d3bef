//! `finch bench`: how fast this machine reads, writes and trains on a model, and the memory that it takes.
//!
//! The work is that of the field's benches, so that figures can stand side by side: 512 tokens of prompt, 64 tokens written
//! behind one, training steps of 4 rows of 256 tokens. Speed does not depend on what the ids are.

mod work;

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::ground::Ground;
use super::{print, say};
use crate::adapter::switch;
use crate::cli::{BenchArgs, BenchPart};
use crate::error::{Context, Error, Result};
use crate::learn::round::default_threads;
use crate::model::digest::DigestCache;
use crate::model::load::{Base, Model, ModelSource};
use crate::repl::render;
use crate::text;
use work::{Measured, Unit, Work};

/// The libraries below the network take their number of threads from these, once.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// What was measured, and nothing else.
struct Report {
    model: String,
    adapter: Option<String>,
    threads: usize,
    repeat: usize,
    /// From the files' names to a network that can compute, in seconds; the files may be in the system's cache. Where loading
    /// was measured, with the words beside it.
    load: f64,
    measured: Vec<Measured>,
    /// Largest resident set of the process so far, in bytes; None where the system does not say.
    peak_rss: Option<u64>,
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
    let wanted = |part: &BenchPart| args.only.is_empty() || args.only.contains(part);
    let (repeat, source) = (usize::from(args.repeat), ground.source()?);
    let (base, load, mut measured) = match wanted(&BenchPart::Load) {
        true => load(ground, &source, 1 + repeat)?,
        false => {
            let (base, seconds) = load_base(ground, &source)?;
            (base, seconds, Vec::new())
        }
    };
    let adapter =
        args.adapter.as_ref().map(|what| switch::open(&ground.paths, what, base.network.config(), &base.digest));
    let adapter = adapter.transpose()?.map(|opened| opened.adapter.weights);
    let work = Work { network: &base.network, adapter: adapter.as_ref(), times: 1 + repeat, threads };
    for part in BenchPart::value_variants().iter().filter(|part| wanted(part)) {
        let name = part.name();
        if *part != BenchPart::Load {
            say(&format!("Measuring {name}…\n"));
        }
        measured.extend(work.measure(*part).with_context(|| name.to_string())?);
    }
    let (adapter, peak_rss) = (args.adapter.clone(), peak_rss());
    Ok(Report { model: base.name, adapter, threads, repeat, load, measured, peak_rss })
}

fn load_base(ground: &Ground, source: &ModelSource) -> Result<(Base, f64)> {
    let started = Instant::now();
    let base = Base::load(source, &DigestCache::of(&ground.paths))?;
    Ok((base, started.elapsed().as_secs_f64()))
}

/// Loads the model so many times, one after the other, and writes a token with each: the last one, the median of the
/// seconds until it was loaded, and those to the token. With the words, where the model has any: a chat needs them.
fn load(ground: &Ground, source: &ModelSource, times: usize) -> Result<(Base, f64, Vec<Measured>)> {
    say("Measuring load…\n");
    let (mut loaded, mut networks, mut tokens) = (None, Vec::new(), Vec::new());
    let (digests, has_words) = (DigestCache::of(&ground.paths), source.chat_files().is_ok());
    for _ in 0..times {
        drop(loaded.take()); // before the next one is there
        let started = Instant::now();
        let (base, words) = match has_words {
            true => {
                let model = Model::load(source, &digests)?;
                let words = Some(Arc::clone(&model.tokenizer));
                (Base::from(model), words)
            }
            false => (Base::load(source, &digests)?, None),
        };
        networks.push(started.elapsed().as_secs_f64());
        base.network.decoder(None)?.forward(&[0])?;
        tokens.push(started.elapsed().as_secs_f64());
        drop(words);
        loaded = Some(base);
    }
    let network = Measured::new("load", "load", Unit::Seconds, &networks).median();
    let base = loaded.ok_or_else(|| Error::failure("nothing was loaded"))?; // `times` is 2 or more
    Ok((base, network, vec![Measured::new("load to a token", "load_first_token", Unit::Seconds, &tokens)]))
}

impl BenchPart {
    fn name(self) -> &'static str {
        match self {
            BenchPart::Load => "load",
            BenchPart::Prefill => "prefill",
            BenchPart::Decode => "decode",
            BenchPart::Adapter => "decode with an adapter",
            BenchPart::Swap => "adapter swap",
            BenchPart::Draft => "drafts",
            BenchPart::Training => "training",
            BenchPart::Chat => "chat beside a training",
        }
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
        for measured in &self.measured {
            let (suffix, digits) = match measured.unit {
                Unit::Rate { .. } => ("_tok_s", 1e2),
                Unit::Seconds => ("_s", 1e6),
                Unit::Ratio => ("", 1e4),
            };
            let (key, rounded) = (format!("{}{suffix}", measured.key), |x: f64| (x * digits).round() / digits);
            out[format!("{key}_range")] = json!([measured.lowest(), measured.highest()].map(rounded));
            out[key] = json!(rounded(measured.median()));
            if let Unit::Rate { tokens } = measured.unit {
                out[format!("{}_tokens", measured.key)] = json!(tokens);
            }
        }
        out
    }

    fn table(&self) -> String {
        let mut rows = vec![("model", self.model.clone())];
        rows.extend(self.adapter.clone().map(|adapter| ("adapter", adapter)));
        rows.push(("threads", self.threads.to_string()));
        rows.push(("load", seconds(self.load)));
        for measured in &self.measured {
            let (median, low, high) = (measured.median(), measured.lowest(), measured.highest());
            let repeat = self.repeat;
            rows.push((
                measured.name,
                match measured.unit {
                    Unit::Rate { tokens } => {
                        format!("{median:.1} tokens a second ({tokens} tokens, {repeat} times: {low:.1} to {high:.1})")
                    }
                    Unit::Seconds => {
                        format!("{} ({repeat} times: {} to {})", seconds(median), seconds(low), seconds(high))
                    }
                    Unit::Ratio => format!("{median:.2} ({repeat} times: {low:.2} to {high:.2})"),
                },
            ));
        }
        rows.push(("peak memory", self.peak_rss.map_or("not known on this system".to_string(), render::bytes)));
        rows.iter().map(|(what, value)| format!("{what:19}{}\n", text::one_line(value, 200))).collect()
    }
}

/// "0.52 s", "3.1 ms".
fn seconds(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.1} ms", 1e3 * seconds) } else { format!("{seconds:.2} s") }
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
