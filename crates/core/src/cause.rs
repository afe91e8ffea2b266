//! Why a rank left its peers, from the numbers that the store remembers: no capture is needed.
//!
//! `course` collects the members' samples, `terms` says how much each factor of the load changed
//! (`speed` holds the cost model behind speed at equal work), `tree` walks the candidates in their
//! order, and `words` says it. docs/causes.md has the formula and its sources, docs/evaluation.md how well it does.

mod case;
mod course;
mod machine;
mod speed;
mod terms;
mod tree;
mod words;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::course::Course;
use self::terms::{Spans, Terms};
use crate::finding::Finding;
use crate::signal::store::SignalStore;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// How far back healthy time is looked at.
const BACK: Duration = Duration::from_secs(75);
/// Less than so much healthy time says nothing: then time in which another trouble was going on is taken along.
const LEAST_BACK: Duration = Duration::from_secs(20);
/// Healthy time ends this long before the onset, at least: an onset is an estimate.
const MARGIN: Duration = Duration::from_secs(1);

/// When the cause of an incident is looked for, after its firing: the last answer stays.
pub const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(3), Duration::from_secs(8)];

/// Why it happened, as far as the numbers tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    pub kind: CauseKind,
    /// One sentence: `the router sends DP2 more`.
    pub statement: String,
    /// How sure that is.
    pub certainty: Certainty,
    /// The numbers that speak for it, with the time of the departure.
    pub support: Vec<String>,
    /// Which share of the gap it explains, 0 to 1, where that can be computed.
    pub explains: Option<f64>,
    /// What was looked at and is not it, with the number.
    pub ruled_out: Vec<String>,
    /// What cannot be said, and what would show it.
    pub unknown: Vec<String>,
    /// How many times as long as usual the slowest rank needs for the same work, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_slowdown: Option<f64>,
    /// How many times slower than usual the slowest rank's host is, where the machine tells: its process waits for a
    /// CPU, or its cgroup is throttled; 1 where every rank's process is seen and none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_slowdown: Option<f64>,
    pub at: Time,
}

impl Cause {
    /// This cause in the light of the look `before` it. What follows from a trouble (a queue that grows, a rank
    /// that slows down under its load) dilutes what began it: the same cause stays as sure as it was, and a look that
    /// sees nothing, or what is merely consistent, takes back nothing that was likely; unless it sees that the rank
    /// got slow or stopped, for that is most of the gap then, and what windows cost depends on it.
    pub fn after(self, before: Option<Self>) -> Self {
        let is_weaker = self.certainty != Certainty::Likely && !self.kind.is_of_progress();
        match before {
            Some(before)
                if is_weaker
                    && before.certainty == Certainty::Likely
                    && before.statement != self.statement =>
            {
                Self {
                    step_slowdown: self.step_slowdown,
                    host_slowdown: self.host_slowdown,
                    at: self.at,
                    ..before
                }
            }
            Some(before) if before.statement == self.statement && before.certainty < self.certainty => Self {
                certainty: before.certainty,
                support: before.support,
                explains: before.explains,
                ..self
            },
            _ => self,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// The router sends it a larger share of the requests.
    MoreRequests,
    /// The router sends it a smaller share, or nothing.
    FewerRequests,
    /// Its requests have longer prompts.
    LongerPrompts,
    /// Its prompts are found less often in its cache.
    CacheMisses,
    /// It is slower at equal work; whether by its GPU or its host is not known.
    Slower,
    /// It is slower at equal work, and its GPU is busy for longer.
    SlowGpu,
    /// It is slower at equal work, and its GPU waits for its host.
    SlowHost,
    /// It has work and does nothing.
    Stuck,
    /// It has no room in its KV cache.
    Memory,
    /// Its KV caches are on their way to or from another server.
    Transfer,
    /// A rank left, this one or a peer.
    PeerLeft,
    /// Somebody profiled the server.
    Capture,
    /// None of these shows.
    #[serde(other)]
    Unknown,
}

impl CauseKind {
    /// Whether it says that a rank gets less done than it should: it is slow, stands still or is gone.
    const fn is_of_progress(self) -> bool {
        matches!(self, Self::Slower | Self::SlowGpu | Self::SlowHost | Self::Stuck | Self::PeerLeft)
    }

    /// As in JSON: `more_requests`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::MoreRequests => "more_requests",
            Self::FewerRequests => "fewer_requests",
            Self::LongerPrompts => "longer_prompts",
            Self::CacheMisses => "cache_misses",
            Self::Slower => "slower",
            Self::SlowGpu => "slow_gpu",
            Self::SlowHost => "slow_host",
            Self::Stuck => "stuck",
            Self::Memory => "memory",
            Self::Transfer => "transfer",
            Self::PeerLeft => "peer_left",
            Self::Capture => "capture",
            Self::Unknown => "unknown",
        }
    }

