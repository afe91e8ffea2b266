//! What must survive a crash: attempts, open windows, unfinished incidents, silences and the outbox,
//! in one SQLite database in the state folder, used by one agent at a time.
//!
//! An attempt is durable before its start is sent, so that a crash loop gets no new budget and no
//! window stays open unnoticed. Everything else survives `kill -9`; a power cut may take its last
//! moment. Bodies are JSON, so that a release can add a field without a migration.

mod error;
mod open;
mod outbox;
mod reserve;
mod writer;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use tracing::warn;

use skewtrap_core::capture::governor::{Attempt, AttemptEnd, ClockJump, Ledger};
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::window::Stops;
use skewtrap_core::incident::{Record, StoredCapture};
use skewtrap_core::rule::Baseline;
use skewtrap_core::status::Silence;
use skewtrap_core::watch::KeptIncident;
use skewtrap_trace::time::Time;

pub use error::StateError;
pub use outbox::OutboxRow;
use writer::Writer;

/// Attempts older than this are deleted: no limit looks back further.
const REMEMBERED: Duration = Duration::from_secs(90 * 86_400);

const ATTEMPTS: &str = "SELECT body FROM attempts ORDER BY at, id";
const SAVE_INCIDENT: &str =
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
    #[serde(rename = "means")]
    pub method: OpenMethod,
    /// When the start was, or was to be, sent.
    pub sent_at: Time,
    /// Whether the start was answered with success.
    pub granted: bool,
    /// Whether it was answered as one is where a rank records for somebody else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused_double: bool,
    /// Which instance of the server was asked, as far as it said; a release before 0.2 did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Why it may still be open though the agent is done with it: the row is kept until it is proven
    /// closed or ten minutes have passed, and no other window opens there meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// The stops that were sent to the engine's own profiler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops: Option<Stops>,
    /// Whether it was seen to be closed: then what runs there is never stopped again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// How many bytes the server's log had before the start: what stands there is of older windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_from: Option<u64>,
    /// The same of each of its logs, by their paths; a release before 0.2 noted only the first one's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub logs_from: BTreeMap<PathBuf, u64>,
}

impl OpenWindow {
    /// The window of an attempt that begins at `at`: nothing was sent yet, and nothing is known of it.
    pub fn of(attempt: &Attempt, method: OpenMethod, at: Time) -> Self {
        Self {
            attempt: attempt.id.clone(),
            incident: attempt.incident.clone(),
            target: attempt.target.clone(),
            method,
            sent_at: at,
            granted: false,
            refused_double: false,
            instance: None,
            unproven: None,
            stops: None,
            ended: false,
            log_from: None,
            logs_from: BTreeMap::new(),
        }
    }

    /// How many bytes that log of the server's had before the start; `None` where that was not noted.
    pub fn log_from(&self, log: &Path, is_first: bool) -> Option<u64> {
        self.logs_from.get(log).copied().or(self.log_from.filter(|_| is_first))
    }
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

    /// Writes an attempt, its window and its incident. When this returns they survive a power cut.
    ///
    /// # Errors
    /// The database cannot be written: then the start must not be sent.
    pub fn begin(
        &self,
        attempt: &Attempt,
        window: &OpenWindow,
        record: Option<&Record>,
    ) -> Result<(), StateError> {
        self.is_there()?;
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
    pub fn update(&self, window: &OpenWindow) -> Result<(), StateError> {
        let body = json(window);
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

    /// The wall clock was set: see [`Ledger::clock_was_set`].
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn clock_was_set(&self, jump: ClockJump) -> Result<(), StateError> {
        self.change_attempts(|ledger| ledger.clock_was_set(jump))
    }

    /// Writes the attempts that `change` changes.
    fn change_attempts(&self, change: impl FnOnce(&mut Ledger)) -> Result<(), StateError> {
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
        transaction.commit().map_err(|e| self.broken(e))
    }

    /// The windows that are, or may be, open: at start, those that an agent before left behind.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open_windows(&self) -> Result<Vec<OpenWindow>, StateError> {
        self.bodies("windows", "SELECT body FROM windows ORDER BY attempt")
    }

    /// The servers, by name and address, that the agent watches from now on. What the state knows of a
    /// server by a name that is gone is from now on of the name that has its address: a window that is
    /// open there is closed, and no limit is refilled. Gives the pairs of old and new names.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn servers_are(&self, servers: &[(String, String)]) -> Result<Vec<(String, String)>, StateError> {
        const ADDRESSES: &str = "SELECT value FROM meta WHERE name = 'addresses'";
        self.written();
        let mut connection = self.lock();
        let known = bodies_in(&connection, ADDRESSES).map_err(|e| self.broken(e))?;
        let mut known: BTreeMap<String, String> =
            known.first().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
        let is_gone = |name: &str| servers.iter().all(|(now, _)| now != name);
        let named =
            |address: &str| servers.iter().find(|(_, at)| at == address).map(|(name, _)| name.clone());
        let renamed: Vec<(String, String)> = known
            .iter()
            .filter(|(name, _)| is_gone(name))
            .filter_map(|(name, address)| Some((name.clone(), named(address)?)))
            .collect();
        known.retain(|name, _| renamed.iter().all(|(old, _)| old != name));
        known.extend(servers.iter().cloned());
        let written = connection.transaction().and_then(|transaction| {
            for (old, new) in &renamed {
                rename(&transaction, old, new)?;
            }
            transaction.execute("INSERT OR REPLACE INTO meta VALUES ('addresses', ?1)", [json(&known)])?;
            transaction.commit()
        });
        written.map_err(|e| self.broken(e))?;
        Ok(renamed)
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
        let is_meant = |w: &OpenWindow| target.is_none_or(|target| w.target == target && w.sent_at <= before);
        let kept: Vec<OpenWindow> = kept.filter(is_meant).collect();
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

    /// Deletes an incident whose bundle is complete.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn delete_incident(&self, incident: &str) -> Result<(), StateError> {
        self.execute("DELETE FROM incidents WHERE id = ?1", params![incident])
    }

