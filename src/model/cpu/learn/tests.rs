//! The learner against the candle one, and against itself: other numbers of threads, less memory.

use std::sync::Arc;

use candle_core::Device;

use super::CpuLearner;
use super::pass::Keep;
use crate::model::candle::CandleNetwork;
use crate::model::candle::tests::{adapter, check_gradients_holding, numbers, objective_with};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{Family, ModelConfig};
use crate::model::cpu::kernels::Level;
use crate::model::cpu::tests::{checkpoint, config, dora, network};
use crate::model::lora::{LoraWeights, Target};
use crate::model::storage::Storage;
use crate::model::{Learner, Network, PassOptions, Tokens};

use Target::{Down, Gate, K, O, Q, Up, V};

/// Rows of different lengths; some with targets apart from each other.
fn rows() -> Vec<Tokens> {
    let ids = |seed: u32, n: u32| (0..n).map(|i| (seed + i * i * 7 + i) % 37).collect::<Vec<u32>>();
    let mut gaps = Tokens::new(&ids(3, 4), &ids(5, 9));
    gaps.targets[6] = false;
    vec![
        Tokens::new(&ids(1, 5), &ids(2, 3)),
        gaps,
        Tokens::new(&ids(8, 1), &ids(9, 2)),
        Tokens::new(&ids(6, 70), &ids(4, 5)),
    ]
}

/// Log-probabilities, KL and gradients of both within `tolerance` of each other, relative to the largest of a tensor.
fn agree(oracle: &dyn Learner, learner: &dyn Learner, lora: &LoraWeights, options: PassOptions, what: &str) {
    agree_on(&rows(), oracle, learner, lora, options, EXACT, what);
}

/// How far apart log-probabilities and KL may be; each gradient of a tensor, to its largest; and all of a tensor, to their
/// length. Of f32, and of sixteen-bit numbers.
type Limits = (f32, f32, f32);
const EXACT: Limits = (2e-5, 2e-4, 2e-4);
const WORDS: Limits = (5e-4, 2e-3, 1e-3);

fn agree_on(
    rows: &[Tokens],
    oracle: &dyn Learner,
    learner: &dyn Learner,
    lora: &LoraWeights,
    options: PassOptions,
    (near_enough, each_near_enough, all_near_enough): Limits,
    what: &str,
) {
    let refs: Vec<&Tokens> = rows.iter().collect();
    let (expected, found) = (oracle.forward(&refs, options).unwrap(), learner.forward(&refs, options).unwrap());
    let near = |found: &[Vec<f32>], expected: &[Vec<f32>], most: f32, what: &str| {
        let lens = |lists: &[Vec<f32>]| lists.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lens(found), lens(expected), "{what}");
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() <= most * (1.0 + expected.abs()), "{what}: {found} and {expected}");
        }
    };
    near(found.logprobs(), expected.logprobs(), near_enough, &format!("{what}: log-probabilities"));
    near(found.kl(), expected.kl(), near_enough, &format!("{what}: KL"));
    assert_eq!(found.kl().iter().any(|kl| !kl.is_empty()), options.kl);
    near(
        &learner.reference(&refs).unwrap(),
        &oracle.reference(&refs).unwrap(),
        near_enough,
        &format!("{what}: reference"),
    );

    let (_, expected) = objective_with(oracle, rows, options);
    let (_, found) = objective_with(learner, rows, options);
    for module in &lora.modules {
        let places = [Some(module.a.clone()), Some(module.b.clone()), module.magnitude.clone()];
        for (place, name) in places.into_iter().zip(["A", "B", "magnitude"]) {
            let Some(place) = place else { continue };
            let (found, expected) = (&found[place.clone()], &expected[place]);
            let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(
                largest > 0.0 && found.iter().any(|g| *g != 0.0),
                "{what}: no gradient of {name} of {}",
                module.path()
            );
            let square = |x: f32| f64::from(x).powi(2);
            let apart: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
            let length: f64 = expected.iter().map(|x| square(*x)).sum();
            let off = (apart / length).sqrt() as f32;
            assert!(off < all_near_enough, "{what}: {name} of {} is {off} off", module.path());
            for (found, expected) in found.iter().zip(expected) {
                let off = (found - expected).abs() / largest;
                assert!(
                    off < each_near_enough,
                    "{what}: {name} of {} is {found} in place of {expected}, {off}",
                    module.path()
                );
            }
        }
    }
}

