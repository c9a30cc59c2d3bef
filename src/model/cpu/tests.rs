//! The network against the candle one, and against itself: other numbers of threads, other pieces, other processors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::kernels::Level;
use super::kernels::tests::stored;
use super::pool::Pool;
use super::weights::Weights;
use super::{CpuNetwork, Shared};
use crate::model::candle::tests::adapter;
use crate::model::candle::{CandleNetwork, weights};
use crate::model::checkpoint::{Checkpoint, Entry, Shard, Stop};
use crate::model::config::{Family, ModelConfig};
use crate::model::lora::{LoraModule, LoraShape, LoraWeights, Target};
use crate::model::storage::Storage;
use crate::model::{Decoder, Network};

const PROMPT: [u32; 21] = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 3, 2, 30, 33, 1, 0, 31, 4, 15, 9];

/// Wide enough for every type where `wide`; else of widths that only plain numbers can have.
pub(super) fn config(family: Family, wide: bool) -> ModelConfig {
    let (hidden_size, intermediate_size, head_dim) = if wide { (256, 512, 64) } else { (24, 40, 10) };
    ModelConfig { hidden_size, intermediate_size, head_dim, ..crate::model::candle::tests::config(family) }
}

/// Random tensors, in a file: matrices as `storage`, vectors as F32.
pub(super) fn checkpoint(config: &ModelConfig, storage: Storage) -> Checkpoint {
    let mut rng = StdRng::seed_from_u64(3);
    let (mut bytes, mut tensors) = (Vec::new(), BTreeMap::new());
    for slot in weights::slots(config).unwrap() {
        let start = bytes.len() as u64;
        let storage = if slot.shape.len() == 1 { Storage::F32 } else { storage };
        if slot.shape.len() == 1 {
            let centre = if slot.name.contains("norm") { 1.0 } else { 0.0 };
            let number = |rng: &mut StdRng| centre + rng.random::<f32>() * 0.4 - 0.2;
            bytes.extend((0..slot.len()).flat_map(|_| number(&mut rng).to_le_bytes()));
        } else {
            bytes.extend(stored(storage, slot.len(), &mut rng));
        }
        let len = bytes.len() as u64 - start;
        tensors.insert(slot.name, Entry { shard: 0, storage, shape: slot.shape, start, len });
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    in_file(file.path(), tensors)
}

fn in_file(path: &Path, tensors: BTreeMap<String, Entry>) -> Checkpoint {
    let shards = Arc::new(vec![Shard::open(path, |_, _| Ok(())).unwrap().0]);
    Checkpoint { shards, tensors, own_name: |name| Cow::Borrowed(name), plan: None, maps: 1, stop: Stop::default() }
}

pub(super) fn network(config: &ModelConfig, checkpoint: &Checkpoint, threads: usize, level: Level) -> CpuNetwork {
    let pool = Pool::new(threads).unwrap();
    let weights = Weights::read(config, checkpoint, &pool).unwrap();
    CpuNetwork::new(config, weights, pool, level, false)
}

/// Natural-log probabilities of a row of logits.
fn normalised(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    logits.iter().map(|x| f64::from(*x) - sum.ln()).collect()
}

/// Mean and largest difference.
fn apart(found: &[f64], expected: &[f64]) -> (f64, f64) {
    let apart: Vec<f64> = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).collect();
    (apart.iter().sum::<f64>() / apart.len() as f64, apart.iter().copied().fold(0.0, f64::max))
}

fn scores(decoder: &mut dyn Decoder) -> Vec<f64> {
    decoder.truncate(0);
    decoder.score(&PROMPT).unwrap().into_iter().map(f64::from).collect()
}

/// Logits behind the prompt, read in these pieces.
fn read(decoder: &mut dyn Decoder, pieces: &[usize]) -> Vec<f32> {
    decoder.truncate(0);
    let (mut at, mut logits) = (0, Vec::new());
    for piece in pieces {
        logits = decoder.forward(&PROMPT[at..at + piece]).unwrap();
        at += piece;
    }
    assert_eq!((at, decoder.len()), (PROMPT.len(), PROMPT.len()));
    logits
}

/// The adapter with magnitudes.
pub(super) fn dora(lora: &LoraWeights) -> LoraWeights {
    let shape = |m: &LoraModule| LoraShape {
        layer: m.layer,
        target: m.target,
        rank: m.rank,
        in_features: m.in_features,
        out_features: m.out_features,
        scale: m.scale,
        dora: true,
    };
    let mut dora = LoraWeights::zeros(lora.modules.iter().map(shape).collect());
    for (to, from) in dora.modules.clone().iter().zip(&lora.modules) {
        assert_eq!((to.layer, to.target), (from.layer, from.target));
        dora.data[to.a.clone()].copy_from_slice(lora.a(from));
        dora.data[to.b.clone()].copy_from_slice(lora.b(from));
        let magnitudes = &mut dora.data[to.magnitude.clone().unwrap()];
        magnitudes.iter_mut().enumerate().for_each(|(at, m)| *m = 0.5 + at as f32 % 7.0 / 5.0);
    }
    dora
}

