//! Breaks lines between words for a terminal, while the text streams in: at most the word that is being written is held
//! back. Pure; the text is safe for a terminal already.
//!
//! Fenced code passes as it is, and so does a word that is longer than a row: the terminal breaks those itself. A
//! continued row is indented like its line, behind the mark of a list; in finch's own lines also behind the first columns.

use unicode_width::UnicodeWidthChar;

use crate::text::width;

/// Columns between tab stops.
const TAB: usize = 8;

/// A text on its way to the screen. Rows are counted from where `Wrap::default()` starts: at the beginning of one.
#[derive(Debug, Default)]
pub struct Wrap {
    /// Of the cursor.
    column: usize,
    /// Where the rows begin that continue this line.
    indent: usize,
    /// Several blanks end a column, and rows continue behind it: finch aligns its lines so, models do not.
    aligned: bool,
    /// A word stands on this row.
    begun: bool,
    /// Between the last word and the one that is held.
    blanks: String,
    word: String,
    /// The word is longer than a row: it goes through as it comes.
    overlong: bool,
    /// First characters of this line, as many as a fence has.
    head: String,
    /// Marks the end of the code that this line belongs to.
    fence: Option<String>,
}

/// The whole of a text of finch's own making, in rows of at most `columns`.
pub fn wrapped(text: &str, columns: usize) -> String {
    let mut wrap = Wrap { aligned: true, ..Wrap::default() };
    wrap.push(text, columns) + &wrap.finish(columns)
}

impl Wrap {
    /// What can be shown by now. The terminal may have another width each time: it counts from the next word on.
    pub fn push(&mut self, piece: &str, columns: usize) -> String {
        let mut out = String::with_capacity(piece.len() + 8);
        for c in piece.chars() {
            self.take(c, columns, &mut out);
        }
        out
    }

    /// The word that is still held. Blanks at the end are left out.
    pub fn finish(&mut self, columns: usize) -> String {
        let mut out = String::new();
        self.end_word(columns, &mut out);
        out
    }

    fn take(&mut self, c: char, columns: usize, out: &mut String) {
        if self.head.len() < 3 && (c != ' ' || !self.head.is_empty()) {
            self.head.push(c);
        }
        match c {
            '\n' => {
                self.end_word(columns, out);
                out.push(c);
                let fence = match self.fence.take() {
                    None if matches!(self.head.as_str(), "```" | "~~~") => Some(std::mem::take(&mut self.head)),
                    Some(open) if open != self.head => Some(open),
                    _ => None,
                };
                *self = Wrap { fence, aligned: self.aligned, ..Wrap::default() };
            }
            _ if self.fence.is_some() => out.push(c),
            ' ' | '\t' => {
                self.end_word(columns, out);
                self.blanks.push(c);
            }
            _ if self.overlong => {
                out.push(c);
                self.column = after(self.column, c, columns);
            }
            _ => {
                if self.word.chars().next_back().is_some_and(|last| may_break(last, c)) {
                    self.end_word(columns, out);
                }
                self.word.push(c);
                if self.word.len() > columns && width(&self.word) > columns {
                    self.end_word(columns, out);
                    self.overlong = true;
                }
            }
        }
    }

    /// Writes the held word, on a new row where it does not fit on this one.
    fn end_word(&mut self, columns: usize, out: &mut String) {
        self.overlong = false;
        if self.word.is_empty() {
            return;
        }
        let wide = width(&self.word);
        let start = self.blanks.chars().fold(self.column, |column, c| match c {
            '\t' => (column / TAB + 1) * TAB,
            _ => column + 1,
        });
        let text_starts = match self.begun {
            false if is_list_mark(&self.word) => start + wide + 1,
            false => start,
            true if self.aligned && self.blanks.len() > 1 => start,
            true => self.indent,
        };
        if self.begun && start + wide > columns {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', self.indent));
            self.column = self.indent;
        } else {
            out.push_str(&self.blanks);
            self.column = start;
            if text_starts <= columns / 2 {
                self.indent = text_starts; // else too little room would be left
            }
        }
        self.begun = true;
        if self.column + wide <= columns {
            self.column += wide;
        } else {
            self.column = self.word.chars().fold(self.column, |column, c| after(column, c, columns));
        }
        out.push_str(&self.word);
        self.word.clear();
        self.blanks.clear();
    }
}

/// Where the cursor stands behind a character that the terminal places itself.
fn after(column: usize, c: char, columns: usize) -> usize {
    let wide = c.width().unwrap_or(0);
    if column + wide > columns { wide } else { column + wide }
}

