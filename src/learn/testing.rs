//! What the tests of this module stand on: a small random network under a byte-level tokenizer.

use std::sync::Arc;

use candle_core::Device;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;

use super::rows::{self, Lesson};
use crate::adapter::active;
use crate::config::{Auto, Config};
use crate::feedback::example::Origin;
use crate::feedback::{Example, Finish, Kind, NewFeedback, NewInteraction};
use crate::model::candle::{CandleNetwork, weights};
use crate::model::config::{Family, ModelConfig};
use crate::model::generation::GenerationConfig;
use crate::model::load::Model;
use crate::model::message::Message;
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::tests::tokenizer;
use crate::paths::Paths;
use crate::store::Store;

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
        rope_scaling: crate::model::rope::RopeScaling::None,
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
        answers: Arc::default(),
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
        note: None,
    }
}

pub fn lesson(question: &str, answer: &str, origin: Origin, weight: f64) -> Lesson {
    thread_local!(static MODEL: Model = model(1));
    let example = example(1, question, answer, origin, weight);
    MODEL.with(|model| rows::lessons(model, &[example]).unwrap().0.remove(0))
}

/// A data folder with a store, a quick recipe and a model.
pub struct House {
    _folder: TempDir,
    pub paths: Paths,
    pub store: Arc<Store>,
    pub config: Config,
    pub model: Model,
}

impl House {
    /// Trains three epochs at a rate that the gate accepts.
    pub fn new() -> House {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::at(folder.path());
        let store = Arc::new(Store::open(&paths.db()).unwrap());
        let mut config = Config::default();
        config.lora.rank = 2;
        config.lora.alpha = 4.0;
        config.lora.training.epochs = Auto::Value(3);
        config.lora.training.learning_rate = Auto::Value(2e-3);
        config.feedback.threshold = 4;
        House { _folder: folder, paths, store, config, model: model(11) }
    }

    /// An answer of the model, recorded; its id.
    pub fn ask(&self, question: &str, answer: &str) -> i64 {
        let new = NewInteraction {
            session: "s".into(),
            turn: 1,
            messages: vec![Message::user(question)],
            response: answer.into(),
            model: self.model.name.clone(),
            base: Some(BASE.into()),
            adapter: None,
            thinking: None,
            sampling: Value::Null,
            finish: Finish::Stop,
            timings: Value::Null,
            metadata: Value::Null,
        };
        self.store.add_interaction(&new).unwrap().id
    }

    pub fn praise(&self, question: &str, answer: &str) {
        let new = NewFeedback::new(Kind::Good, &self.config.feedback.rules());
        self.store.add_feedback(self.ask(question, answer), new).unwrap();
    }

    pub fn correct(&self, question: &str, better: &str) {
        let new = NewFeedback::correction(better, &self.config.feedback.rules());
        self.store.add_feedback(self.ask(question, "something else"), new).unwrap();
    }

    /// Two praised answers, two corrected ones: the threshold of this house.
    pub fn fill(&self) {
        self.praise("q1", "one");
        self.correct("q2", "two");
        self.praise("q3", "three");
        self.correct("q4", "four");
    }

    pub fn new_examples(&self) -> usize {
        self.store.training_set(BASE, 100).unwrap().new
    }

    pub fn live(&self) -> Option<String> {
        active::read(&self.paths, BASE).unwrap().live
    }
}
