//! From what the lower rooms give to what the screen shows.

use super::render::{About, BufferFigures, BufferView, ExampleRow, Recorded, Undone, WaitingRow};
use super::render_lessons::{LessonLine, LessonsView, Whereabouts};
use super::render_stats::local_time;
use super::render_stats::question;
use super::render_training::{AdapterRow, AdapterState, LastRun};
use crate::adapter::active;
use crate::adapter::registry::{Entry, Registry, State};
use crate::config::FeedbackSection;
use crate::error::Result;
use crate::feedback::revision::Proposal;
use crate::feedback::{Interaction, Lesson, Verdict};
use crate::paths::Paths;
use crate::session;
use crate::session::{Acknowledgement, BufferCounts, LessonList, LessonRow, Place};
use crate::store::{Run, Store, TrainingSet};

pub fn about(interaction: &Interaction) -> About {
    About { prompt: question(&interaction.messages).to_string(), response: interaction.response.clone() }
}

pub fn counts(c: &BufferCounts) -> BufferFigures {
    BufferFigures { examples: c.examples, weight: c.weighted, waiting: c.waiting }
}

pub fn figures(set: &TrainingSet) -> BufferFigures {
    BufferFigures { examples: set.buffer.len(), weight: set.buffer.total_weight(), waiting: set.waiting.len() }
}

pub fn recorded(given: &Acknowledgement) -> Recorded {
    let replaced = given.replaced.iter().rev().find(|f| f.kind.is_explicit()).map(|f| f.kind);
    let unused = match &given.verdict {
        Some(Verdict::Nothing(unused)) => Some(unused.reason.to_string()),
        _ => None,
    };
    Recorded {
        kind: given.feedback.kind,
        weight: given.feedback.weight,
        source: given.feedback.source(),
        preferred: given.preferred.as_ref().map(|first| first.weight),
        buffer: counts(&given.buffer),
        replaced,
        earlier: given.earlier_session.then(|| about(&given.interaction)),
        unused,
        applies: given.applies,
    }
}

pub fn undone(u: &session::Undone) -> Undone {
    Undone { kind: u.feedback.kind, about: about(&u.interaction), buffer: counts(&u.buffer) }
}

/// The lessons of a conversation.
pub fn lessons(list: LessonList) -> LessonsView {
    let line = |row: LessonRow| LessonLine {
        id: row.lesson.id,
        note: row.lesson.text,
        weight: row.lesson.weight,
        place: match row.place {
            _ if list.budget == 0 => Whereabouts::Off,
            Place::Prompt => Whereabouts::Prompt,
            Place::Next => Whereabouts::Next,
            Place::Carried(adapter) => Whereabouts::Carried(adapter),
            Place::Waiting => Whereabouts::Waiting,
            Place::TooLong(tokens) => Whereabouts::TooLong { tokens, budget: list.budget },
        },
        shared: row.shared,
    };
    LessonsView { lines: list.rows.into_iter().map(line).collect() }
}

/// The lessons outside of any conversation. `adapter`: the live one and the digests of the notes that it carries; `off`:
/// lessons are switched off.
pub fn standing_lessons(lessons: Vec<Lesson>, adapter: Option<(&str, &[String])>, off: bool) -> LessonsView {
    let place = |lesson: &Lesson| match adapter {
        _ if off => Whereabouts::Off,
        Some((name, carries)) if lesson.is_carried(name, carries) => Whereabouts::Carried(name.to_string()),
        _ => Whereabouts::InForce,
    };
    let line = |lesson: Lesson| LessonLine {
        id: lesson.id,
        place: place(&lesson),
        note: lesson.text,
        weight: lesson.weight,
        shared: Vec::new(),
    };
    LessonsView { lines: lessons.into_iter().map(line).collect() }
}

/// The buffer for training on `base`.
pub fn buffer(store: &Store, base: &str, settings: &FeedbackSection) -> Result<BufferView> {
    let set = store.training_set(base, settings.buffer_capacity)?;
    let consumed = store.consumed(base)?;
    let probabilities = set.buffer.probabilities();
    let examples = set.buffer.examples().iter().zip(probabilities).map(|(example, share)| ExampleRow {
        weight: example.weight,
        share,
        new: consumed.is_new(example),
        prompt: question(&example.messages).to_string(),
        completion: example.completion.clone(),
    });
    let mut waiting = Vec::new();
    for bad in &set.waiting {
        let prompt = store.interaction(bad.interaction)?.map(|i| question(&i.messages).to_string());
        waiting.push(WaitingRow {
            kind: bad.feedback.kind,
            prompt: prompt.unwrap_or_default(),
            note: bad.feedback.note.clone(),
            proposed: Proposal::of(&bad.feedback).is_some_and(|proposal| !proposal.rejected),
        });
    }
    Ok(BufferView {
        figures: figures(&set),
        capacity: settings.buffer_capacity,
        new: set.new,
        threshold: settings.threshold,
        auto_train: settings.auto_train,
        examples: examples.collect(),
        waiting,
    })
}

/// `trains`: somebody trains on this data folder now.
pub fn last_run(run: &Run, trains: bool) -> LastRun {
    let result = run.result.as_ref();
    let unfinished = if trains { "running" } else { "unfinished, as its finch ended" };
    LastRun {
        time: local_time(run.finished.unwrap_or(run.started)),
        outcome: result.map_or(unfinished, |r| r.outcome.name()).to_string(),
        loss: result.and_then(|r| r.loss_before.zip(r.loss_after)),
        adapter: result.and_then(|r| r.adapter.clone()),
    }
}

/// All adapters, oldest first, with what is live on any base.
pub fn adapters(paths: &Paths) -> Result<Vec<AdapterRow>> {
    Registry::new(paths.clone()).list().iter().map(|entry| adapter(paths, entry)).collect()
}

fn adapter(paths: &Paths, entry: &Entry) -> Result<AdapterRow> {
    let made = entry.provenance.as_ref();
    let previous = match made {
        Some(made) => active::read(paths, &made.base)?.previous.as_ref() == Some(&entry.name),
        None => false,
    };
    let refused = made.and_then(|m| m.gate.as_ref()).filter(|gate| !gate.passed);
    let refused = refused.map(|gate| format!("refused by the gate: {}", gate.reasons.join("; ")));
    let state = match &entry.state {
        State::Broken(reason) => AdapterState::Broken(reason.clone()),
        State::Ok if !active::bases_of(paths, &entry.name)?.is_empty() => AdapterState::Live,
        State::Ok if previous => AdapterState::Previous,
        State::Ok => AdapterState::Kept(refused),
    };
    Ok(AdapterRow {
        name: entry.name.clone(),
        time: entry.created.map(local_time).unwrap_or_default(),
        base: made.map(|m| m.base.clone()).unwrap_or_default(),
        rank: entry.summary.as_ref().map(|s| s.rank),
        examples: made.map(|m| m.examples),
        loss: made.and_then(|m| m.loss_before.zip(m.loss_after)),
        bytes: entry.bytes,
        state,
    })
}
