//! The store: interactions, feedback and runs in one SQLite file.
//!
//! What a method here has returned `Ok` for is on disk: every change is one transaction in WAL mode with
//! `synchronous=FULL`, so a process killed at any moment leaves all of a change or none of it. Changes take the write lock
//! at their start and wait for another finch's; nothing is ever decided on rows read before it. Times are UTC, kept in
//! milliseconds; the order of things is that of their ids, which a clock set back cannot change.
//!
//! Feedback is never deleted by feedback: what is replaced or undone stays, out of force. The rules of what replaces what
//! are in [`feedback`](self::feedback); what feedback may teach is decided in [`crate::feedback`], not here.

mod feedback;
mod import;
mod interactions;
mod lessons;
mod rows;
mod runs;
mod schema;
mod stats;
mod training;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Error, Result};
use crate::fsio;
use crate::paths::Paths;
pub use feedback::{Recorded, Undone};
pub use import::Imported;
pub use runs::{Consumed, NewRun, Outcome, Run, RunResult};
pub use stats::Stats;
pub use training::TrainingSet;

/// How long a change waits for another process's, and an opening for another opening.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first SQLite without the WAL-reset bug, in which two writers could corrupt a database.
const OLDEST_SQLITE: i32 = 3_051_003;

/// An open database; cheap to share behind an `Arc`. Calls from several threads take turns.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Store {
    /// Opens the database at `path`, making or migrating it as needed. Its folder must exist.
    ///
    /// Errors: the file is not finch's database, is damaged, or was written by a newer finch; no access; another process
    /// holds it for too long.
    pub fn open(path: &Path) -> Result<Store> {
        let version = rusqlite::version_number();
        if version < OLDEST_SQLITE {
            return Err(Error::failure(format!(
                "SQLite {} is too old for safe use by two processes; 3.51.3 is needed",
                rusqlite::version()
            )));
        }
        // Private before SQLite puts anything into it; its companions (`-wal`, `-shm`) take over the permissions.
        fsio::create_private_file(path)?;
        let open = || -> std::result::Result<Connection, Fault> {
            let flags =
                OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let mut connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(PATIENCE)?;
            schema::prepare(&mut connection)?;
            Ok(connection)
        };
        let connection = open().map_err(|fault| fault.explain(path))?;
        Ok(Store { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// Several reads of one state of the database.
    fn read<T>(&self, work: impl FnOnce(&Transaction) -> std::result::Result<T, Fault>) -> Result<T> {
        self.transaction(TransactionBehavior::Deferred, work)
    }

    /// A change: all of `work` or nothing; on disk when this returns `Ok`.
    fn write<T>(&self, work: impl FnOnce(&Transaction) -> std::result::Result<T, Fault>) -> Result<T> {
        self.transaction(TransactionBehavior::Immediate, work)
    }

    fn transaction<T>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        // A thread that panicked within a transaction has rolled it back: the connection is sound.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let run = || -> std::result::Result<T, Fault> {
            let transaction = connection.transaction_with_behavior(behavior)?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|fault| fault.explain(&self.path))
    }
}

/// What can go wrong within a transaction: SQLite's fault, or one already in the user's words.
#[derive(Debug)]
enum Fault {
    Sql(rusqlite::Error),
    Said(Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Fault::Sql(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Said(error)
    }
}

impl Fault {
    fn is_busy(&self) -> bool {
        let Fault::Sql(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    /// Names the file and says what to do.
    fn explain(self, path: &Path) -> Error {
        let (error, hint) = match self {
            Fault::Said(error) => return error,
            Fault::Sql(error) => {
                let hint = match error.sqlite_error_code() {
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                        "another process has held it for more than 10 seconds: end that one, then try again"
                    }
                    Some(ErrorCode::DiskFull) => "the disk is full: free some space, then try again",
                    Some(ErrorCode::SystemIoFailure) => "see whether the disk is full or fails, then try again",
                    Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                        "check that the file and its folder belong to you and can be written"
                    }
                    Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                        "the file is damaged or not a database: move it away (finch then makes a new one), or put a copy back"
                    }
                    _ => "",
                };
                (error, hint)
            }
        };
        let error = Error::from(error).context(format!("the database {}", Paths::display(path)));
        if hint.is_empty() { error } else { error.hint(hint) }
    }
}

/// The result of a step within a transaction.
type Step<T> = std::result::Result<T, Fault>;

#[cfg(test)]
mod tests;
