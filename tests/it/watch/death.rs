//! The death of a server is told once, with its last line and whether our window was open.

use std::time::Duration;

use crate::support::watch::{Play, at};
use serde_json::json;
use skewtrap_core::capture::facts::ServerFacts;
use skewtrap_core::message::Update;
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::status::Silence;
use skewtrap_core::watch::{Event, SERVER_DIED, ServerFact};

const TARGET: TargetId = TargetId(0);

/// Two processes of the server print that a third one is gone.
fn dies(play: &mut Play, now: f64) {
    for s in [now, now + 0.2] {
        let stamp = jiff::Timestamp::from_nanosecond(i128::from(at(s).nanos())).expect("a time");
        let lines = format!(
            "[{}] Received sigquit from a child process. It usually means the child failed. \u{1b}[31m\n",
            stamp.strftime("%Y-%m-%d %H:%M:%S")
        );
        let (lines, source, arrival) = (lines.into_bytes(), SourceId(0), Arrival::Live(at(s)));
        play.tell(Event::Observed(Observation::Lines { target: TARGET, source, lines, arrival }), s);
    }
}

/// It stops answering, and a new instance answers.
fn comes_back(play: &mut Play, now: f64) {
    play.tell(Event::Server { target: TARGET, fact: ServerFact::Lost }, now);
    let info = json!({"version": "0.5.16", "dp_size": 2, "device": "cuda", "random_seed": now});
    let fact = ServerFact::Info(ServerFacts::of_server_info(&info));
    play.tell(Event::Server { target: TARGET, fact }, now + 30.0);
}

#[test]
fn where_nothing_else_goes_on_a_death_is_an_incident_of_its_own_that_ends_when_the_server_is_back() {
    let mut play = Play::new();
    play.facts(0.0);
    dies(&mut play, 10.0);
    // It still answers what was asked before.
    play.facts(10.5);
    dies(&mut play, 11.0);
    assert_eq!(play.told, [Update::Died], "once, however many processes say it");
    let incident = play.fired.clone().expect("it is one");
    let died = incident.died.as_ref().expect("it says so");
    assert_eq!((&*incident.rule, died.window_open, incident.resolved_at), (SERVER_DIED, false, None));
    assert!(died.line.contains("Received sigquit") && !died.line.contains('\u{1b}'), "{}", died.line);
    comes_back(&mut play, 20.0);
    assert_eq!((&play.told[..], &play.edited[..]), (&[Update::Died][..], &[Update::Resolved][..]));
    dies(&mut play, 70.0);
    assert_eq!(play.told, [Update::Died; 2], "another death");
}

#[test]
fn a_server_that_dies_in_each_of_its_starts_is_told_once_until_it_lives() {
    let mut play = Play::new();
    play.facts(0.0);
    for death in [10.0, 400.0, 800.0, 1200.0] {
        dies(&mut play, death);
    }
    assert_eq!(play.told, [Update::Died]);
}

#[test]
fn a_death_in_a_window_of_ours_is_told_by_its_incident_and_names_the_window() {
    let mut play = Play::new();
    for s in 0..5 {
        play.facts(f64::from(s));
        play.second(f64::from(s), [20, if s < 3 { 20 } else { 60 }]);
    }
    assert_eq!((play.starts, &play.told[..]), (1, &[Update::Fired][..]));
    dies(&mut play, 5.0);
    assert_eq!(play.told, [Update::Fired, Update::Died]);
    let id = &play.grants[0].attempt.incident;
    let incident = play.watch.incident(id).expect("the one with the window");
    assert!(incident.died.as_ref().is_some_and(|died| died.window_open), "{:?}", incident.died);
    assert_eq!(play.told_of.len(), 1, "no incident beside it");
}

#[test]
fn a_death_in_a_window_that_somebody_asked_for_is_an_incident_of_its_own_which_alerts_tell() {
    let mut play = Play::new();
    for s in 0..3 {
        play.facts(f64::from(s));
        play.second(f64::from(s), [20, 20]);
    }
    play.asked(3.0);
    assert_eq!(play.starts, 1, "a window is open");
    let by_hand = play.grants[0].attempt.incident.clone();
    dies(&mut play, 4.0);
    let incident = play.watch.incident(&by_hand).expect("the one with the window");
    assert!(incident.is_by_hand() && incident.died.is_none(), "{incident:?}");
    let death = play.fired.clone().expect("one beside it");
    assert_eq!((&*death.rule, death.died.map(|died| died.window_open)), (SERVER_DIED, Some(true)));
}

#[test]
fn a_death_in_a_silence_is_stored_and_not_told() {
    let mut play = Play::new();
    let until = at(0.0) + Duration::from_secs(3600);
    play.tell(Event::Silenced(Silence { rule: None, target: None, until, why: None }), 0.0);
    dies(&mut play, 10.0);
    assert_eq!(play.told, []);
}
