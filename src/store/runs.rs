//! Runs: what was trained on what, how it went, and which examples are no longer new.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use rusqlite::{Row, Transaction, params};
use serde_json::Value;

use super::{Step, Store, rows};
use crate::error::{Error, Result};
use crate::feedback::Example;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Trained, and passed the gate.
    Completed,
    /// Trained, and refused by the gate.
    Refused,
    Cancelled,
    Failed,
    /// The process ended before the run did.
    Abandoned,
}

impl Outcome {
    const ALL: [Outcome; 5] =
        [Outcome::Completed, Outcome::Refused, Outcome::Cancelled, Outcome::Failed, Outcome::Abandoned];

    pub fn name(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Refused => "refused",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
            Outcome::Abandoned => "abandoned",
        }
    }
}

/// A training that begins.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun<'a> {
    pub model: &'a str,
    /// Digest of the base's weights.
    pub base: &'a str,
    /// Hyperparameters, as an object.
    pub parameters: &'a Value,
    /// The examples from the store that it trains on.
    pub examples: &'a [Example],
}

/// A training that ended. Losses that were not measured, or are not finite, are `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct RunResult {
    pub outcome: Outcome,
    /// Why it was refused, cancelled or failed.
    pub reason: Option<String>,
    pub adapter: Option<String>,
    pub loss_before: Option<f64>,
    pub loss_after: Option<f64>,
    pub seconds: f64,
    /// Loss of every optimiser step.
    pub curve: Vec<f64>,
    /// The gate's measurements, as an object.
    pub gate: Value,
}

/// A run as the store gives it back.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub id: i64,
    pub started: DateTime<Utc>,
    pub finished: Option<DateTime<Utc>>,
    pub model: String,
    pub base: String,
    pub parameters: Value,
    /// Number of examples from the store.
    pub examples: usize,
    /// `None`: it runs, or its process ended and no run has begun since.
    pub result: Option<RunResult>,
}

/// The examples that a completed or refused run on a base has seen.
#[derive(Debug, Clone, Default)]
pub struct Consumed(HashSet<(i64, String)>);

impl Consumed {
    /// Whether the example is new: no such run has seen it as it is now.
    pub fn is_new(&self, example: &Example) -> bool {
        !self.0.contains(&(example.interaction, example.stamp()))
    }

    /// How many of `examples` are new.
    pub fn count_new(&self, examples: &[Example]) -> usize {
        examples.iter().filter(|example| self.is_new(example)).count()
    }
}

impl Store {
    /// Notes that a run begins, and on which examples; returns its id. The caller holds the training lock: an earlier run
    /// that never ended is marked as abandoned here.
    pub fn begin_run(&self, new: &NewRun) -> Result<i64> {
        self.write(|transaction| {
            let now = rows::millis(rows::now());
            transaction.execute(
                "UPDATE runs SET outcome = 'abandoned', finished = ?1, reason = 'its process ended' WHERE outcome IS NULL",
                [now],
            )?;
            transaction.execute(
                "INSERT INTO runs (started, model, base, parameters) VALUES (?1, ?2, ?3, ?4)",
                params![now, new.model, new.base, new.parameters.to_string()],
            )?;
            let run = transaction.last_insert_rowid();
            let mut statement = transaction.prepare_cached("INSERT OR IGNORE INTO run_examples VALUES (?1, ?2, ?3)")?;
            for example in new.examples {
                statement.execute(params![run, example.interaction, example.stamp()])?;
            }
            Ok(run)
        })
    }

    /// Notes how a run ended. If it completed or was refused, its examples are no longer new from then on.
    pub fn finish_run(&self, run: i64, result: &RunResult) -> Result<()> {
        let finite = |loss: Option<f64>| loss.filter(|loss| loss.is_finite());
        let curve = serde_json::to_string(&result.curve).map_err(Error::from)?;
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE runs SET outcome = ?2, reason = ?3, adapter = ?4, loss_before = ?5, loss_after = ?6, seconds = ?7,
                     curve = ?8, gate = ?9, finished = ?10
                 WHERE id = ?1 AND (outcome IS NULL OR outcome = 'abandoned')",
                params![
                    run,
                    result.outcome.name(),
                    result.reason,
                    result.adapter,
                    finite(result.loss_before),
                    finite(result.loss_after),
                    finite(Some(result.seconds)),
                    curve,
                    result.gate.to_string(),
                    rows::millis(rows::now()),
                ],
            )?;
            if changed == 0 {
                return Err(Error::failure(format!("there is no unfinished run #{run}")).into());
            }
            Ok(())
        })
    }

    /// The latest runs, newest first.
    pub fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT id, started, finished, model, base, parameters, outcome, reason, adapter, loss_before, loss_after,
                     seconds, curve, gate, (SELECT count(*) FROM run_examples WHERE run = runs.id)
                 FROM runs ORDER BY id DESC LIMIT ?1",
            )?;
            rows::collect(statement.query([limit])?, read_run)
        })
    }

    /// What completed and refused runs on `base` have seen.
    pub fn consumed(&self, base: &str) -> Result<Consumed> {
        self.read(|transaction| consumed(transaction, base))
    }
}

pub(super) fn consumed(transaction: &Transaction, base: &str) -> Step<Consumed> {
    let mut statement = transaction.prepare_cached(
        "SELECT e.interaction, e.stamp FROM run_examples e JOIN runs r ON r.id = e.run
         WHERE r.base = ?1 AND r.outcome IN ('completed', 'refused')",
    )?;
    let seen = rows::collect(statement.query([base])?, |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Consumed(seen.into_iter().collect()))
}

fn read_run(row: &Row) -> Step<Run> {
    let id: i64 = row.get(0)?;
    let what = format!("run #{id}");
    let finished: Option<i64> = row.get(2)?;
    let result = match row.get::<_, Option<String>>(6)? {
        None => None,
        Some(name) => Some(RunResult {
            outcome: Outcome::ALL
                .into_iter()
                .find(|outcome| outcome.name() == name)
                .ok_or_else(|| rows::damaged(&what, format!("with outcome {name:?}")))?,
            reason: row.get(7)?,
            adapter: row.get(8)?,
            loss_before: row.get(9)?,
            loss_after: row.get(10)?,
            seconds: row.get::<_, Option<f64>>(11)?.unwrap_or(0.0),
            curve: match row.get_ref(12)? {
                rusqlite::types::ValueRef::Null => Vec::new(),
                // JSON has no infinity: a step that diverged stands as null.
                _ => rows::json::<Vec<Option<f64>>>(row, 12, &what)?
                    .into_iter()
                    .map(|loss| loss.unwrap_or(f64::NAN))
                    .collect(),
            },
            gate: match row.get_ref(13)? {
                rusqlite::types::ValueRef::Null => Value::Null,
                _ => rows::json(row, 13, &what)?,
            },
        }),
    };
    Ok(Run {
        id,
        started: rows::time(row.get(1)?, &what)?,
        finished: finished.map(|millis| rows::time(millis, &what)).transpose()?,
        model: row.get(3)?,
        base: row.get(4)?,
        parameters: rows::json(row, 5, &what)?,
        examples: row.get::<_, u32>(14)? as usize,
        result,
    })
}
