//! What the state knows of servers by their names, which people change.

use std::collections::BTreeMap;

use rusqlite::params;

use super::{State, StateError, bodies_in, json};

impl State {
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
            known.first().and_then(|body| serde_json::from_slice(body.as_bytes()).ok()).unwrap_or_default();
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
            let Ok(mut body) = serde_json::from_slice::<serde_json::Value>(body.as_bytes()) else { continue };
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
