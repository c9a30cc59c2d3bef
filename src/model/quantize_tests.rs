use std::collections::BTreeMap;

use super::*;
use crate::model::builtin;
use crate::model::digest::DigestCache;

/// `tests/fixtures/gguf/quantized.json`: numbers, the blocks that ggml makes of them, and how far those are off.
const QUANTIZED: &str = include_str!("../../tests/fixtures/gguf/quantized.json");

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Root of the mean square.
fn error(numbers: &[f32], storage: Storage, bytes: &[u8]) -> f64 {
    let mut read = Vec::new();
    storage.decode().unwrap()(bytes, &mut read);
    assert_eq!(read.len(), numbers.len(), "{storage}");
    let squares = numbers.iter().zip(&read).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / numbers.len() as f64).sqrt()
}

#[test]
fn blocks_are_ggmls() {
    let cases: serde_json::Value = serde_json::from_str(QUANTIZED).unwrap();
    let numbers: Vec<f32> =
        bytes_of(cases["numbers"].as_str().unwrap()).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    for storage in Storage::READABLE.into_iter().filter(|storage| storage.block().0 > 1) {
        let case = &cases[storage.to_string()];
        let (theirs, their_error) = (bytes_of(case["bytes"].as_str().unwrap()), case["error"].as_f64().unwrap());
        let own = encode(storage, &numbers).unwrap();
        assert_eq!(own.len(), theirs.len(), "{storage}");
        assert!((error(&numbers, storage, &theirs) / their_error - 1.0).abs() < 1e-3, "{storage}: read otherwise");
        let own_error = error(&numbers, storage, &own);
        println!("{storage}: {own_error:.3e}, ggml's {their_error:.3e}");
        // The K types come of searches that end in slightly different places; the others of one formula.
        match storage {
            Storage::Q4K | Storage::Q5K | Storage::Q6K => assert!(own_error < 1.02 * their_error, "{storage}"),
            _ => assert!(own == theirs, "{storage}: other blocks"),
        }
    }
}

#[test]
fn plain_types_are_rounded_to_the_nearest() {
    let numbers = [0.1f32, -3.0, 65504.0, 1.0 + 1.0 / 512.0];
    for (storage, worst) in [(Storage::F32, 0.0), (Storage::F16, 1.0 / 2048.0), (Storage::BF16, 1.0 / 256.0)] {
        let mut read = Vec::new();
        storage.decode().unwrap()(&encode(storage, &numbers).unwrap(), &mut read);
        for (number, read) in numbers.iter().zip(&read) {
            assert!((number - read).abs() <= worst * number.abs(), "{storage}: {number} became {read}");
        }
    }
}

#[test]
fn what_a_type_cannot_hold_is_an_error() {
    for (storage, bad, said) in [
        (Storage::F16, 7e4, "holds 70000, which F16 cannot hold"),
        (Storage::Q4_0, 6e5, "holds 600000, which Q4_0 cannot hold"),
        (Storage::BF16, f32::NAN, "holds NaN"),
        (Storage::Q8_0, f32::INFINITY, "holds inf"),
        (Storage::Q6K, f32::NEG_INFINITY, "holds -inf"),
        (Storage::Q4K, f32::NAN, "holds NaN"),
    ] {
        let mut numbers = vec![0.5f32; 512];
        numbers[300] = bad;
        let error = encode(storage, &numbers).unwrap_err().to_string();
        assert!(error.contains(said), "{storage}: {error}");
    }
    assert!(encode(Storage::BF16, &[7e4]).is_ok());
}

fn mix(config: &ModelConfig, to: Quantization) -> BTreeMap<String, Storage> {
    plan(config, to).unwrap().into_iter().map(|tensor| (tensor.name, tensor.storage)).collect()
}

fn config(family: Family, hidden: usize, intermediate: usize, layers: usize, tied: bool) -> ModelConfig {
    let json = serde_json::json!({"model_type": if family == Family::Qwen2 { "qwen2" } else { "qwen3" },
        "vocab_size": 512, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden / 4, "tie_word_embeddings": tied});
    ModelConfig::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn mixes_are_llama_cpps() {
    let wide = mix(&config(Family::Qwen3, 512, 1024, 16, false), Quantization::Q4KM);
    assert_eq!(wide["lm_head.weight"], Storage::Q6K);
    assert_eq!(wide["model.embed_tokens.weight"], Storage::Q4K);
    assert_eq!(wide["model.norm.weight"], Storage::F32);
    assert_eq!(wide["model.layers.3.self_attn.q_norm.weight"], Storage::F32);
    // The first and the last eighth of 16 layers, and every third from the first eighth on.
    let more = [0, 1, 4, 7, 10, 13, 14, 15];
    for layer in 0..16 {
        let expected = if more.contains(&layer) { Storage::Q6K } else { Storage::Q4K };
        for name in ["self_attn.v_proj", "mlp.down_proj"] {
            assert_eq!(wide[&format!("model.layers.{layer}.{name}.weight")], expected, "{layer}");
        }
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"] {
            assert_eq!(wide[&format!("model.layers.{layer}.{name}.weight")], Storage::Q4K);
        }
    }
    let tied = mix(&config(Family::Qwen3, 512, 1024, 16, true), Quantization::Q5KM);
    assert_eq!(tied["model.embed_tokens.weight"], Storage::Q6K);
    assert_eq!(tied["model.layers.2.mlp.up_proj.weight"], Storage::Q5K);
    assert_eq!(tied["model.layers.0.mlp.down_proj.weight"], Storage::Q6K);
    let legacy = mix(&config(Family::Qwen3, 512, 1024, 16, true), Quantization::Q4_0);
    assert_eq!(legacy["model.embed_tokens.weight"], Storage::Q6K);
    assert_eq!(legacy["model.layers.0.mlp.down_proj.weight"], Storage::Q4_0);
    let eight = mix(&config(Family::Qwen3, 512, 1024, 16, true), Quantization::Q8_0);
    assert!(eight.values().all(|storage| matches!(storage, Storage::Q8_0 | Storage::F32)));
}

