//! An incident that was captured and gets worse, through the core's one door.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::watch as play;
use crate::support::watch::{Play, at, core_of};
use proptest::prelude::*;
use skewtrap_core::capture::admit::{CaptureMethod, Policy};
use skewtrap_core::capture::facts::HealthAnswer;
use skewtrap_core::capture::governor::{Attempt, AttemptEnd, Budget, Ledger};
use skewtrap_core::incident::{Incident, VerdictNote};
use skewtrap_core::message::Update;
use skewtrap_core::watch::{Effect, Event, Mode};
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::{Confidence, Kind};

/// Cools down for a minute. Two ranks: `max_over_mean` is between 1 and 2.
const RULE: &str = "rules:
  - name: skew
    signal: load
    trigger: { max_over_mean: 1.1, for: 2s }
    clear: { max_over_mean: 1.05, for: 2s }
    limits: { cooldown: 1m, captures: 100, per: 24h }
";
/// 1.09 times the bound, 1.15 times, 1.64 times and 1.75 times: 1.5 times the first is 1.64.
const SKEWED: [u32; 2] = [60, 40];
const NO_WORSE: [u32; 2] = [62, 38];
const WORSE: [u32; 2] = [90, 10];
const MUCH_WORSE: [u32; 2] = [97, 3];
const EVEN: [u32; 2] = [50, 50];

fn policy() -> Policy {
    Policy { budget: Budget { windows: 1000, ..Budget::default() }, ..Policy::default() }
}

fn play() -> Play {
    Play::of(core_of(Some(RULE), Mode::Live, policy(), Ledger::default(), at(0.0)))
}

impl Play {
    /// So many seconds of a load, on a server that is well.
    fn seconds(&mut self, from: u32, to: u32, loads: [u32; 2]) {
        for s in from..to {
            self.facts(f64::from(s));
            self.second(f64::from(s), loads);
        }
    }

    fn incident(&self) -> Incident {
        self.watch.status(self.watch.now()).incidents[0].clone()
    }

    fn again(&self) -> String {
        self.watch.status(self.watch.now()).rules[0].groups[0].again.clone().unwrap_or_default()
    }
}

/// Captured once, at 1.09 times the bound, with the window and its export over.
fn captured() -> Play {
    let mut play = play();
    play.seconds(0, 5, SKEWED);
    assert_eq!(play.starts, 1);
    play.window_ends(5.0);
    play
}

#[test]
fn what_gets_worse_by_the_margin_is_captured_again_once_the_rule_has_cooled_down() {
    let mut play = captured();
    play.seconds(7, 62, WORSE);
    assert_eq!(
        (play.starts, &play.reasons[..]),
        (1, &["cooldown"][..]),
        "it cools down, and that is said once"
    );
    assert!(
        play.again().contains("and was not captured again: rule skew tried a capture"),
        "{}",
        play.again()
    );
    play.seconds(62, 70, WORSE);
    assert_eq!((play.starts, &play.reasons[..]), (2, &["cooldown"][..]));
    let ids: Vec<&str> =
        play.grants.iter().map(|g| g.attempt.id.rsplit('/').next().expect("a number")).collect();
    assert_eq!(ids, ["1", "2"]);
    play.window_ends(70.0);
    play.seconds(72, 200, WORSE);
    assert_eq!(play.starts, 2, "it is no worse than that");
    assert_eq!(
        (&play.told[..], &play.edited[..]),
        (&[Update::Fired, Update::Captured][..], &[Update::Captured][..]),
        "the second is told with its end"
    );
    assert!(play.ids[1].ends_with(":captured") && play.ids[2].ends_with(":captured:2"), "{:?}", play.ids);
    let incident = play.incident();
    let worse = incident.worse.clone().expect("it got worse");
    assert_eq!((incident.window(), worse.window, worse.refused), (2, 2, None));
    assert!((incident.earlier[0].times_bound - 1.2 / 1.1).abs() < 1e-6 && (worse.value - 1.8).abs() < 1e-6);
    assert!(
        play.again()
            .starts_with("it was captured at 1.64 times its bound and is captured again from 2.45 times on"),
        "{}",
        play.again()
    );
}

#[test]
fn what_does_not_get_worse_by_the_margin_is_captured_once_however_long_it_lasts() {
    let mut play = captured();
    play.seconds(7, 600, NO_WORSE);
    assert_eq!((play.starts, play.reasons.len()), (1, 0), "nothing was wished for either");
    assert_eq!(play.told, [Update::Fired, Update::Captured]);
}

