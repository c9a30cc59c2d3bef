//! What the chat says about feedback, the buffer and the model: plain figures in, text out.
//!
//! Every figure is given from outside and was measured or counted there; nothing is made up or looked up here. Text of
//! users and models goes through [`text::one_line`]. No meaning hangs on a colour.

use crate::feedback::Source;
use crate::feedback::kind::Kind;
use crate::text;

/// Columns for a quoted prompt, answer or note.
const QUOTE: usize = 60;
/// Rows of the buffer that `/buffer` shows.
const BUFFER_ROWS: usize = 20;

/// The buffer in figures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BufferFigures {
    pub examples: usize,
    /// Sum of their weights.
    pub weight: f64,
    /// Bad answers without a better one.
    pub waiting: usize,
}

/// An answer that feedback is about, in short.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    pub prompt: String,
    pub response: String,
}

/// Feedback that is on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub kind: Kind,
    pub weight: f64,
    pub buffer: BufferFigures,
    /// Where a correction came from, if it was not typed as one.
    pub source: Option<Source>,
    /// It praises a second answer, which counts as better than the first with this weight.
    pub preferred: Option<f64>,
    /// The judgement of the same answer that this one replaces.
    pub replaced: Option<Kind>,
    /// Set where the answer is not the one on the screen: the last one of an earlier session.
    pub earlier: Option<About>,
    /// Why nothing will be learned from it, where that is so.
    pub unused: Option<String>,
    /// Its note is in the next prompt.
    pub applies: bool,
}

pub fn recorded(r: &Recorded) -> String {
    let mut out = String::new();
    if let Some(about) = &r.earlier {
        out += &format!("About the last answer of an earlier session:\n{}", self::about(about));
    }
    let what = match r.kind {
        Kind::Correction if r.source == Some(Source::Revision) => "Better answer recorded".to_string(),
        Kind::Correction => "Correction recorded".to_string(),
        Kind::Rating(stars) => format!("Feedback recorded: {} of 5 stars", stars.count()),
        _ => "Feedback recorded".to_string(),
    };
    let weight = if r.weight > 0.0 { format!("weight: {}x", factor(r.weight)) } else { "not trained on".to_string() };
    out += &format!("{} {what} ({weight})\n", r.kind.badge());
    if let Some(weight) = r.preferred {
        out += &format!("   It counts as better than the answer before it (weight: {}x)\n", factor(weight));
    }
    if let Some(before) = r.replaced {
        out += &format!("   It replaces your earlier rating of this answer: {}\n", label(before));
    }
    if r.applies {
        out += "   The note stands in the prompt from the next answer on (/lessons)\n";
    }
    if let Some(reason) = &r.unused {
        out += &format!("   Nothing is learned from it: {reason}\n");
    }
    out + &buffer_line(&r.buffer)
}

/// Feedback that was taken back.
#[derive(Debug, Clone, PartialEq)]
pub struct Undone {
    pub kind: Kind,
    pub about: About,
    pub buffer: BufferFigures,
}

pub fn undone(u: &Undone) -> String {
    format!("Taken back: {} on {}\n{}", label(u.kind), quote(&u.about.prompt), buffer_line(&u.buffer))
}

pub const NO_ANSWER_YET: &str = "There is no answer to rate yet: ask something first.\n";
pub const NO_ANSWER_TO_CORRECT: &str = "There is no answer to correct yet: ask something first.\n";
pub const NOTHING_TO_UNDO: &str = "There is no feedback to take back.\n";

/// "   Training buffer: 8 examples (42.0 weighted), 1 waiting for a better answer (/correct …)"
fn buffer_line(b: &BufferFigures) -> String {
    let waiting = match b.waiting {
        0 => String::new(),
        n => format!(", {n} waiting for a better answer (/correct …)"),
    };
    format!("   Training buffer: {} ({:.1} weighted){waiting}\n", count(b.examples, "example"), sum(b.weight))
}

