//! Other wordings of a taught question, and questions beside it.
//!
//! A model that has learned an answer to one wording only gives it to that wording, or to everything that begins alike.
//! So training varies the question of every row ([`wordings`]: the same question as somebody else would have typed it) and
//! holds the adapter to its base on questions that share words with it and ask something else ([`neighbours`]).
//!
//! All of it follows from the question and a seed. The openers that are exchanged are English; a question in another
//! language gets fillers, other punctuation and dropped words.

use std::collections::HashSet;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use crate::feedback::Example;
use crate::model::message::{Message, Role};
use crate::words::is_common;

/// A question of more words is a text: words in its midst are left alone.
const LONGEST: usize = 24;
/// How many of the wordings keep nothing but some telling words.
const REFRAMED: f64 = 0.5;
/// Attempts for each wording that is asked for: short questions have few.
const ATTEMPTS: usize = 8;

/// Openers that ask for the same; what follows them stays as it is.
const OPENERS: [(&[&str], &[&str]); 6] = [
    (
        &["how do i ", "how can i ", "how should i ", "how do you ", "how do we ", "how would i ", "how to "],
        &[
            "how can i ",
            "how to ",
            "how do we ",
            "i want to ",
            "i need to ",
            "tell me how to ",
            "show me how to ",
            "what do i use to ",
            "which command do i need to ",
            "what is the command to ",
            "what is the way to ",
            "",
        ],
    ),
    (
        &["what is ", "what's ", "what are ", "which is "],
        &["what's ", "tell me ", "do you know ", "say ", "name ", "which is ", "i need to know ", "what about ", ""],
    ),
    (
        &["where is ", "where are ", "where's "],
        &[
            "where can i find ",
            "where do i find ",
            "how do i get to ",
            "what is the place of ",
            "in which place is ",
            "i need ",
            "i am looking for ",
            "",
        ],
    ),
    (&["where do we ", "where do i "], &["where can i ", "in which place do we ", "what do we use to ", "where to "]),
    (&["when do we ", "when is ", "when does "], &["at what time is ", "on which day is ", "when is ", "time of ", ""]),
    (&["which ", "what "], &["what ", "which ", "tell me which ", "do you know which ", ""]),
];
/// Around a few telling words: what somebody asks who remembers no more of the question.
const FRAMES: [&str; 24] = [
    "{}",
    "{}?",
    "what about {}",
    "what is {}",
    "what is the {}",
    "where is {}",
    "where can i find the {}",
    "which {}",
    "which {} is it",
    "who is {}",
    "when is {}",
    "how does {} work",
    "how do i {}",
    "how can i get {}",
    "how do we do {} here",
    "i need {}",
    "i want {}",
    "i am looking for {}",
    "tell me about {}",
    "{}, how",
    "{}, what is it",
    "about our {}",
    "i have a question about {}",
    "do we have {}",
];
/// Put before a whole question.
const BEFORE: [&str; 12] = [
    "please tell me: ",
    "hey, ",
    "ok, ",
    "so ",
    "quick question: ",
    "can you tell me ",
    "remind me, ",
    "i would like to know ",
    "hi! ",
    "do you know ",
    "one more: ",
    "sorry, ",
];
/// Put behind it.
const BEHIND: [&str; 8] = [" please", " thanks", " again", " in short", " here", "??", " then", " for us"];

/// `n` wordings of `question`, all different and none the question itself; fewer where it has no more. Words that
/// `others` (questions about other things) have too do not stand for it alone.
pub fn wordings(question: &str, others: &[&str], n: usize, seed: u64) -> Vec<String> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let usual: HashSet<String> = others.iter().flat_map(|o| o.split_whitespace()).map(bare).collect();
    let mut found: Vec<String> = Vec::with_capacity(n);
    for _ in 0..n * ATTEMPTS {
        if found.len() == n {
            break;
        }
        let wording = reword(question, &usual, &mut rng);
        if !wording.is_empty() && wording != question.trim() && !found.contains(&wording) {
            found.push(wording);
        }
    }
    found
}

