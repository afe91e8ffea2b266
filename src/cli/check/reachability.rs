//! Whether a rule could fire on a given server, judged by the signals and ranks that it shows.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::server_probe::Probe;
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::rule::{Combine, Condition, Direction, Rule};
use skewtrap_core::signal::catalog;
use skewtrap_core::signal::fields::Fields;
use skewtrap_core::signal::sample::Signal;
use skewtrap_trace::rank::{Axis, Rank};

/// What a rule would read on a server, or (`Err`) why it could never fire there.
pub fn reachability(rule: &Rule, probe: &Probe) -> Result<Vec<String>, Vec<String>> {
    let (mut reads, mut obstacles) = (Vec::new(), Vec::new());
    for (signal, name) in signals_of(rule) {
        match found(signal, probe) {
            Some((source, ranks)) => {
                reads.push(format!("`{name}` from {source}"));
                obstacles.extend(too_few(rule, &name, &ranks));
            }
            None => obstacles.push(format!("`{name}` does not arrive: {}", remedy(signal, probe))),
        }
    }
    match reach_of(rule, probe) {
        Reach::All => {}
        Reach::Some(conditions) => {
            reads.extend(conditions.iter().map(|c| format!("one of its conditions cannot hold: {c}")));
        }
        Reach::None(conditions) => obstacles.extend(conditions),
    }
    let unknown = unknown_ranks(rule, probe);
    match &rule.only_if {
        Some(guard) if guard.is_conjunction() => obstacles.extend(unknown),
        // The guard may be true without them, as in `ranks(load) < 8 || value(load, 7) > 2`.
        _ => reads.extend(unknown),
    }
    if rule.across.iter().any(|a| &**a == "target") {
        reads.push("it compares servers, and this is one of them: it needs a second one in `targets`".into());
    }
    obstacles.dedup();
    if obstacles.is_empty() { Ok(reads) } else { Err(obstacles) }
}

/// The signals without which a rule cannot fire.
fn signals_of(rule: &Rule) -> Vec<(Signal, String)> {
    let named = |c: &Condition| (c.signal, c.signal_name.to_string());
    let guard = rule.only_if.iter().flat_map(|g| g.signals().zip(g.names()).map(|(s, n)| (s, n.to_owned())));
    let mut all: Vec<(Signal, String)> = rule.conditions().map(named).chain(guard).collect();
    all.sort();
    all.dedup();
    all
}

/// The source of a signal, and the ranks that have it.
fn found(signal: Signal, probe: &Probe) -> Option<(String, Vec<Rank>)> {
    if let Some(own) = probe.own.iter().find(|own| own.signal == signal) {
        let from = format!("{} on /metrics", own.metric);
        return (!own.ranks.is_empty()).then(|| (from, own.ranks.clone()));
    }
    if catalog::OF_MACHINE.contains(&signal) {
        let ranks = probe.processes.as_ref().filter(|ranks| ranks.len() > 1)?;
        return Some(("/proc of the ranks' processes".to_owned(), ranks.clone()));
    }
    let operands = catalog::DERIVED.iter().filter(|d| d.signal == signal);
    let has = |fields: &Fields| {
        fields.get(signal).is_some()
            || operands.clone().any(|d| fields.get(d.a).is_some() && fields.get(d.b).is_some())
    };
    if let Ok((path, loads)) = &probe.loads {
        let ranks: Vec<Rank> = loads.ranks.iter().filter(|r| has(&r.fields)).map(|r| r.rank).collect();
        if !ranks.is_empty() {
            return Some(((*path).to_owned(), ranks));
        }
    }
    let metrics = probe.metrics.as_ref().ok()?;
    let ranks: Vec<Rank> = metrics.ranks().filter(|(_, f)| has(f)).map(|(r, _)| r).collect();
    (!ranks.is_empty()).then(|| ("/metrics".to_owned(), ranks))
}

