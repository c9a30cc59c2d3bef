//! Tests of the configuration: every rule of the design, with its error or warning in words.

use super::*;

fn file(text: &str) -> Result<(Config, Vec<String>)> {
    resolve(Some(("config.toml", text)), &[], &[])
}

fn config(text: &str) -> Config {
    let (config, warnings) = file(text).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    config
}

/// The error of a file, which has to be a usage error with a hint.
fn error(text: &str) -> String {
    let e = file(text).unwrap_err();
    assert_eq!(e.kind().exit_code(), 2, "{text}");
    assert!(e.hint_text().is_some());
    e.message().to_string()
}

fn warning(text: &str) -> String {
    let (config, warnings) = file(text).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings[0].clone()
}

fn env(name: &str, value: &str) -> Result<(Config, Vec<String>)> {
    resolve(None, &[(name.to_string(), value.to_string())], &[])
}

#[test]
fn every_key_has_the_designs_default() {
    let written = r#"
        [model]
        name = "auto"
        [generation]
        max_tokens = 1024
        [feedback]
        critical_weight = 10.0
        medium_weight = 3.0
        good_weight = 1.0
        buffer_capacity = 100
        threshold = 10
        auto_train = true
        revise = "ask"
        lesson_tokens = 256
        [lora]
        rank = 16
        alpha = 32
        dropout = 0.0
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        variant = "lora"
        [lora.training]
        learning_rate = "auto"
        batch_size = 4
        epochs = "auto"
        max_steps = 300
        warmup_ratio = 0.05
        schedule = "cosine"
        weight_decay = 0.0
        max_grad_norm = 1.0
        seed = 42
        [teacher]
        enabled = false
        sampling_rate = 0.05
    "#;
    assert_eq!(config(written), Config::default());
    assert_eq!(config(""), Config::default());
    assert_eq!(resolve(None, &[], &[]).unwrap(), (Config::default(), vec![]));
    assert_eq!(Config::default().feedback.rules(), FeedbackConfig::default());
}

#[test]
fn every_key_can_be_set() {
    let c = config(
        r#"
        model.name = "/models/Qwen3-0.6B"
        model.quantize = "q4_k_m"
        [generation]
        temperature = 0.7
        top_p = 0.8
        top_k = 20
        repeat_penalty = 1.05
        max_tokens = 64
        draft = "prompt"
        [feedback]
        critical_weight = 8
        medium_weight = 2.5
        good_weight = 0.5
        buffer_capacity = 50
        threshold = 5
        auto_train = false
        revise = "never"
        lesson_tokens = 64
        [lora]
        rank = 8
        alpha = 16
        dropout = 0.05
        targets = ["v_proj", "q_proj", "v_proj"]
        variant = "rslora"
        training = { learning_rate = 1e-4, batch_size = 2, epochs = 3, max_steps = 30, warmup_ratio = 0.1, schedule = "linear", weight_decay = 0.01, max_grad_norm = 0, seed = 7 }
        [teacher]
        enabled = true
        sampling_rate = 1
    "#,
    );
    assert_eq!(c.model.name, "/models/Qwen3-0.6B");
    assert_eq!(c.model.quantize, Some(Quantization::Q4KM));
    let g = GenerationSection {
        temperature: Some(0.7),
        top_p: Some(0.8),
        top_k: Some(20),
        repetition_penalty: Some(1.05),
        max_tokens: 64,
        draft: Draft::Prompt,
    };
    assert_eq!(c.generation, g);
    let f = FeedbackSection {
        critical_weight: 8.0,
        medium_weight: 2.5,
        good_weight: 0.5,
        buffer_capacity: 50,
        threshold: 5,
        auto_train: false,
        revise: Revise::Never,
        lesson_tokens: 64,
    };
    assert_eq!(c.feedback, f);
    let t = TrainingSection {
        learning_rate: Auto::Value(1e-4),
        batch_size: 2,
        epochs: Auto::Value(3),
        max_steps: 30,
        warmup_ratio: 0.1,
        schedule: Schedule::Linear,
        weight_decay: 0.01,
        max_grad_norm: 0.0,
        seed: 7,
    };
    let l = LoraSection {
        rank: 8,
        alpha: 16.0,
        dropout: 0.05,
        targets: vec![Target::Q, Target::V],
        variant: Variant::Rslora,
        training: t,
    };
    assert_eq!(c.lora, l);
    assert_eq!(c.teacher, TeacherSection { enabled: true, sampling_rate: 1.0 });
    let settings = c.lora.settings();
    assert!(settings.use_rslora && settings.rank == 8 && settings.targets == [Target::Q, Target::V]);
    assert_eq!(config("lora.training.epochs = 3").lora.training.epochs.value(), Some(3));
    assert_eq!(Config::default().lora.training.epochs.value(), None);
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let text = "[lora]\nrank = 4\nalpha = 4\ndropout = 0.1";
    let variables = [("FINCH_LORA_ALPHA", "5"), ("FINCH_LORA_RANK", "5")];
    let variables = variables.map(|(n, v)| (n.to_string(), v.to_string()));
    let (c, _) = resolve(Some(("config.toml", text)), &variables, &[("lora.rank", "6")]).unwrap();
    assert_eq!((c.lora.rank, c.lora.alpha, c.lora.dropout), (6, 5.0, 0.1));
    assert_eq!(c.lora.training.batch_size, 4);
    // A bad value is an error also where a stronger source would win: nobody should have to find it later.
    assert!(resolve(Some(("config.toml", "lora.rank = 0")), &[], &[("lora.rank", "6")]).is_err());
}

