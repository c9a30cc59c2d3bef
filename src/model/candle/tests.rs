//! Gradients against finite differences, packing and caching against the plain way.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{qwen2, qwen3};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::decode::CandleDecoder;
use super::learn::CandleLearner;
use super::{CandleNetwork, weights};
use crate::model::config::{Family, ModelConfig};
use crate::model::courtesy::{ChatGate, Courtesy};
use crate::model::lora::{LoraShape, LoraWeights, Target};
use crate::model::{Decoder, Learner, Network, PassOptions, Tokens};

pub(crate) fn config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        vocab_size: 37,
        hidden_size: 24,
        intermediate_size: 40,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 10,
        context: 64,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: crate::model::rope::RopeScaling::None,
        attention_bias: family == Family::Qwen2,
        tied_embeddings: family == Family::Qwen3,
    }
}

pub(crate) fn numbers(n: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| scale * (rng.random::<f32>() * 2.0 - 1.0)).collect()
}

pub(super) fn params(config: &ModelConfig) -> Vec<f32> {
    let slots = weights::slots(config).unwrap();
    slots
        .iter()
        .enumerate()
        .flat_map(|(i, s)| {
            let centre = if s.name.contains("norm") { 1.0 } else { 0.0 };
            let scale = if s.shape.len() == 1 { 0.3 } else { 1.5 / (s.shape[1] as f32).sqrt() };
            numbers(s.len(), scale, i as u64).into_iter().map(move |v| v + centre)
        })
        .collect()
}

pub(crate) fn network(config: &ModelConfig) -> CandleNetwork {
    CandleNetwork::from_params(config, &params(config), &Device::Cpu).unwrap()
}

pub(crate) fn adapter(config: &ModelConfig, targets: &[Target]) -> LoraWeights {
    let shapes = (0..config.layers)
        .flat_map(|layer| {
            targets.iter().map(move |&target| {
                let (in_features, out_features) = config.linear_shape(target);
                LoraShape { layer, target, rank: 3, in_features, out_features, scale: 2.0, dora: false }
            })
        })
        .collect();
    let mut lora = LoraWeights::zeros(shapes);
    lora.data = numbers(lora.data.len(), 0.3, 99);
    lora
}

pub(super) fn rows() -> Vec<Tokens> {
    vec![Tokens::new(&[3, 14, 15, 9], &[26, 5, 35]), Tokens::new(&[8, 9], &[7, 9, 3, 2, 30])]
}

/// Σ over rows of cᵢ·log pᵢ + eᵢ·KLᵢ with arbitrary coefficients, and its gradient.
pub(crate) fn objective(learner: &dyn Learner, rows: &[Tokens], kl: bool) -> (f64, Vec<f32>) {
    objective_with(learner, rows, PassOptions { kl, dropout: None })
}

pub(crate) fn objective_with(learner: &dyn Learner, rows: &[Tokens], options: PassOptions) -> (f64, Vec<f32>) {
    let rows: Vec<&Tokens> = rows.iter().collect();
    let pass = learner.forward(&rows, options).unwrap();
    let weigh = |lists: &[Vec<f32>], seed: u64| -> (f64, Vec<Vec<f32>>) {
        let c: Vec<Vec<f32>> = lists.iter().enumerate().map(|(i, l)| numbers(l.len(), 1.0, seed + i as u64)).collect();
        let sum = lists.iter().flatten().zip(c.iter().flatten()).map(|(v, c)| f64::from(*v) * f64::from(*c)).sum();
        (sum, c)
    };
    let (a, d_logprobs) = weigh(pass.logprobs(), 5);
    let (b, d_kl) = weigh(pass.kl(), 50);
    let mut grads = vec![0.0; learner.len()];
    pass.backward(&d_logprobs, options.kl.then_some(&d_kl), &mut grads).unwrap();
    (a + b, grads)
}

fn check_gradients(learner: &mut dyn Learner, start: &[f32], places: &[usize], rows: &[Tokens], kl: bool) {
    check_gradients_holding(learner, start, places, rows, kl, &|moved| moved);
}

