//! The cause of what fires is there within ten seconds, without a capture.

use std::io::Read as _;
use std::time::Duration;

use crate::support::watch::core;
use flate2::read::MultiGzDecoder;
use skewtrap::demo::incident;
use skewtrap_core::cause::{CauseKind, Certainty, LOOKS};
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::watch::{Effect, Event, Mode, TICK};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

const SOON: Duration = Duration::from_secs(10);

fn unpacked(packed: &[u8]) -> String {
    let mut text = String::new();
    MultiGzDecoder::new(packed).read_to_string(&mut text).expect("a whole recording");
    text
}

/// The recorded incident as it arrived: its log, and its loads where they are wanted too.
fn arrivals(with_loads: bool) -> Vec<(Time, Observation)> {
    let (target, log, loads) = (TargetId(0), SourceId(1), SourceId(0));
    let mut all = Vec::new();
    for line in unpacked(include_bytes!("../../../src/demo/data/server.stamped.log.gz")).split_inclusive('\n')
    {
        let (at, line) = line.split_once('\t').expect("a stamped line");
        let at = Time::from_epoch_s(at.parse().expect("an arrival"));
        let lines = line.as_bytes().to_vec();
        all.push((at, Observation::Lines { target, source: log, lines, arrival: Arrival::Live(at) }));
    }
    if with_loads {
        for line in unpacked(include_bytes!("../../../src/demo/data/loads.jsonl.gz")).lines() {
            let page: serde_json::Value = serde_json::from_str(line).expect("an answer");
            let at = Time::from_epoch_s(page["t"].as_f64().expect("its time"));
            let body = page["body"].to_string().into_bytes();
            all.push((at, Observation::Loads { target, source: loads, body, at }));
        }
    }
    all.sort_by_key(|(at, _)| *at);
    all
}

#[test]
fn the_demos_incident_has_its_named_cause_within_ten_seconds_of_the_firing_and_without_a_window() {
    for with_loads in [false, true] {
        let mut watch = core(None, Mode::Live, Time::from_epoch_s(incident::BEGIN));
        let (mut effects, mut fired): (Vec<Effect>, Option<Time>) = (Vec::new(), None);
        for (at, seen) in arrivals(with_loads) {
            while at.since(watch.now()) > TICK {
                watch.handle(Event::Tick, watch.now() + TICK, &mut effects);
            }
            watch.handle(Event::Observed(seen), at, &mut effects);
            let is_onset = |e: &Effect| matches!(e, Effect::Changed { change, .. } if change.is_onset());
            if fired.is_none() && effects.iter().any(is_onset) {
                fired = Some(at);
            }
            if fired.is_some_and(|fired| at.since(fired) >= SOON) {
                break;
            }
        }
        let opened = effects.iter().any(|e| matches!(e, Effect::Start { .. }));
        assert!(!opened, "no facts of a server are known, so no window opens");
        let now = watch.now();
        let incidents = watch.status(now).incidents;
        let [first] = &incidents[..] else { panic!("one trouble is one incident: {incidents:#?}") };
        assert_eq!(first.finding.rank, Rank::dp(2).labels());
        let cause = first.cause.as_ref().expect("it was looked for");
        assert_eq!(
            (cause.kind, cause.certainty),
            (CauseKind::MoreRequests, Certainty::Likely),
            "with loads: {with_loads}: {cause:#?}"
        );
        assert!(cause.at.since(first.fired_at) <= SOON, "{cause:#?}");
        assert!(cause.explains.is_some_and(|share| share >= 0.8), "{cause:#?}");
    }
}

#[test]
fn a_replay_looks_for_the_cause_as_often_as_a_live_agent_does() {
    let mut watch = core(None, Mode::Replay, Time::from_epoch_s(incident::BEGIN));
    let mut effects = Vec::new();
    for (at, seen) in arrivals(true) {
        watch.observe(&seen, at, &mut effects);
    }
    let stored = effects.iter().filter_map(|e| match e {
        Effect::Store { incident } => Some(incident),
        _ => None,
    });
    let looks: Vec<Duration> =
        stored.filter_map(|i| i.cause.as_ref().map(|cause| cause.at.since(i.fired_at))).collect();
    assert!(looks.iter().any(|after| *after >= LOOKS[2] && *after <= SOON), "{looks:?}");
}
