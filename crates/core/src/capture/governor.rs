//! Whether a window may open, by what was agreed: limits per rule, one window at a time, a budget
//! per day. One decision per request, `now` as an argument, nothing remembered here.
//!
//! The ledger is what the state on disk holds: an attempt is written before the request is sent,
//! so a failed one counts, and neither a restart nor an edit of a rule refills anything (keys are
//! the rule's name and the target). Stamps that lie in the future (a clock that was set back)
//! count as spent just now: a jump never refills either.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::amount::Span;
use crate::capture::Limits;
use crate::capture::refusal::Refusal;
use crate::capture::size::{DEFAULT_MAX_STALL, PastWindow, WindowCosts};
use crate::factor::FALSE_ALARMS_PER_DAY;
use skewtrap_trace::time::Time;

const DAY: Duration = Duration::from_secs(86_400);

/// After a window whose end is unknown, the server is left alone for this long.
pub const QUIET: Duration = Duration::from_secs(600);

/// What the agent may cost a day, over all rules and servers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Stalled serving.
    pub stalled: Duration,
    /// Written by windows.
    pub bytes: u64,
    /// Windows tried.
    pub windows: u32,
    /// Within one incident a window is taken again only when it is this many times worse.
    pub worse_by: f64,
    /// False alarms a day that are accepted on each server, all factors together.
    pub false_alarms: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            stalled: Duration::from_secs(120),
            bytes: 20 << 30,
            windows: 4,
            worse_by: 1.5,
            false_alarms: FALSE_ALARMS_PER_DAY,
        }
    }
}

/// One attempt, as the state keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Unique.
    pub id: String,
    /// The rule that requested it (`by hand` where a person or an alert did).
    pub rule: String,
    pub target: String,
    /// The group of servers of which one may have a window at a time.
    pub group: String,
    pub incident: String,
    /// What fired, as in [`CaptureRequest::firing`].
    #[serde(default)]
    pub firing: String,
    /// When it was allowed, just before the request.
    pub at: Time,
    /// How bad the incident was, in multiples of the rule's bound: the mark that a further window of
    /// the incident is held against. The state of earlier releases has it as `badness`.
    #[serde(rename = "badness")]
    pub times_bound: f64,
    /// When what fired was observed to have ended; `None` while it lasts, or when its end was not observed.
    #[serde(default)]
    pub over_at: Option<Time>,
    /// Its end; `None` while its window is, or may be, open.
    pub end: Option<AttemptEnd>,
}

impl Attempt {
    /// What marks its folder and files: its incident and, from the second on, its number, so that no
    /// window of an incident takes another's files for its own, or has them written over.
    pub fn mark(&self) -> String {
        match self.id.rsplit_once('/') {
            Some((incident, number)) if number != "1" => format!("{incident}-w{number}"),
            _ => self.incident.clone(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttemptEnd {
    pub at: Time,
    /// Stalled serving, as measured.
    pub stalled: Duration,
    /// Written.
    pub bytes: u64,
    /// Why its window may still be open; `None` when it is proven closed.
    pub unproven: Option<String>,
    /// What it recorded and cost, for the size of the next one; `None` where that was not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<PastWindow>,
    /// How its window hurt the server; `None` when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harm: Option<Harm>,
}

/// A window that hurt its server: the next one waits for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Harm {
    /// What happened.
    pub why: String,
    /// Whether somebody has said that windows may open again.
    #[serde(default)]
    pub is_acknowledged: bool,
}

impl Harm {
    /// How many times its prediction a window may cost before its server is left alone.
    const MARGIN: u32 = 3;

    /// What a window did, of which this was predicted and seen.
    pub fn of(has_died: bool, predicted: Option<Duration>, seen: Duration) -> Option<Self> {
        let harm = |why| Some(Self { why, is_acknowledged: false });
        // Below the default a silence is not told from the server's own pauses.
        let limit = predicted.map(|predicted| predicted.max(DEFAULT_MAX_STALL) * Self::MARGIN);
        match (has_died, predicted.zip(limit)) {
            (true, _) => harm("the server went away in a window".into()),
            (false, Some((predicted, limit))) if seen > limit => harm(format!(
                "a window silenced a rank for {}, of which {} were predicted",
                Span(seen),
                Span(predicted)
            )),
            _ => None,
        }
    }
}

/// All attempts of the last days, in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// Ended ones and open ones.
    pub attempts: Vec<Attempt>,
    /// Ids of open ones that an agent before this one left behind.
    pub left_behind: BTreeSet<String>,
}

/// That the wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockJump {
    /// What it said just before.
    pub before: Time,
    /// By how much, in nanoseconds; negative where it was set back.
    pub by_ns: i64,
    /// When this process began, by the clock before.
    pub started: Time,
}

impl ClockJump {
    /// Whether what bears that stamp is moved: set back, only what this process began, for an earlier one may have had
    /// the right time.
    pub fn moves(&self, at: Time) -> bool {
        at <= self.before && (self.by_ns > 0 || at >= self.started)
    }

