//! An incident: one firing of one rule on one group, from its onset to its resolution, with all
//! that was seen, asked and found. `incident.json`, the notifications and the API are made of it.

mod capture;
mod record;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::capture::{CaptureOutcome, Captured, CapturedFile, Quality, Refused};
pub use self::record::{Exchange, Record};
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
