//! Formats times, ranks and deviations for sentences (`amount` does numbers, durations and sizes).

use std::time::Duration;

pub use crate::amount::{bytes, counted, figure, seconds};
use crate::factor::Factor;
use crate::finding::{Finding, Measured, Side, Statistic};
use crate::incident::{Incident, VerdictNote};
use skewtrap_trace::median;
pub use skewtrap_trace::rank::rank_name;
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::{Kind, Place};

/// `2026-11-24 03:48:41.9 UTC`.
pub fn utc(at: Time) -> String {
    at.to_string()
}

/// A finding as a headline: `DP2 has most of the requests (46 of 73)`, `DP0 gets almost no requests (0 of
/// 11)`, `DP2's kv usage is above its peers' (0.93, theirs about 0.31)`. The statistic is in the details.
pub fn deviation(finding: &Finding) -> String {
    let rank = rank_name(&finding.rank);
    let Some(Measured { statistic, signal, bound, .. }) = &finding.measured else {
        return "a window was asked for".into();
    };
    let (things, is_counted) = in_words(signal);
    let own = finding.members.iter().find(|m| m.rank == finding.rank).map(|m| m.value);
    let peers = finding.peers();
    let (Some(own), false) = (own, peers.is_empty()) else {
        return format!("{rank} is apart from its peers in {things}");
    };
    let usual = median(&peers).unwrap_or(own);
    let is_high = match finding.side {
        Side::High => true,
        Side::Low => false,
        Side::Both => own > usual,
    };
    let above = if is_high { "above" } else { "below" };
    match statistic {
        Statistic::AllMembers => return format!("every rank's {things} is {above} {}", figure(*bound)),
        Statistic::AnyMember => {
            return format!("{rank}'s {things} is {}, {above} {}", figure(own), figure(*bound));
        }
        Statistic::Factors => {
            let has_work = finding.impact.as_ref().is_none_or(|impact| impact.requests >= 1.0);
            return departed(&rank, signal, finding.side, has_work);
        }
        _ => {}
    }
    let total = own + peers.iter().sum::<f64>();
    let mean = total / (peers.len() + 1) as f64;
    let of = format!("({} of {})", figure(own), figure(total));
    let verb = if things == "requests" { "gets" } else { "has" };
    // A speed is not shared out, and a rank may be slow at an ordinary load: then only both numbers tell.
    match (is_counted, is_high) {
        (true, true) if own > total / 2.0 => format!("{rank} has most of the {things} {of}"),
        (true, true) if own > mean => format!("{rank} has more {things} than its peers {of}"),
        (true, false) if own < mean / 4.0 => format!("{rank} {verb} almost no {things} {of}"),
        (true, false) if own < mean => format!("{rank} {verb} fewer {things} than its peers {of}"),
        (true, true) => {
            format!("{rank} gets less done than its peers, at {} of {} {things}", figure(own), figure(total))
        }
        (true, false) => {
            format!("{rank} is apart from its peers, at {} of {} {things}", figure(own), figure(total))
        }
        _ => {
            format!(
                "{rank}'s {things} is {above} its peers' ({}, theirs about {})",
                figure(own),
                figure(usual)
            )
        }
    }
}

/// The ranks that an incident was blamed on before, each once, but for the one that is.
pub fn blamed_before(incident: &Incident) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for before in &incident.blamed_before {
        let name = rank_name(&before.rank);
        if before.rank != incident.finding.rank && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Whether an incident is blamed on the rank again on which it was at first.
pub fn blame_came_back(incident: &Incident) -> bool {
    incident.blamed_before.first().is_some_and(|first| first.rank == incident.finding.rank)
}

/// `DP0 was`, `DP0 and DP3 were`.
pub fn were(names: &[String]) -> String {
    format!("{} {}", names.join(" and "), if names.len() == 1 { "was" } else { "were" })
}

/// A signal's name in words, and whether it counts things that the ranks share.
fn in_words(signal: &str) -> (String, bool) {
    if signal == "load" {
        return ("requests".into(), true);
    }
    match signal.strip_suffix("_reqs") {
        Some(which) => (format!("{} requests", which.replace("queue", "queued").replace('_', " ")), true),
        None => (signal.replace('_', " "), signal.ends_with("_tokens")),
    }
}

/// A factor that departed, as a headline.
fn departed(rank: &str, factor: &str, side: Side, has_work: bool) -> String {
    match (factor, side) {
        ("stuck", _) if !has_work => format!("{rank} shows no sign of life"),
        ("stuck", _) => format!("{rank} has work and does not move"),
        ("share", Side::Low) => format!("{rank} is sent less than its usual share of requests"),
        ("share", _) => format!("{rank} is sent more than its usual share of requests"),
        ("speed", Side::High) => format!("{rank} is faster than usual at the same work"),
        ("speed", _) => format!("{rank} is slower than usual at the same work"),
        ("work", Side::Low) => format!("{rank} gets requests of less work than usual"),
        ("work", _) => format!("{rank} gets requests of more work than usual"),
        (factor, _) => format!("{rank} is away from what is usual in {factor}"),
    }
}

/// A statistic with its bound: `max_over_mean of load is 2.1 (bound 1.5)`.
pub fn deviation_bound(measured: &Measured) -> String {
    let Measured { statistic, signal, value, bound, .. } = measured;
    if *statistic == Statistic::Factors {
        let what = Factor::of_word(signal).map_or(&**signal, |factor| factor.noun());
        return format!("its {what} departs by {} times the bound", figure(*value));
    }
    format!("{statistic} of {signal} is {} (bound {})", figure(*value), figure(*bound))
}

/// What was seen so soon after the finding is what it was found by.
const LATER: Duration = Duration::from_secs(5);

/// Of a rank that hangs, for how long it had stood still when that was found, and what is usual there: `it had stood
/// still for 7.2 s when that was found; ranks with work have paused for 1.4 s at most here`.
pub fn stood_still(incident: &Incident) -> Option<String> {
    let still = |until: Time| seconds(until.since(incident.finding.onset).as_secs_f64());
    let found = incident.found_stuck()?;
    let now = match (incident.moved_again, incident.impact.as_ref().map(|seen| seen.at)) {
        (Some(moved), _) => format!(", {} in all", still(moved)),
        _ if incident.resolved_at.is_some() => String::new(),
        (None, Some(seen)) if seen.since(found) > LATER => format!(", {} by now", still(seen)),
        _ => String::new(),
    };
    let usual = incident.usual_pause_s.map_or_else(String::new, |pause| {
        format!("; ranks with work have paused for {} at most here", seconds(pause))
    });
    Some(format!("it had stood still for {} when that was found{now}{usual}", still(found)))
}

/// A verdict as a headline: `DP2 has more work than its peers`.
pub fn verdict_kind(verdict: &VerdictNote) -> String {
    let rank = verdict.rank_as_blamed().map_or_else(|| "a rank".into(), rank_name);
    match verdict.kind {
        Kind::UnevenWork => format!("{rank} has more work than its peers"),
        Kind::SlowRank if verdict.by == Some(Place::Host) => format!("{rank} is slowed by its host"),
        Kind::SlowRank => format!("{rank} is slower than its peers at the same work"),
        Kind::AllSlow => "all ranks are slow".into(),
        Kind::IdleTail => format!("{rank} idles while its peers work"),
        Kind::NoFinding => "comparing the ranks found nothing".into(),
        Kind::InsufficientEvidence => "the capture is not enough for a verdict".into(),
    }
}
