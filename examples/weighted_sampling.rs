//! How ratings become the rows of a training: ten ratings, what each may teach, and how often it is drawn.
//!
//! ```text
//! cargo run --release --example weighted_sampling
//! cargo run --release --example weighted_sampling -- 7        # another seed
//! ```
//!
//! Row i is drawn with P(i) = wᵢ / Σw. The draws are systematic: n of them take a row ⌊n·P(i)⌋ or ⌈n·P(i)⌉ times, and
//! the seed only decides between the two, so a critical lesson is never missed by bad luck. No model is needed, and the
//! store lies in a folder that is removed at the end.

use anyhow::{Context, Result};
use finch::feedback::kind::Stars;
use finch::feedback::{FeedbackConfig, Finish, Kind, NewFeedback, NewInteraction};
use finch::model::message::Message;
use finch::store::{Store, TrainingSet};
use serde_json::json;

/// Names the model that gave the answers: its own answers are examples for itself only.
const BASE: &str = "digest of the base";

fn main() -> Result<()> {
    let seed = std::env::args().nth(1).map_or(Ok(42), |word| word.parse()).context("the seed should be a number")?;
    let folder = tempfile::tempdir()?;
    let store = Store::open(&folder.path().join("finch.db"))?;
    rate(&store)?;

    let config = FeedbackConfig::default();
    let TrainingSet { buffer, waiting, .. } = store.training_set(BASE, config.buffer_capacity)?;
    let (rows, weighted) = (buffer.len(), buffer.total_weight());
    println!("buffer: {rows} examples ({weighted:.1} weighted), {} waiting for a better answer\n", waiting.len());

    let (epoch, many) = (buffer.systematic(rows, seed), buffer.systematic(1000, seed));
    let times = |draws: &[usize], row| draws.iter().filter(|drawn| **drawn == row).count();
    println!("   weight    P(i)   of {rows:<4}  of 1000  example");
    for (row, (example, p)) in buffer.examples().iter().zip(buffer.probabilities()).enumerate() {
        let question = &example.messages[0].content;
        let (few, thousand) = (times(&epoch, row), times(&many, row));
        println!("{:>9.1} {p:>7.4} {few:>7} {thousand:>9}   {question} → {}", example.weight, example.completion);
    }
    for example in waiting {
        println!("        –       –       –         –   #{}: {}", example.interaction, example.reason);
    }
    Ok(())
}

/// Stores ten answers, a rating on each, and the better answer to some of those that were bad.
fn rate(store: &Store) -> Result<()> {
    let config = FeedbackConfig::default();
    let four_stars = Kind::Rating(Stars::new(4).context("a rating has one to five stars")?);
    let ratings = [
        ("How do I parse a number?", "s.parse().unwrap()", Kind::Critical, Some("s.parse()? and say what was wrong")),
        ("How do I stop a process?", "kill -9 PID", Kind::Medium, Some("kill PID; -9 only when it does not listen")),
        ("How do I delete a branch?", "git branch -D main", Kind::Critical, None),
        ("How do I list files?", "ls", Kind::Good, None),
        ("How do I count lines?", "wc -l FILE", Kind::Good, None),
        ("How do I make a folder?", "mkdir NAME", Kind::ThumbsUp, None),
        ("How do I find a file?", "find . -name NAME", Kind::Good, None),
        ("How do I see my changes?", "git diff", Kind::ThumbsUp, None),
        ("How do I make a commit?", "git commit -m TEXT", Kind::Good, None),
        ("How do I rename a file?", "mv OLD NEW", four_stars, None),
    ];
    for ((question, answer, kind, better), turn) in ratings.into_iter().zip(1..) {
        let id = store.add_interaction(&interaction(turn, question, answer))?.id;
        store.add_feedback(id, NewFeedback::new(kind, &config))?;
        if let Some(better) = better {
            store.add_feedback(id, NewFeedback::correction(better, &config))?;
        }
    }
    Ok(())
}

fn interaction(turn: u32, question: &str, answer: &str) -> NewInteraction {
    NewInteraction {
        session: "example".into(),
        turn,
        messages: vec![Message::user(question)],
        response: answer.into(),
        model: "none".into(),
        base: Some(BASE.into()),
        adapter: None,
        thinking: None,
        sampling: json!({}),
        finish: Finish::Stop,
        timings: json!({}),
        metadata: json!({}),
    }
}
