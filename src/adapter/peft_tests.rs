//! Tests of `peft.rs` and `peft_config.rs`: PEFT's own folders, every refusal, the way there and back.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::model::candle::tests::network;
use crate::model::config::Family;

pub fn model() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen3,
        vocab_size: 32,
        hidden_size: 8,
        intermediate_size: 12,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 6,
        context: 64,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        rope_scaling: crate::model::rope::RopeScaling::None,
        attention_bias: false,
        tied_embeddings: true,
    }
}

/// Shared reference values beside the checkout, or a line that says that they are not there.
fn golden(part: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden").join(part);
    if !folder.is_dir() {
        eprintln!("not run: {} is not there", folder.display());
        return None;
    }
    Some(folder)
}

fn golden_model(adapter: &Path) -> ModelConfig {
    let name = adapter.file_name().unwrap().to_str().unwrap();
    let base = name.split("--").next().unwrap();
    let config = golden("models").unwrap().join(base).join("config.json");
    ModelConfig::from_json(&std::fs::read(config).unwrap()).unwrap()
}

pub fn adapter(settings: LoraSettings) -> Adapter {
    let mut weights = init(&network(&model()), &settings, 7).unwrap();
    for (i, value) in weights.data.iter_mut().enumerate() {
        *value += (i as f32 * 0.37).sin() * 1e-3; // B too
    }
    Adapter::new(weights, settings)
}

pub fn settings(rank: usize, alpha: f64, targets: &[Target]) -> LoraSettings {
    LoraSettings { rank, alpha, targets: targets.to_vec(), ..LoraSettings::default() }
}

/// A written adapter whose configuration is then changed by `edit`.
pub fn edited(edit: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &adapter(settings(2, 4.0, &[Target::Q, Target::V])), "base").unwrap();
    let path = dir.path().join(CONFIG_FILE);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    dir
}

pub fn with(key: &str, value: Value) -> tempfile::TempDir {
    edited(|config| config[key] = value)
}

/// Replaces the tensor file by what `edit` makes of its tensors: name, dtype, shape, bytes.
pub type Raw = (String, Dtype, Vec<usize>, Vec<u8>);
pub fn edit_tensors(dir: &Path, edit: impl FnOnce(&mut Vec<Raw>)) {
    let path = dir.join(TENSOR_FILE);
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut raw: Vec<Raw> =
        file.iter().map(|(n, t)| (n.to_string(), t.dtype(), t.shape().to_vec(), t.data().to_vec())).collect();
    raw.sort_by(|a, b| a.0.cmp(&b.0));
    edit(&mut raw);
    let views = raw.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub fn refused(dir: &Path) -> String {
    let e = read(dir, &model()).unwrap_err();
    e.message().to_string()
}

#[test]
fn golden_adapters_read() {
    let Some(folder) = golden("adapters") else { return };
    let mut read_count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        let model = golden_model(&folder);
        let kind = folder.to_str().unwrap().rsplit("--").next().unwrap().to_string();
        let got = read(&folder, &model).unwrap();
        let targets: &[Target] = if kind == "attention-only" { &[Target::Q, Target::V] } else { &Target::ALL };
        assert_eq!(got.settings.targets, targets, "{kind}");
        assert_eq!((got.settings.rank, got.settings.alpha), (4, 8.0));
        assert_eq!((got.settings.use_rslora, got.settings.use_dora), (kind == "rslora", kind == "dora"));
        assert!(got.weights.modules.iter().all(|m| m.magnitude.is_some() == (kind == "dora")));
        let scale = if kind == "rslora" { 4.0 } else { 2.0 };
        assert!(got.weights.modules.iter().all(|m| m.scale == scale));
        assert_eq!(got.weights.modules.len(), model.layers * targets.len());
        assert_eq!(inspect(&folder).unwrap().rank, 4);

        // What finch writes holds PEFT's tensors byte for byte, and reads back as the same adapter.
        let out = tempfile::tempdir().unwrap();
        write(out.path(), &got, "base").unwrap();
        assert_eq!(read(out.path(), &model).unwrap(), got, "{kind}");
        let data = |dir: &Path| {
            let bytes = std::fs::read(dir.join(TENSOR_FILE)).unwrap();
            let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
            bytes[8 + header..].to_vec()
        };
        assert_eq!(data(&folder), data(out.path()), "{kind}");
        read_count += 1;
    }
    assert_eq!(read_count, 8);
}

#[test]
fn golden_training_starts_read() {
    let Some(folder) = golden("training") else { return };
    for entry in std::fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        let (init, last) = (folder.join("init"), folder.join("final"));
        let (init, model) = (read(&init, &golden_model(&folder)).unwrap(), golden_model(&folder));
        if last.join(CONFIG_FILE).is_file() {
            assert_ne!(init.digest, read(&last, &model).unwrap().digest);
        }
    }
}

