//! Starts that are refused, fail, hang, or meet somebody else's window.

use super::*;

#[test]
fn a_start_that_was_refused_is_never_followed_by_a_stop() {
    let refused = |status: u16, body: &str| {
        let answer = Answer::Refused { status, body: body.into() };
        play(&request(StartMode::Exact, &[0], &[]), BOTH, &[(0.2, Event::StartAnswered(answer))])
    };
    for code in [401, 403, 409, 422] {
        assert_eq!(refused(code, ""), [format!("2.2 the server refused the start with {code}")]);
    }
    for (code, body) in [(400, r#"{"error":{"message":"no"}}"#), (404, r#"{"detail":"Not Found"}"#)] {
        assert_eq!(refused(code, body), [format!("2.2 the server refused the start with {code}")]);
    }
    // A proxy may have passed it on: a busy server gets to it later.
    for code in [302, 400, 404, 408, 429] {
        assert_eq!(
            refused(code, "<html>"),
            [format!("60.0 the server refused the start with {code} (quiet)")]
        );
    }
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &[(0.2, Event::StartAnswered(status(500)))]);
    assert_eq!(told, ["2.2 the start failed with 500"]);
}

#[test]
fn a_start_that_a_proxy_refused_though_it_began_is_stopped_at_once() {
    let script = [
        (0.1, begins(0)),
        (0.2, Event::StartAnswered(status(404))),
        (0.4, stopped(Answer::Ok)),
        (0.5, file(0)),
    ];
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
    assert_eq!(told, ["0.2 /stop_profile", "0.5 done (notes)"]);
}

#[test]
fn a_start_that_takes_effect_after_its_error_is_stopped_when_it_shows() {
    for code in [504, 429] {
        let script = [
            (0.2, Event::StartAnswered(status(code))),
            (20.0, begins(0)),
            (20.1, stops(0)),
            (20.3, stopped(Answer::Ok)),
            (20.4, file(0)),
        ];
        let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
        assert_eq!(told, ["20.0 /stop_profile", "20.4 done (notes)"]);
    }
    // Also one that begins when its end was told already.
    let script = [(0.2, ok()), (0.3, begins(0)), (0.4, done(0)), (0.4, cut_off(0)), (1.0, begins(0))];
    let told = play(&request(StartMode::Plain, &[0], &[]), BOTH, &script);
    assert_eq!(told.first().map(String::as_str), Some("1.0 /stop_profile"), "{told:?}");
}

/// A file of that rank that is not whole yet.
fn cut_off(dp: u16) -> Event {
    Event::File { rank: Some(Rank::dp(dp)), whole: false }
}

#[test]
fn a_500_on_start_with_a_line_of_ours_is_stopped_at_once() {
    let script = [
        (0.2, begins(1)),
        (0.3, Event::StartAnswered(status(500))),
        (0.5, stops(1)),
        (0.6, stopped(Answer::Ok)),
        (0.7, file(1)),
    ];
    let told = play(&request(StartMode::Exact, &[0, 1], &[]), BOTH, &script);
    // DP0 never began: with start_step it stays armed, and that is said.
    assert_eq!(told, ["0.3 /stop_profile", "10.6 done (quiet) (notes)"]);
}

#[test]
fn a_500_on_start_with_somebody_elses_line_is_left_alone() {
    let script = [(0.2, starts(1, "/p/theirs")), (0.3, Event::StartAnswered(status(500)))];
    assert_eq!(
        play(&request(StartMode::Exact, &[0, 1], &[]), BOTH, &script),
        ["2.3 the start failed with 500"]
    );
}

#[test]
fn a_start_that_timed_out_is_stopped_only_with_proof() {
    let lost = || Event::StartAnswered(Answer::Lost { why: "reset".into() });
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &[(0.2, lost())]);
    assert_eq!(told, ["5.0 unknown start: the start lost its connection (quiet)"]);
    let script = [(0.2, lost()), (1.0, begins(0)), (5.1, stopped(Answer::Ok)), (5.2, file(0))];
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &script);
    assert_eq!(told, ["5.0 /stop_profile", "5.2 done (notes)"]);
    let told = play(&request(StartMode::Exact, &[0], &[]), BOTH, &[]);
    assert_eq!(told, ["67.1 unknown start: the start was not answered in time (quiet)"]);
}

#[test]
fn a_start_that_hangs_but_shows_in_the_log_is_stopped_at_the_deadline() {
    let script = [(1.0, begins(0)), (6.0, stopped(Answer::Ok)), (6.1, file(0))];
    assert_eq!(play(&request(StartMode::Exact, &[0], &[]), BOTH, &script), ["5.0 /stop_profile", "6.1 done"]);
}

#[test]
fn a_start_that_hangs_while_every_rank_is_seen_to_finish_needs_no_stop() {
    let script = [(0.1, begins(0)), (0.2, stops(0)), (0.3, done(0)), (0.4, file(0))];
    assert_eq!(play(&request(StartMode::Exact, &[0], &[]), BOTH, &script), ["0.4 done"]);
}

#[test]
fn somebody_elses_window_is_not_stopped_but_waited_for() {
    let script = [
        (0.2, ok()),
        (0.3, begins(0)),
        (1.0, starts(1, "/p/theirs")),
        (20.0, stops(1)),
        (20.3, stops(0)),
        (20.5, stopped(Answer::Ok)),
        (20.6, file(0)),
        (20.6, file(1)),
    ];
    let told = play(&request(StartMode::Plain, &[0, 1], &[]), BOTH, &script);
    assert_eq!(told, ["20.0 /stop_profile", "20.6 done"]);
    let told = play(&request(StartMode::Plain, &[0, 1], &[]), BOTH, &script[..3]);
    assert_eq!(told, ["605.1 somebody else opened a profile during the window (quiet)"]);
}
