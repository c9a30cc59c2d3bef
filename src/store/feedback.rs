//! Feedback: recording it, what replaces what, taking it back.
//!
//! An answer has at most one judgement and one correction in force.
//! - A judgement replaces the one before it. A better answer that came with that one moves on to the new one, so that
//!   nothing the user typed is lost by rating again.
//! - A correction replaces the correction before it and joins a bad rating; praise from before it is replaced, since
//!   an answer that was corrected is not the good one.
//! - An implicit signal replaces nothing.
//!
//! Undoing feedback puts back in force what it had replaced. What was given in one breath ([`Store::add_feedback_with`]) is
//! taken back in one.

use chrono::{DateTime, Utc};
use rusqlite::{Transaction, params};
use serde_json::Value;

use super::rows::{self, FEEDBACK, INTERACTION, INTERACTION_COLUMNS};
use super::{Step, Store, interactions};
use crate::error::{Error, Result};
use crate::feedback::revision::{PROPOSAL, Proposal};
use crate::feedback::{Feedback, Interaction, Kind, NewFeedback};

/// Where the metadata of implied feedback names the one that it follows from.
const IMPLIED_BY: &str = "implied_by";

/// Feedback that is now on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub feedback: Feedback,
    /// What it put out of force.
    pub replaced: Vec<Feedback>,
}

/// Feedback that was taken back.
#[derive(Debug, Clone, PartialEq)]
pub struct Undone {
    pub feedback: Feedback,
    pub interaction: Interaction,
    /// What is in force again instead.
    pub restored: Vec<Feedback>,
}

impl Store {
    /// Records feedback on an interaction; it is on disk when this returns.
    ///
    /// Errors: no such interaction; a correction without text; a value outside −1…1, a weight that is negative or not
    /// finite.
    pub fn add_feedback(&self, interaction: i64, new: NewFeedback) -> Result<Recorded> {
        self.write(|transaction| {
            interactions::expect(transaction, interaction)?;
            insert(transaction, interaction, new, rows::now())
        })
    }

    /// As [`Store::add_feedback`], with `implied`, feedback on another interaction that follows from it: both or neither is on
    /// disk, and undoing takes back both.
    pub fn add_feedback_with(
        &self,
        interaction: i64,
        new: NewFeedback,
        implied: (i64, NewFeedback),
    ) -> Result<(Recorded, Recorded)> {
        self.write(|transaction| {
            let (other, mut implied) = implied;
            interactions::expect(transaction, interaction)?;
            interactions::expect(transaction, other)?;
            let given = insert(transaction, interaction, new, rows::now())?;
            implied.metadata[IMPLIED_BY] = given.feedback.id.into();
            implied.session = given.feedback.session.clone();
            let implied = insert(transaction, other, implied, rows::now())?;
            Ok((given, implied))
        })
    }

    /// Notes the answer that is proposed for a rating, or what became of it. False: the rating is out of force by now, and
    /// nothing was noted.
    pub fn keep_proposal(&self, rating: i64, proposal: &Proposal) -> Result<bool> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE feedback
                 SET metadata = json_set(CASE json_type(metadata) WHEN 'object' THEN metadata ELSE '{}' END, ?2, json(?3))
                 WHERE id = ?1 AND replaced_by IS NULL AND undone IS NULL",
                params![rating, format!("$.{PROPOSAL}"), proposal.to_json().to_string()],
            )?;
            Ok(changed > 0)
        })
    }

    /// What is in force on an interaction, in the order in which it was given.
    pub fn feedback_on(&self, interaction: i64) -> Result<Vec<Feedback>> {
        self.read(|transaction| in_force(transaction, interaction))
    }

    /// Takes back the last explicit feedback in force that was given in `session`, or anywhere; `None`: there is none.
    pub fn undo_last(&self, session: Option<&str>) -> Result<Option<Undone>> {
        self.write(|transaction| {
            let sql = if session.is_some() { "f.session = ?1" } else { "?1 IS NULL" };
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT {FEEDBACK} FROM feedback_in_force f WHERE {sql} AND f.explicit ORDER BY f.id DESC LIMIT 1"
            ))?;
            let Some(feedback) = rows::collect(statement.query([session])?, |row| rows::feedback(row, 0))?.pop() else {
                return Ok(None);
            };
            let mut restored = take_back(transaction, feedback.id)?;
            let cause = feedback.metadata.get(IMPLIED_BY).and_then(Value::as_i64);
            let cause = cause.map(|id| find_in_force(transaction, id)).transpose()?.flatten();
            if let Some(cause) = &cause {
                restored.extend(take_back(transaction, cause.id)?);
            }
            let feedback = cause.unwrap_or(feedback);
            let interaction = interactions::expect(transaction, feedback.interaction)?;
            Ok(Some(Undone { feedback, interaction, restored }))
        })
    }

    /// The latest feedback in force with its interactions, newest first.
    pub fn feedback_list(&self, limit: usize) -> Result<Vec<(Feedback, Interaction)>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|transaction| with_interactions(transaction, "ORDER BY f.id DESC LIMIT ?1", [limit]))
    }

    /// All feedback in force with its interactions, oldest first: what an export writes.
    pub fn all_feedback(&self) -> Result<Vec<(Feedback, Interaction)>> {
        self.read(|transaction| with_interactions(transaction, "ORDER BY f.id", []))
    }

    /// Every interaction with explicit feedback in force, and that feedback in the order in which it was given. The
    /// interactions come in the order of their latest feedback: the order in which the buffer takes them in.
    pub fn judged(&self) -> Result<Vec<(Interaction, Vec<Feedback>)>> {
        self.read(judged)
    }
}