#[test]
fn a_peak_that_is_shorter_than_the_rule_asks_opens_nothing() {
    let mut play = captured();
    play.seconds(7, 90, SKEWED);
    for s in (90..200).step_by(4) {
        play.seconds(s, s + 2, MUCH_WORSE);
        play.seconds(s + 2, s + 4, SKEWED);
    }
    assert_eq!((play.starts, play.reasons.len()), (1, 0));
}

#[test]
fn the_files_of_two_windows_of_one_incident_bear_marks_of_their_own() {
    let mut play = captured();
    play.seconds(7, 70, WORSE);
    let marks = |n: usize| match &play.grants[n].method {
        CaptureMethod::Http(request) => request.marks.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(marks(1).id.expect("an id"), format!("{}-w2", marks(0).id.expect("an id")));
}

#[test]
fn what_another_agent_holds_up_is_asked_for_soon_again_and_told_once() {
    let mut play = play();
    play.seconds(0, 5, SKEWED);
    assert_eq!(play.starts, 1);
    play.held_up(5.0);
    play.seconds(5, 9, SKEWED);
    assert_eq!(play.starts, 1);
    play.seconds(9, 12, SKEWED);
    assert_eq!(play.starts, 2);
    play.held_up(12.0);
    let stored = play.stored.clone().expect("its bundle says that a window is open");
    assert_eq!(stored.capture.refused().map(|r| r.reason.word()), Some("other_agent"));
    assert_eq!((&play.reasons[..], play.edited.len()), (&["other_agent"][..], 0));
    assert_eq!(play.told, [Update::Fired, Update::Refused]);
}

#[test]
fn a_second_window_that_is_held_up_leaves_the_first_one_in_the_bundle() {
    let mut play = captured();
    play.seconds(7, 65, WORSE);
    assert_eq!(play.starts, 2);
    play.held_up(65.0);
    let stored = play.stored.clone().expect("its bundle says that a window is open");
    assert_eq!((stored.window(), stored.capture.state()), (1, play.incident().capture.state()));
    assert!(stored.capture.captured().is_some() && stored.worse.expect("it got worse").refused.is_some());
}

#[test]
fn a_refusal_that_is_news_is_told_once_and_the_wish_is_repeated_when_it_may_have_passed() {
    let mut play = captured();
    play.seconds(7, 66, SKEWED);
    play.health(66.0, HealthAnswer::Unhealthy("503".into()));
    let unwell = |play: &mut Play, from: u32, to: u32| {
        for s in from..to {
            play.health(f64::from(s), HealthAnswer::Unhealthy("503".into()));
            play.second(f64::from(s), WORSE);
        }
    };
    unwell(&mut play, 66, 100);
    assert_eq!((play.starts, &play.reasons[..]), (1, &["unhealthy"][..]));
    assert_eq!(
        (&play.told[..], &play.edited[..]),
        (&[Update::Fired, Update::Captured][..], &[Update::Refused][..])
    );
    assert!(play.ids[2].ends_with(":refused:2"), "{:?}", play.ids);
    unwell(&mut play, 100, 400);
    assert_eq!((play.reasons.len(), play.edited.len()), (1, 1), "the same refusal is no news");
    // Well again: not at once, but within the minute.
    let before = play.starts;
    play.seconds(400, 470, WORSE);
    assert_eq!(play.starts, before + 1);
}

#[test]
fn an_incident_that_is_captured_on_another_rank_is_a_new_one() {
    let mut play = captured();
    play.seconds(7, 70, [3, 97]);
    assert_eq!(play.starts, 1, "the rule cools down");
    assert_eq!(play.over, 1, "the first is over");
    assert!(play.incident().worse.is_none());
}

/// The books that an agent leaves to the next one.
fn books(play: &Play) -> Ledger {
    play.watch.ledger().clone()
}

#[test]
fn a_restart_forgets_no_mark_while_the_same_still_fires() {
    let mut play = captured();
    play.seconds(7, 100, SKEWED);
    let mut next = Play::of(core_of(Some(RULE), Mode::Live, policy(), books(&play), at(100.0)));
    next.seconds(100, 200, SKEWED);
    assert_eq!((next.starts, &next.reasons[..]), (0, &["not_worse"][..]));
    let refused = next.incident().capture.refused().expect("it was refused").why.clone();
    assert!(
        refused.starts_with("this was captured as incident ") && refused.contains("its end was not observed"),
        "{refused}"
    );
    next.seconds(200, 210, WORSE);
    assert_eq!(next.starts, 1, "worse than the mark of before");
    assert!(next.grants[0].attempt.id.ends_with("/1"), "the first window of its own incident");
    assert_eq!(next.told, [Update::Fired]);
}

#[test]
fn what_was_seen_to_end_or_begins_later_is_new_to_the_next_agent() {
    let mut play = captured();
    play.seconds(7, 90, EVEN);
    assert_eq!(play.over, 1);
    let mut next = Play::of(core_of(Some(RULE), Mode::Live, policy(), books(&play), at(100.0)));
    next.seconds(100, 110, SKEWED);
    assert_eq!(next.starts, 1, "it was seen to end");
    let mut play = captured();
    play.seconds(7, 20, SKEWED);
    let mut next = Play::of(core_of(Some(RULE), Mode::Live, policy(), books(&play), at(100.0)));
    next.seconds(100, 110, EVEN);
    next.seconds(110, 120, SKEWED);
    assert_eq!(next.starts, 1, "nobody was there, but this one saw it begin");
}

#[test]
fn a_rule_that_is_read_anew_in_the_middle_of_it_has_no_window_more() {
    let mut play = captured();
    play.seconds(7, 100, SKEWED);
    play.reload(&RULE.replace("max_over_mean: 1.1,", "max_over_mean: 1.12,"), 100.5);
    play.seconds(101, 150, SKEWED);
    assert_eq!((play.starts, &play.reasons[..]), (1, &["not_worse"][..]));
}

#[test]
fn a_verdict_that_comes_late_is_kept_with_the_capture_that_it_is_of() {
    let mut play = captured();
    play.seconds(7, 70, WORSE);
    assert_eq!(play.starts, 2);
    let incident = play.incident().id;
    let note = VerdictNote {
        kind: Kind::UnevenWork,
        rank: None,
        by: None,
        sentence: "DP0 has more to do".into(),
        lost_ms_per_step: None,
        confidence: Confidence::High,
        confirms: None,
        suspect: None,
    };
    let (told, mut effects) = (play.told.len(), Vec::new());
    let event = Event::Compared { incident, window: 1, note };
    play.watch.handle(event, at(70.5), &mut effects);
    let [Effect::Store { incident }] = &effects[..] else { panic!("{effects:?}") };
    let sentence = incident.earlier[0].verdict.as_ref().map(|v| v.sentence.as_str());
    assert_eq!((sentence, &incident.verdict, play.told.len()), (Some("DP0 has more to do"), &None, told));
}

#[test]
fn a_rule_that_was_told_to_capture_nothing_more_opens_no_further_window() {
    let mut play = captured();
    play.seconds(7, 70, SKEWED);
    play.reload(&format!("{RULE}    capture: none\n"), 70.5);
    play.seconds(71, 200, WORSE);
    assert_eq!(play.starts, 1, "its window hurt, and the operator took it away");
}

#[test]
fn a_further_window_needs_the_whole_trigger_and_the_guard() {
    let guarded = RULE.replace("    clear:", "    only_if: max(load) < 85\n    clear:");
    let both = RULE.replace(
        "trigger: { max_over_mean: 1.1, for: 2s }",
        "trigger: { all: [{ max_over_mean: 1.1 }, { all_members: { below: 85 } }], for: 2s }",
    );
    for rule in [guarded, both] {
        let mut play = Play::of(core_of(Some(&rule), Mode::Live, policy(), Ledger::default(), at(0.0)));
        play.seconds(0, 5, SKEWED);
        assert_eq!(play.starts, 1, "{rule}");
        play.window_ends(5.0);
        play.seconds(7, 70, SKEWED);
        play.seconds(70, 200, WORSE);
        assert_eq!(play.starts, 1, "{rule}");
    }
}

#[test]
fn a_restart_between_the_clear_and_the_trigger_forgets_no_mark() {
    // 1.08 times the mean: too little to fire, too much to clear.
    const BETWEEN: [u32; 2] = [54, 46];
    for rule in [RULE.to_owned(), RULE.replace("1.05, for: 2s", "1.05, for: 0s")] {
        let mut play = Play::of(core_of(Some(&rule), Mode::Live, policy(), Ledger::default(), at(0.0)));
        play.seconds(0, 5, SKEWED);
        play.window_ends(5.0);
        play.seconds(7, 100, SKEWED);
        let mut next = Play::of(core_of(Some(&rule), Mode::Live, policy(), books(&play), at(100.0)));
        next.seconds(100, 110, BETWEEN);
        next.seconds(110, 200, SKEWED);
        assert_eq!((next.starts, &next.reasons[..]), (0, &["not_worse"][..]), "{rule}");
    }
}

#[test]
fn a_replay_shows_when_what_was_captured_would_have_been_captured_again() {
    let mut watch = core_of(Some(RULE), Mode::Replay, policy(), Ledger::default(), Time::default());
    let mut effects = Vec::new();
    for s in 0..140 {
        let loads = if s < 20 { SKEWED } else { WORSE };
        watch.observe(&play::loads(at(f64::from(s)), loads), at(f64::from(s)), &mut effects);
    }
    let shown: Vec<(bool, &str, bool)> = effects
        .iter()
        .filter_map(|e| match e {
            Effect::Changed { change, capture, .. } if change.finding.is_some() => {
                Some((change.is_onset(), capture.word(), change.is_transition()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(shown, [(true, "would_start", true), (false, "would_start", false)]);
}

#[derive(Clone, Debug)]
enum Step {
    /// A load lasts so many seconds, on a server that is well or not.
    Load { load: usize, lasting: u32, is_well: bool },
    /// The agent is killed and comes back so many seconds later.
    Restart(u32),
}

const LOADS: [[u32; 2]; 6] = [EVEN, SKEWED, NO_WORSE, WORSE, MUCH_WORSE, [54, 46]];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..6, 1u32..90, prop::bool::weighted(0.8))
            .prop_map(|(load, lasting, is_well)| Step::Load { load, lasting, is_well }),
        2 => (0u32..20).prop_map(Step::Restart),
    ]
}

/// What is remembered of a run beside the agent's own books.
#[derive(Default)]
struct Witness {
    last: Option<Attempt>,
    /// Whether the load was even at some time since the last window.
    was_even: bool,
    ids: BTreeSet<String>,
    further: usize,
}

impl Witness {
    fn check(&mut self, new: &Attempt) -> Result<(), TestCaseError> {
        if let Some(last) = &self.last {
            prop_assert!(new.at >= last.at + Duration::from_secs(60), "within the cooldown");
            if new.incident == last.incident || !self.was_even {
                prop_assert!(new.times_bound >= last.times_bound * 1.5, "no worse: {last:?} {new:?}");
                self.further += 1;
            }
        }
        (self.last, self.was_even) = (Some(new.clone()), false);
        Ok(())
    }
}

fn run(steps: &[Step]) -> Result<usize, TestCaseError> {
    let (mut play, mut witness, mut now) = (play(), Witness::default(), 0);
    for step in steps {
        match step {
            Step::Restart(down) => {
                now += down;
                let mut left = books(&play);
                // Recovery closes what was open before anything else may open.
                let end = AttemptEnd {
                    at: at(f64::from(now)),
                    stalled: Duration::ZERO,
                    bytes: 0,
                    unproven: None,
                    cost: None,
                    harm: None,
                };
                left.attempts.iter_mut().filter(|a| a.end.is_none()).for_each(|a| a.end = Some(end.clone()));
                let core = core_of(Some(RULE), Mode::Live, policy(), left, at(f64::from(now)));
                play = Play::of(core);
            }
            Step::Load { load, lasting, is_well } => {
                witness.was_even |= *load == 0;
                for s in now..now + lasting {
                    play.facts(f64::from(s));
                    if !is_well {
                        play.health(f64::from(s), HealthAnswer::Unhealthy("503".into()));
                    }
                    play.second(f64::from(s), LOADS[*load]);
                    if let Some(grant) = play.grants.pop() {
                        witness.check(&grant.attempt)?;
                        play.grants.push(grant);
                        play.window_ends(f64::from(s) + 0.3);
                        play.grants.clear();
                    }
                }
                now += lasting;
            }
        }
        prop_assert!(play.told_of.values().all(|count| *count <= 3), "{:?}", play.told_of);
        for id in std::mem::take(&mut play.ids) {
            prop_assert!(witness.ids.insert(id.clone()), "told twice: {id}");
        }
    }
    Ok(witness.further)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_incident_has_a_further_window_that_is_no_worse_and_no_message_comes_twice(
        steps in prop::collection::vec(step(), 1..24)
    ) {
        run(&steps)?;
    }
}

#[test]
fn the_stories_of_the_property_test_have_further_windows() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let further: usize = (0..24)
        .map(|_| {
            let steps = prop::collection::vec(step(), 24).new_tree(&mut runner).expect("steps").current();
            run(&steps).expect("the property holds")
        })
        .sum();
    assert!(further >= 5, "{further} further windows");
    eprintln!("further windows in 24 stories: {further}");
}