/// "-", "•", "12." and their like.
fn is_list_mark(word: &str) -> bool {
    let number = word.strip_suffix(['.', ')']).unwrap_or_default();
    matches!(word, "-" | "*" | "+" | "•" | "–") || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Scripts without blanks break beside any wide character, but not before what closes, behind what opens, or within an
/// emoji.
fn may_break(before: char, after: char) -> bool {
    let wide = |c: char| c.width() == Some(2);
    let closes = |c| {
        matches!(
            c,
            '、'..='。' | '，' | '．' | '：' | '；' | '？' | '！' | '）' | '」' | '』' | '】' | '》' | '〉' | 'ー'
        )
    };
    let opens = |c| matches!(c, '（' | '「' | '『' | '【' | '《' | '〈');
    let tone = |c| matches!(c, '\u{1F3FB}'..='\u{1F3FF}');
    (wide(before) || wide(after))
        && after.width().is_some_and(|w| w > 0)
        && !(before == '\u{200D}' || tone(after) || closes(after) || opens(before))
        && !before.is_ascii_punctuation()
        && !after.is_ascii_punctuation()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of `text`, given whole; in single characters it must come out the same.
    fn rows(text: &str, columns: usize) -> Vec<String> {
        let mut wrap = Wrap::default();
        let whole = wrap.push(text, columns) + &wrap.finish(columns);
        let mut wrap = Wrap::default();
        let mut pieces: String =
            text.chars().map(|c| wrap.push(c.encode_utf8(&mut [0; 4]), columns)).collect::<Vec<_>>().concat();
        pieces += &wrap.finish(columns);
        assert_eq!(pieces, whole);
        whole.split('\n').map(String::from).collect()
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(rows("one two three", 80), ["one two three"]);
        assert_eq!(rows("one two three four", 9), ["one two", "three", "four"]);
        assert_eq!(rows("one two", 7), ["one two"], "a full row is a row");
        assert_eq!(rows("one two\n\nthree", 7), ["one two", "", "three"]);
        assert_eq!(rows("a  b   c", 80), ["a  b   c"], "blanks stay where nothing breaks");
        assert_eq!(rows("one  two  ", 5), ["one", "two"]);
        assert_eq!(rows("", 10), [""]);
    }

    #[test]
    fn continued_rows_stand_under_their_text() {
        assert_eq!(rows("- one two three", 9), ["- one two", "  three"]);
        assert_eq!(rows("  12. one two", 10), ["  12. one", "two"], "an indent of more than half the row is none");
        assert_eq!(rows("   one two three", 12), ["   one two", "   three"]);
        assert_eq!(rows("* one two\nthree four", 6), ["* one", "  two", "three", "four"]);
    }

    #[test]
    fn aligned_lines_continue_in_their_last_column() {
        let line = "  /up     thumbs up, as said";
        assert_eq!(wrapped(line, 22), "  /up     thumbs up,\n          as said");
        assert_eq!(wrapped(line, 18), "  /up     thumbs\n  up, as said", "there is no room for a column");
        let mut wrap = Wrap::default();
        let streamed = wrap.push("One.  Two three four", 12) + &wrap.finish(12);
        assert_eq!(streamed, "One.  Two\nthree four", "models put two blanks between sentences");
    }

    #[test]
    fn code_passes_as_it_is() {
        let code = "```rust\nlet long = a + b + c;\n```";
        assert_eq!(
            rows(&format!("{code}\nand so on it goes"), 10)[1..],
            ["let long = a + b + c;", "```", "and so on", "it goes"]
        );
        assert_eq!(
            rows("~~~\na b c d e f\n```\ng h i j k l\n~~~\na b c d", 5)[1..4],
            ["a b c d e f", "```", "g h i j k l"]
        );
    }

    #[test]
    fn a_word_longer_than_a_row_is_left_to_the_terminal() {
        let url = "https://example.org/a/very/long/path";
        assert_eq!(rows(&format!("see {url} or not"), 10), ["see".into(), format!("{url} or"), "not".into()]);
        let mut wrap = Wrap::default();
        assert_eq!(wrap.push("see https://", 10), "see");
        assert_eq!(wrap.push("exam", 10), "\nhttps://exam", "held no longer than a row");
        assert_eq!(wrap.push("ple", 10), "ple");
    }

    #[test]
    fn at_most_one_word_is_held_back() {
        let mut wrap = Wrap::default();
        assert_eq!(wrap.push("Hel", 80), "");
        assert_eq!(wrap.push("lo", 80), "");
        assert_eq!(wrap.push(" wor", 80), "Hello");
        assert_eq!(wrap.push("ld\n", 80), " world\n");
        assert_eq!(wrap.push("end", 80) + &wrap.finish(80), "end");
    }

    #[test]
    fn columns_are_those_of_the_screen() {
        assert_eq!(rows("你好世界再见", 5), ["你好", "世界", "再见"], "no blanks, and yet it breaks");
        assert_eq!(rows("你好世界。再", 8), ["你好世", "界。再"], "a full stop begins no row");
        assert_eq!(rows("ab 👩‍💻👍🏽 cd", 6), ["ab 👩‍💻", "👍🏽 cd"]);
        assert_eq!(rows("e\u{301}e\u{301} e\u{301}", 4), ["e\u{301}e\u{301} e\u{301}"]);
        assert_eq!(rows("a\tbc de", 10), ["a\tbc", "de"]);
    }

    #[test]
    fn another_width_counts_from_the_next_word_on() {
        let mut wrap = Wrap::default();
        let mut shown = wrap.push("one two three ", 20);
        shown += &wrap.push("four five ", 10);
        shown += &wrap.push("six", 30);
        assert_eq!(shown + &wrap.finish(30), "one two three\nfour five six");
    }

    #[test]
    fn no_width_breaks_it() {
        let text = "- 你好 world\t**bold** `code` 👨‍👩‍👧 https://example.org\n```\nx\n``` end";
        for columns in 0..40 {
            let kept = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            assert_eq!(kept(&rows(text, columns).concat()), kept(text), "{columns} columns");
        }
    }
}
