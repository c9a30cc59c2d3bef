//! DoRA on the candle network: against weights that were changed by its formula, and its gradients against slopes.

use std::sync::Arc;

use candle_core::Device;

use super::learn::CandleLearner;
use super::tests::{check_gradients_holding, config, network, numbers, objective, params, rows};
use super::{CandleNetwork, weights};
use crate::model::config::{Family, ModelConfig};
use crate::model::lora::{LoraModule, LoraShape, LoraWeights, Target};
use crate::model::{Learner, Network, PassOptions, Tokens};

/// Pairs on all layers, all values zero.
fn zeros(config: &ModelConfig, dora: bool) -> LoraWeights {
    let shape = |(layer, target)| {
        let (in_features, out_features) = config.linear_shape(target);
        LoraShape { layer, target, rank: 3, in_features, out_features, scale: 2.0, dora }
    };
    let places = (0..config.layers).flat_map(|layer| Target::ALL.map(|target| (layer, target)));
    LoraWeights::zeros(places.map(shape).collect())
}

/// Pairs with magnitudes that are off the lengths of the base's rows.
fn dora(config: &ModelConfig) -> LoraWeights {
    let mut lora = zeros(config, true);
    lora.data = numbers(lora.data.len(), 0.3, 99);
    for module in &lora.modules {
        let lengths = lengths(config, module, &vec![0.0; lora.data.len()]);
        for (at, length) in module.magnitude.clone().unwrap().zip(lengths) {
            lora.data[at] = length as f32 * (1.0 + lora.data[at]);
        }
    }
    lora
}

fn start_of(config: &ModelConfig, module: &LoraModule) -> usize {
    let name = format!("model.layers.{}.{}.{}.weight", module.layer, module.target.block(), module.target.name());
    weights::slots(config).unwrap().into_iter().find(|slot| slot.name == name).unwrap().start
}

/// A row of W + s · B A.
fn row(config: &ModelConfig, base: &[f32], module: &LoraModule, data: &[f32], row: usize) -> Vec<f64> {
    let LoraModule { rank, in_features: n, scale, .. } = *module;
    let (w, a, b) = (&base[start_of(config, module) + row * n..], &data[module.a.clone()], &data[module.b.clone()]);
    let low = |i: usize| (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * n + i])).sum::<f64>();
    (0..n).map(|i| f64::from(w[i]) + f64::from(scale) * low(i)).collect()
}

/// ‖W + s · B A‖ of each row, the plain way.
fn lengths(config: &ModelConfig, module: &LoraModule, data: &[f32]) -> Vec<f64> {
    let base = params(config);
    let length = |i| row(config, &base, module, data, i).iter().map(|v| v * v).sum::<f64>().sqrt();
    (0..module.out_features).map(length).collect()
}

/// The base with magnitude · (W + s · B A) / ‖W + s · B A‖ in place of each adapted W.
fn merged(config: &ModelConfig, lora: &LoraWeights) -> CandleNetwork {
    let base = params(config);
    let mut changed = base.clone();
    for module in &lora.modules {
        let (start, n) = (start_of(config, module), module.in_features);
        let lengths = lengths(config, module, &lora.data);
        for (i, magnitude) in lora.magnitude(module).unwrap().iter().enumerate() {
            for (j, value) in row(config, &base, module, &lora.data, i).into_iter().enumerate() {
                changed[start + i * n + j] = (f64::from(*magnitude) * value / lengths[i]) as f32;
            }
        }
    }
    CandleNetwork::from_params(config, &changed, &Device::Cpu).unwrap()
}

fn assert_close(ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() < 2e-5, "{a} and {b}");
    }
}

#[test]
fn dora_is_a_base_with_other_rows() {
    for family in [Family::Qwen2, Family::Qwen3] {
        let config = config(family);
        let (network, lora) = (network(&config), dora(&config));
        let row = &rows()[1];
        let wanted = merged(&config, &lora).decoder(None).unwrap().score(&row.ids).unwrap();
        let found = network.decoder(Some(&lora)).unwrap().score(&row.ids).unwrap();
        assert_close(&found, &wanted);
        let trained = network.learner(&lora, Arc::default()).unwrap();
        let trained = trained.forward(&[row], PassOptions::default()).unwrap().logprobs()[0].clone();
        assert_close(&trained, &wanted[wanted.len() - trained.len()..]);
        let bare = network.decoder(None).unwrap().score(&row.ids).unwrap();
        assert!(bare.iter().zip(&found).any(|(a, b)| (a - b).abs() > 0.1), "it changes something");
    }
}

#[test]
fn magnitudes_of_the_bases_rows_change_nothing() {
    let config = config(Family::Qwen2);
    let (network, mut lora) = (network(&config), dora(&config));
    for module in lora.modules.clone() {
        let norms = network.row_norms(module.layer, module.target).unwrap();
        for (ours, plain) in norms.iter().zip(lengths(&config, &module, &vec![0.0; lora.data.len()])) {
            assert!((f64::from(*ours) - plain).abs() < 1e-5, "{ours} and {plain}");
        }
        lora.data[module.magnitude.unwrap()].copy_from_slice(&norms);
        lora.data[module.b].fill(0.0);
    }
    let ids = &rows()[0].ids;
    let score = |lora| network.decoder(lora).unwrap().score(ids).unwrap();
    assert_close(&score(Some(&lora)), &score(None));
    assert!(network.row_norms(2, Target::Q).is_err());
}