/// Every type, with an adapter and without, both families; DoRA on some.
fn cases() -> Vec<(ModelConfig, Checkpoint, Option<LoraWeights>, String)> {
    let mut cases = Vec::new();
    for storage in Storage::READABLE {
        for family in [Family::Qwen2, Family::Qwen3] {
            let plain = storage.block().0 == 1;
            let config = config(family, !plain);
            let lora = adapter(&config, &[Target::Q, Target::V, Target::O, Target::Up, Target::Down]);
            let what = format!("{storage}, {family:?}");
            if matches!(storage, Storage::F32 | Storage::Q4K) {
                cases.push((config.clone(), checkpoint(&config, storage), Some(dora(&lora)), format!("{what}, DoRA")));
            }
            cases.push((config.clone(), checkpoint(&config, storage), Some(lora), format!("{what}, adapted")));
            cases.push((config.clone(), checkpoint(&config, storage), None, what));
        }
    }
    cases
}

#[test]
fn scores_are_those_of_the_candle_network() {
    for (config, checkpoint, lora, what) in cases() {
        let oracle = CandleNetwork::load(&config, &checkpoint, &Device::Cpu).unwrap();
        let expected = scores(&mut *oracle.decoder(lora.as_ref()).unwrap());
        for level in Level::all() {
            let network = network(&config, &checkpoint, 2, level);
            let found = scores(&mut *network.decoder(lora.as_ref()).unwrap());
            let (_, worst) = apart(&found, &expected);
            assert!(worst < 1e-4, "{what}, {level:?}: {worst} apart");
        }
    }
}

#[test]
fn what_a_chat_computes_is_near_the_candle_network() {
    for (config, checkpoint, lora, what) in cases() {
        let oracle = CandleNetwork::load(&config, &checkpoint, &Device::Cpu).unwrap();
        let expected = normalised(&read(&mut *oracle.decoder(lora.as_ref()).unwrap(), &[21]));
        let coded = checkpoint.storage("model.layers.0.mlp.up_proj.weight").unwrap().block().0 > 1;
        // Activations of eight bits, over matrices that are narrower and larger than real ones; keys and values of sixteen.
        let (mean_limit, worst_limit) = if coded { (0.06, 0.25) } else { (5e-3, 5e-3) };
        for level in Level::all() {
            let network = network(&config, &checkpoint, 2, level);
            let mut decoder = network.decoder(lora.as_ref()).unwrap();
            let (mean, worst) = apart(&normalised(&read(&mut *decoder, &[21])), &expected);
            assert!(mean < mean_limit && worst < worst_limit, "{what}, {level:?}: {mean}, {worst} apart");
        }
    }
}

/// A cache belongs to its tokens, however they came; and nothing depends on the number of threads.
#[test]
fn pieces_and_threads_change_no_bit() {
    for (config, checkpoint, lora, what) in cases() {
        let level = Level::detect();
        let one = network(&config, &checkpoint, 1, level);
        let mut decoder = one.decoder(lora.as_ref()).unwrap();
        let expected = read(&mut *decoder, &[21]);
        for pieces in [vec![20, 1], vec![1; 21], vec![4, 9, 8]] {
            assert_eq!(read(&mut *decoder, &pieces), expected, "{what}, {pieces:?}");
        }
        // The logits after each of several tokens are those after one and one.
        decoder.truncate(3);
        let each = decoder.forward_each(&PROMPT[3..]).unwrap();
        assert_eq!((each.len(), decoder.len()), (PROMPT.len() - 3, PROMPT.len()));
        decoder.truncate(3);
        for (logits, id) in each.iter().zip(&PROMPT[3..]) {
            assert_eq!(logits, &decoder.forward(&[*id]).unwrap(), "{what}");
        }
        // Back to a shared beginning and on again.
        decoder.truncate(13);
        assert_eq!(decoder.forward(&PROMPT[13..]).unwrap(), expected, "{what}");
        let three = network(&config, &checkpoint, 3, level);
        assert_eq!(read(&mut *three.decoder(lora.as_ref()).unwrap(), &[5, 16]), expected, "{what}");
    }
}

/// Longer than a stretch of attention, whose stretches threads share where there are few tokens.
#[test]
fn long_sequences_are_the_same_whoever_reads_them() {
    let config = config(Family::Qwen3, false);
    let checkpoint = checkpoint(&config, Storage::F16);
    let ids: Vec<u32> = (0..1100).map(|at| (at * at + 7 * at) % 36).collect();
    let read = |threads: usize, piece: usize| {
        let network = network(&config, &checkpoint, threads, Level::detect());
        let mut decoder = network.decoder(None).unwrap();
        ids.chunks(piece).map(|piece| decoder.forward(piece).unwrap()).last()
    };
    let expected = read(1, 1100);
    for (threads, piece) in [(1, 1), (3, 1), (3, 7), (2, 64)] {
        assert_eq!(read(threads, piece), expected, "{threads} threads, {piece} tokens at once");
    }
}