#[test]
fn the_environment_names_every_key() {
    for (name, value) in [
        ("FINCH_MODEL_NAME", "builtin"),
        ("FINCH_GENERATION_TEMPERATURE", "0.5"),
        ("FINCH_GENERATION_REPEAT_PENALTY", "1.1"),
        ("FINCH_GENERATION_MAX_TOKENS", "7"),
        ("FINCH_FEEDBACK_AUTO_TRAIN", "off"),
        ("FINCH_LORA_TARGETS", "q_proj, v_proj"),
        ("FINCH_LORA_TRAINING_LEARNING_RATE", "2e-4"),
        ("FINCH_LORA_TRAINING_EPOCHS", "3"),
        ("FINCH_LORA_TRAINING_SCHEDULE", "constant"),
        ("FINCH_TEACHER_ENABLED", "1"),
    ] {
        let (config, warnings) = env(name, value).unwrap();
        assert_ne!(config, Config::default(), "{name}");
        assert!(warnings.is_empty());
    }
    let variables: Vec<String> = keys::all().map(|(path, _)| variable(path)).collect();
    for (i, name) in variables.iter().enumerate() {
        assert!(!variables[..i].contains(name) && !OTHER_VARIABLES.contains(&name.as_str()), "{name} is ambiguous");
    }
    let auto = env("FINCH_LORA_TRAINING_LEARNING_RATE", "auto").unwrap().0;
    assert_eq!(auto, Config::default());

    let e = env("FINCH_LORA_RANK", "many").unwrap_err();
    assert_eq!(e.message(), "FINCH_LORA_RANK: lora.rank should be a whole number from 1 to 1024, it is \"many\"");
    assert_eq!(e.kind().exit_code(), 2);

    for (name, value) in
        [("FINCH_HOME", "/x"), ("FINCH_NETWORK", "candle"), ("FINCH_LORA_RANK", ""), ("FINCH_ROOT", "1")]
    {
        assert_eq!(env(name, value).unwrap(), (Config::default(), vec![]), "{name}");
    }
    let (_, warnings) = env("FINCH_LORA_RNAK", "3").unwrap();
    assert_eq!(warnings, ["FINCH_LORA_RNAK in the environment is ignored; did you mean FINCH_LORA_RANK?"]);
}

