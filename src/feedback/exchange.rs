//! Feedback as JSONL, to take it along or to bring it in: one line a signal.
//!
//! Written: `{"id","time","session","turn","messages":[…],"model","adapter","kind","value","weight","note",
//! "corrected_response","metadata"}`. The answer is the last of the messages. `metadata.finch` carries what finch knows
//! besides (base digest, how the answer ended, sampling, …), so that a round trip loses nothing.
//!
//! Read: `messages` and `kind` (or `value`) are needed, all else is optional. The last assistant message is the answer
//! that is rated; messages that end before an answer need a `corrected_response`. An answer whose base is not named is
//! taken as the user's own material: it holds for every base.

use std::collections::BTreeSet;
use std::io::{BufRead, Read};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::kind::{FeedbackConfig, Kind};
use super::record::{Feedback, Finish, Interaction, NewFeedback, NewInteraction};
use crate::error::{Error, Result};
use crate::json;
use crate::model::message::{Message, Role};
use crate::text;

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 16 << 20;
/// The heaviest weight that is accepted; heavier ones would drown all other feedback for good.
const MAX_WEIGHT: f64 = 1e6;
/// The session of rows that name none.
pub const IMPORT_SESSION: &str = "import";
/// The key in `metadata` under which finch keeps what the other fields have no place for.
const OWN_KEY: &str = "finch";

/// One row read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// Counted from 1.
    pub line: usize,
    /// When the feedback was given; `None`: now.
    pub time: Option<DateTime<Utc>>,
    /// When the answer was given, where known apart.
    pub answered: Option<DateTime<Utc>>,
    pub interaction: NewInteraction,
    pub feedback: NewFeedback,
}

/// What a file held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parsed {
    pub rows: Vec<Incoming>,
    /// Keys that mean nothing here, for a warning: they may be misspelt.
    pub unknown_keys: BTreeSet<String>,
}

/// The line, without its newline, that stands for one signal.
pub fn to_line(interaction: &Interaction, feedback: &Feedback) -> String {
    let mut messages = interaction.messages.clone();
    if !interaction.response.is_empty() {
        messages.push(Message::assistant(&interaction.response));
    }
    let own = Own {
        base: interaction.base.clone(),
        finish: Some(interaction.finish),
        thinking: interaction.thinking,
        answered: Some(timestamp(interaction.time)),
        sampling: interaction.sampling.clone(),
        timings: interaction.timings.clone(),
        interaction: interaction.metadata.clone(),
    };
    let mut metadata = match &feedback.metadata {
        Value::Object(map) => map.clone(),
        Value::Null => Map::new(),
        other => Map::from_iter([("value".to_owned(), other.clone())]),
    };
    metadata.insert(OWN_KEY.to_owned(), json!(own));
    let row = Outgoing {
        id: feedback.id,
        time: timestamp(feedback.time),
        session: &interaction.session,
        turn: interaction.turn,
        messages,
        model: &interaction.model,
        adapter: interaction.adapter.as_deref(),
        kind: feedback.kind.name(),
        value: feedback.value,
        weight: feedback.weight,
        note: feedback.note.as_deref(),
        corrected_response: feedback.corrected.as_deref(),
        metadata,
    };
    text::escape_json(&json!(row).to_string()).into_owned()
}

#[derive(Serialize)]
struct Outgoing<'a> {
    id: i64,
    time: String,
    session: &'a str,
    turn: u32,
    messages: Vec<Message>,
    model: &'a str,
    adapter: Option<&'a str>,
    kind: &'a str,
    value: f64,
    weight: f64,
    note: Option<&'a str>,
    corrected_response: Option<&'a str>,
    metadata: Map<String, Value>,
}

/// What `metadata.finch` holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Own {
    base: Option<String>,
    finish: Option<Finish>,
    thinking: Option<bool>,
    answered: Option<String>,
    sampling: Value,
    timings: Value,
    interaction: Value,
}

