//! Tests of `peft_modules.rs`: every spelling of targets, layers and patterns, and what is refused.

use serde_json::{Value, json};

use super::super::peft::tests::{edit_tensors, edited, model, refused, settings, with};
use super::super::peft::{Adapter, CONFIG_FILE, read, scale, write};
use super::super::peft_config::PeftConfig;
use crate::model::lora::{LoraShape, LoraWeights, Target};

#[test]
fn every_spelling_of_targets_is_understood() {
    for targets in [
        json!(["q_proj", "v_proj"]),
        json!(["self_attn.v_proj", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        json!(["q_proj", "v_proj", "c_attn"]),
        json!(r".*\.(q_proj|v_proj)"),
        json!(r".*(q|v)_proj"),
        json!(r"^(?!.*mlp).*(?<!k)(?<!o)_proj"),
        json!(r"model\.(?P<part>layers)\.[0-9]+\.self_attn\.(?:q|v)_proj"),
        json!(r"model\.layers\.\d+\.self_attn\.[qv]_proj$"),
        json!(null),
    ] {
        let got = read(with("target_modules", targets.clone()).path(), &model()).unwrap();
        assert_eq!(got.settings.targets, [Target::Q, Target::V], "{targets}");
        assert_eq!(got.weights.modules.len(), 4);
    }
    let dir = edited(|c| {
        c["target_modules"] = json!("all-linear");
        c["exclude_modules"] = json!(["k_proj", "self_attn.o_proj", "gate_proj", "up_proj", "down_proj"]);
    });
    assert_eq!(read(dir.path(), &model()).unwrap().settings.targets, [Target::Q, Target::V]);
    let dir = edited(|c| {
        c["target_modules"] = json!("ALL-LINEAR");
        c["exclude_modules"] = json!(r".*(mlp.*|k_proj|o_proj)");
    });
    assert_eq!(read(dir.path(), &model()).unwrap().settings.targets, [Target::Q, Target::V]);

    let dir = with("target_modules", json!(r"model\.layers\.[0-9]{1,2}\.self_attn\.[qv]_proj"));
    assert_eq!(read(dir.path(), &model()).unwrap().settings.targets, [Target::Q, Target::V]);

    for (targets, why) in [
        (json!("q_proj"), "match no linear layer"),
        (json!([]), "match no linear layer"),
        (json!(["wq"]), "match no linear layer"),
        (json!(["q_proj", "lm_head"]), "lm_head"),
        (json!(".*"), "lm_head"),
        (json!(["embed_tokens"]), "model.embed_tokens"),
        (json!(r"(?:(?=\w)\w+|\.)+!"), "cannot be matched"),
        (json!("a)|(b"), "is not understood"),
        (json!("(q_proj"), "is not understood"),
        (json!("q".repeat(5000)), "is not understood"),
        (json!(r"(\w{1000}){1000}"), "is not understood"),
        (json!(r"(?:a#{8454730784725299655}){1000}"), "repeats something too often"),
        (json!(r"((\w{ 9 , 99999 }){1}){99}"), "repeats something too often"),
        (json!([1]), "should be a list of module names"),
        (json!({"q": 1}), "should be a list of module names or a pattern"),
    ] {
        let got = refused(with("target_modules", targets.clone()).path());
        assert!(got.contains(why) && got.contains(CONFIG_FILE), "{targets}: {got}");
    }
}

#[test]
fn layers_can_be_chosen() {
    let one_layer = |key: Value| {
        let dir = with("layers_to_transform", key);
        edit_tensors(dir.path(), |tensors| tensors.retain(|(name, ..)| name.contains("layers.1.")));
        dir
    };
    for key in [json!([1]), json!(1)] {
        let got = read(one_layer(key).path(), &model()).unwrap();
        assert_eq!(got.settings.layers, Some(vec![1]));
        let out = tempfile::tempdir().unwrap();
        write(out.path(), &got, "base").unwrap();
        assert_eq!(read(out.path(), &model()).unwrap(), got);
    }
    assert_eq!(read(with("layers_to_transform", json!([])).path(), &model()).unwrap().settings.layers, None);
    assert!(refused(one_layer(json!([0])).path()).contains("the configuration does not target this layer"));
    assert!(refused(one_layer(json!("1")).path()).contains("layers_to_transform"));
    for (pattern, found) in [
        (json!("layers"), true),
        (json!(["h", "layers"]), true),
        (json!("la[a-z]+"), true),
        (json!(""), true),
        (json!([]), true),
        (json!("h"), false),
        (json!(["h", "blocks"]), false),
    ] {
        let dir = edited(|c| {
            c["layers_to_transform"] = json!([1]);
            c["layers_pattern"] = pattern.clone();
        });
        edit_tensors(dir.path(), |tensors| tensors.retain(|(name, ..)| name.contains("layers.1.")));
        assert_eq!(read(dir.path(), &model()).is_ok(), found, "{pattern}");
    }
    for pattern in [json!(1), json!([1]), json!("(")] {
        let dir = edited(|c| {
            c["layers_to_transform"] = json!([1]);
            c["layers_pattern"] = pattern.clone();
        });
        assert!(refused(dir.path()).contains("layers_pattern"), "{pattern}");
    }
    // A whole path is meant whatever the layers say, as in PEFT.
    let dir = edited(|c| {
        c["layers_to_transform"] = json!([1]);
        c["target_modules"] = json!(["q_proj", "v_proj", "model.layers.0.self_attn.q_proj"]);
    });
    edit_tensors(dir.path(), |tensors| tensors.retain(|(name, ..)| !name.contains("layers.0.self_attn.v_proj")));
    assert_eq!(read(dir.path(), &model()).unwrap().weights.modules.len(), 3);
    let dir = edited(|c| {
        c["layers_to_transform"] = json!(0);
        c["target_modules"] = json!(".*q_proj");
    });
    assert!(refused(dir.path()).contains("layers_to_transform"));
}

#[test]
fn patterns_give_single_layers_their_own_rank_and_alpha() {
    // Layer 1's q has rank 3 and alpha 9; the file is made by finch from weights that differ.
    let mut shapes: Vec<LoraShape> = Vec::new();
    for layer in 0..2 {
        for target in [Target::Q, Target::V] {
            let special = layer == 1 && target == Target::Q;
            let (in_features, out_features) = model().linear_shape(target);
            let rank = if special { 3 } else { 2 };
            let scale = scale(if special { 9.0 } else { 4.0 }, rank, false);
            shapes.push(LoraShape { layer, target, rank, in_features, out_features, scale, dora: false });
        }
    }
    let mut weights = LoraWeights::zeros(shapes);
    for (i, v) in weights.data.iter_mut().enumerate() {
        *v = i as f32;
    }
    let before = Adapter::new(weights, settings(2, 4.0, &[Target::Q, Target::V]));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &before, "base").unwrap();
    assert_eq!(read(dir.path(), &model()).unwrap(), before);

    let path = dir.path().join(CONFIG_FILE);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(config["rank_pattern"], json!({"model.layers.1.self_attn.q_proj": 3}));
    assert_eq!(config["alpha_pattern"], json!({"model.layers.1.self_attn.q_proj": 9}));
    for (ranks, alphas, ok) in [
        (json!({r"layers\.1\..*q_proj": 3}), json!({"1.self_attn.q_proj": 9.0}), true),
        (json!({r"^model.layers.1.self_attn.q_proj": 3}), json!({r"layers.[1-9].self_attn.q_proj": 9}), true),
        (json!({"1.self_attn.q_proj": 3, "q_proj": 2}), json!({"1.self_attn.q_proj": 9}), true),
        (json!({"(?:.*)1.*q_proj$": 3, "(?!.*1)": 2}), json!({"1.self_attn.q_proj": 9}), true),
        (json!({"1.self_attn.q_proj": 0}), json!({}), false),
        (json!({"1.self_attn.q_proj": 3.5}), json!({}), false),
        (json!({"1.self_attn.q_proj": 3}), json!({"q_proj": "9"}), false),
        (json!({"(": 3}), json!({}), false),
        (json!([3]), json!({}), false),
        (json!(null), json!(null), false),
    ] {
        config["rank_pattern"] = ranks.clone();
        config["alpha_pattern"] = alphas;
        std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        let got = read(dir.path(), &model());
        assert_eq!(got.is_ok(), ok, "{ranks}: {got:?}");
        if ok {
            assert_eq!(got.unwrap(), before);
        }
    }
}

#[test]
fn the_first_pattern_in_the_file_counts() {
    // Not in the order of the names, and with a key twice: as Python reads it.
    let json = |ranks: &str| {
        format!(
            r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {ranks}}}"#
        )
    };
    let ranks = |patterns: &str| -> Vec<usize> {
        let config = PeftConfig::from_json(json(patterns).as_bytes()).unwrap();
        config.shapes(&model()).unwrap().iter().map(|shape| shape.rank).collect()
    };
    assert_eq!(ranks(r#"{"q_proj": 5, "1.self_attn.q_proj": 3}"#), [5, 2, 5, 2]);
    assert_eq!(ranks(r#"{"1.self_attn.q_proj": 3, "q_proj": 5}"#), [5, 2, 3, 2]);
    assert_eq!(ranks(r#"{"z": 1, "q_proj": 5, "v_proj": 7, "q_proj": 6}"#), [6, 7, 6, 7]);
    assert_eq!(ranks("null"), [2, 2, 2, 2]);
}
