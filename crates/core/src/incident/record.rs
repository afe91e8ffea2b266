//! An incident as its bundle keeps it: `incident.json`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CaptureOutcome, Incident};
use crate::capture::captured::CapturedFile;
use crate::capture::governor::AttemptEnd;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// `incident.json`: the incident, and how its files were captured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The agent's id: retention deletes only what bears it.
    pub agent: Arc<str>,
    /// The release that wrote it.
    pub skewtrap: Arc<str>,
    #[serde(flatten)]
    pub incident: Incident,
    /// The receivers that its rule named when it fired: who gets its messages after a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Arc<str>>,
    /// What was sent to the server or run, without keys, and the answers.
    pub exchanges: Vec<Exchange>,
    /// The captured files, also those of a window that failed.
    pub files: Vec<CapturedFile>,
    /// Which process was which rank, by `/proc` at capture time; an nsys report does not contain it.
    pub processes: BTreeMap<u32, Labels>,
}

impl Record {
    /// The record of an incident for which nothing was sent yet.
    pub fn new(agent: Arc<str>, incident: Incident) -> Self {
        let skewtrap = env!("CARGO_PKG_VERSION").into();
        let (exchanges, files, processes) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { agent, skewtrap, incident, notify: Vec::new(), exchanges, files, processes }
    }

    /// The same, with the receivers that its rule names.
    #[must_use]
    pub fn notifying(mut self, receivers: Vec<Arc<str>>) -> Self {
        self.notify = receivers;
        self
    }

    /// Adds what a capture stored beside its incident: files, exchanges, processes.
    pub fn add_files(&mut self, stored: &StoredCapture) {
        self.exchanges.extend(stored.exchanges.iter().cloned());
        self.files.extend(stored.files.iter().cloned());
        self.processes.extend(stored.processes.clone());
    }

    /// What captures brought to `there`, a record of the same incident that is older, stays.
    pub fn keep_captured(&mut self, there: Self) {
        let files = std::mem::replace(&mut self.files, there.files);
        extend_by_new(&mut self.files, files);
        let exchanges = std::mem::replace(&mut self.exchanges, there.exchanges);
        extend_by_new(&mut self.exchanges, exchanges);
        let processes = std::mem::replace(&mut self.processes, there.processes);
        self.processes.extend(processes);
    }

    /// Completes the record of an incident that no core follows any more with a capture of it.
    pub fn complete(&mut self, stored: &StoredCapture) {
        self.add_files(stored);
        self.incident.captured(stored);
    }
}

fn extend_by_new<T: PartialEq>(known: &mut Vec<T>, others: Vec<T>) {
    for other in others {
        if !known.contains(&other) {
            known.push(other);
        }
    }
}

/// What a window captured and how it ended: all that a capture's task reports. The task does not change the
/// incident; [`Incident::captured`] is the one place where the result enters it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredCapture {
    /// Its outcome: done, or failed.
    pub outcome: CaptureOutcome,
    /// What it cost.
    pub end: AttemptEnd,
    /// The path of its bundle; `None` where none was begun.
    #[serde(default)]
    pub bundle: Option<String>,
    /// What was sent to the server or run, without keys, and the answers.
    #[serde(default)]
    pub exchanges: Vec<Exchange>,
    /// The captured files, also those of a window that failed.
    #[serde(default)]
    pub files: Vec<CapturedFile>,
    /// Which process was which rank.
    #[serde(default)]
    pub processes: BTreeMap<u32, Labels>,
}

impl StoredCapture {
    /// One that captured nothing.
    pub const fn failed(why: String, end: AttemptEnd) -> Self {
        Self {
            outcome: CaptureOutcome::Failed { why, captured: None },
            end,
            bundle: None,
            exchanges: Vec::new(),
            files: Vec::new(),
            processes: BTreeMap::new(),
        }
    }
}

/// One request or command, without keys, and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// When it was sent.
    pub at: Time,
    /// `POST /start_profile`, or the program with its arguments.
    pub request: String,
    /// The body that was sent.
    pub body: Option<serde_json::Value>,
    /// The status, or why there is none.
    pub answer: String,
    /// Seconds until the answer.
    pub took_s: f64,
}
