//! `tokenizer.json` (and what `tokenizer_config.json` adds to it): checked before the library sees any of it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::{MAX_ADDED, MAX_ENTRIES, Tokenizer, pair};
use crate::error::{Context, Error, Result};
use crate::json;
use crate::text;

/// What decides whether finch can use the file; read before the library sees any of it.
#[derive(Deserialize)]
struct Head {
    model: Settings,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_ADDED>")]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
}

#[derive(Deserialize)]
struct Settings {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Body {
    model: Bpe,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
}

#[derive(Deserialize)]
struct Bpe {
    #[serde(deserialize_with = "vocabulary")]
    vocab: Vocab,
    #[serde(deserialize_with = "at_most::<_, _, MAX_ENTRIES>")]
    merges: Vec<Merge>,
}

/// "h i" in older files, ["h", "i"] in newer ones.
enum Merge {
    Text(String),
    Pair(String, String),
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Merge, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("two tokens")
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Merge, E> {
                Ok(Merge::Text(text.to_string()))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<Merge, S::Error> {
                let both = (seq.next_element()?, seq.next_element()?, seq.next_element::<IgnoredAny>()?);
                match both {
                    (Some(left), Some(right), None) => Ok(Merge::Pair(left, right)),
                    _ => Err(serde::de::Error::custom("expected two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// `tokenizer_config.json`, as far as it is about tokens.
#[derive(Deserialize, Default)]
struct Config {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, Decoder>,
}

#[derive(Deserialize)]
struct Decoder {
    content: String,
    #[serde(default)]
    special: bool,
}

/// What the files hold, checked as far as each stands for itself.
pub(in crate::model) struct Parts {
    pub vocab: Vocab,
    /// In the order of their ranks.
    pub merges: Merges,
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    /// Id, content, whether it is marked special.
    pub added: Vec<(u32, String, bool)>,
}

/// Reads `tokenizer.json` and, where there is one, `tokenizer_config.json`.
pub(super) fn read(json: &[u8], config: Option<&[u8]>) -> Result<Tokenizer> {
    let Parts { vocab, merges, normalizer, pre_tokenizer, added } = parts(json, config)?;
    let again = || parts(json, config).map(|parts| parts.merges);
    Tokenizer::assemble(vocab, merges, again, normalizer, pre_tokenizer, added.into_iter()).context("tokenizer.json")
}

/// As [`read`], for those who want to write it otherwise.
pub(in crate::model) fn parts(json: &[u8], config: Option<&[u8]>) -> Result<Parts> {
    let config: Config = match config {
        Some(json) => json::read(json).context("tokenizer_config.json")?,
        None => Config::default(),
    };
    let mut head: Head = json::read(json).context("tokenizer.json")?;
    add(&mut head.added_tokens, config.added_tokens_decoder).context("tokenizer_config.json")?;
    build(head, json).context("tokenizer.json")
}

/// Puts the tokens of `tokenizer_config.json` to those that are known; they may not contradict each other.
fn add(known: &mut Vec<Added>, more: BTreeMap<String, Decoder>) -> Result<()> {
    if more.len() > MAX_ADDED {
        return Err(Error::failure(format!("added_tokens_decoder has {} tokens, more than {MAX_ADDED}", more.len())));
    }
    let contents: HashMap<u32, String> = known.iter().map(|added| (added.id, added.content.clone())).collect();
    for (id, Decoder { content, special }) in more {
        let id: u32 = id.parse().map_err(|_| {
            Error::failure(format!("added_tokens_decoder: {:?} is no token id", text::one_line(&id, 40)))
        })?;
        match contents.get(&id) {
            None => known.push(Added { id, content, special }),
            Some(known) if *known == content => {}
            Some(known) => {
                let (known, content) = (text::one_line(known, 40), text::one_line(&content, 40));
                return Err(Error::failure(format!(
                    "added_tokens_decoder: {id} is {content}, in tokenizer.json it is {known}"
                )));
            }
        }
    }
    Ok(())
}

fn build(head: Head, json: &[u8]) -> Result<Parts> {
    check(&head)?;
    let body: Body = json::read(json)?;
    let merges = body.model.merges.into_iter().enumerate().map(|(at, merge)| match merge {
        Merge::Pair(left, right) => Ok((left, right)),
        Merge::Text(text) => pair(&text)
            .ok_or_else(|| Error::failure(format!("merges[{at}] is {:?}, not two tokens", text::one_line(&text, 40)))),
    });
    let added = head.added_tokens.into_iter().map(|Added { id, content, special }| (id, content, special));
    Ok(Parts {
        vocab: body.model.vocab,
        merges: merges.collect::<Result<_>>()?,
        normalizer: body.normalizer,
        pre_tokenizer: body.pre_tokenizer,
        added: added.collect(),
    })
}

/// A list of `MAX` items at most: what is longer is not read to its end.
fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    deserializer: D,
) -> std::result::Result<Vec<T>, D::Error> {
    struct Items<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "a list of {MAX} items at most")
        }

        fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<Vec<T>, S::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                if items.len() == MAX {
                    return Err(serde::de::Error::custom(format!("more than {MAX} items")));
                }
                items.push(item);
            }
            Ok(items)
        }
    }
    deserializer.deserialize_seq(Items::<T, MAX>(PhantomData))
}

/// Tokens and their ids, each token once.
fn vocabulary<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vocab, D::Error> {
    struct Tokens;
    impl<'de> Visitor<'de> for Tokens {
        type Value = Vocab;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "an object of {MAX_ENTRIES} tokens and ids at most")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Vocab, M::Error> {
            let mut vocab = Vocab::default();
            while let Some((token, id)) = map.next_entry::<String, u32>()? {
                if vocab.len() == MAX_ENTRIES {
                    return Err(serde::de::Error::custom(format!("more than {MAX_ENTRIES} tokens")));
                }
                match vocab.entry(token) {
                    Entry::Vacant(free) => free.insert(id),
                    Entry::Occupied(taken) => {
                        let token = text::one_line(taken.key(), 40);
                        return Err(serde::de::Error::custom(format!("{token:?} appears twice")));
                    }
                };
            }
            Ok(vocab)
        }
    }
    deserializer.deserialize_map(Tokens)
}

