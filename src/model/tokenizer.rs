//! Text to token ids and back: the byte-level BPE of `tokenizer.json`.
//!
//! The tokenizers library does the BPE; the added tokens (`<|im_end|>`, `<think>`, …) are kept apart from it, so that
//! plain text can never turn into one, whatever it contains. Only the chat template, and text that the model itself
//! wrote, may name them.

pub(in crate::model) mod file;

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use tokenizers::models::bpe::{self, BPE, Merges, Vocab};
use tokenizers::{DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

use crate::error::{Error, Result};
use crate::text;

/// No vocabulary is near this; ids beyond it are a damaged file.
pub(super) const MAX_VOCAB: usize = 1 << 22;
/// Tokens, and merges, of a file: Qwen's have 152 thousand, the largest vocabularies 262 thousand.
const MAX_ENTRIES: usize = 1 << 20;
const MAX_ADDED: usize = 1 << 16;
/// Longest added token, in bytes.
const MAX_CONTENT: usize = 256;

/// A token that stands outside the BPE vocabulary's merges, or is kept out of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    /// Steers the conversation (`<|im_end|>`) and is never printed; else it is markup that the model writes (`<think>`).
    pub control: bool,
}

/// A stretch of text, cut at added tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    Added(&'a AddedToken),
    Text(&'a str),
}

pub struct Tokenizer {
    bpe: TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>,
    /// By content.
    added: Vec<AddedToken>,
    /// Index into `added` by id.
    by_id: BTreeMap<u32, usize>,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// Errors when it is no byte-level BPE like Qwen's: another model, a normaliser that rewrites text, random merges, or
    /// a vocabulary that lacks some of the 256 bytes.
    pub fn from_bytes(json: &[u8]) -> Result<Tokenizer> {
        file::read(json, None)
    }

    /// Reads `tokenizer.json`, and the tokens that `tokenizer_config.json` adds to it, as transformers does. Errors as
    /// those of [`Tokenizer::from_bytes`].
    pub fn from_files(json: &[u8], config: Option<&[u8]>) -> Result<Tokenizer> {
        file::read(json, config)
    }

    /// Ids of plain text. Strings that look like special tokens stay text: no id of an added token comes out.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.bpe.encode_fast(text, false).map_err(|e| Error::failure(format!("tokenizer: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of text that the model wrote, as it would have written it: markup such as `<think>` becomes its token, control
    /// tokens stay text.
    pub fn encode_completion(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_pieces(&self.split(text, |added| !added.control))
    }

    pub(crate) fn encode_pieces(&self, pieces: &[Piece]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Added(added) => ids.push(added.id),
                Piece::Text(text) => ids.extend(self.encode_text(text)?),
            }
        }
        Ok(ids)
    }

    /// The bytes that a token stands for; a character may begin in one token and end in the next. None for control
    /// tokens and ids without a token: nothing is to be shown for them.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        match self.added(id) {
            Some(added) => (!added.control).then(|| added.content.clone().into_bytes()),
            None => self.bpe.get_model().id_to_token(id).map(|token| bytes_of(&token)),
        }
    }

    /// The text of `ids` without control tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The text of `ids` with control tokens spelled out.
    pub fn decode_with_control(&self, ids: &[u32]) -> String {
        let bytes = |&id: &u32| match self.added(id) {
            Some(added) => Some(added.content.clone().into_bytes()),
            None => self.token_bytes(id),
        };
        let bytes: Vec<u8> = ids.iter().filter_map(bytes).flatten().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The id of an added token, such as `<|im_end|>`.
    pub fn special_id(&self, content: &str) -> Option<u32> {
        self.added.iter().find(|added| added.content == content).map(|added| added.id)
    }

    /// Never printed: `<|im_end|>` and its like.
    pub fn is_control(&self, id: u32) -> bool {
        self.added(id).is_some_and(|added| added.control)
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// All added tokens, ordered by content.
    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }

    fn added(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id).map(|&index| &self.added[index])
    }

    /// Cuts text at the added tokens that `accept` lets through; the leftmost, then the longest wins.
    pub(crate) fn split<'a>(&'a self, text: &'a str, accept: impl Fn(&AddedToken) -> bool) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let (mut start, mut at) = (0, 0);
        while let Some(next) = text[at..].chars().next() {
            match prefixes(&self.added, &text[at..]).filter(|added| accept(added)).last() {
                Some(added) => {
                    if start < at {
                        pieces.push(Piece::Text(&text[start..at]));
                    }
                    pieces.push(Piece::Added(added));
                    at += added.content.len();
                    start = at;
                }
                None => at += next.len_utf8(),
            }
        }
        if start < at {
            pieces.push(Piece::Text(&text[start..]));
        }
        pieces
    }
}

