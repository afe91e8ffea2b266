//! An incident: one firing of one rule on one group, from its onset to its resolution, with all
//! that was seen, asked and found. `incident.json`, the notifications and the API are made of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decide::capture::refusal::Refusal;
use crate::decide::labels::Labels;
use crate::decide::rule::{Severity, Side};
use crate::decide::signal::sample::Source;
use crate::decide::time::Time;

/// One incident. Times are epoch seconds in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Unique and sortable: `20261124T034845Z-dp-load-skew-3f9a`.
    pub id: Arc<str>,
    /// The rule that fired.
    pub rule: Arc<str>,
    /// The rule's own sentence.
    pub about: Option<String>,
    /// The configured name of the server.
    pub target: Arc<str>,
    /// The group's labels.
    pub group: Labels,
    /// How bad.
    pub severity: Severity,
    /// The rule's labels, for routing.
    pub labels: Labels,
    /// How far it has come.
    pub state: IncidentState,
    /// When the rule fired.
    pub fired_at: Time,
    /// When it stopped firing.
    pub resolved_at: Option<Time>,
    /// What it found.
    pub finding: Finding,
    /// What came of the capture: of the last one, where [`Self::earlier`] has others.
    pub capture: CaptureOutcome,
    /// What comparing its ranks said, once it is there.
    pub verdict: Option<VerdictNote>,
    /// Where the bundle lies, in the agent's view.
    pub bundle: Option<String>,
    /// The captures before the last one, the oldest first: it got worse after each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierCapture>,
    /// When it was last found worse than when it was captured, and what came of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worse: Option<Worse>,
}

impl Incident {
    /// An incident that has just been found: a warning about nothing in particular, not captured yet.
    pub fn new(id: Arc<str>, rule: Arc<str>, target: Arc<str>, fired_at: Time, finding: Finding) -> Self {
        Self {
            id,
            rule,
            about: None,
            target,
            group: Labels::default(),
            severity: Severity::Warning,
            labels: Labels::default(),
            state: IncidentState::Open,
            fired_at,
            resolved_at: None,
            finding,
            capture: CaptureOutcome::None,
            verdict: None,
            bundle: None,
            earlier: Vec::new(),
            worse: None,
        }
    }

    /// What came of all its captures, the oldest first.
    pub fn captures(&self) -> impl Iterator<Item = &CaptureOutcome> {
        self.earlier.iter().map(|e| &e.capture).chain([&self.capture])
    }

    /// That it had got worse, if the capture of that number was wished for because of it.
    pub fn worse_of(&self, window: usize) -> Option<&Worse> {
        self.worse.as_ref().filter(|w| w.refused.is_none() && w.window == window)
    }

    /// The number of its last capture within it, from 1 on.
    pub fn window(&self) -> usize {
        self.earlier.len() + 1
    }

    /// The number of its next capture.
    pub fn next_window(&self) -> usize {
        let is_captured = !matches!(self.capture, CaptureOutcome::None | CaptureOutcome::Refused(_));
        self.window() + usize::from(is_captured)
    }

    /// When its last capture was wished for: when it fired, or had got worse.
    pub fn wished_at(&self) -> Time {
        self.worse_of(self.window()).map_or(self.fired_at, |w| w.at)
    }

    /// The number of the capture that was refused last.
    pub fn refused_window(&self) -> usize {
        let again = self.worse.as_ref().filter(|w| w.refused.is_some() && w.window > self.window());
        again.map_or_else(|| self.window(), |w| w.window)
    }

    /// It is over; whether it was not before.
    pub fn resolve(&mut self, at: Time) -> bool {
        let is_news = self.resolved_at.is_none();
        if is_news {
            (self.state, self.resolved_at) = (IncidentState::Resolved, Some(at));
        }
        is_news
    }

    /// Another capture begins; `times_bound` is how bad it was at the one before, if there was one.
    pub fn capture_again(&mut self, capture: CaptureOutcome, times_bound: Option<f64>) {
        let before = std::mem::replace(&mut self.capture, capture);
        if let Some(times_bound) = times_bound {
            let verdict = self.verdict.take();
            if self.state != IncidentState::Resolved {
                self.state = IncidentState::Open;
            }
            self.earlier.push(EarlierCapture { times_bound, capture: before, verdict });
        }
    }
}

/// A capture of an incident that was captured again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlierCapture {
    /// How bad it was then: how many times its bound the statistic was.
    pub times_bound: f64,
    /// What came of it.
    pub capture: CaptureOutcome,
    /// What comparing its ranks said.
    pub verdict: Option<VerdictNote>,
}

/// An incident that got worse after it was captured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worse {
    /// When.
    pub at: Time,
    /// The statistic's value then.
    pub value: f64,
    /// How many times its bound that is.
    pub times_bound: f64,
    /// The number of the capture that was wished for, 2 for the first one after the first.
    pub window: usize,
    /// Why there was none; `None` when there was.
    pub refused: Option<Refused>,
}

/// Why a capture was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A word for machines: `cooldown`.
    #[serde(default)]
    pub reason: Arc<str>,
    /// A sentence with what would mend it.
    pub why: String,
}

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

