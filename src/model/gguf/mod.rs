//! GGUF, llama.cpp's and Ollama's format: weights, hyper-parameters, tokenizer and chat template in one file, or in parts
//! (`NAME-00001-of-00003.gguf`).
//!
//! - `header`: the head of a file, checked against the file
//! - `metadata`: typed access to its keys
//! - `config`, `tokenizer`: what `config.json` and `tokenizer.json` are elsewhere
//! - `names`: what its tensors are called
//! - `write`: files of our own; `describe`: the keys that a model folder's files come to

mod config;
pub(in crate::model) mod describe;
mod header;
mod metadata;
mod names;
mod tokenizer;
pub mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Checkpoint, MAPS, Shard, Stop};
use super::config::ModelConfig;
use super::generation::GenerationConfig;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::error::{Context, Error, Result};
use header::Head;
use metadata::Metadata;
pub use names::own_name;
use write::Item;

/// llama.cpp numbers parts in five digits.
const MAX_PARTS: u64 = 99_999;
const TOKENS: &str = "tokenizer.ggml.tokens";

/// An opened and checked GGUF file, with all its parts.
#[derive(Debug)]
pub struct Gguf {
    pub version: u32,
    metadata: Metadata,
    /// Where the keys' values stand in the first file.
    places: Vec<(String, Range<u64>)>,
    checkpoint: Checkpoint,
}

impl Gguf {
    /// Whether the file begins as GGUF files do, whatever its name: Ollama's have none that tells.
    pub fn is_one(path: &Path) -> bool {
        let mut magic = [0; 4];
        path.is_file()
            && File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
            && magic == *b"GGUF"
    }

