//! The files behind the comparison of traces: lists what a folder holds, opens Kineto files for the
//! readers of [`skewtrap_trace::read`], and reads Nsight Systems exports, which are SQLite.

pub mod folder;
pub mod nsight;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use skewtrap_trace::printable::{LIMIT, printable};
use skewtrap_trace::read::{NotATrace, decompress, kineto};
use skewtrap_trace::{Limits, RankProfile, RankTrace, summary};

/// Why traces could not be read. The messages are for people.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The bytes are no trace.
    #[error(transparent)]
    NotATrace(#[from] NotATrace),
    /// The file cannot be opened or read.
    #[error("cannot read {}: {why}", shown(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: io::Error,
    },
    /// Something is wrong with one file.
    #[error("{}: {}", shown(path), printable(what, LIMIT))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Nothing to compare.
    #[error("{0}")]
    Nothing(String),
}

/// A path as it may be shown: whoever writes into a folder names its files.
fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy(), LIMIT).into_owned()
}

impl TraceError {
    /// The same error about the file `given` by the user, where the one that was read was made from it.
    #[must_use]
    pub fn about(self, given: &Path) -> Self {
        match self {
            Self::File { what, .. } => Self::File { path: given.to_owned(), what },
            other => other,
        }
    }
}

/// Opens a trace, decompressing it if it is gzip, whatever its name is.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(path: &Path) -> Result<Box<dyn Read>, TraceError> {
    open_counted(path, &|_| {})
}

/// Like [`open`]; calls `progress` with the number of bytes of each read from the file.
fn open_counted<'a>(path: &Path, progress: &'a dyn Fn(u64)) -> Result<Box<dyn Read + 'a>, TraceError> {
    let unreadable = |why| TraceError::Unreadable { path: path.to_owned(), why };
    let inner = File::open(path).map_err(unreadable)?;
    decompress(CountedFile { inner, progress }).map_err(unreadable)
}

struct CountedFile<'a> {
    inner: File,
    progress: &'a dyn Fn(u64),
}

impl Read for CountedFile<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        (self.progress)(n as u64);
        Ok(n)
    }
}

/// Reads the summary of a rank.
///
/// # Errors
/// When the file cannot be opened or is no summary that this version can read.
pub fn read_summary(path: &Path, progress: &dyn Fn(u64)) -> Result<RankProfile, TraceError> {
    summary::read(open_counted(path, progress)?)
        .map_err(|what| TraceError::File { path: path.to_owned(), what: what.to_string() })
}

/// Reads one Kineto file into `trace`.
///
/// # Errors
/// When the file cannot be opened or is no trace.
pub fn read_kineto(
    path: &Path,
    limits: Limits,
    trace: &mut RankTrace,
    progress: &dyn Fn(u64),
) -> Result<kineto::FileInfo, TraceError> {
    let reader = open_counted(path, progress)?;
    kineto::read(reader, limits, trace)
        .map_err(|what| TraceError::File { path: path.to_owned(), what: what.to_string() })
}
