//! What the core shows of itself, as the plain data that the API, the page and `why` are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Watch;
use super::core::Core;
use super::history::{Axes, places_of};
use super::incidents::ActiveIncident;
use super::server::Server;
use crate::amount::Span;
use crate::capture::facts::{ServerKind, Sizes};
use crate::capture::sizing::max_stall_words;
use crate::capture::{CaptureSpec, HttpWindow};
use crate::incident::{CaptureOutcome, Joined};
use crate::message::stood_still;
use crate::rule::Evaluation;
use crate::rule::{Rule, RuleState};
use crate::signal::observation::Problem;
use crate::signal::sample::{Source, TargetId};
use crate::signal::source::WatchedSource;
use crate::signal::store::{SeriesStatus, SignalStore};
use crate::status::{
    BudgetStatus, GroupStatus, LimitStatus, RankStatus, Reach, RuleStatus, Scope, SignalStatus, SourceStatus,
    Status, TargetStatus, WindowStatus, next_of, not_watched,
};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Axis;
use skewtrap_trace::time::Time;

const DAY: Duration = Duration::from_secs(86_400);

/// What the core knows of itself and of some servers at `now`; addresses are the shell's to add.
pub(super) fn status_of(
    core: &Core,
    store: &SignalStore,
    sources: Vec<(TargetId, SourceStatus)>,
    scope: &Scope,
    now: Time,
) -> Status {
    let places = places_of(core, scope);
    let series = if scope.ranks { store.series_status_of(places.clone(), now) } else { Vec::new() };
    let servers = &core.servers[places.clone()];
    let rules = rules_of(core, servers, now);
    let mut targets = targets_of((places.start, servers), &series, sources);
    let able = ApplicableRules::of(core, &rules);
    for (place, (target, server)) in places.clone().zip(targets.iter_mut().zip(servers)) {
        let seen = || u16::try_from(place).map(|id| store.ranks_of(TargetId(id))).unwrap_or_default();
        target.not_watched = able.not_watched(server, seen);
    }
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        at: now,
        watch_only: core.policy.watch_only,
        servers: core.servers.len(),
        next: next_of(scope, &places, core.servers.len(), |place| &core.servers[place].name),
        targets,
        rules,
        incidents: core.incidents.newest_first().map(|c| c.incident.clone()).collect(),
        windows: windows_of(core),
        budget: budget_of(core, now),
        silences: core.silences.clone(),
        ..Status::default()
    }
}

fn targets_of(
    (first, servers): (usize, &[Server]),
    standing: &[SeriesStatus],
    sources: Vec<(TargetId, SourceStatus)>,
) -> Vec<TargetStatus> {
    let mut sources_of: Vec<Vec<SourceStatus>> = servers.iter().map(|_| Vec::new()).collect();
    for (target, source) in sources {
        let place = usize::from(target.0).checked_sub(first);
        if let Some(own) = place.and_then(|place| sources_of.get_mut(place)) {
            own.push(source);
        }
    }
    // They come server by server.
    let of_server: BTreeMap<&str, &[SeriesStatus]> =
        standing.chunk_by(|a, b| a.target == b.target).map(|own| (&*own[0].target, own)).collect();
    let own = |server: &Server| of_server.get(&*server.name).copied().unwrap_or_default();
    servers.iter().zip(sources_of).map(|(server, s)| target_of(server, own(server), s)).collect()
}

/// Which rules can fire on which server: those with a group there that is or was judged.
#[derive(Debug)]
struct ApplicableRules<'a> {
    by_server: BTreeMap<&'a str, Vec<&'a str>>,
    /// Those over several servers.
    over_all: Vec<&'a str>,
    /// One that compares the ranks' processes.
    of_machine: Option<&'a str>,
}