    /// The stamp by the clock as it is now.
    pub const fn moved(&self, at: Time) -> Time {
        at.shifted(self.by_ns)
    }
}

impl From<Vec<Attempt>> for Ledger {
    fn from(attempts: Vec<Attempt>) -> Self {
        Self { attempts, left_behind: BTreeSet::new() }
    }
}

/// A request for a window.
#[derive(Clone, Copy, Debug)]
pub struct CaptureRequest<'a> {
    pub rule: &'a str,
    pub limits: &'a Limits,
    pub target: &'a str,
    pub group: &'a str,
    pub incident: &'a str,
    /// What fires: the group, whom it blames, on which side. Empty when nothing does.
    pub firing: &'a str,
    /// Whether it may have begun to fire before this agent started: an earlier agent may have captured it.
    pub may_predate_start: bool,
    /// How bad it is, in multiples of the bound (at least 1 for what fires).
    pub times_bound: f64,
}

/// What a rule has used of its limits on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitUsage {
    /// Windows in its current stretch.
    pub windows: u32,
    /// No window before then; `None` where it does not cool down.
    pub cooldown_until: Option<Time>,
}

/// What windows cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Stalled serving.
    pub stalled: Duration,
    pub bytes: u64,
}

impl Ledger {
    /// The windows that may be open.
    pub fn open(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|a| a.end.is_none())
    }

    /// The server is another instance: what may have been open in the one before is gone.
    pub fn release(&mut self, target: &str) {
        let ends = self.attempts.iter_mut().filter(|a| a.target == target).filter_map(|a| a.end.as_mut());
        ends.for_each(|end| end.unproven = None);
    }

    /// The attempts at what fires: those of its incident and, where it may carry on over a restart
    /// of the agent, those whose end nobody has seen, so that neither a crash nor a rule read anew
    /// makes a captured imbalance a new one. After a day it is one all the same.
    fn marks<'s>(&'s self, request: &'s CaptureRequest<'_>, now: Time) -> impl Iterator<Item = &'s Attempt> {
        let carries_on = move |a: &Attempt| {
            request.may_predate_start
                && !request.firing.is_empty()
                && (&*a.rule, &*a.target, &*a.firing) == (request.rule, request.target, request.firing)
                && a.over_at.is_none()
                && now.since(a.at) < DAY
        };
        self.attempts.iter().filter(move |a| a.incident == request.incident || carries_on(a))
    }

    /// The mark that a further window is held against.
    pub fn worst<'s>(&'s self, request: &'s CaptureRequest<'_>, now: Time) -> Option<&'s Attempt> {
        self.marks(request, now).max_by(|a, b| a.times_bound.total_cmp(&b.times_bound))
    }

    /// When a rule's attempts on a server were, in their order.
    fn stamps(&self, rule: &str, target: &str) -> Vec<Time> {
        let own = self.attempts.iter().filter(|a| a.rule == rule && a.target == target);
        let mut stamps: Vec<Time> = own.map(|a| a.at).collect();
        stamps.sort_unstable();
        stamps
    }

    /// What a rule has used of its limits on a server; `None` where nothing of it counts any more.
    pub fn spent(&self, rule: &str, target: &str, limits: &Limits, now: Time) -> Option<LimitUsage> {
        let stamps = self.stamps(rule, target);
        let within = stamps.iter().filter(|at| now.since(**at) < limits.per).count();
        let rests = stamps.last().map(|last| *last + limits.cooldown).filter(|until| *until > now);
        (within > 0 || rests.is_some())
            .then(|| LimitUsage { windows: u32::try_from(within).unwrap_or(u32::MAX), cooldown_until: rests })
    }

    /// Records that what fired ended at `now`; returns whether there was an attempt at it.
    pub fn over(&mut self, rule: &str, target: &str, firing: &str, now: Time) -> bool {
        let lasts = |a: &&mut Attempt| {
            (&*a.rule, &*a.target, &*a.firing) == (rule, target, firing) && a.over_at.is_none()
        };
        self.attempts.iter_mut().filter(lasts).map(|a| a.over_at = Some(now)).count() > 0
    }

    /// The wall clock was set at `jump.before`: what it stamped is moved with it, so that no limit is refilled
    /// or drawn out.
    pub fn clock_was_set(&mut self, jump: ClockJump) {
        for attempt in self.attempts.iter_mut().filter(|a| jump.moves(a.at)) {
            attempt.at = jump.moved(attempt.at);
            attempt.over_at = attempt.over_at.map(|at| jump.moved(at));
            if let Some(end) = &mut attempt.end {
                end.at = jump.moved(end.at);
            }
        }
    }

    /// Somebody says that windows may open again on `target`, or on every server. Gives those on which none
    /// might.
    pub fn resume(&mut self, target: Option<&str>) -> BTreeSet<String> {
        let mut resumed = BTreeSet::new();
        for attempt in self.attempts.iter_mut().filter(|a| target.is_none_or(|t| a.target == t)) {
            let harm = attempt.end.as_mut().and_then(|end| end.harm.as_mut());
            if let Some(harm) = harm.filter(|harm| !harm.is_acknowledged) {
                harm.is_acknowledged = true;
                resumed.insert(attempt.target.clone());
            }
        }
        resumed
    }

    /// What the windows on `target`, while it was the server of that fingerprint, taught. Bytes a step are
    /// a model's and stay; how fast a rank writes changes with its host's load, so after a day nothing is
    /// known of that: otherwise a bad hour would refuse every window for good. Windows of other targets teach
    /// the bytes too, where release and model are the same.
    pub fn costs(&self, target: &str, server: u64, now: Time) -> WindowCosts {
        let ends = self.attempts.iter().filter_map(|a| Some((a.target == target, a.end.as_ref()?)));
        let mut past: Vec<(Time, bool, PastWindow)> = ends
            .filter_map(|(is_own, end)| {
                Some((end.at, is_own, end.cost.filter(|cost| cost.server == server)?))
            })
            .collect();
        past.sort_by_key(|(at, is_own, _)| (*at, *is_own));
        WindowCosts::of(past.into_iter().map(|(at, is_own, cost)| {
            let tells_rate = is_own && now.since(at) < DAY;
            if tells_rate { cost } else { PastWindow { stall: Duration::ZERO, ..cost } }
        }))
    }

    /// What the next window on `target` is expected to cost: the most that one of its last five
    /// did; 64 MiB a rank and no stall when there was none.
    pub fn estimate(&self, target: &str, ranks: usize) -> Estimate {
        let mut ends: Vec<&AttemptEnd> =
            self.attempts.iter().filter(|a| a.target == target).filter_map(|a| a.end.as_ref()).collect();
        ends.sort_by_key(|end| end.at);
        let last = ends.iter().rev().filter(|end| end.bytes > 0).take(5);
        last.fold(None, |most: Option<Estimate>, end| {
            let most = most.unwrap_or_default();
            Some(Estimate { stalled: most.stalled.max(end.stalled), bytes: most.bytes.max(end.bytes) })
        })
        .unwrap_or(Estimate { stalled: Duration::ZERO, bytes: (ranks.max(1) as u64) << 26 })
    }

    /// What the windows of the last day cost.
    pub fn spent_today(&self, now: Time) -> Estimate {
        let ends = self.attempts.iter().filter(|a| now.since(a.at) < DAY).filter_map(|a| a.end.as_ref());
        ends.fold(Estimate { stalled: Duration::ZERO, bytes: 0 }, |sum, end| Estimate {
            stalled: sum.stalled.saturating_add(end.stalled),
            bytes: sum.bytes.saturating_add(end.bytes),
        })
    }
}

