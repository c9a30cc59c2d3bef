//! A model folder that always gives the same answer, whatever it is asked: a real network in the real file formats, small
//! enough to load and train at once.
//!
//! Its hidden state is the last token alone (each token has a dimension of its own), and its output layer maps every token
//! of the answer to the next one. So an answer is a chain of tokens that never come twice; a token may be any bytes.
#![allow(dead_code)] // each test file uses a part of it

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

/// Dimensions of the hidden state and rows of the vocabulary: 256 bytes, the answer's tokens, the special ones.
const SIZE: usize = 384;
const HEAD: usize = 16;
const INNER: usize = 32;
const SPECIAL: [&str; 5] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"];

/// What comes after the answer's last token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    End,
    /// The first one again, for ever.
    Repeat,
}

/// Writes a model into `folder` (made if it is not there) whose answer is `tokens`, one behind the other.
///
/// The next token has a probability of about 0.99 at temperature 1, and there is room for 2048 tokens.
pub fn write(folder: &Path, tokens: &[&[u8]], then: Then) {
    std::fs::create_dir_all(folder).unwrap();
    let mut ids = Vec::new();
    let mut vocab: Map<String, Value> = (0..=255).map(|byte| (spelled(&[byte]), byte.into())).collect();
    for token in tokens {
        let next = vocab.len();
        let id = vocab.entry(spelled(token)).or_insert(next.into()).as_u64().unwrap() as usize;
        assert!(!ids.contains(&id), "{token:?} comes twice");
        ids.push(id);
    }
    assert!(!ids.contains(&usize::from(b'\n')), "a line feed of its own ends the prompt");
    let special = vocab.len();
    assert!(special + SPECIAL.len() <= SIZE, "too many tokens");
    let end = special + 2;

    let put = |name: &str, value: Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    put("tokenizer.json", tokenizer(vocab, special));
    put(
        "config.json",
        json!({
            "model_type": "qwen3", "vocab_size": SIZE, "hidden_size": SIZE, "intermediate_size": INNER,
            "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "hidden_act": "silu",
        }),
    );
    put("generation_config.json", json!({"do_sample": false, "eos_token_id": [end, special]}));
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();

    let mut chain = vec![usize::from(b'\n')];
    chain.extend(&ids);
    chain.push(if then == Then::End { end } else { ids[0] });
    let mut head = vec![0.0; SIZE * SIZE];
    for pair in chain.windows(2) {
        head[pair[1] * SIZE + pair[0]] = 1.0;
    }
    weights(folder, &head);
}

/// The byte-level tokenizer of Qwen's kind with this vocabulary and no merges: text becomes its bytes.
fn tokenizer(vocab: Map<String, Value>, first_special: usize) -> Value {
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": first_special + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": !content.contains("think")})
        })
        .collect();
    let byte_level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level(false), "post_processor": byte_level(false), "decoder": byte_level(false),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    })
}

/// Bytes in the alphabet of byte-level BPE: printable ones of Latin-1 stand for themselves, the others are shifted up.
fn spelled(bytes: &[u8]) -> String {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let letter = |byte: u8| match printable(byte) {
        true => char::from(byte),
        false => {
            let shifted = (0..byte).filter(|b| !printable(*b)).count() as u32;
            char::from_u32(256 + shifted).unwrap()
        }
    };
    bytes.iter().map(|byte| letter(*byte)).collect()
}

fn weights(folder: &Path, head: &[f32]) {
    let mut identity = vec![0.0; SIZE * SIZE];
    (0..SIZE).for_each(|i| identity[i * SIZE + i] = 1.0);
    // The hidden state comes out of the norm with length √SIZE; with this a logit of the chain is about 11.
    let gain = vec![11.0 / (SIZE as f32).sqrt(); SIZE];
    let mut tensors = BTreeMap::new();
    let mut put = |name: &str, shape: &[usize], values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        tensors.insert(name.to_string(), (shape.to_vec(), bytes));
    };
    put("model.embed_tokens.weight", &[SIZE, SIZE], &identity);
    put("model.norm.weight", &[SIZE], &gain);
    put("lm_head.weight", &[SIZE, SIZE], head);
    // The block adds next to nothing, but gradients go through it.
    let layer = "model.layers.0";
    for (name, size) in [
        ("input_layernorm", SIZE),
        ("post_attention_layernorm", SIZE),
        ("self_attn.q_norm", HEAD),
        ("self_attn.k_norm", HEAD),
    ] {
        put(&format!("{layer}.{name}.weight"), &[size], &vec![1.0; size]);
    }
    for (name, outputs, inputs) in [
        ("self_attn.q_proj", HEAD, SIZE),
        ("self_attn.k_proj", HEAD, SIZE),
        ("self_attn.v_proj", HEAD, SIZE),
        ("self_attn.o_proj", SIZE, HEAD),
        ("mlp.gate_proj", INNER, SIZE),
        ("mlp.up_proj", INNER, SIZE),
        ("mlp.down_proj", SIZE, INNER),
    ] {
        put(&format!("{layer}.{name}.weight"), &[outputs, inputs], &small_numbers(outputs * inputs));
    }
    let views: BTreeMap<&str, TensorView> = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()))
        .collect();
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Between -0.01 and 0.01, always the same ones.
fn small_numbers(n: usize) -> Vec<f32> {
    let mut state = n as u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| 0.02 * next() - 0.01).collect()
}
