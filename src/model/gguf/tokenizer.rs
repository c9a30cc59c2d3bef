//! The tokenizer of a GGUF file: what stood in `tokenizer.json`, put together again from lists.

use serde_json::json;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::metadata::{Metadata, needed};
use crate::error::{Context, Error, Result};
use crate::model::tokenizer::{MAX_VOCAB, Tokenizer, pair};
use crate::text;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// llama.cpp's names of this split: Qwen2 to Qwen3, and DeepSeek's models on them.
const QWEN: [&str; 2] = ["qwen2", "deepseek-r1-qwen"];
/// How Qwen's tokenizers split text before the merges.
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Errors name the key and the item; `tokenizer.ggml.pre` must be Qwen's, since the merges alone do not give its ids.
pub(super) fn read(metadata: &Metadata) -> Result<Tokenizer> {
    let model = needed(MODEL, metadata.name(MODEL)?)?;
    if model != "gpt2" {
        return Err(Error::failure(format!("{MODEL} is {model}, not gpt2")).hint("finch reads Qwen's byte-level BPE"));
    }
    let pre = metadata.name(PRE)?.unwrap_or("missing");
    if !QWEN.contains(&pre) {
        return Err(Error::failure(format!("{PRE} is {pre}, none of {}", QWEN.join(", ")))
            .hint("finch reads Qwen's tokenizers; convert an old file again with today's llama.cpp"));
    }
    let tokens = needed(TOKENS, metadata.texts(TOKENS)?)?;
    let types = needed(TYPES, metadata.wholes(TYPES)?)?;
    if tokens.len() != types.len() || tokens.len() > MAX_VOCAB {
        let (tokens, types) = (tokens.len(), types.len());
        return Err(Error::failure(format!(
            "{TOKENS} has {tokens} items and {TYPES} {types}, not both {MAX_VOCAB} at most"
        )));
    }
    let (mut vocabulary, mut added) = (Vocab::with_capacity(tokens.len()), Vec::new());
    for (id, (token, kind)) in tokens.into_iter().zip(types).enumerate() {
        let id = id as u32; // below MAX_VOCAB
        match kind {
            1 => {
                if let Some(other) = vocabulary.insert(token.to_string(), id) {
                    let token = text::one_line(token, 40);
                    return Err(Error::failure(format!("{TOKENS}[{id}] is {token:?}, as {TOKENS}[{other}] is")));
                }
            }
            3 | 4 => added.push((id, token.to_string(), kind == 3)),
            5 => {} // a row of the embedding that no text gives
            other => return Err(Error::failure(format!("{TYPES}[{id}] is {other}, none of 1, 3, 4, 5"))),
        }
    }
    let all = needed(MERGES, metadata.texts(MERGES)?)?;
    let merges = || {
        let two = |(at, merge): (usize, &&str)| {
            let fault = || format!("{MERGES}[{at}] is {:?}, not two tokens", text::one_line(merge, 40));
            pair(merge).ok_or_else(|| Error::failure(fault()))
        };
        all.iter().enumerate().map(two).collect::<Result<Merges>>()
    };
    let (normalizer, pre_tokenizer) = qwen()?;
    Tokenizer::assemble(vocabulary, merges()?, merges, Some(normalizer), Some(pre_tokenizer), added.into_iter())
        .context("tokenizer.ggml")
}

/// As Qwen's tokenizer.json has them.
pub(super) fn qwen() -> Result<(NormalizerWrapper, PreTokenizerWrapper)> {
    let normalizer = json!({"type": "NFC"});
    let split = json!({"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
    Ok((serde_json::from_value(normalizer)?, serde_json::from_value(pre_tokenizer)?))
}