/// Why the ranks of one server leave nothing to compare; `None` when there is enough.
fn too_few(rule: &Rule, signal: &str, ranks: &[Rank]) -> Option<String> {
    let label = rule.across.join(", ");
    let Some(axes) = axes_of(rule) else {
        // Of the sources that are looked at here none has other labels than those of ranks.
        let is_unknown = |l: &str| l != "target" && l != "role" && Axis::ALL.iter().all(|a| a.label() != l);
        let unknown = rule.across.iter().find(|l| is_unknown(l))?;
        return Some(format!("`{signal}` arrives without the label `{unknown}`, which no source here has"));
    };
    match largest_group(rule, &axes, ranks) {
        0 => Some(format!("`{signal}` arrives without the label `{label}`: {}", no_label(&axes))),
        1 => Some(format!("the group has one member ({label}): there is nothing to compare it with")),
        n if n < rule.min_members => Some(format!(
            "the group has {n} members ({label}), and the rule wants {}: see `min_members`",
            rule.min_members
        )),
        _ => None,
    }
}

/// The axes that distinguish members; `None` if another label does, which one server does not show.
fn axes_of(rule: &Rule) -> Option<Vec<Axis>> {
    rule.across.iter().map(|label| Axis::of_label(label)).collect()
}

/// The size of the largest group that the rule would form of these ranks.
fn largest_group(rule: &Rule, across: &[Axis], ranks: &[Rank]) -> usize {
    let within = |a: &Axis| rule.within.iter().any(|w| &**w == a.label());
    let within: Vec<Axis> = Axis::ALL.into_iter().filter(within).collect();
    let mut groups: BTreeMap<Vec<Option<u16>>, BTreeSet<Vec<u16>>> = BTreeMap::new();
    for rank in ranks {
        let member: Option<Vec<u16>> = across.iter().map(|a| rank.get(*a)).collect();
        let group = within.iter().map(|a| rank.get(*a)).collect();
        groups.entry(group).or_default().extend(member);
    }
    groups.values().map(BTreeSet::len).max().unwrap_or(0)
}

/// Which conditions of a trigger can hold in a group of the size that the server has.
enum Reach {
    /// All, as far as is known.
    All,
    /// All but these, without which the trigger can still hold.
    Some(Vec<String>),
    /// All but these, without which the trigger cannot hold.
    None(Vec<String>),
}

fn reach_of(rule: &Rule, probe: &Probe) -> Reach {
    let Some(axes) = axes_of(rule) else { return Reach::All };
    let conditions = &rule.trigger.conditions;
    let impossible: Vec<String> = conditions
        .iter()
        .filter_map(|c| {
            let (_, ranks) = found(c.signal, probe)?;
            impossible_in(c, largest_group(rule, &axes, &ranks))
        })
        .collect();
    match rule.trigger.combine {
        _ if impossible.is_empty() => Reach::All,
        Combine::Any if impossible.len() < conditions.len() => Reach::Some(impossible),
        _ => Reach::None(impossible),
    }
}

/// Why a condition cannot hold in a group of `members`, at least two.
fn impossible_in(c: &Condition, members: usize) -> Option<String> {
    // A user-defined signal may be negative, and then its ratios have no bound.
    if members < 2 || catalog::entry(c.signal).is_none() {
        return None;
    }
    let (low, high) = c.statistic.range_in(members);
    let (is_never, word, end, most) = match c.direction {
        Direction::Above => (c.bound >= high, "above", high, "most"),
        Direction::Below => (c.bound <= low, "below", low, "least"),
    };
    is_never.then(|| {
        let (statistic, bound) = (c.statistic, c.bound);
        let end = (end * 1000.0).round() / 1000.0;
        format!("`{statistic}` is never {word} {bound} in a group of {members}: it is {end} at {most}")
    })
}

