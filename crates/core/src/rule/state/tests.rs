//! What `state` promises.

use proptest::prelude::*;

use super::*;
use skewtrap_trace::rank::Rank;

const HOLDS: Holds =
    Holds { trigger: Duration::from_secs(3), clear: Duration::from_secs(5), rearm: Duration::from_secs(2) };

fn t(s: u64) -> Time {
    Time::from_nanos(0) + Duration::from_secs(1000 + s)
}

/// Plays a second per letter: `.` even, `0`..`9` that rank high, `a`..`j` that rank low, `_` absent, `x`
/// disturbed and clear, `X` disturbed and not clear, `!` impossible. Returns the steps that were reported,
/// with their times.
fn play(script: &str) -> String {
    let mut state = GroupState::default();
    let mut steps = Vec::new();
    for (s, letter) in script.chars().enumerate() {
        let now = t(s as u64);
        let member;
        let input = match letter {
            '_' => Input::Absent,
            '!' => Input::Impossible,
            'x' => Input::Disturbed { clear: true },
            'X' => Input::Disturbed { clear: false },
            '.' => Input::Judged { trigger: None, clear: true, newest: now },
            // Neither: between the two bounds.
            '-' => Input::Judged { trigger: None, clear: false, newest: now },
            c => {
                let (index, side) = match c.to_digit(10) {
                    Some(d) => (d, Side::High),
                    None => (c as u32 - 'a' as u32, Side::Low),
                };
                member = Arc::new(Rank::dp(index as u16).labels());
                Input::Judged { trigger: Some((&member, side)), clear: false, newest: now }
            }
        };
        let word = match state.step(input, HOLDS, now) {
            Step::Same => continue,
            Step::Moved => state.rule_state().word().to_owned(),
            Step::Resumed => "resumed".to_owned(),
            Step::Reblamed => "reblamed".to_owned(),
        };
        let whom = match &state {
            GroupState::Firing(f) => format!("({} {:?})", f.blame.member, f.blame.side),
            _ => String::new(),
        };
        steps.push(format!("{s}:{word}{whom}"));
    }
    steps.join(" ")
}

#[test]
fn a_rule_fires_after_its_for_and_clears_after_its_own() {
    assert_eq!(play(".22222......."), "0:idle 1:pending 4:firing(dp_rank=2 High) 11:idle");
}

#[test]
fn a_break_in_the_trigger_starts_its_for_again() {
    assert_eq!(play(".22-2222"), "0:idle 1:pending 3:idle 4:pending 7:firing(dp_rank=2 High)");
}

#[test]
fn between_the_bounds_a_firing_goes_on() {
    assert_eq!(play(".2222....-....."), "0:idle 1:pending 4:firing(dp_rank=2 High)");
}

#[test]
fn absent_data_neither_fire_nor_resolve() {
    assert_eq!(play(".22_____2"), "0:idle 1:pending 3:unknown 8:pending");
    assert_eq!(
        play(".2222________2....."),
        "0:idle 1:pending 4:firing(dp_rank=2 High) 5:unknown 13:resumed(dp_rank=2 High)"
    );
    assert_eq!(
        play(".2222____......"),
        "0:idle 1:pending 4:firing(dp_rank=2 High) 5:unknown 9:resumed(dp_rank=2 High) 14:idle",
        "the clear counts from when data are back"
    );
    assert_eq!(play("____."), "4:idle", "what never came has not stopped");
}

#[test]
fn a_firing_whose_data_were_away_for_long_is_over_when_they_are_back_and_may_begin_anew() {
    let away = |seconds: usize| play(&format!(".2222{}2222", "_".repeat(seconds)));
    let begun = "0:idle 1:pending 4:firing(dp_rank=2 High) 5:unknown";
    assert_eq!(away(599), format!("{begun} 604:resumed(dp_rank=2 High)"));
    assert_eq!(away(601), format!("{begun} 606:idle 607:pending"));
}

#[test]
fn another_rank_or_side_that_lasts_fires_anew_without_passing_through_idle() {
    assert_eq!(play(".2222211111"), "0:idle 1:pending 4:firing(dp_rank=2 High) 9:reblamed(dp_rank=1 High)");
    assert_eq!(play(".22222112111"), "0:idle 1:pending 4:firing(dp_rank=2 High)");
    assert_eq!(play(".22222cccc"), "0:idle 1:pending 4:firing(dp_rank=2 High) 9:reblamed(dp_rank=2 Low)");
}

