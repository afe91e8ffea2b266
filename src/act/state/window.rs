//! A window as the state has it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use skewtrap_core::capture::governor::Attempt;
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::window::Stops;
use skewtrap_trace::time::Time;

/// A window that is, or may be, open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowRow {
    /// The attempt's id.
    pub attempt: String,
    /// The incident's id.
    pub incident: String,
    /// The server's configured name.
    pub target: String,
    #[serde(rename = "means")]
    pub method: OpenMethod,
    /// When the start was, or was to be, sent.
    pub sent_at: Time,
    /// Whether the start was answered with success.
    pub granted: bool,
    /// Whether it was answered as one is where a rank records for somebody else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused_double: bool,
    /// Which instance of the server was asked, as far as it said; a release before 0.2 did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Why it may still be open though the agent is done with it: the row is kept until it is proven
    /// closed or ten minutes have passed, and no other window opens there meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// The stops that were sent to the engine's own profiler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops: Option<Stops>,
    /// Whether it was seen to be closed: then what runs there is never stopped again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// How many bytes the server's log had before the start: what stands there is of older windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_from: Option<u64>,
    /// The same of each of its logs, by their paths; a release before 0.2 noted only the first one's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub logs_from: BTreeMap<PathBuf, u64>,
}

impl WindowRow {
    /// The window of an attempt that begins at `at`: nothing was sent yet, and nothing is known of it.
    pub fn of(attempt: &Attempt, method: OpenMethod, at: Time) -> Self {
        Self {
            attempt: attempt.id.clone(),
            incident: attempt.incident.clone(),
            target: attempt.target.clone(),
            method,
            sent_at: at,
            granted: false,
            refused_double: false,
            instance: None,
            unproven: None,
            stops: None,
            ended: false,
            log_from: None,
            logs_from: BTreeMap::new(),
        }
    }

    /// The same by a wall clock that was set by so many nanoseconds.
    pub(super) fn moved(&self, by_ns: i64) -> Self {
        let moved = |at: Time| Time::from_nanos(at.nanos().saturating_add(by_ns));
        let stops = self.stops.clone().map(|stops| Stops { last: moved(stops.last), ..stops });
        Self { sent_at: moved(self.sent_at), stops, ..self.clone() }
    }

    /// How many bytes that log of the server's had before the start; `None` where that was not noted.
    pub fn log_from(&self, log: &Path, is_first: bool) -> Option<u64> {
        self.logs_from.get(log).copied().or(self.log_from.filter(|_| is_first))
    }
}

/// What opened a window, as far as closing it needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenMethod {
    /// The engine's own profiler.
    Http(StartRequest),
    /// An Nsight Systems session.
    Nsys {
        /// Its id, as `sessions list` gave it.
        session: String,
        name: String,
    },
    /// A program of the user's.
    Command {
        /// Its process group.
        group: Option<i32>,
    },
}
