//! The reference models' files, as transformers wrote them: configurations, single and sharded weights in F32, F16 and
//! BF16, generation settings.

mod common;

use std::fs;

use common::reference;
use finch::model::checkpoint::Checkpoint;
use finch::model::config::{Family, ModelConfig};
use finch::model::digest::DigestCache;
use finch::model::generation::GenerationConfig;
use finch::model::load::{Model, ModelSource};
use finch::model::lora::Target;
use finch::model::message::Message;
use finch::model::tokenizer::Tokenizer;

#[test]
fn reads_what_transformers_writes() {
    let Some(golden) = reference("golden/models") else { return };
    let mut seen = Vec::new();
    for model in fs::read_dir(golden).unwrap() {
        let model = model.unwrap().path();
        let name = model.file_name().unwrap().to_string_lossy().into_owned();
        let read = |file: &str| fs::read(model.join(file)).unwrap();
        let config = ModelConfig::from_json(&read("config.json")).unwrap();
        assert_eq!(config.family == Family::Qwen3, name.starts_with("qwen3"), "{name}");
        assert_eq!(config.tied_embeddings, name.contains("-tied"), "{name}");
        assert_eq!((config.rope_theta, config.context, config.vocab_size), (1e6, 4096, 608), "{name}");

        let checkpoint = Checkpoint::open(&model).unwrap();
        assert_eq!(checkpoint.files().len() > 1, name.contains("sharded"), "{name}");
        assert_eq!(checkpoint.contains("lm_head.weight"), !config.tied_embeddings, "{name}");
        for target in Target::ALL {
            let tensor = format!("model.layers.{}.{}.{}.weight", config.layers - 1, target.block(), target.name());
            let (inputs, outputs) = config.linear_shape(target);
            let values = checkpoint.tensor(&tensor, &[outputs, inputs]).unwrap();
            assert!(values.iter().any(|v| *v != 0.0), "{name}: {tensor}");
        }
        for tensor in checkpoint.names() {
            checkpoint.tensor(tensor, checkpoint.shape(tensor).unwrap()).unwrap();
        }
        assert_eq!(DigestCache::none().digest(&checkpoint).unwrap().len(), 64);

        let tokenizer = Tokenizer::from_bytes(&read("tokenizer.json")).unwrap();
        let generation = read("generation_config.json");
        let generation =
            GenerationConfig::read(Some(&generation), &read("config.json"), &tokenizer, config.vocab_size).unwrap();
        // The configurations' own end and the tokenizer's <|endoftext|> and <|im_end|>.
        assert_eq!(generation.eos, [361, 363, 607], "{name}");
        seen.push(name);
    }
    assert!(seen.len() >= 4, "{seen:?}");
}

#[test]
fn whole_folders_load() {
    let Some(golden) = reference("golden/models") else { return };
    for name in ["qwen2-untied-sharded-f32", "qwen3-tied-bf16"] {
        let source = ModelSource::resolve(golden.join(name).to_str().unwrap()).unwrap();
        let model = Model::load(&source, &DigestCache::none()).unwrap();
        assert_eq!((model.name.as_str(), model.builtin), (name, false));
        assert_eq!(model.network.config().vocab_size, 608);
        assert_eq!(model.base, Checkpoint::open(&golden.join(name)).unwrap().digest().unwrap());
        let ids = model.template.encode(&model.tokenizer, &[Message::user("never")], true, None).unwrap();
        let logits = model.network.decoder(None).unwrap().forward(&ids).unwrap();
        assert_eq!(logits.len(), 608);
    }
}
