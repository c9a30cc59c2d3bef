//! Crafted good and bad GGUF files.

#[path = "../../../tests/common/gguf.rs"]
mod builder;

use std::fs;

use builder::{Builder, TEXT, U32, with_tokenizer};
use serde_json::json;

use super::*;
use crate::model::config::Family;
use crate::model::message::Message;
use crate::model::rope::{RopeScaling, Yarn};
use crate::model::storage::Storage;
use crate::model::tokenizer::tests::tokenizer_json;

/// Keys of a network of one block, with 310 rows of 4 in its embedding.
fn keys() -> Builder {
    Builder::default()
        .text("general.architecture", "qwen3")
        .u32("qwen3.block_count", 1)
        .u32("qwen3.context_length", 64)
        .u32("qwen3.embedding_length", 4)
        .u32("qwen3.feed_forward_length", 8)
        .u32("qwen3.attention.head_count", 2)
        .u32("qwen3.attention.head_count_kv", 1)
        .u32("qwen3.attention.key_length", 6)
        .u32("qwen3.attention.value_length", 6)
        .f32("qwen3.rope.freq_base", 1e6)
        .f32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
}

fn embedding(builder: Builder) -> Builder {
    builder.numbers("token_embd.weight", &[4, 310], &[0.5; 1240])
}

fn open(bytes: &[u8]) -> Result<Gguf> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

fn fault(builder: Builder) -> String {
    open(&builder.bytes()).expect_err("should be refused").to_string()
}

