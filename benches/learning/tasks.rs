//! What is taught and asked: the data files, what counts as obeyed, and disjoint draws.

use anyhow::{Context, Result, ensure};
use finch::learn::canaries::{REPLAYED, WATCHED};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use serde::Deserialize;

/// Corrections and praised answers of a round: ten rows of feedback.
pub const TAUGHT: usize = 7;
pub const PRAISED: usize = 3;
/// Rounds in a row on one growing buffer.
pub const ROUNDS: usize = 3;

/// One rule or fact; `tasks.toml` says what the fields hold.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub id: String,
    pub question: String,
    pub answer: String,
    pub note: String,
    check: String,
    pub paraphrases: Vec<String>,
    pub near: Vec<String>,
}

impl Task {
    /// Whether an answer holds one alternative (`a|b`) of every group (joined by ` & `) of the check, ignoring case.
    pub fn is_obeyed(&self, answer: &str) -> bool {
        let answer = answer.to_lowercase();
        self.check.split(" & ").all(|group| group.split('|').any(|words| answer.contains(&words.to_lowercase())))
    }
}

#[derive(Debug, Deserialize)]
struct TaskFile {
    task: Vec<Task>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Prompts {
    pub praised: Vec<String>,
    pub unrelated: Vec<String>,
}

/// Both data files, checked: what is measured is never what finch replays or watches.
pub fn load() -> Result<(Vec<Task>, Prompts)> {
    let tasks = toml::from_str::<TaskFile>(include_str!("tasks.toml")).context("tasks.toml")?.task;
    let prompts: Prompts = toml::from_str(include_str!("prompts.toml")).context("prompts.toml")?;
    let same = |a: &str, b: &str| a.trim().eq_ignore_ascii_case(b.trim());
    let known = |p: &str| REPLAYED.iter().chain(&WATCHED).any(|known| same(known, p));
    for task in &tasks {
        ensure!(task.is_obeyed(&task.answer), "{}: the answer does not pass its own check", task.id);
        ensure!(task.paraphrases.len() >= 5 && task.near.len() >= 3, "{}: too few prompts", task.id);
        for prompt in task.paraphrases.iter().chain(&task.near) {
            ensure!(!known(prompt), "{}: {prompt:?} is replayed or watched", task.id);
            ensure!(!tasks.iter().any(|t| same(&t.question, prompt)), "{}: {prompt:?} is taught", task.id);
        }
    }
    for prompt in &prompts.unrelated {
        ensure!(!known(prompt), "{prompt:?} is replayed or watched");
        ensure!(!prompts.praised.contains(prompt), "{prompt:?} is praised");
        ensure!(!tasks.iter().any(|t| same(&t.question, prompt) || t.near.contains(prompt)), "{prompt:?} is a task's");
    }
    Ok((tasks, prompts))
}

/// What a seed stands for: three rounds of tasks, and of prompts whose answers are praised.
pub struct Draw {
    pub rounds: Vec<Vec<Task>>,
    pub praised: Vec<Vec<String>>,
}

/// Seeds 2k and 2k+1 draw the two halves of one shuffle of the tasks: they share none.
pub fn draw(tasks: &[Task], prompts: &Prompts, seed: u64) -> Draw {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed / 2);
    let (mut tasks, mut praised) = (tasks.to_vec(), prompts.praised.clone());
    tasks.shuffle(&mut rng);
    praised.shuffle(&mut rng);
    let half = (seed % 2) as usize;
    let tasks = &tasks[half * ROUNDS * TAUGHT..][..ROUNDS * TAUGHT];
    let praised = &praised[half * ROUNDS * PRAISED..][..ROUNDS * PRAISED];
    Draw {
        rounds: tasks.chunks(TAUGHT).map(<[Task]>::to_vec).collect(),
        praised: praised.chunks(PRAISED).map(<[String]>::to_vec).collect(),
    }
}