/// Whether a request may open a window now.
pub fn decide(
    request: &CaptureRequest<'_>,
    ledger: &Ledger,
    budget: &Budget,
    expected: Estimate,
    now: Time,
) -> Result<(), Refusal> {
    check_preconditions(request, ledger, now)?;
    rule_limits(request, ledger, now)?;
    worse(request, ledger, budget, now)?;
    daily(ledger, budget, expected, now)
}

/// Whether the second window of an incident, which its first one asked for, may open now: the same, but it
/// need not wait for the cooldown nor for something worse. It counts in every limit.
pub fn decide_follow_up(
    request: &CaptureRequest<'_>,
    ledger: &Ledger,
    budget: &Budget,
    expected: Estimate,
    now: Time,
) -> Result<(), Refusal> {
    check_preconditions(request, ledger, now)?;
    captures(request, ledger, now)?;
    daily(ledger, budget, expected, now)
}

/// What holds for every window, whoever asks for it.
fn check_preconditions(request: &CaptureRequest<'_>, ledger: &Ledger, now: Time) -> Result<(), Refusal> {
    one_at_a_time(request, ledger)?;
    unharmed(request, ledger)?;
    no_future(ledger, now)?;
    quiet(request, ledger, now)
}

fn one_at_a_time(request: &CaptureRequest<'_>, ledger: &Ledger) -> Result<(), Refusal> {
    match ledger.open().find(|a| a.group == request.group || a.target == request.target) {
        Some(open) if ledger.left_behind.contains(&open.id) => {
            Err(Refusal::LeftOpen { target: open.target.clone(), incident: open.incident.clone() })
        }
        Some(open) => {
            Err(Refusal::WindowOpen { target: open.target.clone(), incident: open.incident.clone() })
        }
        None => Ok(()),
    }
}