impl Tokenizer {
    /// Puts a tokenizer together from its parts; `added`: id, content, whether it is marked special. Only an error needs the
    /// merges `again`.
    ///
    /// Errors when the vocabulary lacks some of the 256 bytes or a merge's tokens, an id is out of bounds, an added token
    /// empty or given twice.
    pub(super) fn assemble(
        vocab: Vocab,
        merges: Merges,
        again: impl FnOnce() -> Result<Merges>,
        normalizer: Option<NormalizerWrapper>,
        pre_tokenizer: Option<PreTokenizerWrapper>,
        added: impl Iterator<Item = (u32, String, bool)>,
    ) -> Result<Tokenizer> {
        let missing = (0..=255u8).filter(|&byte| !vocab.contains_key(char_of(byte).encode_utf8(&mut [0; 4]))).count();
        if missing > 0 {
            return Err(Error::failure(format!("the vocabulary lacks {missing} of the 256 bytes")));
        }
        let mut added: Vec<AddedToken> = added
            .map(|(id, content, special)| AddedToken { id, control: special || looks_special(&content), content })
            .collect();
        check_entries(&vocab, &merges)?;
        check_added(&added, &vocab)?;
        let highest = vocab.values().copied().chain(added.iter().map(|added| added.id)).max().unwrap_or(0);
        let vocab_size = highest as usize + 1;
        if vocab_size > MAX_VOCAB {
            return Err(Error::failure(format!("token id {highest} is beyond {MAX_VOCAB}")));
        }
        check_ids(&vocab, vocab_size)?;
        added.sort_by(|a, b| a.content.cmp(&b.content));
        let by_id = added.iter().enumerate().map(|(index, added)| (added.id, index)).collect();

        check_merges(&vocab, &merges)?;
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).build();
        let mut bpe = TokenizerImpl::new(bpe.map_err(|e| refused(&e, again))?);
        bpe.with_normalizer(normalizer).map_err(|e| Error::failure(e.to_string()))?;
        bpe.with_pre_tokenizer(pre_tokenizer);
        Ok(Tokenizer { bpe, added, by_id, vocab_size })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} ids)", self.vocab_size)
    }
}

/// The tokens that `text` begins with, shortest first, out of `sorted` (by content). However many there are, a text that
/// begins with none is done after a look at its first byte.
pub(super) fn prefixes<'t, T: Borrow<AddedToken>>(
    mut sorted: &'t [T],
    text: &str,
) -> impl Iterator<Item = &'t AddedToken> {
    let byte_at = |token: &T, at: usize| token.borrow().content.as_bytes()[at];
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            // All of them begin with `at` bytes of the text; the one that ends there, if any, is the first.
            let (first, rest) = sorted.split_first()?;
            if at > 0 && first.borrow().content.len() == at {
                sorted = rest;
                return Some(first.borrow());
            }
            let byte = *text.as_bytes().get(at)?;
            let start = sorted.partition_point(|token| byte_at(token, at) < byte);
            let count = sorted[start..].partition_point(|token| byte_at(token, at) == byte);
            sorted = &sorted[start..start + count];
            at += 1;
        }
    })
}

/// Qwen's `<|fim_prefix|>` and its like are not marked special, and steer all the same.
pub(super) fn looks_special(content: &str) -> bool {
    content.starts_with("<|") && content.ends_with("|>")
}

/// The two tokens of "h i".
pub(super) fn pair(merge: &str) -> Option<(String, String)> {
    let (left, right) = merge.split_once(' ')?;
    (!right.contains(' ')).then(|| (left.to_string(), right.to_string()))
}

/// The library panics where a merge is longer than any token.
fn check_merges(vocab: &Vocab, merges: &Merges) -> Result<()> {
    let longest = vocab.keys().map(String::len).max().unwrap_or(0);
    match merges.iter().enumerate().find(|(_, (left, right))| left.len() + right.len() > longest) {
        // The library would say of one of its tokens that it is missing, before it came to the whole.
        Some((at, (left, right))) => {
            let whole = format!("{left}{right}");
            let missing = |token: &&String| !vocab.contains_key(*token);
            Err(unknown(at, [left, right].into_iter().find(missing).unwrap_or(&whole)))
        }
        None => Ok(()),
    }
}

