//! Windows of every kind from start to end, and what no sequence of events may bring about.

mod anything;
mod start;
mod unwitnessed;

use std::time::Duration;

use super::*;
use crate::capture::facts::ServerKind;
use crate::capture::line::Marks;
use crate::capture::plan::{StartMode, StartRequest};
use crate::capture::preflight::Ranks;

const DEADLINE: Duration = Duration::from_secs(5);
const BOTH: Visibility = Visibility { log: true, files: true };

fn at(s: f64) -> Time {
    Time::from_epoch_s(1000.0 + s)
}

fn request(form: StartMode, busy: &[u16], idle: &[u16]) -> StartRequest {
    let ranks = |list: &[u16]| list.iter().map(|dp| Rank::dp(*dp)).collect();
    StartRequest {
        engine: if form == StartMode::Held { ServerKind::Vllm } else { ServerKind::Sglang },
        body: None,
        marks: Marks { dir: Some("/p/ours".into()), prefix: None, id: None },
        folder: None,
        form,
        ranks: Ranks { busy: ranks(busy), idle: ranks(idle) },
        deadline: DEADLINE,
        hold: (form == StartMode::Held).then_some(Duration::from_millis(500)),
        until_cleared: false,
        writes_files: true,
        merges: false,
        notes: Vec::new(),
        sizing: None,
    }
}

fn starts(dp: u16, dir: &str) -> Event {
    Event::Log {
        rank: Rank::dp(dp),
        line: ProfileLine::Starts { dir: dir.into(), id: Some("1795.3".into()) },
    }
}

fn begins(dp: u16) -> Event {
    starts(dp, "/p/ours")
}

fn stops(dp: u16) -> Event {
    Event::Log { rank: Rank::dp(dp), line: ProfileLine::Stops }
}

fn done(dp: u16) -> Event {
    Event::Log { rank: Rank::dp(dp), line: ProfileLine::Done { dir: "/p/ours".into() } }
}

fn file(dp: u16) -> Event {
    Event::File { rank: Some(Rank::dp(dp)), whole: true }
}

fn status(status: u16) -> Answer {
    let body = String::new();
    if status < 500 { Answer::Refused { status, body } } else { Answer::Failed { status, body } }
}

/// Plays events at their times, ticking in between, until the end; gives what was done and when.
fn play(request: &StartRequest, visibility: Visibility, script: &[(f64, Event)]) -> Vec<String> {
    let (mut window, _) = Window::start(request, visibility, at(0.0));
    let mut told = Vec::new();
    let mut next = script.iter().peekable();
    for tick in 1..14_000 {
        let t = f64::from(tick) * 0.1;
        let mut outputs = Vec::new();
        while let Some((_, event)) = next.next_if(|(when, _)| *when <= t) {
            outputs.extend(window.on(event, at(t)));
        }
        outputs.extend(window.on(&Event::Tick, at(t)));
        for output in outputs {
            told.push(match output {
                Output::Start => "start".into(),
                Output::Stop { path } => format!("{t:.1} {path}"),
                Output::Finish(ending) => {
                    let quiet = if ending.unproven.is_some() { " (quiet)" } else { "" };
                    let notes = if ending.notes.is_empty() { "" } else { " (notes)" };
                    let how = ending.failure.map_or("done".into(), |f| f.to_string());
                    format!("{t:.1} {}{quiet}{notes}", how.split([',', ';', '(']).next().unwrap().trim())
                }
            });
        }
        if window.phase() == WindowPhase::Ended {
            return told;
        }
    }
    panic!("the window never ended: {window:?}");
}

fn ok() -> Event {
    Event::StartAnswered(Answer::Ok)
}

fn left(sent: f64, granted: bool) -> OrphanedWindow {
    OrphanedWindow { sent_at: at(sent), granted, refused_double: false, stops: None, ended: false }
}

fn stopped(answer: Answer) -> Event {
    Event::StopAnswered(answer)
}

#[test]
fn a_window_whose_ranks_finish_by_their_steps_is_never_stopped() {
    let script = [
        (0.1, begins(0)),
        (0.1, begins(1)),
        (0.2, ok()),
        (0.3, stops(0)),
        (0.4, done(0)),
        (0.5, stops(1)),
        (0.9, done(1)),
        (1.0, file(0)),
        (1.1, file(1)),
    ];
    assert_eq!(play(&request(StartMode::Exact, &[0, 1], &[]), BOTH, &script), ["1.1 done"]);
}