#[test]
fn gradients_of_magnitudes_are_the_slopes() {
    for family in [Family::Qwen2, Family::Qwen3] {
        let config = config(family);
        let lora = dora(&config);
        let magnitudes: Vec<usize> = lora.modules.iter().map(|m| m.magnitude.clone().unwrap().start + 3).collect();
        let mut learner = network(&config).learner(&lora, Arc::default()).unwrap();
        learner.load(&lora.data).unwrap();
        let (_, grads) = objective(learner.as_ref(), &rows(), true);
        for &place in &magnitudes {
            let mut value = |step: f32| {
                let mut moved = lora.data.clone();
                moved[place] += step;
                learner.load(&moved).unwrap();
                objective(learner.as_ref(), &rows(), true).0
            };
            let (slope, stated) = ((value(1e-2) - value(-1e-2)) / 2e-2, f64::from(grads[place]));
            assert!((slope - stated).abs() < 2e-2 * stated.abs().max(0.1), "{place}: {slope}, {stated} was stated");
        }
    }
}

#[test]
fn gradients_of_pairs_take_the_lengths_to_be_constant() {
    for family in [Family::Qwen2, Family::Qwen3] {
        let config = config(family);
        let lora = dora(&config);
        let places: Vec<usize> = lora.modules.iter().flat_map(|m| [m.a.start + 1, m.b.start + 2]).collect();
        let before: Vec<Vec<f64>> = lora.modules.iter().map(|m| lengths(&config, m, &lora.data)).collect();
        // Magnitudes that grow with the rows leave the factors as they were.
        let hold = |mut moved: Vec<f32>| {
            for (module, before) in lora.modules.iter().zip(&before) {
                let now = lengths(&config, module, &moved);
                for ((at, now), before) in module.magnitude.clone().unwrap().zip(now).zip(before) {
                    moved[at] = (f64::from(moved[at]) * now / before) as f32;
                }
            }
            moved
        };
        let mut learner = network(&config).learner(&lora, Arc::default()).unwrap();
        check_gradients_holding(learner.as_mut(), &lora.data, &places, &rows(), false, &hold);
        check_gradients_holding(learner.as_mut(), &lora.data, &places[..2], &rows(), true, &hold);
    }
}

#[test]
fn stages_computed_again_give_the_same_bits() {
    let config = config(Family::Qwen2);
    let (network, lora) = (network(&config), dora(&config));
    let run = |keeps_graphs| {
        let mut learner = CandleLearner::new(Arc::clone(&network.shared), &lora, Arc::default()).unwrap();
        learner.keeps_graphs = keeps_graphs;
        let options = PassOptions { kl: true, dropout: Some((0.3, 7)) };
        let pass = learner.forward(&rows().iter().collect::<Vec<_>>(), options).unwrap();
        let ones: Vec<Vec<f32>> = pass.logprobs().iter().map(|row| vec![1.0; row.len()]).collect();
        let mut grads = vec![0.0; lora.data.len()];
        pass.backward(&ones, Some(&ones), &mut grads).unwrap();
        for module in &lora.modules {
            let moved = grads[module.magnitude.clone().unwrap()].iter().filter(|g| **g != 0.0).count();
            assert!(moved * 2 > module.out_features, "{}: {moved} magnitudes move", module.peft_prefix());
        }
        grads.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn dropout_drops_from_what_is_rescaled() {
    let config = config(Family::Qwen2);
    let (network, lora) = (network(&config), dora(&config));
    let row = &rows()[0];
    let run = |lora: &LoraWeights, dropout| -> Vec<f32> {
        let learner = network.learner(lora, Arc::default()).unwrap();
        learner.forward(&[row], PassOptions { kl: false, dropout }).unwrap().logprobs()[0].clone()
    };
    let pairs = lora.modules.iter().flat_map(|m| [lora.a(m), lora.b(m)].concat()).collect();
    let plain = LoraWeights { data: pairs, ..zeros(&config, false) };
    let mut even = lora.clone();
    for module in &lora.modules {
        let lengths = lengths(&config, module, &lora.data).into_iter().map(|n| n as f32).collect::<Vec<f32>>();
        even.data[module.magnitude.clone().unwrap()].copy_from_slice(&lengths);
    }
    // Factors of 1 leave W x as it is: what is dropped is the pair's input alone, as in plain LoRA.
    assert_close(&run(&even, Some((0.4, 3))), &run(&plain, Some((0.4, 3))));
    assert!(run(&even, Some((0.4, 3))) != run(&even, None));
    // Other factors rescale W d, not W x.
    let (dropped, whole) = (run(&lora, Some((0.4, 3))), run(&lora, None));
    assert!(dropped.iter().zip(&whole).any(|(a, b)| (a - b).abs() > 1e-2), "{dropped:?} and {whole:?}");
}

#[test]
fn a_row_of_zeros_stays_zero() {
    let config = config(Family::Qwen3);
    let mut base = params(&config);
    let mut lora = dora(&config);
    let module = lora.modules[0].clone();
    let start = start_of(&config, &module);
    base[start..start + module.in_features].fill(0.0);
    lora.data[module.b.start..module.b.start + module.rank].fill(0.0);
    let network = CandleNetwork::from_params(&config, &base, &Device::Cpu).unwrap();
    let row = Tokens::new(&[1, 2], &[3, 4]);
    assert!(network.decoder(Some(&lora)).unwrap().score(&row.ids).unwrap().iter().all(|p| p.is_finite()));
    let learner = network.learner(&lora, Arc::default()).unwrap();
    let (_, grads) = objective(learner.as_ref(), &[row], true);
    assert!(grads.iter().all(|g| g.is_finite()));
}
