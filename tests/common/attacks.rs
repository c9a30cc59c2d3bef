//! Crafted files, one for each known class of attack on such readers, and what finch says of each. `tests/fuzz/corpus`
//! holds them, by kind, for fuzzing to start from.
#![allow(dead_code)] // each test file uses a part of it

use serde_json::{Value, json};

use super::gguf::{Builder, TEXT, with_tokenizer};
use super::readers::{TENSORS, small_tokenizer_json};

pub struct Attack {
    /// The name of its folder in the corpus: what it is read as.
    pub kind: &'static str,
    pub name: &'static str,
    pub bytes: Vec<u8>,
    /// Part of what finch says of it; empty: it is sound, if strange.
    pub fault: &'static str,
}

pub fn all() -> Vec<Attack> {
    [gguf(), safetensors(), index(), tokenizer(), template(), settings(), adapter(), toml(), database()].concat()
}

fn made<B: Into<Vec<u8>>>(kind: &'static str, files: Vec<(&'static str, B, &'static str)>) -> Vec<Attack> {
    let attack = |(name, bytes, fault): (_, B, _)| Attack { kind, name, bytes: bytes.into(), fault };
    files.into_iter().map(attack).collect()
}

impl Clone for Attack {
    fn clone(&self) -> Self {
        Attack { bytes: self.bytes.clone(), ..*self }
    }
}

