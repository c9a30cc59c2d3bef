//! The one door to the screen: whatever a model, a file or a server wrote goes through here before a terminal sees it.
//!
//! What leaves is printable text, `\n` and `\t`: no escape sequence, control, bidi or hidden character. This module knows
//! nothing of colours or layout; finch's own styling is added after it.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// More combining marks than this on one character are a trick, not a language.
const MAX_MARKS: u8 = 8;

/// Untrusted text made safe for a terminal; borrowed when nothing had to go.
pub fn sanitize(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) { Cow::Borrowed(text) } else { Cow::Owned(Sanitizer::default().push(text)) }
}

/// A character that is safe whatever stands around it.
fn is_plain(c: char) -> bool {
    match c {
        '\n' | '\t' | ' '..='~' => true,
        _ if c.is_ascii() => false,
        _ => !is_hidden(c) && c.width().is_some_and(|w| w > 0) && !matches!(c, '\u{2028}' | '\u{2029}'),
    }
}

/// Characters that show nothing and only serve to reorder, hide or tag text; joiners are judged apart.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}'
        | '\u{180B}'..='\u{180F}'
        | '\u{200B}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{3164}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}' | '\u{FFFE}' | '\u{FFFF}'
        | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
}

/// JSON made safe for a terminal without losing anything: what may not be shown stands as `\\uXXXX`.
///
/// JSON itself escapes the controls of ASCII; those beyond it and hidden characters may stand in it as they are.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    let must_go = |c: char| !c.is_ascii() && (c.is_control() || is_hidden(c) || matches!(c, '\u{2028}' | '\u{2029}'));
    if !json.contains(must_go) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if must_go(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04x}"));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Where the reader stands in an escape sequence (ECMA-48).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Ground,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate such as `(`: the final character is still to come.
    Intermediate,
    /// After ESC `[` or U+009B: until a final character.
    Csi,
    /// Inside OSC, DCS, SOS, PM or APC: until ST or BEL.
    Text,
    /// Inside such a string, after ESC: `\` makes it ST.
    TextEscape,
}

/// The streaming form of [`sanitize`]: a sequence that is split over chunks is still dropped whole.
///
/// Holds back no text, so there is nothing to flush.
#[derive(Debug, Clone, Default)]
pub struct Sanitizer {
    state: State,
    /// The last character let through decides what may join it.
    last: Option<char>,
    /// Zero-width marks let through since the last character with a width.
    marks: u8,
}

impl Sanitizer {
    pub fn push(&mut self, chunk: &str) -> String {
        let mut out = String::with_capacity(chunk.len());
        for c in chunk.chars() {
            self.step(c, &mut out);
        }
        out
    }

    fn step(&mut self, c: char, out: &mut String) {
        // No sequence goes over a line end: a lost terminator must not swallow the rest of the answer.
        if c == '\n' {
            self.state = State::Ground;
        }
        self.state = match (self.state, c) {
            (State::Text, '\u{1B}') => State::TextEscape,
            (State::TextEscape, '\\') | (State::Text | State::TextEscape, '\u{7}' | '\u{9C}') => State::Ground,
            (State::Text, _) => State::Text,
            (_, '\u{1B}') => State::Escape,
            (_, '\u{9B}') => State::Csi,
            (_, '\u{90}' | '\u{98}' | '\u{9D}' | '\u{9E}' | '\u{9F}') => State::Text,
            (State::Escape | State::TextEscape, '[') => State::Csi,
            (State::Escape | State::TextEscape, ']' | 'P' | 'X' | '^' | '_') => State::Text,
            (State::Escape | State::TextEscape | State::Intermediate, ' '..='/') => State::Intermediate,
            (State::Escape | State::TextEscape | State::Intermediate, '0'..='~') => State::Ground,
            (State::Csi, ' '..='?') => State::Csi,
            (State::Csi, '@'..='~') => State::Ground,
            (state, _) if c.is_control() && c != '\n' && c != '\t' => state,
            // Ground, or a character that no sequence can hold: the sequence ends here.
            _ => {
                self.show(c, out);
                State::Ground
            }
        };
    }

    fn show(&mut self, c: char, out: &mut String) {
        if is_hidden(c) {
            return;
        }
        let c = if matches!(c, '\u{2028}' | '\u{2029}') { '\n' } else { c };
        if matches!(c, '\n' | '\t') || c.width().is_some_and(|w| w > 0) {
            self.marks = 0;
        } else if self.may_follow(c) {
            self.marks += 1;
        } else {
            return;
        }
        self.last = Some(c);
        out.push(c);
    }

    /// Whether a zero-width character has something to act on here.
    fn may_follow(&self, c: char) -> bool {
        let Some(last) = self.last else { return false };
        let joiner = |c| matches!(c, '\u{200C}' | '\u{200D}');
        let selector = |c| matches!(c, '\u{FE00}'..='\u{FE0F}');
        if last.is_ascii_control() || self.marks >= MAX_MARKS {
            false
        } else if joiner(c) {
            !last.is_ascii() && !joiner(last) // emoji, Arabic and Indic scripts need them; in ASCII they only hide
        } else {
            !selector(c) || !(selector(last) || joiner(last))
        }
    }
}