fn check(head: &Head) -> Result<()> {
    let refuse = |what: String| Err(Error::failure(what).hint("finch reads byte-level BPE tokenizers like Qwen's"));
    let Settings { kind, .. } = &head.model;
    if let Some(kind) = kind.as_deref().filter(|&kind| kind != "BPE") {
        return refuse(format!("the model is {}", text::one_line(kind, 40)));
    }
    let filled = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    for (name, set) in [
        ("dropout", head.model.dropout.is_some_and(|dropout| dropout != 0.0)),
        ("unk_token", filled(&head.model.unk_token)),
        ("continuing_subword_prefix", filled(&head.model.continuing_subword_prefix)),
        ("end_of_word_suffix", filled(&head.model.end_of_word_suffix)),
        ("byte_fallback", head.model.byte_fallback),
        ("ignore_merges", head.model.ignore_merges),
    ] {
        if set {
            return refuse(format!("the model sets {name}"));
        }
    }
    let kind = |part: &Value| text::one_line(part.get("type").and_then(Value::as_str).unwrap_or("of no type"), 40);
    if let Some(normalizer) = &head.normalizer {
        let kind = kind(normalizer);
        if !["NFC", "NFD", "NFKC", "NFKD"].contains(&kind.as_str()) {
            return refuse(format!("the normalizer is {kind}"));
        }
    }
    let parts = match &head.pre_tokenizer {
        None => &[],
        Some(one) => {
            one.get("pretokenizers").and_then(Value::as_array).map_or(std::slice::from_ref(one), Vec::as_slice)
        }
    };
    if parts.len() > MAX_STEPS {
        return refuse(format!("the pre-tokenizer has {} steps, more than {MAX_STEPS}", parts.len()));
    }
    let steps: Vec<String> = parts.iter().map(kind).collect();
    if let Some(other) = steps.iter().find(|step| !["ByteLevel", "Split", "Digits"].contains(&step.as_str())) {
        return refuse(format!("the pre-tokenizer is {other}"));
    }
    if steps.last().is_none_or(|last| last != "ByteLevel") {
        return refuse("the pre-tokenizer does not end in ByteLevel".to_string());
    }
    for pattern in parts.iter().filter_map(|part| part.pointer("/pattern/Regex")?.as_str()) {
        if let Err(why) = check_pattern(pattern) {
            return refuse(format!("the pre-tokenizer's pattern {:?} {why}", text::one_line(pattern, 60)));
        }
    }
    Ok(())
}

/// The end of the usual patterns, which alone needs more than a regular language: white space before white space.
const LOOKAHEAD: &str = r"|\s+(?!\S)|\s+";
const MAX_PATTERN: usize = 4096;
const MAX_STEPS: usize = 16;

/// The library's engine tries all ways of matching what is not regular, which can take for ever. A pattern is regular,
/// but for its usual end.
fn check_pattern(pattern: &str) -> std::result::Result<(), String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("has {} bytes, more than {MAX_PATTERN}", pattern.len()));
    }
    // Possessive repetition, which the engine below reads as a repetition of a repetition.
    let possessive = Regex::new(r"[*+?]\+|\{[0-9]+(,[0-9]*)?\}\+").map_err(|e| e.to_string())?;
    if possessive.is_match(pattern) {
        return Err("repeats what is repeated".to_string());
    }
    let regular = pattern.strip_suffix(LOOKAHEAD).unwrap_or(pattern);
    let built = RegexBuilder::new(regular).size_limit(4 << 20).dfa_size_limit(4 << 20).build();
    built.map(drop).map_err(|_| "is not regular, or too large".to_string())
}