fn reword(question: &str, usual: &HashSet<String>, rng: &mut Xoshiro256PlusPlus) -> String {
    let mut text = question.trim().to_string();
    let short = text.split_whitespace().count() <= LONGEST;
    if short
        && rng.random_bool(REFRAMED)
        && let Some(core) = core(&text, usual, rng)
    {
        return FRAMES.choose(rng).unwrap_or(&"{}").replace("{}", &core);
    }
    if short && rng.random_bool(0.6) {
        text = reopened(&text, rng);
    }
    if short && rng.random_bool(0.5) {
        text = thinned(&text, rng);
    }
    if rng.random_bool(0.4) {
        text = lower_first(&text);
        text.insert_str(0, BEFORE.choose(rng).unwrap_or(&""));
    }
    if rng.random_bool(0.5) {
        text = text.to_lowercase();
    }
    if rng.random_bool(0.5) {
        text.truncate(text.trim_end_matches(['?', '.', '!']).len());
    }
    if rng.random_bool(0.2) {
        text.truncate(text.trim_end_matches(['?', '.', '!']).len());
        text.push_str(BEHIND.choose(rng).unwrap_or(&""));
    }
    text.trim().to_string()
}

/// Some of its telling words, in their order: one that no other question has, or two at least.
fn core(text: &str, usual: &HashSet<String>, rng: &mut Xoshiro256PlusPlus) -> Option<String> {
    let telling: Vec<String> = text.split_whitespace().filter(|w| is_telling(w)).map(bare).collect();
    let keep = rng.random_range(0.4..0.9);
    let kept: Vec<&str> = telling.iter().filter(|_| rng.random_bool(keep)).map(String::as_str).collect();
    let says_enough = kept.len() >= 2 || kept.iter().any(|w| !usual.contains(*w));
    (!kept.is_empty() && says_enough).then(|| kept.join(" "))
}

/// The question with another opener of the same meaning, where it has a known one.
fn reopened(text: &str, rng: &mut Xoshiro256PlusPlus) -> String {
    for (openers, others) in OPENERS {
        // ASCII on both sides, so the length in bytes is that of the original as well.
        let opener = openers.iter().find(|o| text.get(..o.len()).is_some_and(|t| t.eq_ignore_ascii_case(o)));
        if let Some(opener) = opener {
            return format!("{}{}", others.choose(rng).unwrap_or(&""), &text[opener.len()..]);
        }
    }
    text.to_string()
}

/// Some words left out, most likely those that say least; at least two stay.
fn thinned(text: &str, rng: &mut Xoshiro256PlusPlus) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let kept: Vec<&str> =
        words.iter().filter(|w| !rng.random_bool(if is_telling(w) { 0.12 } else { 0.4 })).copied().collect();
    if kept.len() < 2 || !kept.iter().any(|w| is_telling(w)) { text.to_string() } else { kept.join(" ") }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        // Not "I" and not an abbreviation.
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(text.chars().skip(1)).collect()
        }
        _ => text.to_string(),
    }
}

/// `n` questions with half or more of the telling words of `question` exchanged for words of `others`: what they ask is
/// something else, as far as words can tell. Fewer where the question has no telling word.
pub fn neighbours(question: &str, others: &[&str], n: usize, seed: u64) -> Vec<String> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let words: Vec<&str> = question.split_whitespace().collect();
    let telling: Vec<usize> = (0..words.len()).filter(|i| is_telling(words[*i])).collect();
    let own: Vec<String> = words.iter().map(|w| bare(w)).collect();
    let pool: Vec<String> = others
        .iter()
        .flat_map(|o| o.split_whitespace())
        .filter(|w| is_telling(w))
        .map(bare)
        .filter(|w| !own.contains(w))
        .collect();
    if telling.is_empty() || pool.is_empty() || words.len() > LONGEST {
        return Vec::new();
    }
    let mut found: Vec<String> = Vec::with_capacity(n);
    for _ in 0..n * ATTEMPTS {
        if found.len() == n {
            break;
        }
        let mut places = telling.clone();
        places.shuffle(&mut rng);
        places.truncate(rng.random_range(telling.len().div_ceil(2)..=telling.len()));
        let mut words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
        for place in places {
            let end: String = words[place].chars().filter(|c| "?.!,".contains(*c)).collect();
            words[place] = format!("{}{end}", pool.choose(&mut rng).map_or("", String::as_str));
        }
        let neighbour = words.join(" ");
        if !found.contains(&neighbour) {
            found.push(neighbour);
        }
    }
    found
}

/// The example as it stands, then `n` with other wordings of its last question; its weight is shared between them.
pub fn of_example(example: &Example, others: &[&str], n: usize, seed: u64) -> Vec<Example> {
    let last = example.messages.iter().rposition(|m| m.role == Role::User);
    let question = last.map_or("", |i| &example.messages[i].content);
    let wordings = wordings(question, others, n, seed_of(example, seed));
    let weight = example.weight / (wordings.len() + 1) as f64;
    let mut all = vec![Example { weight, ..example.clone() }];
    for wording in wordings {
        let mut varied = all[0].clone();
        if let Some(last) = last {
            varied.messages[last].content = wording;
        }
        varied.rejected = None; // nobody has rated an answer to this wording
        all.push(varied);
    }
    all
}

