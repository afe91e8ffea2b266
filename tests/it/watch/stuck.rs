//! No rule's window opens while a rank with work stands still, nor a moment after.

use crate::support::watch::{Play, at, core, loads_of};
use skewtrap_core::message::{Message, Origin, Update};
use skewtrap_core::watch::{Event, Mode};

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
    assert!(refused.starts_with("DP0 has not moved for 20"), "{refused}");
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

/// The shipped rules on two ranks with so much work each, whose clocks stand still from 60 s on where
/// `frozen` says so, until 150 s; then both go on.
fn clocks(work: [u32; 2], frozen: [bool; 2]) -> Play {
    let mut play = Play::of(core(None, Mode::Live, at(0.0)));
    for s in 0..200 {
        let s = f64::from(s);
        let stamp = |rank: usize| if frozen[rank] && (60.0..150.0).contains(&s) { at(60.0) } else { at(s) };
        let load = |rank: usize| if frozen[rank] && s >= 59.0 { work[rank] } else { 0 };
        play.tell(Event::Observed(loads_of(at(s), [load(0), load(1)], [stamp(0), stamp(1)])), s);
        play.tell(Event::Tick, s + 0.3);
    }
    play
}

#[test]
fn a_scheduler_that_is_killed_is_told_by_its_own_clock_with_work_or_without_and_with_no_load_anywhere() {
    for (work, title) in [
        ([0, 0], "stuck-rank: DP0 shows no sign of life on server"),
        ([3, 0], "stuck-rank: DP0 has work and does not move on server"),
    ] {
        let play = clocks(work, [true, false]);
        let fired = play.fired.as_ref().expect(title);
        assert!(play.told.contains(&Update::Resolved), "it goes on: {:?}", play.told);
        let told = Message::of(fired, Update::Fired, fired.fired_at, &Origin::default());
        assert_eq!(told.title, title);
        let how_much = &told.facts.how_much;
        assert!(
            how_much.contains("(it had stood still for 2") && how_much.contains(" s when that was found"),
            "{how_much}"
        );
        assert!(!how_much.contains("times the bound"), "{how_much}");
        assert!((fired.finding.onset.epoch_s() - at(60.0).epoch_s()).abs() < 3.0, "{:?}", fired.finding);
        assert!(fired.fired_at.epoch_s() <= at(86.0).epoch_s(), "{}", fired.fired_at);
        assert_eq!(play.told.iter().filter(|update| **update == Update::Fired).count(), 1, "{:?}", play.told);
        // It ends a while after the rank moves again: what it stood still for is no longer.
        let ended = play.watch.incident(&fired.id).expect("it is in memory");
        let moved = ended.moved_again.expect("it was seen to move").epoch_s();
        assert!((moved - at(150.0).epoch_s()).abs() < 2.0, "{moved}");
        assert!(ended.resolved_at.is_some_and(|end| end.epoch_s() - moved > 4.0), "{ended:?}");
        let told = Message::of(ended, Update::Resolved, at(180.0), &Origin::default()).facts.how_much;
        assert!(
            told.contains(" s when that was found, 90") || told.contains(" s when that was found, 1.5"),
            "{told}"
        );
    }
}

#[test]
fn a_server_whose_ranks_all_freeze_and_one_whose_idle_ranks_go_on_is_no_ranks_trouble() {
    for frozen in [[true, true], [false, false]] {
        let play = clocks([0, 0], frozen);
        assert!(play.told.is_empty(), "{frozen:?}: {:?}", play.told);
    }
}