/// Both networks of a checkpoint, with learners of `lora`.
fn both(config: &ModelConfig, checkpoint: &Checkpoint, lora: &LoraWeights) -> [Box<dyn Learner>; 2] {
    let oracle = CandleNetwork::load(config, checkpoint, &Device::Cpu).unwrap();
    let ours = learner(config, checkpoint, 2, lora);
    [oracle.learner(lora, Arc::default()).unwrap(), Box::new(ours)]
}

const DROPOUT: Option<(f32, u64)> = Some((0.3, 77));

#[test]
fn gradients_are_those_of_the_candle_network() {
    for family in [Family::Qwen2, Family::Qwen3] {
        let config = config(family, false);
        let checkpoint = checkpoint(&config, Storage::F32);
        for tied in [true, false] {
            let config = ModelConfig { tied_embeddings: tied, ..config.clone() };
            let checkpoint = crate::model::cpu::tests::checkpoint(&config, Storage::F32);
            let lora = adapter(&config, &Target::ALL);
            for lora in [dora(&lora), lora] {
                let [oracle, ours] = both(&config, &checkpoint, &lora);
                for (kl, dropout) in [(false, None), (true, None), (false, DROPOUT), (true, DROPOUT)] {
                    let dora = lora.modules[0].magnitude.is_some();
                    let what = format!("{family:?}, tied {tied}, KL {kl}, {dropout:?}, DoRA {dora}");
                    agree(&*oracle, &*ours, &lora, PassOptions { kl, dropout }, &what);
                }
            }
        }
        for targets in [vec![Q], vec![K, V], vec![O], vec![Gate], vec![Up, Q], vec![Down]] {
            let lora = adapter(&config, &targets);
            let [oracle, ours] = both(&config, &checkpoint, &lora);
            agree(&*oracle, &*ours, &lora, PassOptions::default(), &format!("{family:?}, {targets:?}"));
        }
    }
}

#[test]
fn words_learn_nearly_the_same() {
    for (family, storage) in [(Family::Qwen2, Storage::BF16), (Family::Qwen3, Storage::F32)] {
        let config = config(family, false);
        let checkpoint = checkpoint(&config, storage);
        let lora = adapter(&config, &Target::ALL);
        for lora in [dora(&lora), lora] {
            let [oracle, _] = both(&config, &checkpoint, &lora);
            let mut ours = learner(&config, &checkpoint, 2, &lora);
            ours.words = true;
            for (kl, dropout) in [(false, None), (true, None), (false, DROPOUT), (true, DROPOUT)] {
                let options = PassOptions { kl, dropout };
                agree_on(&rows(), &*oracle, &ours, &lora, options, WORDS, &format!("{family:?}, {options:?}"));
            }
        }
    }
}

#[test]
fn blocks_below_the_pairs_need_no_gradient() {
    let config = config(Family::Qwen3, false);
    let checkpoint = checkpoint(&config, Storage::BF16);
    for targets in [vec![Q, Down], vec![O], vec![Up], vec![Down]] {
        let mut lora = adapter(&config, &targets);
        lora.modules.retain(|module| module.layer == 1);
        let [oracle, ours] = both(&config, &checkpoint, &lora);
        let rows = rows();
        let (_, expected) = objective_with(&*oracle, &rows, PassOptions::default());
        let (_, found) = objective_with(&*ours, &rows, PassOptions::default());
        let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4 * largest), "{targets:?}");
    }
}

#[test]
fn every_storage_learns_as_its_numbers_do() {
    for storage in Storage::READABLE {
        let wide = storage.block().0 > 1;
        for family in [Family::Qwen2, Family::Qwen3] {
            let config = config(family, wide);
            let checkpoint = checkpoint(&config, storage);
            let lora = adapter(&config, &Target::ALL);
            let [oracle, ours] = both(&config, &checkpoint, &lora);
            let options = PassOptions { kl: true, dropout: None };
            agree(&*oracle, &*ours, &lora, options, &format!("{storage}, {family:?}"));
        }
    }
}

