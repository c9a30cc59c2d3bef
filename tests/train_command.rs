//! `finch train` as its users start it: data sets in, adapters out, exit codes, interruption, the gate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use finch::adapter::peft;
use finch::fsio::Lock;
use finch::model::config::ModelConfig;
use finch::paths::Paths;
use serde_json::Value;
use tempfile::TempDir;

const MODEL: &str = "qwen3-tied-bf16";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A data folder, and files beside it.
struct Place {
    dir: TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_finch"));
        command.args(arguments).arg("--model").arg(fixtures().join("models").join(MODEL));
        command.env("FINCH_HOME", self.path("home")).current_dir(self.dir.path());
        command
    }

    fn finch(&self, arguments: &[&str]) -> Ran {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: status.code().unwrap(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Trains on six short conversations with these further arguments.
    fn train(&self, arguments: &[&str]) -> Ran {
        let data = self.file("rows.jsonl", &conversations());
        self.finch(&[&["train", "--data", &data], arguments].concat())
    }

    fn provenance(&self, folder: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(folder).join("finch.json")).unwrap()).unwrap()
    }
}

fn conversations() -> String {
    let row = |i: usize| {
        let (question, answer) = (format!("what sings {i}"), ["the finch", "never", "the other one"][i % 3]);
        let messages = serde_json::json!([
            {"role": "user", "content": question}, {"role": "assistant", "content": answer}
        ]);
        serde_json::json!({"messages": messages, "weight": 1 + i}).to_string() + "\n"
    };
    (0..6).map(row).collect()
}

/// Few and careful steps of an explicit objective.
const GENTLE: [&str; 6] = ["--objective", "sft", "--steps", "3", "--learning-rate", "1e-3"];

#[test]
fn a_data_set_becomes_an_adapter_folder_and_nothing_else() {
    let place = Place::new();
    let ran = place.train(&[&GENTLE[..], &["--output", "out", "--seed", "7"]].concat());
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("Training on 6 rows: sft, 3 steps of 4 rows, learning rate 0.001"), "{}", ran.stderr);
    assert!(ran.stderr.contains("step 3/3") && ran.stderr.contains("Adapter saved to: out"), "{}", ran.stderr);
    let made = place.provenance("out");
    assert_eq!((made["examples"].as_u64(), made["parameters"]["seed"].as_u64()), (Some(6), Some(7)));
    assert!(made["loss_after"].as_f64().unwrap() < made["loss_before"].as_f64().unwrap());
    assert!(place.finch(&["adapters", "list"]).stdout.contains("no adapters yet"), "not registered");
    assert!(place.finch(&["stats"]).stdout.contains("Trainings"), "the data folder works as before");
}

