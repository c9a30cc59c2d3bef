use super::*;
use crate::paths::Paths;

const USER: &str = r#"{"role":"user","content":"hi"}"#;
const ANSWER: &str = r#"{"role":"assistant","content":"yes"}"#;

/// A model's folder without weights: the tests' tokenizer (one id a byte, "hi" is 256, `<|im_end|>` is 302), plain turns.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    put("tokenizer.json", crate::model::tokenizer::tests::tokenizer_json().to_string());
    put(
        "config.json",
        r#"{"model_type":"qwen3","vocab_size":320,"hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,
            "num_attention_heads":1,"head_dim":8}"#
            .to_string(),
    );
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>{% if enable_thinking is false %}!{% endif %}{% endif %}";
    put("chat_template.jinja", template.to_string());
    folder
}

fn read(text: &str, max_length: usize) -> Result<DataSet> {
    let folder = folder();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    let source = ModelSource::Folder(folder.path().to_path_buf());
    let set = Reader::new(source, 320, max_length).read(&path);
    set.map_err(|e| {
        let message = e.message().replace(&Paths::display(&path), "rows.jsonl");
        Error::failure(message).hint(e.hint_text().unwrap_or_default())
    })
}

fn lesson(row: &str) -> Lesson {
    let set = read(row, 1000).unwrap();
    assert_eq!(set.rows.len(), 1);
    set.rows[0].lesson.clone()
}

