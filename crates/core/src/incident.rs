//! An incident: one firing of one rule on one group, from its onset to its resolution, with all
//! that was seen, done and found. `incident.json`, the notifications and the API are made of it.

mod capture;
mod impact;
mod record;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::capture::{CaptureOutcome, CaptureState, Refused};
pub use self::impact::{BeforeAndNow, Impact};
pub use self::record::{Exchange, Record, StoredCapture};
pub use crate::capture::captured::{Captured, CapturedFile, Quality};
use crate::cause::Cause;
use crate::factor::{Factor, Mark};
use crate::finding::{Finding, Side, Statistic};
use crate::rule::Severity;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::{Axis, RankId};
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::{Confidence, Kind, Place};
use skewtrap_trace::{Comparison, Suspect};

/// An incident's id: unique and sortable, `20261124T034845Z-dp-load-skew-3f9a`.
pub type IncidentId = Arc<str>;

/// One incident. Times are epoch seconds in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub id: IncidentId,
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
    /// Why it happened, as far as the numbers tell without a capture; looked for in the first ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// What clients notice of it, as of the last look while it went on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impact: Option<Impact>,
    /// The outcome of the capture: of the last one, where [`Self::earlier`] has others.
    pub capture: CaptureOutcome,
    /// The verdict of comparing its ranks, once there is one.
    pub verdict: Option<VerdictNote>,
    /// The path of the bundle, in the agent's view.
    pub bundle: Option<String>,
    /// The captures before the last one, the oldest first: it got worse after each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierCapture>,
    /// The second window that its first one asked for, with CPU activity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_up: Option<FollowUp>,
    /// When it was last found worse than when it was captured, and whether it was captured again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worse: Option<Escalation>,
    /// The death of its server while it was under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub died: Option<Death>,
    /// The trouble of the factors that it is of, by its number among its server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<u64>,
    /// Whom it was blamed on before, in order; empty where the blame never moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blamed_before: Vec<Blamed>,
    /// How often a rule of higher severity took it over, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raised: Vec<Raised>,
    /// What other rules found of it, in order: no incidents of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<Joined>,
    /// Whether its end was not seen: the agent was restarted, and no rule of the one that resolved it saw it
    /// go on. It may have ended before that one began, or soon after.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended_unseen: bool,
    /// How it ended, where that was not that its rule saw it clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<EndReason>,
    /// How often it came back soon after it was taken to be over, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub returned: Vec<Returned>,
    /// Of a rank that hangs with work: the longest pause of one that did not, on that server so far, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usual_pause_s: Option<f64>,
    /// Of a rank that hung: when it moved again, where that was seen; the incident ends once it has moved for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_again: Option<Time>,
    /// Whether its capture was taken for later ones of the server to be compared with.
    #[serde(default, rename = "baseline", skip_serializing_if = "std::ops::Not::not")]
    pub is_baseline: bool,
    /// What a person said that it was worth; the last word counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked: Option<Marked>,
}

/// The name under which captures stand that no rule asked for.
pub const BY_HAND: &str = "by hand";

