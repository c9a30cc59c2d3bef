use super::*;

fn resolve(args: &[&str]) -> Result<Invocation> {
    let cli = Cli::try_parse_from(std::iter::once("finch").chain(args.iter().copied()));
    cli.unwrap_or_else(|e| panic!("{args:?}: {e}")).resolve()
}

fn command(args: &[&str]) -> Command {
    match resolve(args) {
        Ok(Invocation::Command { command, .. }) => command,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn prompt(args: &[&str]) -> Option<String> {
    match resolve(args) {
        Ok(Invocation::Chat { prompt, .. }) => prompt,
        other => panic!("{args:?}: {other:?}"),
    }
}

#[test]
fn definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn words_are_a_prompt_and_none_is_the_chat() {
    assert_eq!(prompt(&[]), None);
    assert_eq!(prompt(&["what", "is  rust?"]).as_deref(), Some("what is  rust?"));
    assert_eq!(prompt(&["-p", "adapters"]).as_deref(), Some("adapters"));
    assert_eq!(prompt(&["-p", "adapter list"]).as_deref(), Some("adapter list"));
    assert_eq!(prompt(&["adapter list"]).as_deref(), Some("adapter list"), "one quoted argument is a sentence");
    assert_eq!(prompt(&["--", "--model"]).as_deref(), Some("--model"));
}

#[test]
fn sentences_that_begin_like_a_command_stay_prompts() {
    for words in [&["state", "the", "capital"][..], &["trains", "are", "late"], &["help", "me", "sort"], &["the"]] {
        assert_eq!(prompt(words), Some(words.join(" ")));
    }
}

#[test]
fn a_near_miss_is_a_usage_error_that_names_the_command_and_p() {
    for (args, meant) in [
        (&["adapter", "list"][..], "`finch adapters list`"),
        (&["adaptors", "rolback"], "`finch adapters rollback`"),
        (&["trian"], "`finch train`"),
        (&["stat"], "`finch stats`"),
        (&["--model", "builtin", "model", "show"], "`finch models show`"),
    ] {
        let error = resolve(args).expect_err("near miss");
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.message().contains(meant), "{error}");
        assert!(error.hint_text().is_some_and(|h| h.contains("finch -p")), "{error:?}");
    }
}

#[test]
fn an_unknown_inner_subcommand_is_an_error() {
    let error = Cli::try_parse_from(["finch", "adapters", "lst"]).expect_err("no such subcommand");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("list"), "{error}");
}

#[test]
fn an_empty_prompt_is_a_usage_error() {
    for args in [&["-p", ""][..], &["  "]] {
        assert_eq!(resolve(args).expect_err("empty").kind().exit_code(), 2);
    }
}

#[test]
fn chat_flags_override_configuration_keys() {
    let Ok(Invocation::Chat { args, model, .. }) = resolve(&[
        "--model",
        "builtin",
        "--temperature",
        "0.2",
        "--top-p",
        "0.9",
        "--top-k",
        "5",
        "--repetition-penalty",
        "1.1",
        "--max-tokens",
        "64",
        "--draft",
        "prompt",
        "--seed",
        "7",
        "--system",
        "Be brief.",
        "--no-thinking",
        "hello",
    ]) else {
        panic!("no chat")
    };
    let keys = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "draft"]
        .map(|k| format!("generation.{k}"));
    let values = ["0.2", "0.9", "5", "1.1", "64", "prompt"];
    let expected: Vec<_> = keys.iter().map(String::as_str).zip(values.map(String::from)).collect();
    assert_eq!(args.overrides(), expected);
    assert_eq!((args.seed, args.system.as_deref(), args.thinking()), (Some(7), Some("Be brief."), Some(false)));
    assert_eq!(model.overrides(), [("model.name", "builtin".to_string())]);
}

#[test]
fn the_last_thinking_flag_wins_and_none_leaves_it_to_the_model() {
    let thinking = |args: &[&str]| match resolve(args) {
        Ok(Invocation::Chat { args, .. }) => args.thinking(),
        other => panic!("{other:?}"),
    };
    assert_eq!(thinking(&["--no-thinking", "--thinking"]), Some(true));
    assert_eq!(thinking(&["--thinking", "--no-thinking"]), Some(false));
    assert_eq!(thinking(&[]), None);
}