/// A sound network of one block.
pub fn sound_gguf() -> Builder {
    let ones = |n: usize| vec![0.5; n];
    let builder = with_tokenizer(keys(), &small_tokenizer_json())
        .u32("tokenizer.ggml.eos_token_id", 302)
        .text("tokenizer.chat_template", "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
        .numbers("token_embd.weight", &[2, 310], &ones(620))
        .numbers("output_norm.weight", &[2], &ones(2));
    [
        ("attn_norm", vec![2]),
        ("ffn_norm", vec![2]),
        ("attn_q", vec![2, 8]),
        ("attn_k", vec![2, 4]),
        ("attn_v", vec![2, 4]),
        ("attn_output", vec![8, 2]),
        ("attn_q_norm", vec![4]),
        ("attn_k_norm", vec![4]),
        ("ffn_gate", vec![2, 8]),
        ("ffn_up", vec![2, 8]),
        ("ffn_down", vec![8, 2]),
    ]
    .into_iter()
    .fold(builder, |builder, (part, dims)| {
        let count = dims.iter().product::<u64>() as usize;
        builder.numbers(&format!("blk.0.{part}.weight"), &dims, &ones(count))
    })
}

/// A sound network of one block whose matrices are quantised: those of 32 columns in each of ggml's types for that, the two
/// of 256 columns as `wide` says (ggml's number of a type, bytes of its block).
pub fn quantised_gguf(wide: [(u32, usize); 2]) -> Builder {
    let builder = with_tokenizer(keys_of(32, 256, 8, 32), &small_tokenizer_json());
    let builder = [("output_norm", 32), ("blk.0.attn_norm", 32), ("blk.0.ffn_norm", 32)]
        .into_iter()
        .chain([("blk.0.attn_q_norm", 32), ("blk.0.attn_k_norm", 32)])
        .fold(builder, |builder, (name, n)| builder.numbers(&format!("{name}.weight"), &[n], &vec![0.5; n as usize]));
    [
        ("token_embd", [32, 310], (2, 18)),
        ("blk.0.attn_q", [32, 256], (3, 20)),
        ("blk.0.attn_k", [32, 32], (6, 22)),
        ("blk.0.attn_v", [32, 32], (7, 24)),
        ("blk.0.attn_output", [256, 32], wide[0]),
        ("blk.0.ffn_gate", [32, 256], (8, 34)),
        ("blk.0.ffn_up", [32, 256], (2, 18)),
        ("blk.0.ffn_down", [256, 32], wide[1]),
    ]
    .into_iter()
    .fold(builder, |builder, (name, dims, (kind, size))| {
        let blocks = dims[1] as usize; // one a row
        builder.tensor(&format!("{name}.weight"), &dims, kind, &vec![0x11; blocks * size]) // small scales
    })
}

fn keys() -> Builder {
    keys_of(2, 8, 2, 4)
}

fn keys_of(hidden: u32, feed_forward: u32, heads: u32, head_dim: u32) -> Builder {
    Builder::default()
        .text("general.architecture", "qwen3")
        .u32("qwen3.block_count", 1)
        .u32("qwen3.context_length", 64)
        .u32("qwen3.embedding_length", hidden)
        .u32("qwen3.feed_forward_length", feed_forward)
        .u32("qwen3.attention.head_count", heads)
        .u32("qwen3.attention.head_count_kv", 1)
        .u32("qwen3.attention.key_length", head_dim)
        .u32("qwen3.attention.value_length", head_dim)
        .f32("qwen3.rope.freq_base", 1e6)
        .f32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
}

/// Keys and an embedding.
fn network() -> Builder {
    keys().numbers("token_embd.weight", &[2, 310], &[0.5; 620])
}

/// The file with `bytes` over what stands `skip` bytes behind the first `after`.
fn over(file: Vec<u8>, after: &str, skip: usize, bytes: &[u8]) -> Vec<u8> {
    let at = file.windows(after.len()).position(|window| window == after.as_bytes()).expect("it is there");
    let at = at + after.len() + skip;
    [&file[..at], bytes, &file[at + bytes.len()..]].concat()
}

fn gguf() -> Vec<Attack> {
    let sound = || sound_gguf().bytes();
    let header =
        |tensors: u64, keys: u64| [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
    let set = |key: &str, value: u32| over(sound(), key, 4, &value.to_le_bytes());
    let embedding = |dims: &[u64]| Builder::default().tensor_at("token_embd.weight", dims, 0, 0).bytes();
    let tokens = |tokens: &[&str], merges: &[&str]| {
        network()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "qwen2")
            .texts("tokenizer.ggml.tokens", tokens)
            .i32s("tokenizer.ggml.token_type", &vec![1; tokens.len()])
            .texts("tokenizer.ggml.merges", merges)
    };
    let mut merges = small_tokenizer_json();
    merges["model"]["merges"] = json!(["h z9"]);
    let inner = [&TEXT.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    let one = Builder::default().numbers("a", &[1], &[1.0]);
    made(
        "gguf",
        vec![
            ("sound", sound(), ""),
            ("sound-q4-k-and-q6-k", quantised_gguf([(14, 210), (12, 144)]).bytes(), ""),
            ("sound-q5-k-and-q8-0", quantised_gguf([(13, 176), (8, 8 * 34)]).bytes(), ""),
            (
                "scales-not-finite",
                quantised_gguf([(14, 210), (12, 144)]).tensor("output.weight", &[32, 310], 8, &[0x7c; 10_540]).bytes(),
                "not a finite number",
            ),
            ("empty", vec![], "it does not begin with GGUF"),
            ("cut-short", sound()[..sound().len() / 2].to_vec(), "are left"),
            ("big-endian", [&b"GGUF"[..], &3u32.to_be_bytes(), &[0; 16]].concat(), "big-endian"),
            ("version-1", [&b"GGUF"[..], &1u32.to_le_bytes(), &[0; 16]].concat(), "GGUF version 1"),
            ("tensor-count-2-63", header(1 << 63, 0), "the number of tensors is 9223372036854775808"),
            ("key-count-max", header(0, u64::MAX), "the number of keys is 18446744073709551615"),
            ("key-count-of-65536", header(0, 65_536), "0 bytes are left"),
            (
                "name-length-2-63",
                [header(0, 1), (1u64 << 63).to_le_bytes().to_vec(), vec![0; 16]].concat(),
                "its name has",
            ),
            (
                "text-length-max",
                Builder::default().raw("k", TEXT, &u64::MAX.to_le_bytes()).bytes(),
                "a text takes 18446744073709551615 bytes",
            ),
            (
                "list-length-2-63",
                Builder::default().list("k", 4, 1 << 63, &[]).bytes(),
                "a list of 9223372036854775808",
            ),
            ("list-of-2-million", Builder::default().list("k", 0, 1 << 21, &[]).bytes(), "bytes are left"),
            ("list-of-lists", Builder::default().list("k", 9, 1, &inner).bytes(), "a list of values of type 9"),
            ("value-of-type-99", Builder::default().raw("k", 99, &[0; 8]).bytes(), "a value of type 99"),
            ("text-not-utf-8", Builder::default().raw("k", TEXT, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).bytes(), "not UTF-8"),
            ("key-twice", Builder::default().u32("k", 1).u32("k", 2).bytes(), "k appears twice"),
            ("alignment-0", Builder::default().u32("general.alignment", 0).bytes(), "general.alignment is 0"),
            ("alignment-48", Builder::default().u32("general.alignment", 48).bytes(), "general.alignment is 48"),
            (
                "alignment-2-31",
                Builder::default().u32("general.alignment", 1 << 31).bytes(),
                "not a power of two from 8",
            ),
            ("offset-past-the-end", one.tensor_at("b", &[1], 0, 1 << 40).bytes(), "bytes from 1099511627776 on"),
            ("offset-max", Builder::default().tensor_at("a", &[8], 0, u64::MAX - 31).bytes(), "the file has"),
            (
                "offset-odd",
                Builder::default().numbers("a", &[64], &[1.0; 64]).tensor_at("b", &[1], 0, 7).bytes(),
                "no multiple of the alignment",
            ),
            (
                "tensor-twice",
                Builder::default().numbers("a", &[1], &[1.0]).numbers("a", &[1], &[1.0]).bytes(),
                "a appears twice",
            ),
            (
                "tensors-overlap",
                Builder::default().numbers("a", &[64], &[1.0; 64]).tensor_at("b", &[8], 0, 32).bytes(),
                "overlap",
            ),
            ("dimensions-wrap", embedding(&[1 << 32, 1 << 32, 1 << 32, 1 << 32]), "room for their product"),
            ("dimensions-wrap-to-4", embedding(&[(1 << 62) + 1, 4]), "room for their product"),
            ("dimension-0", embedding(&[4, 0]), "each must be 1 or more"),
            (
                "dimensions-2-31",
                Builder::default().raw("k", 4, &[0; 4]).tensor_at("a", &[1; 5], 0, 0).bytes(),
                "5 dimensions, not 1 to 4",
            ),
            ("half-a-block", Builder::default().tensor("a", &[31], 8, &[0; 34]).bytes(), "do not divide into"),
            ("unknown-type", Builder::default().tensor("a", &[32], 77, &[0; 34]).bytes(), "stored as type 77"),
            (
                "not-finite",
                sound_gguf().tensor("output.weight", &[2, 310], 0, &[0xff; 2480]).bytes(),
                "not a finite number",
            ),
            ("heads-0", set("qwen3.attention.head_count", 0), "qwen3.attention.head_count is 0"),
            ("heads-2-32", set("qwen3.attention.head_count", u32::MAX), "qwen3.attention.head_count is 4294967295"),
            ("hidden-2-31", set("qwen3.embedding_length", 1 << 31), "qwen3.embedding_length is 2147483648"),
            ("hidden-2-40", keys_with_hidden(1 << 40), "qwen3.embedding_length is 1099511627776"),
            ("hidden-other-than-the-tensors", set("qwen3.embedding_length", 8), "the configuration says"),
            ("layers-0", set("qwen3.block_count", 0), "qwen3.block_count is 0"),
            ("layers-2-31", set("qwen3.block_count", 1 << 31), "qwen3.block_count is 2147483648"),
            ("layers-more-than-the-tensors", set("qwen3.block_count", 2), "blk.1"),
            (
                "layer-out-of-range",
                sound_gguf().numbers("blk.9.attn_q.weight", &[1], &[1.0]).bytes(),
                "blk.9.attn_q.weight belongs to no",
            ),
            ("rope-base-0", set("qwen3.rope.freq_base", 0), "qwen3.rope.freq_base is 0"),
            (
                "rope-factor-infinite",
                sound_gguf().f32("qwen3.rope.scaling.factor", f32::INFINITY).bytes(),
                "qwen3.rope.scaling.factor is inf",
            ),
            ("end-token-out-of-range", set("tokenizer.ggml.eos_token_id", 305), "tokenizer.ggml.eos_token_id is 305"),
            ("token-twice", tokens(&["a", "a"], &[]).bytes(), "tokenizer.ggml.tokens[1] is \"a\""),
            ("bytes-missing", tokens(&["a"], &[]).bytes(), "lacks 255 of the 256 bytes"),
            ("merge-of-nothing", with_tokenizer(network(), &merges).bytes(), "\"z9\" is not in the vocabulary"),
            (
                "template-bomb",
                with_tokenizer(network(), &small_tokenizer_json())
                    .text("tokenizer.chat_template", "{{ 'x' * 1000000000 }}")
                    .bytes(),
                "longer than any",
            ),
            ("a-part-of-many", sound_gguf().u32("split.count", u32::MAX).bytes(), "split.count is 4294967295"),
        ],
    )
}

fn keys_with_hidden(hidden: u64) -> Vec<u8> {
    Builder::default()
        .text("general.architecture", "qwen3")
        .raw("qwen3.embedding_length", 10, &hidden.to_le_bytes())
        .numbers("token_embd.weight", &[4, 1], &[0.5; 4])
        .bytes()
}

pub fn tensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn entry(name: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

fn safetensors() -> Vec<Attack> {
    let one = |shape: &str, from, to| tensors(&format!("{{{}}}", entry("a", shape, from, to)), &[0; 4]);
    let two = |b: String, data: &[u8]| tensors(&format!("{{{},{b}}}", entry("a", "[1]", 0, 4)), data);
    let nested = format!(r#"{{"__metadata__":{}}}"#, "[".repeat(5_000));
    made(
        "safetensors",
        vec![
            ("sound", one("[1]", 0, 4), ""),
            ("empty", vec![], "too few"),
            (
                "header-length-2-63",
                [&(1u64 << 63).to_le_bytes()[..], b"{}"].concat(),
                "should have 9223372036854775808 bytes",
            ),
            ("header-longer-than-file", [&3u64.to_le_bytes()[..], b"{}"].concat(), "the header should have 3 bytes"),
            ("header-no-json", tensors("{", &[]), "the header: not JSON"),
            ("metadata-nested", tensors(&nested, &[]), "the header"),
            ("offsets-past-the-end", one("[1]", 0, 1 << 63), "outside the file's 4 bytes"),
            ("offsets-reversed", one("[1]", 4, 0), "offsets 4..0"),
            ("offsets-leave-a-gap", tensors(&format!("{{{}}}", entry("a", "[1]", 4, 8)), &[0; 8]), "leaves a gap"),
            ("dimensions-wrap", one("[4294967296,4294967296,4294967296]", 0, 4), "does not take the 4 bytes"),
            ("dimensions-wrap-to-1", one("[4611686018427387905,4]", 0, 4), "does not take the 4 bytes"),
            ("dimension-0", one("[0]", 0, 0), "dimension 0 of [0] is 0"),
            ("dimensions-many", one(&format!("[{}1]", "1,".repeat(1000)), 0, 4), "1001 dimensions"),
            ("dimension-negative", one("[-1]", 0, 4), "the header: a.shape[0]: invalid value"),
            ("tensor-twice", two(entry("a", "[1]", 4, 8), &[0; 8]), "a appears twice"),
            ("tensors-overlap", two(entry("b", "[1]", 2, 6), &[0; 6]), "tensor b overlaps"),
            ("bytes-of-no-tensor", two(entry("b", "[1]", 4, 8), &[0; 12]), "belong to no tensor"),
            (
                "name-long",
                tensors(&format!("{{{}}}", entry(&"a".repeat(5000), "[1]", 0, 4)), &[0; 4]),
                "has 5000 bytes",
            ),
            ("not-finite", tensors(&format!("{{{}}}", entry("a", "[1]", 0, 4)), &[0xff; 4]), "not a finite number"),
            (
                "type-of-no-weight",
                tensors(r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]),
                "stored as I64",
            ),
            ("pickle", b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01.".to_vec(), "the header should have"),
        ],
    )
}

fn index() -> Vec<Attack> {
    let map = |name: &str| json!({"weight_map": {"a": name}}).to_string();
    made(
        "index",
        vec![
            ("sound", map("1.safetensors"), ""),
            ("shard-above", map("../1.safetensors"), "no name of a safetensors file beside it"),
            ("shard-absolute", map("/etc/1.safetensors"), "no name of a safetensors file beside it"),
            ("shard-windows", map("C:\\1.safetensors"), "no name of a safetensors file beside it"),
            ("shard-pickle", map("pytorch_model.bin"), "no name of a safetensors file beside it"),
            ("shard-missing", map("2.safetensors"), "2.safetensors is missing; model.safetensors.index.json names it"),
            ("shard-name-long", map(&("x".repeat(5000) + ".safetensors")), "has 5012 bytes"),
            (
                "tensor-missing",
                json!({"weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}).to_string(),
                "tensor b",
            ),
            (
                "tensor-twice",
                r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#.to_string(),
                "a appears twice",
            ),
            ("no-tensor", r#"{"weight_map":{}}"#.to_string(), "it names no tensor"),
            ("nested", "[".repeat(5_000), "index.json"),
        ],
    )
}

fn tokenizer() -> Vec<Attack> {
    let with = |at: &str, value: Value| {
        let mut json = small_tokenizer_json();
        let (parent, key) = at.rsplit_once('/').expect("a path");
        json.pointer_mut(parent).expect("it is there")[key] = value;
        json.to_string()
    };
    let split = |pattern: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let mut json = small_tokenizer_json();
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
        json.to_string()
    };
    let added: Vec<Value> =
        (0..300).map(|i| json!({"id": 1000 + i, "content": "a".repeat(1 + i % 250) + &i.to_string()})).collect();
    let twice = small_tokenizer_json().to_string().replacen(r#""vocab":{"#, r#""vocab":{"hi":9,"#, 1);
    made(
        "tokenizer",
        vec![
            ("sound", small_tokenizer_json().to_string(), ""),
            ("empty", String::new(), "tokenizer.json"),
            ("nested", format!(r#"{{"model":{}"#, "[".repeat(5_000)), "tokenizer.json"),
            ("other-model", with("/model/type", json!("Unigram")), "the model is Unigram"),
            ("bytes-missing", with("/model/vocab", json!({"a": 0})), "lacks 255 of the 256 bytes"),
            ("id-2-32", with("/model/vocab/hi", json!(1u64 << 32)), "expected a whole number from 0 to 4294967295"),
            ("id-max", with("/model/vocab/hi", json!(u32::MAX)), "token id 4294967295 is beyond"),
            ("id-negative", with("/model/vocab/hi", json!(-1)), "tokenizer.json"),
            ("id-of-two-tokens", with("/model/vocab/hi", json!(0)), "id 0 stands for"),
            ("token-twice", twice, "appears twice"),
            ("merge-of-nothing", with("/model/merges", json!(["h z9"])), "\"z9\" is not in the vocabulary"),
            ("merge-to-nothing", with("/model/merges", json!([["hi", "hi"]])), "\"hihi\" is not in the vocabulary"),
            ("merge-of-one", with("/model/merges", json!(["hi"])), "not two tokens"),
            ("added-id-of-another", with("/added_tokens/0/id", json!(5)), "has the id of"),
            ("added-twice", with("/added_tokens/0/id", json!(301)), "appears twice"),
            ("added-empty", with("/added_tokens/0/content", json!("")), "is empty"),
            ("added-long", with("/added_tokens/0/content", json!("x".repeat(5000))), "has 5000 bytes"),
            ("added-id-max", with("/added_tokens/0/id", json!(u32::MAX)), "beyond"),
            ("added-many", with("/added_tokens", json!(added)), ""),
            ("pattern-of-all-ways", split("(a+)+\\1$"), "is not regular"),
            ("pattern-looking-ahead", split("(?=(a|aa)*b)a|(?:(?!\\S)a*)*b"), "is not regular"),
            ("pattern-large", split("(?:\\w{1000}){1000}"), "is not regular, or too large"),
            ("pattern-long", split(&"a".repeat(5000)), "has 5000 bytes"),
            ("pattern-possessive", split("(?:(?:a++|a)*)*b"), "repeats what is repeated"),
            ("pattern-empty", split(""), ""),
            (
                "normalizer-other",
                with("/normalizer", json!({"type": "Replace", "pattern": {"Regex": "(a+)+"}, "content": ""})),
                "the normalizer is Replace",
            ),
        ],
    )
}

fn template() -> Vec<Attack> {
    let loops =
        |body: &str| format!("{{% set ns = namespace(a='ab', b=[1]) %}}{{% for i in range(99) %}}{body}{{% endfor %}}");
    let long = |text: &str, times: usize| text.repeat(times);
    made(
        "template",
        vec![
            (
                "sound",
                "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}".to_string(),
                "",
            ),
            ("syntax", "{% if %}".to_string(), "chat template failed"),
            ("repeat", "{{ 'x' * 1000000000 }}".to_string(), "longer than any"),
            ("double", loops("{% set ns.a = ns.a ~ ns.a %}"), "longer than any"),
            ("double-by-adding", loops("{% set ns.a = ns.a + ns.a %}"), "longer than any"),
            (
                "double-by-capture",
                loops("{% set x %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = x %}"),
                "longer than any",
            ),
            ("double-by-replace", loops("{% set ns.a = ns.a.replace('', ns.a) %}"), "longer than any"),
            ("double-lists", loops("{% set ns.b = ns.b + ns.b %}"), "more text than any"),
            ("tree-of-lists", loops("{% set ns.b = [ns.b, ns.b] %}"), "more text than any"),
            ("nest-lists", loops("{% set ns.b = [ns.b] %}"), "nested too deeply"),
            ("join", loops("{% set ns.a = range(9999) | join(ns.a) %}"), "longer than any"),
            ("indent", "{{ 'a\nb' | indent(1000000000) }}".to_string(), "longer than any"),
            ("format", "{{ '%1000000000d' | format(1) }}".to_string(), "format"),
            ("holds-itself", loops("{% set ns.b = ns %}{{ ns }}"), "a namespace can be neither stored nor printed"),
            (
                "loops",
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_string(),
                "than any conversation needs",
            ),
            ("range", "{% for a in range(10**18) %}{% endfor %}".to_string(), "range"),
            ("includes-itself", "{% include 'chat_template' %}".to_string(), "no templates with include"),
            ("extends-itself", "{% extends 'chat_template' %}".to_string(), "no templates with extends"),
            ("imports", "{% import '/etc/passwd' as x %}".to_string(), "no templates with import"),
            ("calls-itself", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".to_string(), "recursion"),
            ("parentheses", format!("{{{{ {}1{} }}}}", long("(", 900), long(")", 900)), "recursion"),
            ("sum", format!("{{{{ 1{} }}}}", long("+1", 9000)), "words between two braces"),
            ("filters", format!("{{{{ a{} }}}}", long("|trim", 9000)), "words between two braces"),
            ("blocks", long("{% if a %}", 3000), "recursion"),
            ("branches", format!("{{% if a %}}{}{{% endif %}}", long("{% elif a %}", 5000)), ""),
            ("large", long("x", 70_000), "more than 65536"),
            ("raises", "{{ raise_exception('x' * 900000) }}".to_string(), "chat template failed"),
        ],
    )
}

fn settings() -> Vec<Attack> {
    let sound = json!({"model_type": "qwen3", "vocab_size": 310, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 1e4});
    let with = |key: &str, value: Value| {
        let mut config = sound.clone();
        config[key] = value;
        config.to_string()
    };
    let config = made(
        "config",
        vec![
            ("sound", sound.to_string(), ""),
            ("empty", String::new(), "config.json"),
            ("nested", long_nested(), "config.json"),
            ("heads-0", with("num_attention_heads", json!(0)), "num_attention_heads is 0"),
            (
                "heads-shared-unevenly",
                with("num_attention_heads", json!(3)).replace("\"num_key_value_heads\":1", "\"num_key_value_heads\":2"),
                "cannot share",
            ),
            ("hidden-2-40", with("hidden_size", json!(1u64 << 40)), "hidden_size is 1099511627776"),
            ("vocabulary-0", with("vocab_size", json!(0)), "vocab_size is 0"),
            ("layers-max", with("num_hidden_layers", json!(u64::MAX)), "num_hidden_layers is 18446744073709551615"),
            ("layers-negative", with("num_hidden_layers", json!(-1)), "num_hidden_layers: invalid value"),
            ("layers-half", with("num_hidden_layers", json!(1.5)), "expected a whole number from 0 on"),
            ("head-odd", with("head_dim", json!(5)), "head_dim is 5"),
            ("epsilon-0", with("rms_norm_eps", json!(0)), "rms_norm_eps is 0"),
            ("theta-1e308", with("rope_theta", json!(1e308)), "rope_theta is 1"),
            ("context-2-60", with("max_position_embeddings", json!(1u64 << 60)), "max_position_embeddings is"),
            ("rope-factor-1e300", with("rope_scaling", json!({"type": "yarn", "factor": 1e300})), "outside 1 to 10000"),
            ("rope-factor-0", with("rope_scaling", json!({"type": "linear", "factor": 0})), "factor is 0"),
            (
                "rope-of-theta-1",
                with("rope_scaling", json!({"type": "yarn", "factor": 4})).replace("10000.0", "1.0"),
                "",
            ),
            ("experts", with("num_experts", json!(128)), "a mixture of 128 experts"),
            ("other-family", with("model_type", json!("llama")), "the model is llama"),
            ("family-name-long", with("model_type", json!("x".repeat(9000))), "x…"),
            (
                "layer-types-many",
                with("layer_types", json!(vec!["full_attention"; 3000])),
                "layer_types has 3000 entries",
            ),
        ],
    );
    let generation = made(
        "generation",
        vec![
            ("sound", r#"{"eos_token_id":[302],"temperature":0.6}"#.to_string(), ""),
            ("end-out-of-range", r#"{"eos_token_id":307}"#.to_string(), "307 is beyond the 307 ids"),
            ("end-negative", r#"{"eos_token_id":-1}"#.to_string(), "eos_token_id: expected a token id or a list"),
            ("temperature-negative", r#"{"temperature":-1}"#.to_string(), "temperature is -1"),
            ("temperature-1e308", r#"{"temperature":1e308}"#.to_string(), "temperature is 1"),
            ("penalty-0", r#"{"repetition_penalty":0}"#.to_string(), "repetition_penalty is 0"),
            ("nested", long_nested(), "generation_config.json"),
        ],
    );
    let tokenizer = made(
        "tokenizer_config",
        vec![
            (
                "sound",
                r#"{"chat_template":[{"name":"default","template":"x"},{"name":"rag","template":"y"}]}"#.to_string(),
                "",
            ),
            (
                "added-contradicts",
                r#"{"added_tokens_decoder":{"302":{"content":"x"}}}"#.to_string(),
                "302 is x, in tokenizer.json",
            ),
            (
                "added-id-2-40",
                r#"{"added_tokens_decoder":{"1099511627776":{"content":"x"}}}"#.to_string(),
                "is no token id",
            ),
            ("template-bomb", r#"{"chat_template":"{{ 'x' * 1000000000 }}"}"#.to_string(), "longer than any"),
            ("template-a-number", r#"{"chat_template":1}"#.to_string(), "chat_template: expected a template"),
            (
                "templates-without-default",
                r#"{"chat_template":[{"name":"a","template":"x"},{"name":"b","template":"y"}]}"#.to_string(),
                "none named default",
            ),
            ("nested", long_nested(), "tokenizer_config.json"),
        ],
    );
    [config, generation, tokenizer].concat()
}

fn long_nested() -> String {
    "[".repeat(5_000)
}

/// A sound adapter on q_proj of the readers' small model.
pub fn sound_adapter() -> Vec<u8> {
    adapter_file(&json!({}), &pair("[2,8]", 64, "[8,2]", 64, 0))
}

fn adapter_file(more: &Value, tensors: &[u8]) -> Vec<u8> {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    [config.to_string().as_bytes(), TENSORS, tensors].concat()
}

/// A and B of q_proj.
fn pair(a: &str, a_bytes: u64, b: &str, b_bytes: u64, fill: u8) -> Vec<u8> {
    let name = |half: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight");
    let (first, second) = (entry(&name("A"), a, 0, a_bytes), entry(&name("B"), b, a_bytes, a_bytes + b_bytes));
    tensors(&format!("{{{first},{second}}}"), &vec![fill; (a_bytes + b_bytes) as usize])
}

fn adapter() -> Vec<Attack> {
    let sound = pair("[2,8]", 64, "[8,2]", 64, 0);
    let with = |more: Value| adapter_file(&more, &sound);
    let only_a = tensors(
        &format!("{{{}}}", entry("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "[2,8]", 0, 64)),
        &[0; 64],
    );
    let far = tensors(
        &format!("{{{}}}", entry("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "[2,8]", 0, 64)),
        &[0; 64],
    );
    let names: Vec<String> = (0..5000).map(|i| i.to_string()).collect();
    let patterns: serde_json::Map<String, Value> =
        (0..300).map(|i| (format!("(?:\\w{{200}}){{20}}{i}"), json!(2))).collect();
    made(
        "adapter",
        vec![
            ("sound", sound_adapter(), ""),
            ("no-tensors", b"{}".to_vec(), "peft_type is missing"),
            ("nested", long_nested().into_bytes(), "adapter_config.json"),
            ("rank-0", with(json!({"r": 0})), "r should be a positive whole number"),
            ("rank-2-63", with(json!({"r": 1u64 << 63})), "r should be a positive whole number"),
            ("rank-2-40", with(json!({"r": 1u64 << 40})), "r should be a positive whole number"),
            ("rank-other-than-the-tensors", with(json!({"r": 4})), "rank 4 on this base takes [4, 8]"),
            ("alpha-1e300", with(json!({"lora_alpha": 1e300})), "lora_alpha should be a number from 0"),
            ("dropout-2", with(json!({"lora_dropout": 2})), "lora_dropout should be"),
            ("targets-many", with(json!({"target_modules": names})), "target_modules names 5000 modules"),
            ("targets-pattern-large", with(json!({"target_modules": "(?:\\w{1000}){1000}"})), "is not understood"),
            (
                "targets-pattern-overflowing",
                with(json!({"target_modules": "(?:\\-#{8454730784725299655}){1000}"})),
                "it repeats something too often",
            ),
            ("targets-pattern-looking-ahead", with(json!({"target_modules": "(?=(a+)+b).*"})), "match no linear layer"),
            (
                "targets-pattern-of-all-ways",
                with(json!({"target_modules": "((?=.)(.|..)+)+!"})),
                "target_modules: the pattern",
            ),
            ("patterns-large", with(json!({"rank_pattern": patterns})), "is not understood"),
            ("layers-max", with(json!({"layers_to_transform": [u64::MAX]})), "match no linear layer"),
            ("modules-to-save", with(json!({"modules_to_save": ["lm_head"]})), "modules_to_save"),
            ("other-method", with(json!({"peft_type": "x".repeat(9000)})), "is not supported, only LORA"),
            ("half-a-pair", adapter_file(&json!({}), &only_a), "the rest of its module is there"),
            ("layer-out-of-range", adapter_file(&json!({}), &far), "this base has no layer 9"),
            ("not-finite", adapter_file(&json!({}), &pair("[2,8]", 64, "[8,2]", 64, 0xff)), "not a finite number"),
            (
                "dimensions-wrap",
                adapter_file(&json!({}), &pair("[4294967296,4294967296]", 64, "[8,2]", 64, 0)),
                "does not take the 64 bytes",
            ),
            (
                "shape-of-another-base",
                adapter_file(&json!({}), &pair("[2,16]", 128, "[8,2]", 64, 0)),
                "has shape [2, 16]",
            ),
            ("offsets-past-the-end", adapter_file(&json!({}), &sound[..sound.len() - 4]), "outside the file's"),
        ],
    )
}

fn toml() -> Vec<Attack> {
    let unknown: String = (0..3000).map(|i| format!("k{i} = 1\n")).collect();
    made(
        "toml",
        vec![
            ("sound", "[lora]\nrank = 8\n".to_string(), ""),
            ("nested", format!("a = {}", "[".repeat(5_000)), "config.toml:1"),
            ("nested-keys", format!("{}a = 1", "a.".repeat(10_000)), "config.toml:1"),
            ("nested-tables", format!("a = {}", "{a=".repeat(10_000)), "config.toml:1"),
            ("number-2-64", "[lora]\nrank = 18446744073709551616\n".to_string(), "rank should be"),
            ("number-negative", "[lora]\nrank = -1\n".to_string(), "rank should be"),
            ("not-finite", "[feedback]\ncritical_weight = inf\n".to_string(), "critical_weight should be"),
            ("key-twice", "[lora]\nrank = 1\nrank = 2\n".to_string(), "config.toml:3"),
            ("section-a-number", "lora = 1\n".to_string(), "lora should be a section"),
            ("unknown-keys", unknown, ""),
            ("text-where-a-number", "[lora]\nrank = \"\\u001b[31m\"\n".to_string(), "rank should be"),
        ],
    )
}

fn database() -> Vec<Attack> {
    let mut header = b"SQLite format 3\0".to_vec();
    header.resize(4096, 0);
    let mut page_size = header.clone();
    page_size[16..18].copy_from_slice(&[0x10, 0]); // 4096
    page_size[18..24].copy_from_slice(&[1, 1, 0, 64, 32, 32]);
    page_size[28..32].copy_from_slice(&u32::MAX.to_be_bytes()); // pages
    page_size[68..72].copy_from_slice(&0x666E_6368u32.to_be_bytes()); // finch's mark
    page_size[100] = 13; // a leaf of the schema
    page_size[103..105].copy_from_slice(&u16::MAX.to_be_bytes()); // cells
    made(
        "database",
        vec![
            (
                "text",
                "not a database, but long enough to have a header of a hundred bytes".repeat(20).into_bytes(),
                "finch.db",
            ),
            ("header-of-zeros", header, "finch.db"),
            ("pages-and-cells-max", page_size, "finch.db"),
        ],
    )
}
