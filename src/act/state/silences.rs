//! Silences, until they end: a restart of the agent must not wake anybody.

use rusqlite::params;

use super::{State, StateError, json};
use skewtrap_core::status::Silence;

impl State {
    /// Keeps these silences, and no others.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn keep_silences(&self, silences: &[Silence]) -> Result<(), StateError> {
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

    /// The silences that were kept; some may be over.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn silences(&self) -> Result<Vec<Silence>, StateError> {
        self.bodies("silences", "SELECT body FROM silences ORDER BY rowid")
    }
}
