//! Notes that a machine can check: "never X", "don't use X", "always Y", where X and Y are words that can be looked for.
//!
//! Most notes say more than a search can tell ("always be polite"), so only what is surely meant to the letter counts: text
//! in quotes or backticks, what looks like code, and the words after "say", "use", "mention" and their like. A note of
//! which nothing is left has no rules, which does not mean that it is obeyed.

use std::fmt;

/// One thing to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The text must not be there.
    Absent(String),
    /// The text must be there.
    Present(String),
}

impl Rule {
    /// Whether `text` obeys; letters match in either case, words match whole.
    pub fn holds(&self, text: &str) -> bool {
        match self {
            Rule::Absent(what) => !contains(text, what),
            Rule::Present(what) => contains(text, what),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Absent(what) => write!(f, "no {what}"),
            Rule::Present(what) => write!(f, "always {what}"),
        }
    }
}

/// What a note forbids and demands to the letter, in its order, nothing twice.
pub fn rules(note: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for clause in clauses(note) {
        let Some((demand, rest)) = demand(&clause) else { continue };
        if rest.iter().any(|word| matches!(word.lower().as_str(), "unless" | "except")) {
            continue; // a rule with exceptions is more than a search can tell
        }
        for what in literals(rest, demand) {
            let rule = if demand == Demand::Never { Rule::Absent(what) } else { Rule::Present(what) };
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}

/// Whole words where `what` begins or ends in a letter or digit, case aside.
fn contains(text: &str, what: &str) -> bool {
    let (text, what) = (text.to_lowercase(), what.to_lowercase());
    if what.is_empty() {
        return false;
    }
    let alone = |inside: Option<char>, outside: Option<char>| {
        !(inside.is_some_and(char::is_alphanumeric) && outside.is_some_and(char::is_alphanumeric))
    };
    text.match_indices(&what).any(|(at, found)| {
        alone(what.chars().next(), text[..at].chars().next_back())
            && alone(what.chars().next_back(), text[at + found.len()..].chars().next())
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    Never,
    Always,
}

/// A word of a note; what stood in quotes is one word.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

impl Word {
    fn lower(&self) -> String {
        if self.quoted { String::new() } else { self.text.trim_end_matches([',', ':']).to_lowercase() }
    }
}

/// The note's sentences and half-sentences, without the marks that end them.
fn clauses(note: &str) -> Vec<Vec<Word>> {
    let mut clauses = vec![Vec::new()];
    for line in note.lines() {
        for mut word in words(line) {
            let ends = !word.quoted && word.text.ends_with(['.', ';', '!', '?']) && word.text.chars().count() > 1;
            if ends {
                word.text.truncate(word.text.trim_end_matches(['.', ';', '!', '?']).len());
            }
            // "Never use a(), always use b()": each demand begins a clause of its own.
            let begins = matches!(word.lower().as_str(), "never" | "always" | "but" | "instead" | "rather");
            if begins {
                clauses.push(Vec::new());
            }
            if let Some(clause) = clauses.last_mut() {
                clause.push(word);
            }
            if ends {
                clauses.push(Vec::new());
            }
        }
        clauses.push(Vec::new());
    }
    clauses.retain(|clause| !clause.is_empty());
    clauses
}

/// Splits at white space; quotes hold together. An apostrophe inside a word is a letter.
fn words(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let closing = match first {
            '"' | '`' | '\'' => Some(first),
            '“' => Some('”'),
            '«' => Some('»'),
            '‘' => Some('’'),
            _ => None,
        };
        let inside = &rest[first.len_utf8()..];
        let quoted = closing.and_then(|mark| inside.split_once(mark)).filter(|(text, _)| !text.trim().is_empty());
        if let Some((text, after)) = quoted {
            words.push(Word { text: text.to_string(), quoted: true });
            // The mark that ends the sentence may stand behind the quote.
            rest = after.trim_start_matches(['.', ',', ';', '!', '?', ':']).trim_start();
            continue;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        words.push(Word { text: rest[..end].to_string(), quoted: false });
        rest = rest[end..].trim_start();
    }
    words
}

/// What a clause demands, and the words after the demand.
fn demand(clause: &[Word]) -> Option<(Demand, &[Word])> {
    for (at, word) in clause.iter().enumerate() {
        let next = clause.get(at + 1).map(Word::lower).unwrap_or_default();
        let (demand, length) = match word.lower().as_str() {
            "never" | "don't" | "don’t" | "dont" | "avoid" => (Demand::Never, 1),
            "do" if next == "not" => (Demand::Never, 2),
            "always" => (Demand::Always, 1),
            _ => continue,
        };
        return Some((demand, &clause[at + length..]));
    }
    None
}

/// What to look for in the words after a demand.
fn literals(words: &[Word], demand: Demand) -> Vec<String> {
    let exact: Vec<String> = words
        .iter()
        .filter(|word| word.quoted || is_code(&word.text))
        .map(|word| if word.quoted { word.text.clone() } else { word.text.trim_end_matches([',', ':']).to_string() })
        .collect();
    if !exact.is_empty() {
        return exact;
    }
    spoken(words, demand).into_iter().collect()
}

/// "use the word foo in …" → "foo": one to three plain words after a verb that takes them to the letter.
fn spoken(words: &[Word], demand: Demand) -> Option<String> {
    let verb = words.first()?.lower();
    let literal = match demand {
        Demand::Never => matches!(verb.as_str(), "use" | "say" | "write" | "mention"),
        Demand::Always => matches!(verb.as_str(), "say" | "mention"),
    };
    if !literal {
        return None;
    }
    let skipped = |word: &str| matches!(word, "the" | "a" | "an" | "any" | "word" | "words" | "term" | "phrase");
    let ends = |word: &str| {
        matches!(
            word,
            "in" | "for" | "when" | "if" | "at" | "with" | "to" | "as" | "on" | "and" | "or" | "because" | "that"
        )
    };
    let object: Vec<String> =
        words[1..].iter().map(Word::lower).skip_while(|w| skipped(w)).take_while(|w| !ends(w)).collect();
    (1..=3).contains(&object.len()).then(|| object.join(" "))
}

/// Looks like code: a sign inside that no sentence has, or letters of both cases mixed as names mix them.
fn is_code(word: &str) -> bool {
    let word = word.trim_end_matches([',', ':']);
    let signs = word.contains(['(', ')', '_', '{', '}', '[', ']', '<', '>', '\\', '=', '#', '@', '$', '|', '*', '%'])
        || word.contains("::")
        || word.starts_with('.') && word.len() > 1
        || word.chars().all(|c| c.is_ascii_punctuation()) && !matches!(word, "-" | "–" | "/" | "&");
    let bracketed = word.starts_with('(') && word.chars().skip(1).all(|c| c.is_alphanumeric() || c == ')');
    let camel = word.chars().skip(1).any(char::is_uppercase) && word.chars().any(char::is_lowercase);
    !word.is_empty() && (signs && !bracketed || camel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absent(words: &[&str]) -> Vec<Rule> {
        words.iter().map(|w| Rule::Absent(w.to_string())).collect()
    }

    fn present(words: &[&str]) -> Vec<Rule> {
        words.iter().map(|w| Rule::Present(w.to_string())).collect()
    }

    #[test]
    fn what_is_forbidden_to_the_letter() {
        for (note, words) in [
            ("Never use .unwrap() in production code", &[".unwrap()"][..]),
            ("never use .unwrap() or .expect(), please.", &[".unwrap()", ".expect()"]),
            ("Please don't use `var`.", &["var"]),
            ("Do not say \"as an AI\".", &["as an AI"]),
            ("Don’t use the word delve in answers", &["delve"]),
            ("Avoid std::process.", &["std::process"]),
            ("Too long. Never mention the weather!", &["weather"]),
            ("dont use getElementById", &["getElementById"]),
        ] {
            assert_eq!(rules(note), absent(words), "{note}");
        }
    }

    #[test]
    fn what_is_demanded_to_the_letter() {
        assert_eq!(rules("Always end with “Over.”"), present(&["Over."]));
        assert_eq!(rules("always mention the licence"), present(&["licence"]));
        let both = [absent(&["print()"]), present(&["log()"])].concat();
        assert_eq!(rules("Never use print(), always use log()"), both);
        assert_eq!(rules("Never use print() but always log()."), both);
    }

    #[test]
    fn what_a_search_cannot_tell_is_no_rule() {
        for note in [
            "Always answer in German",
            "Never be rude",
            "Always use type hints",
            "Be brief.",
            "Use ? instead",
            "Never use unsafe unless it is explained",
            "never do that (please)",
            "",
        ] {
            assert_eq!(rules(note), [], "{note}");
        }
    }

    #[test]
    fn words_match_whole_and_in_any_case() {
        let unwrap = Rule::Absent(".unwrap()".into());
        assert!(!unwrap.holds("let x = y.unwrap();"));
        assert!(unwrap.holds("let x = y.unwrap_or(0);"));
        let var = Rule::Absent("var".into());
        assert!(var.holds("a variable, an oscar-winner's variety"));
        assert!(!var.holds("Var x = 1"));
        assert!(Rule::Present("licence".into()).holds("under the MIT Licence."));
        assert!(!Rule::Present("licence".into()).holds("licences differ"));
    }
}
