//! The outbox: messages that are not delivered yet, with the same key and the same bytes until they are.

use std::sync::Arc;

use rusqlite::{Row, params};
use tracing::warn;

use super::{State, StateError, text};
use skewtrap_trace::time::Time;

/// One message for one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Unique, so that the same message is not sent twice on purpose.
    pub key: Arc<str>,
    /// The receiver's name.
    pub receiver: Arc<str>,
    /// When it was first due.
    pub created: Time,
    /// When to try (again).
    pub due: Time,
    /// How many attempts were made.
    pub attempts: u32,
    /// The message, byte for byte.
    pub body: Vec<u8>,
}

fn row_of(row: &Row<'_>) -> rusqlite::Result<OutboxRow> {
    Ok(OutboxRow {
        key: text(row, "key")?,
        receiver: text(row, "receiver")?,
        created: Time::from_nanos(row.get("created")?),
        due: Time::from_nanos(row.get("due")?),
        attempts: row.get("attempts")?,
        body: row.get("body")?,
    })
}

impl State {
    /// Adds rows, all of them or none. A row whose key is there already stays as it is.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add_to_outbox(&self, rows: &[OutboxRow]) -> Result<(), StateError> {
        self.with_reserve(|| self.add_rows(rows))
    }

    fn add_rows(&self, rows: &[OutboxRow]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction().map_err(|e| self.broken(e))?;
        for row in rows {
            transaction
                .execute(
                    "INSERT OR IGNORE INTO outbox (key, receiver, created, due, attempts, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        &*row.key,
                        &*row.receiver,
                        row.created.nanos(),
                        row.due.nanos(),
                        row.attempts,
                        row.body
                    ],
                )
                .map_err(|e| self.broken(e))?;
        }
        transaction.commit().map_err(|e| self.broken(e))
    }

    /// The rows that are not delivered yet, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn undelivered(&self) -> Result<Vec<OutboxRow>, StateError> {
        self.written();
        let connection = self.lock();
        let read = connection.prepare("SELECT * FROM outbox ORDER BY created, key").and_then(|mut query| {
            let rows = query.query_map([], row_of)?;
            // A row that cannot be read must not hide the others.
            Ok(rows
                .filter_map(|row| row.inspect_err(|e| warn!("a row of the outbox cannot be read: {e}")).ok())
                .collect())
        });
        read.map_err(|e| self.broken(e))
    }

    /// Records a failed attempt and when the next one is due.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn reschedule(&self, key: &str, attempts: u32, due: Time) -> Result<(), StateError> {
        let sql = "UPDATE outbox SET attempts = ?2, due = ?3 WHERE key = ?1";
        self.with_reserve(|| self.execute(sql, params![key, attempts, due.nanos()]))
    }

    /// Deletes a row that is delivered or given up.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove_from_outbox(&self, key: &str) -> Result<(), StateError> {
        // In SQLite's log a deletion needs room, too; without it the message would be sent again.
        self.with_reserve(|| self.execute("DELETE FROM outbox WHERE key = ?1", params![key]))
    }
}