/// A window that hurt the server is the last one until a person has looked.
fn unharmed(request: &CaptureRequest<'_>, ledger: &Ledger) -> Result<(), Refusal> {
    let ends = ledger.attempts.iter().filter(|a| a.target == request.target).filter_map(|a| a.end.as_ref());
    let harmed = ends.filter_map(|end| Some((end.at, end.harm.as_ref()?)));
    match harmed.filter(|(_, harm)| !harm.is_acknowledged).max_by_key(|(at, _)| *at) {
        Some((at, harm)) => Err(Refusal::Suspended { at, why: harm.why.clone() }),
        None => Ok(()),
    }
}

/// Stamps a little ahead count as "just now"; a day ahead, the clock was wrong, and that is reported.
fn no_future(ledger: &Ledger, now: Time) -> Result<(), Refusal> {
    match ledger.attempts.iter().map(|a| a.at).find(|at| at.since(now) > DAY) {
        Some(at) => Err(Refusal::FutureState { at }),
        None => Ok(()),
    }
}

fn quiet(request: &CaptureRequest<'_>, ledger: &Ledger, now: Time) -> Result<(), Refusal> {
    let ends = ledger.attempts.iter().filter(|a| a.target == request.target).filter_map(|a| a.end.as_ref());
    let unproven = ends.filter_map(|end| end.unproven.as_ref().map(|why| (end.at, why)));
    match unproven.max_by_key(|(at, _)| *at) {
        Some((at, why)) if now.since(at) < QUIET => {
            Err(Refusal::Suppression { why: why.clone(), left: QUIET - now.since(at) })
        }
        _ => Ok(()),
    }
}

