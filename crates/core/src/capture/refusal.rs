//! Why a window may not open now: one variant a reason, each with a sentence that says what would
//! help. They go into the log, the notification, the incident and `skewtrap why` as they are.

mod reason;

use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

pub use self::reason::Reason;
use crate::amount::{Bytes, Span};
use crate::capture::facts::{ServerKind, Version};
use crate::capture::size::{MAX_STALL, written};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// A rank that was stuck is not trusted for so long after it moves again.
pub(super) const WAKES: Duration = Duration::from_secs(10);

/// A window that may not open, and why.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Refusal {
    /// The agent only watches.
    #[error(
        "the agent only watches and opens no window: it runs with --watch-only, or could not write its folders, as its log said when it started"
    )]
    WatchOnly,
    /// What the agent kept before it started could not be read yet: its disk hangs.
    #[error(
        "the state disk does not answer: which windows are open, and how much of the budgets is used, is not known before it does; /healthz names the folder"
    )]
    StateDisk,
    /// Its captures are silenced.
    #[error("the rule is silenced for another {}", Span(*.left))]
    Silenced {
        /// How much longer.
        left: Duration,
    },
    /// The rule compares members of several servers, and none of its labels says on which one the
    /// blamed member is.
    #[error("the group spans servers: name `target` in `across` or `within`")]
    SpansServers,
    /// Nothing fires any more.
    #[error("it was over before the window would have opened")]
    Cleared,
    /// Its impact is on too few requests.
    #[error("{:.0} % of the requests would be served faster now if the load were even, and a window is spent from {:.0} % on (min_impact); it is looked at again while it lasts", .impact * 100.0, .least * 100.0)]
    LittleImpact {
        /// The share of requests that would be better off, were the load even.
        impact: f64,
        /// The share from which on a window is spent.
        least: f64,
    },

    // --- limits ---
    /// The rule captured a moment ago.
    #[error("rule {rule} tried a capture on this server at {last} and cools down: none before {} (limits.cooldown)", *.last + (*.ago + *.left))]
    Cooldown {
        rule: String,
        /// The last attempt.
        last: Time,
        /// How long ago that was.
        ago: Duration,
        /// Until it may again.
        left: Duration,
    },
    /// The rule used up its own limit.
    #[error("rule {rule} used its {captures} captures in {} on this server; the next is free in {} (limits.captures)", Span(*.per), Span(*.left))]
    RuleLimit {
        rule: String,
        /// Its limit.
        captures: u32,
        /// Per this long.
        per: Duration,
        /// Until the oldest attempt leaves the stretch.
        left: Duration,
    },
    /// A window is open on this server or a peer of it.
    #[error(
        "a window is open already on {target}, for incident {incident}; one at a time for a group of servers"
    )]
    WindowOpen {
        /// On which server.
        target: String,
        incident: String,
    },
    /// An agent before this one left a window open there.
    #[error(
        "an agent before this one left a window open on {target}, for incident {incident}; it is being closed first"
    )]
    LeftOpen {
        /// On which server.
        target: String,
        incident: String,
    },
    /// The same incident was captured and is no worse.
    #[error("{}", not_worse(.before.as_deref(), *.last, *.now, *.needed))]
    NotWorse {
        /// The incident that it was before the agent was started again, if it was another.
        before: Option<String>,
        /// How bad it was at the last attempt, in multiples of the bound.
        last: f64,
        /// How bad it is.
        now: f64,
        /// How bad it must be.
        needed: f64,
    },
    /// Too many windows today.
    #[error("{spent} windows were tried in the last 24 h, which is the budget; the next is free in {} (budget.windows)", Span(*.left))]
    DailyWindows {
        /// Attempts counted.
        spent: u32,
        /// Until the oldest leaves.
        left: Duration,
    },
    /// Serving was stalled long enough today.
    #[error(
        "captures stalled serving for {spent_s:.1} s in the last 24 h and the next is expected to take {expected_s:.1} s, over the budget of {budget_s:.0} s (budget.stalled)"
    )]
    DailyStall {
        /// Seconds booked.
        spent_s: f64,
        /// Seconds the next is expected to take.
        expected_s: f64,
        /// Seconds allowed.
        budget_s: f64,
    },
    /// Enough was written today.
    #[error("captures wrote {} in the last 24 h and the next is expected to take {}, over the budget of {} (budget.bytes)", Bytes(*.spent), Bytes(*.expected), Bytes(*.budget))]
    DailyBytes {
        /// Bytes booked.
        spent: u64,
        /// Bytes the next is expected to take.
        expected: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// Another agent of the pool has a window open.
    #[error(
        "the pool allows one window at a time, and the agent on {host} has one on {target}, which is over in {} at the latest",
        Span(*.left)
    )]
    PoolWindow {
        /// The agent's host.
        host: String,
        target: String,
        /// How much longer at most.
        left: Duration,
    },
    /// A window of another agent of the pool may still be open.
    #[error(
        "the agent on {host} has not said that its window on {target} is closed; no other is opened in the pool for another {}, unless that agent comes back and says so",
        Span(*.left)
    )]
    PoolUnproven {
        /// The agent's host.
        host: String,
        target: String,
        /// How much longer.
        left: Duration,
    },
    /// The budget is spent by all agents of the pool together.
    #[error("in the whole pool {0}")]
    PoolBudget(Box<Refusal>),
    /// The store does not say whether another agent of the pool has a window open.
    #[error(
        "whether another agent of the pool has a window open cannot be told: {why}; none is opened until it can (`on_lease_loss: local_budget` would open them all the same)"
    )]
    PoolLease {
        /// What the store said.
        why: String,
    },
    /// Another agent that watches the same server may have a window open there.
    #[error(
        "another skewtrap (process {process}) has, or may have, a window open on this server, which is over in {} at the latest; agents on one server take turns",
        Span(*.left)
    )]
    OtherAgent {
        process: u32,
        /// How much longer at most.
        left: Duration,
    },
    /// It is unknown what became of a start that the agent sent there.
    #[error("the last window on this server ended with an unknown state ({why}); nothing is opened there for another {}", Span(*.left))]
    Suppression {
        /// What happened.
        why: String,
        /// How much longer.
        left: Duration,
    },
    /// Stamps of the state are in the future.
    #[error(
        "the agent's state holds an attempt at {at}, which is in the future: the clock was changed; captures resume when it has passed, or after `skewtrap doctor --forget-future`"
    )]
    FutureState {
        /// The stamp.
        at: Time,
    },

    // --- pre-flight ---
    /// The server was not probed yet, or does not report what it is.
    #[error("the server has not said what it is (/server_info): {why}")]
    UnknownServer {
        /// What was requested, and the answer.
        why: String,
    },
    /// The server does not answer.
    #[error(
        "the server has not answered since {since} ({why}): see whether its process runs, and what its log says last; no window is opened before it answers again"
    )]
    NoAnswer {
        since: Time,
        /// What its health says.
        why: String,
    },
    /// A fact is too old to act on.
    #[error("{what} was last known {} ago, and facts older than {} open no window; see the log for why it stopped coming", Span(*.age), Span(*.limit))]
    Stale {
        /// Which fact.
        what: &'static str,
        age: Duration,
        /// How old it may be.
        limit: Duration,
    },
    /// The server is not healthy.
    #[error("the server is not healthy ({answer}); a profile would add to its trouble")]
    Unhealthy {
        /// What `/health` answered.
        answer: String,
    },
    /// It answers far slower than usual.
    #[error("/health took {} where {} is usual on this server; it is overloaded or exporting", Span(*.took), Span(*.median))]
    Slow {
        /// The last answer.
        took: Duration,
        /// The usual one.
        median: Duration,
    },
    /// Another client's profile is open.
    #[error("another client's profile is open since {since}, writing to {dir}; it is left alone")]
    Foreign {
        since: Time,
        /// Its folder.
        dir: String,
    },
    /// Another client profiled a moment ago, and the form needed here cannot refuse a second start.
    #[error("another client profiled this server {} ago; while a rank is idle, the engine would not reject a second start, so 60 s without another profile are required", Span(*.ago))]
    ForeignRecently {
        /// How long ago.
        ago: Duration,
    },
    /// Every rank is idle.
    #[error(
        "no rank had work in the last 2 s; a window on an idle server records nothing and does not end by itself"
    )]
    AllIdle,
    /// A rank hangs.
    #[error("{rank} has not moved for {} while its peers have; a window cannot be ended on a rank that hangs, so none is opened before it has moved again for 10 s", Span(*.still))]
    RankStuck {
        rank: Rank,
        /// For how long.
        still: Duration,
    },
    /// A rank hung until a moment ago.
    #[error("{rank} was stuck until {} ago and may stop again; a window cannot be ended on a rank that hangs, so none is opened for another {}", Span(*.ago), Span(WAKES.saturating_sub(*.ago)))]
    RankWakes {
        rank: Rank,
        /// Since when it moves.
        ago: Duration,
    },
    /// A rank with work may hang.
    #[error("{rank} has work and nothing has been seen of its progress for {}; a window cannot be ended on a rank that hangs, so it is looked at again in a second", Span(*.still))]
    NoProgress {
        rank: Rank,
        /// For how long.
        still: Duration,
    },
    /// The form of start that is needed here is safe only if the agent reads the log.
    #[error(
        "{why}, and that is safe only when the agent reads the server's log; give it with --log, or under `logs` of the target"
    )]
    NeedsLog {
        /// Why the form is needed.
        why: String,
    },
    /// Not enough room.
    #[error("{path} has {} free and a window may need {} above the floor of {}; free some space or lower keep.min_free", Bytes(*.free), Bytes(*.need), Bytes(*.floor))]
    DiskLow {
        /// The folder, server's view.
        path: String,
        /// Bytes free.
        free: u64,
        /// Bytes a window may take.
        need: u64,
        /// Bytes that must stay free.
        floor: u64,
    },
    /// The folder would kill the server at export.
    #[error(
        "{path} {why}; SGLang dies when it cannot write its trace, so create the folder, writable by the server, or change capture.output_dir"
    )]
    BadFolder {
        /// The folder, server's view.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },

    /// What may not be deleted leaves no room in the folder of the incidents.
    #[error("the incidents' folder holds {} that may not be deleted ({why}), and the next window may take {} more than keep.bytes ({}) allows; unpin or delete some by hand, or raise keep.bytes", Bytes(*.bytes), Bytes(*.need), Bytes(*.limit))]
    KeepFull {
        /// Bytes that stay.
        bytes: u64,
        /// Bytes a window may take.
        need: u64,
        /// The limit of those bytes.
        limit: u64,
        /// What keeps them.
        why: String,
    },

    // --- what each release supports ---
    /// A field that the release does not know.
    #[error("{engine} {version} does not know {field}; {first} is the first release that has it")]
    TooOld {
        engine: ServerKind,
        /// What it runs.
        version: Version,
        field: &'static str,
        /// The first sampled release with it.
        first: Version,
    },
    /// Its release matters and is unknown.
    #[error("the server does not say its version, which decides what it may be asked; see `skewtrap doctor`")]
    NoVersion,
    /// A named danger.
    #[error("{what}: {why}; write accept_risk: [{name}] to accept this risk")]
    Risk {
        /// The request.
        what: String,
        /// What can happen.
        why: &'static str,
        /// Its name in `accept_risk`.
        name: &'static str,
    },
    /// Never done.
    #[error("{what}: {why}")]
    Never {
        /// The request.
        what: String,
        /// Why not, and what to do instead.
        why: String,
    },
    /// It would silence a rank for longer than it may.
    #[error("{}", too_costly((*.asked, *.steps), (*.predicted, *.telling), .estimated.as_deref(), *.max_stall, *.slow_host))]
    TooCostly {
        /// The steps that were asked for, if a number was.
        asked: Option<u32>,
        /// Those that it would have.
        steps: u32,
        /// The silence of the slowest rank that they are predicted to cost.
        predicted: Duration,
        /// How many steps a verdict on hosts needs, and what they would cost.
        telling: (u32, Duration),
        /// By what that was estimated, where no window of the server has taught it yet.
        estimated: Option<String>,
        /// What is allowed.
        max_stall: Duration,
        /// How many times slower than usual the slowest rank's host is, where it is a slow one.
        slow_host: Option<f64>,
    },
    /// It would silence a rank for so long that the server's own timers may end it.
    #[error("{steps} steps are likely to silence a rank for {}, and three times that exceeds {timer} of {}, which would take the server down; write `num_steps: {fewer}` or less, `max_stall` in its place, or accept the danger with `accept_risk: [server_timer]`", Span(*.likely), Span(*.limit))]
    ServerTimer {
        /// Steps of the window.
        steps: u32,
        /// The silence of the slowest rank that they are as likely to exceed as not.
        likely: Duration,
        /// The smallest timer.
        limit: Duration,
        timer: &'static str,
        /// As many steps as would be allowed.
        fewer: u32,
    },
    /// Whether torch sees a GPU there is not known.
    #[error(
        "the server does not say that it runs on a GPU or a CPU (its device is `{device}`), and SGLang dies when it records an activity that torch does not have there; write `activities: [GPU]` or `activities: [CPU]` under `capture`"
    )]
    UnknownDevice {
        /// What it says.
        device: String,
    },
    /// A window before hurt the server more than it may, and nobody has acknowledged that.
    #[error("windows on this server are suspended since {at}: {why}; `skewtrap resume` lets them open again")]
    Suspended {
        /// Since when.
        at: Time,
        /// What happened.
        why: String,
    },
    /// `SGLANG_PROFILE_V2`.
    #[error(
        "the server runs with SGLANG_PROFILE_V2, whose windows cannot be stopped from outside and whose checks kill the server; start it without that variable"
    )]
    ProfileV2,
}

