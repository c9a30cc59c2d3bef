//! What the chat says about lessons: plain rows in, text out (see [`super::render`]).

use super::render::{count, factor, plain};
use crate::text;

/// Columns for a note in the list, where it is to be read in full, and where it only names itself.
const NOTE: usize = 400;
const NAME: usize = 50;
/// Columns for the words that a note shares with a question.
const SHARED: usize = 20;

/// All lessons, the earliest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LessonsView {
    pub lines: Vec<LessonLine>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LessonLine {
    pub id: i64,
    pub note: String,
    pub weight: f64,
    pub place: Whereabouts,
    /// Words that it shares with the last question.
    pub shared: Vec<String>,
}

/// Where a lesson applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    /// In the last prompt.
    Prompt,
    /// In the next one, whatever is asked.
    Next,
    /// The live adapter obeys it without the prompt.
    Carried(String),
    /// Others fill the prompt.
    Waiting,
    TooLong {
        tokens: usize,
        budget: usize,
    },
    /// Outside of a conversation: in prompts as far as there is room.
    InForce,
    /// Lessons are switched off.
    Off,
}

/// The text of `/lessons`, and of its like in scripts. `drop`: the command that takes one away.
pub fn lessons(view: &LessonsView, drop: &str) -> String {
    if view.lines.is_empty() {
        return "There are no lessons: the note of a /critical or /medium becomes one.\n".to_string();
    }
    let column = view.lines.iter().map(|line| line.id.to_string().len()).max().unwrap_or(0);
    let mut out = String::new();
    for line in &view.lines {
        out += &format!("{:>column$}  “{}”\n", line.id, text::one_line(&line.note, NOTE));
        out += &format!("{:column$}  {}x, {}{}\n", "", factor(line.weight), place(&line.place), shared(line));
    }
    out + &format!("{drop} N takes one away; its rating stays.\n")
}

fn place(place: &Whereabouts) -> String {
    match place {
        Whereabouts::Prompt => "in the prompt".to_string(),
        Whereabouts::Next => "in the prompt from the next answer on".to_string(),
        Whereabouts::Carried(adapter) => format!("carried by {}", plain(adapter)),
        Whereabouts::Waiting => "waiting: others fill the prompt".to_string(),
        Whereabouts::TooLong { tokens, budget } => {
            format!("waiting: it takes {tokens} tokens, and lessons may take {budget}")
        }
        Whereabouts::InForce => "in force".to_string(),
        Whereabouts::Off => "waiting: lessons are off (feedback.lesson_tokens is 0)".to_string(),
    }
}

/// Why it is in the prompt, or is not.
fn shared(line: &LessonLine) -> String {
    match line.place {
        Whereabouts::Prompt | Whereabouts::Waiting if !line.shared.is_empty() => {
            format!("; you asked about {}", text::one_line(&line.shared.join(", "), SHARED))
        }
        _ => String::new(),
    }
}

/// After a lesson was taken away.
pub fn dropped(id: i64, note: &str) -> String {
    format!("Lesson {id} is out of the prompts: “{}”\n   Its rating stays.\n", text::one_line(note, NAME))
}

/// That a conversation leaves lessons no room.
pub fn left_out(n: usize) -> String {
    format!("(The prompt has no room left for {}.)", count(n, "lesson"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROP: &str = "/lessons drop";

    fn line(id: i64, place: Whereabouts) -> LessonLine {
        LessonLine { id, note: "Never use .unwrap()\x1b[2J".to_string(), weight: 10.0, place, shared: Vec::new() }
    }

    #[test]
    fn lessons_say_where_they_apply() {
        let about = LessonLine { shared: vec!["rust".into(), "file".into()], ..line(3, Whereabouts::Prompt) };
        let carried = Whereabouts::Carried("lora_1".to_string());
        assert_eq!(
            lessons(&LessonsView { lines: vec![about, line(12, carried)] }, DROP),
            " 3  “Never use .unwrap()”\n    10x, in the prompt; you asked about rust, file\n\
             12  “Never use .unwrap()”\n    10x, carried by lora_1\n\
             /lessons drop N takes one away; its rating stays.\n"
        );
        for (place, words) in [
            (Whereabouts::Next, "from the next answer on"),
            (Whereabouts::Waiting, "others fill the prompt"),
            (Whereabouts::TooLong { tokens: 300, budget: 256 }, "it takes 300 tokens, and lessons may take 256"),
            (Whereabouts::Off, "feedback.lesson_tokens"),
        ] {
            assert!(lessons(&LessonsView { lines: vec![line(1, place)] }, DROP).contains(words), "{words}");
        }
        assert!(lessons(&LessonsView::default(), DROP).contains("no lessons"));
    }

    #[test]
    fn what_is_said_of_a_note_fits_into_a_terminal() {
        let long =
            |place| LessonLine { note: "word ".repeat(40), shared: vec!["wordy".into(); 20], ..line(123, place) };
        let adapter = Whereabouts::Carried("lora_adapter_20260206_143025".to_string());
        let view = LessonsView { lines: vec![long(Whereabouts::Waiting), long(adapter)] };
        for row in lessons(&view, DROP).lines().filter(|row| !row.contains("“word")) {
            assert!(text::width(row) <= 80, "{row}");
        }
    }

    #[test]
    fn what_was_dropped_is_named() {
        assert_eq!(dropped(3, "Be  brief."), "Lesson 3 is out of the prompts: “Be brief.”\n   Its rating stays.\n");
        assert_eq!(left_out(1), "(The prompt has no room left for 1 lesson.)");
    }
}
