//! Formats numbers, times, ranks and deviations for sentences.

use crate::finding::{Finding, Measured, Side, Statistic};
use crate::incident::VerdictNote;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Axis;
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::{Kind, Place};

/// A number with about three significant digits: `46`, `2.1`, `0.032`, `1520`.
pub fn figure(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A duration in seconds as people write it: `40 ms`, `3.2 s`, `12 min 5 s`.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 0.0995 => format!("{} ms", figure((v * 1e3).round())),
        v if v < 119.5 => format!("{} s", figure((v * 10.0).round() / 10.0)),
        v => {
            let whole = v.round() as u64;
            format!("{} min {} s", whole / 60, whole % 60)
        }
    }
}

/// A number of bytes in decimal units: `14.2 MB`.
pub fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        c if c < 1e3 => format!("{c} B"),
        c if c < 1e6 => format!("{} kB", figure(c / 1e3)),
        c if c < 1e9 => format!("{} MB", figure(c / 1e6)),
        c => format!("{} GB", figure(c / 1e9)),
    }
}

/// `2026-11-24 03:48:41.9 UTC`.
pub fn utc(at: Time) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(at.nanos())) {
        Ok(t) => format!("{}", t.strftime("%Y-%m-%d %H:%M:%S%.1f UTC")),
        Err(_) => at.to_string(),
    }
}

/// A rank's name: `DP2 TP0`. Labels that are not of a rank are written as they are: `pod=a DP2`.
pub fn rank_name(rank: &Labels) -> String {
    let mut words: Vec<String> = Vec::new();
    for (name, value) in &rank.0 {
        let axis = Axis::ALL.into_iter().find(|a| a.label() == &**name);
        words.push(match (axis, value) {
            (Some(axis), LabelValue::Index(i)) => format!("{}{i}", axis.word()),
            _ => format!("{name}={value}"),
        });
    }
    if words.is_empty() { "the engine".into() } else { words.join(" ") }
}

/// A finding as a headline: `DP2 has 2.1 times the mean load`.
pub fn deviation(finding: &Finding) -> String {
    let rank = rank_name(&finding.rank);
    let Some(Measured { statistic, signal, value, .. }) = &finding.measured else {
        return "a window was asked for".into();
    };
    let value = figure(*value);
    match statistic {
        Statistic::MaxOverMean => format!("{rank} has {value} times the mean {signal}"),
        Statistic::MinOverMean => format!("{rank} has only {value} times the mean {signal}"),
        Statistic::MaxMinusMin => format!("{rank} is {value} {signal} apart from its peers"),
        other => {
            let side = match finding.side {
                Side::High => "above",
                Side::Low => "below",
                Side::Both => "away from",
            };
            format!("{rank} is {side} its peers in {signal} ({other} {value})")
        }
    }
}

/// A statistic with its bound: `max_over_mean of load is 2.1 (bound 1.5)`.
pub fn deviation_bound(measured: &Measured) -> String {
    let Measured { statistic, signal, value, bound } = measured;
    format!("{statistic} of {signal} is {} (bound {})", figure(*value), figure(*bound))
}

/// A verdict as a headline: `DP2 has more work than its peers`.
pub fn verdict_kind(verdict: &VerdictNote) -> String {
    let rank = verdict.rank.as_ref().map_or_else(|| "a rank".into(), rank_name);
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