/// Compares gradients with central differences along coordinates of every tensor and along random directions. `hold` makes
/// up for what the gradient takes to be constant.
pub(crate) fn check_gradients_holding(
    learner: &mut dyn Learner,
    start: &[f32],
    places: &[usize],
    rows: &[Tokens],
    kl: bool,
    hold: &dyn Fn(Vec<f32>) -> Vec<f32>,
) {
    learner.load(start).unwrap();
    let (_, grads) = objective(learner, rows, kl);
    let mut along = |direction: &dyn Fn(usize) -> f32, step: f32| {
        let mut value = |sign: f32| {
            let moved: Vec<f32> = start.iter().enumerate().map(|(i, p)| p + sign * step * direction(i)).collect();
            learner.load(&hold(moved)).unwrap();
            objective(learner, rows, kl).0
        };
        (value(1.0) - value(-1.0)) / f64::from(2.0 * step)
    };
    for seed in 0..4 {
        let d = numbers(start.len(), 1.0, 1000 + seed);
        let slope = along(&|i| d[i], 1e-3);
        let stated: f64 = grads.iter().zip(&d).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let size = grads.iter().map(|g| f64::from(*g).abs()).sum::<f64>();
        assert!((slope - stated).abs() < 2e-3 * size.max(1.0), "direction {seed}: {slope} but {stated} was stated");
    }
    for &place in places {
        let slope = along(&|i| if i == place { 1.0 } else { 0.0 }, 1e-2);
        let stated = f64::from(grads[place]);
        assert!(
            (slope - stated).abs() < 2e-2 * stated.abs().max(0.2),
            "value {place}: {slope} but {stated} was stated"
        );
    }
}

#[test]
fn lora_gradients_are_the_slopes() {
    for family in [Family::Qwen2, Family::Qwen3] {
        let config = config(family);
        let lora = adapter(&config, &Target::ALL);
        let places: Vec<usize> = lora.modules.iter().flat_map(|m| [m.a.start + 1, m.b.start + 2]).collect();
        let mut learner = network(&config).learner(&lora, Arc::new(Courtesy::default())).unwrap();
        check_gradients(learner.as_mut(), &lora.data, &places, &rows(), false);
        check_gradients(learner.as_mut(), &lora.data, &places[..4], &rows(), true);
    }
}

#[test]
fn gradients_of_all_weights_are_the_slopes() {
    for family in [Family::Qwen2, Family::Qwen3] {
        let config = config(family);
        let places: Vec<usize> = weights::slots(&config).unwrap().iter().map(|s| s.start + s.len() / 2).collect();
        let mut learner = CandleNetwork::full_learner(&config, &Device::Cpu).unwrap();
        check_gradients(learner.as_mut(), &params(&config), &places, &rows(), false);
    }
}