impl<'a> ApplicableRules<'a> {
    fn of(core: &'a Core, rules: &'a [RuleStatus]) -> Self {
        let mut able = Self {
            by_server: BTreeMap::new(),
            over_all: Vec::new(),
            of_machine: core.engine.rules().find(|rule| rule.is_of_machine()).map(|rule| &*rule.name),
        };
        for rule in rules {
            let judged =
                rule.groups.iter().filter(|g| !matches!(g.state, RuleState::Inert | RuleState::Warming));
            for group in judged {
                let known = match &*group.target {
                    "" => &mut able.over_all,
                    target => able.by_server.entry(target).or_default(),
                };
                if known.last() != Some(&&*rule.name) {
                    known.push(&rule.name);
                }
            }
        }
        able
    }

    fn not_watched(&self, server: &Server, seen: impl FnOnce() -> Vec<Labels>) -> Option<String> {
        let (engine, sizes) = sizes_of(server, seen)?;
        let own = self.by_server.get(&*server.name).map_or(&[][..], Vec::as_slice);
        let able = [own, &self.over_all].concat();
        not_watched(engine, &sizes, Reach { able: Some(&able), of_machine: self.of_machine })
    }
}

/// Why the ranks of a server cannot be compared, where it has said so itself, before any rule was evaluated
/// on it. Of others further ranks may report yet.
pub(super) fn not_watched_on(core: &Core, target: TargetId) -> Option<String> {
    let (engine, sizes) = sizes_of(core.servers.get(usize::from(target.0))?, Vec::new)?;
    let of_machine = core.engine.rules().find(|rule| rule.is_of_machine()).map(|rule| &*rule.name);
    not_watched(engine, &sizes, Reach { able: None, of_machine })
}

/// What the server is and how many ranks it has, as far as it is known: where it does not report them, those
/// count whose numbers arrive.
fn sizes_of(server: &Server, seen: impl FnOnce() -> Vec<Labels>) -> Option<(ServerKind, Sizes)> {
    let facts = server.facts.server.as_ref()?;
    let mut sizes = facts.sizes;
    if !facts.engine.reports_its_sizes() {
        let seen = seen();
        let ranks: BTreeSet<&LabelValue> =
            seen.iter().filter_map(|rank| rank.get(Axis::Dp.label())).collect();
        if ranks.is_empty() {
            return None;
        }
        sizes.dp = sizes.dp.max(u16::try_from(ranks.len()).unwrap_or(u16::MAX));
    }
    Some((facts.engine, sizes))
}

fn target_of(server: &Server, own: &[SeriesStatus], sources: Vec<SourceStatus>) -> TargetStatus {
    let facts = server.facts.server.as_ref();
    let axes = Axes::among(own.iter().flat_map(|s| &s.latest).map(|reading| &reading.of));
    let mut ranks: BTreeMap<Labels, BTreeMap<Arc<str>, SignalStatus>> = BTreeMap::new();
    let mut own: Vec<&SeriesStatus> = own.iter().filter(|s| !s.overruled).collect();
    own.sort_by_key(|s| s.source);
    for seen in own {
        for reading in &seen.latest {
            let signal = SignalStatus {
                value: reading.value,
                at: reading.at,
                stale: reading.silent,
                source: seen.source.word().into(),
            };
            let rank = ranks.entry(axes.distinguishing(reading.of.clone())).or_default();
            rank.entry(seen.signal.as_str().into()).or_insert(signal);
        }
    }
    TargetStatus {
        name: server.name.clone(),
        url: String::new(),
        engine: facts.map_or_else(|| "unknown".into(), |f| f.engine.word().into()),
        engine_version: facts.and_then(|f| f.version.map(|v| v.to_string())),
        unanswered_since: server.facts.unanswered,
        sources,
        ranks: ranks.into_iter().map(|(rank, signals)| RankStatus { rank, signals }).collect(),
        not_watched: None,
    }
}