#[test]
fn reads_keys_of_every_type() {
    let builder = Builder { version: 2, ..Builder::default() }
        .raw("u8", 0, &[200])
        .raw("i8", 1, &[0xff])
        .raw("u16", 2, &[1, 2])
        .raw("i16", 3, &[0xfe, 0xff])
        .raw("i32", 5, &(-3i32).to_le_bytes())
        .f32("f32", 0.5)
        .raw("bool", 7, &[1])
        .text("text", "é")
        .raw("u64", 10, &u64::MAX.to_le_bytes())
        .raw("i64", 11, &i64::MIN.to_le_bytes())
        .raw("f64", 12, &0.1f64.to_le_bytes())
        .texts("texts", &["a", ""])
        .i32s("i32s", &[1, -1]);
    let Gguf { metadata, version, .. } = open(&builder.bytes()).unwrap();
    assert_eq!(version, 2);
    assert_eq!((metadata.whole("u8").unwrap(), metadata.whole("u16").unwrap()), (Some(200), Some(513)));
    assert_eq!(metadata.whole("u64").unwrap(), Some(u64::MAX));
    assert_eq!((metadata.real("i8").unwrap(), metadata.real("i16").unwrap()), (Some(-1.0), Some(-2.0)));
    assert_eq!((metadata.real("f32").unwrap(), metadata.real("f64").unwrap()), (Some(0.5), Some(0.1)));
    assert_eq!((metadata.flag("bool").unwrap(), metadata.text("text").unwrap()), (Some(true), Some("é")));
    assert_eq!(metadata.texts("texts").unwrap(), Some(vec!["a", ""]));
    assert_eq!(metadata.wholes("i32s").unwrap(), Some(vec![1, -1]));
    assert_eq!(metadata.text("nothing").unwrap(), None);
    for (error, expected) in [
        (metadata.whole("i32").unwrap_err(), "i32 is -3, not a whole number from 0 on"),
        (metadata.text("u8").unwrap_err(), "u8 is 200, not text"),
        (metadata.wholes("texts").unwrap_err(), "texts is a list, not a list of whole numbers"),
        (metadata.flag("text").unwrap_err(), "text is text, not true or false"),
    ] {
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn reads_a_network() {
    let q8 = [[0, 0x3c].as_slice(), &[2; 32]].concat(); // scale 1, 32 times 2
    let builder = embedding(keys()).tensor("blk.0.ffn_up.weight", &[32, 2], 8, &q8.repeat(2));
    let gguf = open(&builder.bytes()).unwrap();
    let config = gguf.config().unwrap();
    assert_eq!((config.family, config.vocab_size, config.head_dim, config.context), (Family::Qwen3, 310, 6, 64));
    assert!(config.tied_embeddings && !config.attention_bias && config.rope_theta == 1e6);
    let checkpoint = gguf.into_checkpoint();
    let up = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(checkpoint.tensor(up, &[2, 32]).unwrap(), [2.0; 64]);
    assert_eq!(checkpoint.storage(up), Some(Storage::Q8_0));
    let mut bytes = Vec::new();
    assert_eq!(checkpoint.stored(up, &[2, 32], |part| bytes.extend_from_slice(part)).unwrap(), Storage::Q8_0);
    assert_eq!(bytes, q8.repeat(2));
    let error = checkpoint.tensor(up, &[32, 2]).unwrap_err().to_string();
    assert!(error.contains("x.gguf: tensor blk.0.ffn_up.weight has shape [2, 32]"), "{error}");
    let error = checkpoint.tensor("model.norm.weight", &[4]).unwrap_err().to_string();
    assert_eq!(error, "x.gguf: tensor output_norm.weight is missing");
}

#[test]
fn refuses_numbers_that_are_not_finite() {
    let builder = keys().tensor("token_embd.weight", &[32, 1], 8, &[[0, 0x7c].as_slice(), &[1; 32]].concat());
    let error = open(&builder.bytes()).unwrap().into_checkpoint();
    let error = error.tensor("model.embed_tokens.weight", &[1, 32]).unwrap_err().to_string();
    assert!(error.contains("token_embd.weight holds inf"), "{error}");
}

#[test]
fn refuses_heads_that_lie() {
    let one = |dims: &[u64], kind, offset| Builder::default().tensor_at("a", dims, kind, offset);
    let huge = u64::MAX.to_le_bytes();
    let text_of = |length: u64| Builder::default().raw("k", TEXT, &length.to_le_bytes());
    let aligned = |alignment| Builder::default().u32("general.alignment", alignment);
    let room = |builder: Builder| builder.tensor("room", &[64], 0, &[0; 256]);
    let cases = [
        (Builder { magic: *b"GGML", ..Builder::default() }, "no GGUF file"),
        (Builder { version: 1, ..Builder::default() }, "GGUF version 1; finch reads 2 and 3"),
        (Builder { version: 3u32.swap_bytes(), ..Builder::default() }, "big-endian"),
        (text_of(u64::MAX), "x.gguf: k: a text takes 18446744073709551615 bytes, 19 are left"),
        (text_of(1 << 40), "1099511627776 bytes"),
        (
            Builder::default().raw("k", TEXT, &[1u64.to_le_bytes().as_slice(), &[0xff]].concat()),
            "k: a text is not UTF-8",
        ),
        (Builder::default().raw("", U32, &[0; 4]), "key 0: its name has 0 bytes"),
        (Builder::default().raw("k", 13, &[0; 4]), "k: a value of type 13"),
        (Builder::default().raw("k", 7, &[2]), "2 is neither true (1) nor false (0)"),
        (Builder::default().u32("k", 1).u32("k", 1), "k appears twice"),
        (Builder::default().list("k", 9, 1, &[0; 12]), "k: a list of values of type 9"),
        (Builder::default().list("k", 0, u64::MAX, &[]), "k: a list of 18446744073709551615 items"),
        (Builder::default().list("k", TEXT, 100, &huge), "k: a list of 100 items"),
        (aligned(0), "general.alignment is 0, not a power of two from 8 to 65536"),
        (aligned(24), "general.alignment is 24"),
        (aligned(1 << 17), "general.alignment is 131072"),
        (Builder::default().text("general.alignment", "x"), "general.alignment is text, not a whole number"),
        (one(&[], 0, 0), "tensor a: 0 dimensions, not 1 to 4"),
        (one(&[1; 5], 0, 0), "5 dimensions"),
        (one(&[0], 0, 0), "tensor a: dimensions [0]"),
        (one(&[1 << 32, 1 << 32], 0, 0), "dimensions [4294967296, 4294967296]"),
        (one(&[1 << 62], 0, 0), "dimensions [4611686018427387904]"),
        (one(&[u64::MAX, 2], 0, 0), "dimensions [18446744073709551615, 2]"),
        (one(&[33, 32], 8, 0), "rows of 33 do not divide into Q8_0's blocks of 32"),
        (one(&[32], 10, 0), "tensor a: it is stored as Q2_K"),
        (one(&[32], 99, 0), "stored as type 99"),
        (one(&[32], 0, 0), "tensor a has 128 bytes from 0 on; the file has 0"),
        (room(one(&[32], 0, u64::MAX - 31)), "tensor a has 128 bytes from 18446744073709551584 on"),
        (room(one(&[32], 0, 4)), "tensor a begins at 4, which is no multiple of the alignment 32"),
        (room(one(&[32], 0, 32)), "tensors room and a overlap"),
        (room(one(&[1], 0, 0).tensor_at("a", &[1], 0, 96)), "tensor a appears twice"),
    ];
    for (builder, expected) in cases {
        let error = fault(builder);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.starts_with("x.gguf: "), "{error}");
    }
    let counts = |tensors: u64, keys: u64| {
        [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    for (tensors, keys, expected) in [
        (1 << 63, 0, "the number of tensors is 9223372036854775808, more than 65536"),
        (0, u64::MAX, "the number of keys"),
        (5, 0, "the number of tensors is 5, 8 bytes are left"),
        (0, 5, "the number of keys is 5, 0 bytes are left"),
    ] {
        let error = open(&counts(tensors, keys)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn refuses_networks_that_it_does_not_run() {
    let other = |key: &str, value: u32| {
        let bytes = embedding(keys()).bytes();
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + 4;
        [&bytes[..at], &value.to_le_bytes(), &bytes[at + 4..]].concat()
    };
    let (none, some) = (Builder::default(), || embedding(keys()));
    let adapter = Builder::default().text("general.type", "adapter").text("general.architecture", "qwen2");
    let cases = [
        (none.bytes(), "general.architecture is missing"),
        (Builder::default().text("general.architecture", "llama").bytes(), "general.architecture is llama"),
        (adapter.bytes(), "general.type is adapter"),
        (keys().bytes(), "tensor token_embd.weight is missing"),
        (keys().numbers("token_embd.weight", &[4], &[0.0; 4]).bytes(), "token_embd.weight has shape [4]"),
        (other("qwen3.block_count", 0), "qwen3.block_count is 0, outside 1 to 512"),
        (other("qwen3.embedding_length", u32::MAX), "qwen3.embedding_length is 4294967295, outside 1 to 65536"),
        (other("qwen3.attention.head_count", 0), "qwen3.attention.head_count is 0"),
        (other("qwen3.attention.head_count", 1025), "outside 1 to 1024"),
        (other("qwen3.attention.head_count_kv", 3), "head_count_kv is 3, outside 1 to 2"),
        (other("qwen3.attention.key_length", 7), "heads of 7 numbers"),
        (other("qwen3.attention.value_length", 8), "qwen3.attention.value_length is 8; finch runs it equal to"),
        (other("qwen3.rope.freq_base", 0), "qwen3.rope.freq_base is 0, outside 1 to 1e12"),
        (
            other("qwen3.attention.layer_norm_rms_epsilon", 0),
            "layer_norm_rms_epsilon is 0, not above 0 and 0.1 at most",
        ),
        (other("qwen3.attention.layer_norm_rms_epsilon", f32::NAN.to_bits()), "layer_norm_rms_epsilon is NaN"),
        (some().u32("qwen3.expert_count", 8).bytes(), "qwen3.expert_count is 8"),
        (some().text("qwen3.rope.scaling.type", "longrope").bytes(), "qwen3.rope.scaling.type is longrope"),
        (some().text("qwen3.rope.scaling.type", "yarn").bytes(), "qwen3.rope.scaling.factor is missing"),
        (some().f32("qwen3.rope.scaling.factor", 0.5).bytes(), "qwen3.rope.scaling.factor is 0.5, outside 1 to"),
        (some().f32("qwen3.rope.scaling.yarn_ext_factor", 0.5).bytes(), "yarn_ext_factor is 0.5; finch runs 1"),
        (Builder::default().text("general.architecture", &"x".repeat(99)).bytes(), "architecture has 99 bytes"),
        (some().raw("qwen3.attention.causal", 7, &[0]).bytes(), "qwen3.attention.causal is false"),
        (some().u32("qwen3.rope.dimension_count", 4).bytes(), "qwen3.rope.dimension_count is 4"),
        (some().numbers("rope_freqs.weight", &[2], &[1.0; 2]).bytes(), "tensor rope_freqs.weight belongs to no qwen3"),
        (some().numbers("blk.1.attn_q.weight", &[2], &[1.0; 2]).bytes(), "tensor blk.1.attn_q.weight belongs to no"),
    ];
    for (bytes, expected) in cases {
        let error = open(&bytes).unwrap().config().expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.starts_with("x.gguf: "), "{error}");
    }
}

#[test]
fn reads_rope_scaling() {
    let config = |builder: Builder| open(&builder.bytes()).unwrap().config().unwrap();
    let yarn = embedding(keys()).text("qwen3.rope.scaling.type", "yarn").f32("qwen3.rope.scaling.factor", 4.0);
    let set = yarn.u32("qwen3.rope.scaling.original_context_length", 32).f32("qwen3.rope.scaling.yarn_beta_fast", 16.0);
    let found = config(set);
    assert_eq!(found.rope_scaling, RopeScaling::Yarn(Yarn { beta_fast: 16.0, ..Yarn::new(4.0, 32) }));
    assert_eq!(found.context, 128);
    let linear = RopeScaling::Linear { factor: 2.0 };
    for key in ["qwen3.rope.scaling.factor", "qwen3.rope.scale_linear"] {
        assert_eq!(config(embedding(keys()).f32(key, 2.0)).rope_scaling, linear, "{key}");
    }
    let none = embedding(keys()).text("qwen3.rope.scaling.type", "none").f32("qwen3.rope.scaling.factor", 2.0);
    assert_eq!(config(none).rope_scaling, RopeScaling::None);
}

#[test]
fn the_tokenizer_is_the_one_of_tokenizer_json() {
    let builder = with_tokenizer(Builder::default(), &tokenizer_json())
        .u32("tokenizer.ggml.eos_token_id", 302)
        .u32("tokenizer.ggml.bos_token_id", 300)
        .f32("general.sampling.temp", 0.5)
        .u32("general.sampling.top_k", 7)
        .text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
    let gguf = open(&builder.bytes()).unwrap();
    let (own, original) = (gguf.tokenizer().unwrap(), crate::model::tokenizer::tests::tokenizer());
    assert_eq!((own.vocab_size(), own.added_tokens()), (original.vocab_size(), original.added_tokens()));
    let text = "hi<|im_end|> e\u{301} 👋 hi\n\n";
    assert_eq!(own.encode_text(text).unwrap(), original.encode_text(text).unwrap());
    let template = gguf.template().unwrap();
    let said = template.text(&[Message::user("x")], false, None).unwrap();
    assert_eq!(said, "<|endoftext|>x<|im_end|>");
    let generation = gguf.generation(&own).unwrap();
    assert_eq!((generation.eos, generation.temperature, generation.top_k), (vec![300, 302], Some(0.5), Some(7)));
}

#[test]
fn refuses_tokenizers_it_would_get_wrong() {
    let good = || with_tokenizer(Builder::default(), &tokenizer_json());
    let with = |at: &str, value: serde_json::Value| {
        let mut json = tokenizer_json();
        *json.pointer_mut(at).unwrap() = value;
        with_tokenizer(Builder::default(), &json)
    };
    let listed = |types: &[i32]| {
        Builder::default()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "qwen2")
            .texts("tokenizer.ggml.tokens", &["a", "a"])
            .i32s("tokenizer.ggml.token_type", types)
            .texts("tokenizer.ggml.merges", &["a a"])
    };
    let pre = |pre: &str| Builder::default().text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", pre);
    let cases = [
        (Builder::default(), "tokenizer.ggml.model is missing"),
        (Builder::default().text("tokenizer.ggml.model", "llama"), "tokenizer.ggml.model is llama, not gpt2"),
        (Builder::default().text("tokenizer.ggml.model", "gpt2"), "tokenizer.ggml.pre is missing"),
        (pre("llama-bpe"), "tokenizer.ggml.pre is llama-bpe"),
        (pre("qwen2"), "tokenizer.ggml.tokens is missing"),
        (pre("qwen2").u32("tokenizer.ggml.tokens", 1), "tokenizer.ggml.tokens is 1, not a list of texts"),
        (listed(&[1]), "tokenizer.ggml.tokens has 2 items and tokenizer.ggml.token_type 1"),
        (listed(&[1, 1]), "tokenizer.ggml.tokens[1] is \"a\", as tokenizer.ggml.tokens[0] is"),
        (listed(&[1, 6]), "tokenizer.ggml.token_type[1] is 6"),
        (listed(&[1, 5]), "lacks 255 of the 256 bytes"),
        (with("/model/merges", json!(["h z9"])), "tokenizer.ggml: merges[0]: \"z9\" is not in the vocabulary"),
        (with("/model/merges", json!(["hi hi"])), "tokenizer.ggml: merges[0]: \"hihi\" is not in the vocabulary"),
        (with("/model/merges", json!(["hi"])), "tokenizer.ggml.merges[0] is \"hi\", not two tokens"),
        (with("/model/merges", json!(["h i i"])), "tokenizer.ggml.merges[0]"),
        (with("/added_tokens/0/content", json!("")), "is empty"),
        (with("/added_tokens/0/content", json!("<|im_end|>")), "appears twice"),
    ];
    for (builder, expected) in cases {
        let error = open(&builder.bytes()).unwrap().tokenizer().expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let bytes = good().u32("tokenizer.ggml.eos_token_id", 307).bytes();
    let gguf = open(&bytes).unwrap();
    let tokenizer = gguf.tokenizer().unwrap();
    for error in [gguf.generation(&tokenizer).unwrap_err(), gguf.template().unwrap_err()] {
        assert!(error.to_string().contains("tokenizer.ggml.eos_token_id is 307; the file has 307 tokens"), "{error}");
    }
}

/// Two parts: all keys and a tensor, another tensor.
fn parts(second: Builder) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let first = embedding(keys()).u32("split.no", 0).u32("split.count", 2).u32("split.tensors.count", 2);
    fs::write(folder.path().join("x-00001-of-00002.gguf"), first.bytes()).unwrap();
    fs::write(folder.path().join("x-00002-of-00002.gguf"), second.bytes()).unwrap();
    folder
}

#[test]
fn parts_are_one_file() {
    let norm = |builder: Builder| builder.numbers("output_norm.weight", &[4], &[1.0; 4]);
    // Of the two versions that finch reads, mixed: nothing in a part says that they must be of one.
    let second = Builder { version: 2, ..Builder::default() };
    let folder = parts(norm(second.u32("split.no", 1).u32("split.count", 2)));
    let open_at = |name: &str| Gguf::open(&folder.path().join(name));
    let digest = |gguf: Gguf| gguf.into_checkpoint().digest().unwrap();
    let whole = digest(open(&norm(embedding(keys())).bytes()).unwrap());
    for name in ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"] {
        let gguf = open_at(name).unwrap();
        assert_eq!(gguf.config().unwrap().hidden_size, 4, "{name}");
        assert_eq!(digest(gguf), whole, "{name}");
    }
    fs::copy(folder.path().join("x-00001-of-00002.gguf"), folder.path().join("y.gguf")).unwrap();
    assert!(open_at("y.gguf").unwrap_err().to_string().contains("its name is not NAME-00001-of-00002.gguf"));
    fs::remove_file(folder.path().join("x-00002-of-00002.gguf")).unwrap();
    assert!(open_at("x-00001-of-00002.gguf").unwrap_err().to_string().starts_with("x-00002-of-00002.gguf: "));
}

#[test]
fn refuses_parts_that_do_not_belong_together() {
    let part = |no, count| Builder::default().u32("split.no", no).u32("split.count", count);
    let cases = [
        (Builder::default(), "x-00002-of-00002.gguf: split.no is missing"),
        (part(0, 2), "split.no is 0, its name says 1"),
        (part(1, 3), "split.count is 3, its name says 2"),
        (part(1, 2), "split.tensors.count is 2, the 2 parts hold 1"),
        (embedding(part(1, 2)), "tensor token_embd.weight stands in another part too"),
    ];
    for (second, expected) in cases {
        let error = Gguf::open(&parts(second).path().join("x-00001-of-00002.gguf")).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn part_names_are_told_from_others() {
    assert_eq!(split_name("a-b-00002-of-00003.gguf"), Some(("a-b", 3)));
    for name in ["a.gguf", "a-2-of-3.gguf", "a-00002-of-00003.bin", "a-0000x-of-00003.gguf", "-of-00003.gguf"] {
        assert_eq!(split_name(name), None, "{name}");
    }
}

/// All that reading a file does.
fn read_all(bytes: &[u8]) {
    let mut file = bytes;
    let Ok(head) = header::read(&mut file, bytes.len() as u64, 0) else { return };
    let shard = Shard::in_memory("x", bytes.to_vec().into());
    let gguf = Gguf::joined(head, vec![shard]);
    let _ = (gguf.config(), gguf.template());
    if let Ok(tokenizer) = gguf.tokenizer() {
        let _ = gguf.generation(&tokenizer);
    }
    let checkpoint = gguf.into_checkpoint();
    let shapes: Vec<(String, Vec<usize>)> =
        checkpoint.names().map(|name| (name.to_string(), checkpoint.shape(name).unwrap().to_vec())).collect();
    for (name, shape) in shapes {
        let _ = checkpoint.tensor(&name, &shape);
    }
}

#[test]
fn damaged_files_never_panic() {
    let good = with_tokenizer(embedding(keys()), &tokenizer_json()).tensor("output.weight", &[32], 8, &[1; 34]).bytes();
    read_all(&good);
    for end in (0..good.len()).step_by(7) {
        read_all(&good[..end]);
    }
    let mut state = 1u64;
    let mut draw = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for _ in 0..1000 {
        let mut bad = good.clone();
        for _ in 0..=draw(3) {
            let at = draw(bad.len());
            bad[at] = [0, 1, 0x7f, 0x80, 0xff, draw(256) as u8][draw(6)];
        }
        read_all(&bad);
    }
}