#[cfg(unix)]
#[test]
fn only_finchs_variables_are_read() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let bad = || OsString::from_vec(vec![0xff]);
    let ok = [
        ("PATH".into(), bad()),
        ("FINCH_HOME".into(), bad()),
        ("FINCH_B".into(), "2".into()),
        ("FINCH_A".into(), "1".into()),
    ];
    let read = source::variables(ok.into_iter()).unwrap();
    assert_eq!(read, [("FINCH_A".to_string(), "1".to_string()), ("FINCH_B".to_string(), "2".to_string())]);
    let e = source::variables([("FINCH_MODEL_NAME".into(), bad())].into_iter()).unwrap_err();
    assert_eq!(e.kind().exit_code(), 2);
}
#[test]
fn a_bad_value_names_file_line_and_key() {
    assert_eq!(
        error("[lora]\n# the rank\nrank = \"big\"\n"),
        "config.toml:3: lora.rank should be a whole number from 1 to 1024, it is \"big\""
    );
    for (text, line, key, rest) in [
        ("lora.rank = 0", 1, "lora.rank", "it is 0"),
        ("lora.rank = -1", 1, "lora.rank", "it is -1"),
        ("lora.rank = 16.0", 1, "lora.rank", "it is 16"),
        ("lora.rank = 99999999999999999999", 1, "lora.rank", "too large"),
        ("\n\nlora.rank = [1]", 3, "lora.rank", "it is [1]"),
        ("[lora.rank]\na = 1", 1, "lora.rank", "a table"),
        ("lora.rank = 1979-05-27", 1, "lora.rank", "a date"),
        ("generation.temperature = -0.1", 1, "generation.temperature", "a number from 0 to 2"),
        ("generation.temperature = nan", 1, "generation.temperature", "NaN"),
        ("generation.temperature = inf", 1, "generation.temperature", "inf"),
        ("generation.top_p = 0", 1, "generation.top_p", "above 0, 1 at most"),
        ("generation.top_p = 1.5", 1, "generation.top_p", "1.5"),
        ("generation.top_k = -3", 1, "generation.top_k", "-3"),
        ("generation.repeat_penalty = 0", 1, "generation.repetition_penalty", "above 0"),
        ("generation.max_tokens = 0", 1, "generation.max_tokens", "from 1"),
        ("feedback.good_weight = 0", 1, "feedback.good_weight", "above 0"),
        ("feedback.auto_train = \"yes\"", 1, "feedback.auto_train", "true or false"),
        ("feedback.auto_train = 1", 1, "feedback.auto_train", "true or false"),
        ("feedback.revise = \"maybe\"", 1, "feedback.revise", "one of \"ask\", \"always\", \"never\""),
        ("lora.dropout = 1.0", 1, "lora.dropout", "from 0 to 0.9"),
        ("lora.alpha = 0", 1, "lora.alpha", "above 0"),
        ("lora.targets = []", 1, "lora.targets", "one or more of q_proj"),
        ("lora.targets = [\"lm_head\"]", 1, "lora.targets", "it is [\"lm_head\"]"),
        ("lora.targets = \"q_proj\"", 1, "lora.targets", "a list"),
        ("lora.targets = [1]", 1, "lora.targets", "a list"),
        ("lora.variant = \"pissa\"", 1, "lora.variant", "one of \"lora\""),
        ("lora.training.learning_rate = 0", 1, "lora.training.learning_rate", "\"auto\" or a number above 0"),
        ("lora.training.learning_rate = \"1e-4\"", 1, "lora.training.learning_rate", "it is \"1e-4\""),
        ("lora.training.epochs = 1.5", 1, "lora.training.epochs", "\"auto\" or a whole number"),
        ("lora.training.seed = -1", 1, "lora.training.seed", "whole number from 0"),
        ("teacher.sampling_rate = 2", 1, "teacher.sampling_rate", "from 0 to 1"),
        ("model.name = \" \"", 1, "model.name", "a model"),
        ("model.name = 3", 1, "model.name", "a model"),
        ("lora = 3", 1, "lora", "should be a section, it is 3"),
        ("[lora]\ntraining = \"x\"", 2, "lora.training", "should be a section"),
        ("[[lora]]\nrank = 3", 1, "lora", "should be a section"),
    ] {
        let got = error(text);
        assert!(got.starts_with(&format!("config.toml:{line}: {key} ")) && got.contains(rest), "{text:?}: {got}");
    }
    let long = error(&format!("feedback.revise = \"{}\\u001b[31m\"", "x".repeat(500)));
    assert!(long.len() < 250 && !long.contains('\u{1b}'), "{long}");
}

#[test]
fn broken_toml_names_its_line() {
    for (text, line) in [("[lora\n", 1), ("[lora]\nrank = \n", 2), ("a = 1\na = 2\n", 2), ("\n\n= 3", 3)] {
        let got = error(text);
        assert!(got.starts_with(&format!("config.toml:{line}: ")), "{text:?}: {got}");
        assert!(!got.contains('\n'), "{got:?}");
    }
}

