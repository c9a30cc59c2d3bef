//! What a model's folder says about generating: the ids that end an answer, and the sampling its makers advise.

use serde::Deserialize;

use super::tokenizer::Tokenizer;
use crate::error::{Context, Error, Result};
use crate::{json, text};

/// Ends of a turn in Qwen's vocabularies; either ends an answer, whether or not `generation_config.json` lists it.
const END_TOKENS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// `generation_config.json`, joined with what `config.json` and the tokenizer know.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationConfig {
    /// Every id that ends an answer, ascending.
    pub eos: Vec<u32>,
    /// 0 where the folder asks for greedy decoding.
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<usize>,
    pub repetition_penalty: Option<f32>,
}

#[derive(Deserialize, Default)]
struct Raw {
    eos_token_id: Option<Ids>,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    repetition_penalty: Option<f64>,
}

#[derive(Deserialize)]
struct RawModel {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a token id or a list of them")]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationConfig {
    /// Joins `generation_config.json` (may be missing), `config.json` and the tokenizer's end-of-turn tokens.
    ///
    /// Errors name a number outside its range, and an id that the model does not have.
    pub fn read(
        generation: Option<&[u8]>,
        config: &[u8],
        tokenizer: &Tokenizer,
        vocab_size: usize,
    ) -> Result<GenerationConfig> {
        let raw: Raw = match generation {
            Some(json) => json::read(json).context("generation_config.json")?,
            None => Raw::default(),
        };
        let model: RawModel = json::read(config).context("config.json")?;
        let mut eos = Vec::new();
        for (file, ids) in [("generation_config.json", raw.eos_token_id), ("config.json", model.eos_token_id)] {
            let ids = match ids {
                Some(Ids::One(id)) => vec![id],
                Some(Ids::Many(ids)) => ids,
                None => Vec::new(),
            };
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(Error::failure(format!("{file}: eos_token_id {id} is beyond the {vocab_size} ids")));
            }
            eos.extend(ids);
        }
        let temperature = if raw.do_sample == Some(false) { Some(0.0) } else { raw.temperature };
        let config = GenerationConfig {
            eos,
            temperature,
            top_p: raw.top_p,
            top_k: raw.top_k.map(|k| usize::try_from(k).unwrap_or(usize::MAX)),
            repetition_penalty: raw.repetition_penalty.map(|penalty| penalty as f32),
        };
        config.checked(tokenizer).context("generation_config.json")
    }

    /// The same with the tokenizer's ends of a turn among `eos`. Errors name a number outside its range.
    pub(super) fn checked(mut self, tokenizer: &Tokenizer) -> Result<GenerationConfig> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty.map(f64::from), 0.01, 100.0),
        ];
        for (key, value, low, high) in ranges {
            if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
                return Err(Error::failure(format!("{key} is {}, outside {low} to {high}", text::number(value))));
            }
        }
        self.eos.extend(END_TOKENS.iter().filter_map(|token| tokenizer.special_id(token)));
        self.eos.sort_unstable();
        self.eos.dedup();
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::tokenizer;
    use super::*;

    fn read(generation: Option<&str>, config: &str) -> Result<GenerationConfig> {
        GenerationConfig::read(generation.map(str::as_bytes), config.as_bytes(), &tokenizer(), 608)
    }

    #[test]
    fn joins_every_end_of_turn() {
        let config = read(Some(r#"{"eos_token_id":[302,607]}"#), r#"{"eos_token_id":5}"#).unwrap();
        assert_eq!(config.eos, [5, 300, 302, 607], "300 and 302 are <|endoftext|> and <|im_end|>");
        assert_eq!(read(None, "{}").unwrap().eos, [300, 302]);
    }

    #[test]
    fn takes_the_makers_advice() {
        let advice = r#"{"do_sample":true,"temperature":0.6,"top_p":0.95,"top_k":20,"repetition_penalty":1.05}"#;
        let config = read(Some(advice), "{}").unwrap();
        assert_eq!((config.temperature, config.top_p, config.top_k), (Some(0.6), Some(0.95), Some(20)));
        assert_eq!(config.repetition_penalty, Some(1.05));
        let greedy = read(Some(r#"{"do_sample":false,"temperature":0.6}"#), "{}").unwrap();
        assert_eq!(greedy.temperature, Some(0.0));
        assert_eq!(read(Some("{}"), "{}").unwrap().temperature, None);
    }

    #[test]
    fn refuses_bad_numbers() {
        for (bad, expected) in [
            (r#"{"temperature":-1}"#, "temperature is -1"),
            (r#"{"top_p":1.5}"#, "top_p is 1.5"),
            (r#"{"top_k":-1}"#, "generation_config.json"),
            (r#"{"repetition_penalty":0}"#, "repetition_penalty is 0"),
            (r#"{"eos_token_id":608}"#, "608 is beyond the 608 ids"),
            (r#"{"eos_token_id":"x"}"#, "generation_config.json"),
        ] {
            let error = read(Some(bad), "{}").expect_err(bad).to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(read(None, r#"{"eos_token_id":4000000}"#).is_err());
    }
}
