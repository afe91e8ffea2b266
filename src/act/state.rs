//! What must survive a crash: attempts, open windows, unfinished incidents, silences and the outbox,
//! in one SQLite database in the state folder, used by one agent at a time.
//!
//! An attempt is durable before its start is sent, so that a crash loop gets no new budget and no
//! window stays open unnoticed. Everything else survives `kill -9`; a power cut may take its last
//! moment. Bodies are JSON, so that a release can add a field without a migration.

mod error;
mod known;
mod open;
mod outbox;
mod reserve;
mod servers;
mod window;
mod writer;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use tracing::warn;

use skewtrap_core::capture::governor::{Attempt, AttemptEnd, ClockJump, Ledger};
use skewtrap_core::incident::{Record, StoredCapture};
use skewtrap_trace::time::Time;

pub use error::StateError;
pub use outbox::OutboxRow;
pub use window::{OpenMethod, WindowRow};
use writer::Writer;

/// Attempts older than this are deleted: no limit looks back further.
const REMEMBERED: Duration = Duration::from_secs(90 * 86_400);

const ATTEMPTS: &str = "SELECT body FROM attempts ORDER BY at, id";
const WINDOWS: &str = "SELECT body FROM windows ORDER BY attempt";
const SAVE_INCIDENT: &str =
    "INSERT INTO incidents (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body";

/// An incident with a capture, until it is forgotten.
#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    /// Its record as it was when the capture began.
    #[serde(flatten)]
    record: Record,
    /// What the capture stored since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored: Option<StoredCapture>,
    /// Whether the message about it is in the outbox.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    reported: bool,
}

impl Pending {
    fn completed(self) -> (Record, bool) {
        let Self { mut record, stored, reported } = self;
        if let Some(stored) = &stored {
            record.complete(stored);
        }
        (record, reported)
    }
}

/// The state of one agent. Clones share it; the folder is free again when the last one is dropped.
#[derive(Clone, Debug)]
pub struct State {
    file: Arc<PathBuf>,
    /// Which file that was when it was opened.
    identity: Option<(u64, u64)>,
    connection: Arc<Mutex<Connection>>,
    agent: Arc<str>,
    writer: Arc<Writer>,
    // Held for its lock; `None` in memory.
    lock: Option<Arc<open::FolderLock>>,
    /// Why it is a copy of what the folder holds.
    read_only: Option<Arc<str>>,
    /// By how many nanoseconds the wall clock was set since a window was begun, by its attempt: whoever
    /// closes it goes by a steady clock.
    moved: Arc<Mutex<BTreeMap<String, i64>>>,
}

impl State {
    /// Why nothing can be written; `None` when all is well.
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// Whether it survives a restart: it is in a folder, not only in memory.
    pub const fn outlives_restart(&self) -> bool {
        self.lock.is_some() && self.read_only.is_none()
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

    /// Whether there is a row of that attempt, readable or not.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn knows(&self, attempt: &str) -> Result<bool, StateError> {
        self.written();
        let found = self.lock().query_row("SELECT 1 FROM attempts WHERE id = ?1", [attempt], |_| Ok(()));
        found.optional().map(|found| found.is_some()).map_err(|e| self.broken(e))
    }

