//! No rule's window opens while a rank with work stands still, nor a moment after.

use crate::support::watch::{Play, at, loads_of};
use skewtrap_core::watch::Event;

/// A play of two ranks under a rule of statistics, which both move until 20 s.
fn play() -> Play {
    let mut play = Play::new();
    for s in 0..20 {
        play.second(f64::from(s), [20, 20]);
    }
    play
}

/// Seconds in which DP0 stands still since 20 s, with so much work by its last word.
fn still(play: &mut Play, seconds: std::ops::Range<u32>, dp0: u32, dp1: u32) {
    for s in seconds.map(f64::from) {
        play.facts(s);
        play.tell(Event::Observed(loads_of(at(s), [dp0, dp1], [at(20.0), at(s)])), s);
        play.tell(Event::Tick, s + 0.3);
    }
}

#[test]
fn every_rules_window_is_refused_as_long_as_a_rank_is_stuck_and_some_seconds_after() {
    let mut play = play();
    still(&mut play, 20..22, 20, 20);
    // The peers take what it does not: another rule than `stuck-rank` fires.
    still(&mut play, 22..40, 20, 60);
    assert_eq!((play.starts, &play.reasons[..]), (0, &["no_progress", "rank_stuck"][..]));
    play.asked(40.0);
    let refused = play.answer.take().expect("asked").expect_err("it hangs").to_string();
    assert!(refused.starts_with("DP0 has work and has not moved for 20"), "{refused}");
    for s in 41..60 {
        play.facts(f64::from(s));
        play.second(f64::from(s), [20, 20]);
        if s == 45 {
            play.asked(45.5);
            let refused = play.answer.take().expect("asked").expect_err("it woke a moment ago").to_string();
            assert!(refused.contains("was stuck until") && refused.contains("may stop again"), "{refused}");
        }
    }
    assert_eq!(play.starts, 0);
    play.asked(60.0);
    assert!(play.answer.expect("asked").is_ok(), "it moves again");
}

#[test]
fn a_rank_that_only_paused_delays_the_window_and_one_without_work_does_not() {
    let mut paused = play();
    still(&mut paused, 20..22, 20, 20);
    still(&mut paused, 22..23, 20, 60);
    assert_eq!((paused.starts, &paused.reasons[..]), (0, &["no_progress"][..]));
    for s in 23..26 {
        paused.facts(f64::from(s));
        paused.second(f64::from(s), [20, 60]);
    }
    assert_eq!(paused.starts, 1, "a second later it is known to move");
    let mut idle = play();
    still(&mut idle, 20..22, 0, 20);
    still(&mut idle, 22..23, 0, 60);
    assert_eq!((idle.starts, idle.refusals), (1, 0), "{:?}", idle.reasons);
}