#[test]
fn written_folders_read_back_bit_for_bit() {
    let mut layered = settings(2, 4.0, &[Target::Up, Target::K]);
    layered.layers = Some(vec![0]);
    for settings in [
        settings(2, 4.0, &[Target::Q, Target::V]),
        LoraSettings { dropout: 0.05, ..settings(3, 16.5, &Target::ALL) },
        LoraSettings { use_rslora: true, ..settings(3, 7.0, &[Target::Down]) },
        LoraSettings { use_dora: true, ..settings(2, 4.0, &[Target::Gate, Target::V]) },
        LoraSettings { use_dora: true, use_rslora: true, ..settings(2, 4.0, &[Target::O]) },
        layered,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut before = adapter(settings);
        before.settings.targets.sort();
        write(dir.path(), &before, "some/base").unwrap();
        let after = read(dir.path(), &model()).unwrap();
        assert_eq!(after, before);
        let again = tempfile::tempdir().unwrap();
        write(again.path(), &after, "some/base").unwrap();
        for file in [CONFIG_FILE, TENSOR_FILE] {
            let bytes = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
            assert_eq!(bytes(dir.path()), bytes(again.path()), "{file}");
        }
    }
}

#[test]
fn the_configuration_has_pefts_fields() {
    let dir = edited(|_| {});
    let config: Value = serde_json::from_slice(&std::fs::read(dir.path().join(CONFIG_FILE)).unwrap()).unwrap();
    let expected = json!({
        "alpha_pattern": {}, "base_model_name_or_path": "base", "bias": "none", "fan_in_fan_out": false,
        "inference_mode": true, "init_lora_weights": true, "lora_alpha": 4, "lora_dropout": 0.0,
        "modules_to_save": null, "peft_type": "LORA", "r": 2, "rank_pattern": {},
        "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": false
    });
    assert_eq!(config, expected);
    assert!(config["lora_alpha"].is_i64());
    let bytes = std::fs::read(dir.path().join(TENSOR_FILE)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let a = file.tensor("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight").unwrap();
    let b = file.tensor("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight").unwrap();
    assert_eq!((a.shape(), b.shape(), a.dtype()), (&[2, 8][..], &[12, 2][..], Dtype::F32));
}

#[test]
fn a_fresh_adapter_changes_nothing_and_follows_its_seed() {
    let settings = settings(4, 8.0, &Target::ALL);
    let base = network(&model());
    let weights = init(&base, &settings, 42).unwrap();
    assert_eq!(weights, init(&base, &settings, 42).unwrap());
    assert_ne!(weights, init(&base, &settings, 43).unwrap());
    assert_eq!(weights.modules.len(), 14);
    for module in &weights.modules {
        let bound = 1.0 / (module.in_features as f32).sqrt();
        let a = weights.a(module);
        assert!(a.iter().all(|v| v.abs() <= bound));
        assert!(a.iter().any(|v| v.abs() > bound * 0.8), "spread over the whole range");
        assert!(a.iter().any(|v| *v > 0.0) && a.iter().any(|v| *v < 0.0));
        assert!(weights.b(module).iter().all(|v| *v == 0.0));
        assert_eq!(module.scale, 2.0);
    }
}

#[test]
fn a_fresh_dora_starts_from_the_bases_rows() {
    let (base, settings) =
        (network(&model()), LoraSettings { use_dora: true, ..settings(4, 8.0, &[Target::K, Target::Down]) });
    let weights = init(&base, &settings, 42).unwrap();
    let plain = init(&base, &LoraSettings { use_dora: false, ..settings }, 42).unwrap();
    for (module, plain_module) in weights.modules.iter().zip(&plain.modules) {
        assert_eq!(weights.a(module), plain.a(plain_module), "the same draws");
        let norms = base.row_norms(module.layer, module.target).unwrap();
        assert_eq!(weights.magnitude(module).unwrap(), norms);
        assert_eq!(module.magnitude.clone().unwrap().start, module.b.end, "ordered by name: A, B, magnitude");
    }
    assert_ne!(
        Adapter::new(weights.clone(), LoraSettings::default()).digest,
        Adapter::new(plain, LoraSettings::default()).digest
    );
}

#[test]
fn magnitudes_are_there_for_each_pair_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let before = adapter(LoraSettings { use_dora: true, ..settings(2, 4.0, &[Target::Q]) });
    write(dir.path(), &before, "base").unwrap();
    let summary = inspect(dir.path()).unwrap();
    assert!(summary.use_dora && !summary.use_rslora);
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    edit_tensors(dir.path(), |tensors| {
        let magnitude = tensors.iter_mut().find(|t| t.0 == name).unwrap();
        assert_eq!((magnitude.1, magnitude.2.as_slice()), (Dtype::F32, &[12][..]));
        magnitude.2 = vec![1, 12];
    });
    assert!(refused(dir.path()).contains(&format!("tensor {name} has shape [1, 12]; rank 2 on this base takes [12]")));
    edit_tensors(dir.path(), |tensors| tensors.retain(|t| t.0 != name));
    assert!(refused(dir.path()).contains(&format!("tensor {name} is missing: the rest of its module is there")));
}

