//! Counts of what the store holds, for `finch stats`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{Store, rows};
use crate::error::Result;

/// Every figure is a count of rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Answers given here; imported ones are apart.
    pub interactions: u64,
    pub imported: u64,
    pub sessions: u64,
    /// Times of the first and the last answer given here.
    pub first: Option<DateTime<Utc>>,
    pub last: Option<DateTime<Utc>>,
    /// Feedback in force, by the name of its kind.
    pub feedback: BTreeMap<String, u64>,
    /// Feedback in force with a note, and with a better answer.
    pub notes: u64,
    pub corrections: u64,
    /// Runs by outcome; `running` where it is not known yet.
    pub runs: BTreeMap<String, u64>,
}

impl Store {
    /// Counts, all of one moment.
    pub fn stats(&self) -> Result<Stats> {
        self.read(|transaction| {
            let mut stats = Stats::default();
            let times: (Option<i64>, Option<i64>);
            (stats.interactions, stats.sessions, times) = transaction.query_row(
                "SELECT count(*), count(DISTINCT session), min(time), max(time) FROM interactions WHERE NOT imported",
                [],
                |row| Ok((count(row, 0)?, count(row, 1)?, (row.get(2)?, row.get(3)?))),
            )?;
            let time = |millis: Option<i64>| millis.map(|millis| rows::time(millis, "an interaction")).transpose();
            (stats.first, stats.last) = (time(times.0)?, time(times.1)?);
            stats.imported =
                transaction.query_row("SELECT count(*) FROM interactions WHERE imported", [], |row| count(row, 0))?;
            (stats.notes, stats.corrections) =
                transaction.query_row("SELECT count(note), count(corrected) FROM feedback_in_force", [], |row| {
                    Ok((count(row, 0)?, count(row, 1)?))
                })?;
            let groups = |sql: &str| -> super::Step<BTreeMap<String, u64>> {
                let mut statement = transaction.prepare_cached(sql)?;
                let pairs = rows::collect(statement.query([])?, |row| Ok((row.get(0)?, count(row, 1)?)))?;
                Ok(pairs.into_iter().collect())
            };
            stats.feedback = groups("SELECT kind, count(*) FROM feedback_in_force GROUP BY kind")?;
            stats.runs = groups("SELECT coalesce(outcome, 'running'), count(*) FROM runs GROUP BY 1")?;
            Ok(stats)
        })
    }
}

/// SQLite's integers are signed; a count is never below zero.
fn count(row: &rusqlite::Row, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::unsigned_abs)
}