/// Longer than the pieces in which products and attention take them.
#[test]
fn long_rows_are_no_different() {
    let config = config(Family::Qwen3, false);
    let checkpoint = checkpoint(&config, Storage::F32);
    let lora = adapter(&config, &Target::ALL);
    let ids: Vec<u32> = (0..1100).map(|i| (i * i * 5 + i / 3) % 37).collect();
    let rows = [Tokens::new(&ids[..90], &ids[90..100]), Tokens::new(&ids[..1050], &ids[1050..])];
    let [oracle, ours] = both(&config, &checkpoint, &lora);
    agree_on(&rows, &*oracle, &*ours, &lora, PassOptions { kl: true, dropout: None }, EXACT, "long rows");
    let mut ours = learner(&config, &checkpoint, 2, &lora);
    ours.words = true;
    agree_on(&rows, &*oracle, &ours, &lora, PassOptions { kl: true, dropout: None }, WORDS, "long rows in words");
}

#[test]
fn gradients_are_the_slopes() {
    let config = config(Family::Qwen3, false);
    let checkpoint = checkpoint(&config, Storage::F32);
    let lora = adapter(&config, &Target::ALL);
    let [_, mut ours] = both(&config, &checkpoint, &lora);
    let places: Vec<usize> = lora.modules.iter().flat_map(|m| [m.a.start, m.b.start]).collect();
    check_gradients_holding(&mut *ours, &lora.data, &places, &rows()[..2], true, &|moved| moved);
}

fn learner(config: &ModelConfig, checkpoint: &Checkpoint, threads: usize, lora: &LoraWeights) -> CpuLearner {
    let network = network(config, checkpoint, threads, Level::detect());
    let mut learner = CpuLearner::new(network.shared, lora, Arc::default());
    learner.words = false;
    learner
}

#[test]
fn threads_and_less_memory_change_no_bit() {
    for (storage, family) in [(Storage::Q4K, Family::Qwen2), (Storage::BF16, Family::Qwen3)] {
        let config = config(family, storage == Storage::Q4K);
        let checkpoint = checkpoint(&config, storage);
        let lora = dora(&adapter(&config, &Target::ALL));
        let options = PassOptions { kl: true, dropout: DROPOUT };
        let of = |threads: usize, keep: Keep, words: bool| {
            let mut learner = learner(&config, &checkpoint, threads, &lora);
            learner.words = words;
            learner.keep = Some(keep);
            learner.stashes = threads > 1;
            let first = objective_with(&learner, &rows(), options);
            objective_with(&learner, &rows()[..2], options);
            assert_eq!(objective_with(&learner, &rows(), options), first, "a pass leaves nothing to the next");
            assert_eq!(objective_with(&learner, &rows(), options), first, "a pass leaves nothing to the next");
            first
        };
        for words in [false, true] {
            let expected = of(1, Keep::All, words);
            for (threads, keep) in [(2, Keep::All), (4, Keep::All), (1, Keep::Inputs), (3, Keep::Inputs)] {
                assert_eq!(of(threads, keep, words), expected, "{storage}, {threads} threads, {keep:?}, words {words}");
            }
        }
    }
}

#[test]
fn loaded_parameters_count_and_others_are_refused() {
    let config = config(Family::Qwen2, false);
    let checkpoint = checkpoint(&config, Storage::F32);
    let lora = dora(&adapter(&config, &[Q, Down]));
    let moved: Vec<f32> = lora.data.iter().zip(numbers(lora.data.len(), 0.1, 3)).map(|(x, by)| x + by).collect();
    let [mut oracle, mut ours] = both(&config, &checkpoint, &lora);
    oracle.load(&moved).unwrap();
    ours.load(&moved).unwrap();
    agree(&*oracle, &*ours, &lora, PassOptions::default(), "loaded");
    assert!(ours.load(&moved[1..]).unwrap_err().to_string().contains("parameters for an adapter of"));
}
