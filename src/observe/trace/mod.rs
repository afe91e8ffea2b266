//! Reads captured traces into the one model of [`crate::explain::trace`]: Kineto JSON and Nsight
//! Systems exports, rank by rank, in bounded memory. What is in a folder besides traces is
//! recognised, left out, and said so.

pub mod folder;
pub mod kineto;
pub mod layout;
pub mod naming;
pub mod nsight;
pub mod scan;
pub mod window;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::explain::trace::{Limit, RankTrace};

/// Why traces could not be read. The messages are for people.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The bytes are something else.
    #[error("not a profiler trace: {0}")]
    NotATrace(String),
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

/// The most bytes that one compressed byte may become, once a file is past its first megabytes.
/// Real traces stay below 25; what exceeds this was made to fill memory or time.
const MAX_RATIO: u64 = 200;
/// From how many inflated bytes on the ratio counts.
const RATIO_FROM: u64 = 64 << 20;

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
    let mut file = File::open(path).map_err(unreadable)?;
    let mut magic = [0u8; 2];
    let n = file.read(&mut magic).map_err(unreadable)?;
    let file = File::open(path).map_err(unreadable)?;
    if n == 2 && magic == [0x1f, 0x8b] {
        Ok(Box::new(Inflated::new(Counted { inner: file, progress })))
    } else {
        Ok(Box::new(Counted { inner: file, progress }))
    }
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

/// Gzip, several members after one another included, with a bound on its ratio.
struct Inflated<R: Read> {
    gz: flate2::bufread::MultiGzDecoder<BufReader<Tally<R>>>,
    out: u64,
}

/// Counts what is read through it.
struct Tally<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Tally<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<R: Read> Inflated<R> {
    fn new(inner: R) -> Self {
        let tally = Tally { inner, bytes: 0 };
        Self { gz: flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(64 << 10, tally)), out: 0 }
    }
}

impl<R: Read> Read for Inflated<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.gz.read(buf)?;
        self.out += n as u64;
        let bytes = self.gz.get_ref().get_ref().bytes;
        if self.out > RATIO_FROM && self.out / bytes.max(1) > MAX_RATIO {
            let why = format!("it inflates to more than {MAX_RATIO} times its size, which no trace does");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
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
    kineto::read(reader, limit, trace).map_err(|e| match e {
        TraceError::NotATrace(what) => {
            TraceError::File { path: path.to_owned(), what: format!("not a profiler trace: {what}") }
        }
        other => other,
    })
}
