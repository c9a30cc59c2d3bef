//! Tests of `registry.rs`: names that try to leave the folder, listing whole and broken adapters, saving, importing.

use super::super::peft::{LoraSettings, init};
use super::super::provenance;
use super::*;
use crate::model::candle::tests::network;
use crate::model::config::Family;
use crate::model::lora::Target;

pub fn model() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen3,
        vocab_size: 32,
        hidden_size: 8,
        intermediate_size: 12,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        context: 64,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        rope_scaling: crate::model::rope::RopeScaling::None,
        attention_bias: false,
        tied_embeddings: true,
    }
}

pub fn home() -> (tempfile::TempDir, Paths) {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::at(dir.path().join("finch"));
    (dir, paths)
}

fn adapter(seed: u64) -> Adapter {
    let settings = LoraSettings { rank: 2, targets: vec![Target::Q], ..LoraSettings::default() };
    Adapter::new(init(&network(&model()), &settings, seed).unwrap(), settings)
}

/// Saves an adapter of base "ab12".
pub fn save(paths: &Paths, name: &str) -> PathBuf {
    Registry::new(paths.clone()).save(name, &adapter(1), &Provenance::new("ab12", "finch-tiny")).unwrap()
}

#[test]
fn no_name_leaves_the_folder() {
    let (_dir, paths) = home();
    save(&paths, "good");
    std::fs::create_dir_all(paths.root().join("outside")).unwrap();
    let registry = Registry::new(paths.clone());
    for name in [
        "",
        ".",
        "..",
        "../outside",
        "good/../../outside",
        "/etc",
        "a/b",
        "a\\b",
        "..\\outside",
        "C:",
        ".hidden",
        "active",
        "Active",
        "a\nb",
        "a\x1b[31m",
        "\u{202e}x",
        "x\0y",
        "-rf",
        " x",
        "x ",
        "x.",
        &"x".repeat(200),
    ] {
        assert!(check_name(name).is_err(), "{name:?}");
        assert!(registry.find(name).is_err(), "{name:?}");
        assert!(registry.delete(name).is_err(), "{name:?}");
        assert!(registry.open(name, &model(), "ab12", true).is_err(), "{name:?}");
        let e = registry.save(name, &adapter(1), &Provenance::new("ab12", "m")).unwrap_err();
        assert!(!e.message().contains(['\x1b', '\n', '\u{202e}']), "{e:?}");
    }
    assert!(paths.root().join("outside").is_dir());
    assert_eq!(registry.names(), ["good"]);
    for name in ["lora_adapter_20260206_143025", "my adapter", "réglage", "v1.2-test_3"] {
        check_name(name).unwrap();
    }
}

#[test]
fn default_names_are_free() {
    let (_dir, paths) = home();
    let registry = Registry::new(paths.clone());
    let now = chrono::NaiveDate::from_ymd_opt(2026, 2, 6).unwrap().and_hms_opt(14, 30, 25).unwrap();
    for expected in ["lora_adapter_20260206_143025", "lora_adapter_20260206_143025_2", "lora_adapter_20260206_143025_3"]
    {
        let name = registry.new_name(now);
        assert_eq!(name, expected);
        save(&paths, &name);
    }
}

#[test]
fn saved_adapters_are_listed_and_open() {
    let (_dir, paths) = home();
    let registry = Registry::new(paths.clone());
    assert!(registry.list().is_empty());
    let mut provenance = Provenance::new("ab12", "finch-tiny");
    (provenance.examples, provenance.loss_before, provenance.loss_after) = (12, Some(2.31), Some(0.09));
    let path = registry.save("z", &adapter(1), &provenance).unwrap();
    provenance.created -= chrono::Duration::hours(1);
    registry.save("zz_older", &adapter(2), &provenance).unwrap();
    assert!(registry.save("z", &adapter(2), &provenance).is_err(), "never over another");

    let list = registry.list();
    assert_eq!(list.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["zz_older", "z"]);
    let z = &list[1];
    let on_disk: u64 = std::fs::read_dir(&path).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert_eq!((&z.path, z.summary.as_ref().map(|s| s.rank), z.bytes, &z.state), (&path, Some(2), on_disk, &State::Ok));
    assert_eq!(z.provenance.as_ref().unwrap().examples, 12);
    assert_eq!(registry.find("zz_older").unwrap(), list[0]);

    assert_eq!(registry.open("z", &model(), "ab12", false).unwrap(), adapter(1));
    let e = registry.open("z", &model(), "ffff", false).unwrap_err();
    assert!(
        e.message().contains("another base (finch-tiny, ab12)") && e.hint_text().unwrap().contains("--force"),
        "{e}"
    );
    assert_eq!(registry.open("z", &model(), "ffff", true).unwrap(), adapter(1));
    let other = ModelConfig { hidden_size: 16, ..model() };
    assert!(registry.open("z", &other, "ab12", true).unwrap_err().message().contains("lora_A.weight has shape [2, 8]"));

    let e = registry.find("zz_oldr").unwrap_err();
    assert_eq!((e.message(), e.hint_text()), ("there is no adapter zz_oldr", Some("did you mean zz_older?")));
    registry.delete("z").unwrap();
    assert!(!path.exists());
    assert_eq!(registry.names(), ["zz_older"]);
}