#[test]
fn an_unknown_key_is_a_warning_that_names_the_nearest() {
    for (text, expected) in [
        ("[lora]\nrnak = 8", "config.toml:2: unknown key lora.rnak is ignored; did you mean lora.rank?"),
        (
            "[lora]\nlearning_rate = 1",
            "config.toml:2: unknown key lora.learning_rate is ignored; did you mean lora.training.learning_rate?",
        ),
        (
            "[lora.training]\nlearning-rate = 1",
            "config.toml:2: unknown key lora.training.learning-rate is ignored; did you mean lora.training.learning_rate?",
        ),
        ("[generatoin]\ntemperature = 1", "config.toml:1: unknown key generatoin is ignored; did you mean generation?"),
        ("rank = 8", "config.toml:1: unknown key rank is ignored; did you mean lora.rank?"),
        ("temprature = 1", "config.toml:1: unknown key temprature is ignored; did you mean generation.temperature?"),
        (
            "\"\\u001b[31mx\\ny\" = 1",
            "config.toml:1: unknown key x y is ignored; the sections are model, generation, feedback, lora, lora.training, teacher",
        ),
        (
            "[teacher]\nxyzzy = 1",
            "config.toml:2: unknown key teacher.xyzzy is ignored; [teacher] has enabled, sampling_rate",
        ),
        (
            "[xyzzy]\na = 1",
            "config.toml:1: unknown key xyzzy is ignored; the sections are model, generation, feedback, lora, lora.training, teacher",
        ),
        (
            "[lora.rslora]\na = 1",
            "config.toml:1: unknown key lora.rslora is ignored; [lora] has rank, alpha, dropout, targets, variant",
        ),
    ] {
        assert_eq!(warning(text), expected);
    }
    let (c, warnings) = file("[generation]\nrepetition_penalty = 1.2\nrepeat_penalty = 1.3").unwrap();
    assert_eq!(c.generation.repetition_penalty, Some(1.2));
    assert!(warnings[0].starts_with("config.toml:3: generation.repeat_penalty is ignored"), "{warnings:?}");
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    assert_eq!(
        error("[feedback]\nbuffer_capacity = 5"),
        "config.toml:2: feedback.threshold is 10, more than feedback.buffer_capacity (5): no training would start"
    );
    let got = error("[feedback]\nbuffer_capacity = 5\nthreshold = 6");
    assert!(got.starts_with("config.toml:3: feedback.threshold is 6"), "{got}");
    config("[feedback]\nbuffer_capacity = 5\nthreshold = 5");
}

#[test]
fn flags_are_judged_like_the_file() {
    let flag = |path: &str, value: &str| resolve(None, &[], &[(path, value)]);
    assert_eq!(flag("generation.temperature", "0").unwrap().0.generation.temperature, Some(0.0));
    let e = flag("generation.temperature", "hot").unwrap_err();
    assert_eq!(e.message(), "command line: generation.temperature should be a number from 0 to 2, it is \"hot\"");
    assert_eq!(e.kind().exit_code(), 2);
    assert_eq!(flag("lora.nothing", "1").unwrap_err().kind().exit_code(), 2);
}

#[test]
fn variants_are_what_new_adapters_are_made_with() {
    for (variant, rslora, dora) in [("lora", false, false), ("rslora", true, false), ("dora", false, true)] {
        let settings = config(&format!("lora.variant = \"{variant}\"")).lora.settings();
        assert_eq!((settings.use_rslora, settings.use_dora), (rslora, dora), "{variant}");
    }
}

#[test]
fn load_reads_the_folders_file() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::at(dir.path());
    let none: [(&str, &str); 0] = [];
    Config::load(&paths, &none).unwrap();
    std::fs::write(paths.config(), "[lora]\nrank = 3\n").unwrap();
    assert_eq!(Config::load(&paths, &none).unwrap().0.lora.rank, 3);
    assert_eq!(Config::load(&paths, &[("lora.rank", "9".to_string())]).unwrap().0.lora.rank, 9);
    std::fs::write(paths.config(), "[lora]\nrank = 0\n").unwrap();
    let e = Config::load(&paths, &none).unwrap_err();
    assert!(e.message().contains("config.toml:2: lora.rank"), "{e}");
    std::fs::write(paths.config(), b"[lora]\n\xff\n").unwrap();
    let e = Config::load(&paths, &none).unwrap_err();
    assert!(e.kind().exit_code() == 2 && e.message().contains("line 2"), "{e}");
    std::fs::remove_file(paths.config()).unwrap();
    std::fs::create_dir(paths.config()).unwrap();
    assert_eq!(Config::load(&paths, &none).unwrap_err().kind().exit_code(), 2);
}

#[test]
fn of_many_unknown_keys_the_first_are_named() {
    let text: String = (0..5000).map(|i| format!("[section{i}]\nk = 1\n")).collect();
    let (_, warnings) = read("config.toml", &text).unwrap();
    assert_eq!(warnings.len(), 21);
    assert!(warnings[20].contains("config.toml:41: this key and those after it"), "{}", warnings[20]);
}
