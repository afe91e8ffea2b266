//! Reads captured traces into the one model of [`skewtrap_trace::trace`]: Kineto JSON and Nsight
//! Systems exports, rank by rank, in bounded memory. What is in a folder besides traces is
//! recognised, left out, and said so.

pub mod folder;
pub mod nsight;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use skewtrap_trace::read::{NotATrace, inflated, kineto};
use skewtrap_trace::trace::{Limit, RankTrace};

/// Why traces could not be read. The messages are for people.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The bytes are something else.
    #[error(transparent)]
    NotATrace(#[from] NotATrace),
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {why}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// Something is wrong with one file.
    #[error("{path}: {what}")]
    File {
        /// Which.
        path: PathBuf,
        /// What.
        what: String,
    },
    /// Nothing to compare.
    #[error("{0}")]
    Nothing(String),
}

impl TraceError {
    /// The same about the file that the user gave, where another was made of it.
    #[must_use]
    pub fn about(self, given: &Path) -> Self {
        match self {
            Self::File { what, .. } => Self::File { path: given.to_owned(), what },
            other => other,
        }
    }
}

/// Opens a trace, inflating it if it is gzip, whatever its name says.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(path: &Path) -> Result<Box<dyn Read>, TraceError> {
    open_counted(path, &|_| {})
}

/// Opens a trace and tells `progress` how many bytes of the file were read each time.
///
/// # Errors
/// When the file cannot be opened.
pub fn open_counted<'a>(path: &Path, progress: &'a dyn Fn(u64)) -> Result<Box<dyn Read + 'a>, TraceError> {
    let unreadable = |why| TraceError::Unreadable { path: path.to_owned(), why };
    let inner = File::open(path).map_err(unreadable)?;
    inflated(Counted { inner, progress }).map_err(unreadable)
}

/// A file whose reading is watched.
struct Counted<'a> {
    inner: File,
    progress: &'a dyn Fn(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        (self.progress)(n as u64);
        Ok(n)
    }
}

/// Reads one Kineto file into `trace`.
///
/// # Errors
/// When the file cannot be opened or is no trace.
pub fn read_kineto(
    path: &Path,
    limit: Limit,
    trace: &mut RankTrace,
    progress: &dyn Fn(u64),
) -> Result<kineto::Facts, TraceError> {
    let reader = open_counted(path, progress)?;
    kineto::read(reader, limit, trace)
        .map_err(|what| TraceError::File { path: path.to_owned(), what: what.to_string() })
}