    /// Writes an attempt, its window and its incident. When this returns they survive a power cut.
    ///
    /// # Errors
    /// The database cannot be written: then the start must not be sent.
    pub fn begin(
        &self,
        attempt: &Attempt,
        window: &WindowRow,
        record: Option<&Record>,
    ) -> Result<(), StateError> {
        self.is_there()?;
        // The end of the window before is on disk before another one begins.
        self.write_what_failed()?;
        self.keep_reserve()?;
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
                tx.prepare(SAVE_INCIDENT)?.execute(params![&*record.incident.id, json(record)])?;
            }
            Ok(())
        });
        written.map_err(|e| self.broken(e))
    }

    /// Whether the folder is still the one that was opened: SQLite goes on writing into files that were
    /// deleted, and the next start would find every budget refilled.
    fn is_there(&self) -> Result<(), StateError> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let folder = self.file.parent().unwrap_or(&self.file).to_owned();
        let same = |path: &Path| {
            let (ours, there) = (lock.0.metadata()?, std::fs::metadata(path)?);
            let database = open::identity(&self.file);
            Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())
                && database.is_some()
                && database == self.identity)
        };
        match same(&folder.join("lock")) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StateError::Vanished { folder }),
            Err(error) if std::io::Error::kind(&error) == std::io::ErrorKind::NotFound => {
                Err(StateError::Vanished { folder })
            }
            Err(source) => Err(StateError::Folder { folder, source }),
        }
    }

    /// Replaces what is known of an open window (its start was accepted).
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn update(&self, window: &WindowRow) -> Result<(), StateError> {
        let by_ns = crate::world::lock(&self.moved).get(&window.attempt).copied();
        let body = by_ns.map_or_else(|| json(window), |by_ns| json(&window.moved(by_ns)));
        self.with_reserve(|| {
            self.execute("UPDATE windows SET body = ?2 WHERE attempt = ?1", params![window.attempt, body])
        })
    }

    /// Records the end of an attempt: its window is closed, or given up with the reason in `end`.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn end(&self, attempt: &str, end: &AttemptEnd) -> Result<(), StateError> {
        self.with_reserve(|| self.close(attempt, end, None))
    }

    fn close(
        &self,
        attempt: &str,
        end: &AttemptEnd,
        incident: Option<(&str, &str)>,
    ) -> Result<(), StateError> {
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
            .and_then(|_| keep_or_delete(&transaction, attempt, end.unproven.as_deref()))
            .and_then(|_| match incident {
                Some((id, body)) => transaction.execute(SAVE_INCIDENT, params![id, body]),
                None => Ok(0),
            })
            .and_then(|_| transaction.commit());
        written.map_err(|e| self.broken(e))
    }

    /// Books an attempt's end together with what its capture stored, all or nothing: from then on the
    /// window is closed, and what the capture brought is known until its incident is forgotten.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn finish(&self, attempt: &str, incident: &str, stored: &StoredCapture) -> Result<(), StateError> {
        self.written();
        let row = self.pending_with(incident, |pending| pending.stored = Some(stored.clone()))?;
        let row = row.as_deref().map(|body| (incident, body));
        self.with_reserve(|| self.close(attempt, &stored.end, row))
    }

    /// The row of an incident, changed.
    fn pending_with(
        &self,
        incident: &str,
        change: impl FnOnce(&mut Pending),
    ) -> Result<Option<String>, StateError> {
        let row: Option<String> = self
            .lock()
            .query_row("SELECT body FROM incidents WHERE id = ?1", [incident], |row| row.get(0))
            .optional()
            .map_err(|e| self.broken(e))?;
        let Some(body) = row else { return Ok(None) };
        let mut pending: Pending = self.decoded("incidents", &body)?;
        change(&mut pending);
        Ok(Some(json(&pending)))
    }

    /// The message about an incident's capture is in the outbox: no later agent reports it again.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn reported(&self, incident: &str) -> Result<(), StateError> {
        match self.pending_with(incident, |pending| pending.reported = true)? {
            Some(body) => self.with_reserve(|| self.execute(SAVE_INCIDENT, params![incident, body])),
            None => Ok(()),
        }
    }

    /// Records that a firing is over: what fires after a restart is no longer compared with its attempts.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn end_firing(&self, rule: &str, target: &str, firing: &str, at: Time) -> Result<(), StateError> {
        self.change_attempts(|ledger| {
            ledger.over(rule, target, firing, at);
        })
    }

    /// Somebody says that windows may open again on a server, or on every one.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn resume(&self, target: Option<&str>) -> Result<(), StateError> {
        self.change_attempts(|ledger| drop(ledger.resume(target)))
    }

    /// The wall clock was set: see [`Ledger::clock_was_set`]. The windows are moved with their attempts: by
    /// when one was begun the next agent tells whether it may be stopped.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn clock_was_set(&self, jump: ClockJump) -> Result<(), StateError> {
        let mut moved = Vec::new();
        self.change_attempts_and(
            |ledger| ledger.clock_was_set(jump),
            |transaction| {
                for body in bodies_in(transaction, WINDOWS)? {
                    // As with attempts.
                    let Ok(window) = serde_json::from_str::<WindowRow>(&body) else { continue };
                    if jump.moves(window.sent_at) {
                        let values = params![window.attempt, json(&window.moved(jump.by_ns))];
                        transaction.execute("UPDATE windows SET body = ?2 WHERE attempt = ?1", values)?;
                        moved.push(window.attempt);
                    }
                }
                Ok(())
            },
        )?;
        let mut all = crate::world::lock(&self.moved);
        moved.into_iter().for_each(|attempt| *all.entry(attempt).or_default() += jump.by_ns);
        Ok(())
    }

    /// Writes the attempts that `change` changes.
    fn change_attempts(&self, change: impl FnOnce(&mut Ledger)) -> Result<(), StateError> {
        self.change_attempts_and(change, |_| Ok(()))
    }

    /// The same, and something more, all or nothing.
    fn change_attempts_and(
        &self,
        change: impl FnOnce(&mut Ledger),
        more: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction().map_err(|e| self.broken(e))?;
        let bodies: Vec<String> = bodies_in(&transaction, ATTEMPTS).map_err(|e| self.broken(e))?;
        // A row of another release is left as it is.
        let attempts: Vec<Attempt> = bodies.iter().filter_map(|b| self.decoded("attempts", b).ok()).collect();
        let mut ledger = Ledger::from(attempts.clone());
        change(&mut ledger);
        for (attempt, _) in ledger.attempts.iter().zip(&attempts).filter(|(now, before)| now != before) {
            let values = params![attempt.id, json(attempt), attempt.at.nanos()];
            transaction
                .execute("UPDATE attempts SET body = ?2, at = ?3 WHERE id = ?1", values)
                .map_err(|e| self.broken(e))?;
        }
        more(&transaction).and_then(|()| transaction.commit()).map_err(|e| self.broken(e))
    }

    /// The windows that are, or may be, open: at start, those that an agent before left behind.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open_windows(&self) -> Result<Vec<WindowRow>, StateError> {
        self.bodies("windows", WINDOWS)
    }

    /// Forgets the windows that were given up without a proof of their end: those that ended before
    /// `before`, or, with `target`, all that were opened on that server until then, for it is another
    /// instance.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn release(&self, before: Time, target: Option<&str>) -> Result<(), StateError> {
        let kept = self.open_windows()?.into_iter().filter(|window| window.unproven.is_some());
        // Written late, it must not release what was opened on the server since.
        let is_meant = |w: &WindowRow| target.is_none_or(|target| w.target == target && w.sent_at <= before);
        let kept: Vec<WindowRow> = kept.filter(is_meant).collect();
        if kept.is_empty() {
            return Ok(());
        }
        let ledger = self.ledger()?;
        for window in kept {
            let attempt = ledger.attempts.iter().find(|a| a.id == window.attempt);
            let end = attempt.and_then(|a| a.end.clone());
            if target.is_none() && end.as_ref().is_some_and(|end| end.at > before) {
                continue;
            }
            match end {
                Some(end) if target.is_some() => {
                    self.end(&window.attempt, &AttemptEnd { unproven: None, ..end })?
                }
                _ => self.execute("DELETE FROM windows WHERE attempt = ?1", params![window.attempt])?,
            }
        }
        Ok(())
    }

    /// Deletes attempts that no limit looks back to.
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

    /// Deletes attempts whose stamps lie after `now`: the clock was wrong when they were written.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn forget_future(&self, now: Time) -> Result<(), StateError> {
        self.execute(
            "DELETE FROM attempts WHERE at > ?1 AND id NOT IN (SELECT attempt FROM windows)",
            params![now.nanos()],
        )
    }

    /// Saves an incident until its bundle is complete, so that a crash in between does not lose it.
    ///
    /// # Errors
    /// The database cannot be written.
    #[cfg(test)]
    pub fn save_incident(&self, record: &Record) -> Result<(), StateError> {
        self.execute(SAVE_INCIDENT, params![&*record.incident.id, json(record)])
    }

    /// The incidents whose bundle may not be complete, in the order of their ids, each with what its
    /// capture stored, and whether the message about that is in the outbox.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn unfinished_incidents(&self) -> Result<Vec<(Record, bool)>, StateError> {
        let rows: Vec<Pending> = self.bodies("incidents", "SELECT body FROM incidents ORDER BY id")?;
        Ok(rows.into_iter().map(Pending::completed).collect())
    }

    /// The record of one of them, where it is not forgotten yet.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn unfinished_incident(&self, incident: &str) -> Result<Option<Record>, StateError> {
        self.written();
        let row: Option<String> = self
            .lock()
            .query_row("SELECT body FROM incidents WHERE id = ?1", [incident], |row| row.get(0))
            .optional()
            .map_err(|e| self.broken(e))?;
        let pending = row.map(|body| self.decoded::<Pending>("incidents", &body)).transpose()?;
        Ok(pending.map(|pending| pending.completed().0))
    }

    /// Deletes an incident whose bundle is complete, if the message about its capture is in the outbox: else the
    /// next agent tells it.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn delete_reported(&self, incident: &str) -> Result<(), StateError> {
        let mut is_reported = false;
        self.pending_with(incident, |pending| is_reported = pending.reported)?;
        if is_reported { self.delete_incident(incident) } else { Ok(()) }
    }

    /// Deletes an incident whose bundle is complete.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn delete_incident(&self, incident: &str) -> Result<(), StateError> {
        self.with_reserve(|| self.execute("DELETE FROM incidents WHERE id = ?1", params![incident]))
    }

    fn bodies<T: for<'de> Deserialize<'de>>(
        &self,
        table: &'static str,
        sql: &str,
    ) -> Result<Vec<T>, StateError> {
        self.written();
        let bodies = bodies_in(&self.lock(), sql).map_err(|e| self.broken(e))?;
        // One that cannot be read must not hide the others, nor end the agent.
        let read = bodies.iter().filter_map(|body| {
            self.decoded(table, body).inspect_err(|error| warn!("{error}; it is left where it is")).ok()
        });
        Ok(read.collect())
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held left a transaction that SQLite rolls back.
        let connection = crate::world::lock(&self.connection);
        #[cfg(test)]
        if let Some(machine) = crate::world::stand_in::current() {
            connection.pragma_update(None, "query_only", machine.disk_fails()).expect("a setting");
        }
        connection
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
        serde_json::from_slice(body.as_bytes()).map_err(|source| StateError::Row {
            file: self.file.as_ref().clone(),
            table,
            source,
        })
    }
}

fn bodies_in(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql).and_then(|mut query| query.query_map([], |row| row.get(0))?.collect())
}

/// The row of a window that ended: it stays, with the reason, until the window is proven closed.
fn keep_or_delete(
    transaction: &rusqlite::Transaction<'_>,
    attempt: &str,
    unproven: Option<&str>,
) -> rusqlite::Result<usize> {
    let Some(why) = unproven else {
        return transaction.execute("DELETE FROM windows WHERE attempt = ?1", [attempt]);
    };
    let body: Option<String> = transaction
        .query_row("SELECT body FROM windows WHERE attempt = ?1", [attempt], |row| row.get(0))
        .optional()?;
    let window = body.and_then(|body| serde_json::from_slice::<WindowRow>(body.as_bytes()).ok());
    let Some(mut window) = window else { return Ok(0) };
    window.unproven = Some(why.to_owned());
    transaction.execute("UPDATE windows SET body = ?2 WHERE attempt = ?1", params![attempt, json(&window)])
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
