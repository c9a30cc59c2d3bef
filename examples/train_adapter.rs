//! Trains a LoRA adapter on a few rows, saves it as PEFT does, loads it again and answers with it.
//!
//! ```text
//! cargo run --release --example train_adapter             # the rows of examples/train_adapter.jsonl
//! cargo run --release --example train_adapter -- MY.jsonl target/my_adapter
//! ```
//!
//! Rows are those of `finch train --data` that imitate an answer: `{"messages": […]}` or `{"prompt": …, "completion": …}`.
//! The base is the built-in model; its weights stay as they are. What the adapter forgets elsewhere is not looked at here:
//! finch itself replays the base's own answers while it trains, and measures before an adapter goes live (`learn/`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use chrono::Local;
use finch::adapter::peft::{self, Adapter, LoraSettings};
use finch::engine::{CancelFlag, Draft, Engine, EngineAdapter, Event, Request};
use finch::fsio;
use finch::model::courtesy::Courtesy;
use finch::model::digest::DigestCache;
use finch::model::load::{Model, ModelSource};
use finch::model::lora::LoraWeights;
use finch::model::sampling::Sampling;
use finch::train::data::{Objective, Reader};
use finch::train::lanes::Lanes;
use finch::train::row::{Goal, Row};
use finch::train::run::{Plan, State, Then, train};
use finch::train::schedule::{Schedule, Shape};

const STEPS: usize = 60;
/// Rows of a step.
const BATCH: usize = 4;
const SEED: u64 = 42;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let data = args.next().unwrap_or_else(|| "examples/train_adapter.jsonl".into());
    let folder =
        args.next().unwrap_or_else(|| Local::now().format("target/lora_adapter_%Y%m%d_%H%M%S").to_string().into());
    if folder.exists() {
        bail!("{} exists already: name a new folder for the adapter", folder.display());
    }

    let source = ModelSource::Builtin;
    let model = Model::load(&source, &DigestCache::none())?;
    let config = model.network.config();
    let set = Reader::new(source, config.vocab_size, config.context).read(&data)?;
    for (line, tokens) in &set.skipped {
        eprintln!("{}:{line}: {tokens} tokens are more than the model's context, so the row is left out", set.name);
    }
    let rows = set.rows(Objective::Sft, 0.0, 0.0)?;
    if rows.is_empty() {
        bail!("{} holds no row to train on", set.name);
    }

    let settings = LoraSettings { rank: 8, alpha: 16.0, ..LoraSettings::default() };
    let weights = learn(&model, &rows, peft::init(&*model.network, &settings, SEED)?)?;

    // A folder of PEFT's: transformers, PEFT and vLLM load it as it is.
    let adapter = Adapter::new(weights, settings);
    fsio::write_dir_atomic(&folder, |unfinished| peft::write(unfinished, &adapter, &model.name))?;
    println!("saved to {}", folder.display());

    let read = peft::read(&folder, config)?;
    let adapter = Arc::new(EngineAdapter { name: "mine".into(), digest: read.digest, weights: read.weights });
    let engine = Engine::start(Arc::clone(&model.network))?;
    for row in &rows {
        let Goal::Imitate(tokens) = &row.goal else { continue };
        let prompt: Vec<u32> =
            tokens.ids.iter().zip(&tokens.targets).filter(|(_, t)| !**t).map(|(id, _)| *id).collect();
        println!("\nbase:    {}", answer(&model, &engine, &prompt, None)?);
        println!("adapter: {}", answer(&model, &engine, &prompt, Some(Arc::clone(&adapter)))?);
    }
    Ok(())
}

/// Takes the steps; prints the loss over all rows before, between and after.
fn learn(model: &Model, rows: &[Row], start: LoraWeights) -> Result<LoraWeights> {
    let began = Instant::now();
    let courtesy = Arc::new(Courtesy::default()); // nobody chats beside this training
    let lanes = Lanes::for_network(model.network.config(), std::thread::available_parallelism()?.get())?;
    let mut learner = model.network.learner(&start, Arc::clone(&courtesy))?;
    let all: Vec<&Row> = rows.iter().collect();
    let mean = |losses: Vec<f64>| losses.iter().sum::<f64>() / losses.len() as f64;
    println!("{} rows, {} parameters", rows.len(), learner.len());
    let before = mean(lanes.losses(learner.as_ref(), &all)?);

    let schedule = Schedule { shape: Shape::Cosine, peak: 1e-3, warmup: 3, total: STEPS };
    let plan = Plan { schedule, weight_decay: 0.0, max_grad_norm: 1.0, dropout: 0.0, seed: SEED };
    let mut state = State::new(start.data.clone(), plan.weight_decay);
    // The rows in turn, from the first again after the last.
    let mut batch = |step: usize| (step * BATCH..(step + 1) * BATCH).map(|i| &rows[i % rows.len()]).collect();
    train(learner.as_mut(), &lanes, &mut state, &plan, &courtesy, &mut batch, &mut |report, _| {
        if report.step % 10 == 0 {
            println!("step {:>3}  loss {:.3}  gradient norm {:.2}", report.step, report.loss, report.grad_norm);
        }
        Ok(Then::GoOn)
    })?;

    learner.load(&state.params)?;
    let after = mean(lanes.losses(learner.as_ref(), &all)?);
    println!("loss {before:.3} → {after:.3} nat a token, {:.1} s", began.elapsed().as_secs_f64());
    Ok(LoraWeights { data: state.params, ..start })
}

/// The likeliest answer, as far as 100 tokens.
fn answer(model: &Model, engine: &Engine, prompt: &[u32], adapter: Option<Arc<EngineAdapter>>) -> Result<String> {
    let (ids, stop) = (prompt.to_vec(), model.generation.eos.clone());
    let request = Request { ids, max_tokens: 100, stop, sampling: Sampling::GREEDY, adapter, draft: Draft::Off };
    let mut tokens = Vec::new();
    for event in engine.generate(request, CancelFlag::new()) {
        match event {
            Event::Prefill { .. } => {}
            Event::Token(token) => tokens.push(token),
            Event::Done(_) => return Ok(finch::text::sanitize(&model.tokenizer.decode(&tokens)).into_owned()),
            Event::Failed(error) => return Err(error.into()),
        }
    }
    bail!("the thread that runs the model has stopped")
}
