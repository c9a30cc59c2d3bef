//! The real program on models and files made for the test: what may not reach the screen, what is computed again, and
//! what is there before the model is.
#![cfg(unix)]

#[path = "common/endless.rs"]
mod endless;
#[path = "common/pty.rs"]
mod pty;
#[path = "common/run.rs"]
mod run;
#[path = "common/scripted.rs"]
mod scripted;

use std::path::Path;

use finch::feedback::Interaction;
use finch::paths::Paths;
use finch::store::Store;
use pty::{CTRL_D, Terminal};
use scripted::Then;
use serde_json::json;

/// A chat on the model in `model`, greedy and without automatic training.
fn chat(home: &Path, model: &Path, more: &[&str]) -> Terminal {
    let mut arguments = vec!["--model", model.to_str().unwrap(), "--temperature", "0"];
    arguments.extend(more);
    let finch = env!("CARGO_BIN_EXE_finch");
    let terminal = Terminal::start_with(finch, &arguments, home, &[("FINCH_FEEDBACK_AUTO_TRAIN", "false")]);
    terminal.wait_for_prompt();
    terminal
}

fn last_answer(home: &Path) -> Interaction {
    Store::open(&Paths::at(home).db()).unwrap().last_interaction(None).unwrap().unwrap()
}

/// Whether a terminal shows this as it is: no control, no reordering, nothing hidden. Apart from the program's own rules.
fn is_harmless(text: &str) -> bool {
    text.chars().all(|c| {
        let hidden =
            matches!(u32::from(c), 0xAD | 0x61C | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F | 0xFEFF);
        matches!(c, '\n' | '\t') || !(c.is_control() || hidden)
    })
}

/// Sequences that set the title, clear the screen, colour what follows and go back over what is there; 8-bit ones, some
/// cut in two; a reordering; a hidden character; a byte that is no text.
const HOSTILE: [&[u8]; 17] = [
    b"Look: ",
    b"\x1b]0;owned\x07",
    b"A",
    b"\x1b[2J",
    b"B",
    b"\x1b",
    b"[31mC",
    b"\xc2",
    b"\x9b35mD",
    b"\xe2\x80",
    b"\xaeE",
    b"\rF",
    b"\x08\x08G",
    b"\xe2\x80\x8bH",
    b"\xffI",
    b"\x1bP q\x1b\\",
    b" end.",
];
const SHOWN: &str = "Look: ABCDEFGH\u{FFFD}I end.";