fn rule_limits(request: &CaptureRequest<'_>, ledger: &Ledger, now: Time) -> Result<(), Refusal> {
    let cooldown = request.limits.cooldown;
    if let Some(last) = ledger.stamps(request.rule, request.target).last() {
        let ago = now.since(*last);
        if ago < cooldown {
            return Err(Refusal::Cooldown {
                rule: request.rule.into(),
                last: *last,
                ago,
                left: cooldown - ago,
            });
        }
    }
    captures(request, ledger, now)
}

fn captures(request: &CaptureRequest<'_>, ledger: &Ledger, now: Time) -> Result<(), Refusal> {
    let stamps = ledger.stamps(request.rule, request.target);
    let Limits { captures, per, .. } = request.limits;
    match full(&stamps, *captures, *per, now) {
        Some(left) => {
            Err(Refusal::RuleLimit { rule: request.rule.into(), captures: *captures, per: *per, left })
        }
        None => Ok(()),
    }
}

/// Until one of at most `most` stamps within `per` is free again; `None` when one is free now.
fn full(sorted: &[Time], most: u32, per: Duration, now: Time) -> Option<Duration> {
    let within: Vec<Time> = sorted.iter().copied().filter(|at| now.since(*at) < per).collect();
    let over = within.len().checked_sub(most as usize)?;
    // With `most` at zero nothing is ever free.
    let freeing = within.get(over).copied().unwrap_or(now);
    Some(per.saturating_sub(now.since(freeing)))
}

/// Within one incident a further window needs an imbalance that is worse, by the margin, than at the worst
/// attempt so far.
fn worse(request: &CaptureRequest<'_>, ledger: &Ledger, budget: &Budget, now: Time) -> Result<(), Refusal> {
    let Some(worst) = ledger.worst(request, now) else { return Ok(()) };
    let (last, needed) = (worst.times_bound, worst.times_bound * budget.worse_by.max(1.0));
    // Written so that NaN refuses.
    if request.times_bound >= needed {
        return Ok(());
    }
    let before = (worst.incident != request.incident).then(|| worst.incident.clone());
    Err(Refusal::NotWorse { before, last, now: request.times_bound, needed })
}

fn daily(ledger: &Ledger, budget: &Budget, expected: Estimate, now: Time) -> Result<(), Refusal> {
    let mut stamps: Vec<Time> =
        ledger.attempts.iter().map(|a| a.at).filter(|at| now.since(*at) < DAY).collect();
    stamps.sort_unstable();
    if let Some(left) = full(&stamps, budget.windows, DAY, now) {
        return Err(Refusal::DailyWindows { spent: stamps.len().try_into().unwrap_or(u32::MAX), left });
    }
    let Estimate { stalled, bytes } = ledger.spent_today(now);
    if stalled + expected.stalled > budget.stalled {
        return Err(Refusal::DailyStall {
            spent_s: stalled.as_secs_f64(),
            expected_s: expected.stalled.as_secs_f64(),
            budget_s: budget.stalled.as_secs_f64(),
        });
    }
    if bytes.saturating_add(expected.bytes) > budget.bytes {
        return Err(Refusal::DailyBytes { spent: bytes, expected: expected.bytes, budget: budget.bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