impl Incident {
    /// Whether it is nothing but a capture that a person, or another system's alert, asked for.
    pub fn is_by_hand(&self) -> bool {
        *self.rule == *BY_HAND
    }

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
            cause: None,
            impact: None,
            capture: CaptureOutcome::None,
            verdict: None,
            bundle: None,
            earlier: Vec::new(),
            follow_up: None,
            worse: None,
            died: None,
            trouble: None,
            blamed_before: Vec::new(),
            raised: Vec::new(),
            joined: Vec::new(),
            ended_unseen: false,
            end: None,
            returned: Vec::new(),
            usual_pause_s: None,
            moved_again: None,
            is_baseline: false,
            marked: None,
        }
    }

    /// Of a rank that hangs: when that was found, after the onset from which on it stands still.
    pub fn found_stuck(&self) -> Option<Time> {
        let measured = self.finding.measured.as_ref()?;
        let is_stuck = measured.statistic == Statistic::Factors && *measured.signal == *STUCK;
        // Another rule may have told the incident before, for another factor.
        let seen = self.finding.symptoms.iter().find(|s| *s.factor == *STUCK && s.rank == self.finding.rank);
        is_stuck.then(|| seen.map_or(self.fired_at, |s| s.at))
    }

    /// Whether later captures may be compared with its own: it was taken for that, and no rank stood out in it.
    pub fn serves_as_baseline(&self) -> bool {
        let is_even = |v: &VerdictNote| matches!(v.kind, Kind::NoFinding | Kind::InsufficientEvidence);
        self.is_baseline && self.capture.is_comparable() && self.verdict.as_ref().is_some_and(is_even)
    }

    /// Another rule found something that belongs to it; what the same rule found of the same rank before goes on.
    pub fn join(&mut self, joined: Joined) {
        let is_same = |j: &Joined| (&j.rule, &j.rank, j.side) == (&joined.rule, &joined.rank, joined.side);
        match self.joined.iter().position(is_same) {
            Some(known) => self.joined[known].until = None,
            None if self.joined.len() < MOST_JOINED => self.joined.push(joined),
            None => {}
        }
    }

    /// It is blamed on another rank, or on the other side of the same: what is told of it from now on is of that.
    pub fn blame(&mut self, finding: Finding, at: Time) {
        let before = std::mem::replace(&mut self.finding, finding);
        let (rank, side) = (before.rank, before.side);
        if (&rank, side) != (&self.finding.rank, self.finding.side) {
            // There are more only where the blame alternates between levels.
            if self.blamed_before.len() == MOST_BLAMED {
                self.blamed_before.remove(1);
            }
            self.blamed_before.push(Blamed { rank, side, until: at });
            // It says why another rank departed, or this one to the other side.
            self.cause = None;
        }
        let verdicts = self.earlier.iter_mut().map(|earlier| &mut earlier.verdict);
        for verdict in verdicts.chain([&mut self.verdict]) {
            *verdict = verdict.take().map(|verdict| verdict.under(&self.finding));
        }
    }

    /// Its ranks were compared, in its capture of that number.
    pub fn conclude(&mut self, window: usize, verdict: VerdictNote) {
        let verdict = verdict.under(&self.finding);
        if window == self.window() {
            self.verdict = Some(verdict);
            if self.state == IncidentState::Captured {
                self.state = IncidentState::Compared;
            }
        } else if let Some(earlier) = self.earlier.get_mut(window.saturating_sub(1)) {
            earlier.verdict = Some(verdict);
        }
    }

    /// A rule of that severity tells it from now on: it is as grave as the gravest that did.
    pub fn raise(&mut self, severity: Severity, at: Time) {
        if severity > self.severity {
            self.raised.push(Raised { at, from: self.severity });
            self.severity = severity;
        }
    }

    /// The outcomes of all its captures, the oldest first.
    pub fn captures(&self) -> impl Iterator<Item = &CaptureOutcome> {
        self.earlier.iter().map(|e| &e.capture).chain([&self.capture])
    }

    /// The escalation because of which the capture of that number was requested, if one was.
    pub fn worse_of(&self, window: usize) -> Option<&Escalation> {
        self.worse.as_ref().filter(|w| w.refused.is_none() && w.window == window)
    }

    /// The second window that the verdict asked for, if its last capture is that.
    pub fn is_follow_up(&self, window: usize) -> bool {
        self.follow_up.as_ref().is_some_and(|f| f.refused.is_none() && f.window == window)
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

    /// When its last capture was requested: when it fired, or had got worse.
    pub fn requested_at(&self) -> Time {
        let follow_up = self.follow_up.as_ref().filter(|_| self.is_follow_up(self.window()));
        let worse = || self.worse_of(self.window()).map(|w| w.at);
        follow_up.map(|f| f.at).or_else(worse).unwrap_or(self.fired_at)
    }

    /// The number of the capture that was refused last.
    pub fn refused_window(&self) -> usize {
        let again = self.worse.as_ref().filter(|w| w.refused.is_some() && w.window > self.window());
        again.map_or_else(|| self.window(), |w| w.window)
    }

    /// Marks it as resolved; returns whether it was not before.
    pub fn resolve(&mut self, at: Time) -> bool {
        let is_news = self.resolved_at.is_none();
        if is_news {
            (self.state, self.resolved_at) = (IncidentState::Resolved, Some(at));
        }
        is_news
    }

    /// It comes back: it was not over. Returns whether it had been taken to be, and may come back once more.
    pub fn come_back(&mut self, at: Time) -> bool {
        let Some(ended) = self.resolved_at.filter(|_| self.returned.len() < MOST_RETURNS) else {
            return false;
        };
        self.returned.push(Returned { ended, at });
        (self.resolved_at, self.ended_unseen, self.end, self.moved_again) = (None, false, None, None);
        self.state = match (&self.verdict, &self.capture) {
            (Some(_), _) => IncidentState::Compared,
            (None, CaptureOutcome::Done(_)) => IncidentState::Captured,
            (None, _) => IncidentState::Open,
        };
        true
    }

    /// A capture of it ended.
    pub fn captured(&mut self, stored: &StoredCapture) {
        self.capture = stored.outcome.clone();
        if stored.bundle.is_some() {
            self.bundle.clone_from(&stored.bundle);
        }
        if matches!(self.capture, CaptureOutcome::Done(_)) && self.state != IncidentState::Resolved {
            self.state = IncidentState::Captured;
        }
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
    pub capture: CaptureOutcome,
    /// The verdict of comparing its ranks.
    pub verdict: Option<VerdictNote>,
}

/// The factor of a rank that hangs.
const STUCK: &str = Factor::Stuck.word();

/// The rule of an incident that is a standing imbalance: one that was there before anything could be compared.
pub const STANDING: &str = "standing-imbalance";

/// What comes back more often than this is another incident.
const MOST_RETURNS: usize = 32;

/// How an incident ended, where that was not that its rule saw it clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// It had gone on for so long that it counts as usual.
    BecameUsual,
    /// For long its data were absent, or its ranks could not be compared.
    NotCompared,
}

/// An incident that came back soon after it was taken to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// When it was taken to be over.
    pub ended: Time,
    /// When it came back.
    pub at: Time,
}

