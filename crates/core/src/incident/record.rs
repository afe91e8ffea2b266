//! An incident as its bundle keeps it: `incident.json`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Incident;
use crate::capture::captured::CapturedFile;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// `incident.json`: the incident, and how it came by what it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The agent's id: retention deletes only what bears it.
    pub agent: Arc<str>,
    /// The release that wrote it.
    pub skewtrap: Arc<str>,
    /// The incident.
    #[serde(flatten)]
    pub incident: Incident,
    /// The receivers that its rule named when it fired: who is told of it after a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Arc<str>>,
    /// What was sent to the server or run, without keys, and what came back.
    pub exchanges: Vec<Exchange>,
    /// The captured files, also those of a window that failed.
    pub files: Vec<CapturedFile>,
    /// Which process was which rank, by `/proc` at capture time; an nsys report does not say.
    pub processes: BTreeMap<u32, Labels>,
}

impl Record {
    /// The record of an incident for which nothing was sent yet.
    pub fn new(agent: Arc<str>, incident: Incident) -> Self {
        let skewtrap = env!("CARGO_PKG_VERSION").into();
        let (exchanges, files, processes) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { agent, skewtrap, incident, notify: Vec::new(), exchanges, files, processes }
    }

    /// The same, told to these receivers.
    #[must_use]
    pub fn told_to(mut self, receivers: Vec<Arc<str>>) -> Self {
        self.notify = receivers;
        self
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
    /// The status, or what became of it.
    pub answer: String,
    /// Seconds until the answer.
    pub took_s: f64,
}
