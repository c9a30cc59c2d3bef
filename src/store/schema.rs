//! The tables, and the way from any earlier form of them to the present one.
//!
//! `user_version` counts the migrations that a file has been through; `application_id` marks it as finch's. A migration,
//! once released, is never changed: a new one is added behind it.

use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, TransactionBehavior};

use super::{Fault, PATIENCE, Step};
use crate::error::Error;
use crate::paths::Paths;

/// "fnch", in the file's header.
const APPLICATION_ID: i32 = 0x666E_6368;

/// Migration n (from 0) makes version n + 1 out of version n.
const MIGRATIONS: &[&str] = &[VERSION_1, VERSION_2];

/// JSON stands in TEXT, times are UTC milliseconds since 1970. AUTOINCREMENT: an id once shown never means something else.
pub(super) const VERSION_1: &str = "
CREATE TABLE interactions (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    time      INTEGER NOT NULL,
    session   TEXT NOT NULL,
    turn      INTEGER NOT NULL,
    messages  TEXT NOT NULL,
    response  TEXT NOT NULL,
    model     TEXT NOT NULL,
    base      TEXT,
    adapter   TEXT,
    thinking  INTEGER,
    sampling  TEXT NOT NULL,
    finish    TEXT NOT NULL,
    timings   TEXT NOT NULL,
    metadata  TEXT NOT NULL,
    imported  INTEGER NOT NULL,
    prompt    BLOB NOT NULL, -- digest of the messages
    content   BLOB NOT NULL  -- digest of place, messages, answer and base
) STRICT;
CREATE INDEX interactions_by_session ON interactions (session, id);
CREATE INDEX interactions_by_prompt ON interactions (prompt);
CREATE INDEX interactions_by_content ON interactions (content);

CREATE TABLE feedback (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    time        INTEGER NOT NULL,
    interaction INTEGER NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
    session     TEXT,
    kind        TEXT NOT NULL,
    explicit    INTEGER NOT NULL, -- said by the user, not observed
    value       REAL NOT NULL,
    weight      REAL NOT NULL,
    note        TEXT,
    corrected   TEXT,
    metadata    TEXT NOT NULL,
    replaced_by INTEGER REFERENCES feedback (id) ON DELETE SET NULL,
    undone      INTEGER -- when
) STRICT;
CREATE INDEX feedback_by_interaction ON feedback (interaction);
CREATE INDEX feedback_by_replacement ON feedback (replaced_by) WHERE replaced_by IS NOT NULL;
CREATE VIEW feedback_in_force AS SELECT * FROM feedback WHERE replaced_by IS NULL AND undone IS NULL;

