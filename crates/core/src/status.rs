//! What the agent shows of itself: the API, the status page, `skewtrap why` and the gauges are made
//! of this and nothing else. Plain data; the agent fills it about once a second.

mod course;
mod not_watched;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::course::{ChartHistory, POINTS};
pub use self::not_watched::{Reach, not_watched};
use crate::capture::captured::CaptureKind;
use crate::capture::window::WindowPhase;
use crate::incident::Incident;
use crate::rule::{RuleState, Severity};
use crate::signal::source::SourceState;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Everything. Times are epoch seconds in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: Arc<str>,
    /// When the agent started.
    pub started: Time,
    /// When this was true.
    pub at: Time,
    /// Whether it opens no window, whatever fires.
    pub watch_only: bool,
    /// How many servers are configured.
    #[serde(default)]
    pub servers: usize,
    /// The last server of this part, where there are more behind it: what `after` takes to go on.
    #[serde(default)]
    pub next: Option<Arc<str>>,
    /// One for each configured server of this part.
    pub targets: Vec<TargetStatus>,
    pub rules: Vec<RuleStatus>,
    /// The newest first, as many as the agent keeps in memory.
    pub incidents: Vec<Incident>,
    /// Windows that are under way.
    pub windows: Vec<WindowStatus>,
    /// What may still be captured.
    pub budget: BudgetStatus,
    pub receivers: Vec<ReceiverStatus>,
    /// Silences that still hold.
    pub silences: Vec<Silence>,
    /// Why the configuration on disk is not in force, where reading it again failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_problem: Option<ReloadProblem>,
    /// The last minutes of the signals that the page draws; left out of `/api/v1/status`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// A configuration on disk that could not be put in force: the one before it still is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadProblem {
    /// When it was read.
    pub at: Time,
    /// What is wrong with it.
    pub why: String,
}

/// Which servers somebody asks about, in the order of the configuration. What fires is part of every answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    /// Only this one.
    pub target: Option<Arc<str>>,
    /// Those behind this one.
    pub after: Option<Arc<str>>,
    /// So many at most.
    pub limit: usize,
    /// Whether the numbers of their ranks are wanted.
    pub ranks: bool,
}

impl Scope {
    /// Every server with all of its numbers.
    pub const ALL: Self = Self { target: None, after: None, limit: usize::MAX, ranks: true };

    /// The places of its servers among all.
    pub fn places<'a>(&self, mut names: impl ExactSizeIterator<Item = &'a Arc<str>>) -> Range<usize> {
        let count = names.len();
        match (&self.target, &self.after) {
            (Some(only), _) => names.position(|name| name == only).map_or(0..0, |at| at..at + 1),
            (None, Some(before)) => {
                let from = names.position(|name| name == before).map_or(count, |at| at + 1);
                from..from.saturating_add(self.limit).min(count)
            }
            (None, None) => 0..self.limit.min(count),
        }
    }
}

impl Status {
    /// The part of a whole status that is asked for.
    pub fn part(&self, scope: &Scope) -> Self {
        let places = scope.places(self.targets.iter().map(|t| &t.name));
        let next = next_of(scope, &places, self.targets.len(), |place| &self.targets[place].name);
        let mut targets = self.targets[places].to_vec();
        if !scope.ranks {
            targets.iter_mut().for_each(|target| target.ranks.clear());
        }
        let mut rules = self.rules.clone();
        for rule in &mut rules {
            rule.groups.retain(|group| {
                let is_of_none = self.targets.iter().all(|t| t.name != group.target);
                is_of_none
                    || group.state == RuleState::Firing
                    || targets.iter().any(|t| t.name == group.target)
            });
        }
        Self { targets, rules, servers: self.targets.len(), next, ..self.clone() }
    }
}

/// The last server of a part that others follow.
pub(crate) fn next_of<'a>(
    scope: &Scope,
    places: &Range<usize>,
    count: usize,
    name: impl Fn(usize) -> &'a Arc<str>,
) -> Option<Arc<str>> {
    let has_more = scope.target.is_none() && places.start < places.end && places.end < count;
    has_more.then(|| name(places.end - 1).clone())
}

/// One server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// Its configured name.
    pub name: Arc<str>,
    /// Its address, without credentials.
    pub url: String,
    /// `sglang`, `vllm`, or `unknown` before it answered.
    pub engine: Arc<str>,
    /// As the server reports it.
    pub engine_version: Option<String>,
    /// Since when it has not answered: its numbers are of before; absent while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered_since: Option<Time>,
    /// Where its numbers come from.
    pub sources: Vec<SourceStatus>,
    /// Its ranks, in their order; before them an entry without labels for what is told of the whole server, where
    /// something is.
    pub ranks: Vec<RankStatus>,
    /// Why its ranks cannot be compared, and what can be watched there; absent where each has its own numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_watched: Option<String>,
}