fn too_costly(
    (asked, steps): (Option<u32>, u32),
    (predicted, (steps_that_tell, telling)): (Duration, (u32, Duration)),
    source: Option<&str>,
    max_stall: Duration,
    slow_host: Option<f64>,
) -> String {
    let key = if slow_host.is_some() { "max_stall_slow_host" } else { "max_stall" };
    let (least, fewer) = match asked {
        Some(_) => ("", "write fewer steps or leave `num_steps` out, or allow it with "),
        None => ("even ", "allow it with "),
    };
    let estimated = source.map_or_else(String::new, |source| format!(" (estimated {source})"));
    let allow = match (predicted <= MAX_STALL, asked) {
        (true, None) if telling > predicted && telling <= MAX_STALL => format!(
            "{fewer}`{key}: {}`, or with `{key}: {}`, which allows the {steps_that_tell} steps that also show how hosts spend their time",
            written(predicted),
            written(telling)
        ),
        (true, _) => format!("{fewer}`{key}: {}`", written(predicted)),
        (false, Some(_)) => "write fewer steps".to_owned(),
        (false, None) => {
            format!("no `{key}` allows so much; `num_steps: {steps}` in its place opens it all the same")
        }
    };
    let (whose, bound) = match slow_host {
        Some(times) => {
            (format!(", whose host is {times:.1} times slower than usual now,"), "are allowed for it")
        }
        None => (String::new(), "`max_stall` allows"),
    };
    let allowed = match slow_host {
        Some(_) => format!("{} {bound}", Span(max_stall)),
        None => format!("{bound} {}", Span(max_stall)),
    };
    format!(
        "{least}{steps} steps are predicted{estimated} to silence the slowest rank{whose} for {}, and {allowed}; {allow}",
        Span(predicted),
    )
}