    /// Replaces all silences by these: a restart of the agent must not end one.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn save_silences(&self, silences: &[Silence]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let written = connection.transaction().and_then(|tx| {
            tx.execute("DELETE FROM silences", [])?;
            for silence in silences {
                tx.execute("INSERT INTO silences (body) VALUES (?1)", params![json(silence)])?;
            }
            tx.commit()
        });
        written.map_err(|e| self.broken(e))
    }

    /// The silences that were saved; some may be over.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn silences(&self) -> Result<Vec<Silence>, StateError> {
        self.bodies("silences", "SELECT body FROM silences ORDER BY rowid")
    }

    /// Replaces what was learned of the servers: a restart of the agent must not make them unknown.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn save_baselines(&self, baselines: &[Baseline]) -> Result<(), StateError> {
        self.execute("INSERT OR REPLACE INTO meta VALUES ('baselines', ?1)", params![json(&baselines)])
    }

    /// What was learned of the servers; nothing where none was saved, or another release saved it in
    /// words that this one does not know: it is learned anew then.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn baselines(&self) -> Result<Vec<Baseline>, StateError> {
        let bodies = bodies_in(&self.lock(), "SELECT value FROM meta WHERE name = 'baselines'");
        let body = bodies.map_err(|e| self.broken(e))?.pop();
        Ok(body.and_then(|body| serde_json::from_str(&body).ok()).unwrap_or_default())
    }

    /// Replaces the incidents that are open: an agent after this one goes on with them.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn save_open_incidents(&self, open: &[KeptIncident]) -> Result<(), StateError> {
        self.execute("INSERT OR REPLACE INTO meta VALUES ('open_incidents', ?1)", params![json(&open)])
    }

    /// The incidents that an agent before this one left open; nothing where another release saved them in words
    /// that this one does not know.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open_incidents(&self) -> Result<Vec<KeptIncident>, StateError> {
        let bodies = bodies_in(&self.lock(), "SELECT value FROM meta WHERE name = 'open_incidents'");
        let body = bodies.map_err(|e| self.broken(e))?.pop();
        Ok(body.and_then(|body| serde_json::from_str(&body).ok()).unwrap_or_default())
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
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Attempts and open windows of the server `old` are of `new`.
fn rename(transaction: &rusqlite::Transaction<'_>, old: &str, new: &str) -> rusqlite::Result<()> {
    for (table, key) in [("attempts", "id"), ("windows", "attempt")] {
        let rows: Vec<(String, String)> = transaction
            .prepare(&format!("SELECT {key}, body FROM {table}"))?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (id, body) in rows {
            // One that cannot be read is left as it is.
            let Ok(mut body) = serde_json::from_str::<serde_json::Value>(&body) else { continue };
            if body["target"] != old {
                continue;
            }
            body["target"] = new.into();
            if body["group"] == old {
                body["group"] = new.into();
            }
            let body = body.to_string();
            transaction
                .execute(&format!("UPDATE {table} SET body = ?2 WHERE {key} = ?1"), params![id, body])?;
        }
    }
    Ok(())
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
    let window = body.and_then(|body| serde_json::from_str::<OpenWindow>(&body).ok());
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
