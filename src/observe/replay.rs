//! Replays recordings (logs, metrics pages and loads, plain or gzip) as the observations of a live
//! server, merged in the order of their times.
//!
//! A single log is passed on in large chunks and not parsed here, so that replay is as fast as the
//! core's reading. Only where several recordings are merged are the times of lines read twice.

mod log;
mod pages;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use jiff::tz::TimeZone;
use thiserror::Error;

use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_trace::time::Time;

use log::LogRecording;
use pages::{LoadsRecording, MetricsRecording};

/// One recording.
#[derive(Clone, Debug)]
pub struct Input {
    /// What it holds.
    pub format: Format,
    /// The file; `-` is standard input.
    pub path: PathBuf,
    /// The server it was recorded from.
    pub target: TargetId,
    /// The source of that server.
    pub source: SourceId,
}

/// What a recording holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Log lines, each perhaps after `EPOCH<TAB>`.
    Log,
    /// Metrics pages, each after `#@ EPOCH`.
    Metrics,
    /// `{"t": EPOCH, "body": ...}` a line.
    Loads,
}

/// Why a recording cannot be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// It does not exist, or cannot be read.
    #[error("cannot read {path}: {error}")]
    Io {
        /// The recording.
        path: PathBuf,
        error: io::Error,
    },
    /// A gzip file without its end.
    #[error(
        "{path} breaks off in the middle of its gzip data: it was cut, or is still being written; what it holds up to there was read"
    )]
    Cut {
        /// The recording.
        path: PathBuf,
    },
    /// Not a metrics recording.
    #[error(
        "{path}: line {line} stands before any `#@ EPOCH`; a metrics recording is pages, each after such a line"
    )]
    NoEpoch {
        /// The recording.
        path: PathBuf,
        /// The line's number, from 1.
        line: u64,
    },
    /// Not a loads recording.
    #[error("{path}: line {line} is not `{{\"t\": EPOCH, \"body\": ...}}` ({why})")]
    NotLoads {
        /// The recording.
        path: PathBuf,
        /// The line's number, from 1.
        line: u64,
        /// What the parser says.
        why: String,
    },
}

impl ReplayError {
    fn unread(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Cut { path }
        } else {
            Self::Io { path, error }
        }
    }
}

/// Recordings that are being replayed.
#[derive(Debug)]
pub struct Replay {
    streams: Vec<Stream>,
}

#[derive(Debug)]
enum Stream {
    Log(Box<LogRecording>),
    Metrics(MetricsRecording),
    Loads(LoadsRecording),
}

impl Replay {
    /// Opens the recordings. `zone` is the time zone of stamps in logs; it only matters for merging.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn open(inputs: &[Input], zone: &TimeZone) -> Result<Self, ReplayError> {
        let stream = |input: &Input| {
            let opened = open(&input.path)?;
            Ok(match input.format {
                Format::Log => Stream::Log(Box::new(LogRecording::new(input.clone(), opened, zone.clone()))),
                Format::Metrics => Stream::Metrics(MetricsRecording::new(input.clone(), opened)),
                Format::Loads => Stream::Loads(LoadsRecording::new(input.clone(), opened)),
            })
        };
        Ok(Self { streams: inputs.iter().map(stream).collect::<Result<_, _>>()? })
    }

    /// The next observation; `None` at the end of all recordings.
    ///
    /// # Errors
    /// A recording cannot be read on, or does not have its format.
    pub fn next_observation(&mut self) -> Result<Option<Observation>, ReplayError> {
        if let [Stream::Log(log)] = self.streams.as_mut_slice() {
            return log.chunk();
        }
        let mut heads = Vec::with_capacity(self.streams.len());
        for (index, stream) in self.streams.iter_mut().enumerate() {
            if let Some(at) = stream.head()? {
                heads.push((at, index));
            }
        }
        heads.sort_unstable();
        let Some(&(_, first)) = heads.first() else { return Ok(None) };
        let until = heads.get(1).map(|h| h.0);
        self.streams[first].take(until)
    }

    /// How many lines were cut or damaged, and are in no observation.
    pub fn dropped(&self) -> u64 {
        let dropped = |stream: &Stream| match stream {
            Stream::Log(log) => log.dropped(),
            Stream::Metrics(_) => 0,
            Stream::Loads(loads) => loads.dropped(),
        };
        self.streams.iter().map(dropped).sum()
    }

    /// Takes a chunk's buffer back, to reuse its memory.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if let Some(Stream::Log(log)) = self.streams.first_mut() {
            log.recycle(buffer);
        }
    }
}

impl Stream {
    /// The time of the next observation.
    fn head(&mut self) -> Result<Option<Time>, ReplayError> {
        match self {
            Self::Log(log) => log.head(),
            Self::Metrics(pages) => pages.head(),
            Self::Loads(loads) => loads.head(),
        }
    }

    /// The next observation; from a log, all lines up to `until`.
    fn take(&mut self, until: Option<Time>) -> Result<Option<Observation>, ReplayError> {
        match self {
            Self::Log(log) => log.lines_until(until),
            Self::Metrics(pages) => Ok(pages.take()),
            Self::Loads(loads) => Ok(loads.take()),
        }
    }
}

/// An opened recording, decompressed.
pub(super) type Opened = Box<dyn BufRead + Send>;

/// Opens a file, plain or gzip according to its first bytes; `-` is standard input.
fn open(path: &Path) -> Result<Opened, ReplayError> {
    let io = |error| ReplayError::Io { path: path.to_owned(), error };
    let raw: Box<dyn Read + Send> =
        if path.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(io)?) };
    let mut raw = BufReader::with_capacity(1 << 16, raw);
    let is_gzip = raw.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzip {
        Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(raw)))
    } else {
        Box::new(raw)
    })
}
