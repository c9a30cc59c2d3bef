//! finch-tiny, the model inside the binary: the same files that a Hugging Face folder has.

/// Its name on screen and in the store.
pub const NAME: &str = "finch-tiny";

/// A file of the built-in model.
pub fn file(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/finch-tiny/", $name)).as_slice())),*]
    };
}

const FILES: [(&str, &[u8]); 5] =
    files!["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja", "generation_config.json"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::digest::DigestCache;
    use crate::model::load::{Model, ModelSource};
    use crate::model::message::Message;

    #[test]
    fn loads_and_stays_small() {
        let bytes: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 12_000_000, "{bytes} bytes");
        let model = Model::load(&ModelSource::Builtin, &DigestCache::none()).unwrap();
        assert!(model.builtin && model.name == NAME);
        let end = model.tokenizer.special_id("<|im_end|>").unwrap();
        assert!(model.generation.eos.contains(&end));
        let ids = model.template.encode(&model.tokenizer, &[Message::user("Hi")], true, None).unwrap();
        let logits = model.network.decoder(None).unwrap().forward(&ids).unwrap();
        assert_eq!(logits.len(), model.network.config().vocab_size);
    }
}