    /// Opens a file; of one in parts any part may be named. Errors name the file, not its folder.
    pub fn open(path: &Path) -> Result<Gguf> {
        let read = |path: &Path, number| Shard::open(path, |file, size| header::read(file, size, number));
        let (shard, head) = read(path, 0)?;
        let count = head.metadata.whole("split.count").with_context(|| &shard.name)?.unwrap_or(1);
        if count <= 1 {
            return Ok(Self::joined(head, vec![shard]));
        }
        let paths = parts(path, count).with_context(|| &shard.name)?;
        let (mut shards, mut tensors, mut first) = (Vec::new(), BTreeMap::new(), None);
        for (number, path) in paths.iter().enumerate() {
            let (shard, mut head) = read(path, number)?;
            check_part(&head.metadata, number, count).with_context(|| &shard.name)?;
            for (name, entry) in std::mem::take(&mut head.tensors) {
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(
                        Error::failure(format!("tensor {name} stands in another part too")).context(&shard.name)
                    );
                }
            }
            shards.push(shard);
            first.get_or_insert(head); // only the first part has more than its number
        }
        let head = first.ok_or_else(|| Error::failure("split.count is 0"))?;
        let key = "split.tensors.count";
        if let Some(total) = head.metadata.whole(key)?.filter(|&total| total != tensors.len() as u64) {
            return Err(Error::failure(format!("{key} is {total}, the {count} parts hold {}", tensors.len())));
        }
        Ok(Self::joined(Head { tensors, ..head }, shards))
    }

    /// Reads a file that is already in memory; `name` is what errors call it. Errors also when it is one part of several.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Gguf> {
        let bytes = bytes.into();
        let read = || -> Result<Head> {
            let head = header::read(&mut &*bytes, bytes.len() as u64, 0)?;
            match head.metadata.whole("split.count")? {
                Some(count) if count > 1 => {
                    Err(Error::failure(format!("split.count is {count}; only one part is here")))
                }
                _ => Ok(head),
            }
        };
        let head = read().with_context(|| name.to_string())?;
        Ok(Self::joined(head, vec![Shard::in_memory(name, bytes)]))
    }

    fn joined(head: Head, shards: Vec<Shard>) -> Gguf {
        let Head { version, metadata, places, tensors } = head;
        let (shards, stop) = (Arc::new(shards), Stop::default());
        let checkpoint = Checkpoint { shards, tensors, own_name: names::own_name, plan: None, maps: MAPS, stop };
        Gguf { version, metadata, places, checkpoint }
    }

    /// Its keys for another file of the same model, but for those that are about the storage of this one.
    pub fn keys(&self) -> Result<Vec<(String, Item)>> {
        let about_storage = |key: &str| {
            key.starts_with("split.")
                || ["general.alignment", "general.file_type", "general.quantization_version"].contains(&key)
        };
        let kept = self.places.iter().filter(|(key, _)| !about_storage(key));
        kept.map(|(key, place)| Ok((key.clone(), Item::Raw(self.checkpoint.bytes(place.clone())?)))).collect()
    }

    /// The hyper-parameters.
    ///
    /// Errors name what finch does not run, every number outside its bounds, and a tensor that such a network has not.
    pub fn config(&self) -> Result<ModelConfig> {
        self.named(config::read(&self.metadata, &self.checkpoint))
    }

    /// The tokenizer, with the same ids as the `tokenizer.json` that the file was made from.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.named(tokenizer::read(&self.metadata))
    }

    /// The chat template; Qwen's plain turns where the file has none.
    pub fn template(&self) -> Result<ChatTemplate> {
        let read = || {
            let texts = self.metadata.texts(TOKENS)?.unwrap_or_default();
            let mut tokens = Vec::new();
            for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")] {
                // In range: `token_id` looked.
                tokens.extend(self.token_id(key, texts.len())?.map(|id| (name, texts[id as usize].to_string())));
            }
            ChatTemplate::with_tokens(self.metadata.text("tokenizer.chat_template")?, tokens.into_iter())
        };
        self.named(read())
    }

    /// Which ids end an answer, and the sampling that the file advises.
    pub fn generation(&self, tokenizer: &Tokenizer) -> Result<GenerationConfig> {
        let read = || {
            let mut eos = Vec::new();
            for key in ["eos", "eot", "eom"] {
                eos.extend(self.token_id(key, tokenizer.vocab_size())?);
            }
            let advice = |name: &str| self.metadata.real(&format!("general.sampling.{name}"));
            let top_k = self.metadata.whole("general.sampling.top_k")?;
            let config = GenerationConfig {
                eos,
                temperature: advice("temp")?,
                top_p: advice("top_p")?,
                top_k: top_k.map(|k| usize::try_from(k).unwrap_or(usize::MAX)),
                repetition_penalty: advice("penalty_repeat")?.map(|penalty| penalty as f32),
            };
            config.checked(tokenizer).context("general.sampling")
        };
        self.named(read())
    }

    /// Its tensors, under GGUF's names, found under Hugging Face's too.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// As [`Gguf::checkpoint`].
    pub fn into_checkpoint(self) -> Checkpoint {
        self.checkpoint
    }

    /// `tokenizer.ggml.KIND_token_id`, below `tokens`.
    fn token_id(&self, kind: &str, tokens: usize) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{kind}_token_id");
        match self.metadata.whole(&key)? {
            Some(id) if id < tokens as u64 => Ok(u32::try_from(id).ok()),
            Some(id) => Err(Error::failure(format!("{key} is {id}; the file has {tokens} tokens"))),
            None => Ok(None),
        }
    }

    /// The file in front of what is wrong with its metadata.
    fn named<T>(&self, result: Result<T>) -> Result<T> {
        match self.checkpoint.shards.first() {
            Some(first) => result.with_context(|| &first.name),
            None => result,
        }
    }
}

/// The name without a part's number: `x-00002-of-00003.gguf` → (`x`, 3).
pub fn split_name(name: &str) -> Option<(&str, u64)> {
    let five = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    if five(number) && five(count) { Some((prefix, count.parse().ok()?)) } else { None }
}

/// The paths of all parts of the file that `path` is one of.
fn parts(path: &Path, count: u64) -> Result<Vec<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match split_name(&name) {
        Some((prefix, named)) if named == count && count <= MAX_PARTS => {
            Ok((1..=count).map(|n| path.with_file_name(format!("{prefix}-{n:05}-of-{count:05}.gguf"))).collect())
        }
        _ => Err(Error::failure(format!("split.count is {count}, its name is not NAME-00001-of-{count:05}.gguf"))
            .hint("give the parts the names that they came with")),
    }
}

fn check_part(metadata: &Metadata, number: usize, count: u64) -> Result<()> {
    for (key, expected) in [("split.no", number as u64), ("split.count", count)] {
        match metadata.whole(key)? {
            Some(found) if found == expected => {}
            Some(found) => return Err(Error::failure(format!("{key} is {found}, its name says {expected}"))),
            None => return Err(Error::failure(format!("{key} is missing"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
