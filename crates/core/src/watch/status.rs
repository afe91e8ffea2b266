//! What the core shows of itself, as the plain data that the API, the page and `why` are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::axes::Axes;
use super::core::Core;
use super::incidents::ActiveIncident;
use super::server::Server;
use crate::capture::CaptureSpec;
use crate::capture::refusal::Span;
use crate::incident::CaptureOutcome;
use crate::rule::{Evaluation, Rule, RuleState};
use crate::signal::catalog;
use crate::signal::sample::{Signal, Source, TargetId};
use crate::signal::store::{SeriesStatus, SignalStore};
use crate::status::{
    BudgetStatus, GroupStatus, History, HistoryLine, LimitStatus, RankStatus, RuleStatus, SignalStatus,
    SourceStatus, StateWord, Status, TargetStatus, WindowStatus, resampled,
};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::time::Time;

/// The page draws this much.
const DRAWN: Duration = Duration::from_secs(180);
const DRAWN_STEP: Duration = Duration::from_secs(1);
/// At most this many signals are drawn, the load first, the rest in the rules' order.
const DRAWN_SIGNALS: usize = 6;
const DAY: Duration = Duration::from_secs(86_400);

/// Everything that the core knows of itself at `now`; addresses are the shell's to add.
pub(super) fn status_of(
    core: &Core,
    store: &SignalStore,
    sources: &[(TargetId, SourceStatus)],
    now: Time,
) -> Status {
    let standing = store.series_status(now);
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        at: now,
        watch_only: core.policy.watch_only,
        targets: targets_of(core, &standing, sources),
        rules: rules_of(core, now),
        incidents: core.incidents.newest_first().map(|c| c.incident.clone()).collect(),
        windows: windows_of(core),
        budget: budget_of(core, now),
        silences: core.silences.clone(),
        history: history_of(core, store, &standing, now),
        ..Status::default()
    }
}

fn targets_of(
    core: &Core,
    standing: &[SeriesStatus],
    sources: &[(TargetId, SourceStatus)],
) -> Vec<TargetStatus> {
    let of = |(place, server): (usize, &Server)| {
        let sources = sources.iter().filter(|(target, _)| usize::from(target.0) == place);
        target_of(server, standing, sources.map(|(_, source)| source.clone()).collect())
    };
    core.servers.iter().enumerate().map(of).collect()
}

fn target_of(server: &Server, standing: &[SeriesStatus], sources: Vec<SourceStatus>) -> TargetStatus {
    let facts = server.facts.server.as_ref();
    let axes = Axes::of(&server.name, standing);
    let mut ranks: BTreeMap<Labels, BTreeMap<Arc<str>, SignalStatus>> = BTreeMap::new();
    let mut own: Vec<&SeriesStatus> =
        standing.iter().filter(|s| *s.target == *server.name && !s.overruled).collect();
    own.sort_by_key(|s| s.source);
    for seen in own {
        for reading in &seen.latest {
            let signal = SignalStatus {
                value: reading.value,
                at: reading.at,
                stale: reading.silent,
                source: seen.source.word().into(),
            };
            let rank = ranks.entry(axes.telling(reading.of.clone())).or_default();
            rank.entry(seen.signal.as_str().into()).or_insert(signal);
        }
    }
    TargetStatus {
        name: server.name.clone(),
        url: String::new(),
        engine: facts.map_or_else(|| "unknown".into(), |f| f.engine.to_string().to_lowercase().into()),
        engine_version: facts.and_then(|f| f.version.map(|v| v.to_string())),
        sources,
        ranks: ranks.into_iter().map(|(rank, signals)| RankStatus { rank, signals }).collect(),
    }
}