/// How far an incident has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentState {
    /// Firing, nothing captured (yet).
    Open,
    /// A window was taken.
    Captured,
    /// Its ranks were compared.
    Compared,
    /// The rule no longer fires.
    Resolved,
}

/// What a rule found when it fired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The estimated onset.
    pub onset: Time,
    /// Its standard error in seconds.
    pub onset_error_s: f64,
    /// The blamed member: `{"dp_rank": 2}`.
    pub rank: Labels,
    /// On which side it left its peers.
    pub side: Side,
    /// The statistic that crossed its bound (`max_over_mean`).
    pub statistic: Arc<str>,
    /// The signal it summarises (`load`).
    pub signal: Arc<str>,
    /// Its value.
    pub value: f64,
    /// The bound it crossed.
    pub bound: f64,
    /// Every member's value at that time, in the order of the members.
    pub members: Vec<MemberValue>,
    /// The numbers that show it, in a sentence.
    pub evidence: Option<String>,
    /// The blamed member's sample nearest to the onset.
    #[serde(default)]
    pub shown_by: Option<ShownBy>,
}

/// One sample, and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownBy {
    /// When it was true.
    pub at: Time,
    /// In the signal's unit.
    pub value: f64,
    /// Where it came from.
    pub source: Source,
    /// The log line it was read from, at most 512 bytes of it.
    pub line: Option<String>,
}

/// One member's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberValue {
    /// `{"dp_rank": 2}`.
    pub rank: Labels,
    /// In the signal's unit.
    pub value: f64,
    /// Whether it went silent.
    pub stale: bool,
}

/// What came of the wish to capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CaptureOutcome {
    /// The rule captures nothing.
    None,
    /// A recording is replayed: this is where a window would have opened.
    WouldStart,
    /// Not now, and why.
    Refused(Refused),
    /// A window is being taken.
    Open {
        /// Since when.
        since: Time,
    },
    /// Files came.
    Done(Captured),
    /// A window was asked for and failed.
    Failed {
        /// A sentence with what to do.
        why: String,
        /// What came of it all the same.
        captured: Option<Captured>,
    },
}

impl CaptureOutcome {
    /// What it brought, also where it failed.
    pub const fn captured(&self) -> Option<&Captured> {
        match self {
            Self::Done(captured) | Self::Failed { captured: Some(captured), .. } => Some(captured),
            _ => None,
        }
    }

    /// Whether the ranks of what it brought can be compared: files came, and the agent sees them.
    pub fn is_comparable(&self) -> bool {
        matches!(self, Self::Done(c) if c.quality != Quality::Unseen && !c.files.is_empty())
    }

    /// Why there was none, where it was refused.
    pub const fn refused(&self) -> Option<&Refused> {
        if let Self::Refused(refused) = self { Some(refused) } else { None }
    }

    /// The word of the replay format: `none|would_start|refused|open|done|failed`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::WouldStart => "would_start",
            Self::Refused(_) => "refused",
            Self::Open { .. } => "open",
            Self::Done(_) => "done",
            Self::Failed { .. } => "failed",
        }
    }
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        Self { reason: refusal.word().into(), why: refusal.to_string() }
    }
}

/// What a window brought.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// `http`, `nsys`, `cuda_profiler_api`, `command`.
    pub means: Arc<str>,
    /// When the start was sent.
    pub started_at: Time,
    /// Seconds from the firing, or from when it had got worse, to the start request.
    pub start_delay_s: f64,
    /// Seconds that the window was open.
    pub open_s: f64,
    /// Seconds of serving that the window and its export cost, as far as the agent can tell.
    pub stall_s: f64,
    /// Whether the files are usable.
    pub quality: Quality,
    /// The files.
    pub files: Vec<CapturedFile>,
    /// Ranks whose file was expected and did not come.
    pub missing: Vec<Labels>,
    /// Ranks that had no work while the window was open.
    pub idle: Vec<Labels>,
    /// Whether the agent cannot see the files; then they are where `files` says, on the server.
    pub remote: bool,
    /// Sentences a reader of the capture should know (a partial file, an environment inside a report).
    pub notes: Vec<String>,
}

/// Whether captured files are usable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// Every expected rank's file is there and whole.
    Usable,
    /// Some are.
    Partial,
    /// None is.
    #[default]
    Broken,
    /// The agent cannot see them.
    Unseen,
}

/// One file of a capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedFile {
    /// Inside the bundle when relative, else where it was left.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Hex; empty when the agent cannot read the file.
    pub sha256: String,
    /// Inode number where the file was left in place.
    pub inode: Option<u64>,
    /// Whose.
    pub rank: Option<Labels>,
    /// Whether its stream ends as it should.
    pub whole: bool,
}

/// The verdict, as far as notifications carry it; `report.json` beside it has the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictNote {
    /// `uneven_work|slow_rank|all_slow|idle_tail|no_finding|insufficient_evidence`.
    pub kind: Arc<str>,
    /// The culprit.
    pub rank: Option<Labels>,
    /// One sentence.
    pub sentence: String,
    /// Busy GPU time per step beyond the median of its peers.
    pub lost_ms_per_step: Option<f64>,
    /// `high|medium|low`.
    pub confidence: Arc<str>,
    /// Whether it bears out what fired the rule; `None` when it cannot tell.
    pub confirms: Option<bool>,
}
