//! Windows of a server whose log is not read, which is the default.

use super::*;

const BLIND: Visibility = Visibility { log: false, files: false };
const FILES: Visibility = Visibility { log: false, files: true };

fn lost() -> Answer {
    Answer::Lost { why: "reset".into() }
}

#[test]
fn a_start_of_unknown_end_is_stopped_by_its_deadline() {
    for answer in [lost(), status(502), status(503)] {
        let script = [(0.2, Event::StartAnswered(answer)), (5.3, stopped(Answer::Ok)), (5.3, file(0))];
        let told = play(&request(StartMode::Exact, &[0], &[]), FILES, &script);
        assert_eq!(told, ["5.0 /stop_profile", "5.3 done (notes)"]);
    }
    // Not answered at all.
    let script = [(68.0, stopped(Answer::Ok)), (68.0, file(0))];
    let told = play(&request(StartMode::Exact, &[0], &[]), FILES, &script);
    assert_eq!(told, ["67.1 /stop_profile", "68.0 done (notes)"]);
}

#[test]
fn a_start_that_was_refused_as_a_double_is_not_stopped_but_remembered_as_unproven() {
    let script = [(0.2, Event::StartAnswered(status(500)))];
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), BLIND, &script);
    assert_eq!(told, ["2.2 the start failed with 500 (quiet)"]);
    // Its folder shows that it began all the same: it ends by its steps.
    let made = Event::File { rank: None, whole: false };
    let script = [script[0].clone(), (0.5, made), (1.0, file(0)), (1.0, file(1))];
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), FILES, &script);
    assert_eq!(told, ["1.0 done (notes)"]);
}

#[test]
fn a_rank_that_shows_nothing_of_a_start_refused_as_a_double_may_be_somebody_elses() {
    // One rank began, and the other refused, for somebody else's profile is open on it.
    let script = [(0.2, Event::StartAnswered(status(500))), (0.9, file(0))];
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), FILES, &script);
    assert_eq!(told, ["15.0 the start failed with 500 (quiet) (notes)"]);
}

#[test]
fn a_stop_whose_connection_broke_is_sent_again_at_most_four_times_and_is_then_unproven() {
    let script: Vec<(f64, Event)> = std::iter::once((0.2, ok()))
        .chain((0..6).map(|n| (5.3 + f64::from(n) * 3.3, stopped(lost()))))
        .collect();
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), FILES, &script);
    assert_eq!(told.iter().filter(|t| t.contains("_profile")).count(), usize::from(MAX_STOPS), "{told:?}");
    assert!(told.last().unwrap().contains("(quiet)"), "{told:?}");
}

#[test]
fn a_404_of_a_proxy_that_lies_is_no_end_of_the_window() {
    let script: Vec<(f64, Event)> = std::iter::once((0.2, ok()))
        .chain((0..60).map(|n| (5.3 + f64::from(n) * 0.3, stopped(status(404)))))
        .collect();
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), FILES, &script);
    assert_eq!(told.iter().filter(|t| t.contains("_profile")).count(), usize::from(MAX_STOPS), "{told:?}");
    assert!(told.last().unwrap().contains("(quiet)"), "{told:?}");
}

#[test]
fn a_404_to_a_start_is_never_stopped_but_remembered_as_unproven_unless_its_files_show_it() {
    let refused = [(0.2, Event::StartAnswered(status(404)))];
    let told = play(&request(StartMode::Exact, &[0], &[]), BLIND, &refused);
    assert_eq!(told, ["2.2 the server refused the start with 404 (quiet)"]);
    let told = play(&request(StartMode::Exact, &[0], &[]), FILES, &refused);
    assert_eq!(told, ["5.0 the server refused the start with 404 (quiet)"]);
    let script = [refused[0].clone(), (3.0, file(0))];
    let told = play(&request(StartMode::Exact, &[0], &[]), FILES, &script);
    assert_eq!(told, ["3.0 done (notes)"]);
    let told =
        play(&request(StartMode::Exact, &[0], &[]), BLIND, &[(0.2, Event::StartAnswered(status(409)))]);
    assert_eq!(told, ["2.2 the server refused the start with 409"]);
}

#[test]
fn a_500_to_a_stop_is_unknown_and_is_never_asked_again() {
    // It is the answer both of a server that stopped and of one where somebody else may start meanwhile.
    let script = [(0.2, ok()), (5.3, stopped(status(500)))];
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), FILES, &script);
    assert_eq!(told, ["5.0 /stop_profile", "15.3 the stop was answered with 500 (quiet)"]);
}

