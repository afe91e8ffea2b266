//! What the sources hand to the core: bytes with the time of their arrival, or a problem.
//!
//! Sources do not interpret these bytes: log lines and pages are read inside the core, so that a
//! recording and a live server go through the same code. Of a live metrics page, which is large and mostly
//! of no interest, no bytes are kept: its source gives each piece to the core's reader as it arrives.

use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use crate::signal::exposition::PageError;
use crate::signal::loads::LoadsError;
use crate::signal::log_reader::Arrival;
use crate::signal::metrics::ReadPage;
use crate::signal::sample::{Sample, Source, TargetId};
use skewtrap_trace::time::Time;

/// Which of a configuration's sources, by its place there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SourceId(pub u16);

/// Something that a source delivered.
#[derive(Clone, Debug)]
pub enum Observation {
    /// Whole lines of a log, each with its newline (the last of a file may lack it).
    Lines {
        /// Of which server.
        target: TargetId,
        /// Which log.
        source: SourceId,
        /// The bytes.
        lines: Vec<u8>,
        /// When and how they arrived.
        arrival: Arrival,
    },
    /// A metrics page.
    Page {
        /// Of which server.
        target: TargetId,
        /// Which endpoint.
        source: SourceId,
        /// The bytes.
        body: Vec<u8>,
        /// When it arrived.
        at: Time,
    },
    /// A metrics page that the core's reader has read while it arrived.
    ReadPage {
        /// Of which server.
        target: TargetId,
        /// Which endpoint.
        source: SourceId,
        /// What it held.
        page: Arc<ReadPage>,
        /// When it arrived.
        at: Time,
    },
    /// An answer of `/v1/loads` or `/get_load`.
    Loads {
        /// Of which server.
        target: TargetId,
        /// Which endpoint.
        source: SourceId,
        /// The bytes.
        body: Vec<u8>,
        /// When it arrived.
        at: Time,
    },
    /// The answer to a query.
    Samples {
        /// Of which server.
        target: TargetId,
        /// Which query.
        source: SourceId,
        /// What it gave.
        samples: Vec<Sample>,
        /// When it arrived.
        at: Time,
    },
    /// What the machine says of the engine's processes. It is no report of the ranks themselves.
    Host {
        /// Of which server.
        target: TargetId,
        source: SourceId,
        /// What was read.
        samples: Vec<Sample>,
        at: Time,
    },
    /// A source's state changed: a problem began, became another, or ended. Sent once for each change.
    State {
        /// Of which server.
        target: TargetId,
        source: SourceId,
        kind: Source,
        /// What is wrong; `None` when it works (again).
        problem: Option<Problem>,
        /// Since when.
        at: Time,
    },
}

impl Observation {
    /// From which source it came.
    pub fn source(&self) -> SourceId {
        match self {
            Self::Lines { source, .. }
            | Self::Page { source, .. }
            | Self::ReadPage { source, .. }
            | Self::Loads { source, .. }
            | Self::Samples { source, .. }
            | Self::Host { source, .. }
            | Self::State { source, .. } => *source,
        }
    }

    /// When it arrived fresh from its source; `None` for lines of the past, whether recorded or already
    /// in the file when it was opened.
    pub fn fresh_at(&self) -> Option<Time> {
        match self {
            Self::Lines { arrival: Arrival::Backlog(_), .. } => None,
            other => other.at(),
        }
    }

    /// It arrived at `now` at the latest: one that was read before the clock was set back bears a time to
    /// come, up to which whatever takes it in would listen to nothing.
    pub fn came_by(&mut self, now: Time) {
        let at = match self {
            Self::Lines { arrival: Arrival::Live(at) | Arrival::Backlog(at), .. } => at,
            Self::Lines { arrival: Arrival::Recorded, .. } => return,
            Self::Page { at, .. }
            | Self::ReadPage { at, .. }
            | Self::Loads { at, .. }
            | Self::Samples { at, .. }
            | Self::Host { at, .. }
            | Self::State { at, .. } => at,
        };
        *at = (*at).min(now);
    }

    /// When it arrived; `None` for recorded lines, whose own time is in each of them.
    pub fn at(&self) -> Option<Time> {
        match self {
            Self::Lines { arrival: Arrival::Live(at) | Arrival::Backlog(at), .. } => Some(*at),
            Self::Lines { arrival: Arrival::Recorded, .. } => None,
            Self::Page { at, .. }
            | Self::ReadPage { at, .. }
            | Self::Loads { at, .. }
            | Self::Samples { at, .. }
            | Self::Host { at, .. }
            | Self::State { at, .. } => Some(*at),
        }
    }
}

