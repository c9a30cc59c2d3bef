//! How near lessons are to a question: BM25 (Robertson & Zaragoza 2009) over each note and the questions it was given on.
//!
//! Only words count, so it can be explained: the score is a sum over the words that question and lesson share, and a word
//! that few lessons have weighs more.

use std::collections::BTreeSet;

use super::Lesson;
use crate::words::{is_common, words};

/// How soon further occurrences of a word stop counting.
const K1: f64 = 1.2;
/// How much long texts are held back, 0 to 1.
const B: f64 = 0.75;

/// A lesson's nearness to a question.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Relevance {
    /// From 0: nothing shared; only comparable within one call.
    pub score: f64,
    /// The shared words as the question has them, the weightiest first.
    pub words: Vec<String>,
}

/// The relevance of each lesson, in their order.
pub fn relevance(question: &str, lessons: &[Lesson]) -> Vec<Relevance> {
    let texts: Vec<Vec<String>> = lessons.iter().map(text).collect();
    let mean = texts.iter().map(Vec::len).sum::<usize>() as f64 / texts.len().max(1) as f64;
    let mut asked = telling(question);
    let mut seen = BTreeSet::new();
    asked.retain(|word| seen.insert(stem(word).to_string()));
    let found = |text: &[String], stem: &str| text.iter().filter(|word| *word == stem).count() as f64;
    let asked: Vec<(String, f64)> = asked
        .into_iter()
        .map(|word| {
            let holding = texts.iter().filter(|text| found(text, stem(&word)) > 0.0).count() as f64;
            // Robertson's and Spärck Jones's weight, in the form that is never negative.
            let rarity = (1.0 + (texts.len() as f64 - holding + 0.5) / (holding + 0.5)).ln();
            (word, rarity)
        })
        .collect();
    let of_text = |text: &Vec<String>| {
        let length = K1 * (1.0 - B + B * text.len() as f64 / mean.max(1.0));
        let mut shared: Vec<(f64, &str)> = Vec::new();
        for (word, rarity) in &asked {
            let count = found(text, stem(word));
            if count > 0.0 {
                shared.push((rarity * count * (K1 + 1.0) / (count + length), word));
            }
        }
        shared.sort_by(|a, b| b.0.total_cmp(&a.0)); // stable: equal ones stay in the question's order
        Relevance {
            score: shared.iter().map(|(score, _)| score).sum(),
            words: shared.iter().map(|(_, word)| word.to_string()).collect(),
        }
    };
    texts.iter().map(of_text).collect()
}

/// What a lesson is about, as stems.
fn text(lesson: &Lesson) -> Vec<String> {
    let parts = std::iter::once(&lesson.text).chain(&lesson.questions);
    parts.flat_map(|part| telling(part)).map(|word| stem(&word).to_string()).collect()
}

fn telling(text: &str) -> Vec<String> {
    words(text).into_iter().filter(|word| !is_common(word)).collect()
}

/// Plural and singular are one word.
fn stem(word: &str) -> &str {
    word.strip_suffix('s').filter(|stem| stem.chars().count() >= 3 && !stem.ends_with('s')).unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::super::tests::lesson;
    use super::*;

    fn scores(question: &str, lessons: &[Lesson]) -> Vec<f64> {
        relevance(question, lessons).into_iter().map(|r| r.score).collect()
    }

    #[test]
    fn shared_words_decide_and_are_named() {
        let lessons = [
            lesson(1, "Never use .unwrap() in production code", &["How do I read a file in Rust?"]),
            lesson(2, "Answer in German", &["Good morning!"]),
            lesson(3, "Prefer ripgrep", &["How do I search all files?"]),
        ];
        let found = relevance("Which crate reads FILES in rust best?", &lessons);
        assert_eq!(found[0].words, ["reads", "rust", "files"], "the rarer ones first");
        assert_eq!(found[1], Relevance::default());
        assert_eq!(found[2].words, ["files"]);
        assert!(found[0].score > found[2].score && found[2].score > 0.0);
        assert_eq!(scores("What is it about?", &lessons), [0.0; 3], "common words share nothing");
    }

    #[test]
    fn scores_are_those_of_the_formula() {
        // Two texts of 2 and 4 words, mean 3; “file” stands once in the first and twice in the second.
        let lessons = [lesson(1, "file red", &[]), lesson(2, "file file green blue", &[])];
        let rarity = (1.0f64 + 0.5 / 2.5).ln();
        let expected = [(1.0, 2.0), (2.0, 4.0)]
            .map(|(count, length)| rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / 3.0)));
        for (score, expected) in scores("file", &lessons).into_iter().zip(expected) {
            assert!((score - expected).abs() < 1e-12, "{score} {expected}");
        }
        assert_eq!(scores("file file FILES", &lessons), scores("file", &lessons), "a question's word counts once");
    }

    #[test]
    fn nothing_to_compare_is_no_fault() {
        assert!(relevance("anything", &[]).is_empty());
        assert_eq!(scores("", &[lesson(1, "…", &[])]), [0.0]);
        assert_eq!(scores("why", &[lesson(1, "…", &[])]), [0.0]);
    }
}
