//! Rules in the system prompt, in the form that finch gives to lessons. Most leave an answer as it is; some are obeyed by
//! copying: words at its beginning or end, a name, its case. Half of the words are invented, so that copying is learned
//! and not a list.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use finch::feedback::lesson::prompt::HEADING;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

const SECTIONS: [&str; 8] = ["notes", "begin", "end", "sign", "lower", "upper", "words", "names"];
const SYLLABLES: &[&str] = &[
    "ka", "lo", "mi", "ru", "ve", "ta", "no", "shi", "pel", "dor", "gri", "zan", "bu", "fex", "wy", "qua", "ost",
    "lim", "jo", "har", "den", "cu", "bri", "ga",
];

/// Sections of `rules.txt` by their heading; `{}` in a wording stands for the word.
#[derive(Default)]
pub struct Rules(BTreeMap<String, Vec<String>>);

/// What the rules of one row do to its answers.
#[derive(Default)]
pub struct Manner {
    begin: Option<String>,
    end: Option<String>,
    case: Option<fn(&str) -> String>,
}

impl Rules {
    pub fn parse(text: &str) -> Result<Rules> {
        let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut current = String::new();
        for line in text.lines().map(str::trim_end).filter(|l| !l.is_empty()) {
            match line.strip_prefix("# ") {
                Some(heading) => current = heading.to_string(),
                None => sections.entry(current.clone()).or_default().push(line.to_string()),
            }
        }
        for name in SECTIONS {
            sections.get(name).with_context(|| format!("no section {name}"))?;
        }
        if let Some(unknown) = sections.keys().find(|k| !SECTIONS.contains(&k.as_str())) {
            bail!("unknown section {unknown:?}");
        }
        Ok(Rules(sections))
    }

    pub fn texts(&self) -> impl Iterator<Item = &String> {
        self.0.values().flatten()
    }

    /// One to four rules for a row of these `turns`, as the system message says them, and how its answers obey them.
    pub fn draw(&self, turns: &[(String, String)], rng: &mut StdRng) -> (String, Manner) {
        let (mut rules, mut manner) = (Vec::new(), Manner::default());
        if rng.random_bool(0.6) {
            let kind = rng.random_range(0..100);
            if matches!(kind, 0..55) {
                let word = self.word("words", rng);
                rules.push(self.pick("begin", rng).replace("{}", &word));
                manner.begin = Some(word);
            }
            if matches!(kind, 45..75) {
                let word = self.word("words", rng);
                rules.push(self.pick("end", rng).replace("{}", &word));
                manner.end = Some(word);
            }
            match kind {
                75..88 => {
                    let name = self.word("names", rng);
                    rules.push(self.pick("sign", rng).replace("{}", &name));
                    manner.end = Some(format!("- {name}"));
                }
                // capitals cost three times the tokens: short rows only
                96..100 if turns.len() < 4 => {
                    rules.push(self.pick("upper", rng).to_string());
                    manner.case = Some(str::to_uppercase);
                }
                88..100 => {
                    rules.push(self.pick("lower", rng).to_string());
                    manner.case = Some(str::to_lowercase);
                }
                _ => {}
            }
        }
        let count = [1, 1, 1, 1, 2, 2, 2, 3, 3, 4].choose(rng).copied().unwrap_or(1);
        while rules.len() < count {
            let note = self.pick("notes", rng);
            if !concerns(note, turns) && !rules.iter().any(|r| r == note) {
                rules.push(note.to_string());
            }
        }
        rules.shuffle(rng);
        (format!("{HEADING}\n- {}", rules.join("\n- ")), manner)
    }

    fn pick(&self, section: &str, rng: &mut StdRng) -> &str {
        self.0.get(section).and_then(|lines| lines.choose(rng)).map_or("", String::as_str)
    }

    /// One of the section's words, or as often an invented one.
    fn word(&self, section: &str, rng: &mut StdRng) -> String {
        if rng.random_bool(0.5) {
            return self.pick(section, rng).to_string();
        }
        let word: String = (0..rng.random_range(2..4)).filter_map(|_| SYLLABLES.choose(rng).copied()).collect();
        if rng.random_bool(0.3) { word } else { word[..1].to_uppercase() + &word[1..] }
    }
}

impl Manner {
    /// The usual `answer` as the rules want it; what is written as code keeps its case.
    pub fn obey(&self, answer: &str) -> String {
        let mut text = answer.to_string();
        if let Some(case) = self.case {
            let parts = text.split('`').enumerate();
            text = parts.map(|(i, p)| if i % 2 == 0 { case(p) } else { p.into() }).collect::<Vec<_>>().join("`");
        }
        if let Some(begin) = &self.begin {
            let colon = if begin.ends_with(char::is_alphanumeric) { ":" } else { "" };
            text = format!("{begin}{colon} {text}");
        }
        if let Some(end) = &self.end {
            text = format!("{text} {end}");
        }
        text
    }
}

/// Does the note name something that the answers' code names? Then the usual answer would teach to disobey it.
fn concerns(note: &str, turns: &[(String, String)]) -> bool {
    let note = note.to_lowercase();
    let code = turns.iter().flat_map(|(_, answer)| answer.split('`').skip(1).step_by(2));
    let mut names = code.flat_map(|c| c.split(|c: char| !c.is_alphanumeric())).filter(|n| n.len() > 2);
    names.any(|name| note.split(|c: char| !c.is_alphanumeric()).any(|w| w == name.to_lowercase()))
}
