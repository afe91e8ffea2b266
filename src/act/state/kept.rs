//! What an agent goes on with that is neither a window nor a message: silences, what was learned, and the
//! incidents that are open.

use rusqlite::params;

use super::{State, StateError, bodies_in, json};
use skewtrap_core::rule::Baseline;
use skewtrap_core::status::Silence;
use skewtrap_core::watch::KeptIncident;

impl State {
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
}
