//! What is known of each server and outlives the agent: what was learned of it, and the incidents that are open. A
//! row for each server, so that what happens to one does not write of all of them. And the silences.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Transaction, params};
use serde::de::DeserializeOwned;

use super::{State, StateError, json};
use skewtrap_core::rule::LearnedServer;
use skewtrap_core::status::Silence;
use skewtrap_core::watch::KeptIncident;

/// What the rows of servers are called, and the one row that an earlier release had for all of them.
const BASELINE: (&str, &str) = ("baseline:", "baselines");
const OPEN: (&str, &str) = ("open:", "open_incidents");

/// The row of the alerts that have asked for a capture.
const ALERTS: &str = "alerts";

const SAVE: &str = "INSERT OR REPLACE INTO meta VALUES (?1 || ?2, ?3)";

impl State {
    /// Replaces all silences by these: a restart of the agent must not end one.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn save_silences(&self, silences: &[Silence]) -> Result<(), StateError> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM silences", [])?;
            for silence in silences {
                transaction.execute("INSERT INTO silences (body) VALUES (?1)", params![json(silence)])?;
            }
            Ok(())
        })
    }

    /// The silences that were saved; some may be over.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn silences(&self) -> Result<Vec<Silence>, StateError> {
        self.bodies("silences", "SELECT body FROM silences ORDER BY rowid")
    }

    /// Replaces the alerts of other systems that have asked for a capture, each by its fingerprint and its
    /// beginning: sent again to the next agent, they must not ask twice.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn save_alerts(&self, keys: &[(String, String)]) -> Result<(), StateError> {
        self.write(|transaction| transaction.execute(SAVE, params!["", ALERTS, json(&keys)]).map(|_| ()))
    }

    /// The alerts that were saved; nothing where another release saved them in words that this one does not know.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn alerts(&self) -> Result<Vec<(String, String)>, StateError> {
        self.written();
        let query = "SELECT value FROM meta WHERE name = ?1";
        let row: Option<String> = self
            .lock()
            .query_row(query, [ALERTS], |row| row.get(0))
            .optional()
            .map_err(|e| self.broken(e))?;
        Ok(row.and_then(|body| read(&body)).unwrap_or_default())
    }

    /// Replaces what is known of all servers: a restart of the agent must not make them unknown, nor tell an
    /// incident twice.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn save_known(&self, baselines: &[LearnedServer], open: &[KeptIncident]) -> Result<(), StateError> {
        let mut of_targets: BTreeMap<&str, Vec<&KeptIncident>> = BTreeMap::new();
        for kept in open {
            of_targets.entry(&kept.incident.target).or_default().push(kept);
        }
        self.write(|transaction| {
            for (prefix, earlier) in [BASELINE, OPEN] {
                let delete = "DELETE FROM meta WHERE name = ?2 OR substr(name, 1, length(?1)) = ?1";
                transaction.execute(delete, [prefix, earlier])?;
            }
            let mut save = transaction.prepare(SAVE)?;
            for baseline in baselines {
                save.execute(params![BASELINE.0, &*baseline.target, json(baseline)])?;
            }
            for (target, open) in &of_targets {
                save.execute(params![OPEN.0, target, json(open)])?;
            }
            Ok(())
        })
    }

    /// The same of one server. What was learned is kept as it is where there is nothing new.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn save_known_of(
        &self,
        target: &str,
        learned: Option<&LearnedServer>,
        open: &[KeptIncident],
    ) -> Result<(), StateError> {
        self.write(|transaction| {
            let mut save = transaction.prepare(SAVE)?;
            if let Some(learned) = learned {
                save.execute(params![BASELINE.0, target, json(learned)])?;
            }
            save.execute(params![OPEN.0, target, json(&open)])?;
            Ok(())
        })
    }

    /// What was learned of the servers; nothing of one of which none was saved, or another release saved it in
    /// words that this one does not know: it is learned anew then.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn baselines(&self) -> Result<Vec<LearnedServer>, StateError> {
        let (of_servers, earlier) = self.known(BASELINE)?;
        let earlier = earlier.and_then(|body| read::<Vec<LearnedServer>>(&body)).unwrap_or_default();
        let is_new = |baseline: &LearnedServer| !of_servers.contains_key(&*baseline.target);
        let of_servers = of_servers.values().filter_map(|body| read(body));
        Ok(of_servers.chain(earlier.into_iter().filter(is_new)).collect())
    }

    /// The incidents that an agent before this one left open; nothing where another release saved them in words
    /// that this one does not know.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open_incidents(&self) -> Result<Vec<KeptIncident>, StateError> {
        let (of_servers, earlier) = self.known(OPEN)?;
        let earlier = earlier.and_then(|body| read::<Vec<KeptIncident>>(&body)).unwrap_or_default();
        let is_new = |kept: &KeptIncident| !of_servers.contains_key(&*kept.incident.target);
        let of_servers = of_servers.values().filter_map(|body| read::<Vec<KeptIncident>>(body)).flatten();
        Ok(of_servers.chain(earlier.into_iter().filter(is_new)).collect())
    }

    /// The rows by their servers, and that of an earlier release.
    fn known(
        &self,
        (prefix, earlier): (&str, &str),
    ) -> Result<(BTreeMap<String, String>, Option<String>), StateError> {
        let connection = self.lock();
        let read = || {
            let mut query = connection.prepare("SELECT name, value FROM meta")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<(String, String)>>>()
        };
        let (mut of_servers, mut of_all) = (BTreeMap::new(), None);
        for (name, value) in read().map_err(|e| self.broken(e))? {
            match name.strip_prefix(prefix) {
                Some(target) => drop(of_servers.insert(target.to_owned(), value)),
                None if name == earlier => of_all = Some(value),
                None => {}
            }
        }
        Ok((of_servers, of_all))
    }

    fn write(&self, write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<(), StateError> {
        let mut connection = self.lock();
        let written = connection.transaction().and_then(|transaction| {
            write(&transaction)?;
            transaction.commit()
        });
        written.map_err(|e| self.broken(e))
    }
}