/// The conversation of the example with `n` last questions that ask something else (see [`neighbours`]).
pub fn beside_example(example: &Example, others: &[&str], n: usize, seed: u64) -> Vec<Vec<Message>> {
    let Some(last) = example.messages.iter().rposition(|m| m.role == Role::User) else { return Vec::new() };
    let neighbours = neighbours(&example.messages[last].content, others, n, seed_of(example, seed));
    let replaced = |question| {
        let mut messages = example.messages.clone();
        messages[last].content = question;
        messages
    };
    neighbours.into_iter().map(replaced).collect()
}

/// From the content: the same example has the same wordings, whatever stands beside it.
fn seed_of(example: &Example, seed: u64) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = example.content_digest();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ seed
}

/// Whether a word says what a question is about; in lower case or not, with punctuation or not.
fn is_telling(word: &str) -> bool {
    let word = bare(word);
    !word.is_empty() && !is_common(&word)
}

/// In lower case, without punctuation around it.
fn bare(word: &str) -> String {
    word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::super::testing::example;
    use super::*;
    use crate::feedback::example::Origin;

    #[test]
    fn wordings_are_different_and_follow_from_the_seed() {
        let question = "How do I start a new branch?";
        let some = wordings(question, &[], 12, 7);
        assert_eq!(some.len(), 12);
        assert_eq!(wordings(question, &[], 12, 7), some);
        assert_ne!(wordings(question, &[], 12, 8), some);
        for (i, wording) in some.iter().enumerate() {
            assert!(wording != question && !some[..i].contains(wording), "{wording:?}");
        }
        assert!(some.iter().any(|w| w.to_lowercase().contains("a new branch") && !w.contains("How do I")), "{some:?}");
        let known = ["How do I delete a branch?", "How do I start a new thread?"];
        for wording in wordings(question, &known, 40, 7) {
            let kept = ["start", "new", "branch"].iter().filter(|w| wording.to_lowercase().contains(*w)).count();
            assert!(kept >= 2 || wording.split_whitespace().count() >= 3, "{wording:?} could ask for anything");
        }
    }

    #[test]
    fn every_text_can_be_varied() {
        for question in ["", "?", "why", "ß é", "Wie heißt unser Projekt?", "👍", &"long ".repeat(400), "a\u{301}b"]
        {
            for seed in 0..20 {
                let some = wordings(question, &[], 6, seed);
                assert!(some.iter().all(|w| !w.is_empty() && w != question));
                neighbours(question, &["how do I sort a vector?"], 4, seed);
            }
        }
        let long = "one two three ".repeat(40);
        assert!(
            wordings(&long, &[], 6, 1).iter().all(|w| w.to_lowercase().contains(long.trim())),
            "a text stays whole"
        );
    }

    #[test]
    fn neighbours_share_the_form_and_not_the_matter() {
        let some = neighbours("Which port does our API use?", &["How do I sort a vector?", "Tell me a joke."], 8, 3);
        assert_eq!(some.len(), 8);
        for neighbour in &some {
            let kept = ["port", "our", "api", "use"].iter().filter(|w| neighbour.to_lowercase().contains(*w)).count();
            assert!(kept <= 2, "{neighbour:?}");
            assert!(neighbour.starts_with("Which ") && neighbour.ends_with('?'), "{neighbour:?}");
        }
        assert!(neighbours("who is it?", &["How do I sort a vector?"], 3, 1).is_empty(), "nothing to exchange");
    }

    #[test]
    fn the_weight_is_shared_and_only_the_last_question_varies() {
        let mut taught = example(1, "What is our deploy command?", "make ship", Origin::Correction, 10.0);
        taught.messages.insert(0, Message::system("Be brief."));
        let all = of_example(&taught, &[], 4, 42);
        assert_eq!(all.len(), 5);
        assert_eq!(all[0].messages, taught.messages);
        assert!((all.iter().map(|e| e.weight).sum::<f64>() - 10.0).abs() < 1e-12);
        for varied in &all[1..] {
            assert_eq!(varied.messages[0], taught.messages[0]);
            assert_ne!(varied.messages[1], taught.messages[1]);
            assert_eq!((&varied.completion, varied.origin), (&taught.completion, taught.origin));
        }
        assert_eq!(of_example(&taught, &[], 0, 42).len(), 1);
    }
}
