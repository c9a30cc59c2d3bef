//! What a training of an adapter costs on the built-in model: one optimiser step of four rows, alone and with the replayed
//! rows that finch joins to it.
//!
//! `cargo bench --bench training_step`. Uses all cores, as a training does; on an idle machine.

use std::sync::Arc;
use std::thread::available_parallelism;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use finch::adapter::peft::{LoraSettings, init};
use finch::learn::recipe::REPLAY_ROWS;
use finch::model::courtesy::Courtesy;
use finch::model::digest::DigestCache;
use finch::model::load::{Base, ModelSource};
use finch::model::{Learner, Tokens};
use finch::train::lanes::Lanes;
use finch::train::row::Row;
use finch::train::run::{Plan, State, Then, train};
use finch::train::schedule::{Schedule, Shape};

const BATCH: u32 = 4;
/// A short question and answer as the chat template lays them out, in tokens.
const PROMPT: u32 = 20;
const ANSWER: u32 = 30;

/// Any ids do: a network costs the same whatever it learns.
fn tokens(row: u32) -> Tokens {
    let ids = |from: u32, n: u32| (from..from + n).map(|i| (row * 131 + i * 7) % 3000).collect::<Vec<u32>>();
    Tokens::new(&ids(0, PROMPT), &ids(PROMPT, ANSWER))
}

/// One step of the training loop from `state`.
fn step(learner: &mut dyn Learner, lanes: &Lanes, state: &mut State, rows: &[Row]) {
    let schedule = Schedule { shape: Shape::Constant, peak: 1e-4, warmup: 0, total: state.step + 1 };
    let plan = Plan { schedule, weight_decay: 0.0, max_grad_norm: 1.0, dropout: 0.0, seed: 42 };
    let mut batch = |_| rows.iter().collect();
    train(learner, lanes, state, &plan, &Courtesy::default(), &mut batch, &mut |_, _| Ok(Then::GoOn)).expect("a step");
}

fn training_step(c: &mut Criterion) {
    let base = Base::load(&ModelSource::Builtin, &DigestCache::none()).expect("the built-in model");
    let config = base.network.config();
    let start = init(base.network.as_ref(), &LoraSettings::default(), 42).expect("an adapter");
    let threads = available_parallelism().map_or(1, usize::from);
    let mut group = c.benchmark_group("training step");
    group.sample_size(10);

    let taught = (0..BATCH).map(|i| Row::imitate(tokens(i), 1.0));
    let replayed = (0..REPLAY_ROWS as u32).map(|i| Row::stay(tokens(BATCH + i), 1.0));
    let alone: Vec<Row> = taught.clone().collect();
    let joined: Vec<Row> = taught.chain(replayed).collect();
    let cases = [
        ("4 rows, one thread".to_string(), &alone, 1),
        (format!("4 rows, {threads} threads"), &alone, threads),
        (format!("4 rows and {REPLAY_ROWS} replayed, {threads} threads"), &joined, threads),
    ];
    for (name, rows, threads) in cases {
        let lanes = Lanes::for_network(config, threads).expect("threads");
        let mut learner = base.network.learner(&start, Arc::default()).expect("a learner");
        let mut state = State::new(start.data.clone(), 0.0);
        group.throughput(Throughput::Elements(rows.iter().map(|row| row.len() as u64).sum()));
        group.bench_function(name, |b| b.iter(|| step(learner.as_mut(), &lanes, &mut state, rows)));
    }
    group.finish();
}

criterion_group!(benches, training_step);
criterion_main!(benches);
