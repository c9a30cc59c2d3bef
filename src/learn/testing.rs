//! What the tests of this module stand on: a small random network under a byte-level tokenizer.

use std::sync::Arc;

use candle_core::Device;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::rows::{self, Lesson};
use crate::feedback::Example;
use crate::feedback::example::Origin;
use crate::model::candle::{CandleNetwork, weights};
use crate::model::config::{Family, ModelConfig};
use crate::model::generation::GenerationConfig;
use crate::model::load::Model;
use crate::model::message::Message;
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::tests::tokenizer;

/// As a digest looks.
pub const BASE: &str = "c0ffee00";

pub fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen3,
        vocab_size: 320,
        hidden_size: 32,
        intermediate_size: 48,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        context: 160,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        attention_bias: false,
        tied_embeddings: false,
    }
}

/// A network of random weights: the same seed gives the same.
pub fn network(config: &ModelConfig, seed: u64) -> CandleNetwork {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut params = Vec::new();
    for slot in weights::slots(config).unwrap() {
        let (centre, scale) = match slot.shape.as_slice() {
            [_] => (1.0, 0.2),
            shape => (0.0, 1.5 / (shape[1] as f32).sqrt()),
        };
        params.extend((0..slot.len()).map(|_| centre + scale * (rng.random::<f32>() * 2.0 - 1.0)));
    }
    CandleNetwork::from_params(config, &params, &Device::Cpu).unwrap()
}

pub fn model(seed: u64) -> Model {
    Model {
        name: "random".into(),
        base: BASE.into(),
        network: Arc::new(network(&config(), seed)),
        tokenizer: Arc::new(tokenizer()),
        template: Arc::new(ChatTemplate::from_files(None, None).unwrap()),
        generation: GenerationConfig { eos: vec![300, 302], ..Default::default() },
        builtin: true,
    }
}

pub fn example(interaction: i64, question: &str, answer: &str, origin: Origin, weight: f64) -> Example {
    Example {
        interaction,
        messages: vec![Message::user(question)],
        completion: answer.into(),
        rejected: None,
        weight,
        thinking: None,
        origin,
    }
}

pub fn lesson(question: &str, answer: &str, origin: Origin, weight: f64) -> Lesson {
    thread_local!(static MODEL: Model = model(1));
    let example = example(1, question, answer, origin, weight);
    MODEL.with(|model| rows::lessons(model, &[example]).unwrap().0.remove(0))
}