#[test]
fn train_takes_every_flag_of_its_contract() {
    let Command::Train(args) = command(&[
        "train",
        "--data",
        "d.jsonl",
        "--objective",
        "sft",
        "--model",
        "m",
        "--output",
        "o",
        "--init-adapter",
        "i",
        "--order",
        "file",
        "--steps",
        "8",
        "--batch-size",
        "2",
        "--gradient-accumulation",
        "3",
        "--learning-rate",
        "1e-3",
        "--warmup-ratio",
        "0.1",
        "--schedule",
        "linear",
        "--weight-decay",
        "0.01",
        "--max-grad-norm",
        "1",
        "--beta",
        "0.1",
        "--sft-weight",
        "1",
        "--replay",
        "0.5",
        "--eval-split",
        "0.1",
        "--metrics",
        "m.jsonl",
        "--seed",
        "1",
        "--max-length",
        "128",
    ]) else {
        panic!("no train")
    };
    assert_eq!((args.objective, args.order, args.schedule), (Objective::Sft, Some(Order::File), Some(Shape::Linear)));
    assert_eq!((args.steps, args.batch_size, args.gradient_accumulation), (Some(8), Some(2), Some(3)));
    assert_eq!(args.learning_rate, Some(1e-3));
    let overrides = args.overrides();
    assert!(overrides.contains(&("lora.training.schedule", "linear".to_string())), "{overrides:?}");
    let Command::Train(args) = command(&["train", "--rank", "4", "--targets", "q_proj,v_proj"]) else {
        panic!("no train")
    };
    assert_eq!(args.overrides(), [("lora.rank", "4".to_string()), ("lora.targets", "q_proj,v_proj".to_string())]);
    assert!(
        Cli::try_parse_from(["finch", "train", "--init-adapter", "a", "--rank", "4"]).is_err(),
        "the adapter gives it"
    );
}

#[test]
fn ratings_from_scripts() {
    let Command::Feedback(FeedbackCommand::Critical(args)) =
        command(&["feedback", "critical", "Never", "use  .unwrap()!", "--id", "4"])
    else {
        panic!("no rating")
    };
    assert_eq!((args.note().as_deref(), args.id), (Some("Never use  .unwrap()!"), Some(4)));
    assert!(
        matches!(command(&["feedback", "normal"]), Command::Feedback(FeedbackCommand::Good(a)) if a.note().is_none())
    );
    assert!(matches!(command(&["feedback", "rate", "5"]), Command::Feedback(FeedbackCommand::Rate { stars: 5, .. })));
    assert!(Cli::try_parse_from(["finch", "feedback", "rate", "6"]).is_err());
    assert!(Cli::try_parse_from(["finch", "feedback", "correct"]).is_err());
}

#[test]
fn chat_flags_before_a_subcommand_are_refused_and_the_model_is_not() {
    assert_eq!(resolve(&["--temperature", "1", "stats"]).expect_err("refused").kind().exit_code(), 2);
    let model = |args: &[&str]| match resolve(args) {
        Ok(Invocation::Command { model, .. }) => model.overrides(),
        other => panic!("{args:?}: {other:?}"),
    };
    assert_eq!(model(&["--model", "m", "stats"]), [("model.name", "m".to_string())]);
    let both = [("model.name", "m".to_string()), ("model.quantize", "q8_0".to_string())];
    assert_eq!(model(&["bench", "-m", "m", "--quantize", "q8_0"]), both);
    let error = resolve(&["models", "quantize", "a", "b.gguf", "--quantize", "q8_0"]).unwrap_err();
    assert!(error.kind().exit_code() == 2 && error.message().contains("--type"), "{error}");
}

#[test]
fn help_by_word() {
    let help = |args: &[&str]| match resolve(args) {
        Ok(Invocation::Help(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(help(&["help"]).contains("Usage: finch"));
    assert!(help(&["help", "adapters"]).contains("rollback"));
    assert!(help(&["help", "adapters", "load"]).contains("--force"));
}