    /// Where to look first, one sentence without its full stop; `None` where nothing shows.
    pub const fn next_step(self) -> Option<&'static str> {
        Some(match self {
            Self::MoreRequests => {
                "look at the router: its policy, and whether one key (a session, a prefix, a user) draws them"
            }
            Self::FewerRequests => {
                "look at the router: whether it takes this rank for unhealthy, or a key moved its requests to a peer"
            }
            Self::LongerPrompts => {
                "find who sends the long prompts, in the router's or the server's request log of that time; \
                 a router that balances by tokens spreads them"
            }
            Self::CacheMisses => {
                "find why its prefixes are gone: a restart, an eviction (its KV usage), or sessions that are sent \
                 elsewhere than before"
            }
            Self::Slower => {
                "look at its GPU (`nvidia-smi -q -d PERFORMANCE,CLOCK`) and at what else runs on its host's cores; \
                 a window tells the two apart"
            }
            Self::SlowGpu => {
                "look at its GPU: clocks and throttling (`nvidia-smi -q -d PERFORMANCE,CLOCK`), and other processes on it"
            }
            Self::SlowHost => {
                "look at its host: what else runs on the cores of its scheduler (`top -H`), its CPU affinity, and the \
                 limits of its cgroup"
            }
            Self::Stuck => {
                "see the stacks of its scheduler before the engine's watchdog ends it: `py-spy dump --pid PID`"
            }
            Self::Memory => {
                "give its KV cache more room, or this rank fewer or shorter requests at once; retractions and preemptions \
                 in its log say how often it ran out"
            }
            Self::Transfer => {
                "look at the link between the prefill and the decode servers: their transfer queues, and errors in the \
                 log of the other side"
            }
            Self::PeerLeft => {
                "look at the log of the rank that left, and whether the router knows that it is gone"
            }
            Self::Capture => "find who profiled it: the server's log says where the traces go",
            Self::Unknown => return None,
        })
    }
}

/// How sure a cause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// It departed on the blamed rank alone, not later than the onset, and explains four fifths of the gap.
    Likely,
    /// It is there, but one of these does not hold or cannot be seen.
    Consistent,
    /// Nothing that is exposed shows it.
    #[serde(other)]
    Unknown,
}

impl Certainty {
    /// As in JSON and messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Likely => "likely",
            Self::Consistent => "consistent",
            Self::Unknown => "unknown",
        }
    }
}

/// What else is known of the server at an incident.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past {
    /// When somebody profiled it last, as far as its log says.
    pub captured_at: Option<Time>,
    /// When the trouble before this one was over: the time before that shows nothing that is usual.
    pub healthy_since: Option<Time>,
}

/// Why `finding` happened to the group with these labels. `None` where no rank is blamed.
pub fn explain(
    store: &SignalStore,
    group: &Labels,
    finding: &Finding,
    past: Past,
    now: Time,
) -> Option<Cause> {
    if finding.rank.0.is_empty() || finding.measured.is_none() {
        return None;
    }
    let since = past
        .healthy_since
        .map_or(finding.onset - BACK, |since| since.clamp(finding.onset - BACK, finding.onset - LEAST_BACK));
    let slack = MARGIN.max(Duration::from_secs_f64(finding.onset_error_s.clamp(0.0, 10.0)));
    let spans = Spans {
        before: (since, finding.onset - slack),
        after: (finding.onset.min(now - Duration::from_millis(1)), now),
    };
    let course = Course::of(store, group, &finding.rank, spans.before.0, now);
    let Some(blamed) = course.members.iter().position(|m| m.labels == finding.rank) else {
        return Some(words::nothing_known(now));
    };
    if course.members.len() < 2 {
        return Some(words::nothing_known(now));
    }
    let terms = Terms::new(&course, spans, blamed);
    Some(tree::walk(&case::Case {
        course: &course,
        terms: &terms,
        spans,
        blamed,
        finding,
        capture_at: past.captured_at,
        now,
    }))
}

#[cfg(test)]
mod tests;