#[test]
fn with_neither_log_nor_files_a_window_of_steps_is_not_stopped_for_somebody_elses_may_have_begun_after_it() {
    let exact = request(StartMode::Exact, &[0, 1], &[]);
    assert_eq!(play(&exact, BLIND, &[(0.2, ok())]), ["5.0 done (quiet) (notes)"]);
    assert_eq!(play(&exact, BLIND, &[(0.2, ok()), (1.0, Event::Close)]), ["1.0 done (quiet) (notes)"]);
    for answer in [lost(), status(502)] {
        let told = play(&exact, BLIND, &[(0.2, Event::StartAnswered(answer))]);
        assert!(told.len() == 1 && told[0].ends_with("(quiet)"), "{told:?}");
    }
    let mut window = Window::resume(&exact, BLIND, &left(0.0, true), at(3.0));
    let told = window.on(&Event::Tick, at(3.1));
    let [Output::Finish(ending)] = &told[..] else { panic!("{told:?}") };
    assert!(ending.unproven.is_some());
}

#[test]
fn without_a_log_the_words_of_a_proxy_are_no_proof_that_nothing_began() {
    for (status, body, is_proof) in [
        (302, "", false),
        (400, "<html>", false),
        (400, r#"{"error":{"message":"no"}}"#, true),
        (401, "", true),
        (403, "", true),
        (408, "", false),
        (409, "", true),
        (422, "", true),
        (429, "", false),
    ] {
        let answer = Answer::Refused { status, body: body.into() };
        let told = play(&request(StartMode::Exact, &[0], &[]), BLIND, &[(0.2, Event::StartAnswered(answer))]);
        let quiet = if is_proof { "" } else { " (quiet)" };
        assert_eq!(told, [format!("2.2 the server refused the start with {status}{quiet}")]);
    }
}

#[test]
fn a_start_that_a_dead_agent_left_unanswered_is_stopped_as_soon_as_the_next_one_is_there() {
    let request = request(StartMode::Exact, &[0], &[]);
    for came_back in [3.0, 30.0] {
        let mut window = Window::resume(&request, FILES, &left(0.0, false), at(came_back));
        let told = window.on(&Event::Tick, at(came_back + 0.1));
        assert_eq!(told, [Output::Stop { path: "/stop_profile" }], "{came_back}");
    }
}

#[test]
fn long_after_a_start_of_unknown_end_what_runs_there_may_be_somebody_elses() {
    let request = request(StartMode::Exact, &[0], &[]);
    let mut window = Window::resume(&request, FILES, &left(0.0, false), at(3600.0));
    let told: Vec<Output> =
        (0..100).flat_map(|t| window.on(&Event::Tick, at(3600.0 + f64::from(t)))).collect();
    let [Output::Finish(ending)] = &told[..] else { panic!("{told:?}") };
    assert!(ending.unproven.is_some());
}

#[test]
fn blind_a_window_that_ends_by_its_steps_is_stopped_on_no_engine() {
    for (form, engine) in
        [(StartMode::Exact, ServerKind::DynamoSglang), (StartMode::Plain, ServerKind::TensorrtLlm)]
    {
        let request = StartRequest { engine, ..request(form, &[0, 1], &[]) };
        assert_eq!(play(&request, BLIND, &[(0.2, ok())]), ["5.0 done (quiet) (notes)"], "{engine}");
    }
}

#[test]
fn an_error_in_the_start_of_vllm_behind_dynamo_is_stopped_for_nothing_else_ends_what_began_of_it() {
    let errs = |engine, form| {
        let request = StartRequest { engine, ..request(form, &[0, 1], &[]) };
        let error = Answer::ErrorInBody { body: r#"{"status":"error"}"#.into() };
        play(&request, FILES, &[(0.2, Event::StartAnswered(error)), (2.5, stopped(Answer::Ok))])
    };
    let told = errs(ServerKind::DynamoVllm, StartMode::Held);
    assert_eq!(told[0], "2.2 /engine/control/stop_profile", "{told:?}");
    for (engine, form) in
        [(ServerKind::DynamoSglang, StartMode::Exact), (ServerKind::TensorrtLlm, StartMode::Plain)]
    {
        let told = errs(engine, form);
        assert!(told.len() == 1 && told[0].ends_with("(quiet)"), "{engine}: {told:?}");
    }
}
