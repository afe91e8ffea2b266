//! What the agents of a pool have in common in a store: the names of objects, what of an incident may leave
//! its host, and the index of all incidents (docs/fleet.md). The store itself is the shell's.

pub mod gather;
pub mod lease;
mod view;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::view::{FleetView, RepeatOffender, Tally};
use crate::capture::captured::CaptureKind;
use crate::cause::CauseKind;
use crate::incident::{CaptureOutcome, Incident, Record};
use crate::printable::printable;
use crate::rule::Severity;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::rank_name;
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::Kind;

/// The version of the layout and of the index.
pub const VERSION: u32 = 1;

/// The name of the record in a store and in a bundle.
pub const RECORD: &str = "incident.json";

/// Stands where text stays on its host.
const WITHHELD: &str = "(stays on its host)";

/// What may leave the host beside records, summaries and rows of kernels: nothing, unless it is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Traces, evidence, text of logs and what was said to the server.
    pub raw: bool,
    /// Reports of Nsight Systems, which hold the environment and the output of the server.
    pub secrets: bool,
}

/// The folder of an incident below the store's address: `POOL/incidents/2026-11-24/ID`.
pub fn folder_of(pool: &str, incident: &Incident) -> String {
    format!("{pool}/incidents/{}/{}", date_of(incident.fired_at), incident.id)
}

/// The object of an incident's line in the index: `POOL/index/2026-11-24/ID.jsonl`. Each has an object of its
/// own, because objects cannot be appended to.
pub fn index_of(pool: &str, incident: &Incident) -> String {
    format!("{pool}/index/{}/{}.jsonl", date_of(incident.fired_at), incident.id)
}

/// The folder of a pool's index.
pub fn index_folder(pool: &str) -> String {
    format!("{pool}/index")
}

fn date_of(at: Time) -> String {
    at.rfc3339().split('T').next().unwrap_or_default().to_owned()
}

/// With what the names of Nsight Systems end: reports, their intermediate forms, exports and what SQLite
/// writes beside them.
const NSIGHT: [&str; 11] = [
    ".nsys-rep",
    ".qdrep",
    ".qdstrm",
    ".qdstrm.gz",
    ".sqlite",
    ".sqlite.gz",
    ".arrow",
    ".parquet",
    "-wal",
    "-shm",
    "-journal",
];

/// Whether a file of a bundle, by its path in it, may hold the environment and the output of the server.
pub fn is_secret(path: &str) -> bool {
    // What a capture left half done may be a part of a report under any name.
    NSIGHT.iter().any(|end| path.ends_with(end)) || path.starts_with("left") && path.contains('/')
}

/// The name in the incident's folder under which a file of its bundle is stored; `None` if it stays here.
///
/// `path` is relative to the bundle: `summaries/dp2.summary.json` is stored as `dp2/summary.json`, that of a
/// second capture (`summaries-2/`) as `dp2/summary-2.json`.
pub fn object_of(path: &str, share: Share) -> Option<String> {
    let (folder, name) = path.split_once('/').unwrap_or(("", path));
    if name.is_empty() || name.starts_with('.') || folder.starts_with('.') || name.contains('/') {
        return None;
    }
    if let Some(window) = folder.strip_prefix("summaries") {
        return name.strip_suffix(".summary.json").map(|rank| format!("{rank}/summary{window}.json"));
    }
    if folder.is_empty() && name.starts_with("kernels") && name.ends_with(".csv") {
        return Some(name.to_owned());
    }
    if folder.is_empty() && name == RECORD || name == "pinned" {
        return None;
    }
    let allowed = if is_secret(path) { share.secrets } else { share.raw };
    allowed.then(|| path.to_owned())
}

/// The record as it may leave the host: without `raw`, without the text of logs, without what was said to the
/// server and what it answered, and without what people and alerts wrote.
#[must_use]
pub fn shared(record: &Record, share: Share) -> Record {
    let mut record = record.clone();
    if share.raw {
        return record;
    }
    record.exchanges.clear();
    let incident = &mut record.incident;
    if let Some(death) = &mut incident.died {
        withhold(&mut death.line);
    }
    // Of a window that an alert asked for these are the alert's labels.
    if incident.is_by_hand() {
        incident.group = Labels::default();
    }
    // Of what no rule measured it is a line of the log, or why somebody asked for a capture.
    if incident.finding.measured.is_none() {
        incident.finding.evidence.iter_mut().for_each(withhold);
    }
    if let Some(line) = incident.finding.shown_by.as_mut().and_then(|shown| shown.line.as_mut()) {
        withhold(line);
    }
    let refused = incident.worse.iter_mut().filter_map(|w| w.refused.as_mut());
    let refused = refused.chain(incident.follow_up.iter_mut().filter_map(|f| f.refused.as_mut()));
    refused.for_each(|refused| withhold(&mut refused.why));
    let outcomes = incident.earlier.iter_mut().map(|e| &mut e.capture).chain([&mut incident.capture]);
    // Each may quote the answer of a server, or what a program printed; the word of a refusal says what it was.
    for outcome in outcomes {
        match outcome {
            CaptureOutcome::Refused(refused) => withhold(&mut refused.why),
            CaptureOutcome::Done(captured) => captured.notes.iter_mut().for_each(withhold),
            CaptureOutcome::Failed { why, captured } => {
                withhold(why);
                captured.iter_mut().flat_map(|c| &mut c.notes).for_each(withhold);
            }
            CaptureOutcome::None | CaptureOutcome::WouldStart | CaptureOutcome::Open { .. } => {}
        }
    }
    record
}