#[test]
fn whole_files_of_all_ranks_are_proof_enough_without_a_log() {
    let visibility = Visibility { log: false, files: true };
    let script = [(0.2, ok()), (0.8, file(0)), (0.9, file(1))];
    assert_eq!(play(&request(StartMode::Exact, &[0, 1], &[]), visibility, &script), ["0.9 done"]);
}

#[test]
fn an_idle_rank_is_closed_within_two_seconds_of_the_busy_ones_though_the_stop_says_500() {
    let script = [
        (0.1, begins(0)),
        (0.1, begins(1)),
        (0.2, ok()),
        (0.5, stops(1)),
        (0.6, done(1)),
        (1.3, stops(0)),
        (1.4, stopped(status(500))),
        (1.5, done(0)),
        (1.6, file(0)),
        (1.6, file(1)),
    ];
    assert_eq!(
        play(&request(StartMode::Plain, &[1], &[0]), BOTH, &script),
        ["1.0 /stop_profile", "1.6 done"]
    );
}

#[test]
fn at_the_deadline_it_is_stopped() {
    let script = [
        (0.1, begins(0)),
        (0.1, begins(1)),
        (0.2, ok()),
        (9.0, stopped(Answer::Ok)),
        (9.1, file(0)),
        (9.1, file(1)),
    ];
    assert_eq!(
        play(&request(StartMode::Exact, &[0, 1], &[]), BOTH, &script),
        ["5.0 /stop_profile", "9.1 done"]
    );
}

#[test]
fn a_404_on_stop_tries_what_the_howto_calls_it_once() {
    let script = [(0.2, ok()), (5.2, stopped(status(404))), (5.4, stopped(Answer::Ok)), (5.5, file(0))];
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
    assert_eq!(told, ["5.0 /stop_profile", "5.2 /end_profile", "5.5 done"]);
}

#[test]
fn an_armed_rank_that_begins_after_the_stop_is_stopped_again() {
    let script = [
        (0.1, begins(0)),
        (0.2, ok()),
        (0.5, stops(0)),
        (0.6, done(0)),
        (5.1, stopped(status(500))),
        (8.0, begins(1)),
        (8.2, stops(1)),
        (8.3, done(1)),
        (8.4, stopped(Answer::Ok)),
        (8.5, file(0)),
        (8.5, file(1)),
    ];
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), BOTH, &script);
    assert_eq!(told, ["5.0 /stop_profile", "8.0 /stop_profile", "8.5 done"]);
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), BOTH, &script[..5]);
    assert_eq!(told, ["5.0 /stop_profile", "15.1 the stop was answered with 500 (quiet)"]);
}

#[test]
fn with_neither_log_nor_files_in_sight_a_500_on_stop_ends_it_and_says_that_nothing_is_proven() {
    let visibility = Visibility { log: false, files: false };
    let script = [(0.2, ok()), (5.1, stopped(status(500)))];
    assert_eq!(
        play(&request(StartMode::Plain, &[0], &[]), visibility, &script),
        ["5.0 /stop_profile", "5.1 done (quiet) (notes)"]
    );
}

#[test]
fn a_200_to_the_stop_is_no_proof_against_the_log() {
    let mut script: Vec<(f64, Event)> = vec![(0.1, begins(0)), (0.1, begins(1)), (0.2, ok())];
    script.extend((0..4).map(|n| (5.1 + 10.1 * f64::from(n), stopped(Answer::Ok))));
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), BOTH, &script);
    let end = told.last().unwrap();
    assert_eq!(told.len(), usize::from(MAX_STOPS) + 1, "{told:?}");
    assert!(told[1].starts_with("15.1 ") && end.contains("(quiet)"), "{told:?}");
    // One that did stop both needs no other.
    let shown =
        [(5.1, stops(0)), (5.1, stops(1)), (5.3, stopped(Answer::Ok)), (5.4, file(0)), (5.4, file(1))];
    let script: Vec<(f64, Event)> = script.into_iter().take(3).chain(shown).collect();
    assert_eq!(
        play(&request(StartMode::Exact, &[0, 1], &[]), BOTH, &script),
        ["5.0 /stop_profile", "5.4 done"]
    );
}

