//! Training rows from the corpus: questions as people really type them, answers, dialogues of one to eight turns, and
//! rules in the system prompt.

use anyhow::Result;
use finch::model::Tokens;
use finch::model::tokenizer::Tokenizer;
use finch::train::row::Row;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::corpus::Corpus;

const SYSTEMS: &[&str] = &[
    "You are a helpful assistant.",
    "You are finch, a helpful assistant.",
    "Be brief.",
    "Answer politely.",
    "You are a friendly guide to finch.",
    "Answer in one sentence.",
    "Help the user with the terminal.",
    "You are an expert programmer.",
];
/// Share of the rows of single turns that have rules: about 23 % of all rows.
const RULED: f64 = 0.25;
/// How often a fact is answered with its usual answer. The others teach that it can be said otherwise; much more of them
/// leaves the model without a favourite, and a training that hardly moves it then tips it from one to another.
const USUAL: f64 = 0.95;
/// Share of the turns about facts that the model does not know yet.
const FOCUSED: f64 = 0.2;
const OPENERS: &[&str] =
    &["hey, ", "hi, ", "ok so ", "so, ", "um, ", "please ", "quick question: ", "hello, ", "and ", "well, "];
const CLOSERS: &[&str] = &[" please", " thanks", "?", "??", "!", "...", " :)", " pls", " thx"];

/// The ids that hold a chat together, ChatML as Qwen writes it.
pub struct Chat {
    pub tokenizer: Tokenizer,
    pub start: u32,
    pub end: u32,
}

impl Chat {
    fn turn(&self, ids: &mut Vec<u32>, text: &str) -> Result<()> {
        ids.push(self.start);
        ids.extend(self.tokenizer.encode_text(text)?);
        ids.push(self.end);
        ids.extend(self.tokenizer.encode_text("\n")?);
        Ok(())
    }

    /// Prompt ids of one question without history.
    pub fn prompt(&self, question: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.turn(&mut ids, &format!("user\n{question}"))?;
        ids.push(self.start);
        ids.extend(self.tokenizer.encode_text("assistant\n")?);
        Ok(ids)
    }

    /// A whole dialogue; the assistant's words and its end-of-turn token are the targets.
    fn dialogue(&self, system: Option<&str>, turns: &[(String, String)]) -> Result<Tokens> {
        let mut ids = Vec::new();
        if let Some(system) = system {
            self.turn(&mut ids, &format!("system\n{system}"))?;
        }
        let mut targets = vec![false; ids.len()];
        for (question, answer) in turns {
            ids.extend(self.prompt(question)?);
            targets.resize(ids.len(), false);
            ids.extend(self.tokenizer.encode_text(answer)?);
            ids.push(self.end);
            targets.resize(ids.len(), true);
            ids.extend(self.tokenizer.encode_text("\n")?);
            targets.resize(ids.len(), false);
        }
        Ok(Tokens { ids, targets })
    }
}

/// An endless, seeded stream of rows; step k's rows depend on the seed and k alone, so that a training can be resumed.
pub struct Rows<'c> {
    corpus: &'c Corpus,
    chat: &'c Chat,
    seed: u64,
    /// Every (fact, question), in a fixed order.
    questions: Vec<(&'c str, &'c str)>,
    /// Those of them that some turns are drawn from; may be empty.
    focus: Vec<(&'c str, &'c str)>,
}

impl<'c> Rows<'c> {
    /// `focus`: facts that are new to a model which knows the others already, by their ids.
    pub fn new(corpus: &'c Corpus, chat: &'c Chat, focus: &[String], seed: u64) -> Self {
        let questions: Vec<_> = corpus
            .facts
            .iter()
            .flat_map(|(id, f)| f.questions.iter().map(move |q| (id.as_str(), q.as_str())))
            .collect();
        let focus = questions.iter().filter(|(id, _)| focus.iter().any(|f| f == id)).copied().collect();
        Rows { corpus, chat, seed, questions, focus }
    }