/// The buffer in full, for `/buffer`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BufferView {
    pub figures: BufferFigures,
    pub capacity: usize,
    /// Examples that no run has seen.
    pub new: usize,
    /// New examples that start a training.
    pub threshold: usize,
    pub auto_train: bool,
    /// Newest last.
    pub examples: Vec<ExampleRow>,
    pub waiting: Vec<WaitingRow>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ExampleRow {
    pub weight: f64,
    /// Probability of a draw, 0 to 1.
    pub share: f64,
    pub new: bool,
    pub prompt: String,
    pub completion: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WaitingRow {
    pub kind: Kind,
    pub prompt: String,
    pub note: Option<String>,
    /// A better answer is there, and nobody has decided about it.
    pub proposed: bool,
}

pub fn buffer(b: &BufferView) -> String {
    let mut out = format!(
        "Training buffer: {} of {} examples ({:.1} weighted), {} new\n",
        b.figures.examples,
        b.capacity,
        sum(b.figures.weight),
        b.new
    );
    out += &match (b.auto_train, b.new) {
        (true, _) => format!("   Training starts at {} new ones, or with /train\n", b.threshold),
        (false, _) => "   Training starts with /train (auto_train is off)\n".to_string(),
    };
    if !b.examples.is_empty() {
        out += "\n   share  weight\n";
        let hidden = b.examples.len().saturating_sub(BUFFER_ROWS);
        if hidden > 0 {
            out += &format!("   … {hidden} older ones\n");
        }
        for row in &b.examples[hidden..] {
            let weight = format!("{}x", factor(row.weight));
            let new = if row.new { "new" } else { "" };
            out += &format!(
                "   {:>4.0} %  {weight:>6}  {new:3}  {} → {}\n",
                row.share * 100.0,
                quote_in(&row.prompt, 20),
                quote_in(&row.completion, 28) // the row fits into 80 columns
            );
        }
    }
    if !b.waiting.is_empty() {
        out += "\nWaiting for a better answer:\n";
        let hidden = b.waiting.len().saturating_sub(BUFFER_ROWS);
        if hidden > 0 {
            out += &format!("   … {hidden} older ones\n");
        }
        for row in &b.waiting[hidden..] {
            let note = row.note.as_ref().map(|n| format!("  note: {}", quote_in(n, 40))).unwrap_or_default();
            let proposed = if row.proposed { "  💡 one is there" } else { "" };
            out += &format!("   {} {}{note}{proposed}\n", row.kind.badge(), quote_in(&row.prompt, 40));
        }
        out += match b.waiting.iter().any(|row| row.note.is_some()) {
            true => "   /buffer review goes through those with a note; or ask again and use /correct TEXT\n",
            false => "   Ask again and use /correct TEXT\n",
        };
    }
    out
}

/// Which model answers, for `/model`.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelView {
    Loading { name: String },
    Ready { name: String, base: String, adapter: Option<String>, context: usize, builtin: bool },
    Failed { name: String, reason: String },
}

pub fn model(m: &ModelView) -> String {
    match m {
        ModelView::Loading { name } => format!("Model: {}, still loading\n", plain(name)),
        ModelView::Failed { name, reason } => {
            format!("Model: {} could not be loaded: {}\n", plain(name), plain(reason))
        }
        ModelView::Ready { name, base, adapter, context, builtin } => {
            let mut out = format!("Model: {} (base {}, context {context} tokens)\n", plain(name), short_digest(base));
            out += &match adapter {
                Some(adapter) => format!("Adapter: {}\n", plain(adapter)),
                None => "Adapter: none, the base answers as it is\n".to_string(),
            };
            if *builtin {
                out += "   This is the small built-in guide; a real model: finch --model FOLDER\n";
            }
            out
        }
    }
}

pub fn system(prompt: Option<&str>) -> String {
    match prompt {
        Some(text) => format!("System prompt: {}\n", text::sanitize(text)),
        None => "There is no system prompt; /system TEXT sets one.\n".to_string(),
    }
}

/// The line that says that a first word is no command.
pub fn unknown_command(word: &str, nearest: Option<&str>) -> String {
    let word = text::one_line(word, QUOTE);
    let meant = nearest.map_or("/help lists the commands".to_string(), |near| format!("nearest is {near}"));
    format!("{word} is no command; {meant}. Nothing was sent to the model (/{word} … sends it as text).\n")
}

pub fn invalid_command(usage: &str, fault: &str) -> String {
    format!("{}.\n   Usage: {usage}\n", capitalised(&plain(fault)))
}

/// An error with its hint, as everywhere in finch.
pub fn error(message: &str, hint: Option<&str>) -> String {
    let mut out = format!("error: {}\n", text::sanitize(message));
    if let Some(hint) = hint {
        out += &format!("hint: {}\n", text::sanitize(hint));
    }
    out
}

// --- small words, also for the other rooms of the screen ---

/// "🔴 critical"
pub fn label(kind: Kind) -> String {
    match kind {
        Kind::Rating(stars) => format!("{} {} of 5 stars", kind.badge(), stars.count()),
        _ => format!("{} {}", kind.badge(), kind.name().replace('_', " ")),
    }
}

/// "1 example", "8 examples".
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// A sum of weights for printing: that of none is −0 in floating point.
fn sum(weight: f64) -> f64 {
    weight + 0.0
}