/// An error about the token of the `at`-th merge.
fn unknown(at: usize, token: &str) -> Error {
    Error::failure(format!("merges[{at}]: {:?} is not in the vocabulary", text::one_line(token, 40)))
}

/// What the library says of the merges, which are `again` those that it got.
fn refused(error: &tokenizers::Error, again: impl FnOnce() -> Result<Merges>) -> Error {
    let Some(bpe::Error::MergeTokenOutOfVocabulary(token)) = error.downcast_ref() else {
        return Error::failure(error.to_string());
    };
    let has = |(left, right): &(String, String)| left == token || right == token || format!("{left}{right}") == *token;
    let at = again().ok().and_then(|merges| merges.iter().position(has));
    unknown(at.unwrap_or(0), token)
}

fn check_entries(vocab: &Vocab, merges: &Merges) -> Result<()> {
    for (what, found) in [("tokens", vocab.len()), ("merges", merges.len())] {
        if found > MAX_ENTRIES {
            return Err(Error::failure(format!("{found} {what} are more than {MAX_ENTRIES}")));
        }
    }
    Ok(())
}

/// Each id stands for one token.
fn check_ids(vocab: &Vocab, vocab_size: usize) -> Result<()> {
    let mut taken = vec![false; vocab_size]; // at most MAX_VOCAB
    match vocab.iter().find(|(_, id)| std::mem::replace(&mut taken[**id as usize], true)) {
        Some((token, id)) => {
            Err(Error::failure(format!("id {id} stands for {:?} and for another token", text::one_line(token, 40))))
        }
        None => Ok(()),
    }
}

fn check_added(added: &[AddedToken], vocab: &Vocab) -> Result<()> {
    if added.len() > MAX_ADDED {
        return Err(Error::failure(format!("{} added tokens are more than {MAX_ADDED}", added.len())));
    }
    let (mut ids, mut contents) = (HashMap::new(), HashSet::new());
    for AddedToken { id, content, .. } in added {
        let fault = |what: String| Err(Error::failure(format!("added token {id} {what}")));
        let shown = text::one_line(content, 40);
        if content.is_empty() {
            return fault("is empty".to_string());
        }
        if content.len() > MAX_CONTENT {
            return fault(format!("({shown}) has {} bytes, more than {MAX_CONTENT}", content.len()));
        }
        if ids.insert(id, content).is_some() || !contents.insert(content) {
            return fault(format!("({shown}) appears twice"));
        }
    }
    // They mostly stand behind the vocabulary.
    let lowest = ids.keys().min().map(|id| **id);
    for (token, id) in vocab.iter().filter(|(_, id)| Some(**id) >= lowest) {
        if let Some(added) = ids.get(id).filter(|added| **added != token) {
            let (added, token) = (text::one_line(added, 40), text::one_line(token, 40));
            return Err(Error::failure(format!("added token {id} ({added}) has the id of {token:?}")));
        }
    }
    Ok(())
}

