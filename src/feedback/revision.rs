//! Revisions: better answers to the same question, made from the note of a bad rating. What is asked of the model, what a
//! candidate must pass, and which one is the best: all pure; the asking itself is the session's.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::example::{WaitReason, judge_all};
use super::lesson::{self, prompt};
use super::record::{Feedback, Finish, Interaction};
use super::rule::{Rule, rules};
use crate::model::message::{Message, Role};
use crate::text;
use crate::words::{is_common, words};

/// Candidates that are written for one revision.
pub const CANDIDATES: usize = 3;
/// A candidate's length over that of the answer, both in characters.
const SHORTEST: f64 = 0.3;
const LONGEST: f64 = 3.0;
/// Answers shorter than this, in characters, may grow as if they had as many.
const SHORT_ANSWER: usize = 80;
/// Share of common words from which a candidate is the answer once more.
const NEAR_COPY: f64 = 0.9;

/// How much likelier an answer has to be behind its own question than behind others, in nat a token. Of 80 questions of
/// `assets/finch-tiny/dev.tsv`, weighed by `finch score` on the built-in model, 65 % of the right answers reach it, 55 % of
/// them in other words, and 5 % of the answers to another of these questions. What does not reach it only waits.
const OWN_QUESTION: f64 = 0.25;

/// With fewer telling words in question, answer and note, a candidate without any of them may be about the same.
const TELLING: usize = 8;

/// A bad answer with a note, and so something to make a revision from.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub interaction: Interaction,
    /// The rating in force, with its note.
    pub rating: Feedback,
}

impl Case {
    /// What an answer and its rating in force ask for; `None`: no revision, as the rating is not bad or has no note.
    pub fn of(interaction: &Interaction, rating: &Feedback) -> Option<Case> {
        let noted = rating.note.as_deref().is_some_and(|note| !note.trim().is_empty());
        let bad = rating.kind.is_judgement() && rating.value < 0.0;
        (noted && bad).then(|| Case { interaction: interaction.clone(), rating: rating.clone() })
    }

    /// What was asked last.
    pub fn question(&self) -> &str {
        let asked = self.interaction.messages.iter().rev().find(|message| message.role == Role::User);
        asked.map_or("", |message| &message.content)
    }

    /// The note without the white space around it.
    pub fn note(&self) -> &str {
        self.rating.note.as_deref().unwrap_or_default().trim()
    }
}

/// Every bad answer with a note that still waits for a better one when training on `base`, oldest rating first.
pub fn pending(judged: &[(Interaction, Vec<Feedback>)], base: &str) -> Vec<Case> {
    let waiting = judge_all(judged, base).waiting;
    let open = waiting.iter().filter(|w| w.reason == WaitReason::NoBetterAnswer);
    open.filter_map(|w| {
        let (interaction, _) = judged.iter().find(|(interaction, _)| interaction.id == w.interaction)?;
        Case::of(interaction, &w.feedback)
    })
    .collect()
}

/// A revision that awaits the user's word; it is kept with the rating that it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    pub text: String,
    /// Digest of the weights that wrote it.
    pub base: String,
    /// How much likelier the note makes it: nat a token.
    pub gain: f64,
    #[serde(default)]
    pub rejected: bool,
}

/// Where the rating's metadata keeps it.
pub const PROPOSAL: &str = "revision";

impl Proposal {
    /// The one kept with a rating.
    pub fn of(rating: &Feedback) -> Option<Proposal> {
        serde_json::from_value(rating.metadata.get(PROPOSAL)?.clone()).ok()
    }

    pub fn to_json(&self) -> Value {
        json!(self)
    }
}

/// "Prompt, answer and note → better answer": the conversation goes on with the note.
pub fn rewriting(messages: &[Message], answer: &str, note: &str) -> Vec<Message> {
    let request = format!("{note}\n\nAnswer the question again with that in mind. Give only the better answer.");
    messages.iter().cloned().chain([Message::assistant(answer), Message::user(request)]).collect()
}

/// The prompt with the note as a rule of the system prompt, in the form that lessons have.
pub fn ruled(messages: &[Message], note: &str) -> Vec<Message> {
    let rule = prompt::line(&lesson::one_line(note));
    let mut messages = messages.to_vec();
    match messages.first_mut().filter(|first| first.role == Role::System) {
        Some(system) if system.content.contains(prompt::HEADING) => system.content.push_str(&rule),
        Some(system) => system.content.push_str(&format!("\n\n{}{rule}", prompt::HEADING)),
        None => messages.insert(0, Message::system(format!("{}{rule}", prompt::HEADING))),
    }
    messages
}

/// Why a candidate is no revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Empty,
    /// It did not end by itself.
    CutOff,
    /// It holds the template's markup or what no terminal may see.
    Unclean,
    /// The note's own words.
    Echo,
    /// It shares no telling word with the question, the answer or the note, or the question makes it no likelier.
    OffTopic,
    TooShort,
    TooLong,
    /// The answer once more, but for words that the note did not ask for.
    NearCopy,
    /// A rule of the note is broken.
    Breaks(Rule),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Empty => f.write_str("empty"),
            Fault::CutOff => f.write_str("cut off"),
            Fault::Unclean => f.write_str("garbled"),
            Fault::Echo => f.write_str("only the note again"),
            Fault::OffTopic => f.write_str("about something else"),
            Fault::TooShort => f.write_str("too short"),
            Fault::TooLong => f.write_str("too long"),
            Fault::NearCopy => f.write_str("the same answer again"),
            Fault::Breaks(rule) => write!(f, "against \"{rule}\""),
        }
    }
}