#[test]
fn lines_that_say_that_it_is_done_do_not_keep_a_window_from_its_stop_where_its_files_would_be_seen() {
    let script = [(0.1, begins(0)), (0.2, ok()), (2.0, done(0)), (5.2, stopped(Answer::Ok)), (5.4, file(0))];
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
    assert_eq!(told, ["5.0 /stop_profile", "5.4 done (notes)"]);
    // An export that takes long is waited for: its file cannot be there yet.
    let slow = [(0.1, begins(0)), (0.2, ok()), (2.0, stops(0)), (30.0, done(0)), (31.0, file(0))];
    assert_eq!(play(&request(StartMode::Exact, &[0], &[]), BOTH, &slow), ["31.0 done"]);
    // Without files in sight they are all there is.
    let log = Visibility { log: true, files: false };
    assert_eq!(play(&request(StartMode::Exact, &[0], &[]), log, &script), ["2.0 done"]);
}

#[test]
fn a_stop_that_news_of_the_last_moment_speak_against_is_not_sent() {
    let began = || {
        let (mut window, _) = Window::start(&request(StartMode::Plain, &[0, 1], &[]), BOTH, at(0.0));
        for event in [begins(0), ok()] {
            window.on(&event, at(0.2));
        }
        assert_eq!(window.on(&Event::Tick, at(5.0)), [Output::Stop { path: "/stop_profile" }]);
        assert!(window.confirms_stop());
        window
    };
    let mut window = began();
    window.on(&starts(1, "/p/theirs"), at(5.1));
    assert!(!window.confirms_stop());
    assert_eq!(window.on(&Event::StopWithheld, at(5.1)), [], "it waits for their end");
    assert_eq!(window.stops(), None);
    assert_eq!(window.on(&stops(1), at(9.0)), [Output::Stop { path: "/stop_profile" }]);
    let mut window = began();
    let told = window.on(&Event::Unidentified, at(5.1));
    let [Output::Finish(ending)] = &told[..] else { panic!("{told:?}") };
    assert!(ending.unproven.is_some());
}

#[test]
fn stops_of_a_dead_agent_count_and_what_it_saw_closed_is_not_stopped_again() {
    let held = request(StartMode::Held, &[0], &[]);
    let resumed = |request: &StartRequest, left: &OrphanedWindow, now: f64| {
        let mut window = Window::resume(request, BOTH, left, at(now));
        let ticks = 0..7000;
        ticks.flat_map(|t| window.on(&Event::Tick, at(now + f64::from(t) * 0.1))).collect::<Vec<_>>()
    };
    let stops = |count, answer| Some(Stops { count, last: at(1.0), answer });
    let once = OrphanedWindow { stops: stops(1, None), ..left(0.0, true) };
    let [Output::Finish(ending)] = &resumed(&held, &once, 3.0)[..] else { panic!("vLLM is stopped once") };
    assert!(ending.unproven.is_some());
    let often = OrphanedWindow { stops: stops(MAX_STOPS, None), ..left(0.0, true) };
    let plain = request(StartMode::Plain, &[0], &[]);
    let [Output::Finish(ending)] = &resumed(&plain, &often, 3.0)[..] else { panic!("no fifth stop") };
    assert!(ending.unproven.is_some());
    let ended = OrphanedWindow { ended: true, ..left(0.0, true) };
    let [Output::Finish(ending)] = &resumed(&plain, &ended, 3.0)[..] else { panic!("it is closed") };
    assert_eq!(ending.unproven, None);
    let answered = OrphanedWindow { stops: stops(1, Some(Answer::Ok)), ..left(0.0, true) };
    let [Output::Finish(ending)] = &resumed(&plain, &answered, 3.0)[..] else { panic!("it is closed") };
    assert_eq!(ending.unproven, None);
}

