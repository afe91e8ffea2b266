//! A window while it lives: what may happen to it, what is to be done, and how it can end.
//!
//! `machine` is the state machine; `ownership` records what it decides by: which ranks
//! have begun and finished, what proves that the window is ours, whose window is in the way.

mod machine;
mod ownership;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::amount::Span;
use crate::capture::line::ProfileLine;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

pub use machine::Window;

/// A start that is not answered within this long has an unknown end.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A stop answers when everything is written; that takes minutes on a large server.
pub const EXPORT_LIMIT: Duration = Duration::from_secs(600);
/// How long after a start that failed with 5xx a proof that it began all the same is waited for.
pub const DOUBT: Duration = Duration::from_secs(2);
/// How long a server that is not reached is waited for, its stop still to be sent.
pub const UNREACHED_LIMIT: Duration = Duration::from_secs(86_400);
/// So long after a start of unknown end, its deadline apart, it may be stopped on the chance that it
/// began; later, what runs there may be somebody else's.
pub const CHANCE: Duration = Duration::from_secs(120);
/// How long after the busy ranks finished the idle ones are closed; at most 2 s are allowed.
pub const IDLE_GRACE: Duration = Duration::from_millis(500);
/// How long after a stop that answered an error proof of the end is waited for.
pub const PROOF: Duration = Duration::from_secs(10);
/// How long after a stop that failed another is sent, while a rank is seen to be open.
pub const RETRY: Duration = Duration::from_secs(3);
/// How long after everything is closed files are waited for.
pub const SETTLE: Duration = Duration::from_secs(10);
/// How long no further file may have come before the window of an engine that does not tell its ranks has ended.
pub const QUIET: Duration = Duration::from_secs(3);
/// How long a cancelled agent waits for what it cannot hurry.
pub const CANCEL_LIMIT: Duration = Duration::from_secs(8);
/// A stop is sent at most so often for one window.
pub const MAX_STOPS: u8 = 4;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// 2xx.
    Ok,
    /// 2xx, with an error in its body: part of it may have been done.
    ErrorInBody {
        /// The start of the body.
        body: String,
    },
    /// 3xx or 4xx: the server understood and did nothing.
    Refused {
        status: u16,
        /// The start of the body.
        body: String,
    },
    /// 5xx: it may have done part of it.
    Failed {
        status: u16,
        /// The start of the body.
        body: String,
    },
    /// Nobody listens at the address: nothing was sent, and nothing runs there.
    ConnectionRefused,
    /// No connection came about, for another reason: nothing was sent.
    NotSent {
        /// The client's words.
        why: String,
    },
    /// No answer in time.
    TimedOut,
    /// The connection broke before the answer.
    Lost {
        /// The client's words.
        why: String,
    },
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The start was answered, or given up.
    StartAnswered(Answer),
    /// The last stop was answered, or given up.
    StopAnswered(Answer),
    /// The server's log said something of profiling.
    Log {
        /// The rank that printed it.
        rank: Rank,
        line: ProfileLine,
    },
    /// A file that bears the window's marks was looked at.
    File {
        /// The rank, by its name.
        rank: Option<Rank>,
        /// Whether its stream ends as it should.
        whole: bool,
    },
    /// The rule cleared.
    Cleared,
    /// Somebody wants it closed now (`skewtrap capture stop`).
    Close,
    /// The agent ends.
    Cancel,
    /// Its own log says that it dies, and how. A proof only together with [`Event::Unreachable`].
    Dying(String),
    /// Nobody listens there. What has become of it is unknown: it may be ours not to reach it.
    Unreachable,
    /// It answers (again), and nothing shows that it is another instance.
    Answers,
    /// The instance that took the start has other ranks than the window was made for.
    OtherRanks,
    /// It is proven to be another instance, its windows gone with the one before; and by what.
    Gone(String),
    /// The stop leaves now, and counts as sent.
    StopLeaves,
    /// What was learned just before the stop left spoke against it: it was not sent.
    StopWithheld,
    /// Whether it is the instance that was asked to start could not be learned: its stop was not sent.
    Unidentified,
}