#[test]
fn the_digest_is_of_what_the_adapter_computes() {
    let one = adapter(settings(2, 4.0, &[Target::Q]));
    assert_eq!(one.digest.len(), 64);
    assert_eq!(one.digest, Adapter::new(one.weights.clone(), settings(9, 9.0, &[])).digest);
    let mut value = one.weights.clone();
    value.data[3] += 1e-7;
    let mut scaled = one.weights.clone();
    scaled.modules[0].scale *= 2.0;
    for other in [value, scaled] {
        assert_ne!(one.digest, Adapter::new(other, one.settings.clone()).digest);
    }
}

#[test]
fn half_precision_is_read() {
    let whole = |v: f32| half::bf16::from_f32(v).to_f32();
    for dtype in [Dtype::F16, Dtype::BF16] {
        let dir = edited(|_| {});
        edit_tensors(dir.path(), |tensors| {
            for (_, d, _, bytes) in tensors.iter_mut() {
                *d = dtype;
                *bytes = bytes
                    .chunks(4)
                    .map(|c| whole(f32::from_le_bytes(c.try_into().unwrap())))
                    .flat_map(|v| match dtype {
                        Dtype::F16 => half::f16::from_f32(v).to_le_bytes(),
                        _ => half::bf16::from_f32(v).to_le_bytes(),
                    })
                    .collect();
            }
        });
        let got = read(dir.path(), &model()).unwrap();
        let full = adapter(settings(2, 4.0, &[Target::Q, Target::V]));
        for (a, b) in got.weights.data.iter().zip(&full.weights.data) {
            let expected = if dtype == Dtype::F16 { half::f16::from_f32(whole(*b)).to_f32() } else { whole(*b) };
            assert_eq!(*a, expected);
        }
    }
}

#[test]
fn unsupported_features_are_refused_by_name() {
    for (key, value) in [
        ("use_qalora", json!(true)),
        ("use_newer_switch", json!(1)),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([1, 2])),
        ("layer_replication", json!([[0, 1]])),
        ("target_parameters", json!(["x"])),
        ("alora_invocation_tokens", json!([1])),
        ("arrow_config", json!({"k": 1})),
        ("kasa_config", json!({"k": 1})),
        ("enable_lora", json!([true])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("task_type", json!("SEQ_CLS")),
        ("peft_type", json!("IA3")),
        ("peft_type", json!(null)),
    ] {
        let got = refused(with(key, value.clone()).path());
        assert!(got.contains(key) && got.contains(CONFIG_FILE), "{key}: {got}");
    }
    let e = read(with("modules_to_save", json!(["lm_head"])).path(), &model()).unwrap_err();
    assert!(e.hint_text().is_some_and(|hint| hint.contains("merge_and_unload")), "{e}");
    // Off, or of no effect on what is computed: other versions' keys are no reason to refuse.
    for (key, value) in [
        ("modules_to_save", json!([])),
        ("use_dora", json!(false)),
        ("use_bdlora", json!(null)),
        ("loftq_config", json!({})),
        ("megatron_core", json!("megatron.core")),
        ("qalora_group_size", json!(16)),
        ("peft_version", json!("9.9")),
        ("some_future_key", json!({"a": [1]})),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(false)),
        ("layers_pattern", json!("h")), // of layers_to_transform, which is not there
        ("task_type", json!(null)),
        ("lora_alpha", json!(4.0)),
        ("lora_dropout", json!(null)),
        ("merge_weights", json!(false)),
    ] {
        read(with(key, value).path(), &model()).unwrap_or_else(|e| panic!("{key}: {e}"));
    }
}