#[test]
fn long_after_its_deadline_what_a_dead_agent_left_is_stopped_only_if_the_log_shows_it_open() {
    let plain = request(StartMode::Plain, &[0], &[]);
    let mut window = Window::resume(&plain, BOTH, &left(0.0, true), at(3600.0));
    let told: Vec<Output> =
        (0..60).flat_map(|t| window.on(&Event::Tick, at(3600.0 + f64::from(t)))).collect();
    let [Output::Finish(ending)] = &told[..] else { panic!("{told:?}") };
    assert!(ending.unproven.is_some() && matches!(ending.failure, Some(Failure::LeftTooLong(_))));
    let mut window = Window::resume(&plain, BOTH, &left(0.0, true), at(3600.0));
    window.recall(&begins(0), at(3600.0));
    assert_eq!(window.on(&Event::Tick, at(3600.1)), [Output::Stop { path: "/stop_profile" }]);
}

#[test]
fn a_rank_that_began_our_window_has_nobody_elses() {
    // A start without an end, of an instance that died.
    let script = [
        (0.1, starts(0, "/p/theirs")),
        (0.2, ok()),
        (0.3, begins(0)),
        (5.2, stopped(Answer::Ok)),
        (5.4, file(0)),
    ];
    let told = play(&request(StartMode::Plain, &[0], &[]), BOTH, &[&script[..], &[(5.1, stops(0))]].concat());
    assert_eq!(told, ["5.0 /stop_profile", "5.4 done"]);
}

#[test]
fn a_vllm_window_is_always_stopped_once_whatever_its_files_say() {
    let held = request(StartMode::Held, &[0, 1], &[]);
    let script = [(0.1, ok()), (0.2, file(0)), (0.2, file(1)), (2.0, stopped(Answer::Ok))];
    assert_eq!(play(&held, BOTH, &script), ["0.5 /stop_profile", "2.0 done"]);
    let script = [(0.1, ok()), (2.0, stopped(status(500)))];
    assert_eq!(
        play(&held, BOTH, &script),
        ["0.5 /stop_profile", "12.0 the stop was answered with 500 (quiet)"]
    );
    let none = Answer::Refused { status: 404, body: r#"{"detail":"Not Found"}"#.into() };
    let told = play(&held, BOTH, &[(0.1, Event::StartAnswered(none))]);
    assert_eq!(told, ["2.1 the server refused the start with 404"]);
}

#[test]
fn a_stop_of_vllm_that_was_not_carried_out_is_sent_again_and_no_other() {
    let held = request(StartMode::Held, &[0, 1], &[]);
    for visibility in [BOTH, Visibility { log: false, files: true }, Visibility { log: true, files: false }] {
        let script = [(0.1, ok()), (0.6, stopped(status(429))), (4.0, stopped(Answer::Ok))];
        let told = play(&held, visibility, &script);
        assert_eq!(told[..2], ["0.5 /stop_profile", "3.6 /stop_profile"], "{visibility:?}");
        let script: Vec<_> = [(0.1, ok())]
            .into_iter()
            .chain((1..8).map(|n| (f64::from(n) * 4.0, stopped(status(404)))))
            .collect();
        let told = play(&held, visibility, &script);
        assert_eq!(told.len(), 1 + usize::from(MAX_STOPS), "{visibility:?}: {told:?}");
        assert!(told[4].ends_with("(quiet)"), "{told:?}");
        for unclear in [401, 403, 408, 500, 502, 503, 504] {
            let told = play(&held, visibility, &[(0.1, ok()), (0.6, stopped(status(unclear)))]);
            let stops = told.iter().filter(|t| t.ends_with("/stop_profile")).count();
            assert_eq!(
                stops, 1,
                "{visibility:?} {unclear}: it may be carried out, or a key is missing: {told:?}"
            );
        }
    }
    // What the next agent makes of it.
    let stops = |answer| Some(Stops { count: 1, last: at(1.0), answer: Some(answer) });
    for (answer, is_sent) in [(status(429), true), (status(503), false)] {
        let left = OrphanedWindow { stops: stops(answer), ..left(0.0, true) };
        let mut window = Window::resume(&held, BOTH, &left, at(6.0));
        let sent = window.on(&Event::Tick, at(6.1)).contains(&Output::Stop { path: "/stop_profile" });
        assert_eq!(sent, is_sent);
    }
}

#[test]
fn the_next_agent_hears_of_stops_that_left_and_how_they_were_answered_though_the_window_is_given_up() {
    let stopping = || {
        let (mut window, _) = Window::start(&request(StartMode::Held, &[0], &[]), BOTH, at(0.0));
        window.on(&ok(), at(0.1));
        assert_eq!(window.on(&Event::Tick, at(0.5)), [Output::Stop { path: "/stop_profile" }]);
        assert_eq!(window.stops(), None, "it was decided, and has not left");
        window
    };
    let given_up = |window: &mut Window| {
        window.on(&Event::Cancel, at(1.0));
        window.on(&Event::Tick, at(9.1));
        assert_eq!(window.phase(), WindowPhase::Ended);
    };
    let mut window = stopping();
    given_up(&mut window);
    assert_eq!(window.stops(), None);
    let mut window = stopping();
    window.on(&Event::StopLeaves, at(0.5));
    let sent = |answer| Some(Stops { count: 1, last: at(0.5), answer });
    assert_eq!(window.stops(), sent(None));
    given_up(&mut window);
    assert_eq!(window.stops(), sent(None));
    let mut other = window.clone();
    window.on(&stopped(status(429)), at(20.0));
    assert_eq!(window.stops(), sent(Some(status(429))));
    other.on(&stopped(Answer::ConnectionRefused), at(20.0));
    assert_eq!(other.stops(), None, "nothing was sent");
}

#[test]
fn another_instance_of_the_server_has_no_window_of_the_one_before() {
    let gone = Event::Gone("its random seed changed".into());
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &[(0.2, ok()), (1.0, gone)]);
    assert_eq!(told, ["1.0 the server went away in the middle of the window"]);
}