/// The stops of a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stops {
    /// How many were sent.
    pub count: u8,
    pub last: Time,
    /// How that was answered; `None` as long as it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// A window that an agent before this one left behind, as far as that agent wrote it down.
#[derive(Clone, Debug, PartialEq)]
pub struct OrphanedWindow {
    /// When its start was sent.
    pub sent_at: Time,
    /// Whether that was answered with success.
    pub granted: bool,
    /// Whether it was answered as it is where a rank records for somebody else.
    pub refused_double: bool,
    /// The stops that were sent; `None` where none was.
    pub stops: Option<Stops>,
    /// Whether it was closed: it is never stopped again.
    pub ended: bool,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Post the start.
    Start,
    /// Post a stop.
    Stop {
        /// `/stop_profile`, or what the published how-to calls it.
        path: &'static str,
    },
    /// It is over.
    Finish(Ending),
}

/// How far a window has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowPhase {
    /// The start is on its way.
    Starting,
    /// The start failed with 5xx; does it run all the same?
    Doubtful,
    /// The start was not answered; does it run?
    Unknown,
    /// It runs.
    Open,
    /// A stop is on its way.
    Stopping,
    /// It is closed and being written, or the proof of that is waited for.
    Exporting,
    /// It is closed; files are waited for.
    Verifying,
    /// It is over.
    Ended,
}

/// How a window ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// Whether it went as planned; its files are judged elsewhere.
    pub failure: Option<Failure>,
    /// Why it may still be open; `None` when it never opened or is proven closed.
    pub unproven: Option<String>,
    /// What a reader of the capture should know.
    pub notes: Vec<String>,
}

/// Why a window failed: a sentence for the notification.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// The server said no.
    #[error("the server refused the start with {status}{}{}", said(.body), hint_of_start(*.status))]
    StartRefused {
        status: u16,
        /// The start of the body.
        body: String,
    },
    /// The server failed, and nothing shows that a window began.
    #[error(
        "the start failed with {status}; on SGLang that is the answer while a window is open or armed already, else the server's log has the reason"
    )]
    StartFailed { status: u16 },
    /// The server answered with success, and with an error in the answer.
    #[error(
        "the server answered the start with success and with an error in the answer{}; whether part of its ranks began is unknown, no stop is sent, and the server is left alone for ten minutes", said(.body)
    )]
    StartErred {
        /// The start of the body.
        body: String,
    },
    /// It was not reached.
    #[error("the start did not reach the server ({why}); nothing was opened")]
    NotReached {
        /// The client's words.
        why: String,
    },
    /// Nobody knows whether it began.
    #[error(
        "unknown start: {why}, and neither log nor files show a window of ours; none is stopped, and the server is left alone for ten minutes"
    )]
    UnknownStart {
        /// What happened to the request.
        why: String,
    },
    /// Somebody else's window was in the way.
    #[error(
        "somebody else opened a profile during the window, writing to {dir}; it was left alone, and ours may be lost or incomplete"
    )]
    Foreign {
        /// Its folder.
        dir: String,
    },
    /// It could not be proven closed.
    #[error(
        "the stop was answered with {answer}, and neither log nor files show that {ranks} ended; a window is bounded by its steps, and the server is left alone for ten minutes"
    )]
    NotProvenClosed {
        /// What the server said.
        answer: String,
        /// The ranks whose end is unknown.
        ranks: String,
    },
    /// The export did not end.
    #[error("the export had not ended after {}; the server may still be writing, and serving may be stalled until it has", Span(*.0))]
    ExportTimedOut(Duration),
    /// The server went away.
    #[error("the server went away in the middle of the window ({why}); its window went with it{}", hint_of_death(.why))]
    ServerGone {
        /// How that was seen.
        why: String,
    },
    /// The stop could not be sent.
    #[error(
        "the server has not been reached for {} since the window's deadline; its window may be open: if it is still there, send it /stop_profile by hand", Span(*.0)
    )]
    Unreached(Duration),
    /// Nobody knows whose profile runs by now.
    #[error(
        "the agent was away for {} after this window's start, and nothing shows that the window is open still: what runs on the server by now may be somebody else's, so no stop was sent; if nobody profiles there, send it /stop_profile by hand", Span(*.0)
    )]
    LeftTooLong(Duration),
    /// Nobody knows which instance of the server it is.
    #[error(
        "the server did not say what it is, so whether it is the one on which the dead agent opened this window is unknown, and no stop was sent: if it is, send it /stop_profile by hand"
    )]
    Unidentified,
    /// The agent ended first.
    #[error("the agent was told to end before the window was proven closed; it is closed at the next start")]
    Cancelled,
}

