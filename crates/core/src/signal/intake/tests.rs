//! What the intake makes of the sources' observations.

use super::*;
use crate::signal::catalog::{self, Catalog, Kind, UserSignal};
use crate::signal::store::Bounds;

fn steps(intake: &mut Intake, store: &mut SignalStore, observations: &[Observation]) -> Vec<String> {
    let mut dated = Vec::new();
    for observation in observations {
        intake.take(observation, store, |_, at, step| {
            let text = match step {
                IntakeStep::Due => return,
                IntakeStep::Problem { problem: Some(p), .. } => p.to_string(),
                IntakeStep::Stamps { disagreement, .. } => {
                    disagreement.unwrap_or_else(|| "as they arrive".into())
                }
                IntakeStep::Read { rank, report, fields, .. } => {
                    format!("{rank} {report:?} {}", fields.len())
                }
                IntakeStep::Profile { rank, profile, .. } => format!("{rank} {profile:?}"),
                IntakeStep::Fatal { text, .. } => String::from_utf8_lossy(text).into_owned(),
                other => format!("{other:?}"),
            };
            dated.push(format!("{:.1} {text}", at.epoch_s() % 1000.0));
        });
    }
    dated
}

#[test]
fn a_problem_whose_words_differ_each_time_is_told_once() {
    let mut store = SignalStore::new(Arc::default(), Bounds::default());
    let target = store.add_target("server".into(), None);
    let mut intake = Intake::new(TimeZone::UTC);
    let loads = |body: &str, s: f64| Observation::Loads {
        target,
        source: SourceId(1),
        body: body.into(),
        at: Time::from_epoch_s(s),
    };
    let cut_short = [loads("{\"a", 1.0), loads("{\"a\": [", 2.0), loads("{\"a\": [1, 2", 3.0)];
    let taken = steps(&mut intake, &mut store, &cut_short);
    let reported = taken.iter().filter(|s| !s.contains("Recorded")).count();
    assert_eq!(reported, 1, "{taken:?}");
}

#[test]
fn a_problem_is_told_once_and_its_end_once() {
    let mut store = SignalStore::new(Arc::default(), Bounds::default());
    let target = store.add_target("server".into(), None);
    let mut intake = Intake::new(TimeZone::UTC);
    intake.name_source(SourceId(1), "http://x/metrics".into());
    let page = |body: &[u8], s: f64| Observation::Page {
        target,
        source: SourceId(1),
        body: body.to_vec(),
        at: Time::from_epoch_s(s),
    };
    let html = b"<html>502</html>";
    let taken = steps(
        &mut intake,
        &mut store,
        &[page(html, 1.0), page(html, 2.0), page(b"up 1\n", 3.0), page(b"up 1\n", 4.0)],
    );
    let taken: Vec<_> = taken.into_iter().filter(|s| !s.contains("Recorded")).collect();
    assert_eq!(
        taken,
        [
            "1.0 http://x/metrics: it answered with an HTML page, not with metrics; a proxy or a login page may stand in between",
            "3.0 Problem { target: TargetId(0), source: SourceId(1), name: \"http://x/metrics\", problem: None }",
        ]
    );
    assert_eq!(intake.counts(), Counts { pages: 4, bad: 2, ..Counts::default() });
}

