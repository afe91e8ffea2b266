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
use skewtrap::decide::rule::Rule;
use skewtrap::decide::signal::catalog::Catalog;
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
    cleared: usize,
    /// The words of the states that the rule went through.
    states: Vec<&'static str>,
}

fn loaded(text: &str) -> (Vec<Rule>, Arc<Catalog>) {
    let catalog = Arc::new(Catalog::default());
    let names: Vec<&str> = catalog.names().collect();
    let of = |name: &str| catalog.signal_named(name);
    let signals = Signals { of: &of, names: &names };
    let loaded = rules::load([("rule", text)], signals, &CaptureSpec::Http(default_http()));
    assert!(loaded.is_ok(), "{:?}", loaded.diagnostics);
    (loaded.rules.into_iter().map(|c| c.rule).collect(), catalog)
}

impl Play {
    fn new() -> Self {
        let (rules, catalog) = loaded(RULE);
        let name: Arc<str> = "server".into();
        let setup = Setup {
            rules,
            catalog,
            patterns: Vec::new(),
            sources: vec![(SourceId(0), "loads".into())],
            targets: vec![WatchedTarget { name: name.clone(), role: None, group: name, sees_log: true }],
            policy: Policy::default(),
            ledger: Ledger::default(),
            zone: TimeZone::UTC,
            mode: Mode::Live,
        };
        let watch = Watch::new(setup, at(0.0));
        Self { watch, starts: 0, refusals: 0, cleared: 0, states: Vec::new() }
    }

    fn tell(&mut self, event: Event, now: f64) {
        let mut effects = Vec::new();
        self.watch.handle(event, at(now), &mut effects);
        for effect in effects {
            match effect {
                Effect::Start { .. } => self.starts += 1,
                Effect::Notify { update: Update::Refused, .. } => self.refusals += 1,
                Effect::Cleared { .. } => self.cleared += 1,
                Effect::Changed { change, .. } => self.states.push(change.state.word()),
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

    /// The configuration is read again.
    fn reload(&mut self, text: &str, now: f64) {
        let (rules, catalog) = loaded(text);
        self.tell(Event::Reloaded { rules, catalog, patterns: Vec::new() }, now);
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
fn a_rule_that_still_detects_the_same_keeps_its_firing_over_a_reload() {
    let mut play = Play::new();
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    assert_eq!(play.states, ["firing"]);
    play.reload(
        &RULE.replace("{ name: skew,", "{ name: skew, about: Told better., severity: critical,"),
        2.0,
    );
    play.second(3.0, [40, 4]);
    assert_eq!((&play.states[..], play.starts, play.cleared), (&["firing"][..], 1, 0), "the same firing");
    play.second(4.0, [20, 20]);
    play.second(6.0, [20, 20]);
    assert_eq!((&play.states[..], play.cleared), (&["firing", "idle"][..], 1));
}

#[test]
fn a_rule_that_detects_something_else_or_is_gone_begins_anew_and_its_incident_ends() {
    let mut play = Play::new();
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    play.reload(&RULE.replace("max_over_mean: 1.2", "max_over_mean: 3"), 2.0);
    play.second(3.0, [40, 4]);
    assert_eq!((&play.states[..], play.cleared), (&["firing", "idle"][..], 1));
    let mut play = Play::new();
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    play.reload(&RULE.replace("name: skew", "name: other"), 2.0);
    assert_eq!(play.cleared, 1);
}