fn not_worse(before: Option<&str>, last: f64, now: f64, needed: f64) -> String {
    let (needed, setting) = (format!("captured again from {needed:.2} on"), "(budget.worse_by)");
    match before {
        None => format!(
            "this incident was captured at {last:.2} times its bound and is at {now:.2} now; it is {needed} {setting}"
        ),
        Some(before) => format!(
            "this was captured as incident {before}, at {last:.2} times its bound, and its end was not observed; it is at {now:.2} now and {needed} {setting}"
        ),
    }
}

impl Serialize for Refusal {
    /// The sentence.
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_why_and_when_it_ends() {
        let refusal = Refusal::RuleLimit {
            rule: "dp-load-skew".into(),
            captures: 4,
            per: Duration::from_secs(86_400),
            left: Duration::from_secs(5_400),
        };
        insta::assert_snapshot!(refusal, @"rule dp-load-skew used its 4 captures in 24 h on this server; the next is free in 90 min (limits.captures)");
        let last = Time::from_epoch_s(1_795_492_126.1);
        let (ago, left) = (Duration::from_secs(16), Duration::from_secs(584));
        let refusal = Refusal::Cooldown { rule: "dp-load-skew".into(), last, ago, left };
        insta::assert_snapshot!(refusal, @"rule dp-load-skew tried a capture on this server at 2026-11-24 03:48:46.1 UTC and cools down: none before 2026-11-24 03:58:46.1 UTC (limits.cooldown)");
        let refusal = Refusal::DiskLow {
            path: "/data/profiles".into(),
            free: 3 << 30,
            need: 800 << 20,
            floor: 4 << 30,
        };
        insta::assert_snapshot!(refusal, @"/data/profiles has 3 GiB free and a window may need 800 MiB above the floor of 4 GiB; free some space or lower keep.min_free");
    }
}