#[test]
fn the_same_seed_gives_the_same_file() {
    let place = Place::new();
    let bytes = |name: &str, seed: &str| {
        let how = ["--output", name, "--seed", seed, "--order", "weighted", "--dropout", "0.1"];
        let ran = place.train(&[&GENTLE[..], &how].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        fs::read(place.path(name).join("adapter_model.safetensors")).unwrap()
    };
    let first = bytes("a", "1");
    assert_eq!(first, bytes("b", "1"));
    assert_ne!(first, bytes("c", "2"));
}

#[test]
fn held_out_rows_are_measured_and_not_trained_on() {
    let place = Place::new();
    let rows: String =
        (0..40).map(|i| format!("{{\"prompt_ids\":[{i}],\"completion_ids\":[7,{}]}}\n", i + 9)).collect();
    let data = place.file("rows.jsonl", &rows);
    let how = ["--output", "out", "--eval-split", "0.3", "--order", "curriculum"];
    let ran = place.finch(&[&["train", "--data", &data], &GENTLE[..], &how].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("more held out") && ran.stderr.contains("held-out "), "{}", ran.stderr);
    let parameters = &place.provenance("out")["parameters"];
    let (trained, held_out) = (parameters["rows"].as_u64().unwrap(), parameters["held_out_rows"].as_u64().unwrap());
    assert!(trained + held_out == 40 && held_out > 0, "{parameters}");
}

#[test]
fn what_is_left_out_is_named() {
    let place = Place::new();
    let rows = "{\"prompt_ids\":[1],\"completion_ids\":[2],\"wieght\":3}\n{\"prompt_ids\":[1,2,3,4],\"completion_ids\":[5,6]}\n";
    let data = place.file("rows.jsonl", rows);
    let ran = place.finch(&[&["train", "--data", &data, "--output", "out", "--max-length", "5"], &GENTLE[..]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("rows.jsonl:2: skipped, it has 6 tokens, more than 5"), "{}", ran.stderr);
    assert!(ran.stderr.contains("ignored: wieght"), "{}", ran.stderr);
    assert_eq!(place.provenance("out")["examples"], 1);
}

#[test]
fn mistakes_have_their_exit_codes() {
    let place = Place::new();
    fs::create_dir(place.path("full")).unwrap();
    place.file("full/file", "x");
    for (arguments, code, expected) in [
        (&["--objective", "sft", "--output", "out", "--steps", "0"][..], 2, "--steps should be 1 or more"),
        (
            &["--objective", "sft", "--output", "out", "--eval-split", "1"],
            2,
            "--eval-split should be from 0 to below 1",
        ),
        (&["--objective", "sft", "--output", "out", "--rank", "0"], 2, "lora.rank should be"),
        (&["--objective", "sft", "--output", "out", "--warmup-steps", "9", "--steps", "3"], 2, "more than the 3 steps"),
        (&["--objective", "kto", "--output", "out", "--sft-weight", "1"], 2, "--sft-weight goes with --objective dpo"),
        (&["--objective", "sft", "--output", "full"], 1, "full already exists"),
        (&["--objective", "dpo", "--output", "out"], 1, "rows.jsonl:1: the row has no label"),
        (&["--objective", "sft", "--output", "out", "--init-adapter", "none"], 1, "adapter_config.json is missing"),
    ] {
        let ran = place.train(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{arguments:?}: {}", ran.stderr);
        assert!(!place.path("out").exists(), "{arguments:?}");
    }
    let ran = place.finch(&["train", "--steps", "3"]);
    assert!(ran.code == 2 && ran.stderr.contains("--data"), "{}", ran.stderr);
    let ran = place.finch(&["train", "--data", "none.jsonl", "--objective", "sft", "--output", "out"]);
    assert!(ran.code == 1 && ran.stderr.contains("none.jsonl"), "{}", ran.stderr);
}

#[test]
fn a_loss_that_is_not_finite_stops_and_leaves_nothing() {
    let place = Place::new();
    let model = fixtures().join("models").join(MODEL);
    let config = ModelConfig::from_json(&fs::read(model.join("config.json")).unwrap()).unwrap();
    let mut adapter = peft::read(&fixtures().join(format!("adapters/{MODEL}--lora")), &config).unwrap();
    adapter.weights.data.fill(3e38); // finite, but no product of it is
    fs::create_dir(place.path("wild")).unwrap();
    peft::write(&place.path("wild"), &adapter, MODEL).unwrap();
    let ran = place.train(&["--objective", "sft", "--init-adapter", "wild", "--output", "out"]);
    assert!(ran.code == 1 && ran.stderr.contains("a loss of NaN"), "{}", ran.stderr);
    assert!(!place.path("out").exists());
}

#[test]
fn one_training_at_a_time() {
    let place = Place::new();
    let paths = Paths::at(place.path("home"));
    fs::create_dir(paths.root()).unwrap();
    let _lock = Lock::try_acquire(&paths.lock("training"), "training").unwrap();
    for arguments in [&[&GENTLE[..], &["--output", "out"]].concat()[..], &[]] {
        let ran = if arguments.is_empty() { place.finch(&["train"]) } else { place.train(arguments) };
        let expected = format!("training is already running in process {}", std::process::id());
        assert!(ran.code == 1 && ran.stderr.contains(&expected), "{}", ran.stderr);
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_training_keeps_its_state() {
    for signal in ["-INT", "-TERM"] {
        let place = Place::new();
        let data = place.file("rows.jsonl", &conversations());
        let arguments = [
            "train",
            "--data",
            &data,
            "--objective",
            "sft",
            "--steps",
            "1000000",
            "--warmup-steps",
            "2",
            "--output",
            "out",
            "--metrics",
            "metrics.jsonl",
        ];
        let child = place.command(&arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let steps = || fs::read_to_string(place.path("metrics.jsonl")).unwrap_or_default().lines().count();
        let started = std::time::Instant::now();
        while steps() < 5 {
            assert!(started.elapsed().as_secs() < 60, "no steps");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert!(stderr.contains("Interrupted; the state after "), "{stderr}");
        assert_eq!(place.provenance("out")["parameters"]["ending"], "interrupted");
        let input = place.file("ids.jsonl", "{\"ids\":[1,2,3]}\n");
        assert_eq!(place.finch(&["score", "--adapter", "./out", "--input", &input]).code, 0, "the folder is whole");
    }
}

#[test]
fn without_an_output_the_gate_decides_and_the_adapter_goes_live() {
    let place = Place::new();
    let ran = place.train(&GENTLE);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains(" live · canaries "), "{}", ran.stderr);
    let unmeasured =
        "could not measure: loss and pairs on unseen rows (0 held out, 8 are needed); corrections that hold";
    assert!(ran.stderr.contains(unmeasured), "{}", ran.stderr);
    let list = place.finch(&["adapters", "list"]).stdout;
    assert!(list.contains("lora_adapter_") && list.contains("live"), "{list}");
    assert!(place.finch(&["stats"]).stdout.contains("1 completed"));
}

#[test]
fn what_the_gate_refuses_is_kept_and_not_live() {
    let place = Place::new();
    let wild = ["--objective", "sft", "--steps", "40", "--learning-rate", "0.05", "--warmup-steps", "0"];
    let ran = place.train(&wild);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("refuses the adapter: ") && ran.stderr.contains("KL"), "{}", ran.stderr);
    let list = place.finch(&["adapters", "list"]).stdout;
    assert!(list.contains("refused by the gate") && !list.contains("live"), "{list}");
    assert!(place.finch(&["stats"]).stdout.contains("1 refused"));
}

#[test]
fn auto_with_an_output_is_judged_there() {
    let place = Place::new();
    let ran = place.train(&["--output", "out", "--steps", "30", "--learning-rate", "0.05", "--replay", "0"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(place.provenance("out")["gate"]["passed"], false);
    let ran = place.train(&["--output", "gentle", "--steps", "6"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let made = place.provenance("gentle");
    assert_eq!((&made["gate"]["passed"], &made["parameters"]["objective"]), (&Value::from(true), &Value::from("auto")));
    assert!(made["parameters"]["replay_rows"].as_u64().unwrap() > 0);
    assert!(place.finch(&["adapters", "list"]).stdout.contains("no adapters yet"), "neither is registered");
}

#[test]
fn the_gate_measures_unseen_pairs_and_taught_ones() {
    let place = Place::new();
    let row = |i: usize| {
        let prompt = serde_json::json!([{"role": "user", "content": format!("what sings {i}")}]);
        serde_json::json!({"prompt": prompt, "chosen": format!("the finch {i}"), "rejected": "no"}).to_string() + "\n"
    };
    let data = place.file("pairs.jsonl", &(0..60).map(row).collect::<String>());
    let how = ["--output", "out", "--steps", "3", "--learning-rate", "1e-3", "--eval-split", "0.3"];
    let ran = place.finch(&[&["train", "--data", &data], &how[..]].concat());
    assert!([0, 3].contains(&ran.code), "{}", ran.stderr);
    let made = place.provenance("out");
    let (measured, parameters) = (&made["gate"]["measurements"], &made["parameters"]);
    let of = |name: &str| measured[name][1].as_u64();
    assert_eq!(of("corrections"), parameters["rows"].as_u64(), "{made}");
    assert_eq!(of("pairs"), parameters["held_out_rows"].as_u64(), "{made}");
    assert!(of("pairs").unwrap() >= 8 && measured["held_out"][1].is_number() && measured["kl"].is_number(), "{made}");
    assert!(!ran.stderr.contains("could not measure"), "{}", ran.stderr);
}

#[test]
fn the_feedback_is_trained_on_once() {
    let place = Place::new();
    let ran = place.finch(&["train"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing to train on yet"), "{}", ran.stderr);

    let row = |i: usize| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"what sings {i}\"}}],\"kind\":\"correction\",\
             \"corrected_response\":\"the finch\"}}\n"
        )
    };
    let rows: String = (0..4).map(row).collect();
    let file = place.file("feedback.jsonl", &rows);
    assert_eq!(place.finch(&["feedback", "import", &file]).code, 0);
    let ran = place.finch(&["train", "--epochs", "4", "--learning-rate", "1e-3"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("Trained on 4 examples, loss ") && ran.stderr.contains(" live · "), "{}", ran.stderr);
    let ran = place.finch(&["train"]);
    assert!(ran.code == 0 && ran.stderr.contains("nothing new since the last training"), "{}", ran.stderr);
    let again = place.finch(&["train", "--all", "--epochs", "1", "--learning-rate", "1e-3"]);
    assert!(again.stderr.contains("Trained on 4 examples"), "{}", again.stderr);
}