/// GPT-2's printable stand-in for a byte: itself where Latin-1 has a visible character; the other 68 follow from 256 on.
fn char_of(byte: u8) -> char {
    let code = match byte {
        0..=32 => 256 + u32::from(byte),
        127..=160 => 256 + 33 + u32::from(byte - 127),
        173 => 256 + 67,
        visible => u32::from(visible),
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The bytes behind a token's stand-in characters; a character that stands for no byte is kept as it is.
fn bytes_of(token: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        match u32::from(c) {
            code @ (33..=126 | 161..=172 | 174..=255) => bytes.push(code as u8),
            code @ 256..=288 => bytes.push((code - 256) as u8),
            code @ 289..=322 => bytes.push((code - 289) as u8 + 127),
            323 => bytes.push(173),
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The 256 bytes, one merge (`h` `i`), the tokens that Qwen3 adds.
    pub(crate) fn tokenizer_json() -> Value {
        let mut vocab: serde_json::Map<String, Value> =
            (0..=255u8).map(|byte| (char_of(byte).to_string(), json!(byte))).collect();
        vocab.insert("hi".into(), json!(256));
        let added: Vec<Value> = [("<|endoftext|>", true), ("<|im_start|>", true), ("<|im_end|>", true)]
            .into_iter()
            .chain([("<|fim_pad|>", false), ("<think>", false), ("</think>", false), ("<tool_response>", false)])
            .enumerate()
            .map(|(i, (content, special))| {
                json!({"id": 300 + i, "content": content, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect();
        json!({"version": "1.0", "added_tokens": added, "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {"type": "BPE", "continuing_subword_prefix": "", "vocab": vocab, "merges": ["h i"]}})
    }

    pub(crate) fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(tokenizer_json().to_string().as_bytes()).unwrap()
    }

    #[test]
    fn stand_in_characters_are_one_to_one() {
        let all: HashSet<char> = (0..=255).map(char_of).collect();
        assert_eq!(all.len(), 256);
        for byte in 0..=255 {
            assert_eq!(bytes_of(&char_of(byte).to_string()), [byte]);
        }
        assert_eq!((char_of(b' '), char_of(b'\n')), ('Ġ', 'Ċ'));
    }

    #[test]
    fn plain_text_never_yields_an_added_token() {
        let tokenizer = tokenizer();
        let text = "hi<|im_end|>\n<think>hi</think><|fim_pad|>";
        let ids = tokenizer.encode_text(text).unwrap();
        assert!(ids.iter().all(|&id| id <= 256), "{ids:?}");
        assert_eq!(ids[0], 256, "merges apply");
        assert_eq!(tokenizer.decode(&ids), text);
        let ids = tokenizer.encode_completion(text).unwrap();
        assert_eq!(ids.iter().filter(|&&id| id >= 300).collect::<Vec<_>>(), [&304, &305], "markup only");
        assert_eq!(tokenizer.decode(&ids), text);
        assert!(tokenizer.encode_text("").unwrap().is_empty());
    }

    #[test]
    fn control_tokens_have_no_bytes() {
        let tokenizer = tokenizer();
        let end = tokenizer.special_id("<|im_end|>").unwrap();
        assert_eq!((end, tokenizer.token_bytes(end)), (302, None));
        assert!(tokenizer.is_control(303), "fim_pad, though not marked special");
        assert_eq!(tokenizer.token_bytes(304).unwrap(), b"<think>");
        assert_eq!(tokenizer.token_bytes(299), None, "a hole");
        assert_eq!(tokenizer.token_bytes(u32::MAX), None);
        assert_eq!(tokenizer.decode(&[256, end]), "hi");
        assert_eq!(tokenizer.decode_with_control(&[256, end]), "hi<|im_end|>");
        assert_eq!(tokenizer.vocab_size(), 307);
    }

    #[test]
    fn a_character_may_span_tokens() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode_text("é👋").unwrap();
        assert_eq!(ids.len(), 6, "a byte a token");
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
        assert_eq!(bytes, "é👋".as_bytes());
        assert_eq!(tokenizer.decode(&ids[..3]), "é\u{fffd}");
        assert_eq!(tokenizer.encode_text("e\u{301}").unwrap(), ids[..2], "NFC");
    }

    #[test]
    fn refuses_tokenizers_it_would_get_wrong() {
        let cases = [
            ("/model/type", json!("Unigram"), "the model is Unigram"),
            ("/model/dropout", json!(0.1), "dropout"),
            ("/model/unk_token", json!("<unk>"), "unk_token"),
            ("/model/ignore_merges", json!(true), "ignore_merges"),
            ("/model/continuing_subword_prefix", json!("éé"), "continuing_subword_prefix"),
            ("/model/vocab", json!({"h": 0, "i": 1, "hi": 2}), "lacks 254 of the 256 bytes"),
            ("/model/vocab/hi", json!(4_000_000_000u32), "beyond"),
            ("/model/merges", json!(["h z9"]), "merges[0]: \"z9\" is not in the vocabulary"),
            ("/model/merges", json!([["hi", "hi"]]), "merges[0]: \"hihi\" is not in the vocabulary"),
            ("/model/merges", json!(["h i", "hi"]), "merges[1] is \"hi\", not two tokens"),
            ("/normalizer", json!({"type": "Lowercase"}), "the normalizer is Lowercase"),
            ("/pre_tokenizer", json!(null), "does not end in ByteLevel"),
            ("/pre_tokenizer", json!({"type": "Metaspace"}), "the pre-tokenizer is Metaspace"),
            ("/added_tokens/0/content", json!(""), "is empty"),
            ("/added_tokens/0/id", json!(301), "appears twice"),
            ("/added_tokens/0/id", json!(-1), "tokenizer.json"),
            ("/added_tokens/0/id", json!(7), "added token 7 (<|endoftext|>) has the id of"),
            ("/added_tokens/0/content", json!("x".repeat(300)), "has 300 bytes, more than 256"),
            ("/model/vocab/hi", json!(7), "id 7 stands for"),
            ("/pre_tokenizer", split(r"(a+)+\1"), "pattern"),
            ("/pre_tokenizer", split(r"(?=(a|b|ab)*c)x"), "pattern"),
            ("/pre_tokenizer", split(r"(?:(?!\S)a*)*b|\s+(?!\S)|\s+"), "pattern"),
            ("/pre_tokenizer", split(r"(?:(?:a++|a)*)*$"), "pattern"),
            ("/pre_tokenizer", split(r"(?:\w{1000}){1000}"), "pattern"),
            ("/pre_tokenizer", split(&"a".repeat(5000)), "pattern"),
            (
                "/pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "Digits"}); 20]}),
                "20 steps",
            ),
        ];
        for (at, value, expected) in cases {
            let mut json = tokenizer_json();
            json["model"]["dropout"] = json!(null);
            for key in ["unk_token", "ignore_merges"] {
                json["model"][key] = if key == "ignore_merges" { json!(false) } else { json!(null) };
            }
            *json.pointer_mut(at).unwrap() = value;
            let error = Tokenizer::from_bytes(json.to_string().as_bytes()).expect_err(at).to_string();
            assert!(error.contains(expected), "{at}: {error}");
        }
        assert!(Tokenizer::from_bytes(b"").is_err());
        let twice = tokenizer_json().to_string().replacen(r#""vocab":{"#, r#""vocab":{"hi":9,"#, 1);
        let error = Tokenizer::from_bytes(twice.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(r#""hi" appears twice"#), "{error}");
    }

    /// A pre-tokenizer that splits at a pattern.
    fn split(pattern: &str) -> Value {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]})
    }

    #[test]
    fn usual_patterns_are_read() {
        for pattern in [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
            r"\p{N}{1,3}",
        ] {
            let mut json = tokenizer_json();
            json["pre_tokenizer"] = split(pattern);
            let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
            assert_eq!(tokenizer.decode(&tokenizer.encode_text("hi 12345  you\n").unwrap()), "hi 12345  you\n");
        }
    }

    #[test]
    fn the_longest_added_token_wins() {
        let mut json = tokenizer_json();
        let added = json["added_tokens"].as_array_mut().unwrap();
        for (id, content) in [(310, "<"), (311, "<th"), (312, "<think>!"), (313, "é")] {
            added.push(json!({"id": id, "content": content, "special": false}));
        }
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        let ids = |text: &str| -> Vec<u32> {
            let added = |piece: &Piece| if let Piece::Added(added) = piece { Some(added.id) } else { None };
            tokenizer.split(text, |_| true).iter().filter_map(added).collect()
        };
        assert_eq!(ids("<think>!<think><thin<é<|im_end|>"), [312, 304, 311, 310, 313, 302]);
        assert_eq!(ids("a<"), [310]);
    }

    #[test]
    fn tokens_that_tokenizer_config_adds_are_known() {
        let json = tokenizer_json().to_string();
        let config = json!({"added_tokens_decoder": {
            "302": {"content": "<|im_end|>", "special": true},
            "320": {"content": "<|extra|>", "lstrip": false, "special": true}}});
        let read = |config: &Value| Tokenizer::from_files(json.as_bytes(), Some(config.to_string().as_bytes()));
        let tokenizer = read(&config).unwrap();
        assert_eq!((tokenizer.special_id("<|extra|>"), tokenizer.vocab_size()), (Some(320), 321));
        assert_eq!(read(&json!({"chat_template": "x"})).unwrap().vocab_size(), 307);
        for (config, expected) in [
            (
                json!({"added_tokens_decoder": {"302": {"content": "<|other|>"}}}),
                "302 is <|other|>, in tokenizer.json it is <|im_end|>",
            ),
            (json!({"added_tokens_decoder": {"x": {"content": "a"}}}), "\"x\" is no token id"),
            (json!({"added_tokens_decoder": {"320": {"content": "<think>"}}}), "(<think>) appears twice"),
            (json!({"added_tokens_decoder": []}), "tokenizer_config.json"),
        ] {
            let error = read(&config).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn long_runs_of_one_character_encode() {
        let text = " ".repeat(200_000) + &"a".repeat(200_000);
        assert_eq!(tokenizer().encode_text(&text).unwrap().len(), text.len());
    }
}
