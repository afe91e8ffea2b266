//! Messages that are not delivered yet: the same key and the same bytes until they are.

use std::sync::Arc;

use rusqlite::params;

use super::{State, StateError, text};
use skewtrap_trace::time::Time;

/// One message on its way to one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Unique: nothing is sent twice on purpose.
    pub key: Arc<str>,
    /// The receiver's name.
    pub receiver: Arc<str>,
    /// When it was first due.
    pub created: Time,
    /// When to try (again).
    pub due: Time,
    /// How often it was tried.
    pub attempts: u32,
    /// What to say, byte for byte.
    pub body: Vec<u8>,
}

impl State {
    /// Keeps parcels until they are delivered, all of them or none; those whose key is known stay
    /// as they are.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn post(&self, parcels: &[OutboxRow]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction().map_err(|e| self.broken(e))?;
        for p in parcels {
            transaction
                .execute(
                    "INSERT OR IGNORE INTO outbox (key, receiver, created, due, attempts, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![&*p.key, &*p.receiver, p.created.nanos(), p.due.nanos(), p.attempts, p.body],
                )
                .map_err(|e| self.broken(e))?;
        }
        transaction.commit().map_err(|e| self.broken(e))
    }

    /// What is not delivered yet, in the order in which it came.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn undelivered(&self) -> Result<Vec<OutboxRow>, StateError> {
        let connection = self.lock();
        let read = connection.prepare("SELECT * FROM outbox ORDER BY created, key").and_then(|mut query| {
            query
                .query_map([], |row| {
                    Ok(OutboxRow {
                        key: text(row, "key")?,
                        receiver: text(row, "receiver")?,
                        created: Time::from_nanos(row.get("created")?),
                        due: Time::from_nanos(row.get("due")?),
                        attempts: row.get("attempts")?,
                        body: row.get("body")?,
                    })
                })?
                .collect()
        });
        read.map_err(|e| self.broken(e))
    }

    /// A try failed; there will be another.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn again(&self, key: &str, attempts: u32, due: Time) -> Result<(), StateError> {
        self.execute(
            "UPDATE outbox SET attempts = ?2, due = ?3 WHERE key = ?1",
            params![key, attempts, due.nanos()],
        )
    }

    /// Delivered, or given up.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn delivered(&self, key: &str) -> Result<(), StateError> {
        self.execute("DELETE FROM outbox WHERE key = ?1", params![key])
    }
}
