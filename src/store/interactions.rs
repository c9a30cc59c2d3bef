//! Interactions: adding them and finding them again.

use rusqlite::{OptionalExtension, Transaction, params};

use super::rows::{self, INTERACTION};
use super::{Step, Store};
use crate::error::{Error, Result};
use crate::feedback::lesson::prompt::without_lessons;
use crate::feedback::{Interaction, NewInteraction};
use crate::model::message::Message;
use chrono::{DateTime, Utc};

impl Store {
    /// Keeps an answer; it is on disk when this returns.
    pub fn add_interaction(&self, new: &NewInteraction) -> Result<Interaction> {
        self.write(|transaction| insert(transaction, new, rows::now(), false))
    }

    /// The interaction with that id, if there is one.
    pub fn interaction(&self, id: i64) -> Result<Option<Interaction>> {
        self.read(|transaction| find(transaction, id))
    }

    /// The last answer of `session`, or of all sessions; imported ones do not count.
    pub fn last_interaction(&self, session: Option<&str>) -> Result<Option<Interaction>> {
        self.read(|transaction| {
            let sql = match session {
                Some(_) => "WHERE i.session = ?1 AND NOT i.imported",
                None => "WHERE ?1 IS NULL AND NOT i.imported",
            };
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT {INTERACTION} FROM interactions i {sql} ORDER BY i.id DESC LIMIT 1"
            ))?;
            Ok(rows::collect(statement.query([session])?, rows::interaction)?.pop())
        })
    }

    /// Up to `limit` different prompts answered by `base` in full and never spoken well or ill of, the latest first: what
    /// the user ordinarily asks, for replay, without the lessons. A prompt that was rated in any interaction is not among them.
    pub fn unrated_prompts(&self, base: &str, limit: usize) -> Result<Vec<Vec<Message>>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT i.messages, i.metadata, max(i.id) AS latest FROM interactions i
                 WHERE i.base = ?1 AND i.finish = 'stop' AND NOT i.imported AND NOT EXISTS (
                     SELECT 1 FROM interactions same JOIN feedback_in_force f ON f.interaction = same.id
                     WHERE same.prompt = i.prompt AND f.explicit)
                 GROUP BY i.prompt ORDER BY latest DESC LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            rows::collect(statement.query(params![base, limit])?, |row| {
                let messages: Vec<Message> = rows::json(row, 0, "an interaction")?;
                Ok(without_lessons(&messages, &rows::json(row, 1, "an interaction")?))
            })
        })
    }
}

pub(super) fn find(transaction: &Transaction, id: i64) -> Step<Option<Interaction>> {
    let mut statement =
        transaction.prepare_cached(&format!("SELECT {INTERACTION} FROM interactions i WHERE i.id = ?1"))?;
    Ok(rows::collect(statement.query([id])?, rows::interaction)?.pop())
}

/// Like [`find`]; none there is an error in the user's words.
pub(super) fn expect(transaction: &Transaction, id: i64) -> Step<Interaction> {
    Ok(find(transaction, id)?.ok_or_else(|| Error::failure(format!("there is no interaction #{id}")))?)
}

/// The interaction with that content digest, if it is here.
pub(super) fn same_content(transaction: &Transaction, content: [u8; 32]) -> Step<Option<i64>> {
    let mut statement =
        transaction.prepare_cached("SELECT id FROM interactions WHERE content = ?1 ORDER BY id LIMIT 1")?;
    Ok(statement.query_row([content], |row| row.get(0)).optional()?)
}

pub(super) fn insert(
    transaction: &Transaction,
    new: &NewInteraction,
    time: DateTime<Utc>,
    imported: bool,
) -> Step<Interaction> {
    let messages = serde_json::to_string(&new.messages).map_err(Error::from)?;
    transaction
        .prepare_cached(
            "INSERT INTO interactions (time, session, turn, messages, response, model, base, adapter, thinking, sampling,
                 finish, timings, metadata, imported, prompt, content)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?
        .execute(params![
            rows::millis(time),
            new.session,
            new.turn,
            messages,
            new.response,
            new.model,
            new.base,
            new.adapter,
            new.thinking,
            new.sampling.to_string(),
            new.finish.name(),
            new.timings.to_string(),
            new.metadata.to_string(),
            imported,
            new.prompt_digest(),
            new.content_digest(),
        ])?;
    expect(transaction, transaction.last_insert_rowid())
}