#[test]
fn bad_values_name_their_key() {
    for (key, value) in [
        ("r", json!(0)),
        ("r", json!(-4)),
        ("r", json!("16")),
        ("r", json!(null)),
        ("r", json!(1e30)),
        ("lora_alpha", json!("x")),
        ("lora_alpha", json!(null)),
        ("lora_dropout", json!(1.5)),
        ("r", json!(u64::MAX)),
        ("lora_alpha", json!(1e300)),
        ("target_modules", json!(vec!["q_proj"; 5000])),
        ("target_modules", json!(r"(?:\w{1000}){1000}")),
        ("rank_pattern", json!({r"(?:\w{1000}){1000}": 2})),
    ] {
        let got = refused(with(key, value.clone()).path());
        assert!(got.contains(key), "{key} {value}: {got}");
    }
    for (json, why) in [("[]", "not a JSON object"), ("{", "EOF"), ("", "EOF"), ("{}", "peft_type is missing")] {
        let dir = edited(|_| {});
        std::fs::write(dir.path().join(CONFIG_FILE), json).unwrap();
        let got = refused(dir.path());
        assert!(got.contains(why) && got.contains(CONFIG_FILE), "{json}: {got}");
    }
    let huge = refused(with("r", json!(1 << 14)).path());
    assert!(huge.contains("lora_A.weight") && huge.contains("shape"), "nothing is allocated: {huge}");
}

#[test]
fn bad_tensors_are_named() {
    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let check = |why: &str, edit: &dyn Fn(&mut Vec<Raw>)| {
        let dir = edited(|_| {});
        edit_tensors(dir.path(), edit);
        let got = refused(dir.path());
        assert!(got.contains(why) && got.contains(TENSOR_FILE), "{why}: {got}");
    };
    let at = |tensors: &mut Vec<Raw>| tensors.iter().position(|t| t.0 == A).unwrap();
    check(&format!("tensor {A} is missing: the rest of its module is there"), &|t| {
        let i = at(t);
        t.remove(i);
    });
    check("is missing: target_modules names its layer", &|t| t.retain(|t| !t.0.contains("layers.1.")));
    check(&format!("tensor {A} has shape [2, 9]; rank 2 on this base takes [2, 8]"), &|t| {
        let i = at(t);
        t[i].2 = vec![2, 9];
        t[i].3 = vec![0; 72];
    });
    check("[8, 2]", &|t| {
        let i = at(t);
        t[i].2 = vec![8, 2];
    });
    check(A, &|t| {
        let i = at(t);
        t[i].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    check(A, &|t| {
        let i = at(t);
        (t[i].1, t[i].2) = (Dtype::I32, vec![2, 8]);
    });
    let add = |name: &'static str| move |t: &mut Vec<Raw>| t.push((name.to_string(), Dtype::F32, vec![1], vec![0; 4]));
    check("no layer 7, it has 2", &add("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"));
    check("does not target this layer", &add("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"));
    check("it is no LoRA tensor", &add("base_model.model.model.norm.weight"));
    check("use_dora does not say so", &add("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"));
    check("a bias on lora_B", &add("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"));
    check("lm_head", &add("base_model.model.lm_head.lora_A.weight"));
    check("embedding", &add("base_model.model.model.embed_tokens.weight"));
    check("embeddings", &add("base_model.model.model.embed_tokens.lora_embedding_A"));

    let dir = edited(|_| {});
    let tensors = dir.path().join(TENSOR_FILE);
    let bytes = std::fs::read(&tensors).unwrap();
    for cut in [0, 4, 8, 100, bytes.len() - 1] {
        std::fs::write(&tensors, &bytes[..cut]).unwrap();
        assert!(refused(dir.path()).contains(TENSOR_FILE));
        assert!(inspect(dir.path()).is_err());
    }
    std::fs::write(&tensors, [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
    assert!(refused(dir.path()).contains(TENSOR_FILE));
}

#[test]
fn folders_that_are_no_adapters_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let e = read(&dir.path().join("none"), &model()).unwrap_err();
    assert!(e.message().contains("none") && e.message().contains("adapter_config.json is missing"), "{e}");
    assert!(e.hint_text().is_some());
    let dir = edited(|_| {});
    std::fs::rename(dir.path().join(TENSOR_FILE), dir.path().join("adapter_model.bin")).unwrap();
    let e = read(dir.path(), &model()).unwrap_err();
    assert!(
        e.message().contains("adapter_model.safetensors is missing") && e.hint_text().unwrap().contains("can run code")
    );
}

#[test]
fn values_that_are_not_finite_are_not_saved() {
    let mut bad = adapter(settings(2, 4.0, &[Target::Q]));
    bad.weights.data[5] = f32::INFINITY;
    let dir = tempfile::tempdir().unwrap();
    let e = write(dir.path(), &bad, "base").unwrap_err();
    assert!(e.message().contains("layers.0.self_attn.q_proj.lora_A.weight holds inf"), "{e}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