#[test]
fn escape_sequences_of_a_model_do_not_reach_the_screen() {
    let (home, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    scripted::write(model.path(), &HOSTILE, Then::End);
    let mut t = chat(home.path(), model.path(), &[]);
    let before = t.raw().len();
    assert_eq!(t.ask("hello"), SHOWN.replace('\u{FFFD}', ""), "the terminal under test leaves U+FFFD out");
    let raw = t.raw();
    let raw = String::from_utf8_lossy(&raw[before..]);
    for sequence in ["\x1b]", "\x1b[2J", "\x1b[31m", "\u{9b}", "\u{202e}", "\u{200b}", "\x07", "\x08", "\x1bP"] {
        assert!(!raw.contains(sequence), "{sequence:?} in {raw:?}");
    }
    // What the model really wrote is kept; only the screen is spared.
    assert!(last_answer(home.path()).response.starts_with("Look: \x1b]0;owned\x07A\x1b[2JB"));
    // Quoted back, too.
    for line in ["/critical no", "/correct Yes.", "/buffer", "/stats", "/undo"] {
        assert!(is_harmless(&t.ask(line)), "{line}");
    }
    t.send(CTRL_D);
    assert_eq!(t.wait_for_exit(), 0);

    let arguments = ["--model", model.path().to_str().unwrap(), "--temperature", "0", "hello"];
    assert_eq!(run::printed(home.path(), &arguments), format!("{SHOWN}\n"));
}

#[test]
fn answers_break_between_words_on_a_terminal_and_nowhere_else() {
    let (home, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let words: Vec<String> = (0..60).map(|n| format!("{}word{n}", if n == 0 { "" } else { " " })).collect();
    let tokens: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    scripted::write(model.path(), &tokens, Then::End);
    let mut t = chat(home.path(), model.path(), &[]);
    let answer = t.ask("hello");
    assert_eq!(answer.replace('\n', " "), words.concat());
    let rows: Vec<&str> = answer.lines().collect();
    assert_eq!(rows.len(), 5, "{answer}");
    assert!(rows[..4].iter().all(|row| (93..=100).contains(&row.len())), "{answer}");
    t.send(CTRL_D);
    assert_eq!(t.wait_for_exit(), 0);
    let arguments = ["--model", model.path().to_str().unwrap(), "--temperature", "0", "hello"];
    assert_eq!(run::printed(home.path(), &arguments), words.concat() + "\n");
    assert_eq!(last_answer(home.path()).response, words.concat());
}

/// Text as it may stand in files from elsewhere.
const FOUL: &str = "x\u{1b}[31mRED\u{1b}]0;t\u{7}\u{9b}2J\u{202e}y\u{0}\u{8}\rz\u{200b}";

#[test]
fn foul_text_in_files_does_not_reach_the_screen() {
    let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (home, elsewhere) = (home.path(), elsewhere.path());
    let run = |arguments: &[&str], input: &str| -> String {
        let ran = run::piped(home, arguments, input);
        assert!(ran.code.is_some_and(|code| code <= 2), "{arguments:?}: {ran:?}");
        for text in [&ran.out, &ran.error] {
            assert!(is_harmless(text), "{arguments:?}: {text:?}");
        }
        ran.out + &ran.error
    };

    // Imported feedback: the words, the notes, keys that mean nothing.
    let row = |kind: &str| {
        json!({"messages": [{"role": "user", "content": FOUL}, {"role": "assistant", "content": FOUL}], "kind": kind,
            "note": FOUL, "session": FOUL, "model": FOUL, "adapter": FOUL, FOUL: 1, "corrected_response": FOUL})
    };
    assert!(run(&["feedback", "import", "-"], &row("critical").to_string()).contains("1 row imported"));
    assert!(run(&["feedback", "list"], "").contains("RED"));
    run(&["feedback", "good", FOUL.trim_matches('\0').split('\0').next().unwrap()], "");
    run(&["stats"], "");
    let exported = run(&["feedback", "export"], "");
    let first: serde_json::Value = serde_json::from_str(exported.lines().next().unwrap()).unwrap();
    assert_eq!(first["note"], FOUL, "and yet nothing is lost");
    run(&["feedback", "import", "-"], &json!({"messages": [], "kind": FOUL}).to_string());
    run(&["feedback", "import", "-"], &format!("{{{FOUL}"));

    // Adapters: their names, their settings, where they came from.
    let adapters = home.join("adapters");
    let adapter = |name: &str, config: serde_json::Value| {
        let folder = adapters.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        tensors(&folder.join("adapter_model.safetensors"), &["base_model.model.model.layers.0.x.lora_A.weight", FOUL]);
        let made = json!({"base": FOUL, "model": FOUL, "created": "2026-02-06T14:30:25Z", "parameters": {FOUL: FOUL},
            "gate": {"passed": false, "reasons": [FOUL], "measurements": {FOUL: FOUL}}});
        std::fs::write(folder.join("finch.json"), made.to_string()).unwrap();
    };
    let settings = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    adapter("sound", settings.clone());
    adapter("odd\u{1b}[31m", settings);
    adapter("foul", json!({"peft_type": FOUL, "r": 2, "lora_alpha": 4, "target_modules": [FOUL]}));
    assert!(run(&["adapters", "list"], "").contains("sound"));
    for name in ["sound", "foul", "odd\u{1b}[31m"] {
        for action in ["show", "load"] {
            run(&["adapters", action, name], "");
        }
        run(&["adapters", "delete", "--yes", name], "");
    }
    std::fs::remove_dir_all(&adapters).unwrap();

    // Models: names of folders and tensors, settings, templates.
    let model = elsewhere.join("model\u{1b}[31m\u{202e}");
    let name = model.to_str().unwrap();
    run(&["--model", name, "hello"], "");
    scripted::write(&model, &[b"Yes."], Then::End);
    assert!(run(&["--model", name, "hello"], "").contains("Yes."));
    run(&["--model", name, "models", "show"], "");
    run(&["stats"], "");
    let template = "{{ raise_exception('no\x1b[31m' + messages[0].content) }}";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    run(&["--model", name, &format!("hello{}", FOUL.replace('\0', ""))], "");
    std::fs::write(model.join("chat_template.jinja"), "{% \u{1b}[31m").unwrap();
    run(&["--model", name, "hello"], "");
    tensors(&model.join("model.safetensors"), &[FOUL]);
    run(&["--model", name, "hello"], "");
    run(&["--model", name, "models", "show"], "");
    std::fs::write(model.join("config.json"), json!({"model_type": FOUL}).to_string()).unwrap();
    run(&["--model", name, "hello"], "");

    // The configuration.
    std::fs::write(home.join("config.toml"), format!("[model]\n{} = 1\n", toml_string(FOUL))).unwrap();
    assert!(run(&["stats"], "").contains("warning"));
    std::fs::write(home.join("config.toml"), format!("[model]\nname = {}\n", toml_string(FOUL))).unwrap();
    run(&["hello"], "");
    std::fs::write(home.join("config.toml"), format!("[feedback]\nrevise = {}\n", toml_string(FOUL))).unwrap();
    run(&["stats"], "");
    std::fs::write(home.join("config.toml"), "[model\u{1b}[31m\n").unwrap();
    run(&["stats"], "");
}

/// A safetensors file whose tensors have these names.
fn tensors(path: &Path, names: &[&str]) {
    use safetensors::tensor::{Dtype, TensorView};
    let bytes = [0; 8];
    let view = || TensorView::new(Dtype::F32, vec![2, 1], &bytes).unwrap();
    safetensors::serialize_to_file(names.iter().map(|name| (*name, view())), None, path).unwrap();
}

fn toml_string(text: &str) -> String {
    let escaped: String = text.chars().map(|c| format!("\\U{:08X}", u32::from(c))).collect();
    format!("\"{escaped}\"")
}

#[test]
fn a_follow_up_turn_reads_the_prompt_from_the_first_differing_token_on() {
    let (home, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Told again as history an answer is made of bytes. Here they are the tokens that the model wrote.
    scripted::write(model.path(), &[b"O", b"k", b"."], Then::End);
    let mut t = chat(home.path(), model.path(), &[]);
    let figures = |t: &mut Terminal, line: &str| -> (u64, u64, u64) {
        assert_eq!(t.ask(line), "Ok.");
        let timings = last_answer(home.path()).timings;
        let figure = |key: &str| timings[key].as_u64().unwrap();
        (figure("prompt_tokens"), figure("reused_tokens"), figure("generated_tokens"))
    };
    // <|im_start|> "user" "\n" … <|im_end|> "\n" <|im_start|> "assistant" "\n": 1 + 4 + 1 + n + 1 + 1 + 1 + 9 + 1
    let turn = |words: &str| 19 + words.len() as u64;
    let (prompt, reused, generated) = figures(&mut t, "first");
    assert_eq!((prompt, reused), (turn("first"), 0));
    assert!((3..=4).contains(&generated), "three and perhaps the end: {generated}");
    let cached = prompt + 3;
    let (second, reused, _) = figures(&mut t, "and then?");
    assert_eq!((second, reused), (cached + 2 + turn("and then?"), cached));
    let (third, reused, _) = figures(&mut t, "more");
    assert_eq!((third, reused), (second + 3 + 2 + turn("more"), second + 3));
    // A new conversation shares no more than its first letters.
    t.ask("/clear");
    let (prompt, reused, _) = figures(&mut t, "fish");
    assert_eq!((prompt, reused), (turn("fish"), 1 + 4 + 1 + "fi".len() as u64));
    t.ask("/system Be brief.");
    let (_, reused, _) = figures(&mut t, "fish");
    assert_eq!(reused, 1, "<|im_start|>, then `system` instead of `user`");
}

#[test]
fn an_answer_in_other_tokens_than_its_text_is_read_again() {
    let (home, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    scripted::write(model.path(), &[b"A", b"nswered"], Then::End);
    let mut t = chat(home.path(), model.path(), &[]);
    t.ask("first");
    let first = last_answer(home.path()).timings["prompt_tokens"].as_u64().unwrap();
    t.ask("second");
    let reused = last_answer(home.path()).timings["reused_tokens"].as_u64();
    assert_eq!(reused, Some(first + 1), "up to `A`; `nswered` is seven tokens as history");
}

#[test]
fn an_adapter_that_the_gate_refuses_changes_no_answer() {
    let (home, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    scripted::write(model.path(), &[b"Sure", b" thing", b"."], Then::End);
    let arguments = ["--model", model.path().to_str().unwrap(), "--temperature", "0"];
    let wild = [
        ("FINCH_FEEDBACK_THRESHOLD", "2"),
        ("FINCH_LORA_TRAINING_LEARNING_RATE", "0.5"),
        ("FINCH_LORA_TRAINING_MAX_STEPS", "20"),
    ];
    let mut t = Terminal::start_with(env!("CARGO_BIN_EXE_finch"), &arguments, home.path(), &wild);
    for line in ["first", "second"] {
        assert_eq!(t.ask(line), "Sure thing.");
        t.ask("/correct No way, never ever.");
    }
    t.wait_for("✗ Background training completed, but the new adapter is not used");
    t.wait_for("Refused: ");
    assert_eq!(t.ask("first"), "Sure thing.");
    assert_eq!(last_answer(home.path()).adapter, None);
    let listed = run::printed(home.path(), &["adapters", "list"]);
    assert!(listed.contains("refused by the gate") && !listed.contains("live"), "{listed}");
    assert!(t.ask("/train status").contains("0 new examples"), "what was refused is not tried again");
    assert_eq!(t.shown().matches("Training threshold reached").count(), 1);
}

#[test]
fn the_prompt_is_there_before_the_model() {
    let (home, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    endless::write(model.path(), 2048);
    swell(model.path(), 400_000);
    let mut t = chat(home.path(), model.path(), &["--max-tokens", "4"]);
    assert!(t.ask("/model").contains("still loading"));
    assert!(
        t.ask("/stats").contains("no answer") || !t.shown().contains("error"),
        "what needs no model waits for none"
    );
    let answer = t.ask("hello");
    assert!(answer.contains("!!!!") && answer.contains("4 tokens"), "a question waits for it: {answer}");
    assert!(!t.ask("/model").contains("loading"));
}

/// Gives an all-zero model a vocabulary of `tokens`, which takes its time to load, as a file of holes.
fn swell(folder: &Path, tokens: u64) {
    let edit = |name: &str, edit: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap();
        edit(&mut json);
        std::fs::write(folder.join(name), json.to_string()).unwrap();
    };
    edit("config.json", &|config| config["vocab_size"] = tokens.into());
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let mut head = serde_json::Map::new();
    let mut at = 0;
    for (name, info) in header.tensors() {
        let mut shape = info.shape.clone();
        if name == "model.embed_tokens.weight" {
            shape[0] = tokens as usize;
        }
        let end = at + 2 * shape.iter().product::<usize>();
        head.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let head = serde_json::Value::Object(head).to_string();
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(head.as_bytes());
    let path = folder.join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len((bytes.len() + at) as u64).unwrap();
}
