//! What the core does with a request for a window.

use std::time::Duration;

use std::collections::BTreeSet;
use std::io::Read as _;

use crate::support::watch::{Play, RULE, at, core, core_on, loads};
use flate2::read::MultiGzDecoder;
use skewtrap_core::capture::facts::ServerFacts;
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::incident::IncidentState;
use skewtrap_core::message::{Message, Origin, Update, utc};
use skewtrap_core::rule::RuleState;
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, Problem, SourceId};
use skewtrap_core::signal::sample::{Source, TargetId};
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::Silence;
use skewtrap_core::watch::{Effect, Event, LONGEST_COMPARISON, Mode, ServerFact, TICK};
use skewtrap_trace::time::Time;

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
fn an_incident_whose_window_was_refused_has_its_bundle_as_soon_as_it_was_begun() {
    let mut play = Play::new();
    play.second(1.0, [40, 4]);
    let bundle = |play: &Play| play.watch.status(at(2.0)).incidents[0].bundle.clone();
    assert_eq!((play.refusals, bundle(&play)), (1, None));
    let incident = play.told_of.keys().next().expect("it was told").clone();
    play.tell(Event::Bundled { incident, path: "/data/i1".into() }, 1.5);
    assert_eq!(bundle(&play).as_deref(), Some("/data/i1"));
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
fn samples_that_came_too_soon_after_others_are_looked_at_as_soon_as_they_may_be() {
    let mut play = Play::new();
    play.tell(Event::Observed(loads(at(1.0), [20, 20])), 1.0);
    assert_eq!(play.watch.due(), None);
    // Its rule fires at once, and is looked at more often than others.
    let interval = Duration::from_millis(15);
    play.tell(Event::Observed(loads(at(1.005), [40, 4])), 1.005);
    assert_eq!(play.watch.due(), Some(at(1.0) + interval));
    play.tell(Event::Tick, 1.01);
    assert!(!play.states.contains(&"firing"), "{:?}", play.states);
    play.tell(Event::Tick, 1.0 + interval.as_secs_f64() + 0.001);
    assert!(play.states.contains(&"firing"), "{:?}", play.states);
    assert_eq!(play.watch.due(), None);
}

#[test]
fn what_fires_anew_after_a_long_gap_has_no_onset_before_it() {
    let mut watch = core(Some(RULE), Mode::Live, at(0.0));
    let mut effects = Vec::new();
    let mut see = |from: u32, until: u32, is_there: bool| {
        for now in (from..until).map(|s| at(f64::from(s))) {
            if is_there {
                watch.handle(Event::Observed(loads(now, [40, 4])), now, &mut effects);
            }
            watch.handle(Event::Tick, now + TICK, &mut effects);
        }
    };
    see(1, 60, true);
    see(60, 720, false);
    see(720, 780, true);
    let onsets: Vec<Time> = effects
        .iter()
        .filter_map(|e| match e {
            Effect::Changed { change, .. } if change.is_onset() => Some(change.finding.as_ref()?.onset),
            _ => None,
        })
        .collect();
    assert_eq!(onsets.len(), 2, "{onsets:?}");
    assert!(onsets[1] >= at(720.0), "{onsets:?}");
}

/// The log of a real server whose DP2 is overloaded, each line after its arrival and a tab.
fn recorded_log() -> Vec<u8> {
    let mut log = Vec::new();
    let packed = &include_bytes!("../../../src/demo/data/server.stamped.log.gz")[..];
    MultiGzDecoder::new(packed).read_to_end(&mut log).expect("a whole recording");
    log
}

fn lines(lines: &[u8], arrival: Arrival) -> Observation {
    Observation::Lines { target: TargetId(0), source: SourceId(0), lines: lines.to_vec(), arrival }
}

/// Everything that a recording, cut into pieces of about so many bytes, makes the core do.
fn replayed(log: &[u8], about: usize) -> Vec<Effect> {
    let (mut watch, mut effects) = (core(None, Mode::Replay, Time::default()), Vec::new());
    let mut rest = log;
    while !rest.is_empty() {
        let from = about.min(rest.len()) - 1;
        let end = rest[from..].iter().position(|b| *b == b'\n').map_or(rest.len(), |n| from + n + 1);
        let seen = lines(&rest[..end], Arrival::Recorded);
        watch.observe(&seen, Time::default(), &mut effects);
        rest = &rest[end..];
    }
    effects
}

/// The same, as it happened: each line when it arrived, and a tick every 250 ms.
fn lived(log: &[u8]) -> Vec<Effect> {
    let (mut watch, mut effects) = (None, Vec::new());
    for line in log.split_inclusive(|b| *b == b'\n') {
        let tab = line.iter().position(|b| *b == b'\t').expect("a stamped line");
        let epoch = std::str::from_utf8(&line[..tab]).ok().and_then(|t| t.parse().ok());
        let at = Time::from_epoch_s(epoch.expect("an arrival"));
        let watch = watch.get_or_insert_with(|| core(None, Mode::Live, at));
        while at.since(watch.now()) > TICK {
            watch.handle(Event::Tick, watch.now() + TICK, &mut effects);
        }
        watch.handle(Event::Observed(lines(&line[tab + 1..], Arrival::Live(at))), at, &mut effects);
    }
    effects
}

/// Every firing and its end: when, of which rule, and whom it blames.
fn firings(effects: &[Effect]) -> Vec<(Time, String)> {
    let mut open = BTreeSet::new();
    let mut found = Vec::new();
    for effect in effects {
        let Effect::Changed { change, .. } = effect else { continue };
        if !change.is_transition() {
            continue;
        }
        let rule = change.rule.name.clone();
        if let Some(finding) = &change.finding {
            found.push((change.at, format!("{rule} blames {} as {}", finding.rank, finding.side.word())));
            open.insert(rule);
        } else if change.state == RuleState::Idle && open.remove(&rule) {
            found.push((change.at, format!("{rule} cleared")));
        }
    }
    found
}

#[test]
fn a_recording_replays_exactly_however_it_is_cut() {
    let log = recorded_log();
    let whole = replayed(&log, log.len());
    assert!(firings(&whole).iter().any(|(_, f)| f == "dp-load-skew blames dp_rank=2 as high"));
    for about in [1, 1_000, 262_144] {
        assert_eq!(format!("{:?}", replayed(&log, about)), format!("{whole:?}"), "cut at {about} bytes");
    }
}

#[test]
fn what_is_found_in_a_recording_is_found_live_within_a_tick_or_two() {
    let log = recorded_log();
    let (lived, replayed) = (firings(&lived(&log)), firings(&replayed(&log, log.len())));
    let what = |found: &[(Time, String)]| found.iter().map(|(_, f)| f.clone()).collect::<Vec<_>>();
    assert_eq!(what(&lived), what(&replayed));
    // The looks fall on other instants: live after every line, in a replay at most every 100 ms.
    for ((live, what), (replay, _)) in lived.iter().zip(&replayed) {
        assert!(live.signed_s_since(*replay).abs() <= 0.5, "{what}: {live}, replayed {replay}");
    }
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

/// Why a rule of this trigger does not fire on these loads.
fn why(trigger: &str, loads: [u32; 2]) -> String {
    let rule = format!("rules:\n  - {{ name: skew, signal: load, trigger: {trigger} }}\n");
    let mut play = Play::of(core(Some(&rule), Mode::Live, at(0.0)));
    play.second(1.0, loads);
    play.second(2.0, loads);
    play.watch.status(at(2.5)).rules[0].groups[0].why.clone()
}

#[test]
fn why_a_rule_does_not_fire_names_the_missing_link_of_each_condition() {
    assert_eq!(
        why("{ any: [{ max_over_mean: 1.5 }, { cv: 0.2, for: 9s }, { lost_share: 0.9 }] }", [26, 14]),
        "none of its conditions holds: max_over_mean(load) is 1.300, not above 1.5; cv(load) 0.300 > 0.2, for 1.5 s of 9.0 s; lost_share(load) is 0.231, not above 0.9"
    );
    assert_eq!(
        why(
            "{ all: [{ max_over_mean: 1.2 }, { cv: 0.5 }, { max_over_mean: 1.25, beyond_chance: 9 }] }",
            [26, 14]
        ),
        "cv(load) is 0.300, not above 0.5; max_over_mean(load) 1.300 > 1.25, but that is 1.9 times what chance explains, not more than 9"
    );
    assert_eq!(
        why("{ any: [{ departure: 5 }, { max_over_mean: 1.5 }] }", [20, 20]),
        "none of its conditions holds: departure(load) learns what is usual in this group, which takes about a minute; max_over_mean(load) is 1.000, not above 1.5"
    );
    assert_eq!(why("{ max_over_mean: 1.5 }", [20, 20]), "max_over_mean(load) is 1.000, not above 1.5");
}

/// A silence of everything.
fn silence(until: f64) -> Event {
    Event::Silenced(Silence { rule: None, target: None, until: at(until), why: None })
}

#[test]
fn what_outlives_a_silence_is_told_when_it_ends_and_what_does_not_never() {
    let mut play = Play::new();
    play.facts(0.5);
    play.tell(silence(5.0), 0.6);
    play.second(1.0, [40, 4]);
    play.second(4.0, [40, 4]);
    assert!(play.told.is_empty(), "{:?}", play.told);
    play.second(5.0, [40, 4]);
    play.second(6.0, [40, 4]);
    assert_eq!((&play.told[..], play.starts), (&[Update::Fired][..], 0), "told once, and not captured late");
    play.second(7.0, [20, 20]);
    play.second(9.0, [20, 20]);
    assert_eq!(play.told, [Update::Fired, Update::Resolved]);

    let mut play = Play::new();
    play.facts(0.5);
    play.tell(silence(9.0), 0.6);
    play.second(1.0, [40, 4]);
    play.second(2.0, [20, 20]);
    play.second(4.0, [20, 20]);
    play.second(10.0, [20, 20]);
    assert_eq!((&play.states[..], &play.told[..]), (&["firing", "idle"][..], &[][..]));
}

#[test]
fn what_may_be_over_when_its_silence_ends_is_told_only_if_its_data_show_that_it_goes_on() {
    // What was away for more than ten minutes returns as idle.
    for (back, after, told) in [(90, [40, 4], &[Update::Fired][..]), (900, [20, 20], &[][..])] {
        let mut play = Play::new();
        play.facts(0.5);
        play.tell(silence(60.0), 0.6);
        for s in 1..10 {
            play.second(f64::from(s), [40, 4]);
        }
        for s in 10..back {
            play.tell(Event::Tick, f64::from(s));
        }
        assert_eq!((&play.states[..], &play.told[..]), (&["firing", "unknown"][..], &[][..]));
        for s in back..back + 5 {
            play.second(f64::from(s), after);
        }
        let state = if told.is_empty() { "idle" } else { "firing" };
        assert_eq!((&play.told[..], play.states.last()), (told, Some(&state)), "{:?}", play.states);
    }
}

#[test]
fn the_message_at_the_end_of_a_silence_says_what_is_true_then() {
    let mut play = Play::new();
    play.facts(0.5);
    play.tell(silence(3600.0), 0.6);
    play.second(1.0, [40, 4]);
    play.tell(silence(2.0), 2.0);
    play.second(3.0, [40, 4]);
    let incident = play.fired.expect("it is told");
    let message = Message::of(&incident, Update::Fired, at(3.3), &Origin::default());
    let until = utc(at(3600.0));
    assert_eq!(message.facts.capture, format!("refused: it was silenced until {until} when it fired"));
    assert_eq!(message.notes, ["the silence in which it fired is over, and it still fires"]);
    let refused = incident.capture.refused().expect("nothing is captured late");
    assert_eq!(refused.reason.word(), "silenced");
    assert!(Message::of(&incident, Update::Resolved, at(9.0), &Origin::default()).notes.is_empty());
}

#[test]
fn a_silence_that_somebody_ends_ends_it_at_once() {
    let mut play = Play::new();
    play.tell(silence(1000.0), 0.6);
    play.second(1.0, [40, 4]);
    play.tell(silence(2.0), 2.0);
    play.second(3.0, [40, 4]);
    assert_eq!(play.told, [Update::Fired]);
}

#[test]
fn a_rule_that_captured_says_until_when_it_rests() {
    let mut play = Play::new();
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    assert_eq!(play.starts, 1);
    let limits = play.watch.status(at(2.0)).budget.limits;
    let told: Vec<_> = limits.iter().map(|l| (&*l.of, l.used, l.cooldown_until)).collect();
    assert_eq!(told, [("all rules", 1, None), ("skew", 1, Some(at(601.0)))]);
}

#[test]
fn a_refusal_that_is_known_when_it_fires_is_a_line_of_the_first_message() {
    let mut play = Play::new();
    play.second(1.0, [40, 4]);
    assert_eq!(play.told, [Update::Fired]);
    let capture = Message::of(&play.fired.expect("it fired"), Update::Fired, at(1.0), &Origin::default());
    assert!(capture.facts.capture.starts_with("refused: "), "{}", capture.facts.capture);
}

#[test]
fn a_capture_and_its_verdict_are_one_message_and_an_incident_has_three() {
    let mut play = Play::new();
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    let incident = play.window_over(5.0, true);
    assert_eq!(play.told, [Update::Fired], "its ranks are being compared");
    play.compared(&incident, 9.0);
    play.second(30.0, [20, 20]);
    play.second(33.0, [20, 20]);
    assert_eq!(play.told, [Update::Fired, Update::Verdict, Update::Resolved]);
}

#[test]
fn a_verdict_that_does_not_come_does_not_hold_the_capture_back_for_ever() {
    let mut play = Play::new();
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    let incident = play.window_over(5.0, true);
    let due = 5.0 + LONGEST_COMPARISON.as_secs_f64();
    play.tell(Event::Tick, due - 0.1);
    assert_eq!(play.told, [Update::Fired]);
    play.tell(Event::Tick, due);
    assert_eq!(play.told, [Update::Fired, Update::Captured]);
    play.compared(&incident, due + 5.0);
    assert_eq!((play.told.len(), &play.edited[..]), (2, &[Update::Verdict][..]));
}

#[test]
fn what_clears_in_its_warm_up_says_at_its_end_that_nothing_is_captured() {
    let rule = RULE.replace("name: skew,", "name: skew, capture: { http: { warmup: 20s } },");
    let mut play = Play::of(core(Some(&rule), Mode::Live, at(0.0)));
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    play.second(5.0, [20, 20]);
    play.second(8.0, [20, 20]);
    play.second(30.0, [20, 20]);
    assert_eq!(play.told, [Update::Fired, Update::Resolved]);
    assert_eq!((play.starts, &play.reasons[..]), (0, &["cleared"][..]));
}

#[test]
fn a_window_is_started_with_the_receivers_of_its_rule_for_an_agent_after_this_one() {
    let rule = RULE.replace("name: skew,", "name: skew, notify: [oncall],");
    let mut play = Play::of(core(Some(&rule), Mode::Live, at(0.0)));
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    assert_eq!((play.starts, &play.receivers[..]), (1, &["oncall".into()][..]));
}

#[test]
fn a_request_that_is_refused_is_answered_and_leaves_nothing_open() {
    let mut play = Play::new();
    play.asked(1.0);
    assert_eq!((play.starts, play.told.len()), (0, 0), "{:?}", play.told);
    assert_eq!(play.reasons.len(), 1, "it is logged and counted");
    assert!(matches!(play.answer, Some(Err(Refusal::UnknownServer { .. }))), "{:?}", play.answer);
    let [incident] = &play.watch.status(at(1.0)).incidents[..] else { panic!("there is one incident") };
    assert_eq!((incident.state, incident.resolved_at), (IncidentState::Resolved, Some(at(1.0))));
    play.facts(2.0);
    play.second(3.0, [20, 20]);
    play.second(4.0, [20, 20]);
    assert_eq!((play.starts, play.told.len()), (0, 0), "who asked was told no: it is not taken later");
}

#[test]
fn what_was_asked_for_is_resolved_when_it_was_compared_or_cannot_be() {
    for comparison in ["comes", "fails", "is not possible"] {
        let mut play = Play::new();
        play.facts(0.5);
        play.second(0.6, [20, 20]);
        play.asked(1.0);
        assert_eq!((play.starts, play.told.len()), (1, 0), "{:?}", play.reasons);
        let answer = play.answer.take().expect("who asks is answered").expect("it is granted");
        let incident = play.window_over(5.0, comparison != "is not possible");
        assert_eq!(answer, incident);
        assert_eq!(play.watch.incident(&incident).expect("it is in memory").finding.measured, None);
        match comparison {
            "comes" => {
                assert_eq!(play.told, [], "the verdict is still to come");
                play.compared(&incident, 9.0);
                assert_eq!(play.told, [Update::Verdict, Update::Resolved]);
            }
            "fails" => {
                play.tell(Event::NotCompared { incident: incident.clone() }, 9.0);
                assert_eq!(play.told, [Update::Captured, Update::Resolved]);
            }
            _ => assert_eq!(play.told, [Update::Captured, Update::Resolved]),
        }
        let incident = play.watch.incident(&incident).expect("it is in memory");
        assert_eq!(incident.state, IncidentState::Resolved);
        assert!(incident.resolved_at.is_some());
    }
}

#[test]
fn an_incident_of_a_rule_stays_open_after_its_comparison_while_it_fires() {
    let mut play = Play::new();
    play.facts(0.5);
    play.second(1.0, [40, 4]);
    let incident = play.window_over(5.0, true);
    play.compared(&incident, 9.0);
    play.tell(Event::NotCompared { incident }, 9.5);
    assert_eq!(play.told, [Update::Fired, Update::Verdict]);
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
    // The first that shows it: the onset may lie a moment before.
    let after = shown.at.signed_s_since(finding.onset);
    assert!((-1.0..=3.0).contains(&after), "{after} s");
    let line = shown.line.expect("it came from a log");
    assert!(
        line.starts_with("[2026-11-24 ") && line.contains(" DP0] Decode batch, #running-req: 60"),
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

#[test]
fn a_source_counts_what_it_gave_and_one_that_never_gave_anything_is_shown_with_its_problem() {
    let mut play = Play::new();
    let source = |play: &Play, s: f64| play.watch.status(at(s)).targets[0].sources[0].clone();
    let first = source(&play, 0.0);
    assert_eq!((&*first.kind, &*first.place, first.state), ("loads", "loads", SourceState::Starting));

    let problem = Problem::Unauthorized { url: "http://x/v1/loads".into(), status: 401 };
    let state = |problem, s: f64| {
        let (target, source, kind) = (TargetId(0), SourceId(0), Source::Loads);
        Event::Observed(Observation::State { target, source, kind, problem, at: at(s) })
    };
    play.tell(state(Some(problem), 1.0), 1.0);
    let failing = source(&play, 2.0);
    assert_eq!((failing.state, failing.samples), (SourceState::Failing, 0));
    assert!(failing.problem.expect("a problem").contains("set `api_key`"));

    play.tell(state(None, 3.0), 3.0);
    play.second(4.0, [5, 5]);
    let one = source(&play, 4.0);
    assert_eq!((one.state, one.problem, one.last), (SourceState::Ok, None, Some(at(4.0))));
    play.second(5.0, [5, 5]);
    assert!(one.samples > 0 && source(&play, 5.0).samples == 2 * one.samples, "it grows");
    let body = b"<html>502</html>".to_vec();
    let page = Observation::Loads { target: TargetId(0), source: SourceId(0), body, at: at(6.0) };
    play.tell(Event::Observed(page), 6.0);
    assert_eq!(source(&play, 6.0).dropped, 1);
    assert_eq!(source(&play, 6.0).state, SourceState::Failing);
}

#[test]
fn that_vllm_has_no_loads_is_not_a_source_that_is_down() {
    let mut play = Play::new();
    let problem = Problem::NotFound { url: "http://x/v1/loads".into(), hint: "neither is there" };
    let (target, source, kind) = (TargetId(0), SourceId(0), Source::Loads);
    let missing = Observation::State { target, source, kind, problem: Some(problem), at: at(1.0) };
    play.tell(Event::Observed(missing), 1.0);
    let shown = |play: &Play| play.watch.status(at(2.0)).targets[0].sources.len();
    assert_eq!(shown(&play), 1, "of an SGLang server, or of one that is not known yet, it is");
    let facts = ServerFacts::of_vllm("0.11.0", 2);
    play.tell(Event::Server { target, fact: ServerFact::Info(facts) }, 2.0);
    assert_eq!(shown(&play), 0);
}

#[test]
fn ranks_of_an_engine_that_does_not_count_them_are_not_forgotten_when_it_says_what_it_is() {
    let mut play = Play::new();
    play.second(1.0, [40, 4]);
    let ranks = |play: &Play| play.watch.status(at(2.0)).targets[0].ranks.len();
    assert_eq!(ranks(&play), 2);
    let fact = ServerFact::Info(ServerFacts::of_vllm("0.33.0", 1));
    play.tell(Event::Server { target: TargetId(0), fact }, 2.0);
    assert_eq!(ranks(&play), 2);
}

/// What `/v1/loads` of one of two servers says: `a` has the ranks 0 and 1, `b` the ranks 2 and 3.
fn loads_of(target: u16, at: Time, loads: [u32; 2]) -> Observation {
    let rank = |n: u16| {
        let dp_rank = 2 * target + n;
        serde_json::json!({"timestamp": at.epoch_s(), "dp_rank": dp_rank,
            "num_running_reqs": loads[usize::from(n)], "num_waiting_reqs": 0})
    };
    let body = serde_json::json!({"version": "0.5.16", "loads": [rank(0), rank(1)]}).to_string().into_bytes();
    Observation::Loads { target: TargetId(target), source: SourceId(target), body, at }
}

#[test]
fn a_group_that_spans_servers_and_does_not_say_which_opens_no_window_on_the_first() {
    let rule = "rules:\n  - { name: skew, signal: load, across: dp_rank, within: [role], \
                trigger: { max_over_mean: 1.2, for: 0s } }\n";
    for mode in [Mode::Live, Mode::Replay] {
        let mut play = Play::of(core_on(&["a", "b"], Some(rule), mode, at(0.0)));
        for s in 1..5 {
            let s = f64::from(s);
            play.tell(Event::Observed(loads_of(0, at(s), [4, 4])), s);
            play.tell(Event::Observed(loads_of(1, at(s), [4, 40])), s);
            play.tell(Event::Tick, s + 0.3);
        }
        let fired = play.fired.as_ref().expect("it fires");
        assert_eq!(fired.finding.rank.to_string(), "dp_rank=3");
        assert_eq!(&*fired.target, "several servers");
        let refused = fired.capture.refused().expect("it is refused");
        assert_eq!(refused.why, "the group spans servers: name `target` in `across` or `within`");
        assert_eq!((play.starts, play.reasons.as_slice()), (0, &["spans_servers"][..]), "{mode:?}");
    }
}