impl Returned {
    /// How long it seemed to be over.
    pub fn after(&self) -> std::time::Duration {
        self.at.since(self.ended)
    }
}

/// More ranks that were to blame once are not kept.
const MOST_BLAMED: usize = 8;

/// Whom an incident was blamed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blamed {
    pub rank: Labels,
    pub side: Side,
    pub until: Time,
}

/// When the severity of an incident rose after it was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    pub at: Time,
    /// How grave it was before.
    pub from: Severity,
}

/// More than this of what other rules found is not kept.
const MOST_JOINED: usize = 32;

/// What a person said of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    #[serde(rename = "as")]
    pub mark: Mark,
    pub at: Time,
}

/// What another rule found of an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    pub at: Time,
    pub rule: Arc<str>,
    pub rank: Labels,
    pub side: Side,
    /// By which numbers: `max_over_mean(queue_reqs) 2.40 against 1.80`.
    pub what: String,
    /// When it was over; none while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// An incident that got worse after it was captured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Escalation {
    pub at: Time,
    /// The statistic's value then.
    pub value: f64,
    /// How many times its bound that is.
    pub times_bound: f64,
    /// The number of the capture that was requested, 2 for the first one after the first.
    pub window: usize,
    /// Why there was none; `None` when there was.
    pub refused: Option<Refused>,
}

/// The death of a server, as its own log said it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// When the line was read.
    pub at: Time,
    /// The line, cut and without control characters.
    pub line: String,
    /// Whether a window of the agent's was, or may have been, open on it.
    pub window_open: bool,
}

/// A second window of an incident, which the verdict of the first one asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FollowUp {
    pub at: Time,
    /// The number of the capture that was requested.
    pub window: usize,
    /// What it is to show.
    pub why: String,
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

/// The verdict, as far as notifications carry it; `report.json` beside it has the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictNote {
    /// What kind of difference it found.
    pub kind: Kind,
    /// The culprit.
    pub rank: Option<Labels>,
    /// Where its cause is; absent without a culprit, and in files of releases that did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Place>,
    pub sentence: String,
    /// Busy GPU time per step beyond the median of its peers; by its host, host time beyond what its work
    /// accounts for.
    pub lost_ms_per_step: Option<f64>,
    /// How much its evidence carries.
    pub confidence: Confidence,
    /// Whether it confirms what fired the rule; `None` when that cannot be determined.
    pub confirms: Option<bool>,
    /// Whom the incident was blamed on when its ranks were compared: what it was held against; absent where nobody was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspect: Option<Suspect>,
}

impl VerdictNote {
    /// The rank that the incident was blamed on when its ranks were compared, where `finding` blames another
    /// by now, or the same for the opposite: the verdict says nothing of that.
    pub fn of_another(&self, finding: &Finding) -> Option<&Labels> {
        let suspect = self.suspect.as_ref()?;
        (*suspect != finding.suspect()).then_some(&suspect.rank)
    }

    /// The same verdict under that blame: it confirms nobody whom it was not held against.
    fn under(mut self, finding: &Finding) -> Self {
        if self.of_another(finding).is_some() {
            self.confirms = None;
        }
        self
    }
}

impl VerdictNote {
    /// The verdict of a comparison that was held against `suspect`. Where ranks have two numbers (DP
    /// attention), its sentence calls them by those by which the incident blames one: one name for one rank.
    pub fn held_against(comparison: &Comparison, suspect: Option<Suspect>) -> Self {
        let mut note = Self { suspect, ..Self::from(comparison) };
        let Some(suspect) = &note.suspect else { return note };
        let axes: Vec<Axis> = suspect.rank.0.keys().filter_map(|label| Axis::of_label(label)).collect();
        let names: BTreeMap<RankId, RankId> =
            comparison.ranks.iter().map(|line| (line.rank.named_by(&axes), line.rank)).collect();
        let are_told_apart = !axes.is_empty() && names.len() == comparison.ranks.len();
        for (short, long) in names.iter().filter(|(short, long)| are_told_apart && short != long) {
            note.sentence = note.sentence.replace(&long.to_string(), &short.to_string());
        }
        note
    }

    /// Its rank, by the labels by which the incident names it where it is the one that was suspected.
    pub fn rank_as_blamed(&self) -> Option<&Labels> {
        let suspect = self.suspect.as_ref().map(|s| &s.rank).filter(|rank| !rank.0.is_empty());
        let rank = self.rank.as_ref()?;
        let same = |suspect: &&Labels| suspect.0.iter().all(|(label, at)| rank.0.get(label) == Some(at));
        suspect.filter(same).or(Some(rank))
    }
}

impl From<&Comparison> for VerdictNote {
    fn from(comparison: &Comparison) -> Self {
        let v = &comparison.verdict;
        Self {
            kind: v.kind,
            rank: v.rank.map(RankId::labels),
            by: v.by,
            sentence: v.sentence.clone(),
            lost_ms_per_step: v.lost_ms_per_step,
            confidence: v.confidence,
            confirms: v.confirms,
            suspect: None,
        }
    }
}