/// A weight without needless decimals: 10, 0.5.
pub fn factor(weight: f64) -> String {
    let rounded = (weight * 100.0).round() / 100.0;
    format!("{rounded}")
}

/// "0.8 s", "21 s", "2 min 5 s", "1 h 3 min".
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64; // a float cast saturates
    match whole {
        _ if seconds < 9.95 => format!("{:.1} s", seconds.max(0.0)),
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// "812 B", "3.4 MB" (powers of ten).
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

/// The first characters of a digest: enough for people.
pub fn short_digest(digest: &str) -> String {
    plain(digest).chars().take(12).collect()
}

pub fn quote(words: &str) -> String {
    quote_in(words, QUOTE)
}

fn quote_in(words: &str, columns: usize) -> String {
    format!("“{}”", text::one_line(words, columns))
}

/// A question and its answer, each on a line of its own.
pub fn about(about: &About) -> String {
    format!("   > {}\n   {}\n", text::one_line(&about.prompt, QUOTE), text::one_line(&about.response, QUOTE))
}

/// One line of untrusted text, however long.
pub fn plain(words: &str) -> String {
    text::one_line(words, 400)
}

fn capitalised(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::kind::Stars;

    fn figures() -> BufferFigures {
        BufferFigures { examples: 8, weight: 42.0, waiting: 1 }
    }

    fn plain_record(kind: Kind, weight: f64) -> Recorded {
        Recorded {
            kind,
            weight,
            buffer: figures(),
            source: None,
            preferred: None,
            replaced: None,
            earlier: None,
            unused: None,
            applies: false,
        }
    }

    #[test]
    fn feedback_reads_as_its_users_know_it() {
        assert_eq!(
            recorded(&plain_record(Kind::Critical, 10.0)),
            "🔴 Feedback recorded (weight: 10x)\n   \
             Training buffer: 8 examples (42.0 weighted), 1 waiting for a better answer (/correct …)\n"
        );
        let mut good = plain_record(Kind::Good, 1.0);
        good.buffer = BufferFigures { examples: 1, weight: 1.0, waiting: 0 };
        assert_eq!(
            recorded(&good),
            "🟢 Feedback recorded (weight: 1x)\n   Training buffer: 1 example (1.0 weighted)\n"
        );
        let revised = Recorded { source: Some(Source::Revision), ..plain_record(Kind::Correction, 10.0) };
        assert!(recorded(&revised).starts_with("📝 Better answer recorded (weight: 10x)\n"));
        let preferred = Recorded { preferred: Some(3.0), ..plain_record(Kind::ThumbsUp, 1.0) };
        assert!(recorded(&preferred).contains("better than the answer before it (weight: 3x)"));
        for (kind, first) in [
            (Kind::Medium, "🟡 Feedback recorded (weight: 3x)\n"),
            (Kind::ThumbsUp, "👍 Feedback recorded (weight: 3x)\n"),
            (Kind::ThumbsDown, "👎 Feedback recorded (weight: 3x)\n"),
            (Kind::Correction, "📝 Correction recorded (weight: 3x)\n"),
        ] {
            assert!(recorded(&plain_record(kind, 3.0)).starts_with(first), "{kind:?}");
        }
    }

    #[test]
    fn stars_say_how_many_and_three_are_not_trained_on() {
        let stars = |n| Kind::Rating(Stars::new(n).expect("1 to 5"));
        assert!(
            recorded(&plain_record(stars(4), 0.5)).starts_with("⭐ Feedback recorded: 4 of 5 stars (weight: 0.5x)\n")
        );
        assert!(
            recorded(&plain_record(stars(3), 0.0)).starts_with("⭐ Feedback recorded: 3 of 5 stars (not trained on)\n")
        );
    }

    #[test]
    fn replacing_cut_off_and_earlier_answers_are_said() {
        let all = Recorded {
            replaced: Some(Kind::Good),
            earlier: Some(About { prompt: "Who\nare you?".into(), response: "I am \x1b[31mfinch".into() }),
            unused: Some("the answer was cut off".into()),
            applies: true,
            ..plain_record(Kind::ThumbsUp, 1.0)
        };
        assert_eq!(
            recorded(&all),
            "About the last answer of an earlier session:\n   > Who are you?\n   I am finch\n\
             👍 Feedback recorded (weight: 1x)\n\
             \x20  It replaces your earlier rating of this answer: 🟢 good\n\
             \x20  The note stands in the prompt from the next answer on (/lessons)\n\
             \x20  Nothing is learned from it: the answer was cut off\n\
             \x20  Training buffer: 8 examples (42.0 weighted), 1 waiting for a better answer (/correct …)\n"
        );
    }

    #[test]
    fn undo_names_what_it_took_back() {
        let undo = Undone {
            kind: Kind::ThumbsDown,
            about: About { prompt: "Sort a list?".into(), response: String::new() },
            buffer: BufferFigures { weight: -0.0, ..BufferFigures::default() },
        };
        assert_eq!(
            undone(&undo),
            "Taken back: 👎 thumbs down on “Sort a list?”\n   Training buffer: 0 examples (0.0 weighted)\n"
        );
    }

    #[test]
    fn the_buffer_shows_shares_and_what_waits() {
        let view = BufferView {
            figures: BufferFigures { examples: 2, weight: 11.0, waiting: 1 },
            capacity: 100,
            new: 1,
            threshold: 10,
            auto_train: true,
            examples: vec![
                ExampleRow {
                    weight: 10.0,
                    share: 10.0 / 11.0,
                    new: false,
                    prompt: "a?".into(),
                    completion: "A.".into(),
                },
                ExampleRow { weight: 1.0, share: 1.0 / 11.0, new: true, prompt: "b?".into(), completion: "B.".into() },
            ],
            waiting: vec![WaitingRow {
                kind: Kind::Critical,
                prompt: "c?".into(),
                note: Some("never  that".into()),
                proposed: true,
            }],
        };
        assert_eq!(
            buffer(&view),
            "Training buffer: 2 of 100 examples (11.0 weighted), 1 new\n\
             \x20  Training starts at 10 new ones, or with /train\n\n\
             \x20  share  weight\n\
             \x20    91 %     10x       “a?” → “A.”\n\
             \x20     9 %      1x  new  “b?” → “B.”\n\n\
             Waiting for a better answer:\n\
             \x20  🔴 “c?”  note: “never that”  💡 one is there\n\
             \x20  /buffer review goes through those with a note; or ask again and use /correct TEXT\n"
        );
        let off = buffer(&BufferView { auto_train: false, ..view });
        assert!(off.contains("auto_train is off"));
    }

    #[test]
    fn a_long_buffer_is_cut_to_the_newest() {
        let row = |i: usize| ExampleRow {
            weight: 1.0,
            share: 0.01,
            new: true,
            prompt: format!("question {i}"),
            completion: "x".into(),
        };
        let view = BufferView { examples: (0..50).map(row).collect(), ..BufferView::default() };
        let shown = buffer(&view);
        assert!(shown.contains("… 30 older ones"));
        assert!(!shown.contains("question 29”") && shown.contains("question 30”") && shown.contains("question 49”"));
    }

    #[test]
    fn unknown_and_invalid_commands_say_what_to_do() {
        assert_eq!(
            unknown_command("/critcal", Some("/critical")),
            "/critcal is no command; nearest is /critical. Nothing was sent to the model (//critcal … sends it as text).\n"
        );
        assert!(unknown_command("/etc", None).contains("/help"));
        assert_eq!(
            invalid_command("/rate 1-5 [note]", "the stars are a whole number from 1 to 5"),
            "The stars are a whole number from 1 to 5.\n   Usage: /rate 1-5 [note]\n"
        );
    }

    #[test]
    fn the_model_says_what_answers() {
        let ready = |adapter: Option<&str>| ModelView::Ready {
            name: "finch-tiny".into(),
            base: "0123456789abcdef0123".into(),
            adapter: adapter.map(String::from),
            context: 1024,
            builtin: true,
        };
        let shown = model(&ready(Some("lora_adapter_1")));
        assert!(
            shown.starts_with("Model: finch-tiny (base 0123456789ab, context 1024 tokens)\nAdapter: lora_adapter_1\n")
        );
        assert!(model(&ready(None)).contains("Adapter: none"));
        assert!(model(&ModelView::Loading { name: "x".into() }).contains("still loading"));
    }

    #[test]
    fn figures_have_fitting_units() {
        for (seconds, words) in
            [(0.84, "0.8 s"), (9.96, "10 s"), (21.4, "21 s"), (125.0, "2 min 5 s"), (7300.0, "2 h 1 min")]
        {
            assert_eq!(duration(seconds), words);
        }
        for (n, words) in [(812, "812 B"), (3_400_000, "3.4 MB"), (2_500_000_000, "2.5 GB")] {
            assert_eq!(bytes(n), words);
        }
        for (weight, words) in [(10.0, "10"), (0.5, "0.5"), (1.0 / 3.0, "0.33")] {
            assert_eq!(factor(weight), words);
        }
        assert_eq!((count(1, "example"), count(0, "example")), ("1 example".into(), "0 examples".into()));
    }

    #[test]
    fn errors_are_sanitised() {
        assert_eq!(error("bad \x1b[2Jname", Some("do this")), "error: bad name\nhint: do this\n");
    }
}
