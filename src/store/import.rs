//! Bringing in rows from a file: all of them or none, and what is there already once only.

use super::{Step, Store, feedback, interactions, rows};
use crate::error::Result;
use crate::feedback::exchange::Incoming;
use crate::feedback::{Feedback, Kind};
use rusqlite::Transaction;

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Rows recorded.
    pub added: usize,
    /// Rows that were here already.
    pub known: usize,
    /// Rows left out because the answer was judged anew since.
    pub outdated: usize,
}

impl Store {
    /// Records `rows` in one transaction.
    ///
    /// A row is known when its interaction (same place, messages, answer and base) has the same feedback in force, or had
    /// it before something later replaced it. Undone feedback comes back. Of two judgements of one answer the later counts.
    pub fn import(&self, rows: &[Incoming]) -> Result<Imported> {
        self.write(|transaction| {
            let mut done = Imported::default();
            for row in rows {
                match take_in(transaction, row)? {
                    Taken::Added => done.added += 1,
                    Taken::Known => done.known += 1,
                    Taken::Outdated => done.outdated += 1,
                }
            }
            Ok(done)
        })
    }
}

enum Taken {
    Added,
    Known,
    Outdated,
}

fn take_in(transaction: &Transaction, row: &Incoming) -> Step<Taken> {
    let now = rows::now();
    let interaction = match interactions::same_content(transaction, row.interaction.content_digest())? {
        Some(id) => id,
        None => {
            let time = row.answered.or(row.time).unwrap_or(now);
            interactions::insert(transaction, &row.interaction, time, true)?.id
        }
    };
    let in_force = feedback::in_force(transaction, interaction)?;
    let is_same = |earlier: &Feedback| {
        let new = &row.feedback;
        (earlier.kind, earlier.value, earlier.weight) == (new.kind, new.value, new.weight)
            && earlier.note == new.note
            // A better answer may have moved on to it from the judgement it replaced.
            && (earlier.corrected == new.corrected || (new.corrected.is_none() && new.kind.is_judgement()))
    };
    if in_force.iter().any(is_same) {
        return Ok(Taken::Known);
    }
    let same_time = |earlier: &Feedback| row.time.is_none_or(|time| rows::millis(time) == rows::millis(earlier.time));
    if replaced(transaction, interaction)?.iter().any(|earlier| is_same(earlier) && same_time(earlier)) {
        return Ok(Taken::Known);
    }
    let same_part = |earlier: &&Feedback| {
        (earlier.kind == Kind::Correction) == (row.feedback.kind == Kind::Correction) && earlier.kind.is_explicit()
    };
    if let Some(time) = row.time
        && row.feedback.kind.is_explicit()
        && in_force.iter().filter(same_part).any(|earlier| earlier.time > time)
    {
        return Ok(Taken::Outdated);
    }
    feedback::insert(transaction, interaction, row.feedback.clone(), row.time.unwrap_or(now))?;
    Ok(Taken::Added)
}

/// Feedback on an interaction that later feedback has replaced.
fn replaced(transaction: &Transaction, interaction: i64) -> Step<Vec<Feedback>> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {} FROM feedback f WHERE f.interaction = ?1 AND f.replaced_by IS NOT NULL AND f.undone IS NULL",
        rows::FEEDBACK
    ))?;
    rows::collect(statement.query([interaction])?, |row| rows::feedback(row, 0))
}