fn said(body: &str) -> String {
    let first = body.trim().lines().next().unwrap_or_default();
    if first.is_empty() { String::new() } else { format!(" ({first})") }
}

fn hint_of_start(status: u16) -> &'static str {
    match status {
        300..=399 => "; redirects are not followed: give the worker's own url",
        401 | 403 => {
            "; the profile calls take admin_api_key where the server has one, else api_key: set it on the target"
        }
        404 => {
            "; it has no profile API there: vLLM needs --profiler-config '{\"profiler\":\"torch\",\"torch_profiler_dir\":\"/dir\"}' at launch (VLLM_TORCH_PROFILER_DIR until 0.12), SGLang behind a router or with the Rust front end needs the worker's own url, TensorRT-LLM needs a release with profile calls, and Dynamo the worker's system port (DYN_SYSTEM_PORT)"
        }
        409 => {
            "; a profiling session is active already: it is somebody else's, or was left behind, and is left alone"
        }
        _ => "",
    }
}

fn hint_of_death(why: &str) -> &'static str {
    if why.contains("No space left") {
        "; its disk was full while it wrote the trace: free some space, and raise keep.min_free so that the next window is refused in time"
    } else if why.contains("Permission denied") || why.contains("Read-only file system") {
        "; it may not write to the folder of its windows: make capture.output_dir writable by the server's user"
    } else if why.contains("atchdog timeout") {
        "; writing the trace took longer than --watchdog-timeout: ask for fewer steps"
    } else {
        ""
    }
}

/// What the agent sees of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visibility {
    pub log: bool,
    /// The files that it writes.
    pub files: bool,
}

/// The time in which samples are not to be trusted: a capture must not trigger the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettlingTime {
    /// The start was sent.
    pub from: Time,
    /// The stop was sent, or the window ended by itself; `None` while it is open.
    pub closing: Option<Time>,
    /// The export's end plus the settle time; `None` until then.
    pub until: Option<Time>,
}

impl SettlingTime {
    /// After the export's end, samples are distrusted for this long.
    pub const SETTLE: Duration = Duration::from_secs(10);

    /// Opens with the start.
    pub const fn opened(from: Time) -> Self {
        Self { from, closing: None, until: None }
    }

    /// The window entered a phase.
    pub fn entered(&mut self, phase: WindowPhase, at: Time) {
        match phase {
            WindowPhase::Stopping | WindowPhase::Exporting => {
                self.closing.get_or_insert(at);
            }
            WindowPhase::Verifying | WindowPhase::Ended => self.exported(at),
            WindowPhase::Starting | WindowPhase::Doubtful | WindowPhase::Unknown | WindowPhase::Open => {}
        }
    }

    /// Ends [`Self::SETTLE`] after the export did.
    pub fn exported(&mut self, at: Time) {
        self.closing.get_or_insert(at);
        self.until = Some(at + Self::SETTLE);
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(self.closing.iter_mut().chain(&mut self.until).chain([&mut self.from]), by_ns);
    }

    /// Whether a sample of that time may begin or extend a firing and enter a baseline.
    pub fn trusts(&self, at: Time) -> bool {
        at < self.from || self.until.is_some_and(|until| at >= until)
    }

    /// Whether a sample of that time may clear a firing: also while the window is open.
    pub fn may_clear(&self, at: Time) -> bool {
        self.trusts(at) || self.closing.is_none_or(|closing| at < closing)
    }
}
