//! The layout of the database. Bodies are JSON, so that a release adds a field without a migration.

use std::path::Path;

use rusqlite::Connection;

use super::StateError;

/// Raised when an older release could not work with what this one writes.
const LAYOUT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    INSERT OR IGNORE INTO meta VALUES ('agent', lower(hex(randomblob(16))));
    CREATE TABLE IF NOT EXISTS attempts (id TEXT PRIMARY KEY, at INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS windows (attempt TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS incidents (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS silences (body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS outbox (
        key TEXT PRIMARY KEY, receiver TEXT NOT NULL, created INTEGER NOT NULL, due INTEGER NOT NULL,
        attempts INTEGER NOT NULL, body BLOB NOT NULL
    ) WITHOUT ROWID;
";

/// Makes the tables, or finds them.
pub(super) fn prepare(connection: &Connection, file: &Path) -> Result<(), StateError> {
    let broken = |source| StateError::Database { file: file.to_owned(), source };
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(broken)?;
    if found > LAYOUT {
        return Err(StateError::Newer { file: file.to_owned(), found, known: LAYOUT });
    }
    // WAL: a reader (`skewtrap incidents` beside the agent) never blocks the writer.
    let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 2000;";
    connection.execute_batch(settings).map_err(broken)?;
    connection
        .execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {LAYOUT}; COMMIT;"))
        .map_err(broken)
}