fn rules_of(core: &Core, servers: &[Server], now: Time) -> Vec<RuleStatus> {
    let names: BTreeSet<&str> = servers.iter().map(|server| &*server.name).collect();
    let is_all = servers.len() == core.servers.len();
    let wanted = |group: &Labels, state| match group.get("target") {
        Some(LabelValue::Text(name)) => is_all || state == RuleState::Firing || names.contains(&**name),
        // One over several servers.
        _ => true,
    };
    let evaluations = core.engine.evaluations_where(wanted, now);
    let rule_of = |rule: &Arc<Rule>| {
        let own: Vec<&Evaluation> = evaluations.iter().filter(|s| s.rule == rule.name).collect();
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

fn group_of(core: &Core, evaluation: &Evaluation) -> GroupStatus {
    let mut group = evaluation.group.clone().unwrap_or_default();
    let target = match group.0.remove("target") {
        Some(LabelValue::Text(name)) => name,
        _ => "".into(),
    };
    let all = evaluation.group.as_ref();
    let active =
        core.incidents.firing_now().find(|c| c.incident.rule == evaluation.rule && Some(&c.group) == all);
    let incident = active.map(|c| &c.incident);
    // A rule whose finding belongs to the incident of another has none of its own.
    let is_own = |j: &&Joined| j.rule == evaluation.rule && j.until.is_none();
    let joined_in = |c: &ActiveIncident| {
        Some((c.incident.id.clone(), c.incident.joined.iter().find(is_own)?.rank.clone()))
    };
    let joined = || {
        let is_firing = incident.is_none() && evaluation.state == RuleState::Firing;
        core.incidents.newest_first().filter(|c| is_firing && c.incident.target == target).find_map(joined_in)
    };
    let told = incident.map(|i| (i.id.clone(), i.finding.rank.clone())).or_else(joined);
    let (id, rank) = told.unzip();
    // How many times its bound a hung rank is, is always the same.
    let still = incident.and_then(stood_still);
    let numbers = evaluation.numbers.as_ref().filter(|_| still.is_none());
    let why = match still {
        Some(still) => format!("{}; {still}", evaluation.why),
        None => evaluation.why.clone(),
    };
    GroupStatus {
        rank,
        incident: id,
        state: evaluation.state,
        why,
        since: evaluation.since,
        statistic: numbers.map(|n| format!("{} of {}", n.statistic, n.signal)).unwrap_or_default(),
        value: numbers.map(|n| n.value),
        bound: numbers.map(|n| n.bound),
        refused: incident.and_then(|i| i.capture.refused()).map(|r| r.why.clone()),
        again: active.and_then(|active| again_of(core, active)),
        target,
        group,
    }
}

/// Whether what was captured would be captured again.
fn again_of(core: &Core, active: &ActiveIncident) -> Option<String> {
    let incident = &active.incident;
    let request = active.request(&incident.target, "", 1.0);
    let last = core.ledger.worst(&request, core.now)?;
    let from = core.engine.escalation_threshold(&active.incident.rule, &active.group)?;
    let refused = incident.worse.as_ref().filter(|w| w.window > incident.window());
    if let Some((worse, Some(refused))) = refused.map(|w| (w, &w.refused)) {
        return Some(format!(
            "since {} it is {:.2} times its bound, worse than the {:.2} times at which it was captured last, and was not captured again: {}",
            worse.at, worse.times_bound, last.times_bound, refused.why
        ));
    }
    let tried = match &incident.capture {
        CaptureOutcome::Failed { .. } => "a capture was tried, and failed,",
        _ => "it was captured",
    };
    Some(format!(
        "{tried} at {:.2} times its bound and is captured again from {from:.2} times on (budget.worse_by)",
        last.times_bound
    ))
}

fn words_of(spec: &CaptureSpec) -> String {
    match spec {
        CaptureSpec::None => "none".into(),
        CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http) => {
            format!("http: {}, at most {}", size_of(http), Span(http.deadline))
        }
        CaptureSpec::Nsys(nsys) => format!("nsys: {}", Span(nsys.duration)),
        CaptureSpec::Command(command) => format!("command: at most {}", Span(command.time_limit)),
    }
}

/// How large its windows are: `as many steps as cost a rank 300 ms`.
fn size_of(http: &HttpWindow) -> String {
    let stall = max_stall_words(http).map(|stall| format!("at most {stall} of silence"));
    match (http.num_steps, stall) {
        (None, stall) => format!("as many steps as cost {}", stall.unwrap_or_default()),
        (Some(steps), Some(stall)) => format!("{steps} steps for {stall}"),
        (Some(steps), None) => format!("{steps} steps"),
    }
}

fn windows_of(core: &Core) -> Vec<WindowStatus> {
    let open = core.servers.iter().filter_map(|s| s.window.as_ref().map(|w| (s, w)));
    open.map(|(server, window)| WindowStatus {
        incident: window.incident.clone(),
        target: server.name.clone(),
        means: window.means,
        state: window.phase,
        since: window.since,
        deadline: Some(window.since + window.deadline),
    })
    .collect()
}

/// How many windows were opened within a day, and how many may be.
pub(super) fn windows_of_a_day(core: &Core, now: Time) -> (u32, u32) {
    let used = core.ledger.attempts.iter().filter(|a| now.since(a.at) < DAY).count();
    (u32::try_from(used).unwrap_or(u32::MAX), core.policy.budget.windows)
}

fn budget_of(core: &Core, now: Time) -> BudgetStatus {
    let (used, captures) = windows_of_a_day(core, now);
    let all = LimitStatus {
        of: "all rules".into(),
        used,
        captures,
        per_s: DAY.as_secs_f64(),
        cooldown_until: None,
    };
    let bundles = core.policy.bundles.as_ref();
    let (spent, budget) = (core.ledger.spent_today(now), &core.policy.budget);
    BudgetStatus {
        limits: std::iter::once(all).chain(limits_of_rules(core, now)).collect(),
        bundle_bytes: bundles.map_or(0, |b| b.bytes),
        bundle_bytes_limit: bundles.map(|b| b.limit),
        free_bytes: bundles.and_then(|b| b.free),
        stalled_s: spent.stalled.as_secs_f64(),
        stalled_s_limit: budget.stalled.as_secs_f64(),
        written_bytes: spent.bytes,
        written_bytes_limit: budget.bytes,
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

/// Each with its server, in the order of the configuration.
pub(super) fn sources_of(watch: &Watch, scope: &Scope, now: Time) -> Vec<(TargetId, SourceStatus)> {
    let places = places_of(&watch.core, scope);
    let asked = watch.sources.iter().filter(|source| places.contains(&usize::from(source.target.0)));
    let needed = asked.filter(|source| !is_absent_by_design(watch, source));
    needed.map(|source| (source.target, source_status(watch, source, now))).collect()
}

/// Only SGLang has `/v1/loads`, which is polled on every server: that it is missing elsewhere is no problem.
fn is_absent_by_design(watch: &Watch, source: &WatchedSource) -> bool {
    let server = watch.facts(source.target).and_then(|f| f.server.as_ref());
    source.kind == Source::Loads
        && server.is_some_and(|s| !s.engine.has_loads())
        && matches!(watch.intake.problem_of(source.id), Some(Problem::NotFound { .. }))
}

fn source_status(watch: &Watch, source: &WatchedSource, now: Time) -> SourceStatus {
    let (given, problem) = (watch.intake.stats_of(source.id), watch.intake.problem_of(source.id));
    SourceStatus {
        kind: source.kind.word().into(),
        place: source.name.to_string(),
        state: given.state(problem, now),
        problem: problem.map(ToString::to_string),
        remark: watch.intake.stamp_disagreement(source.id),
        is_behind: matches!(problem, Some(Problem::Behind { .. })),
        last: given.last,
        lag_s: given.lag.map(|lag| lag.as_secs_f64()),
        samples: given.samples,
        dropped: given.dropped,
    }
}