fn rules_of(core: &Core, now: Time) -> Vec<RuleStatus> {
    let standing = core.engine.evaluations(now);
    let rule_of = |rule: &Arc<Rule>| {
        let own: Vec<&Evaluation> = standing.iter().filter(|s| s.rule == rule.name).collect();
        let silences = core.silences.iter().filter(|s| s.rule.as_ref().is_none_or(|r| *r == rule.name));
        RuleStatus {
            name: rule.name.clone(),
            about: rule.about.clone(),
            severity: rule.severity,
            capture: words_of(&rule.capture),
            groups: own.iter().map(|s| group_of(core, s)).collect(),
            last_evaluated: own.iter().filter_map(|s| s.evaluated).max(),
            silenced_until: silences.map(|s| s.until).max(),
        }
    };
    core.engine.rules().map(rule_of).collect()
}

fn group_of(core: &Core, standing: &Evaluation) -> GroupStatus {
    let mut group = standing.group.clone().unwrap_or_default();
    let target = match group.0.remove("target") {
        Some(LabelValue::Text(name)) => name,
        _ => "".into(),
    };
    let all = standing.group.as_ref();
    let case = core.incidents.firing_now().find(|c| c.rule.name == standing.rule && Some(&c.group) == all);
    let incident = case.map(|c| &c.incident);
    let numbers = standing.numbers.as_ref();
    GroupStatus {
        target,
        state: StateWord::from(standing.state),
        why: standing.why.clone(),
        since: standing.since,
        statistic: numbers.map(|n| format!("{} of {}", n.statistic, n.signal)).unwrap_or_default(),
        value: numbers.map(|n| n.value),
        bound: numbers.map(|n| n.bound),
        rank: incident.map(|i| i.finding.rank.clone()),
        incident: incident.map(|i| i.id.clone()),
        refused: incident.and_then(|i| i.capture.refused()).map(|r| r.why.clone()),
        again: case.and_then(|case| again_of(core, case)),
        group,
    }
}

/// Whether what was captured would be captured again.
fn again_of(core: &Core, case: &ActiveIncident) -> Option<String> {
    let incident = &case.incident;
    let wish = case.wish(&incident.target, "", 1.0);
    let last = core.ledger.worst(&wish, core.now)?;
    let from = core.engine.escalation_threshold(&case.rule.name, &case.group)?;
    let refused = incident.worse.as_ref().filter(|w| w.window > incident.window());
    if let Some((worse, Some(refused))) = refused.map(|w| (w, &w.refused)) {
        return Some(format!(
            "since {} it is {:.2} times its bound, worse than the {:.2} times at which it was captured last, and was not captured again: {}",
            worse.at, worse.times_bound, last.badness, refused.why
        ));
    }
    let tried = match &incident.capture {
        CaptureOutcome::Failed { .. } => "a capture was tried, and failed,",
        _ => "it was captured",
    };
    Some(format!(
        "{tried} at {:.2} times its bound and is captured again from {from:.2} times on (budget.worse_by)",
        last.badness
    ))
}

fn words_of(spec: &CaptureSpec) -> String {
    match spec {
        CaptureSpec::None => "none".into(),
        CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http) => {
            format!("http: {} steps, at most {}", http.num_steps, Span(http.deadline))
        }
        CaptureSpec::Nsys(nsys) => format!("nsys: {}", Span(nsys.duration)),
        CaptureSpec::Command(command) => format!("command: at most {}", Span(command.time_limit)),
    }
}

fn windows_of(core: &Core) -> Vec<WindowStatus> {
    let open = core.servers.iter().filter_map(|s| s.window.as_ref().map(|w| (s, w)));
    open.map(|(server, window)| WindowStatus {
        incident: window.incident.clone(),
        target: server.name.clone(),
        means: window.means.into(),
        state: format!("{:?}", window.phase).to_lowercase().into(),
        since: window.since,
        deadline: Some(window.since + window.deadline),
    })
    .collect()
}

