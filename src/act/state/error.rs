//! Why the state cannot be used, in sentences for the operator.

use std::path::PathBuf;

use thiserror::Error;

use skewtrap_trace::time::Time;

/// Why the state cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another agent uses it.
    #[error(
        "the state folder {folder} is in use by another skewtrap ({holder}); give each agent its own --state-dir, or stop the other one"
    )]
    InUse {
        folder: PathBuf,
        /// The other process, as it wrote into the lock file.
        holder: String,
    },
    /// The folder or its lock cannot be written.
    #[error(
        "the state folder {folder} cannot be used: {source}; it must be a folder that the agent can write to"
    )]
    Folder { folder: PathBuf, source: std::io::Error },
    /// Somebody deleted or replaced it while the agent ran.
    #[error(
        "the state folder {folder} was deleted or replaced while the agent ran; what is written now would be lost, so no window is opened: bring the folder back, or start the agent again"
    )]
    Vanished { folder: PathBuf },
    /// There is no room for what the end of a window needs.
    #[error(
        "the disk of the state folder {folder} has no room for the end of a window ({source}), so none is opened: free some space there"
    )]
    NoRoom { folder: PathBuf, source: std::io::Error },
    /// SQLite failed.
    #[error("the state in {file} cannot be read or written: {source}")]
    Database {
        /// The database.
        file: PathBuf,
        source: rusqlite::Error,
    },
    /// A row that this release cannot read.
    #[error("a row of {table} in {file} cannot be read: {source}; it was written by another release")]
    Row {
        /// The database.
        file: PathBuf,
        table: &'static str,
        source: serde_json::Error,
    },
    /// Another agent has its turn on the server. Not of the database, but for the same reason nothing
    /// is sent.
    #[error(
        "another skewtrap (agent {agent}, process {process}) may have a window open on this server until {until}; two agents on one server take turns"
    )]
    Leased {
        /// Its id.
        agent: String,
        process: u32,
        until: Time,
    },
    /// A database of a later release.
    #[error(
        "the state in {file} was written by a later release of skewtrap (layout {found}, this one knows {known}); run that one, or use another --state-dir"
    )]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its layout.
        found: i64,
        /// The newest layout that this release knows.
        known: i64,
    },
}