fn read<T: DeserializeOwned>(body: &str) -> Option<T> {
    serde_json::from_slice(body.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::factor::{Detector, Settings};
    use skewtrap_trace::time::Time;

    fn learned(target: &str) -> LearnedServer {
        let detector = Detector::new(Settings { ranks: 2, false_alarms_per_day: 1.0 });
        let at = Time::from_epoch_s(1e9);
        LearnedServer { target: target.into(), at, ranks: vec![0, 1], known: detector.saved() }
    }

    #[test]
    fn what_was_learned_of_servers_outlives_the_agent_and_a_server_that_is_gone_does_not() {
        let state = State::in_memory().unwrap();
        assert_eq!(state.baselines().unwrap(), [], "a state of before has none");
        let all = ["a", "b"].map(learned);
        state.save_known(&all, &[]).unwrap();
        assert_eq!(state.baselines().unwrap(), all);
        state.save_known(&all[..1], &[]).unwrap();
        assert_eq!(state.baselines().unwrap(), all[..1]);
    }

    #[test]
    fn what_is_saved_of_one_server_leaves_the_others_as_they_are() {
        let state = State::in_memory().unwrap();
        state.save_known(&["a", "b"].map(learned), &[]).unwrap();
        let newer = LearnedServer { ranks: vec![0, 1, 2], ..learned("b") };
        state.save_known_of("b", Some(&newer), &[]).unwrap();
        assert_eq!(state.baselines().unwrap(), [learned("a"), newer.clone()]);
        state.save_known_of("b", None, &[]).unwrap();
        assert_eq!(state.baselines().unwrap(), [learned("a"), newer]);
        assert_eq!(state.open_incidents().unwrap(), []);
    }

    #[test]
    fn what_an_earlier_release_saved_of_all_servers_together_is_read_and_replaced() {
        let state = State::in_memory().unwrap();
        let all = ["a", "b"].map(learned);
        let text = serde_json::to_string(&all).unwrap();
        state.lock().execute("INSERT INTO meta VALUES ('baselines', ?1)", [&text]).unwrap();
        assert_eq!(state.baselines().unwrap(), all);
        let newer = LearnedServer { ranks: vec![0, 1, 2], ..learned("b") };
        state.save_known_of("b", Some(&newer), &[]).unwrap();
        assert_eq!(state.baselines().unwrap(), [newer, learned("a")], "each once, the newer one");
        state.save_known(&all[1..], &[]).unwrap();
        assert_eq!(state.baselines().unwrap(), all[1..]);
        state.save_known(&[], &[]).unwrap();
        assert_eq!(state.baselines().unwrap(), []);
    }
}