#[test]
fn a_window_on_an_instance_with_other_ranks_is_unproven_however_well_the_known_ones_end() {
    let others = (0.25, Event::OtherRanks);
    let script =
        [(0.1, begins(0)), (0.2, ok()), others.clone(), (0.3, stops(0)), (0.4, done(0)), (0.5, file(0))];
    assert_eq!(play(&request(StartMode::Exact, &[0], &[]), BOTH, &script), ["0.5 done (quiet)"]);
    let gone = Event::Gone("its random seed changed".into());
    let script = [(0.2, ok()), others, (1.0, gone)];
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
    assert_eq!(told, ["1.0 the server went away in the middle of the window"], "they went with it");
}

#[test]
fn a_refused_connection_says_nothing_of_the_window_and_the_stop_is_sent_when_the_server_answers_again() {
    // A readiness probe that fails because of the window, DNS, TLS, the agent's own descriptors.
    for unsent in [Answer::ConnectionRefused, Answer::NotSent { why: "too many open files".into() }] {
        let script = [
            (0.2, ok()),
            (1.0, Event::Unreachable),
            (1.5, Event::Unreachable),
            (4.0, Event::Answers),
            (5.2, stopped(unsent)),
            (300.0, Event::Answers),
            (301.0, stopped(Answer::Ok)),
            (301.2, file(0)),
        ];
        let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
        assert_eq!(told, ["5.0 /stop_profile", "300.0 /stop_profile", "301.2 done (notes)"]);
    }
    let (mut window, _) = Window::start(&request(StartMode::Exact, &[0], &[]), BOTH, at(0.0));
    window.on(&ok(), at(0.2));
    window.on(&Event::Unreachable, at(1.0));
    for hour in 1..24 {
        assert_eq!(window.on(&Event::Tick, at(f64::from(hour) * 3600.0)), [], "it is waited for");
    }
    let told = window.on(&Event::Tick, at(90_000.0));
    let [Output::Finish(ending)] = &told[..] else { panic!("{told:?}") };
    assert!(ending.unproven.is_some() && matches!(ending.failure, Some(Failure::Unreached(_))));
}

#[test]
fn a_server_that_said_that_it_dies_and_is_reached_no_more_took_its_window_with_it() {
    let dying = || Event::Dying("SIGQUIT received.".into());
    let told = play(
        &request(StartMode::Exact, &[0], &[]),
        BOTH,
        &[(0.2, ok()), (1.0, dying()), (1.5, Event::Unreachable)],
    );
    assert_eq!(told, ["1.5 the server went away in the middle of the window"]);
    // Whoever wrote the line: a server that still answers gets its stop.
    let script = [(0.2, ok()), (1.0, dying()), (5.2, stopped(Answer::Ok)), (5.3, file(0))];
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
    assert_eq!(told, ["5.0 /stop_profile", "5.3 done"]);
}

