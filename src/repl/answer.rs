//! An answer as it streams onto the screen: its text on one stream, what else is to be said about it on another.
//!
//! What comes in is safe for a terminal already: the session sanitises it. On a terminal lines break between words.

use std::borrow::Cow;
use std::io::{self, Write};

use super::wrap::{Wrap, wrapped};

/// Goes to the row's start and erases it.
const ERASE_ROW: &str = "\r\x1b[2K";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Prompts shorter than this are read before a note about it could be.
const LONG_PROMPT: usize = 256;

/// Writes one answer. `out` gets the answer's text; `aside` everything else, and may be the same stream.
pub struct AnswerScreen<O: Write, A: Write> {
    out: O,
    aside: A,
    style: Style,
    /// Of the terminal, at any moment; None: text goes out as it comes.
    columns: fn() -> Option<usize>,
    wrap: Wrap,
    /// A passing remark stands on the row.
    remark: bool,
    thinking: bool,
    /// The answer's last character was a line feed, or nothing came yet.
    at_line_start: bool,
}

/// What the two streams can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// `aside` is a terminal: passing remarks and thoughts are shown.
    pub live: bool,
    /// It takes colours.
    pub colours: bool,
}

impl<O: Write, A: Write> AnswerScreen<O, A> {
    pub fn new(out: O, aside: A, style: Style, columns: fn() -> Option<usize>) -> Self {
        let wrap = Wrap::default();
        AnswerScreen { out, aside, style, columns, wrap, remark: false, thinking: false, at_line_start: true }
    }

    /// A passing remark, gone with the first text: what finch is doing now.
    pub fn remark(&mut self, words: &str) -> io::Result<()> {
        if !self.style.live || !self.at_line_start || self.thinking {
            return Ok(());
        }
        self.remark = true;
        write!(self.aside, "{ERASE_ROW}{words}")?;
        self.aside.flush()
    }

    /// How much of a long prompt is read.
    pub fn reading(&mut self, done: usize, total: usize, reused: usize) -> io::Result<()> {
        if total.saturating_sub(reused) < LONG_PROMPT || done >= total {
            return Ok(());
        }
        self.remark(&format!("reading the prompt: {done} of {total} tokens…"))
    }

    /// A line that stays.
    pub fn notice(&mut self, line: &str) -> io::Result<()> {
        self.clear_remark()?;
        self.end_thought()?;
        self.end_row()?;
        let line = line.trim_end();
        let rows = (self.columns)().filter(|_| self.style.live).map(|columns| wrapped(line, columns));
        writeln!(self.aside, "{}", rows.as_deref().unwrap_or(line))?;
        self.aside.flush()
    }

    /// A piece of what the model thinks before it answers.
    pub fn thought(&mut self, piece: &str) -> io::Result<()> {
        if !self.style.live {
            return Ok(());
        }
        self.clear_remark()?;
        if !self.thinking {
            self.thinking = true;
            if self.style.colours {
                write!(self.aside, "{DIM}")?;
            } else {
                self.wrapped("(thinking) ", |screen| &mut screen.aside)?;
            }
        }
        self.wrapped(piece, |screen| &mut screen.aside)
    }

    /// A piece of the answer.
    pub fn text(&mut self, piece: &str) -> io::Result<()> {
        let Some(last) = piece.chars().last() else { return Ok(()) };
        self.clear_remark()?;
        self.end_thought()?;
        self.at_line_start = last == '\n';
        self.wrapped(piece, |screen| &mut screen.out)
    }

    /// The end of the answer, whole or not: the row is finished.
    pub fn finish(&mut self) -> io::Result<()> {
        self.clear_remark()?;
        self.end_thought()?;
        self.end_row()?;
        self.out.flush()
    }

    /// Writes what of `piece` is certain by now.
    fn wrapped<W: Write>(&mut self, piece: &str, to: fn(&mut Self) -> &mut W) -> io::Result<()> {
        let shown: Cow<str> = match (self.columns)() {
            Some(columns) => self.wrap.push(piece, columns).into(),
            None => piece.into(),
        };
        if shown.is_empty() {
            return Ok(());
        }
        let to = to(self);
        write!(to, "{shown}")?;
        to.flush()
    }

    /// The word that is still held; what comes next begins a row.
    fn rest(&mut self) -> String {
        let rest = (self.columns)().map(|columns| self.wrap.finish(columns)).unwrap_or_default();
        self.wrap = Wrap::default();
        rest
    }

