//! Tests of `export.rs`: names, layouts and scales of each format, and what is refused.

use std::path::PathBuf;

use super::super::peft::tests::model;
use super::super::peft::{LoraSettings, scale};
use super::*;
use crate::model::checkpoint::Checkpoint;
use crate::model::gguf::Gguf;
use crate::model::lora::{LoraShape, Target};

/// Pairs whose ranks and scales differ, on both layers; q_proj of layer 1 is the odd one.
fn adapter(dora: bool) -> Adapter {
    let shape = |layer, target| {
        let odd = layer == 1 && target == Target::Q;
        let (in_features, out_features) = model().linear_shape(target);
        let rank = if odd { 3 } else { 2 };
        LoraShape {
            layer,
            target,
            rank,
            in_features,
            out_features,
            scale: scale(if odd { 7.0 } else { 4.0 }, rank, false),
            dora,
        }
    };
    let shapes = (0..2).flat_map(|layer| [Target::Q, Target::Down].map(|target| shape(layer, target)));
    let mut weights = LoraWeights::zeros(shapes.collect());
    for (i, value) in weights.data.iter_mut().enumerate() {
        *value = (i as f32 * 0.7).sin();
    }
    let settings = LoraSettings { rank: 2, alpha: 4.0, dropout: 0.25, use_dora: dora, ..LoraSettings::default() };
    Adapter::new(weights, settings)
}

/// Saves `adapter` as a folder and exports that.
fn exported(adapter: &Adapter, format: Format) -> (tempfile::TempDir, Result<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("mine"), dir.path().join("out"));
    std::fs::create_dir(&folder).unwrap();
    peft::write(&folder, adapter, "some/base").unwrap();
    let done = export(&folder, adapter, &model(), format, &out).map(|()| out);
    (dir, done)
}

/// s · B A of a module, `[out, in]`.
fn delta(a: &[f32], b: &[f32], rank: usize, scale: f64) -> Vec<f64> {
    let (n, out) = (a.len() / rank, b.len() / rank);
    let value =
        |o: usize, i: usize| (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * n + i])).sum::<f64>();
    (0..out).flat_map(|o| (0..n).map(move |i| (o, i))).map(|(o, i)| scale * value(o, i)).collect()
}