fn fault(row: &str) -> String {
    read(&format!("{{\"input_ids\":[1,2],\"labels\":[-100,2]}}\n{row}"), 1000).unwrap_err().message().to_string()
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

const END: u32 = 302;

#[test]
fn messages_learn_the_last_answer_after_the_templates_prompt() {
    let first = r#"{"role":"assistant","content":"no"}"#;
    let Lesson::Imitate(tokens) = lesson(&format!(r#"{{"messages":[{USER},{first},{USER},{ANSWER},{USER}]}}"#)) else {
        panic!("to imitate")
    };
    let prompt = [
        [vec![301], bytes("user:"), vec![256, END]].concat(),
        [vec![301], bytes("assistant:no"), vec![END]].concat(),
        [vec![301], bytes("user:"), vec![256, END]].concat(),
        vec![301],
    ]
    .concat();
    assert_eq!(tokens, Tokens::new(&prompt, &[bytes("yes"), vec![END]].concat()));
}

#[test]
fn the_thinking_setting_reaches_the_template() {
    let Lesson::Imitate(tokens) = lesson(&format!(r#"{{"messages":[{USER},{ANSWER}],"thinking":false}}"#)) else {
        panic!("to imitate")
    };
    assert_eq!(tokens.ids.iter().filter(|id| **id == u32::from(b'!')).count(), 1);
}

#[test]
fn strings_take_no_template_and_end_with_the_end_of_turn() {
    let expected = Tokens::new(&bytes("ab"), &[bytes("cd"), vec![END]].concat());
    assert_eq!(lesson(r#"{"prompt":"ab","completion":"cd"}"#), Lesson::Imitate(expected.clone()));
    assert_eq!(
        lesson(r#"{"prompt":"ab","completion":"cd","label":false}"#),
        Lesson::Judged { tokens: expected.clone(), good: false }
    );
    let Lesson::Pair { chosen, rejected } = lesson(r#"{"prompt":"ab","chosen":"cd","rejected":"x"}"#) else {
        panic!("a pair")
    };
    assert_eq!((chosen, rejected), (expected, Tokens::new(&bytes("ab"), &[bytes("x"), vec![END]].concat())));
}

#[test]
fn message_lists_are_read_as_trl_writes_them() {
    let from_lists = lesson(&format!(r#"{{"prompt":[{USER}],"completion":[{ANSWER}]}}"#));
    assert_eq!(from_lists, lesson(&format!(r#"{{"messages":[{USER},{ANSWER}]}}"#)));
    assert_eq!(from_lists, lesson(&format!(r#"{{"prompt":[{USER}],"completion":"yes"}}"#)));
    let Lesson::Pair { chosen, .. } = lesson(&format!(r#"{{"prompt":[{USER}],"chosen":[{ANSWER}],"rejected":"no"}}"#))
    else {
        panic!("a pair")
    };
    assert_eq!(Lesson::Imitate(chosen), from_lists);
}

#[test]
fn special_strings_in_a_prompt_stay_text() {
    let Lesson::Imitate(tokens) = lesson(r#"{"prompt":"<|im_end|>","completion":"<|im_end|>"}"#) else {
        panic!("to imitate")
    };
    assert_eq!(tokens.ids.iter().filter(|id| **id == END).count(), 1, "only the one that ends the turn");
}

#[test]
fn tokenised_rows_are_taken_as_they_are() {
    let row = r#"{"input_ids":[1,2,3,4],"labels":[1,-100,3,4],"weight":10}"#;
    let set = read(row, 1000).unwrap();
    assert_eq!(set.rows[0].weight, 10.0);
    let tokens = Tokens { ids: vec![1, 2, 3, 4], targets: vec![false, false, true, true] };
    assert_eq!(set.rows[0].lesson, Lesson::Imitate(tokens));
    let pair = r#"{"prompt_ids":[1],"chosen_ids":[2],"rejected_ids":[3]}"#;
    assert_eq!(lesson(pair), Lesson::Pair { chosen: Tokens::new(&[1], &[2]), rejected: Tokens::new(&[1], &[3]) });
    let judged = r#"{"prompt_ids":[1],"completion_ids":[2],"label":true}"#;
    assert_eq!(lesson(judged), Lesson::Judged { tokens: Tokens::new(&[1], &[2]), good: true });
}

#[test]
fn tokenised_rows_need_no_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, r#"{"input_ids":[1,2],"labels":[-100,2]}"#).unwrap();
    let mut reader = Reader::new(ModelSource::Folder(folder.path().to_path_buf()), 10, 100);
    assert_eq!(reader.read(&path).unwrap().rows.len(), 1);
}

#[test]
fn errors_name_file_line_and_field() {
    for (row, expected) in [
        ("{", "rows.jsonl:2: not JSON"),
        (r#"{"text":"x"}"#, "rows.jsonl:2: the row has none of messages, completion"),
        (r#"{"messages":[],"prompt":"a","completion":"b"}"#, "the row has both messages and completion"),
        (r#"{"messages":"x"}"#, "rows.jsonl:2: messages should be a list of messages, it is \"x\""),
        (r#"{"messages":[{"role":"user","content":"x"}]}"#, "messages holds no assistant message"),
        (r#"{"messages":[{"role":"assistant","content":"x"}]}"#, "nothing stands before the last assistant message"),
        (r#"{"completion":"x"}"#, "rows.jsonl:2: prompt is missing"),
        (r#"{"prompt":"x","chosen":"x"}"#, "rows.jsonl:2: rejected is missing"),
        (r#"{"prompt":"x","completion":[]}"#, "completion should be text or a list of one assistant message"),
        (r#"{"prompt":"x","completion":"y","label":1}"#, "label should be true or false, it is 1"),
        (r#"{"prompt":"x","completion":"y","weight":0}"#, "weight is 0, it should be a number above 0"),
        (r#"{"input_ids":[1,2]}"#, "labels is missing"),
        (r#"{"input_ids":[1,2],"labels":[2]}"#, "labels has 1 entries, input_ids 2"),
        (r#"{"input_ids":[1,2],"labels":[-100,3]}"#, "labels[1] is 3, it should be -100 or input_ids[1] (2)"),
        (r#"{"input_ids":[1,2],"labels":[1,-100]}"#, "there is nothing to learn"),
        (r#"{"input_ids":[1,320],"labels":[-100,320]}"#, "input_ids[1] is 320; the model's token ids go from 0 to 319"),
        (r#"{"prompt_ids":[],"completion_ids":[1]}"#, "there is nothing to learn"),
        (r#"{"prompt_ids":[1],"chosen_ids":[1],"rejected_ids":[]}"#, "rejected: there is nothing to learn"),
    ] {
        let fault = fault(row);
        assert!(fault.starts_with("rows.jsonl:2: ") && fault.contains(expected), "{row}\n{fault}");
    }
}

#[test]
fn long_rows_are_skipped_and_named_and_strange_fields_told() {
    let rows = r#"{"prompt":"abc","completion":"d"}
        {"prompt":"abcdef","completion":"d","wieght":3}
        {"prompt":"abc","chosen":"d","rejected":"defg"}"#;
    let set = read(rows, 5).unwrap();
    assert_eq!(set.rows.iter().map(|r| r.line).collect::<Vec<_>>(), [1]);
    assert_eq!(set.skipped, [(2, 8), (3, 8)]);
    assert_eq!(set.unknown.iter().collect::<Vec<_>>(), ["wieght"]);
}

#[test]
fn an_objective_takes_its_rows_and_refuses_others() {
    let imitate = r#"{"prompt":"a","completion":"b","weight":2}"#;
    let (good, bad) =
        (r#"{"prompt":"a","completion":"b","label":true}"#, r#"{"prompt":"a","completion":"b","label":false}"#);
    let pair = r#"{"prompt":"a","chosen":"b","rejected":"c"}"#;
    let rows = |text: &str, objective| read(text, 100).unwrap().rows(objective, 0.1, 0.0);
    let sft = rows(&format!("{imitate}\n{good}"), Objective::Sft).unwrap();
    assert!(matches!(sft[0], Row { goal: Goal::Imitate(_), weight: 2.0 }));
    assert!(matches!(&rows(pair, Objective::Dpo).unwrap()[0].goal, Goal::Prefer(p) if p.dpop == 0.0 && p.sft == 0.0));
    assert!(matches!(&rows(bad, Objective::Kto).unwrap()[0].goal, Goal::Judge(j) if !j.good));
    for (row, objective, fits) in [
        (bad, Objective::Sft, "--objective kto"),
        (pair, Objective::Sft, "--objective dpo"),
        (imitate, Objective::Dpo, "--objective sft"),
        (imitate, Objective::Kto, "--objective sft"),
        (pair, Objective::Kto, "--objective dpo"),
    ] {
        let error = rows(row, objective).unwrap_err();
        assert!(error.message().contains(":1: the row ") && error.hint_text().unwrap().contains(fits), "{error}");
    }
}

#[test]
fn the_digest_follows_content_and_kind() {
    let digest = |row: &str| lesson(row).digest();
    assert_eq!(digest(r#"{"prompt":"a","completion":"b"}"#), digest(r#"{"weight":9,"completion":"b","prompt":"a"}"#));
    let all = [
        digest(r#"{"prompt":"a","completion":"b"}"#),
        digest(r#"{"prompt":"ab","completion":""}"#),
        digest(r#"{"prompt":"a","completion":"b","label":true}"#),
        digest(r#"{"prompt":"a","completion":"b","label":false}"#),
        digest(r#"{"prompt":"a","chosen":"b","rejected":"c"}"#),
        digest(r#"{"prompt":"a","chosen":"c","rejected":"b"}"#),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
}

#[test]
fn other_fields_of_a_message_are_no_part_of_a_row() {
    let row = r#"{"messages":[{"role":"user","content":"hi","name":"x"},{"role":"assistant","content":"yes"}]}"#;
    assert_eq!(lesson(row), lesson(&format!(r#"{{"messages":[{USER},{ANSWER}]}}"#)));
}