#[test]
fn stages_computed_again_give_the_same_bits() {
    for family in [Family::Qwen2, Family::Qwen3] {
        let config = config(family);
        let (network, lora) = (network(&config), adapter(&config, &Target::ALL));
        let run = |keeps_graphs| {
            let mut learner = CandleLearner::new(Arc::clone(&network.shared), &lora, Arc::default()).unwrap();
            learner.keeps_graphs = keeps_graphs;
            let options = PassOptions { kl: true, dropout: Some((0.3, 7)) };
            let pass = learner.forward(&rows().iter().collect::<Vec<_>>(), options).unwrap();
            let ones: Vec<Vec<f32>> = pass.logprobs().iter().map(|row| vec![1.0; row.len()]).collect();
            let (logprobs, mut grads) = (pass.logprobs().to_vec(), vec![0.0; learner.len()]);
            pass.backward(&ones, Some(&ones), &mut grads).unwrap();
            (logprobs, grads.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        assert_eq!(run(true), run(false));
    }
}

#[test]
fn an_adapter_on_a_later_layer_alone_gets_its_gradient() {
    let config = config(Family::Qwen3);
    let (inputs, outputs) = config.linear_shape(Target::Gate);
    let shape = LoraShape {
        layer: 1,
        target: Target::Gate,
        rank: 2,
        in_features: inputs,
        out_features: outputs,
        scale: 1.0,
        dora: false,
    };
    let mut lora = LoraWeights::zeros(vec![shape]);
    lora.data = numbers(lora.data.len(), 0.3, 3);
    let mut learner = network(&config).learner(&lora, Arc::default()).unwrap();
    check_gradients(learner.as_mut(), &lora.data, &[0, lora.data.len() - 1], &rows(), true);
}

#[test]
fn every_lora_parameter_gets_a_gradient() {
    let config = config(Family::Qwen3);
    let lora = adapter(&config, &Target::ALL);
    let learner = network(&config).learner(&lora, Arc::new(Courtesy::default())).unwrap();
    let (_, grads) = objective(learner.as_ref(), &rows(), false);
    for m in &lora.modules {
        for (half, range) in [("A", m.a.clone()), ("B", m.b.clone())] {
            let moved = grads[range.clone()].iter().filter(|g| **g != 0.0).count();
            assert!(moved * 2 > range.len(), "{} {half}: {moved} of {} values move", m.peft_prefix(), range.len());
        }
    }
}

#[test]
fn packed_rows_are_as_rows_alone() {
    for family in [Family::Qwen2, Family::Qwen3] {
        let config = config(family);
        let lora = adapter(&config, &[Target::Q, Target::V, Target::Down]);
        let learner = network(&config).learner(&lora, Arc::new(Courtesy::default())).unwrap();
        let rows = rows();
        let options = PassOptions { kl: true, dropout: None };
        let together = learner.forward(&rows.iter().collect::<Vec<_>>(), options).unwrap();
        for (i, row) in rows.iter().enumerate() {
            let alone = learner.forward(&[row], options).unwrap();
            for (a, b) in together.logprobs()[i].iter().zip(&alone.logprobs()[0]) {
                assert!((a - b).abs() < 1e-5, "{a} and {b}");
            }
            for (a, b) in together.kl()[i].iter().zip(&alone.kl()[0]) {
                assert!((a - b).abs() < 1e-5, "{a} and {b}");
            }
        }
    }
}

#[test]
fn decoding_with_a_cache_agrees_with_training_forwards() {
    let config = config(Family::Qwen2);
    let lora = adapter(&config, &Target::ALL);
    let network = network(&config);
    let ids: Vec<u32> = (0..40).map(|i| (i * 7 % 37) as u32).collect();
    let row = Tokens::new(&ids[..1], &ids[1..]);
    let learner = network.learner(&lora, Arc::new(Courtesy::default())).unwrap();
    let trained = learner.forward(&[&row], PassOptions::default()).unwrap().logprobs()[0].clone();
    let scored = network.decoder(Some(&lora)).unwrap().score(&ids).unwrap();
    let mut stepwise = network.decoder(Some(&lora)).unwrap();
    for i in 1..ids.len() {
        let logits = stepwise.forward(&ids[i - 1..i]).unwrap();
        let max = logits.iter().cloned().fold(f32::MIN, f32::max);
        let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
        let step = logits[ids[i] as usize] - max - sum.ln();
        assert!((step - trained[i - 1]).abs() < 1e-4, "token {i}: {step} and {}", trained[i - 1]);
        assert!((step - scored[i - 1]).abs() < 1e-4, "token {i}: {step} and {}", scored[i - 1]);
    }
}

#[test]
fn truncating_the_cache_forgets_what_came_after() {
    let config = config(Family::Qwen3);
    let network = network(&config);
    let mut fresh = network.decoder(None).unwrap();
    let expected = fresh.forward(&[1, 2, 3, 4]).unwrap();
    let mut used = network.decoder(None).unwrap();
    used.forward(&[1, 2, 30, 31, 32]).unwrap();
    used.truncate(2);
    assert_eq!(used.len(), 2);
    let again = used.forward(&[3, 4]).unwrap();
    for (a, b) in expected.iter().zip(&again) {
        assert!((a - b).abs() < 1e-5);
    }
}

#[test]
fn a_long_prompt_is_as_its_parts() {
    let config = ModelConfig { context: 600, ..config(Family::Qwen3) };
    let network = network(&config);
    let ids: Vec<u32> = (0..600).map(|i| i * i % 37).collect();
    let mut whole = network.decoder(None).unwrap();
    let together = whole.forward(&ids).unwrap();
    let mut parts = network.decoder(None).unwrap();
    let apart = ids.chunks(100).map(|part| parts.forward(part).unwrap()).last().unwrap();
    assert_eq!((whole.len(), parts.len(), together.len()), (600, 600, 37));
    for (a, b) in together.iter().zip(&apart) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
    for count in [1, 256, 257, 600] {
        assert_eq!(network.decoder(None).unwrap().score(&ids[..count]).unwrap().len(), count - 1);
    }
}

#[test]
fn a_failed_forward_leaves_the_cache_as_it_was() {
    let config = config(Family::Qwen2);
    let network = network(&config);
    let expected = network.decoder(None).unwrap().forward(&[1, 2, 3, 4]).unwrap();
    let mut decoder = network.decoder(None).unwrap();
    decoder.forward(&[1, 2]).unwrap();
    let bad: Vec<u32> = (0..300).map(|i| if i == 299 { 37 } else { 5 }).collect();
    for bad in [&bad[..], &[]] {
        assert!(decoder.forward(bad).is_err() && decoder.score(bad).is_err());
        assert_eq!(decoder.len(), 2);
    }
    for (a, b) in expected.iter().zip(&decoder.forward(&[3, 4]).unwrap()) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

#[test]
fn a_cache_grows_no_further_than_the_context() {
    let network = network(&ModelConfig { context: 300, ..config(Family::Qwen3) });
    let mut decoder = CandleDecoder::new(Arc::clone(&network.shared), None).unwrap();
    decoder.forward(&[1]).unwrap();
    assert_eq!(decoder.capacity, 256);
    decoder.forward(&[1; 260]).unwrap();
    assert_eq!(decoder.capacity, 300);
}

#[test]
fn the_reference_is_the_base() {
    let config = config(Family::Qwen3);
    let lora = adapter(&config, &Target::ALL);
    let network = network(&config);
    let learner = network.learner(&lora, Arc::new(Courtesy::default())).unwrap();
    let rows = rows();
    let reference = learner.reference(&[&rows[0]]).unwrap();
    let base = network.decoder(None).unwrap().score(&rows[0].ids).unwrap();
    for (a, b) in reference[0].iter().zip(&base[3..]) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

#[test]
fn dropout_follows_its_seed() {
    let config = config(Family::Qwen3);
    let lora = adapter(&config, &Target::ALL);
    let learner = network(&config).learner(&lora, Arc::new(Courtesy::default())).unwrap();
    let rows = rows();
    let run = |seed| {
        let options = PassOptions { kl: false, dropout: Some((0.5, seed)) };
        learner.forward(&[&rows[0]], options).unwrap().logprobs()[0].clone()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let config = config(Family::Qwen3);
    let network = network(&config);
    let bad = |layer, in_features| {
        let shape =
            LoraShape { layer, target: Target::Up, rank: 2, in_features, out_features: 40, scale: 1.0, dora: false };
        network.decoder(Some(&LoraWeights::zeros(vec![shape]))).err().unwrap().to_string()
    };
    assert!(bad(7, 24).contains("layers.7.mlp.up_proj"), "{}", bad(7, 24));
    assert!(bad(0, 25).contains("25 → 40"), "{}", bad(0, 25));
    let error = network.decoder(None).unwrap().forward(&[37]).unwrap_err().to_string();
    assert!(error.contains("37"), "{error}");
}

#[test]
fn a_cancelled_training_stops_at_the_next_layer() {
    let config = config(Family::Qwen3);
    let lora = adapter(&config, &Target::ALL);
    let courtesy = Arc::new(Courtesy::default());
    let learner = network(&config).learner(&lora, Arc::clone(&courtesy)).unwrap();
    courtesy.cancel();
    let error = learner.forward(&[&rows()[0]], PassOptions::default()).err().unwrap();
    assert!(error.is_interrupted());
}

/// The same weights in candle-transformers' network: logits after `ids`.
fn oracle(config: &ModelConfig, ids: &[u32]) -> Vec<f32> {
    let values = params(config);
    let tensors = weights::slots(config)
        .unwrap()
        .into_iter()
        .map(|s| {
            let tensor = Tensor::from_slice(&values[s.start..s.start + s.len()], s.shape.as_slice(), &Device::Cpu);
            (s.name, tensor.unwrap())
        })
        .collect();
    let vb = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let input = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
    let json = serde_json::json!({
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
        "attention_bias": config.attention_bias, "max_position_embeddings": config.context,
        "sliding_window": 4096, "max_window_layers": config.layers, "use_sliding_window": false,
        "tie_word_embeddings": config.tied_embeddings, "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps, "hidden_act": "silu",
    });
    let logits = match config.family {
        Family::Qwen2 => {
            let config = serde_json::from_value(json).unwrap();
            qwen2::ModelForCausalLM::new(&config, vb).unwrap().forward(&input, 0)
        }
        Family::Qwen3 => {
            let config = serde_json::from_value(json).unwrap();
            qwen3::ModelForCausalLM::new(&config, vb).unwrap().forward(&input, 0)
        }
    };
    logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn logits_agree_with_candles_own_networks() {
    for family in [Family::Qwen2, Family::Qwen3] {
        // candle's Qwen2 takes head_dim to be hidden / heads
        let config = ModelConfig { head_dim: if family == Family::Qwen2 { 6 } else { 10 }, ..config(family) };
        let ids: Vec<u32> = (0..23).map(|i| (i * 5 + 1) % 37).collect();
        let ours = network(&config).decoder(None).unwrap().forward(&ids).unwrap();
        for (i, (a, b)) in ours.iter().zip(oracle(&config, &ids)).enumerate() {
            assert!((a - b).abs() < 1e-4, "{family:?}, logit {i}: {a} and {b}");
        }
    }
}

#[test]
fn a_cancelled_training_stops_in_the_backward_too() {
    let config = config(Family::Qwen3);
    let lora = adapter(&config, &Target::ALL);
    let courtesy = Arc::new(Courtesy::default());
    let learner = network(&config).learner(&lora, Arc::clone(&courtesy)).unwrap();
    let pass = learner.forward(&[&rows()[0]], PassOptions::default()).unwrap();
    courtesy.cancel();
    let error = pass.backward(&[vec![1.0; 3]], None, &mut vec![0.0; learner.len()]).unwrap_err();
    assert!(error.is_interrupted(), "{error}");
}

#[test]
fn a_backward_waits_while_an_answer_is_generated() {
    let config = config(Family::Qwen3);
    let lora = adapter(&config, &Target::ALL);
    let gate = Arc::new(ChatGate::default());
    let learner = network(&config).learner(&lora, Arc::new(Courtesy::beside(Arc::clone(&gate)))).unwrap();
    let ((forwarded, has_forwarded), (begin, may_begin)) = (mpsc::channel(), mpsc::channel());
    let (end, has_ended) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let pass = learner.forward(&[&rows()[0]], PassOptions::default()).unwrap();
            forwarded.send(()).unwrap();
            may_begin.recv().unwrap();
            end.send(pass.backward(&[vec![1.0; 3]], None, &mut vec![0.0; learner.len()])).unwrap();
        });
        let patience = Duration::from_secs(20);
        has_forwarded.recv_timeout(patience).unwrap();
        let answering = gate.answering();
        begin.send(()).unwrap();
        assert!(has_ended.recv_timeout(Duration::from_millis(200)).is_err(), "it did not wait");
        drop(answering);
        has_ended.recv_timeout(patience).unwrap().unwrap();
    });
}
