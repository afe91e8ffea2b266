//! What must survive a crash: attempts, open windows, unfinished incidents, silences, the outbox. One SQLite database in the
//! state folder, one agent at a time.
//!
//! An attempt is durable before its start is sent, so a crash loop refills no budget and leaves no
//! window behind unnoticed. Everything else may lose its last moment to a power cut, but not to
//! `kill -9`.

mod error;
mod outbox;
mod schema;
mod silences;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use skewtrap_core::capture::governor::{Attempt, AttemptEnd, Ledger};
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::incident::Record;
use skewtrap_trace::time::Time;

pub use error::StateError;
pub use outbox::OutboxRow;

/// Attempts older than this are forgotten: no limit looks back further.
const REMEMBERED: Duration = Duration::from_secs(90 * 86_400);

const ATTEMPTS: &str = "SELECT body FROM attempts ORDER BY at, id";
const KEEP: &str =
    "INSERT INTO incidents (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body";

/// A window that is, or may be, open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenWindow {
    /// The attempt's id.
    pub attempt: String,
    /// The incident's id.
    pub incident: String,
    /// The server's configured name.
    pub target: String,
    /// What opened it.
    pub means: OpenMethod,
    /// When the start was, or was to be, sent.
    pub sent_at: Time,
    /// Whether the start was answered with success.
    pub granted: bool,
}

/// What opened a window, as far as closing it needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenMethod {
    /// The engine's own profiler.
    Http(StartRequest),
    /// An Nsight Systems session.
    Nsys {
        /// Its id, as `sessions list` gave it.
        session: String,
        /// Its name.
        name: String,
    },
    /// A program of the user's.
    Command {
        /// Its process group.
        group: Option<i32>,
    },
}

/// The state of one agent. Clones share it; the folder is free again when the last one is dropped.
#[derive(Clone, Debug)]
pub struct State {
    file: Arc<PathBuf>,
    connection: Arc<Mutex<Connection>>,
    agent: Arc<str>,
    // Held for its lock; `None` in memory.
    lock: Option<Arc<File>>,
}