#[test]
fn lines_become_samples_facts_and_the_users_own_signals() {
    let mut catalog = Catalog::default();
    let own = UserSignal { name: "wait_ms".into(), unit: "ms".into(), kind: Kind::Gauge };
    let wait = catalog.define(own).expect("a new name");
    let mut store = SignalStore::new(Arc::new(catalog), Bounds::default());
    let target = store.add_target("server".into(), None);
    let mut intake = Intake::new(TimeZone::UTC);
    let pattern = Pattern::new(wait, r"waited (?<value>\d+) ms").expect("a pattern");
    intake.set_own(UserSignals { patterns: vec![pattern], ..UserSignals::default() });
    let lines = b"[2026-11-24 03:48:06 DP2] Decode batch, #running-req: 4, #queue-req: 1\n\
        [2026-11-24 03:48:07 DP2] Stop profiling...\n\
        [2026-11-24 03:48:08 DP1] Scheduler hit an exception: x\n\
        [2026-11-24 03:48:09 DP1] request waited 70 ms\nlast without newline";
    let observation =
        Observation::Lines { target, source: SourceId(0), lines: lines.to_vec(), arrival: Arrival::Recorded };
    assert_eq!(
        steps(&mut intake, &mut store, &[observation]),
        [
            "86.0 DP2 Decode 2",
            "86.0 Recorded",
            "87.0 DP2 Stopping { stage: None }",
            "88.0 Scheduler hit an exception: x",
            "89.0 Recorded",
        ]
    );
    assert_eq!((intake.counts().lines, intake.counts().batch_lines), (5, 1));
    let everything = Default::default();
    let values: Vec<_> = store
        .series_since(&everything, Time::default())
        .into_iter()
        .flat_map(|s| s.samples.into_iter().map(move |(_, value)| (s.signal, s.rank.to_string(), value)))
        .collect();
    assert!(values.contains(&(catalog::LOAD, "DP2".into(), 5.0)), "{values:?}");
    assert!(values.contains(&(wait, "DP1".into(), 70.0)), "{values:?}");
}

#[test]
fn a_line_that_was_cut_is_read_to_its_bound_and_counted_as_dropped_by_its_source() {
    let mut store = SignalStore::new(Arc::default(), Bounds::default());
    let target = store.add_target("server".into(), None);
    let mut intake = Intake::new(TimeZone::UTC);
    let mut line = b"[2026-11-24 03:48:06 DP2] Decode batch, #running-req: 4, #queue-req: 1, x: ".to_vec();
    line.resize(MAX_LINE, b'y');
    let mut lines_of = |length: usize, at: f64| {
        let mut lines = line.clone();
        lines.resize(length, b'y');
        lines.push(b'\n');
        let arrival = Arrival::Live(Time::from_epoch_s(at));
        let lines = Observation::Lines { target, source: SourceId(0), lines, arrival };
        steps(&mut intake, &mut store, &[lines]);
        (intake.stats_of(SourceId(0)).dropped, intake.counts().batch_lines)
    };
    assert_eq!(lines_of(MAX_LINE, 1_795_492_086.0), (0, 1));
    assert_eq!(lines_of(MAX_LINE + 1, 1_795_492_087.0), (1, 2));
}

#[test]
fn stamps_of_a_wrong_zone_are_told_once_and_their_end_once_and_a_log_may_have_a_zone_of_its_own() {
    let mut store = SignalStore::new(Arc::default(), Bounds::default());
    let target = store.add_target("server".into(), None);
    let mut intake = Intake::new(TimeZone::UTC);
    let told = |intake: &mut Intake, store: &mut SignalStore, source: u16| {
        let lines = |stamp: &str, s: f64| Observation::Lines {
            target,
            source: SourceId(source),
            lines: format!("[2026-11-24 {stamp} DP0 TP0] Decode batch, #running-req: 4, #queue-req: 0\n")
                .into_bytes(),
            arrival: Arrival::Live(Time::from_epoch_s(s)),
        };
        // An hour late, twice, and right in the end.
        let seen = [
            lines("03:48:06", 1_795_495_686.2),
            lines("03:48:07", 1_795_495_687.2),
            lines("04:48:08", 1_795_495_688.2),
        ];
        steps(intake, store, &seen).into_iter().filter(|s| s.contains("arrive")).collect::<Vec<_>>()
    };
    let [began, over] = &told(&mut intake, &mut store, 0)[..] else { panic!("it was not told twice") };
    assert!(began.contains("stamped 1 h before they arrive") && began.contains("`zone`"), "{began}");
    assert!(over.contains("as they arrive"), "{over}");
    intake.set_zone(SourceId(1), TimeZone::fixed(jiff::tz::offset(-1)));
    let of_its_own = told(&mut intake, &mut store, 1);
    assert!(
        of_its_own[0].contains("stamped 1 h after they arrive"),
        "its zone was right until then: {of_its_own:?}"
    );
}
