//! Adapters exported by finch, read by llama.cpp: the same log-probabilities on the same file.
//!
//! Runs where Python has llama-cpp-python (`FINCH_TEST_LLAMA_CPP` names another interpreter than `python3`). PEFT's reading
//! is in `peft.rs`; the layout of all formats is checked beside `src/adapter/export.rs`.

mod common;
#[path = "common/python.rs"]
mod python;
#[path = "common/run.rs"]
mod run;

use std::fs;
use std::path::{Path, PathBuf};

use common::reference;
use python::{LLAMA_CPP, apart, computed, python, scored};
use run::{finch, printed, said};
use serde_json::json;

/// The files to compare on, and by how much llama.cpp's arithmetic differs there: it rounds activations to the weights'
/// type, finch computes in f32.
fn models() -> Vec<(PathBuf, f64)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let mut models = vec![(own.join("qwen2-untied-f16-F32.gguf"), 1e-4), (own.join("qwen3-tied-bf16-BF16.gguf"), 5e-2)];
    if let Some(golden) = reference("golden/gguf") {
        models.extend([(golden.join("qwen2-96-F32.gguf"), 1e-4), (golden.join("qwen3-256-F32.gguf"), 1e-4)]);
    }
    models
}

#[test]
fn llama_cpp_reads_exported_adapters_with_the_same_log_probabilities() {
    let Some(python) = python(LLAMA_CPP) else { return };
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let (input, data) = (home.join("rows.jsonl"), home.join("data.jsonl"));
    let ids = |n: usize| (0..n).map(|i| (i * 37 + n) % 270).collect::<Vec<_>>();
    let rows: String = [7, 40, 120].map(|n| json!({"ids": ids(n)}).to_string() + "\n").concat();
    fs::write(&input, rows).unwrap();
    let lesson = |n: usize| {
        let labels: Vec<i64> = ids(n).iter().enumerate().map(|(i, id)| if i < 4 { -100 } else { *id as i64 }).collect();
        json!({"input_ids": ids(n), "labels": labels}).to_string() + "\n"
    };
    fs::write(&data, [9, 14, 23].map(lesson).concat()).unwrap();
    let compare = |model: &str, adapter: &str, tolerance: f64| {
        let file = format!("{adapter}.gguf");
        let file = home.join(Path::new(&file).file_name().unwrap());
        let file = file.to_str().unwrap();
        said(home, &["adapters", "export", adapter, file, "--format", "gguf", "--model", model]);
        let score = ["score", "--model", model, "--input", input.to_str().unwrap()];
        let own = scored(&printed(home, &[&score[..], &["--adapter", adapter]].concat()));
        let bare = scored(&printed(home, &score));
        let theirs = computed(&python, "llama_logprobs.py", &[model, file], &input);
        let (worst, moved) = (apart(&own, &theirs), apart(&bare, &theirs));
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        println!("{name}: finch and llama.cpp differ by {worst:.1e}; the adapter moves up to {moved:.2}");
        assert!(worst <= tolerance, "{name}: off by {worst}");
        assert!(moved > 20.0 * tolerance, "{name}: the adapter changes too little to compare: {moved}");
    };
    for (model, tolerance) in models() {
        let name = model.file_stem().unwrap().to_str().unwrap().to_string();
        let model = model.to_str().unwrap();
        for settings in ["--rank 4 --alpha 8", "--rank 3 --alpha 5 --variant rslora --targets q_proj,v_proj,down_proj"]
        {
            let adapter = home.join(format!("{name} {settings}"));
            let adapter = adapter.to_str().unwrap();
            let train = ["train", "--model", model, "--objective", "sft", "--data", data.to_str().unwrap()];
            let how = ["--steps", "30", "--learning-rate", "1e-2", "--output", adapter];
            let settings: Vec<&str> = settings.split(' ').collect();
            said(home, &[&train[..], &how, &settings].concat());
            compare(model, adapter, tolerance);
        }
    }
    // PEFT's own, among them one whose ranks and scales differ from module to module.
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let model = fixtures.join("gguf/qwen2-untied-f16-F32.gguf");
    for kind in ["lora", "rslora", "patterns", "layers"] {
        let adapter = fixtures.join(format!("adapters/qwen2-untied-f16--{kind}"));
        compare(model.to_str().unwrap(), adapter.to_str().unwrap(), 1e-4);
    }
}

/// The fixture was made by llama.cpp's own script:
/// `convert_lora_to_gguf.py --base models/qwen2-untied-f16 --outfile … adapters/qwen2-untied-f16--lora`.
#[test]
fn files_are_those_of_llama_cpps_converter() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = dir.path().join("Qwen2 Untied F16 Lora"); // the name that the converter makes of the folder's
    fs::create_dir(&folder).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(fixtures.join("adapters/qwen2-untied-f16--lora").join(file), folder.join(file)).unwrap();
    }
    let (out, model) = (dir.path().join("out.gguf"), fixtures.join("models/qwen2-untied-f16"));
    let [folder, out, model] = [&folder, &out, &model].map(|path| path.to_str().unwrap());
    said(dir.path(), &["adapters", "export", folder, out, "--format", "gguf", "--model", model]);
    let wanted = fs::read(fixtures.join("llama.cpp/qwen2-untied-f16--lora.gguf")).unwrap();
    assert!(fs::read(out).unwrap() == wanted, "byte for byte");
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let model = fixtures.join("models/qwen2-untied-f16");
    let folder = |kind: &str| fixtures.join(format!("adapters/{kind}")).to_str().unwrap().to_string();
    let out = dir.path().join("out.gguf");
    let export = |what: &str| {
        let out = out.to_str().unwrap();
        finch(dir.path(), &["adapters", "export", what, out, "--format", "gguf", "--model", model.to_str().unwrap()])
    };
    for (what, why) in [
        (folder("qwen2-untied-f16--dora"), "llama.cpp does not run DoRA"),
        (folder("qwen3-tied-bf16--lora"), "rank 3 on this base takes"),
        ("nothing".to_string(), "there is no adapter nothing"),
        ("./nothing".to_string(), "no such folder"),
    ] {
        let ran = export(&what);
        assert!(ran.code == Some(1) && ran.error.contains(why), "{what}: {}", ran.error);
        assert!(!out.exists());
    }
    assert_eq!(export(&folder("qwen2-untied-f16--lora")).code, Some(0));
    let again = export(&folder("qwen2-untied-f16--lora"));
    assert!(again.code == Some(1) && again.error.contains("already exists"), "{}", again.error);
}
