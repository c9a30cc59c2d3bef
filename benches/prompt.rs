//! How long a user waits for the chat's first prompt: from the start of the program to the prompt on the terminal, with the
//! model loading behind it. The aim is below 100 ms.
//!
//! `cargo bench --bench prompt`. On an idle machine; the pseudo-terminal's own start is part of the figure. It fails where
//! the aim is missed.

use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};

#[path = "../tests/common/pty.rs"]
mod pty;

/// Of the median; a user does not notice it.
const AIM: Duration = Duration::from_millis(100);

fn prompt(c: &mut Criterion) {
    let mut waits = Vec::new();
    let home = tempfile::tempdir().expect("a folder");
    let mut group = c.benchmark_group("chat");
    group.sample_size(20).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(10));
    group.bench_function("first prompt", |bencher| {
        bencher.iter_custom(|runs| {
            let mut waited = Duration::ZERO;
            for _ in 0..runs {
                let start = Instant::now();
                let terminal = pty::Terminal::finch::<&str>(&[], home.path());
                while !terminal.raw().windows(2).any(|bytes| bytes == b"> ") {
                    assert!(start.elapsed() < Duration::from_secs(60), "no prompt comes");
                    std::thread::sleep(Duration::from_micros(500));
                }
                let wait = start.elapsed();
                waits.push(wait);
                waited += wait;
            }
            waited
        });
    });
    group.finish();
    waits.sort_unstable();
    let median = waits.get(waits.len() / 2).copied().unwrap_or_default();
    assert!(median < AIM, "half of the prompts took {median:?} and more; the aim is {AIM:?}");
}

criterion_group!(benches, prompt);
criterion_main!(benches);