pub(super) fn judged(transaction: &Transaction) -> Step<Vec<(Interaction, Vec<Feedback>)>> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {INTERACTION}, {FEEDBACK} FROM (
             SELECT interaction, max(id) AS latest FROM feedback_in_force WHERE explicit GROUP BY interaction
         ) last JOIN interactions i ON i.id = last.interaction
         JOIN feedback_in_force f ON f.interaction = i.id AND f.explicit
         ORDER BY last.latest, f.id"
    ))?;
    let mut judged: Vec<(Interaction, Vec<Feedback>)> = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let feedback = rows::feedback(row, INTERACTION_COLUMNS)?;
        match judged.last_mut() {
            Some((interaction, list)) if interaction.id == feedback.interaction => list.push(feedback),
            _ => judged.push((rows::interaction(row)?, vec![feedback])),
        }
    }
    Ok(judged)
}

fn with_interactions(
    transaction: &Transaction,
    order: &str,
    parameters: impl rusqlite::Params,
) -> Step<Vec<(Feedback, Interaction)>> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {INTERACTION}, {FEEDBACK} FROM feedback_in_force f JOIN interactions i ON i.id = f.interaction {order}"
    ))?;
    rows::collect(statement.query(parameters)?, |row| {
        Ok((rows::feedback(row, INTERACTION_COLUMNS)?, rows::interaction(row)?))
    })
}

/// Puts feedback out of force; what it had replaced is in force again.
fn take_back(transaction: &Transaction, id: i64) -> Step<Vec<Feedback>> {
    let mut statement = transaction
        .prepare_cached(&format!("SELECT {FEEDBACK} FROM feedback f WHERE f.replaced_by = ?1 ORDER BY f.id"))?;
    let restored = rows::collect(statement.query([id])?, |row| rows::feedback(row, 0))?;
    transaction.execute("UPDATE feedback SET replaced_by = NULL WHERE replaced_by = ?1", [id])?;
    transaction.execute("UPDATE feedback SET undone = ?2 WHERE id = ?1", [id, rows::millis(rows::now())])?;
    Ok(restored)
}

fn find_in_force(transaction: &Transaction, id: i64) -> Step<Option<Feedback>> {
    let mut statement =
        transaction.prepare_cached(&format!("SELECT {FEEDBACK} FROM feedback_in_force f WHERE f.id = ?1"))?;
    Ok(rows::collect(statement.query([id])?, |row| rows::feedback(row, 0))?.pop())
}

pub(super) fn in_force(transaction: &Transaction, interaction: i64) -> Step<Vec<Feedback>> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {FEEDBACK} FROM feedback_in_force f WHERE f.interaction = ?1 ORDER BY f.id"
    ))?;
    rows::collect(statement.query([interaction])?, |row| rows::feedback(row, 0))
}

/// The rules of this module's head.
pub(super) fn insert(
    transaction: &Transaction,
    interaction: i64,
    mut new: NewFeedback,
    time: DateTime<Utc>,
) -> Step<Recorded> {
    check(&new)?;
    let replaced: Vec<Feedback> =
        in_force(transaction, interaction)?.into_iter().filter(|earlier| replaces(&new, earlier)).collect();
    if new.kind.is_judgement() && new.corrected.is_none() {
        new.corrected = replaced.iter().rev().find_map(|earlier| earlier.corrected.clone());
    }
    transaction
        .prepare_cached(
            "INSERT INTO feedback (time, interaction, session, kind, explicit, value, weight, note, corrected, metadata)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            rows::millis(time),
            interaction,
            new.session,
            new.kind.name(),
            new.kind.is_explicit(),
            new.value,
            new.weight,
            new.note,
            new.corrected,
            new.metadata.to_string(),
        ])?;
    let id = transaction.last_insert_rowid();
    for earlier in &replaced {
        transaction.execute("UPDATE feedback SET replaced_by = ?2 WHERE id = ?1", [earlier.id, id])?;
    }
    let feedback = Feedback {
        id,
        time,
        interaction,
        session: new.session,
        kind: new.kind,
        value: new.value,
        weight: new.weight,
        note: new.note,
        corrected: new.corrected,
        metadata: new.metadata,
    };
    Ok(Recorded { feedback, replaced })
}

/// Whether `new` puts `earlier`, of the same interaction, out of force.
fn replaces(new: &NewFeedback, earlier: &Feedback) -> bool {
    match (new.kind, earlier.kind) {
        (Kind::Correction, Kind::Correction) => true,
        (Kind::Correction, kind) => kind.is_judgement() && earlier.value >= 0.0,
        (kind, earlier) => kind.is_judgement() && earlier.is_judgement(),
    }
}

fn check(new: &NewFeedback) -> Result<()> {
    if new.kind == Kind::Correction && new.corrected.as_deref().is_none_or(|text| text.trim().is_empty()) {
        return Err(Error::failure("a correction needs the better answer"));
    }
    if !(-1.0..=1.0).contains(&new.value) {
        return Err(Error::failure(format!("feedback value {} is not between -1 and 1", new.value)));
    }
    if !(new.weight >= 0.0 && new.weight.is_finite()) {
        return Err(Error::failure(format!("feedback weight {} is not a finite number from 0", new.weight)));
    }
    Ok(())
}