/// Ranks that the guard names and that do not exist.
fn unknown_ranks(rule: &Rule, probe: &Probe) -> Vec<String> {
    let axes = axes_of(rule).unwrap_or_default();
    let (Some(guard), [axis]) = (&rule.only_if, &axes[..]) else { return Vec::new() };
    let missing = |(name, signal, asked): (&str, Signal, i64)| {
        let (_, ranks) = found(signal, probe)?;
        let present: BTreeSet<u16> = ranks.iter().filter_map(|r| r.get(*axis)).collect();
        let (first, last) = (present.first()?, present.last()?);
        let is_present = u16::try_from(asked).is_ok_and(|a| present.contains(&a));
        (!is_present)
            .then(|| format!("`only_if` asks for rank {asked} of `{name}`, which has {first} to {last}"))
    };
    guard.asked_ranks().filter_map(missing).collect()
}

fn no_label(axes: &[Axis]) -> String {
    match axes.first() {
        Some(Axis::Dp) => "the server runs one DP rank (--dp-size), or is older than 0.4.10".into(),
        Some(axis) => format!("no source numbers ranks by {}", axis.word()),
        None => "no source has it".into(),
    }
}

/// The server flag that makes a signal available.
fn remedy(signal: Signal, probe: &Probe) -> String {
    let name = catalog::name_of(signal);
    let Some(entry) = catalog::entry(signal) else {
        return match probe.own.iter().find(|own| own.signal == signal) {
            Some(own) => own.remedy(),
            None => "it is one of your own: its pattern or query must match".into(),
        };
    };
    if catalog::OF_MACHINE.contains(&signal) {
        let seen = match &probe.processes {
            None => "its address is none of this machine",
            Some(_) => "fewer than two of them are seen from here",
        };
        return format!(
            "it is read of the ranks' processes, by an agent on the server's machine and in its PID namespace; {seen}"
        );
    }
    let engine = probe.facts.engine;
    if !matches!(engine, ServerKind::Sglang | ServerKind::DynamoSglang) {
        return format!("this server is {engine}, which does not report it");
    }
    let flag = match name {
        n if n.starts_with("dp_attention") => {
            "start the server (0.5.23 or newer, with DP attention) with --enable-metrics and SGLANG_ENABLE_METRICS_DP_ATTENTION=1"
        }
        "gpu_busy" | "fwd_occupancy" | "fwd_idle_occupancy" => {
            "start the server with --enable-metrics and SGLANG_ENABLE_METRICS_DEVICE_TIMER=1"
        }
        "expert_tokens" => {
            "start the server with --enable-metrics and SGLANG_EPLB_HEATMAP_COLLECTION_INTERVAL above 0"
        }
        n if n.starts_with("expert_balancedness") => {
            "start the server with --expert-balancedness-report-mode server_log (0.5.23), or --enable-expert-distribution-metrics"
        }
        n if n.starts_with("decode_prealloc") || n.starts_with("decode_transfer") => {
            "only decode servers of a disaggregated deployment have it"
        }
        n if n.starts_with("prefill_bootstrap") || n.starts_with("prefill_inflight") => {
            "only prefill servers of a disaggregated deployment have it"
        }
        _ if probe.metrics.is_err() && !entry.metrics.is_empty() => "start the server with --enable-metrics",
        n if n.starts_with("time_to_first_token") || n.starts_with("inter_token_latency") => {
            "SGLang reports it for the whole server, not for each rank; `queue_time` is per rank (preset:first-token-skew)"
        }
        "retractions" => "SGLang (0.5.7 and newer) shows this counter from its first retraction on",
        _ if !entry.log.is_empty() || !entry.decode.is_empty() || !entry.prefill.is_empty() => {
            "only its log has it: give the log with --log, or under `logs`"
        }
        _ => "this version of the server does not report it",
    };
    let why = match &probe.metrics {
        Err(e) if !entry.metrics.is_empty() => format!(" (/metrics: {e})"),
        _ => String::new(),
    };
    format!("{flag}{why}")
}