fn withhold(text: &mut String) {
    WITHHELD.clone_into(text);
}

/// Whether an incident will not change by itself any more: it is resolved, no window of it is open, and what it
/// captured was compared, or was not within `patience_s` seconds.
pub fn is_ended(record: &Record, now: Time, patience_s: f64) -> bool {
    let incident = &record.incident;
    let Some(resolved) = incident.resolved_at else { return false };
    let open = matches!(incident.capture, CaptureOutcome::Open { .. });
    let to_compare = incident.capture.is_comparable() && incident.verdict.is_none();
    !open && (!to_compare || now.signed_s_since(resolved) >= patience_s)
}

/// One line of the index: one incident, in columns that a table reads as they are. Times are seconds since
/// the Unix epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexLine {
    /// The version of this form.
    pub index: u32,
    pub pool: Arc<str>,
    /// The host of the agent.
    pub host: Arc<str>,
    /// The configured name of the server.
    pub target: Arc<str>,
    pub incident: Arc<str>,
    /// The rule that fired.
    pub rule: Arc<str>,
    /// How bad.
    pub severity: Severity,
    /// The blamed rank, as people read it: `DP2`.
    pub rank: String,
    pub fired_at: Time,
    /// When it stopped.
    pub resolved_at: Option<Time>,
    pub cause: Option<CauseKind>,
    /// How its last capture came out: `none`, `refused`, `done`, `failed`.
    pub capture: String,
    /// Why there was none, in one word.
    pub refused: Option<String>,
    /// By what it was captured.
    pub means: Option<CaptureKind>,
    /// Windows that captured something.
    pub windows: u32,
    /// Seconds that they were open.
    pub open_s: f64,
    /// Seconds of serving that they cost.
    pub stall_s: f64,
    /// Bytes that they captured.
    pub bytes: u64,
    pub verdict: Option<Kind>,
    /// The rank that the verdict names.
    pub culprit: Option<String>,
    /// The verdict in a sentence.
    pub sentence: Option<String>,
    /// The incident's folder in the store.
    pub path: String,
}

impl IndexLine {
    /// The line of an incident.
    pub fn new(pool: &str, host: &str, incident: &Incident) -> Self {
        let captured: Vec<_> = incident.captures().filter_map(CaptureOutcome::captured).collect();
        let verdict = incident.verdict.as_ref();
        Self {
            index: VERSION,
            pool: pool.into(),
            host: host.into(),
            target: incident.target.clone(),
            incident: incident.id.clone(),
            rule: incident.rule.clone(),
            severity: incident.severity,
            rank: rank_name(&incident.finding.rank),
            fired_at: incident.fired_at,
            resolved_at: incident.resolved_at,
            cause: incident.cause.as_ref().map(|c| c.kind),
            capture: incident.capture.word().to_owned(),
            refused: incident.capture.refused().map(|r| r.reason.word().to_owned()),
            means: captured.last().map(|c| c.means),
            windows: u32::try_from(captured.len()).unwrap_or(u32::MAX),
            // A sum of nothing is -0.0, which tables show as it is.
            open_s: captured.iter().map(|c| c.open_s).sum::<f64>() + 0.0,
            stall_s: captured.iter().map(|c| c.stall_s).sum::<f64>() + 0.0,
            bytes: captured.iter().flat_map(|c| &c.files).map(|f| f.size).sum(),
            verdict: verdict.map(|v| v.kind),
            culprit: verdict.and_then(|v| v.rank.as_ref()).map(rank_name),
            sentence: verdict.map(|v| v.sentence.clone()),
            path: folder_of(pool, incident),
        }
    }

    /// The line of an object of the index; `None` where it has none that this version can read. What it says
    /// was written by another host: its text is made safe to show.
    pub fn read(object: &[u8]) -> Option<Self> {
        let line = object.split(|b| *b == b'\n').next()?;
        let read: Self = serde_json::from_slice(line).ok().filter(|l: &Self| l.index <= VERSION)?;
        let safe = |text: &str| printable(text, 400).into_owned();
        Some(Self {
            pool: safe(&read.pool).into(),
            host: safe(&read.host).into(),
            target: safe(&read.target).into(),
            incident: safe(&read.incident).into(),
            rule: safe(&read.rule).into(),
            rank: safe(&read.rank),
            capture: safe(&read.capture),
            refused: read.refused.as_deref().map(safe),
            culprit: read.culprit.as_deref().map(safe),
            sentence: read.sentence.as_deref().map(safe),
            path: safe(&read.path),
            ..read
        })
    }

    /// As the object of the index: one line.
    pub fn object(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("plain data serialises");
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests;
