//! The core through its one door: what it does with a wish for a window.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::json;
use skewtrap::config::capture::default_http;
use skewtrap::config::rule::Signals;
use skewtrap::config::rules;
use skewtrap::decide::capture::CaptureSpec;
use skewtrap::decide::capture::admit::Policy;
use skewtrap::decide::capture::facts::{Answered, ServerFacts};
use skewtrap::decide::capture::governor::Ledger;
use skewtrap::decide::incident::Incident;
use skewtrap::decide::signal::catalog::Catalog;
use skewtrap::decide::signal::log_reader::Arrival;
use skewtrap::decide::signal::observation::{Observation, SourceId};
use skewtrap::decide::signal::sample::TargetId;
use skewtrap::decide::time::Time;
use skewtrap::decide::watch::{Effect, Event, Mode, ServerFact, Setup, Watch, WatchedTarget};
use skewtrap::explain::message::Update;

const RULE: &str = "rules:\n  - { name: skew, signal: load, trigger: { max_over_mean: 1.2, for: 0s }, clear: { max_over_mean: 1.1, for: 1s } }\n";

fn at(s: f64) -> Time {
    Time::from_epoch_s(1_795_492_000.0 + s)
}

struct Play {
    watch: Watch,
    starts: usize,
    refusals: usize,
    /// What people were told, in order.
    told: Vec<Update>,
    fired: Option<Incident>,
}

impl Play {
    fn new() -> Self {
        let catalog = Arc::new(Catalog::default());
        let names: Vec<&str> = catalog.names().collect();
        let of = |name: &str| catalog.signal_named(name);
        let loaded = rules::load(
            [("rule", RULE)],
            Signals { of: &of, names: &names },
            &CaptureSpec::Http(default_http()),
        );
        assert!(loaded.is_ok(), "{:?}", loaded.diagnostics);
        let name: Arc<str> = "server".into();
        let setup = Setup {
            rules: loaded.rules.into_iter().map(|c| c.rule).collect(),
            catalog: catalog.clone(),
            patterns: Vec::new(),
            sources: vec![(SourceId(0), "loads".into())],
            targets: vec![WatchedTarget { name: name.clone(), role: None, group: name, sees_log: true }],
            policy: Policy::default(),
            ledger: Ledger::default(),
            zone: TimeZone::UTC,
            mode: Mode::Live,
        };
        Self { watch: Watch::new(setup, at(0.0)), starts: 0, refusals: 0, told: Vec::new(), fired: None }
    }

    fn tell(&mut self, event: Event, now: f64) {
        let mut effects = Vec::new();
        self.watch.handle(event, at(now), &mut effects);
        for effect in effects {
            match effect {
                Effect::Start { .. } => self.starts += 1,
                Effect::Notify { update, incident, .. } => {
                    self.refusals += usize::from(update == Update::Refused);
                    self.told.push(update);
                    self.fired.get_or_insert(*incident);
                }
                _ => {}
            }
        }
    }

    /// The loads of two ranks, and a tick.
    fn second(&mut self, now: f64, loads: [u32; 2]) {
        let rank = |dp: usize| json!({"timestamp": at(now).epoch_s(), "dp_rank": dp, "num_running_reqs": loads[dp], "num_waiting_reqs": 0});
        let body = json!({"version": "0.5.16", "loads": [rank(0), rank(1)]}).to_string().into_bytes();
        let seen = Observation::Loads { target: TargetId(0), source: SourceId(0), body, at: at(now) };
        self.tell(Event::Observed(seen), now);
        self.tell(Event::Tick, now + 0.3);
    }

    /// A log line of each of the two ranks, and a tick.
    fn lines(&mut self, now: f64, loads: [u32; 2]) {
        let stamp =
            jiff::Timestamp::from_nanosecond(i128::from(at(now).nanos())).expect("a time of this century");
        let line = |dp: usize| {
            let (stamp, running) = (stamp.strftime("%Y-%m-%d %H:%M:%S"), loads[dp]);
            format!(
                "[{stamp} DP{dp}] Decode batch, #running-req: {running}, #token: 100, token usage: 0.1, gen throughput (token/s): 9.0, #queue-req: 0\n"
            )
        };
        let lines = (line(0) + &line(1)).into_bytes();
        let (target, source, arrival) = (TargetId(0), SourceId(0), Arrival::Live(at(now)));
        self.tell(Event::Observed(Observation::Lines { target, source, lines, arrival }), now);
        self.tell(Event::Tick, now + 0.3);
    }

    fn facts(&mut self, now: f64) {
        let info = ServerFacts::of_server_info(&json!({"version": "0.5.16", "dp_size": 2}));
        for fact in [ServerFact::Info(info), ServerFact::Health(Answered::Well(Duration::from_millis(5)))] {
            self.tell(Event::Server { target: TargetId(0), fact }, now);
        }
    }
}

#[test]
fn a_wish_that_came_before_the_facts_is_granted_once_when_they_are_there() {
    let mut play = Play::new();
    play.second(1.0, [40, 4]);
    assert_eq!((play.starts, play.refusals), (0, 1), "nothing is known of the server yet");
    play.second(2.5, [40, 4]);
    assert_eq!((play.starts, play.refusals), (0, 1), "refused again, told once");
    play.facts(3.0);
    play.second(4.0, [40, 4]);
    play.second(6.0, [40, 4]);
    assert_eq!((play.starts, play.refusals), (1, 1));
}

#[test]
fn a_wish_whose_rule_cleared_before_the_facts_came_opens_nothing() {
    let mut play = Play::new();
    play.second(1.0, [40, 4]);
    for s in 2..8 {
        play.second(f64::from(s), [20, 20]);
    }
    play.facts(8.5);
    play.second(9.0, [20, 20]);
    assert_eq!((play.starts, play.refusals), (0, 1));
}

#[test]
fn facts_that_come_more_than_a_minute_late_find_nobody_waiting() {
    let mut play = Play::new();
    for s in 1..70 {
        play.second(f64::from(s), [40, 4]);
    }
    play.facts(70.0);
    play.second(71.0, [40, 4]);
    play.second(73.0, [40, 4]);
    assert_eq!((play.starts, play.refusals), (0, 1));
}

#[test]
fn what_fired_is_told_before_that_its_window_was_refused() {
    let mut play = Play::new();
    play.second(1.0, [40, 4]);
    assert_eq!(play.told, [Update::Fired, Update::Refused]);
}

#[test]
fn an_incident_bears_the_line_that_was_printed_next_to_its_onset() {
    let mut play = Play::new();
    for s in 0..40 {
        play.lines(f64::from(s), [10, 10]);
    }
    for s in 40..60 {
        play.lines(f64::from(s), [60, 10]);
    }
    let finding = play.fired.expect("it fired").finding;
    let shown = finding.shown_by.expect("there were samples");
    assert!(
        shown.at.since(finding.onset).as_secs_f64() <= 1.0
            && finding.onset.since(shown.at).as_secs_f64() <= 1.0
    );
    let line = shown.line.expect("it came from a log");
    assert!(
        line.starts_with("[2026-11-24 ") && line.contains(" DP0] Decode batch, #running-req: "),
        "{line}"
    );
}

#[test]
fn an_incident_of_polled_loads_bears_the_sample_alone() {
    let mut play = Play::new();
    play.second(1.0, [40, 4]);
    let shown = play.fired.expect("it fired").finding.shown_by.expect("there was a sample");
    assert_eq!((shown.value, shown.source.word(), shown.line), (40.0, "loads", None));
}
