//! The shipped rules over recordings of real servers, through the same core that runs live.
//!
//! The recordings lie beside a working copy of the project (`../shared`), not in it; without them
//! these tests say so and pass.

use std::sync::Arc;

use jiff::tz::TimeZone;
use skewtrap::config::rules;
use skewtrap::observe::replay::{Format, Input, Replay};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::capture::admit::Policy;
use skewtrap_core::capture::governor::Ledger;
use skewtrap_core::finding::Side;
use skewtrap_core::rule::{Change, RuleState};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::observation::SourceId;
use skewtrap_core::signal::sample::{Source, TargetId};
use skewtrap_core::signal::source::WatchedSource;
use skewtrap_core::watch::{Effect, Mode, Setup, Watch, WatchedTarget};
use skewtrap_trace::time::Time;

use crate::beside::recording;

/// What the rules told of a recording of one server, as `skewtrap replay` plays it.
fn replayed(format: Format, path: &str) -> Option<Vec<Change>> {
    let file = recording(path)?;
    let catalog = Catalog::default();
    let starved = rules::preset("starved-rank").expect("it is shipped");
    let more = rules::load([(starved.name, starved.text)], &catalog, &CaptureSpec::None);
    let mut loaded = rules::shipped(&catalog, &CaptureSpec::None);
    assert!(loaded.is_ok() && more.is_ok(), "{:?}", loaded.diagnostics);
    loaded.rules.extend(more.rules);
    let kind = match format {
        Format::Log => Source::Log,
        Format::Metrics => Source::Metrics,
        Format::Loads => Source::Loads,
    };
    let (target, source, server): (_, _, Arc<str>) = (TargetId(0), SourceId(0), "server".into());
    let setup = Setup {
        rules: loaded.rules.into_iter().map(|c| c.rule).collect(),
        catalog: Arc::new(catalog),
        own: Default::default(),
        pages: Vec::new(),
        sources: vec![WatchedSource { id: source, target, kind, name: path.into(), zone: None }],
        targets: vec![WatchedTarget { name: server.clone(), role: None, group: server, sees_log: true }],
        policy: Policy::default(),
        ledger: Ledger::default(),
        zone: TimeZone::UTC,
        mode: Mode::Replay,
    };
    let (mut watch, mut effects) = (Watch::new(setup, Time::default()), Vec::new());
    let input = Input { format, path: file, target, source };
    let mut replay = Replay::open(&[input], &TimeZone::UTC).expect("it can be read");
    while let Some(seen) = replay.next_observation().expect("it can be read") {
        watch.observe(&seen, seen.at().unwrap_or_default(), &mut effects);
    }
    let change = |effect| match effect {
        Effect::Changed { change, .. } if change.is_transition() => Some(*change),
        _ => None,
    };
    Some(effects.into_iter().filter_map(change).collect())
}

fn told(changes: &[Change]) -> String {
    changes.iter().map(|c| serde_json::to_string(&c.line("none", None)).expect("a line") + "\n").collect()
}

/// What must be true of the recorded incident on the four ranks, from whichever source.
/// `over` is the second from which on nothing fires any more.
fn check_dp4(changes: &[Change], over: f64) {
    let skew = 1_795_492_121.33;
    println!("{}", told(changes));
    let early: Vec<_> = changes
        .iter()
        .filter(|c| c.state == RuleState::Firing && c.at.epoch_s() < skew)
        .map(|c| c.rule.name.clone())
        .collect();
    assert!(early.is_empty(), "fired before the skew: {early:?}");
    let fired = changes
        .iter()
        .find(|c| &*c.rule.name == "dp-load-skew" && c.state == RuleState::Firing)
        .expect("the skew is found");
    let finding = fired.finding.as_ref().expect("a firing has a finding");
    assert!(fired.at.epoch_s() - skew <= 8.0, "too late: {}", fired.at.epoch_s() - skew);
    assert_eq!(finding.rank.to_string(), "dp_rank=2");
    assert!((finding.onset.epoch_s() - skew).abs() <= 2.0, "onset {}", finding.onset.epoch_s() - skew);
    let state_at = |t: f64| {
        let of_rule = changes.iter().filter(|c| &*c.rule.name == "dp-load-skew");
        of_rule.take_while(|c| c.at.epoch_s() <= t).last().map(|c| c.state)
    };
    // The router was even again at 143.7 s, which ends the trouble; what DP2 had by then kept it busy until 168 s
    // and fires nothing. By loads alone arrivals are only inferred, and the trouble goes on while its load does.
    for t in [130.0, 145.0, 155.0] {
        assert_eq!(state_at(1_795_492_000.0 + t), Some(RuleState::Firing), "at ...{t}");
    }
    for t in [over, 180.0, 197.0] {
        assert_eq!(state_at(1_795_492_000.0 + t), Some(RuleState::Idle), "at ...{t}");
    }
    // A profile of somebody else's stops all ranks, at 199 s for nine seconds, and again at 213 s: no rank's trouble.
    let later = |c: &&Change| c.at.epoch_s() > 1_795_492_197.0 && c.state == RuleState::Firing;
    let later: Vec<_> = changes.iter().filter(later).map(|c| (c.rule.name.clone(), c.at.epoch_s())).collect();
    assert!(later.is_empty(), "fired after the skew: {later:?}");
    let starved = changes.iter().find(|c| &*c.rule.name == "starved-rank" && c.state == RuleState::Firing);
    assert!(starved.is_none(), "DP2 is overloaded, nobody is starved: {starved:?}");
}

#[test]
fn the_recorded_skew_is_found_from_the_loads_alone() {
    let Some(changes) = replayed(Format::Loads, "sglang-0.5.16-dp4/loads.jsonl.gz") else { return };
    check_dp4(&changes, 175.0);
}

#[test]
fn the_recorded_skew_is_found_from_the_log_alone() {
    let Some(changes) = replayed(Format::Log, "sglang-0.5.16-dp4/server.stamped.log.gz") else { return };
    check_dp4(&changes, 165.0);
}

#[test]
fn the_recorded_skew_is_found_from_the_metrics_alone() {
    let Some(changes) = replayed(Format::Metrics, "sglang-0.5.16-dp4/metrics.txt.gz") else { return };
    check_dp4(&changes, 165.0);
}

#[test]
fn a_starved_rank_is_found_from_the_log_alone() {
    let Some(changes) = replayed(Format::Log, "sglang-0.5.23-cpu-dp2/server.log.gz") else { return };
    println!("{}", told(&changes));
    assert!(
        changes.iter().any(|c| &*c.rule.name == "starved-rank"
            && c.state == RuleState::Firing
            && c.finding.as_ref().is_some_and(|f| f.rank.to_string() == "dp_rank=0" && f.side == Side::Low)),
        "the starvation of DP0 went unseen"
    );
}