#[test]
fn a_capture_begins_nothing_and_may_end_a_firing() {
    assert_eq!(play(".22XXX2222"), "0:idle 1:pending 3:idle 6:pending 9:firing(dp_rank=2 High)");
    assert_eq!(play(".2222xxxxxx"), "0:idle 1:pending 4:firing(dp_rank=2 High) 10:idle");
}

#[test]
fn after_a_firing_a_rule_rests_before_it_begins_again() {
    assert_eq!(play(".2222......2222"), "0:idle 1:pending 4:firing(dp_rank=2 High) 10:idle 12:pending");
}

#[test]
fn what_cannot_be_judged_is_inert_until_it_can() {
    assert_eq!(play("!!.!"), "0:inert 2:idle 3:inert");
}

#[test]
fn one_sample_looked_at_for_long_does_not_fire() {
    let mut state = GroupState::default();
    let member = Arc::new(Rank::dp(1).labels());
    for s in 0..60 {
        let input = Input::Judged { trigger: Some((&member, Side::High)), clear: false, newest: t(0) };
        state.step(input, HOLDS, t(s));
    }
    assert_eq!(state.rule_state(), RuleState::Pending);
}

#[test]
fn a_zero_for_fires_at_once() {
    let mut state = GroupState::default();
    let member = Arc::new(Rank::dp(1).labels());
    let holds = Holds { trigger: Duration::ZERO, ..HOLDS };
    let input = Input::Judged { trigger: Some((&member, Side::High)), clear: false, newest: t(0) };
    assert_eq!(state.step(input, holds, t(0)), Step::Moved);
    assert_eq!(state.rule_state(), RuleState::Firing);
}

#[test]
fn a_firing_that_is_over_when_its_data_are_back_does_not_go_on() {
    let (mut state, member) = (GroupState::default(), Arc::new(Rank::dp(1).labels()));
    let holds = Holds { trigger: Duration::ZERO, clear: Duration::ZERO, ..HOLDS };
    let fires = Input::Judged { trigger: Some((&member, Side::High)), clear: false, newest: t(0) };
    state.step(fires, holds, t(0));
    state.step(Input::Absent, holds, t(5));
    let is_even = Input::Judged { trigger: None, clear: true, newest: t(9) };
    assert_eq!(state.step(is_even, holds, t(9)), Step::Moved);
    assert_eq!(state.rule_state(), RuleState::Idle);
}

proptest! {
    #[test]
    fn no_firing_begins_without_three_seconds_of_trigger_before_it(script in "[.\\-12ab_xX!]{0,80}") {
        let steps = play(&script);
        for word in steps.split(' ').filter(|w| w.contains(":firing")) {
            let at: usize = word.split(':').next().and_then(|n| n.parse().ok()).expect("a second");
            let before = &script[at.saturating_sub(3)..=at];
            prop_assert!(before.len() == 4 && before.chars().all(|c| "12ab".contains(c)), "{word} in {script}");
        }
    }

    #[test]
    fn no_firing_ends_without_its_clear_holding_for_long(script in "[.\\-12ab_xX]{0,80}") {
        let steps = play(&script);
        let words: Vec<&str> = steps.split(' ').collect();
        for pair in words.windows(2).filter(|p| p[1].ends_with(":idle") && !p[0].contains("pending") && !p[0].contains("unknown")) {
            let at: usize = pair[1].split(':').next().and_then(|n| n.parse().ok()).expect("a second");
            if at >= 5 {
                prop_assert!(script[at - 5..=at].chars().all(|c| ".x".contains(c)), "{} in {script}", pair[1]);
            }
        }
    }
}

#[test]
fn of_two_members_one_that_is_high_and_the_other_that_is_low_are_one_blame() {
    let [a, b] = [0, 1].map(|index| Arc::new(Rank::dp(index).labels()));
    let blame = Blame { member: a.clone(), side: Side::High };
    let firing = Firing { since: t(0), fired_at: t(0), blame, newest: t(0), clear_since: None, other: None };
    let state = GroupState::Firing(firing);
    assert_eq!(state.resolve_pair([&a, &b], (&b, Side::Low)), (&a, Side::High));
    assert_eq!(state.resolve_pair([&a, &b], (&a, Side::High)), (&a, Side::High));
    assert_eq!(state.resolve_pair([&a, &b], (&b, Side::High)), (&b, Side::High), "it moved to the other");
    assert_eq!(state.resolve_pair([&a, &b], (&a, Side::Low)), (&a, Side::Low), "it turned round");
    assert_eq!(GroupState::default().resolve_pair([&a, &b], (&b, Side::Low)), (&b, Side::Low));
}