/// Why a source delivers nothing, as a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Nothing answers.
    #[error("nothing answers at {url} ({why}); is the server up, and is the address right?")]
    NoAnswer {
        url: Arc<str>,
        /// The system's words.
        why: String,
    },
    /// It answers, and the agent has no room for what it says.
    #[error(
        "the agent is behind: what it has read and not taken in yet fills its memory, so it leaves what {url} answers; the server is not to blame. Give the agent more CPU, or less to watch"
    )]
    Behind { url: Arc<str> },
    /// It takes too long.
    #[error("{url} did not answer within {timeout_s} s; the server is overloaded, or writes a profile")]
    TooSlow {
        url: Arc<str>,
        /// How long was waited, in seconds (text, for equality).
        timeout_s: String,
    },
    /// A key is missing or wrong.
    #[error("{url} answered {status}: the server wants its API key; set `api_key` of this target")]
    Unauthorized {
        url: Arc<str>,
        /// 401 or 403.
        status: u16,
    },
    /// TensorRT-LLM's statistics in the place of a metrics page.
    #[error(
        "{url} is no metrics page but a JSON list, as TensorRT-LLM's iteration statistics, which nobody else sees once they were read; it is asked no more. Write `engine: tensorrt_llm` for this target if the agent shall read them, else `metrics: false`, and start the agent again"
    )]
    Statistics { url: Arc<str> },
    /// The endpoint is not there.
    #[error("{url} answered 404: {hint}")]
    NotFound {
        url: Arc<str>,
        /// What helps.
        hint: &'static str,
    },
    /// It redirects. That is not followed, because the API key would go along.
    #[error("{url} answered {status}, a redirect, which is not followed; give the final address")]
    Redirected {
        url: Arc<str>,
        /// 3xx.
        status: u16,
    },
    /// Any other status.
    #[error("{url} answered {status}; the server's log says why")]
    Status { url: Arc<str>, status: u16 },
    /// The answer is far too large.
    #[error("{url} answered more than {limit} bytes; that is no metrics page of an LLM server")]
    TooLarge { url: Arc<str>, limit: usize },
    /// A page that is no metrics page.
    #[error("{url}: {error}")]
    BadPage {
        url: Arc<str>,
        /// What is wrong with it.
        error: PageError,
    },
    /// An answer that has no loads.
    #[error("{url}: {error}")]
    BadLoads {
        url: Arc<str>,
        /// What is wrong with it.
        error: LoadsError,
    },
    /// A query that failed.
    #[error("the query `{query}` at {url} failed: {why}")]
    BadQuery {
        url: Arc<str>,
        query: Arc<str>,
        /// The server's words.
        why: String,
    },
    /// The log is not there (yet).
    #[error("log {path} is not there yet; it is read from its first line when it appears")]
    NoFile { path: Arc<str> },
    /// The log cannot be read.
    #[error("log {path} cannot be read ({why}); check its permissions and mounts")]
    Unreadable {
        path: Arc<str>,
        /// The system's words.
        why: String,
    },
    /// The log is no file.
    #[error(
        "log {path} is {what}, and only a file can be followed; let the server write to a file, or give `-` and pipe the lines into the agent"
    )]
    NotAFile {
        path: Arc<str>,
        /// What it is: `a FIFO`.
        what: String,
    },
    /// Lines longer than the bound.
    #[error("log {path} has lines longer than 64 KiB; the rest of each is dropped ({lines} so far)")]
    LongLines {
        path: Arc<str>,
        /// How many.
        lines: u64,
    },
    /// Files that were gone before they were read to their ends.
    #[error(
        "log {path} is rotated faster than it can be read, or its old files cannot be read; {files} of them were lost so far"
    )]
    LostFiles {
        path: Arc<str>,
        /// How many.
        files: u64,
    },
    /// Standard input ended.
    #[error("standard input ended; nothing more comes from this log")]
    Ended,
}

/// The problem that was last reported of a source, so that each change is reported once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportedProblem(Option<Problem>);

impl ReportedProblem {
    /// The problem that was reported and still holds.
    pub fn current(&self) -> Option<&Problem> {
        self.0.as_ref()
    }

    /// Takes what is wrong now and returns whether to report it. A problem of the same kind as before
    /// is not reported again, because its details (a count, a duration) may differ every second.
    pub fn changes_to(&mut self, now: Option<Problem>) -> bool {
        let is_change =
            now.as_ref().map(std::mem::discriminant) != self.0.as_ref().map(std::mem::discriminant);
        if is_change {
            self.0 = now;
        }
        is_change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_reported_when_its_kind_changes_and_when_it_ends() {
        let long = |lines| Some(Problem::LongLines { path: "server.log".into(), lines });
        let mut reported = ReportedProblem::default();
        assert!(!reported.changes_to(None));
        assert!(reported.changes_to(long(1)) && !reported.changes_to(long(2)));
        assert_eq!(reported.current().cloned(), long(1));
        assert!(reported.changes_to(Some(Problem::Ended)));
        assert!(reported.changes_to(None) && reported.current().is_none());
    }
}