/// Whether a candidate may stand for `answer` to `question`, given the note; the first fault found where it may not.
pub fn check(candidate: &str, finish: Finish, question: &str, answer: &str, note: &str) -> Result<(), Fault> {
    let candidate = candidate.trim();
    if candidate.is_empty() {
        return Err(Fault::Empty);
    }
    if finish != Finish::Stop {
        return Err(Fault::CutOff);
    }
    let markup = ["<|", "|>", "<think>", "</think>", "\u{FFFD}"];
    if markup.iter().any(|mark| candidate.contains(mark)) || text::sanitize(candidate) != candidate {
        return Err(Fault::Unclean);
    }
    let rules = rules(note);
    if let Some(broken) = rules.iter().find(|rule| !rule.holds(candidate)) {
        return Err(Fault::Breaks(broken.clone()));
    }
    let (new, old, said) = (bag(candidate), bag(answer), bag(note));
    if new == said {
        return Err(Fault::Echo);
    }
    if is_off_topic(candidate, &format!("{question} {answer} {note}")) {
        return Err(Fault::OffTopic);
    }
    let (length, before) = (candidate.chars().count() as f64, answer.trim().chars().count());
    if length < SHORTEST * before as f64 {
        return Err(Fault::TooShort);
    }
    if length > LONGEST * before.max(SHORT_ANSWER) as f64 {
        return Err(Fault::TooLong);
    }
    // A small change may be all that was asked for: a rule kept that was broken, a word that the note gives.
    let mended = rules.iter().any(|rule| !rule.holds(answer));
    let taken = new.keys().any(|word| !old.contains_key(word) && said.contains_key(word));
    if common(&new, &old) > NEAR_COPY && !mended && !taken {
        return Err(Fault::NearCopy);
    }
    Ok(())
}

/// Whether a candidate shares no word with what it is to be about. Where that has few words of its own, or one of both is
/// written without spaces between words, nothing can be told.
fn is_off_topic(candidate: &str, matter: &str) -> bool {
    let unspaced = |c: char| matches!(c, '\u{0E00}'..='\u{0EFF}' | '\u{3040}'..='\u{9FFF}');
    let telling = |text| words(text).into_iter().filter(|word| !is_common(word)).collect::<BTreeSet<_>>();
    let known = telling(matter);
    let can_tell = known.len() >= TELLING && !candidate.chars().chain(matter.chars()).any(unspaced);
    can_tell && telling(candidate).is_disjoint(&known)
}

/// Words in lower case without the marks around them, and how often each comes.
fn bag(text: &str) -> HashMap<String, usize> {
    let mut bag = HashMap::new();
    for word in text.split_whitespace() {
        let bare = word.trim_matches(|c: char| matches!(c, '.' | ',' | ';' | ':' | '!' | '?' | '"' | '“' | '”' | '*'));
        if !bare.is_empty() {
            *bag.entry(bare.to_lowercase()).or_insert(0) += 1;
        }
    }
    bag
}

/// Share of the words of both that they have in common (Dice's coefficient), 0 to 1.
fn common(a: &HashMap<String, usize>, b: &HashMap<String, usize>) -> f64 {
    let all: usize = a.values().chain(b.values()).sum();
    let shared: usize = a.iter().map(|(word, n)| (*n).min(b.get(word).copied().unwrap_or(0))).sum();
    if all == 0 { 1.0 } else { 2.0 * shared as f64 / all as f64 }
}

/// mean_t[log p(y_t | x, note) − log p(y_t | x)] in nat, over log-probabilities of the same tokens; 0 for none.
pub fn gain(with_note: &[f32], without: &[f32]) -> f64 {
    let pairs = with_note.iter().zip(without);
    let sum: f64 = pairs.map(|(with, without)| f64::from(*with) - f64::from(*without)).sum();
    sum / with_note.len().min(without.len()).max(1) as f64
}

/// Whether an answer belongs to its question: by the log-probabilities of its tokens behind that, and behind each of some
/// others that ask something else.
pub fn is_about(own: &[f32], others: &[Vec<f32>]) -> bool {
    let gains: f64 = others.iter().map(|other| gain(own, other)).sum();
    others.is_empty() || gains / others.len() as f64 >= OWN_QUESTION
}

/// The place of the greatest gain; of equals the first. `None` for none; what is no number is no gain.
pub fn best(gains: &[f64]) -> Option<usize> {
    let finite = gains.iter().enumerate().filter(|(_, gain)| gain.is_finite());
    finite.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(at, _)| at)
}

/// "2 cut off, 1 too long": the faults of all candidates, each kind once, in the order in which they came.
pub fn faults_in_words(faults: &[Fault]) -> String {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for fault in faults {
        let words = fault.to_string();
        match counted.iter_mut().find(|(known, _)| *known == words) {
            Some((_, n)) => *n += 1,
            None => counted.push((words, 1)),
        }
    }
    counted.iter().map(|(words, n)| format!("{n} {words}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "revision_tests.rs"]
mod tests;