/// Bytes to text where a character may be split over chunks; what is no UTF-8 becomes U+FFFD.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    /// The bytes of an unfinished character, at most three.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// The characters that are complete by now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::new();
        let mut rest = self.pending.as_slice();
        let unfinished = loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    break Vec::new();
                }
                Err(e) => {
                    let (valid, tail) = rest.split_at(e.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = e.error_len() else { break tail.to_vec() };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &tail[bad..];
                }
            }
        };
        self.pending = unfinished;
        out
    }

    /// The end: U+FFFD when a character was left unfinished.
    pub fn finish(&mut self) -> String {
        let left = std::mem::take(&mut self.pending);
        if left.is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.to_string() }
    }
}

/// Columns that sanitised text without line ends takes on a terminal.
pub fn width(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

/// A number as it stands in a sentence: 1e308 without its zeros.
pub fn number(x: f64) -> String {
    if x.abs() >= 1e15 { format!("{x:e}") } else { x.to_string() }
}

/// Untrusted text as one line of at most `max_width` columns: runs of white space become a space, a cut ends in `…`.
pub fn one_line(text: &str, max_width: usize) -> String {
    let clean = sanitize(text);
    let mut line = String::new();
    for word in clean.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > max_width.saturating_mul(64) {
            break; // far beyond the cut already, whatever the widths
        }
    }
    if width(&line) <= max_width {
        return line;
    }
    let mut cut = String::new();
    for c in line.chars() {
        cut.push(c);
        if width(&cut) + 1 > max_width {
            cut.pop();
            break;
        }
    }
    cut.truncate(cut.trim_end_matches([' ', '\u{200D}']).len());
    if max_width > 0 {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole, and in every split into two chunks and into single characters, with the same result.
    fn clean(text: &str) -> String {
        let whole = sanitize(text).into_owned();
        for (at, _) in text.char_indices() {
            let mut s = Sanitizer::default();
            assert_eq!(s.push(&text[..at]) + &s.push(&text[at..]), whole, "split at {at} of {text:?}");
        }
        let mut s = Sanitizer::default();
        let single: String = text.chars().map(|c| s.push(c.encode_utf8(&mut [0; 4]))).collect();
        assert_eq!(single, whole);
        whole
    }

    #[test]
    fn json_keeps_what_it_hides() {
        let text = "a\u{1b}[31m\u{9b}2J\u{202e}\u{200b}\u{2028}\u{e0041}ü👍🏽";
        let json = serde_json::json!(text).to_string();
        let escaped = escape_json(&json);
        assert!(escaped.chars().all(|c| c.is_ascii() || matches!(c, 'ü' | '👍' | '🏽')), "{escaped}");
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        assert!(matches!(escape_json("{\"ü\": 1}"), Cow::Borrowed(_)));
    }

    #[test]
    fn plain_text_is_borrowed_and_unchanged() {
        for text in ["", "Hello,\n\tworld ~", "schön, 你好, ünïcödé €", "🔴 feedback"] {
            assert!(matches!(sanitize(text), Cow::Borrowed(t) if t == text), "{text:?}");
        }
    }

    #[test]
    fn escape_sequences_go_whole() {
        for (text, expected) in [
            ("a\x1b[31mred\x1b[0m b", "ared b"),
            ("\x1b[2J\x1b[1;1Hhome", "home"),
            ("\x1b[?1049h\x1b[>4;2m\x1b[!pq", "q"),
            ("x\x1b[ qy", "xy"),
            ("\x1b]0;title\x07text", "text"),
            ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b]52;c;aGk=\u{9c}text", "text"),
            ("\x1bP+q544e\x1b\\text", "text"),
            ("\x1b_Gf=24;AAAA\x1b\\text", "text"),
            ("\x1bXsos\x1b\\a\x1b^pm\x1b\\b", "ab"),
            ("\x1bcreset", "reset"),
            ("\x1b(0lqk", "lqk"),
            ("\x1b#8x", "x"),
            ("\x1b7\x1b8x", "x"),
            ("\u{9b}31mred", "red"),
            ("\u{9d}0;t\u{9c}x\u{90}q\u{9c}y", "xy"),
            ("\x1b\x1b[31mx", "x"),
            ("\x1b[3\x1b[1mx", "x"),
            ("\x1b[31", ""),
            ("tail\x1b", "tail"),
            ("\x1b]0;a\x1b[31mx", "x"),
        ] {
            assert_eq!(clean(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_lost_terminator_swallows_one_line_at_most() {
        assert_eq!(clean("a\x1b]0;never ended\nb"), "a\nb");
        assert_eq!(clean("a\x1b[1;2\nb"), "a\nb");
        assert_eq!(clean("\x1bé\x1b[31é"), "éé");
    }

    #[test]
    fn controls_go_and_line_ends_stay() {
        assert_eq!(clean("a\x08\x07\0b\r\nc\td\x7f\u{85}e\u{8d}"), "ab\nc\tde");
        assert_eq!(clean("safe\rEVIL"), "safeEVIL");
        assert_eq!(clean("a\u{2028}b\u{2029}c"), "a\nb\nc");
    }

    #[test]
    fn bidi_and_hidden_characters_go() {
        assert_eq!(clean("a\u{202e}txt.exe\u{202c}b\u{2066}c\u{2069}\u{200f}\u{61c}"), "atxt.exebc");
        assert_eq!(clean("pa\u{200b}ss\u{2060}wo\u{feff}rd\u{ad}"), "password");
        assert_eq!(clean("x\u{e0041}\u{e007f}\u{e0101}y"), "xy");
        assert_eq!(clean("a\u{200d}\u{200c}b\u{3164}c"), "abc");
        assert_eq!(clean("🙂\u{fe0f}\u{fe01}\u{fe02}\u{fe0f}!"), "🙂\u{fe0f}!");
    }

    #[test]
    fn joiners_stay_where_scripts_and_emoji_need_them() {
        for text in ["👩‍💻 👨‍👩‍👧 ❤️ 👍🏽 1️⃣ 🏳️‍🌈", "می‌خواهم", "क्‍ष", "e\u{301}a\u{308}", "ไม่"]
        {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn piles_of_marks_are_cut() {
        let pile = "e".to_string() + &"\u{301}".repeat(100) + "x";
        assert_eq!(clean(&pile).chars().count(), 1 + MAX_MARKS as usize + 1);
        assert_eq!(clean("\u{301}a\n\u{301}b"), "a\nb");
    }

    #[test]
    fn no_control_survives_any_sequence() {
        // Every pair and triple of characters that matter to the machine, then a visible end.
        let set: Vec<char> =
            "\x1b[]P\\\x07\u{9b}\u{9d}\u{9c}\u{90}m;1 (\n\té\u{200d}\u{fe0f}\u{202e}👍\u{301}\r".chars().collect();
        for &a in &set {
            for &b in &set {
                for &c in &set {
                    let text: String = [a, b, c].iter().collect();
                    let out = clean(&text);
                    assert!(
                        out.chars().all(|c| (!c.is_control() || c == '\n' || c == '\t') && !is_hidden(c)),
                        "{text:?} -> {out:?}"
                    );
                    assert_eq!(clean(&out), out, "not stable: {text:?}");
                    let ended = clean(&(text + "\nend"));
                    assert!(ended.ends_with("end"), "{ended:?}");
                }
            }
        }
    }

    #[test]
    fn utf8_survives_every_split_and_bad_bytes_show() {
        let text = "aé€🙂\u{10ffff}z";
        for at in 0..=text.len() {
            let mut s = Utf8Stream::default();
            let joined = s.push(&text.as_bytes()[..at]) + &s.push(&text.as_bytes()[at..]) + &s.finish();
            assert_eq!(joined, text);
        }
        let bytes = [b'a', 0xff, 0xe2, 0x82, b'b', 0xc0, 0xaf, 0xed, 0xa0, 0x80, 0xf0, 0x9f];
        let mut whole = Utf8Stream::default();
        let whole = whole.push(&bytes) + &whole.finish();
        assert_eq!(whole, String::from_utf8_lossy(&bytes));
        let mut single = Utf8Stream::default();
        let mut out: String = bytes.iter().map(|b| single.push(&[*b])).collect();
        out += &single.finish();
        assert_eq!(out, whole);
        assert_eq!(single.finish(), "");
    }

    #[test]
    fn one_line_fits_and_says_when_it_cut() {
        assert_eq!(one_line("  a\n\tb  c ", 80), "a b c");
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdef", 5), "abcd…");
        assert_eq!(one_line("ab cdef", 4), "ab…");
        assert_eq!(one_line("你好世界", 5), "你好…");
        assert_eq!(one_line("\x1b[31mred\x1b[0m", 80), "red");
        assert_eq!(one_line("abc", 0), "");
        assert_eq!(one_line("👩‍💻👩‍💻👩‍💻", 3), "👩‍💻…");
        for max in 0..12 {
            assert!(width(&one_line("❤️❤️ 你好 👍🏽 e\u{301}e\u{301} 👨‍👩‍👧 abc", max)) <= max);
        }
        assert!(width(&one_line(&"word ".repeat(100_000), 40)) <= 40);
    }

    #[test]
    fn width_counts_columns() {
        assert_eq!(width("abc"), 3);
        assert_eq!(width("你好"), 4);
        assert_eq!(width("e\u{301}"), 1);
    }
}
