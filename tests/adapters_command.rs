//! `finch adapters`, `models` and `config` as their users start them: tables on standard output, what was done on standard
//! error.

#[path = "common/run.rs"]
mod run;

use std::path::{Path, PathBuf};

use tempfile::TempDir;

const MODEL: &str = "qwen2-untied-f16";

fn fixture(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path);
    path.to_str().unwrap().to_string()
}

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn run(&self, arguments: &[&str]) -> run::Ran {
        run::finch(&self.home(), &[arguments, &["--model", &fixture(&format!("models/{MODEL}"))]].concat())
    }

    /// What it said; it has to end well and print nothing.
    fn said(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{arguments:?}: {}", ran.error);
        ran.error
    }

    /// What it printed; it has to end well and say nothing.
    fn printed(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!((ran.code, ran.error.as_str()), (Some(0), ""), "{arguments:?}: {}", ran.out);
        ran.out
    }

    /// The state of an adapter in the table: its last word.
    fn state(&self, name: &str) -> String {
        let list = self.printed(&["adapters", "list"]);
        let row = list.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in\n{list}"));
        row.split_whitespace().last().unwrap().to_string()
    }
}

#[test]
fn folders_are_loaded_and_taken_back() {
    let place = Place::new();
    assert!(place.printed(&["adapters", "list"]).contains("no adapters yet"));
    let (one, two) = (format!("{MODEL}--lora"), format!("{MODEL}--rslora"));
    for name in [&one, &two] {
        let said = place.said(&["adapters", "load", &fixture(&format!("adapters/{name}"))]);
        assert_eq!(said, format!("Adapter {name} is live from the next answer on.\n"));
    }
    assert_eq!((place.state(&one).as_str(), place.state(&two).as_str()), ("kB", "live"));
    assert!(place.said(&["adapters", "rollback"]).contains(&one));
    assert_eq!(place.state(&one), "live");
    assert!(place.said(&["adapters", "unload"]).contains("the base answers"));
    assert!(place.said(&["adapters", "load", &one]).contains("is live"), "by its name");
    let shown = place.printed(&["adapters", "show", &one]);
    assert!(shown.contains("rank        3") && shown.contains("not trained by finch"), "{shown}");
}

#[test]
fn the_active_adapter_is_deleted_on_a_clear_word_only() {
    let place = Place::new();
    let name = format!("{MODEL}--lora");
    place.said(&["adapters", "load", &fixture(&format!("adapters/{name}"))]);
    let refused = place.run(&["adapters", "delete", &name]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.error.contains("is the active one") && refused.error.contains("--yes"), "{}", refused.error);
    assert_eq!(place.state(&name), "live");
    place.said(&["adapters", "delete", "--yes", &name]);
    assert!(place.printed(&["adapters", "list"]).contains("no adapters yet"));
    place.said(&["adapters", "load", &fixture(&format!("adapters/{name}"))]);
    place.said(&["adapters", "unload"]);
    place.said(&["adapters", "delete", &name]);
}

#[test]
fn what_does_not_fit_is_refused_with_the_tensor() {
    let place = Place::new();
    let other = place.run(&["adapters", "load", &fixture("adapters/qwen3-tied-bf16--lora")]);
    assert_eq!(other.code, Some(1));
    assert!(
        other.error.contains("k_proj.lora_B.weight has shape [16, 3]; rank 3 on this base takes [8, 3]"),
        "{}",
        other.error
    );
    let none = place.run(&["adapters", "load", "nothing"]);
    assert!(none.code == Some(1) && none.error.contains("there is no adapter nothing"), "{}", none.error);
    assert!(place.printed(&["adapters", "list"]).contains("no adapters yet"), "nothing was taken in");
}

#[test]
fn an_adapter_of_another_base_needs_force() {
    let place = Place::new();
    let data = fixture(&format!("training/{MODEL}--sft/data.jsonl"));
    let out = place.dir.path().join("mine");
    let out = out.to_str().unwrap();
    place.said(&["train", "--data", &data, "--objective", "sft", "--steps", "1", "--output", out]);
    // The same base in name and shape, other weights.
    let provenance = Path::new(out).join("finch.json");
    let text = std::fs::read_to_string(&provenance).unwrap();
    let base = serde_json::from_str::<serde_json::Value>(&text).unwrap()["base"].as_str().unwrap().to_string();
    std::fs::write(&provenance, text.replace(&base, &"0".repeat(64))).unwrap();
    let refused = place.run(&["adapters", "load", out]);
    assert_eq!(refused.code, Some(1), "{}", refused.error);
    assert!(refused.error.contains("another base") && refused.error.contains("--force"), "{}", refused.error);
    assert_eq!(place.run(&["adapters", "import", out]).code, Some(1));
    assert!(place.printed(&["adapters", "list"]).contains("no adapters yet"), "nothing was taken in");
    assert!(place.said(&["adapters", "load", "--force", out]).contains("Adapter mine is live"));
}

#[test]
fn folders_are_taken_in_and_nothing_goes_live() {
    let place = Place::new();
    let from = fixture(&format!("adapters/{MODEL}--dora"));
    let said = place.said(&["adapters", "import", &from, "--name", "style"]);
    assert_eq!(said, "Adapter style was taken in. It is not live: finch adapters load style\n");
    assert_eq!(place.state("style"), "kB");
    let shown = place.printed(&["adapters", "show", "style"]);
    for row in ["kind        DoRA\n", "rank        3\n", "alpha       6\n", "live        no\n"] {
        assert!(shown.contains(row), "{row} in\n{shown}");
    }
    let own = format!("{MODEL}--dora");
    assert!(place.said(&["adapters", "import", &from]).contains(&format!("Adapter {own} was taken in")));
    assert!(place.said(&["adapters", "import", &from]).contains("was here already"));
    let said = place.said(&["adapters", "import", &fixture(&format!("adapters/{MODEL}--lora")), "--load"]);
    assert!(said.contains("was taken in.\n") && said.contains("is live from the next answer on"), "{said}");
    for (arguments, why) in [
        (vec!["--name", "style"], "there is an adapter style already"),
        (vec!["--name", "../style"], "is no adapter name"),
    ] {
        let ran = place.run(&[&["adapters", "import", &from], arguments.as_slice()].concat());
        assert!(ran.code == Some(1) && ran.error.contains(why), "{}", ran.error);
    }
    let other = fixture("adapters/qwen3-tied-bf16--dora");
    for (folder, why) in [(other.as_str(), "rank 3 on this base takes"), ("nowhere", "no such folder")] {
        let ran = place.run(&["adapters", "import", folder]);
        assert!(ran.code == Some(1) && ran.error.contains(why), "{}", ran.error);
    }
}

#[test]
fn models_and_paths_are_shown() {
    let place = Place::new();
    let shown = place.printed(&["models", "show"]);
    for expected in ["Qwen2, 2 layers, hidden 24", "280 tokens", "512 tokens", "F16"] {
        assert!(shown.contains(expected), "{expected} in\n{shown}");
    }
    let path = place.printed(&["config", "path"]);
    assert_eq!(Path::new(path.trim_end()), place.home().join("config.toml"));
    std::fs::create_dir_all(place.home()).unwrap();
    std::fs::write(place.home().join("config.toml"), "[lora]\nrank = \"many\"\n").unwrap();
    assert_eq!(place.printed(&["config", "path"]), path, "also where the file is broken");
    let broken = place.run(&["stats"]);
    assert_eq!(broken.code, Some(2));
    assert!(broken.error.contains("config.toml:2:") && broken.error.contains("lora.rank"), "{}", broken.error);
}