fn assert_same(ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

#[test]
fn llama_cpp_gets_its_names_and_one_alpha() {
    let adapter = adapter(false);
    let (_dir, out) = exported(&adapter, Format::Gguf);
    let out = out.unwrap();
    let bytes = std::fs::read(&out).unwrap();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let has = |bytes: &[u8], part: Vec<u8>| bytes.windows(part.len()).any(|window| window == part);
    for (key, value) in [("general.architecture", "qwen3"), ("general.type", "adapter"), ("adapter.type", "lora")] {
        assert!(has(&bytes, [text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat()), "{key}");
    }
    let alpha = [text("adapter.lora.alpha"), 6u32.to_le_bytes().to_vec(), 4f32.to_le_bytes().to_vec()].concat();
    assert!(has(&bytes, alpha), "alpha of most pairs");

    let file = Gguf::open(&out).unwrap();
    let tensors = file.checkpoint();
    assert_eq!(tensors.names().count(), 8);
    let own = |module: &LoraModule| {
        let part = if module.target == Target::Q { "attn_q" } else { "ffn_down" };
        format!("blk.{}.{part}.weight", module.layer)
    };
    for module in &adapter.weights.modules {
        let LoraModule { rank, in_features, out_features, .. } = *module;
        let a = tensors.tensor(&format!("{}.lora_a", own(module)), &[rank, in_features]).unwrap();
        let b = tensors.tensor(&format!("{}.lora_b", own(module)), &[out_features, rank]).unwrap();
        let wanted = delta(adapter.weights.a(module), adapter.weights.b(module), rank, f64::from(module.scale));
        assert_same(&delta(&a, &b, rank, 4.0 / rank as f64), &wanted);
        let odd = module.layer == 1 && module.target == Target::Q;
        assert_eq!(b == adapter.weights.b(module), !odd, "values stay as they are where the scale is the common one");
    }
}

#[test]
fn rslora_keeps_its_scale() {
    let settings = LoraSettings { rank: 3, alpha: 6.0, use_rslora: true, ..LoraSettings::default() };
    let (in_features, out_features) = model().linear_shape(Target::V);
    let scale = scale(6.0, 3, true);
    let shape = LoraShape { layer: 0, target: Target::V, rank: 3, in_features, out_features, scale, dora: false };
    let mut weights = LoraWeights::zeros(vec![shape]);
    weights.data.fill(0.5);
    let (_dir, out) = exported(&Adapter::new(weights, settings), Format::Gguf);
    let bytes = std::fs::read(out.unwrap()).unwrap();
    let alpha = b"adapter.lora.alpha".iter().chain(&6u32.to_le_bytes()).copied().collect::<Vec<u8>>();
    let at = bytes.windows(alpha.len()).position(|window| window == alpha).unwrap() + alpha.len();
    let alpha = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert!((alpha / 3.0 - scale).abs() < 1e-6, "llama.cpp's alpha / rank: {alpha} / 3 is not {scale}");
}

#[test]
fn mlx_gets_its_names_transposed() {
    for dora in [false, true] {
        let adapter = adapter(dora);
        let (_dir, out) = exported(&adapter, Format::Mlx);
        let out = out.unwrap();
        let config: Value = serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
        let expected = json!({
            "fine_tune_type": if dora { "dora" } else { "lora" },
            "num_layers": 2,
            "lora_parameters": { "rank": 2, "scale": 2.0, "dropout": 0.25, "keys": ["mlp.down_proj", "self_attn.q_proj"] },
        });
        assert_eq!(config, expected);
        let tensors = Checkpoint::open_file(&out.join("adapters.safetensors")).unwrap();
        assert_eq!(tensors.names().count(), if dora { 12 } else { 8 });
        for module in &adapter.weights.modules {
            let LoraModule { rank, in_features, out_features, .. } = *module;
            let path = format!("model.layers.{}.{}.{}", module.layer, module.target.block(), module.target.name());
            let a = tensors.tensor(&format!("{path}.lora_a"), &[in_features, rank]).unwrap();
            let b = tensors.tensor(&format!("{path}.lora_b"), &[rank, out_features]).unwrap();
            // y += scale · (x · a) · b, so what is added to W, `[out, in]`, is scale · (a · b)ᵀ.
            let added: Vec<f64> = (0..out_features)
                .flat_map(|o| (0..in_features).map(move |i| (o, i)))
                .map(|(o, i)| {
                    2.0 * (0..rank)
                        .map(|r| f64::from(a[i * rank + r]) * f64::from(b[r * out_features + o]))
                        .sum::<f64>()
                })
                .collect();
            let wanted = delta(adapter.weights.a(module), adapter.weights.b(module), rank, f64::from(module.scale));
            assert_same(&added, &wanted);
            if dora {
                let m = tensors.tensor(&format!("{path}.m"), &[out_features]).unwrap();
                assert_eq!(m, adapter.weights.magnitude(module).unwrap());
            }
        }
    }
}

#[test]
fn mlx_counts_its_layers_from_the_end() {
    let whole = adapter(false);
    let (in_features, out_features) = model().linear_shape(Target::V);
    let shape = LoraShape { layer: 1, target: Target::V, rank: 2, in_features, out_features, scale: 2.0, dora: false };
    let last = mlx_config(&LoraWeights::zeros(vec![shape]), 2, 2.0, 0.0, &model());
    assert_eq!((&last["num_layers"], &last["lora_parameters"]["keys"]), (&json!(1), &json!(["self_attn.v_proj"])));
    assert_eq!(mlx_config(&whole.weights, 2, 2.0, 0.0, &model())["num_layers"], 2);
}

#[test]
fn peft_gets_the_files_as_they_are() {
    for dora in [false, true] {
        let adapter = adapter(dora);
        let (dir, out) = exported(&adapter, Format::Peft);
        let out = out.unwrap();
        for file in [peft::CONFIG_FILE, peft::TENSOR_FILE] {
            let bytes = |folder: PathBuf| std::fs::read(folder.join(file)).unwrap();
            assert_eq!(bytes(out.clone()), bytes(dir.path().join("mine")), "{file}");
        }
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);
    }
}

#[test]
fn dora_is_not_for_llama_cpp() {
    let (dir, out) = exported(&adapter(true), Format::Gguf);
    let e = out.unwrap_err();
    assert!(e.message().contains("llama.cpp does not run DoRA"), "{e}");
    assert!(e.hint_text().is_some_and(|hint| hint.contains("mlx-lm")));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
}

#[test]
fn nothing_is_written_over() {
    let adapter = adapter(false);
    for format in [Format::Peft, Format::Gguf, Format::Mlx] {
        let (dir, out) = exported(&adapter, format);
        let out = out.unwrap();
        let e = export(&dir.path().join("mine"), &adapter, &model(), format, &out).unwrap_err();
        assert!(e.message().contains("already exists"), "{format:?}: {e}");
    }
}

#[test]
fn what_changed_since_it_was_checked_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("mine"), dir.path().join("out"));
    std::fs::create_dir(&folder).unwrap();
    peft::write(&folder, &adapter(false), "base").unwrap();
    let e = export(&folder, &adapter(true), &model(), Format::Peft, &out).unwrap_err();
    assert!(e.message().contains("changed while it was copied"), "{e}");
    assert!(!out.exists());
}
