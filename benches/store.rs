//! What feedback costs: filling the buffer and drawing from it, writes that are on disk when they return, and the
//! training set of a store with a long history.
//!
//! `cargo bench --bench store`. The writes wait for the disk's fsync: compare them on one machine only.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use finch::feedback::example::{Example, Origin};
use finch::feedback::{Buffer, FeedbackConfig, Finish, Kind, NewFeedback, NewInteraction};
use finch::model::message::Message;
use finch::store::Store;
use serde_json::json;
use tempfile::TempDir;

const BASE: &str = "base";
/// Interactions in the store with a history; every second one is rated.
const HISTORY: u32 = 2000;

fn examples(count: i64) -> Vec<Example> {
    let example = |id| Example {
        interaction: id,
        messages: vec![Message::user(format!("question {id}: {}", "words ".repeat(50)))],
        completion: format!("answer {id}: {}", "words ".repeat(100)),
        rejected: None,
        weight: [1.0, 3.0, 10.0][id as usize % 3],
        thinking: None,
        origin: Origin::Praise,
        note: None,
    };
    (0..count).map(example).collect()
}

fn turn(n: u32) -> NewInteraction {
    NewInteraction {
        session: "bench".into(),
        turn: n,
        messages: vec![Message::system("be brief"), Message::user(format!("question {n} {}", "words ".repeat(50)))],
        response: "words ".repeat(100),
        model: "finch-tiny".into(),
        base: Some(BASE.into()),
        adapter: None,
        thinking: None,
        sampling: json!({"temperature": 0.0}),
        finish: Finish::Stop,
        timings: json!({}),
        metadata: json!({}),
    }
}

fn open() -> (TempDir, Store) {
    let folder = TempDir::new().expect("a temporary folder");
    let store = Store::open(&folder.path().join("finch.db")).expect("a new store");
    (folder, store)
}

fn buffer(c: &mut Criterion) {
    let buffer = Buffer::fill(100, examples(100));
    c.bench_function("buffer/draw an epoch of 100", |b| b.iter(|| black_box(&buffer).systematic(100, black_box(42))));
    let many = examples(1000);
    c.bench_function("buffer/fill with 1000", |b| {
        b.iter_batched(|| many.clone(), |many| Buffer::fill(100, many), BatchSize::LargeInput);
    });
}

fn store(c: &mut Criterion) {
    let config = FeedbackConfig::default();
    let mut group = c.benchmark_group("store");
    group.sample_size(20);

    let (_folder, store) = open();
    let mut n = 0;
    group.bench_function("add an interaction", |b| {
        b.iter(|| {
            n += 1;
            store.add_interaction(&turn(n)).expect("written")
        });
    });
    let id = store.add_interaction(&turn(0)).expect("written").id;
    group.bench_function("add feedback", |b| {
        b.iter(|| store.add_feedback(id, NewFeedback::new(Kind::Good, &config)).expect("written"));
    });

    let (_folder, store) = open();
    for n in 0..HISTORY {
        let id = store.add_interaction(&turn(n)).expect("written").id;
        if n % 2 == 0 {
            store.add_feedback(id, NewFeedback::new(Kind::Good, &config)).expect("written");
        }
    }
    group.bench_function("training set of 1000 ratings", |b| b.iter(|| store.training_set(BASE, 100).expect("read")));
    group.bench_function("last interaction of 2000", |b| b.iter(|| store.last_interaction(None).expect("read")));
    group.finish();
}

criterion_group!(benches, buffer, store);
criterion_main!(benches);
