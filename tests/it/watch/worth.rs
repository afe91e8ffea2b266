//! The impact decides whether a window is spent on a trouble of factors.

use std::fmt::Write as _;
use std::ops::Range;

use crate::support::watch::core;
use skewtrap_core::capture::refusal::Reason;
use skewtrap_core::rule::{ChangeKind, RuleState};
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::watch::{Effect, Mode};
use skewtrap_trace::time::Time;

const RULE: &str = "rules:\n  - { name: share, signal: load, trigger: { factors: share } }\n";
const START: f64 = 1_795_478_400.0;

/// What is reported of four ranks of which DP2 is sent four times its share from second 200 to 200 +
/// `seconds`, while it runs `running` requests and the others 20.
fn told(seconds: u32, running: u32) -> Vec<(f64, RuleState, ChangeKind, &'static str, Option<String>)> {
    told_of(std::slice::from_ref(&(200..200 + seconds)), running)
}

/// The same with the seconds of several troubles.
fn told_of(
    troubles: &[Range<u32>],
    running: u32,
) -> Vec<(f64, RuleState, ChangeKind, &'static str, Option<String>)> {
    let mut text = String::new();
    for s in 0..troubles.last().map_or(0, |last| last.end + 40) {
        let is_trouble = troubles.iter().any(|trouble| trouble.contains(&s));
        let mut lines = Vec::new();
        for rank in 0..4 {
            let is_it = rank == 2 && is_trouble;
            let (n, running) = if is_it { (32, running) } else { (8, 20) };
            for i in 0..n {
                let at = f64::from(s) + (f64::from(i) + 0.5) / f64::from(n);
                let tokens = 300 + 50 * ((s * 7 + i * 3 + rank) % 11);
                lines.push((at, format!("DP{rank}] Prefill batch, #new-seq: 1, #new-token: {tokens}, #cached-token: 0, #running-req: {running}, #queue-req: 0")));
            }
            let at = f64::from(s) + 0.97;
            lines.push((at, format!("DP{rank}] Decode batch, #running-req: {running}, #token: 20000, gen throughput (token/s): 1200.0, #queue-req: 0")));
        }
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (at, line) in lines {
            let (minute, second) = (s / 60, s % 60);
            writeln!(text, "{:.4}\t[2026-11-24 00:{minute:02}:{second:02} {line}", START + at)
                .expect("a string");
        }
    }
    let (mut watch, mut effects) = (core(Some(RULE), Mode::Replay, Time::default()), Vec::new());
    let (target, source) = (TargetId(0), SourceId(0));
    let seen = Observation::Lines { target, source, lines: text.into_bytes(), arrival: Arrival::Recorded };
    watch.observe(&seen, Time::default(), &mut effects);
    let changed = effects.into_iter().filter_map(|e| match e {
        Effect::Changed { change, capture, why } if change.state == RuleState::Firing => {
            Some((change.at.epoch_s() - START, change.state, change.how, capture.word(), why))
        }
        Effect::Refused { reason, .. } => {
            assert!(
                matches!(reason, Reason::LittleImpact | Reason::Cleared | Reason::Cooldown),
                "{reason:?}"
            );
            None
        }
        _ => None,
    });
    changed.collect()
}

#[test]
fn a_trouble_with_an_impact_on_many_requests_is_worth_a_window_a_moment_after_it_fired() {
    let told = told(60, 60);
    let [fired, weighed] = &told[..] else { panic!("{told:?}") };
    assert_eq!((fired.2, fired.3), (ChangeKind::Entered, "undecided"));
    assert_eq!((weighed.2, weighed.3), (ChangeKind::Weighed, "would_start"));
    assert!((2.0..4.0).contains(&(weighed.0 - fired.0)), "{told:?}");
}

#[test]
fn a_trouble_with_hardly_an_impact_is_told_and_opens_nothing() {
    let told = told(60, 20);
    let [fired, weighed] = &told[..] else { panic!("{told:?}") };
    assert_eq!((fired.3, weighed.3), ("undecided", "refused"));
    assert!(weighed.4.as_ref().is_some_and(|why| why.contains("min_impact")), "{told:?}");
}

#[test]
fn a_trouble_while_the_rule_cools_down_is_refused_in_its_first_message() {
    let told = told_of(&[200..230, 300..340], 60);
    let [_, before, fired] = &told[..] else { panic!("{told:?}") };
    assert_eq!((before.2, before.3), (ChangeKind::Weighed, "would_start"), "{told:?}");
    assert_eq!((fired.2, fired.3), (ChangeKind::Entered, "refused"), "{told:?}");
    assert!(fired.4.as_ref().is_some_and(|why| why.contains("cools down")), "{told:?}");
}