fn budget_of(core: &Core, now: Time) -> BudgetStatus {
    let used = core.ledger.attempts.iter().filter(|a| now.since(a.at) < DAY).count();
    let all = LimitStatus {
        of: "all rules".into(),
        used: u32::try_from(used).unwrap_or(u32::MAX),
        captures: core.policy.budget.windows,
        per_s: DAY.as_secs_f64(),
        cooldown_until: None,
    };
    let bundles = core.policy.bundles.as_ref();
    BudgetStatus {
        limits: std::iter::once(all).chain(limits_of_rules(core, now)).collect(),
        bundle_bytes: bundles.map_or(0, |b| b.bytes),
        bundle_bytes_limit: bundles.map(|b| b.limit),
        free_bytes: bundles.and_then(|b| b.free),
    }
}

/// The limits of the rules of which something is used, for each server.
fn limits_of_rules(core: &Core, now: Time) -> Vec<LimitStatus> {
    let mut limits = Vec::new();
    for rule in core.engine.rules() {
        for server in &core.servers {
            let Some(spent) = core.ledger.spent(&rule.name, &server.name, &rule.limits, now) else {
                continue;
            };
            let of = match core.servers.len() {
                1 => rule.name.clone(),
                _ => format!("{} on {}", rule.name, server.name).into(),
            };
            limits.push(LimitStatus {
                of,
                used: spent.windows,
                captures: rule.limits.captures,
                per_s: rule.limits.per.as_secs_f64(),
                cooldown_until: spent.cooldown_until,
            });
        }
    }
    limits
}

/// The last minutes of the load, and of whatever else a rule watches.
fn history_of(core: &Core, store: &SignalStore, standing: &[SeriesStatus], now: Time) -> Vec<History> {
    let servers: Vec<_> = core.servers.iter().map(|s| (&s.name, Axes::of(&s.name, standing))).collect();
    let watched = core.engine.rules().flat_map(|r| r.trigger.conditions.iter().map(|c| c.signal));
    let mut signals: Vec<Signal> = std::iter::once(catalog::LOAD).chain(watched).collect();
    let mut seen = BTreeSet::new();
    signals.retain(|s| seen.insert(*s));
    signals.truncate(DRAWN_SIGNALS);
    let drawn = signals.into_iter().map(|signal| History {
        signal: store.catalog().name_of(signal).into(),
        end: now,
        step_s: DRAWN_STEP.as_secs_f64(),
        lines: servers.iter().flat_map(|(name, axes)| lines_of(name, axes, signal, store, now)).collect(),
    });
    drawn.filter(|history| !history.lines.is_empty()).collect()
}

/// A line per rank, from the best source that has it.
fn lines_of(
    target: &Arc<str>,
    axes: &Axes,
    signal: Signal,
    store: &SignalStore,
    now: Time,
) -> Vec<HistoryLine> {
    let count = (DRAWN.as_secs() / DRAWN_STEP.as_secs()) as usize;
    let labels = Labels([("target".into(), LabelValue::Text(target.clone()))].into());
    let mut best: BTreeMap<_, (Source, Vec<(Time, f64)>)> = BTreeMap::new();
    for seen in store.samples(&labels, now - DRAWN).filter(|e| e.signal == signal) {
        let rank = axes.telling(seen.rank.labels());
        let line = best.entry(rank).or_insert((seen.source, Vec::new()));
        if seen.source < line.0 {
            *line = (seen.source, Vec::new());
        }
        if seen.source == line.0 {
            line.1.push((seen.at, seen.value));
        }
    }
    let line = |(rank, (_, points)): (Labels, (Source, Vec<(Time, f64)>))| HistoryLine {
        target: target.clone(),
        rank,
        values: resampled(points, now, DRAWN_STEP, count),
    };
    best.into_iter().map(line).collect()
}

impl From<RuleState> for StateWord {
    fn from(phase: RuleState) -> Self {
        match phase {
            RuleState::Warming => Self::Warming,
            RuleState::Idle => Self::Idle,
            RuleState::Pending => Self::Pending,
            RuleState::Firing => Self::Firing,
            RuleState::Unknown => Self::Unknown,
            RuleState::Inert => Self::Inert,
        }
    }
}
