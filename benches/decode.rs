//! What an answer costs on the built-in model: reading a prompt, and writing tokens behind a short and a long one.
//!
//! `cargo bench --bench decode`. The rates that Criterion prints (`thrpt`) are tokens a second. On an idle machine.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use finch::adapter::peft::{LoraSettings, init};
use finch::engine::prefill_chunk;
use finch::model::digest::DigestCache;
use finch::model::load::{Base, ModelSource};
use finch::model::lora::LoraWeights;
use finch::model::sampling::greedy;
use finch::model::{Decoder, Network};

/// Tokens written in one measurement.
const WRITTEN: u64 = 32;

/// Any ids do: a network costs the same whatever it reads.
fn prompt(network: &dyn Network, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| i * 7 % network.config().vocab_size as u32).collect()
}

/// A decoder that has read `ids` as the engine reads them, and the logits after the last of them.
fn read(network: &dyn Network, ids: &[u32], adapter: Option<&LoraWeights>) -> (Box<dyn Decoder>, Vec<f32>) {
    let mut decoder = network.decoder(adapter).expect("a decoder");
    let logits =
        ids.chunks(prefill_chunk(network.config())).map(|chunk| decoder.forward(chunk).expect("logits")).last();
    (decoder, logits.expect("a prompt"))
}

fn decode(c: &mut Criterion) {
    let base = Base::load(&ModelSource::Builtin, &DigestCache::none()).expect("the built-in model");
    let network = base.network.as_ref();
    let adapter = init(network, &LoraSettings::default(), 42).expect("an adapter");
    let mut group = c.benchmark_group("decode");
    group.sample_size(10);

    for tokens in [64, 512] {
        let ids = prompt(network, tokens);
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(format!("read {tokens} tokens"), |b| b.iter(|| read(network, black_box(&ids), None).1));
    }
    group.throughput(Throughput::Elements(WRITTEN));
    for (name, tokens, adapter) in [
        ("write behind 64 tokens", 64, None),
        ("write behind 512 tokens", 512, None),
        ("write behind 64 tokens, with an adapter", 64, Some(&adapter)),
    ] {
        let ids = prompt(network, tokens);
        group.bench_function(name, |b| {
            b.iter_batched(
                || read(network, &ids, adapter),
                |(mut decoder, mut logits)| {
                    for _ in 0..WRITTEN {
                        logits = decoder.forward(&[greedy(&logits)]).expect("logits");
                    }
                    logits
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