impl TargetStatus {
    /// Whether the agent is behind with what one of its sources says.
    pub fn is_behind(&self) -> bool {
        self.sources.iter().any(|source| source.is_behind)
    }

    /// That its numbers are of before, and whose fault that is: the server's, which does not answer, or the
    /// agent's, which is behind. Nothing where neither holds.
    pub fn why_old(&self) -> Option<String> {
        match self.unanswered_since {
            Some(since) => Some(format!("has NOT answered since {since}")),
            None => self.is_behind().then(|| "answers, but the agent is BEHIND with what it says".to_owned()),
        }
    }

    /// How many ranks it shows.
    pub fn rank_count(&self) -> usize {
        let named = self.ranks.iter().filter(|rank| !rank.rank.0.is_empty()).count();
        named.max(self.ranks.len().min(1))
    }
}

/// One source of one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `loads`, `metrics`, `log`, `prometheus`.
    pub kind: Arc<str>,
    /// A path or an address, without credentials.
    pub place: String,
    pub state: SourceState,
    /// What is wrong, and what would mend it.
    pub problem: Option<String>,
    /// Whether it answers and the agent is behind with what it says: that is no failing of the server's.
    #[serde(default, rename = "behind", skip_serializing_if = "std::ops::Not::not")]
    pub is_behind: bool,
    /// What is odd with it, though it gives samples: stamps of a log that cannot be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// When it last gave a sample.
    pub last: Option<Time>,
    /// Seconds from when its last sample was true to its arrival.
    pub lag_s: Option<f64>,
    /// Samples so far.
    pub samples: u64,
    /// Lines, pages or samples dropped so far.
    pub dropped: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// `{"dp_rank": 2}`, and the role where there is one.
    pub rank: Labels,
    /// By the signal's name.
    pub signals: BTreeMap<Arc<str>, SignalStatus>,
}

/// The last value of one signal of one rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SignalStatus {
    /// In the catalog's unit.
    pub value: f64,
    /// When it was true.
    pub at: Time,
    /// Whether the rank went silent.
    pub stale: bool,
    /// The kind of source it came from.
    pub source: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleStatus {
    pub name: Arc<str>,
    /// Its own sentence.
    pub about: Option<String>,
    /// How bad its firing is.
    pub severity: Severity,
    /// What it captures: `none`, or the means and its bounds in words.
    pub capture: String,
    /// Its groups, in their order; none before the first sample.
    pub groups: Vec<GroupStatus>,
    pub last_evaluated: Option<Time>,
    /// Until when its captures and messages are silenced.
    pub silenced_until: Option<Time>,
}

/// One group of a rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub target: Arc<str>,
    pub group: Labels,
    pub state: RuleState,
    /// Why it is there, and what it would take to fire.
    pub why: String,
    /// Since when it has been there.
    pub since: Option<Time>,
    /// `max_over_mean of load`.
    pub statistic: String,
    /// The statistic's value.
    pub value: Option<f64>,
    /// What it must pass to fire.
    pub bound: Option<f64>,
    /// Whom it blames, while firing.
    pub rank: Option<Labels>,
    /// The open incident.
    pub incident: Option<Arc<str>>,
    /// Why its window was refused, where it was.
    #[serde(default)]
    pub refused: Option<String>,
    /// When it would be captured again, where it was; or why it was not, though it got worse.
    #[serde(default)]
    pub again: Option<String>,
}

/// One window that is under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowStatus {
    /// The incident it belongs to.
    pub incident: Arc<str>,
    pub target: Arc<str>,
    /// By what it captures.
    pub means: CaptureKind,
    /// How far it is.
    pub state: WindowPhase,
    /// Since when it has been in that state.
    pub since: Time,
    /// When it is stopped at the latest.
    pub deadline: Option<Time>,
}