/// Reads all lines, or none: the first bad one is an error that names it. Blank lines are skipped.
///
/// Weights that a row does not give are those of its kind in `config`.
pub fn read(input: &mut dyn BufRead, config: &FeedbackConfig) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if (&mut *input).take(MAX_LINE + 1).read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        let at = |error: Error| error.context(format!("line {line}"));
        if bytes.len() as u64 > MAX_LINE {
            return Err(at(Error::failure(format!("longer than {} MiB", MAX_LINE >> 20))));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| at(Error::failure("not UTF-8 text")))?;
        let text = if line == 1 { text.trim_start_matches('\u{FEFF}') } else { text }.trim();
        if !text.is_empty() {
            let row = parse_row(line, text, config, &mut parsed.unknown_keys).map_err(at)?;
            parsed.rows.push(row);
        }
    }
    Ok(parsed)
}

#[derive(Deserialize)]
struct Row {
    /// Ids belong to the store that wrote them; they are not taken over.
    #[serde(rename = "id")]
    _id: Option<Value>,
    time: Option<String>,
    session: Option<String>,
    turn: Option<u32>,
    messages: Option<Vec<Message>>,
    model: Option<String>,
    adapter: Option<String>,
    kind: Option<String>,
    value: Option<f64>,
    weight: Option<f64>,
    note: Option<String>,
    corrected_response: Option<String>,
    metadata: Option<Map<String, Value>>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

fn parse_row(line: usize, text: &str, config: &FeedbackConfig, unknown: &mut BTreeSet<String>) -> Result<Incoming> {
    let row: Row = json::read(text.as_bytes())?;
    unknown.extend(row.unknown.into_iter().map(|(key, _)| key));

    let (messages, response) = prompt_and_answer(row.messages)?;
    let corrected = row.corrected_response.filter(|text| !text.trim().is_empty());
    let kind = kind_of(row.kind.as_deref(), row.value)?;
    if kind == Kind::Correction && corrected.is_none() {
        return Err(Error::failure("a correction needs a `corrected_response`"));
    }
    if response.is_empty() && corrected.is_none() {
        return Err(Error::failure("there is no answer to rate: the last message is not the assistant's")
            .hint("end `messages` with the assistant's answer, or give a `corrected_response`"));
    }
    let weight = match row.weight {
        None => default_weight(kind, corrected.is_some(), config),
        Some(weight) if (0.0..=MAX_WEIGHT).contains(&weight) => weight,
        Some(weight) => return Err(Error::failure(format!("weight {weight} is not between 0 and {MAX_WEIGHT}"))),
    };
    let mut metadata = row.metadata.unwrap_or_default();
    let own = take_own(&mut metadata);
    let interaction = NewInteraction {
        session: row.session.unwrap_or_else(|| IMPORT_SESSION.to_owned()),
        turn: row.turn.unwrap_or(0),
        messages,
        response,
        model: row.model.unwrap_or_default(),
        base: own.base,
        adapter: row.adapter,
        thinking: own.thinking,
        sampling: or_empty(own.sampling),
        finish: own.finish.unwrap_or(Finish::Stop),
        timings: or_empty(own.timings),
        metadata: or_empty(own.interaction),
    };
    let feedback = NewFeedback {
        session: None,
        kind,
        value: row.value.unwrap_or(kind.value()),
        weight,
        note: row.note.filter(|note| !note.is_empty()),
        corrected,
        metadata: Value::Object(metadata),
    };
    let time = row.time.as_deref().map(parse_time).transpose()?;
    let answered = own.answered.as_deref().map(parse_time).transpose()?.or(time);
    Ok(Incoming { line, time, answered, interaction, feedback })
}

/// The last message is the answer if it is the assistant's.
fn prompt_and_answer(messages: Option<Vec<Message>>) -> Result<(Vec<Message>, String)> {
    let mut messages = messages.ok_or_else(|| Error::failure("`messages` is missing"))?;
    let response = match messages.pop_if(|last| last.role == Role::Assistant) {
        Some(answer) => answer.content,
        None => String::new(),
    };
    if !messages.iter().any(|message| message.role == Role::User) {
        return Err(Error::failure("`messages` holds no user message before the answer"));
    }
    Ok((messages, response))
}

/// A value alone counts as stars; a kind and a value must agree in sign.
fn kind_of(name: Option<&str>, value: Option<f64>) -> Result<Kind> {
    if let Some(value) = value
        && !(-1.0..=1.0).contains(&value)
    {
        return Err(Error::failure(format!("value {value} is not between -1 and 1"))
            .hint("stars (1 to 5) have the value (stars - 3) / 2"));
    }
    let Some(name) = name else {
        return match value {
            Some(value) => Ok(Kind::Rating(super::kind::Stars::from_value(value))),
            None => Err(Error::failure("`kind` is missing (and no `value` stands for it)")),
        };
    };
    if name == "rating" && value.is_none() {
        return Err(Error::failure("a rating needs its `value`: (stars - 3) / 2"));
    }
    let kind = Kind::from_name(name, value.unwrap_or(0.0)).ok_or_else(|| {
        Error::failure(format!("unknown kind {name:?}"))
            .hint("kinds are critical, medium, good, thumbs_up, thumbs_down, rating and correction")
    })?;
    match value {
        Some(value) if kind.is_judgement() && sign(value) != sign(kind.value()) => {
            Err(Error::failure(format!("kind {name} and value {value} contradict each other")))
        }
        _ => Ok(kind),
    }
}

fn sign(value: f64) -> i8 {
    i8::from(value > 0.0) - i8::from(value < 0.0)
}

/// A grade in words keeps its weight; any other signal with a better answer weighs as a correction.
fn default_weight(kind: Kind, corrected: bool, config: &FeedbackConfig) -> f64 {
    match kind {
        Kind::Critical | Kind::Medium => kind.weight(config),
        _ if corrected => Kind::Correction.weight(config),
        _ => kind.weight(config),
    }
}

/// Takes finch's own part out of the metadata; something else under that key stays where it is.
fn take_own(metadata: &mut Map<String, Value>) -> Own {
    match metadata.get(OWN_KEY).map(Own::deserialize) {
        Some(Ok(own)) => {
            metadata.remove(OWN_KEY);
            own
        }
        _ => Own::default(),
    }
}

fn or_empty(value: Value) -> Value {
    if value.is_null() { json!({}) } else { value }
}

fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn parse_time(text: &str) -> Result<DateTime<Utc>> {
    // Cut to what the store keeps.
    let cut = |time: DateTime<_>| DateTime::from_timestamp_millis(time.timestamp_millis());
    DateTime::parse_from_rfc3339(text).ok().and_then(cut).ok_or_else(|| {
        Error::failure(format!("{text:?} is not a time")).hint("times are written as 2026-02-06T14:30:25Z (RFC 3339)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Parsed> {
        read(&mut text.as_bytes(), &FeedbackConfig::default())
    }

    fn one(text: &str) -> Incoming {
        let mut rows = parse(text).unwrap().rows;
        assert_eq!(rows.len(), 1);
        rows.remove(0)
    }

    fn fails(text: &str) -> String {
        let error = parse(text).unwrap_err();
        format!("{} ({})", error.message(), error.hint_text().unwrap_or(""))
    }

    const QA: &str = r#""messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]"#;
    const Q: &str = r#""messages":[{"role":"user","content":"q"}]"#;

    #[test]
    fn messages_and_kind_are_enough() {
        let row = one(&format!("{{{QA},\"kind\":\"good\"}}"));
        assert_eq!(row.interaction.messages, [Message::user("q")]);
        assert_eq!((row.interaction.response.as_str(), row.interaction.base.as_deref()), ("a", None));
        assert_eq!((row.interaction.session.as_str(), row.interaction.turn), ("import", 0));
        assert_eq!((row.feedback.kind, row.feedback.value, row.feedback.weight), (Kind::Good, 1.0, 1.0));
        assert_eq!((row.time, row.interaction.finish), (None, Finish::Stop));
    }

    #[test]
    fn a_value_stands_for_stars() {
        for (value, stars, weight) in [(1.0, 5, 1.0), (0.5, 4, 0.5), (-1.0, 1, 1.0), (0.0, 3, 0.0)] {
            let row = one(&format!("{{{QA},\"value\":{value}}}"));
            assert!(matches!(row.feedback.kind, Kind::Rating(s) if s.count() == stars));
            assert_eq!((row.feedback.value, row.feedback.weight), (value, weight));
        }
    }

    #[test]
    fn a_better_answer_may_come_with_or_without_the_bad_one() {
        let row = one(&format!("{{{QA},\"kind\":\"medium\",\"corrected_response\":\"b\",\"note\":\" n! \"}}"));
        assert_eq!((row.feedback.corrected.as_deref(), row.feedback.weight), (Some("b"), 3.0));
        assert_eq!(row.feedback.note.as_deref(), Some(" n! "));
        let row = one(&format!("{{{Q},\"kind\":\"correction\",\"corrected_response\":\"b\"}}"));
        assert_eq!((row.interaction.response.as_str(), row.feedback.weight), ("", 10.0));
        let row = one(&format!("{{{QA},\"value\":-1,\"corrected_response\":\"b\"}}"));
        assert_eq!(row.feedback.weight, 10.0);
        let row = one(&format!("{{{QA},\"kind\":\"critical\",\"corrected_response\":\"b\",\"weight\":2.5}}"));
        assert_eq!(row.feedback.weight, 2.5);
    }

    #[test]
    fn blank_lines_marks_and_windows_line_ends_are_read_over() {
        let text = format!("\u{FEFF}{{{QA},\"kind\":\"good\"}}\r\n\r\n  \n{{{QA},\"kind\":\"critical\"}}");
        let parsed = parse(&text).unwrap();
        assert_eq!(parsed.rows.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 4]);
        assert!(parse("").unwrap().rows.is_empty());
    }

    #[test]
    fn unknown_keys_are_told() {
        let parsed = parse(&format!("{{{QA},\"kind\":\"good\",\"corrected\":\"b\",\"id\":7}}")).unwrap();
        assert_eq!(parsed.unknown_keys.into_iter().collect::<Vec<_>>(), ["corrected"]);
    }

    #[test]
    fn a_bad_row_is_named_with_its_line_and_fault() {
        let good = format!("{{{QA},\"kind\":\"good\"}}\n");
        for (row, fault) in [
            ("{".to_owned(), "line 2: not JSON: EOF"),
            ("[1]".to_owned(), "line 2: "),
            (r#"{"kind":"good"}"#.to_owned(), "`messages` is missing"),
            (r#"{"messages":[],"kind":"good"}"#.to_owned(), "no user message"),
            (r#"{"messages":[{"role":"assistant","content":"a"}],"kind":"good"}"#.to_owned(), "no user message"),
            (r#"{"messages":[{"role":"boss","content":"a"}],"kind":"good"}"#.to_owned(), "unknown variant `boss`"),
            (format!("{{{Q},\"kind\":\"good\"}}"), "no answer to rate"),
            (format!("{{{QA}}}"), "`kind` is missing"),
            (format!("{{{QA},\"kind\":\"rating\"}}"), "needs its `value`"),
            (format!("{{{QA},\"kind\":\"great\"}}"), "unknown kind \"great\""),
            (format!("{{{QA},\"kind\":\"good\",\"value\":-1}}"), "contradict"),
            (format!("{{{QA},\"kind\":\"critical\",\"value\":0}}"), "contradict"),
            (format!("{{{QA},\"kind\":\"rating\",\"value\":4}}"), "not between -1 and 1"),
            (format!("{{{QA},\"kind\":\"good\",\"weight\":-1}}"), "weight -1"),
            (format!("{{{QA},\"kind\":\"good\",\"weight\":1e300}}"), "weight"),
            (format!("{{{QA},\"kind\":\"correction\"}}"), "needs a `corrected_response`"),
            (format!("{{{QA},\"kind\":\"correction\",\"corrected_response\":\" \"}}"), "needs a `corrected_response`"),
            (format!("{{{QA},\"kind\":\"good\",\"time\":\"yesterday\"}}"), "not a time"),
        ] {
            let message = fails(&format!("{good}{row}"));
            assert!(message.starts_with("line 2: ") && message.contains(fault), "{row}: {message}");
        }
        let error = read(&mut &b"\xff\xfe\n"[..], &FeedbackConfig::default()).unwrap_err();
        assert_eq!(error.message(), "line 1: not UTF-8 text");
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let mut endless = std::io::BufReader::new(std::io::repeat(b'x'));
        assert!(read(&mut endless, &FeedbackConfig::default()).unwrap_err().message().contains("longer than"));
    }

    #[test]
    fn a_written_line_reads_back_whole() {
        let config = FeedbackConfig::default();
        let time = parse_time("2026-02-06T14:30:25.123Z").unwrap();
        let interaction = Interaction {
            id: 3,
            time,
            session: "s-1".into(),
            turn: 4,
            messages: vec![Message::system("sys"), Message::user("q\n\"\u{1F600}")],
            response: "a".into(),
            model: "m".into(),
            base: Some("digest".into()),
            adapter: Some("lora_adapter_1".into()),
            thinking: Some(false),
            sampling: json!({"temperature": 0.7}),
            finish: Finish::Length,
            timings: json!({"decode_s": 1.5}),
            metadata: json!({"k": 1}),
        };
        let new = NewFeedback { metadata: json!({"from": "test"}), ..NewFeedback::correction("b ", &config) };
        let feedback = Feedback {
            id: 9,
            time,
            interaction: 3,
            session: Some("s-2".into()),
            kind: new.kind,
            value: new.value,
            weight: new.weight,
            note: Some("never\tthat ".into()),
            corrected: new.corrected,
            metadata: new.metadata,
        };
        let line = to_line(&interaction, &feedback);
        assert!(!line.contains('\n'));
        let value: Value = serde_json::from_str(&line).unwrap();
        let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut contract = [
            "id",
            "time",
            "session",
            "turn",
            "messages",
            "model",
            "adapter",
            "kind",
            "value",
            "weight",
            "note",
            "corrected_response",
            "metadata",
        ];
        contract.sort_unstable();
        assert_eq!(keys, contract);
        assert_eq!(value["messages"][2]["content"], "a");

        let row = one(&line);
        assert_eq!((row.time, row.answered), (Some(time), Some(time)));
        let i = row.interaction;
        assert_eq!((i.messages, i.response, i.base), (interaction.messages, interaction.response, interaction.base));
        assert_eq!((i.session, i.turn, i.model, i.adapter), ("s-1".into(), 4, "m".into(), interaction.adapter));
        assert_eq!((i.finish, i.thinking, i.sampling), (Finish::Length, Some(false), interaction.sampling));
        assert_eq!((i.timings, i.metadata), (interaction.timings, interaction.metadata));
        let f = row.feedback;
        assert_eq!((f.kind, f.value, f.weight), (feedback.kind, feedback.value, feedback.weight));
        assert_eq!((f.note, f.corrected, f.metadata), (feedback.note, feedback.corrected, feedback.metadata));
    }

    #[test]
    fn metadata_of_others_under_the_same_key_stays() {
        let row = one(&format!("{{{QA},\"kind\":\"good\",\"metadata\":{{\"finch\":\"a bird\",\"x\":1}}}}"));
        assert_eq!(row.feedback.metadata, json!({"finch": "a bird", "x": 1}));
    }
}
