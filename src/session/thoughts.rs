//! Tells a model's thinking (`<think>…</think>` in front of an answer) from the answer, while both stream in.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// A stretch of model output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Thought(String),
    Answer(String),
}

/// Where in the output the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before anything but white space: a thought may open here and nowhere else.
    Start,
    /// After the opening marker: line ends before the thought do not count.
    Opened,
    Thought,
    /// After the closing marker: line ends before the answer do not count.
    Closed,
    Answer,
}

/// The streaming splitter. Markers may be cut anywhere by chunk borders.
#[derive(Debug)]
pub struct Splitter {
    place: Place,
    /// Text that may turn out to be a marker.
    held: String,
}

impl Splitter {
    /// `thinking`: the prompt itself ends in an open `<think>`, so the output starts inside a thought.
    pub fn new(thinking: bool) -> Self {
        Splitter { place: if thinking { Place::Opened } else { Place::Start }, held: String::new() }
    }

    /// Takes the next chunk; gives what is certain by now, in order.
    pub fn push(&mut self, chunk: &str) -> Vec<Part> {
        self.held.push_str(chunk);
        let mut parts = Vec::new();
        while let Some(part) = self.step() {
            parts.extend(part);
        }
        parts
    }

    /// The end of the output: what was held back.
    pub fn finish(&mut self) -> Option<Part> {
        let rest = std::mem::take(&mut self.held);
        match self.place {
            _ if rest.is_empty() => None,
            Place::Opened | Place::Thought => Some(Part::Thought(rest)),
            Place::Start | Place::Closed | Place::Answer => Some(Part::Answer(rest)),
        }
    }

    /// One move of the machine: `None` when more text is needed, `Some(None)` when it moved without giving text.
    fn step(&mut self) -> Option<Option<Part>> {
        match self.place {
            Place::Start => {
                let text = self.held.trim_start();
                if let Some(thought) = text.strip_prefix(OPEN) {
                    self.held = thought.to_owned();
                    self.place = Place::Opened;
                } else if OPEN.starts_with(text) {
                    return None;
                } else {
                    self.place = Place::Answer;
                }
                Some(None)
            }
            Place::Thought => {
                if let Some((thought, rest)) = self.held.split_once(CLOSE) {
                    let (thought, rest) = (thought.to_owned(), rest.to_owned());
                    self.held = rest;
                    self.place = Place::Closed;
                    return Some((!thought.is_empty()).then_some(Part::Thought(thought)));
                }
                let certain = self.held.len() - partial_marker(&self.held, CLOSE);
                (certain > 0).then(|| Some(Part::Thought(self.held.drain(..certain).collect())))
            }
            Place::Opened | Place::Closed => {
                self.held = self.held.trim_start_matches('\n').to_owned();
                let next = if self.place == Place::Opened { Place::Thought } else { Place::Answer };
                (!self.held.is_empty()).then(|| {
                    self.place = next;
                    None
                })
            }
            Place::Answer => {
                let text = std::mem::take(&mut self.held);
                (!text.is_empty()).then_some(Some(Part::Answer(text)))
            }
        }
    }
}

/// Length of the longest end of `text` that is a beginning of `marker`.
fn partial_marker(text: &str, marker: &str) -> usize {
    (1..marker.len()).rev().find(|n| text.ends_with(&marker[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thought and answer, the same whether the text comes whole, by characters, or split anywhere.
    fn split(text: &str, thinking: bool) -> (String, String) {
        let run = |chunks: &[&str]| {
            let mut splitter = Splitter::new(thinking);
            let mut parts: Vec<Part> = chunks.iter().flat_map(|c| splitter.push(c)).collect();
            parts.extend(splitter.finish());
            let (mut thought, mut answer) = (String::new(), String::new());
            for part in parts {
                match part {
                    Part::Thought(t) => {
                        assert!(answer.is_empty(), "thought after answer");
                        thought += &t;
                    }
                    Part::Answer(a) => answer += &a,
                }
            }
            (thought, answer)
        };
        let whole = run(&[text]);
        for at in 0..=text.len() {
            assert_eq!(run(&[&text[..at], &text[at..]]), whole, "split at {at}");
        }
        let singles: Vec<&str> = text.split_inclusive(|_| true).collect();
        assert_eq!(run(&singles), whole);
        whole
    }

    fn pair(thought: &str, answer: &str) -> (String, String) {
        (thought.to_owned(), answer.to_owned())
    }

    #[test]
    fn an_answer_without_thought_is_untouched() {
        for text in ["", "Hi", " \n Hi\n", "<thin", "a < b", "<thinker>", "x <think>y</think> z", "a</think>b"] {
            assert_eq!(split(text, false), pair("", text));
        }
    }

    #[test]
    fn a_thought_in_front_is_apart() {
        assert_eq!(split("<think>\nadd\n</think>\n\n4\n", false), pair("add\n", "4\n"));
        assert_eq!(split("\n<think></think>4", false), pair("", "4"));
        assert_eq!(split("<think>a </thin b</think>c</think>", false), pair("a </thin b", "c</think>"));
    }

    #[test]
    fn a_thought_opened_by_the_prompt_needs_no_marker() {
        assert_eq!(split("hm\n</think>\n\nyes", true), pair("hm\n", "yes"));
    }

    #[test]
    fn a_cut_off_thought_is_no_answer() {
        assert_eq!(split("<think>\nlong and </th", false), pair("long and </th", ""));
        assert_eq!(split("<think>\n", false), pair("", ""));
    }
}