/// What may still be captured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// The limits, the global ones first.
    pub limits: Vec<LimitStatus>,
    /// Bytes that the bundles take.
    pub bundle_bytes: u64,
    /// Bytes that they may take.
    pub bundle_bytes_limit: Option<u64>,
    /// Bytes free on their disk.
    pub free_bytes: Option<u64>,
    /// Seconds of serving that windows cost in the last 24 hours ...
    #[serde(default)]
    pub stalled_s: f64,
    /// ... and may cost.
    #[serde(default)]
    pub stalled_s_limit: f64,
    /// Bytes that windows wrote in the last 24 hours ...
    #[serde(default)]
    pub written_bytes: u64,
    /// ... and may write.
    #[serde(default)]
    pub written_bytes_limit: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitStatus {
    /// `all rules`, a rule's name, or with several servers `dp-load-skew on server`; rules of which
    /// nothing is used are left out.
    pub of: Arc<str>,
    /// Windows opened in the current stretch.
    pub used: u32,
    /// Windows that a stretch may have.
    pub captures: u32,
    /// Its length in seconds.
    pub per_s: f64,
    /// No window before then; `None` where it does not rest, and for all rules together.
    pub cooldown_until: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiverStatus {
    pub name: Arc<str>,
    /// `webhook`, `slack`, `alertmanager`, `command`, `stdout`.
    pub means: Arc<str>,
    /// Messages that wait for it.
    pub pending: u64,
    /// When it last took one.
    pub last_sent: Option<Time>,
    /// Why it does not take them.
    pub problem: Option<String>,
}

/// No captures and no messages of what it names, until then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    /// Only this rule; every rule when absent.
    pub rule: Option<Arc<str>>,
    /// Only this server; every server when absent.
    pub target: Option<Arc<str>>,
    /// When it ends.
    pub until: Time,
    /// Why, in the words of whoever set it.
    pub why: Option<String>,
}

impl Silence {
    /// Whether it is one of the rule on the server.
    pub fn covers(&self, rule: &str, target: &str) -> bool {
        self.rule.as_ref().is_none_or(|r| **r == *rule) && self.target.as_ref().is_none_or(|t| **t == *target)
    }
}

/// The last minutes of one signal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    pub signal: Arc<str>,
    /// When the last value was true.
    pub end: Time,
    /// Seconds between two values.
    pub step_s: f64,
    /// A line per rank.
    pub lines: Vec<HistoryLine>,
}

/// One rank's last minutes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryLine {
    pub target: Arc<str>,
    /// `{"dp_rank": 2}`.
    pub rank: Labels,
    /// The oldest first; `null` where nothing was measured.
    pub values: Vec<Option<f64>>,
}

/// Steps for which a value is held when none follows: polls are jittered.
const HELD_STEPS: u32 = 3;

/// `count` values, one each `step` up to `end`, of points in the order of their time: the last one
/// at or before each step, `None` where that is more than three steps old.
pub fn resampled(
    points: impl IntoIterator<Item = (Time, f64)>,
    end: Time,
    step: Duration,
    count: usize,
) -> Vec<Option<f64>> {
    let mut points = points.into_iter().peekable();
    let mut last: Option<(Time, f64)> = None;
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    (0..count)
        .rev()
        .map(|back| {
            let at = end - step.saturating_mul(back);
            while let Some(point) = points.next_if(|p| p.0 <= at) {
                last = Some(point);
            }
            last.filter(|p| at.since(p.0) <= step * HELD_STEPS).map(|p| p.1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_asked_about_part_by_part_and_every_one_is_in_one_part() {
        let names: Vec<Arc<str>> = (0..7).map(|i| format!("s{i}").into()).collect();
        let target = |name: &Arc<str>| TargetStatus { name: name.clone(), ..TargetStatus::default() };
        let status = Status { targets: names.iter().map(target).collect(), ..Status::default() };
        let (mut seen, mut scope) = (Vec::new(), Scope { limit: 3, ..Scope::ALL });
        loop {
            let part = status.part(&scope);
            assert!(part.targets.len() <= 3 && part.servers == 7);
            seen.extend(part.targets.into_iter().map(|t| t.name));
            let Some(next) = part.next else { break };
            scope.after = Some(next);
        }
        assert_eq!(seen, names);
        let only = Scope { target: Some("s4".into()), ..Scope::ALL };
        assert_eq!(status.part(&only).targets, [target(&names[4])]);
        let unknown = Scope { after: Some("gone".into()), ..Scope::ALL };
        assert_eq!((status.part(&unknown).targets.len(), status.part(&unknown).next), (0, None));
    }

    #[test]
    fn a_history_holds_values_over_jitter_and_shows_a_gap_as_a_gap() {
        let at = |s: f64| Time::from_epoch_s(s);
        let points = [(at(0.4), 1.0), (at(1.6), 2.0), (at(2.1), 3.0), (at(8.0), 4.0)];
        let line = resampled(points, at(9.0), Duration::from_secs(1), 10);
        let expected =
            [None, Some(1.0), Some(2.0), Some(3.0), Some(3.0), Some(3.0), None, None, Some(4.0), Some(4.0)];
        assert_eq!(line, expected);
    }

    #[test]
    fn a_status_survives_json_and_leaves_an_empty_history_out() {
        let status = Status { version: "0.2.0".into(), at: Time::from_epoch_s(5.0), ..Status::default() };
        let text = serde_json::to_string(&status).expect("it serialises");
        assert!(!text.contains("history"), "{text}");
        assert_eq!(serde_json::from_str::<Status>(&text).expect("it parses"), status);
    }
}