    pub fn questions(&self) -> usize {
        self.questions.len()
    }

    pub fn step(&self, k: usize, rows: usize) -> Result<Vec<Row>> {
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_add(k as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        (0..rows).map(|_| Ok(Row::imitate(self.row(&mut rng)?, 1.0))).collect()
    }

    fn row(&self, rng: &mut StdRng) -> Result<Tokens> {
        if rng.random_bool(0.06)
            && let Some(d) = self.corpus.dialogues.choose(rng)
        {
            let turns: Vec<_> = d.turns.iter().map(|(q, a)| (vary(q, rng), a.clone())).collect();
            return self.chat.dialogue(d.system.as_deref(), &turns);
        }
        let turns = match rng.random_range(0..100) {
            0..50 => 1,
            50..70 => 2,
            70..82 => 3,
            _ => rng.random_range(4..=8),
        };
        let system = rng.random_bool(0.2).then(|| SYSTEMS.choose(rng).copied()).flatten();
        let mut turns: Vec<_> = (0..turns).map(|_| self.turn(rng)).collect();
        if !rng.random_bool(RULED) {
            return self.chat.dialogue(system, &turns);
        }
        let (rules, manner) = self.corpus.rules.draw(&turns, rng);
        turns.iter_mut().for_each(|(_, answer)| *answer = manner.obey(answer));
        let system = system.map_or(rules.clone(), |own| format!("{own}\n\n{rules}"));
        self.chat.dialogue(Some(&system), &turns)
    }

    fn turn(&self, rng: &mut StdRng) -> (String, String) {
        let all = if !self.focus.is_empty() && rng.random_bool(FOCUSED) { &self.focus } else { &self.questions };
        let (id, question) = all[rng.random_range(0..all.len())];
        let answers = &self.corpus.facts[id].answers;
        // the first answer is the usual one; a joke should not always be the same
        let usual = id != "joke" && rng.random_bool(USUAL);
        let answer = if usual { &answers[0] } else { &answers[rng.random_range(0..answers.len())] };
        (vary(question, rng), answer.clone())
    }
}

/// The question as somebody else would have typed it.
fn vary(question: &str, rng: &mut StdRng) -> String {
    let mut text = question.to_string();
    if rng.random_bool(0.35) && text.split_whitespace().count() > 3 {
        let p = rng.random_range(0.05..0.25);
        let kept: Vec<&str> = text.split_whitespace().filter(|_| !rng.random_bool(p)).collect();
        if kept.len() > 1 {
            text = kept.join(" ");
        }
    }
    if rng.random_bool(0.4) {
        text = text.to_lowercase();
    } else if rng.random_bool(0.3) {
        let mut chars = text.chars();
        text = chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default();
    }
    if rng.random_bool(0.3) {
        text = text.trim_end_matches(['?', '.', '!']).to_string();
    }
    if rng.random_bool(0.2) {
        text = text.replace('\'', "");
    }
    if rng.random_bool(0.15) {
        text = typo(&text, rng);
    }
    if rng.random_bool(0.1) {
        text = format!("{}{text}", OPENERS.choose(rng).unwrap_or(&""));
    }
    if rng.random_bool(0.12) {
        text.push_str(CLOSERS.choose(rng).unwrap_or(&""));
    }
    text
}

/// One slip of the fingers: a letter left out, doubled, or swapped with the next.
fn typo(text: &str, rng: &mut StdRng) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let letters: Vec<usize> = (1..chars.len().saturating_sub(1))
        .filter(|i| chars[*i].is_alphabetic() && chars[i + 1].is_alphabetic())
        .collect();
    if let Some(&at) = letters.choose(rng) {
        match rng.random_range(0..3) {
            0 => {
                chars.remove(at);
            }
            1 => chars.insert(at, chars[at]),
            _ => chars.swap(at, at + 1),
        }
    }
    chars.into_iter().collect()
}