#[test]
fn a_cancelled_agent_closes_its_window_and_does_not_wait_for_ever() {
    let script = [(0.2, ok()), (1.0, Event::Cancel), (1.5, stopped(Answer::Ok)), (1.6, file(0))];
    assert_eq!(play(&request(StartMode::Exact, &[0], &[]), BOTH, &script), ["1.0 /stop_profile", "1.6 done"]);
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &[(0.2, Event::Cancel)]);
    assert_eq!(told, ["8.2 the agent was told to end before the window was proven closed (quiet)"]);
}

#[test]
fn a_stop_whose_answer_never_comes_ends_with_the_files() {
    let script = [
        (0.1, begins(0)),
        (0.2, ok()),
        (5.2, stops(0)),
        (7.0, done(0)),
        (7.2, file(0)),
        (9.0, stopped(status(500))),
    ];
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
    assert_eq!(told, ["5.0 /stop_profile", "7.2 done"]);
}

#[test]
fn a_flexible_window_ends_when_the_rule_clears_and_a_fixed_one_does_not() {
    let flexible = StartRequest { until_cleared: true, ..request(StartMode::Exact, &[0], &[]) };
    let script = [(0.2, ok()), (2.0, Event::Cleared), (2.4, stopped(Answer::Ok)), (2.5, file(0))];
    assert_eq!(play(&flexible, BOTH, &script), ["2.0 /stop_profile", "2.5 done"]);
    let script = [(0.2, ok()), (2.0, Event::Cleared), (5.4, stopped(Answer::Ok)), (5.5, file(0))];
    assert_eq!(
        play(&request(StartMode::Exact, &[0], &[]), BOTH, &script),
        ["5.0 /stop_profile", "5.5 done (notes)"]
    );
}

#[test]
fn a_window_known_by_its_prefix_adopts_the_id_that_the_server_gave_it() {
    let mut prefixed = request(StartMode::Exact, &[0], &[]);
    prefixed.marks = Marks { dir: None, prefix: Some("skewtrap-i1".into()), id: None };
    let script =
        [(0.1, starts(0, "/tmp")), (0.15, stops(0)), (0.2, ok()), (0.4, done_in_tmp()), (0.5, file(0))];
    assert_eq!(play(&prefixed, BOTH, &script), ["0.5 done"]);
    let script = [(0.1, starts(0, "/tmp")), (0.2, Event::StartAnswered(status(500)))];
    assert_eq!(play(&prefixed, BOTH, &script), ["2.2 the start failed with 500"]);
}

fn done_in_tmp() -> Event {
    Event::Log { rank: Rank::dp(0), line: ProfileLine::Done { dir: "/tmp".into() } }
}

#[test]
fn a_window_that_a_dead_agent_left_is_closed_with_proof_and_given_up_without() {
    let request = request(StartMode::Plain, &[0], &[1]);
    let resumed = |granted, event: Option<Event>| {
        let mut window = Window::resume(&request, BOTH, &left(0.0, granted), at(100.0));
        let mut told: Vec<Output> = Vec::new();
        told.extend(event.iter().flat_map(|e| window.on(e, at(100.1))));
        for t in 0..80 {
            told.extend(window.on(&Event::Tick, at(100.2 + f64::from(t) * 0.1)));
        }
        told
    };
    let stop = Output::Stop { path: "/stop_profile" };
    assert_eq!(resumed(true, None).first(), Some(&stop), "it was granted before the agent died");
    assert_eq!(resumed(false, Some(Event::File { rank: None, whole: false })).first(), Some(&stop));
    let Some(Output::Finish(ending)) = resumed(false, None).into_iter().next() else { panic!("it ends") };
    assert!(matches!(ending.failure, Some(Failure::UnknownStart { .. })) && ending.unproven.is_some());
}

#[test]
fn samples_are_distrusted_from_the_start_until_the_export_has_settled_but_may_clear_while_open() {
    let mut settling = SettlingTime::opened(at(0.0));
    assert!(settling.trusts(at(-1.0)) && !settling.trusts(at(1.0)) && settling.may_clear(at(1.0)));
    settling.closing = Some(at(5.0));
    assert!(!settling.may_clear(at(6.0)));
    settling.exported(at(9.0));
    assert!(!settling.trusts(at(18.9)) && settling.trusts(at(19.0)) && settling.may_clear(at(19.0)));
}