#[test]
fn the_same_adapter_gives_the_same_tensor_file() {
    let (_dir, paths) = home();
    let file = |name: &str| std::fs::read(save(&paths, name).join(peft::TENSOR_FILE)).unwrap();
    assert_eq!(file("a"), file("b"));
}

#[test]
fn broken_folders_are_listed_with_their_reason() {
    let (_dir, paths) = home();
    let registry = Registry::new(paths.clone());
    save(&paths, "torn");
    std::fs::write(paths.adapters().join("torn").join(peft::TENSOR_FILE), "x").unwrap();
    save(&paths, "strange");
    std::fs::write(paths.adapters().join("strange").join(provenance::FILE), "{").unwrap();
    std::fs::create_dir(paths.adapters().join("empty")).unwrap();
    std::fs::write(paths.adapters().join("a file"), "x").unwrap();
    let reasons: Vec<(String, String)> = registry
        .list()
        .into_iter()
        .map(|e| match e.state {
            State::Broken(reason) => (e.name, reason),
            State::Ok => panic!("{} is broken", e.name),
        })
        .collect();
    assert_eq!(reasons.len(), 3);
    for (name, reason) in reasons {
        let expected = match name.as_str() {
            "torn" => peft::TENSOR_FILE,
            "strange" => provenance::FILE,
            _ => "adapter_config.json is missing",
        };
        assert!(reason.contains(expected), "{name}: {reason}");
        assert!(registry.find_sound(&name).is_err());
        registry.delete(&name).unwrap();
    }
    assert!(registry.names().is_empty());
}

#[test]
fn folders_from_elsewhere_come_in_once() {
    let (dir, paths) = home();
    let registry = Registry::new(paths.clone());
    let elsewhere = dir.path().join("someone/style");
    std::fs::create_dir_all(&elsewhere).unwrap();
    peft::write(&elsewhere, &adapter(1), "some/base").unwrap();
    let import = |name| registry.import(&elsewhere, name, &model());
    let came = |name: &str, is_new| Imported { name: name.to_string(), is_new };
    assert_eq!(import(None).unwrap(), came("style", true));
    assert_eq!(import(None).unwrap(), came("style", false), "it is here already");
    let entry = registry.find("style").unwrap();
    assert_eq!((entry.provenance, entry.state), (None, State::Ok));
    assert!(entry.created.is_some());
    assert_eq!(registry.open("style", &model(), "any base", false).unwrap(), adapter(1), "no provenance, no complaint");
    peft::write(&elsewhere, &adapter(2), "some/base").unwrap();
    assert_eq!(import(None).unwrap(), came("style_2", true), "another one of that name");
    assert_eq!(import(Some("mine")).unwrap(), came("mine", true), "by the name that was asked for");
    assert!(import(Some("mine")).unwrap_err().message().contains("there is an adapter mine already"));
    for name in ["../mine", "", "active"] {
        assert!(import(Some(name)).unwrap_err().message().contains("is no adapter name"), "{name}");
    }

    let other = ModelConfig { hidden_size: 16, ..model() };
    assert!(registry.import(&elsewhere, None, &other).is_err());
    assert!(registry.import(&dir.path().join("none"), None, &model()).is_err());
    assert_eq!(registry.names(), ["mine", "style", "style_2"]);
}

#[test]
fn sweep_removes_left_overs() {
    let (_dir, paths) = home();
    let registry = Registry::new(paths.clone());
    assert_eq!(registry.sweep().unwrap(), 0);
    save(&paths, "a");
    let torn = paths.adapters().join(".finch-tmp-1-0-0");
    std::fs::create_dir(&torn).unwrap();
    std::fs::write(paths.adapters().join("a").join(".finch-tmp-1-0-1"), "half").unwrap();
    assert_eq!(registry.names(), ["a"], "what is unfinished is not listed");
    assert_eq!(registry.sweep().unwrap(), 2);
    assert_eq!(registry.names(), ["a"]);
    std::fs::create_dir(&torn).unwrap();
    save(&paths, "b");
    assert!(!torn.exists(), "the next writer clears up");
}