CREATE TABLE runs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    started     INTEGER NOT NULL,
    finished    INTEGER,
    model       TEXT NOT NULL,
    base        TEXT NOT NULL,
    parameters  TEXT NOT NULL,
    outcome     TEXT, -- null while it runs
    reason      TEXT,
    adapter     TEXT,
    loss_before REAL,
    loss_after  REAL,
    seconds     REAL,
    curve       TEXT,
    gate        TEXT
) STRICT;
CREATE TABLE run_examples (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    interaction INTEGER NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
    stamp       TEXT NOT NULL,
    PRIMARY KEY (run, interaction, stamp)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_examples_by_interaction ON run_examples (interaction);
";

/// Lessons that the user dropped: their feedback stays in force and its note in the file, but it is no rule any more.
const VERSION_2: &str = "
CREATE TABLE dropped_lessons (
    feedback INTEGER PRIMARY KEY REFERENCES feedback (id) ON DELETE CASCADE,
    time     INTEGER NOT NULL
) STRICT;
";

/// Sets the connection up and brings the tables to the present version.
pub(super) fn prepare(connection: &mut Connection) -> Step<()> {
    // A file from elsewhere may hold anything: no functions from its schema, no page that contradicts itself.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    check_owner(connection)?;
    enter_wal(connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // On macOS an fsync alone may leave data in the drive's cache; elsewhere these two do nothing.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    migrate(connection, MIGRATIONS)?;
    check_tables(connection)
}

/// The tables and columns that the version promises are there: a file that bears finch's mark may have been changed since.
fn check_tables(connection: &Connection) -> Step<()> {
    let made = Connection::open_in_memory()?;
    MIGRATIONS.iter().try_for_each(|migration| made.execute_batch(migration))?;
    let (expected, found) = (columns(&made)?, columns(connection)?);
    match expected.iter().find(|column| !found.contains(column)) {
        None => Ok(()),
        Some((table, column)) => Err(Fault::Said(
            Error::failure(format!("the database {} has no column {column} in a table {table}", shown(connection)))
                .hint("the file is damaged: move it away (finch then makes a new one), or put a copy back"),
        )),
    }
}

/// Table and column of everything in the schema.
fn columns(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut all = connection.prepare(
        "SELECT m.name, c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c WHERE m.type IN ('table', 'view')",
    )?;
    let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Refuses a database that is some other program's, before anything in it is changed.
fn check_owner(connection: &Connection) -> Step<()> {
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id == APPLICATION_ID {
        return Ok(());
    }
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if id == 0 && objects == 0 {
        return Ok(());
    }
    // Another finch may be making the tables right now: it sets the mark in the same transaction.
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id == APPLICATION_ID {
        return Ok(());
    }
    Err(Fault::Said(
        Error::failure(format!("{} is not finch's database: another program made it", shown(connection)))
            .hint("move the file away; finch then makes a new one"),
    ))
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn shown(connection: &Connection) -> String {
    Paths::display(Path::new(connection.path().unwrap_or_default()))
}

/// Two processes that enter WAL mode at once get "locked" without the usual wait, so this waits itself.
fn enter_wal(connection: &Connection) -> Step<()> {
    let start = Instant::now();
    loop {
        let entered = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))
            .map_err(Fault::from);
        match entered {
            Err(fault) if fault.is_busy() && start.elapsed() < PATIENCE => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(fault) => return Err(fault),
            Ok(mode) if mode.eq_ignore_ascii_case("wal") => return Ok(()),
            Ok(mode) => {
                // A network file system, say: a rollback journal with FULL is as durable, only slower with two finches.
                tracing::warn!(mode, "the database cannot use a write-ahead log here");
                return Ok(());
            }
        }
    }
}

/// Runs what `migrations` still lacks in the file, all in one transaction.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> Step<()> {
    // The usual start needs no write lock, and so waits for nobody.
    if version(connection)? == migrations.len() as i64 {
        return Ok(());
    }
    // Taken before the version is read again: of two finches that start at once, the second finds the work done.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = version(&transaction)?;
    let done = usize::try_from(version).ok().filter(|done| *done <= migrations.len()).ok_or_else(|| {
        Error::failure(format!(
            "the database {} has version {version}, this finch knows versions up to {}",
            shown(&transaction),
            migrations.len()
        ))
        .hint("a newer finch has written it: use that one")
    })?;
    if done < migrations.len() {
        for migration in &migrations[done..] {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", migrations.len() as i64)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO_2: &str = "ALTER TABLE interactions ADD COLUMN starred INTEGER NOT NULL DEFAULT 0;";
    const TO_3: &str = "CREATE TABLE later (id INTEGER PRIMARY KEY) STRICT;";

    #[test]
    fn a_database_of_version_1_keeps_its_rows_through_later_migrations() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &[VERSION_1]).unwrap();
        connection
            .execute_batch(
                "INSERT INTO interactions VALUES
                 (7, 1, 's', 1, '[]', 'r', 'm', NULL, NULL, NULL, '{}', 'stop', '{}', '{}', 0, x'00', x'00');",
            )
            .unwrap();
        assert_eq!(version(&connection).unwrap(), 1);
        migrate(&mut connection, &[VERSION_1, TO_2, TO_3]).unwrap();
        assert_eq!(version(&connection).unwrap(), 3);
        let row: (i64, String, i64) = connection
            .query_row("SELECT id, response, starred FROM interactions", [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .unwrap();
        assert_eq!(row, (7, "r".to_owned(), 0));
        migrate(&mut connection, &[VERSION_1, TO_2, TO_3]).unwrap();
        assert_eq!(version(&connection).unwrap(), 3);
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &[VERSION_1]).unwrap();
        assert!(migrate(&mut connection, &[VERSION_1, TO_3, "CREATE NONSENSE"]).is_err());
        assert_eq!(version(&connection).unwrap(), 1);
        let later: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'later'", [], |row| row.get(0))
            .unwrap();
        assert_eq!(later, 0);
    }

    #[test]
    fn a_newer_version_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        for strange in [MIGRATIONS.len() as i64 + 1, -1] {
            connection.pragma_update(None, "user_version", strange).unwrap();
            let Err(Fault::Said(error)) = migrate(&mut connection, MIGRATIONS) else { panic!("accepted {strange}") };
            assert!(error.message().contains(&format!("version {strange}")), "{}", error.message());
        }
    }
}