    fn end_row(&mut self) -> io::Result<()> {
        let rest = self.rest();
        if !std::mem::replace(&mut self.at_line_start, true) {
            writeln!(self.out, "{rest}")?;
            self.out.flush()?;
        }
        Ok(())
    }

    fn clear_remark(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.remark) {
            write!(self.aside, "{ERASE_ROW}")?;
            self.aside.flush()?;
        }
        Ok(())
    }

    fn end_thought(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.thinking) {
            let rest = self.rest();
            writeln!(self.aside, "{rest}{}", if self.style.colours { PLAIN } else { "" })?;
            self.aside.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What both streams got after `act`.
    fn written(style: Style, act: impl FnOnce(&mut AnswerScreen<&mut Vec<u8>, &mut Vec<u8>>)) -> (String, String) {
        let (mut out, mut aside) = (Vec::new(), Vec::new());
        act(&mut AnswerScreen::new(&mut out, &mut aside, style, || None));
        (String::from_utf8(out).expect("text"), String::from_utf8(aside).expect("text"))
    }

    const LIVE: Style = Style { live: true, colours: false };

    #[test]
    fn an_answer_ends_with_exactly_one_line_end() {
        for (pieces, expected) in [(&["a", "b"][..], "ab\n"), (&["a\n"], "a\n"), (&["a\n", ""], "a\n"), (&[], "")] {
            let (out, aside) = written(Style::default(), |screen| {
                pieces.iter().for_each(|piece| screen.text(piece).expect("written"));
                screen.finish().expect("written");
            });
            assert_eq!((out.as_str(), aside.as_str()), (expected, ""), "{pieces:?}");
        }
    }

    #[test]
    fn remarks_pass_with_the_first_text() {
        let (out, aside) = written(LIVE, |screen| {
            screen.remark("loading…").expect("written");
            screen.reading(64, 1024, 0).expect("written");
            screen.text("yes").expect("written");
            screen.remark("too late").expect("written");
            screen.finish().expect("written");
        });
        assert_eq!(out, "yes\n");
        assert!(aside.starts_with(&format!("{ERASE_ROW}loading…{ERASE_ROW}reading the prompt: 64 of 1024")));
        assert!(aside.ends_with(ERASE_ROW) && !aside.contains("too late"));
    }

    #[test]
    fn short_and_reused_prompts_are_read_silently() {
        let (_, aside) = written(LIVE, |screen| {
            screen.reading(0, 100, 0).expect("written");
            screen.reading(900, 1000, 900).expect("written");
        });
        assert_eq!(aside, "");
    }

    #[test]
    fn thoughts_stay_out_of_the_answer_and_off_a_pipe() {
        let think = |screen: &mut AnswerScreen<&mut Vec<u8>, &mut Vec<u8>>| {
            screen.thought("hm").expect("written");
            screen.thought(", yes").expect("written");
            screen.text("Yes.").expect("written");
            screen.finish().expect("written");
        };
        assert_eq!(written(LIVE, think), ("Yes.\n".into(), "(thinking) hm, yes\n".into()));
        assert_eq!(written(Style::default(), think), ("Yes.\n".into(), String::new()));
    }

    #[test]
    fn on_a_terminal_lines_break_between_words() {
        let (mut out, mut aside) = (Vec::new(), Vec::new());
        let mut screen = AnswerScreen::new(&mut out, &mut aside, LIVE, || Some(12));
        screen.thought("well, let").expect("written");
        screen.thought(" me see").expect("written");
        screen.text("One two th").expect("written");
        screen.text("ree four").expect("written");
        screen.notice("stopped by you").expect("written");
        screen.text("five six").expect("written");
        screen.finish().expect("written");
        let shown = |bytes| String::from_utf8(bytes).expect("text");
        assert_eq!(shown(aside), "(thinking)\nwell, let me\nsee\nstopped by\nyou\n");
        assert_eq!(shown(out), "One two\nthree four\nfive six\n");
    }

    #[test]
    fn a_notice_starts_on_a_row_of_its_own() {
        let (out, aside) = written(LIVE, |screen| {
            screen.text("half an ans").expect("written");
            screen.notice("stopped\n").expect("written");
            screen.finish().expect("written");
        });
        assert_eq!((out.as_str(), aside.as_str()), ("half an ans\n", "stopped\n"));
    }
}
