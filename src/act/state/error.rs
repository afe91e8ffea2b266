//! Why the state cannot be used, in sentences.

use std::path::PathBuf;

use thiserror::Error;

/// Why the state cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another agent has it.
    #[error(
        "the state folder {folder} is in use by another skewtrap ({holder}); give each agent its own --state-dir, or stop the other one"
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// What the other one wrote about itself.
        holder: String,
    },
    /// The folder or its lock cannot be written.
    #[error(
        "the state folder {folder} cannot be used: {source}; it must be a folder that the agent can write to"
    )]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// SQLite says no.
    #[error("the state in {file} cannot be read or written: {source}")]
    Database {
        /// The database.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A row that this release cannot read.
    #[error("a row of {table} in {file} cannot be read: {source}; it was written by another release")]
    Row {
        /// The database.
        file: PathBuf,
        /// The table.
        table: &'static str,
        /// Why.
        source: serde_json::Error,
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
        /// Ours.
        known: i64,
    },
}
