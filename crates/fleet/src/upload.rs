//! Brings an incident's bundle into the store: first what was captured, then the record, then its line of the
//! index. So whoever finds a record finds all of it, and whoever finds a line finds the record. After a kill at any
//! byte the same call goes on: what is there with the same digest is not sent again.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::store::{Store, StoreError, StoredObject, digest};
use skewtrap_core::fleet::{IndexLine, RECORD, Share, folder_of, index_of, object_of, shared};
use skewtrap_core::incident::Record;

/// The file in a bundle that says it is in the store.
pub const UPLOADED: &str = ".uploaded.json";

/// Where an agent's incidents go, and how.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The store.
    pub store: Store,
    /// The pool that the agent belongs to.
    pub pool: String,
    /// The agent's host.
    pub host: String,
    /// What may leave the host.
    pub share: Share,
    /// The most bytes a second, if that is bounded.
    pub rate: Option<u64>,
}

/// The record in the store: the incident, and the objects that belong to it.
#[derive(Serialize)]
struct StoredRecord<'a> {
    #[serde(flatten)]
    record: &'a Record,
    /// The host whose agent stored it.
    host: &'a str,
    /// The objects of the incident with their digests.
    stored: &'a [StoredObject],
}

/// What was uploaded of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The address of the store.
    pub store: String,
    /// The digest of the record from which it was made: a record that changed is uploaded again.
    pub record_sha256: String,
    /// The objects.
    pub objects: Vec<StoredObject>,
}

impl Destination {
    /// Whether the bundle whose record has these bytes is in the store as it is.
    pub fn has(&self, bundle: &Path, record: &[u8]) -> bool {
        let mark =
            std::fs::read(bundle.join(UPLOADED)).ok().and_then(|m| serde_json::from_slice::<Mark>(&m).ok());
        mark.is_some_and(|m| m.store == self.store.address() && m.record_sha256 == digest(record))
    }

    /// Uploads a bundle and marks it; `record_bytes` is its `incident.json`, `record` what is in it.
    ///
    /// # Errors
    /// Something cannot be read or stored; what is missing is stored by the next call.
    pub async fn upload(
        &self,
        bundle: &Path,
        record: &Record,
        record_bytes: &[u8],
    ) -> Result<Mark, StoreError> {
        let incident = &record.incident;
        let folder = folder_of(&self.pool, incident);
        let mut objects = Vec::new();
        let (of, share) = (bundle.to_owned(), self.share);
        // A bundle may lie on a mount that hangs.
        let files = blocking(move || files_of(&of, share)).await;
        for (path, name) in files {
            objects.push(self.store.put_file(&format!("{folder}/{name}"), &path, self.rate).await?);
        }
        let record = StoredRecord { record: &shared(record, self.share), host: &self.host, stored: &objects };
        let text = serde_json::to_vec_pretty(&record).expect("plain data serialises");
        let of_record = self.store.put(&format!("{folder}/{RECORD}"), text.into()).await?;
        let line = IndexLine::new(&self.pool, &self.host, incident).object();
        let of_index = self.store.put(&index_of(&self.pool, incident), Bytes::from(line)).await?;
        objects.extend([of_record, of_index]);
        let mark =
            Mark { store: self.store.address().to_owned(), record_sha256: digest(record_bytes), objects };
        let of = bundle.to_owned();
        blocking(move || write_mark(&of, &mark).map(|()| mark)).await
    }
}

/// The files of a bundle that may be stored, each with its name in the incident's folder, sorted.
fn files_of(bundle: &Path, share: Share) -> Vec<(PathBuf, String)> {
    let plain = |dir: &Path| -> Vec<(PathBuf, bool)> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        // No symlink is followed: it may lead anywhere on the host.
        let mut found: Vec<(PathBuf, bool)> = entries
            .filter_map(|e| Some((e.path(), e.file_type().ok()?)))
            .filter(|(_, t)| t.is_file() || t.is_dir())
            .map(|(p, t)| (p, t.is_dir()))
            .collect();
        found.sort();
        found
    };
    let mut files = Vec::new();
    for (path, is_folder) in plain(bundle) {
        let inside = if is_folder { plain(&path) } else { vec![(path, false)] };
        files.extend(inside.into_iter().filter(|(_, is_folder)| !is_folder).map(|(path, _)| path));
    }
    let named = |path: PathBuf| {
        let name = object_of(path.strip_prefix(bundle).ok()?.to_str()?, share)?;
        Some((path, name))
    };
    files.into_iter().filter_map(named).collect()
}

/// Written whole or not at all. It is not synced: without it the bundle is looked at again, and nothing sent twice.
fn write_mark(bundle: &Path, mark: &Mark) -> Result<(), StoreError> {
    let (path, partial) = (bundle.join(UPLOADED), bundle.join(".uploaded.partial"));
    let text = serde_json::to_vec(mark).expect("plain data serialises");
    let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &path));
    written.map_err(|why| StoreError::File { path: path.display().to_string(), why })
}

/// On a thread that may block. A panic goes on in the caller.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