#[test]
fn row_norms_are_those_of_the_candle_network() {
    let config = config(Family::Qwen2, true);
    for storage in [Storage::Q4K, Storage::BF16] {
        let checkpoint = checkpoint(&config, storage);
        let oracle = CandleNetwork::load(&config, &checkpoint, &Device::Cpu).unwrap();
        let network = network(&config, &checkpoint, 1, Level::detect());
        let (found, expected) = (network.row_norms(1, Target::V).unwrap(), oracle.row_norms(1, Target::V).unwrap());
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * b), "{storage}");
    }
}

#[test]
fn after_scoring_and_in_a_small_network_every_bit_counts() {
    let config = config(Family::Qwen3, true);
    let checkpoint = checkpoint(&config, Storage::Q4_0);
    let oracle = CandleNetwork::load(&config, &checkpoint, &Device::Cpu).unwrap();
    let expected = normalised(&read(&mut *oracle.decoder(None).unwrap(), &[21]));
    let mut decoder = network(&config, &checkpoint, 1, Level::detect()).decoder(None).unwrap();
    scores(&mut *decoder);
    decoder.truncate(20);
    let (_, worst) = apart(&normalised(&decoder.forward(&PROMPT[20..]).unwrap()), &expected);
    assert!(worst < 1e-4, "{worst}");
    let small = CpuNetwork::load(&config, &checkpoint, 1).unwrap();
    let (_, worst) = apart(&normalised(&read(&mut *small.decoder(None).unwrap(), &[21])), &expected);
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_cache() {
    let config = config(Family::Qwen2, false);
    let network = network(&config, &checkpoint(&config, Storage::BF16), 1, Level::detect());
    let mut decoder = network.decoder(None).unwrap();
    decoder.forward(&[1, 2]).unwrap();
    assert!(decoder.forward(&[3, 37]).unwrap_err().to_string().contains("37 is outside the vocabulary"));
    assert!(decoder.forward(&[]).is_err());
    assert_eq!(decoder.len(), 2);
    let mut lora = adapter(&config, &[Target::Up]);
    lora.modules[0].in_features += 1;
    let refused = [network.decoder(Some(&lora)).err(), network.learner(&lora, Arc::default()).err()];
    for refused in refused {
        let refused = refused.expect("it does not fit").to_string();
        assert!(refused.contains("mlp.up_proj: the adapter is made for"), "{refused}");
    }
}

#[test]
fn memory_is_what_the_packed_weights_take() {
    for storage in Storage::READABLE {
        let config = config(Family::Qwen2, storage.block().0 > 1);
        let checkpoint = checkpoint(&config, storage);
        let Shared { weights, .. } = &*network(&config, &checkpoint, 1, Level::detect()).shared;
        let layers = || weights.blocks.iter().flat_map(|block| Target::ALL.map(|target| block.layer(target)));
        let sizes = layers().map(|layer| layer.matrix.size()).sum::<usize>();
        let all = sizes + weights.embed.size() + weights.head().matrix.size();
        assert_eq!(CpuNetwork::memory(&config, &checkpoint).unwrap().weights, all as u64, "{storage}");
    }
}

#[test]
fn a_file_that_weights_stay_in_is_not_to_be_written_to() {
    let config = config(Family::Qwen3, true);
    let sound = checkpoint(&config, Storage::BF16);
    let tensors = sound.tensors.clone();
    let len = tensors.values().map(|entry| entry.start + entry.len).max().unwrap();
    let bytes = sound.bytes(0..len).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let network = network(&config, &in_file(file.path(), tensors.clone()), 1, Level::detect());
    let stays = |entry: &&Entry| entry.shape.len() == 2 && entry.shape[0].is_multiple_of(16);
    let in_files = tensors.values().filter(stays).map(|entry| entry.len).sum::<u64>();
    assert!(in_files > len / 2 && network.shared.weights.in_files() == in_files, "{in_files} of {len}");
    let lora = adapter(&config, &Target::ALL);
    let learner = network.learner(&lora, Arc::default()).unwrap();
    let mut decoder = network.decoder(None).unwrap();
    decoder.forward(&PROMPT).unwrap();
    std::fs::write(file.path(), &bytes[..bytes.len() / 2]).unwrap();
    let says = |error: crate::error::Error| {
        assert!(error.to_string().contains("was changed by another program"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("start finch again")));
    };
    says(decoder.forward(&PROMPT[..1]).unwrap_err());
    says(decoder.forward_each(&PROMPT[..1]).unwrap_err());
    says(decoder.score(&PROMPT).unwrap_err());
    says(network.decoder(None).unwrap().forward(&PROMPT).unwrap_err());
    says(learner.reference(&[]).unwrap_err());
}