impl State {
    /// Opens the state in `folder`, which is made if need be.
    ///
    /// # Errors
    /// Another agent has it, it cannot be written, or a later release wrote it.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let lock = lock(folder)?;
        let file = folder.join("state.sqlite");
        let connection =
            Connection::open(&file).map_err(|source| StateError::Database { file: file.clone(), source })?;
        Self::of(connection, file, Some(lock))
    }

    /// A state that is forgotten with the process, where no folder can be written. It counts nothing
    /// beyond a restart, so no window may be opened on the strength of it.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn in_memory() -> Result<Self, StateError> {
        let file = PathBuf::from("memory");
        let connection = Connection::open_in_memory()
            .map_err(|source| StateError::Database { file: file.clone(), source })?;
        Self::of(connection, file, None)
    }

    fn of(connection: Connection, file: PathBuf, lock: Option<File>) -> Result<Self, StateError> {
        schema::prepare(&connection, &file)?;
        let agent: String = connection
            .query_row("SELECT value FROM meta WHERE name = 'agent'", [], |row| row.get(0))
            .map_err(|source| StateError::Database { file: file.clone(), source })?;
        Ok(Self {
            file: Arc::new(file),
            connection: Arc::new(Mutex::new(connection)),
            agent: agent.into(),
            lock: lock.map(Arc::new),
        })
    }

    /// Whether it is there after a restart: it is in a folder, not in memory alone.
    pub const fn outlives_restart(&self) -> bool {
        self.lock.is_some()
    }

    /// This agent's id: 32 hex digits, the same for the life of the state.
    pub fn agent(&self) -> &Arc<str> {
        &self.agent
    }

    /// Every attempt that a limit may still count.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn ledger(&self) -> Result<Ledger, StateError> {
        let attempts: Vec<Attempt> = self.bodies("attempts", ATTEMPTS)?;
        Ok(attempts.into())
    }

    /// Writes an attempt, its window and its incident, durably: a power cut after this forgets none.
    ///
    /// # Errors
    /// The database cannot be written: then the start must not be sent.
    pub fn begin(
        &self,
        attempt: &Attempt,
        window: &OpenWindow,
        record: Option<&Record>,
    ) -> Result<(), StateError> {
        let mut connection = self.lock();
        let written = durably(&mut connection, |tx| {
            tx.prepare("INSERT INTO attempts (id, at, body) VALUES (?1, ?2, ?3)")?.execute(params![
                attempt.id,
                attempt.at.nanos(),
                json(attempt)
            ])?;
            tx.prepare("INSERT INTO windows (attempt, body) VALUES (?1, ?2)")?
                .execute(params![window.attempt, json(window)])?;
            if let Some(record) = record {
                tx.prepare(KEEP)?.execute(params![&*record.incident.id, json(record)])?;
            }
            Ok(())
        });
        written.map_err(|e| self.broken(e))
    }

    /// Notes that something about an open window changed (it was granted).
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn update(&self, window: &OpenWindow) -> Result<(), StateError> {
        self.execute("UPDATE windows SET body = ?2 WHERE attempt = ?1", params![window.attempt, json(window)])
    }

    /// Books an attempt's end; its window is closed, or given up with the reason in `end`.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn end(&self, attempt: &str, end: &AttemptEnd) -> Result<(), StateError> {
        let mut connection = self.lock();
        let body: Option<String> = connection
            .query_row("SELECT body FROM attempts WHERE id = ?1", [attempt], |row| row.get(0))
            .optional()
            .map_err(|e| self.broken(e))?;
        let Some(body) = body else { return Ok(()) };
        let mut known: Attempt = self.decoded("attempts", &body)?;
        known.end = Some(end.clone());
        let transaction = connection.transaction().map_err(|e| self.broken(e))?;
        let written = transaction
            .execute("UPDATE attempts SET body = ?2 WHERE id = ?1", params![attempt, json(&known)])
            .and_then(|_| transaction.execute("DELETE FROM windows WHERE attempt = ?1", [attempt]))
            .and_then(|_| transaction.commit());
        written.map_err(|e| self.broken(e))
    }

    /// What fired is over: attempts at it are no marks any more for what fires after a restart.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn over(&self, rule: &str, target: &str, firing: &str, at: Time) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction().map_err(|e| self.broken(e))?;
        let bodies: Vec<String> = bodies_in(&transaction, ATTEMPTS).map_err(|e| self.broken(e))?;
        let attempts: Result<Vec<Attempt>, _> = bodies.iter().map(|b| self.decoded("attempts", b)).collect();
        let mut ledger = Ledger::from(attempts?);
        ledger.attempts.retain(|a| a.over_at.is_none());
        ledger.over(rule, target, firing, at);
        for attempt in ledger.attempts.iter().filter(|a| a.over_at.is_some()) {
            let values = params![attempt.id, json(attempt)];
            transaction
                .execute("UPDATE attempts SET body = ?2 WHERE id = ?1", values)
                .map_err(|e| self.broken(e))?;
        }
        transaction.commit().map_err(|e| self.broken(e))
    }

    /// The windows that are, or may be, open: at start, those that an agent before left behind.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open_windows(&self) -> Result<Vec<OpenWindow>, StateError> {
        self.bodies("windows", "SELECT body FROM windows ORDER BY attempt")
    }

    /// Forgets attempts that no limit looks back to.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn prune(&self, now: Time) -> Result<(), StateError> {
        let before = (now - REMEMBERED).nanos();
        self.execute(
            "DELETE FROM attempts WHERE at < ?1 AND id NOT IN (SELECT attempt FROM windows)",
            params![before],
        )
    }

    /// Forgets attempts whose stamps lie after `now`: the clock was wrong when they were written.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn forget_future(&self, now: Time) -> Result<(), StateError> {
        self.execute(
            "DELETE FROM attempts WHERE at > ?1 AND id NOT IN (SELECT attempt FROM windows)",
            params![now.nanos()],
        )
    }

    /// Keeps an incident until its bundle is complete: a crash in between loses neither.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn keep(&self, record: &Record) -> Result<(), StateError> {
        self.execute(KEEP, params![&*record.incident.id, json(record)])
    }

    /// The incidents whose bundle may not be complete, in the order of their ids.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn records(&self) -> Result<Vec<Record>, StateError> {
        self.bodies("incidents", "SELECT body FROM incidents ORDER BY id")
    }

    /// The bundle has everything.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn forget(&self, incident: &str) -> Result<(), StateError> {
        self.execute("DELETE FROM incidents WHERE id = ?1", params![incident])
    }

    fn bodies<T: for<'de> Deserialize<'de>>(
        &self,
        table: &'static str,
        sql: &str,
    ) -> Result<Vec<T>, StateError> {
        let bodies = bodies_in(&self.lock(), sql);
        bodies.map_err(|e| self.broken(e))?.iter().map(|body| self.decoded(table, body)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held left a transaction that SQLite rolls back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), StateError> {
        let done = self.lock().prepare(sql).and_then(|mut statement| statement.execute(values));
        done.map(|_| ()).map_err(|e| self.broken(e))
    }

    fn broken(&self, source: rusqlite::Error) -> StateError {
        StateError::Database { file: self.file.as_ref().clone(), source }
    }

    fn decoded<T: for<'de> Deserialize<'de>>(
        &self,
        table: &'static str,
        body: &str,
    ) -> Result<T, StateError> {
        serde_json::from_str(body).map_err(|source| StateError::Row {
            file: self.file.as_ref().clone(),
            table,
            source,
        })
    }
}

fn bodies_in(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql).and_then(|mut query| query.query_map([], |row| row.get(0))?.collect())
}

/// Takes the folder's lock, which the kernel gives back when the process ends, however it ends.
fn lock(folder: &Path) -> Result<File, StateError> {
    let fail = |source| StateError::Folder { folder: folder.to_owned(), source };
    // It holds messages and open windows: only its owner enters.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    let path = folder.join("lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).read(true).open(&path).map_err(fail)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            return Err(StateError::InUse { folder: folder.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(e) => return Err(fail(e.into())),
    }
    std::fs::write(&path, format!("process {}\n", std::process::id())).map_err(fail)?;
    Ok(file)
}

/// Runs a transaction that is on the disk when this returns.
fn durably(
    connection: &mut Connection,
    write: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    let written = connection.transaction().and_then(|tx| write(&tx).and_then(|()| tx.commit()));
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    written
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data with text keys serialises")
}

fn text(row: &Row<'_>, column: &str) -> rusqlite::Result<Arc<str>> {
    row.get::<_, String>(column).map(Into::into)
}

#[cfg(test)]
mod tests;
