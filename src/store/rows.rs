//! From rows to types: every column that could be wrong is checked, and a wrong one is named with its row.

use chrono::{DateTime, Utc};
use rusqlite::Row;
use serde::de::DeserializeOwned;

use super::Step;
use crate::error::Error;
use crate::feedback::{Feedback, Finish, Interaction, Kind};

/// The columns that [`interaction`] reads, in its order; `i` names the table.
pub(super) const INTERACTION: &str = "i.id, i.time, i.session, i.turn, i.messages, i.response, i.model, i.base, \
     i.adapter, i.thinking, i.sampling, i.finish, i.timings, i.metadata";
pub(super) const INTERACTION_COLUMNS: usize = 14;

/// The columns that [`feedback`] reads, in its order; `f` names the table.
pub(super) const FEEDBACK: &str =
    "f.id, f.time, f.interaction, f.session, f.kind, f.value, f.weight, f.note, f.corrected, f.metadata";

/// Milliseconds since 1970, as stored.
pub(super) fn millis(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis()
}

/// Now, cut to what is stored.
pub(super) fn now() -> DateTime<Utc> {
    let now = Utc::now();
    DateTime::from_timestamp_millis(now.timestamp_millis()).unwrap_or(now)
}

/// The interaction that stands in the columns [`INTERACTION`].
pub(super) fn interaction(row: &Row) -> Step<Interaction> {
    let id: i64 = row.get(0)?;
    let what = format!("interaction #{id}");
    let finish: String = row.get(11)?;
    Ok(Interaction {
        id,
        time: time(row.get(1)?, &what)?,
        session: row.get(2)?,
        turn: row.get(3)?,
        messages: json(row, 4, &what)?,
        response: row.get(5)?,
        model: row.get(6)?,
        base: row.get(7)?,
        adapter: row.get(8)?,
        thinking: row.get(9)?,
        sampling: json(row, 10, &what)?,
        finish: Finish::from_name(&finish).ok_or_else(|| damaged(&what, format!("ended by {finish:?}")))?,
        timings: json(row, 12, &what)?,
        metadata: json(row, 13, &what)?,
    })
}

/// The feedback that stands in the columns [`FEEDBACK`], which begin at column `at`.
pub(super) fn feedback(row: &Row, at: usize) -> Step<Feedback> {
    let id: i64 = row.get(at)?;
    let what = format!("feedback #{id}");
    let name: String = row.get(at + 4)?;
    let value: f64 = row.get(at + 5)?;
    Ok(Feedback {
        id,
        time: time(row.get(at + 1)?, &what)?,
        interaction: row.get(at + 2)?,
        session: row.get(at + 3)?,
        kind: Kind::from_name(&name, value).ok_or_else(|| damaged(&what, format!("of kind {name:?}")))?,
        value,
        weight: row.get(at + 6)?,
        note: row.get(at + 7)?,
        corrected: row.get(at + 8)?,
        metadata: json(row, at + 9, &what)?,
    })
}

pub(super) fn time(millis: i64, what: &str) -> Step<DateTime<Utc>> {
    Ok(DateTime::from_timestamp_millis(millis).ok_or_else(|| damaged(what, format!("at time {millis}")))?)
}

pub(super) fn json<T: DeserializeOwned>(row: &Row, column: usize, what: &str) -> Step<T> {
    let text = row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?;
    Ok(serde_json::from_str(text).map_err(|e| damaged(what, format!("with unreadable JSON ({e})")))?)
}

pub(super) fn damaged(what: &str, fault: String) -> Error {
    Error::failure(format!("the database is damaged: it has {what} {fault}"))
        .hint("put back a copy of finch.db, or move it away to start anew")
}

/// All rows of a query through `map`.
pub(super) fn collect<T>(mut rows: rusqlite::Rows, mut map: impl FnMut(&Row) -> Step<T>) -> Step<Vec<T>> {
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(map(row)?);
    }
    Ok(all)
}