#[test]
fn widths_that_blocks_do_not_divide_get_what_llama_cpp_takes() {
    // Qwen2.5-0.5B's: 896 is no multiple of 256, 4864 is one.
    let small = mix(&config(Family::Qwen2, 896, 4864, 24, true), Quantization::Q4KM);
    assert_eq!(small["model.embed_tokens.weight"], Storage::Q8_0);
    assert_eq!(small["model.layers.5.mlp.up_proj.weight"], Storage::Q5_0);
    assert_eq!(small["model.layers.0.self_attn.v_proj.weight"], Storage::Q8_0);
    assert_eq!(small["model.layers.0.self_attn.v_proj.bias"], Storage::F32);
    assert_eq!(small["model.layers.0.mlp.down_proj.weight"], Storage::Q6K);
    assert_eq!(small["model.layers.3.mlp.down_proj.weight"], Storage::Q4K);
    let five = mix(&config(Family::Qwen2, 896, 4864, 24, true), Quantization::Q5KM);
    assert_eq!(five["model.layers.5.mlp.up_proj.weight"], Storage::Q5_1);
    let legacy = mix(&config(Family::Qwen2, 896, 4864, 24, true), Quantization::Q5_1);
    assert_eq!(legacy["model.embed_tokens.weight"], Storage::Q8_0);
    assert_eq!(legacy["model.layers.5.mlp.up_proj.weight"], Storage::Q5_1);
    let odd = mix(&config(Family::Qwen2, 24, 40, 2, true), Quantization::Q8_0);
    assert_eq!(odd["model.layers.0.mlp.down_proj.weight"], Storage::F16);
}

fn tiny() -> (ModelConfig, Checkpoint) {
    let file = |name: &str| builtin::file(name).unwrap();
    let config = ModelConfig::from_json(file("config.json")).unwrap();
    (config, Checkpoint::from_bytes("model.safetensors", file("model.safetensors")).unwrap())
}

#[test]
fn a_quantised_checkpoint_speaks_of_what_it_will_be() {
    let (config, checkpoint) = tiny();
    let (name, shape) = ("model.layers.1.mlp.up_proj.weight", [config.intermediate_size, config.hidden_size]);
    let original = checkpoint.tensor(name, &shape).unwrap();
    let norm = checkpoint.tensor("model.norm.weight", &[config.hidden_size]).unwrap();
    let digest = DigestCache::none().digest(&checkpoint).unwrap();
    let eight = quantized(checkpoint, &config, Quantization::Q8_0, false).unwrap();
    assert_eq!(eight.storage(name), Some(Storage::Q8_0));
    assert_eq!(eight.size(name), Some((original.len() / 32 * 34) as u64));
    let mut bytes = Vec::new();
    assert_eq!(eight.stored(name, &shape, |part| bytes.extend_from_slice(part)).unwrap(), Storage::Q8_0);
    assert_eq!(bytes, encode(Storage::Q8_0, &original).unwrap());
    let read = eight.tensor(name, &shape).unwrap();
    let worst = original.iter().zip(&read).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst > 0.0 && worst < 0.01, "{worst}");
    assert_eq!(eight.tensor("model.norm.weight", &[config.hidden_size]).unwrap(), norm, "vectors stay as they are");
    let other = DigestCache::none().digest(&eight).unwrap();
    let four = quantized(tiny().1, &config, Quantization::Q4_0, false).unwrap();
    assert!(other != digest && other != DigestCache::none().digest(&four).unwrap(), "each is a base of its own");
    assert_eq!(
        DigestCache::none().digest(&quantized(tiny().1, &config, Quantization::Q8_0, false).unwrap()).unwrap(),
        other
    );
}

#[test]
fn pieces_of_a_file_give_the_same_blocks_as_the_whole() {
    // Larger than what is read at a time, of a type whose blocks are smaller than those that it becomes.
    let config = ModelConfig { vocab_size: 5000, ..tiny().0 };
    let (rows, columns) = (config.vocab_size, config.hidden_size);
    let numbers: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 0.37).sin() * 0.05).collect();
    let stored = encode(Storage::Q4_0, &numbers).unwrap();
    let mut read = Vec::new();
    Storage::Q4_0.decode().unwrap()(&stored, &mut read);
    let dir = tempfile::tempdir().unwrap();
    let (path, name) = (dir.path().join("x.gguf"), "model.embed_tokens.weight");
    let declared = crate::model::gguf::write::Declared {
        name: "token_embd.weight".into(),
        shape: vec![rows, columns],
        storage: Storage::Q4_0,
    };
    let keys: [(&str, crate::model::gguf::write::Item); 0] = [];
    let head = crate::model::gguf::write::head(&keys, &[declared]).unwrap();
    std::fs::write(&path, [head, stored].concat()).unwrap();
    let open = || crate::model::gguf::Gguf::open(&path).unwrap().into_checkpoint();
    let error = quantized(open(), &config, Quantization::Q6K, false).unwrap_err();
    assert!(error.to_string().contains("is quantised already, as Q4_0"), "{error}");
    let six = quantized(open(), &config, Quantization::Q6K, true).unwrap();
    let mut bytes = Vec::new();
    assert_eq!(six.stored(name, &[rows, columns], |part| bytes.extend_from_slice(part)).unwrap(), Storage::Q6K);
    assert!(bytes == encode(Storage::Q6K, &read).unwrap());
}
