//! The governor over the real state: no sequence of wishes, failures, clock jumps and restarts
//! opens two windows at once or exceeds a limit.

mod windows;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use skewtrap::act::state::{OpenMethod, State, WindowRow};
use skewtrap_core::capture::Limits;
use skewtrap_core::capture::governor::{
    Attempt, AttemptEnd, Budget, CaptureRequest, Estimate, Ledger, QUIET, decide,
};
use skewtrap_core::capture::window::Visibility;
use skewtrap_trace::time::Time;

const DAY: Duration = Duration::from_secs(86_400);
const LIMITS: [Limits; 2] = [
    Limits { cooldown: Duration::from_secs(600), captures: 2, per: Duration::from_secs(3 * 3600) },
    Limits { cooldown: Duration::from_secs(60), captures: 3, per: DAY },
];

fn budget() -> Budget {
    Budget { stalled: Duration::from_secs(40), bytes: 100, windows: 6, ..Budget::default() }
}

#[derive(Clone, Debug)]
enum Step {
    /// Time passes.
    Pass(u64),
    /// Somebody sets the clock, forwards or back.
    Jump(i64),
    /// A rule fires on a server, blaming one of two ranks, or still fires and is as bad as that.
    CaptureRequest { rule: usize, target: u8, rank: u8, times_bound: f64 },
    /// What fires there is seen to end.
    Over { rule: usize, target: u8, rank: u8 },
    /// The oldest open window ends, well or not.
    End { unproven: bool, stalled: u64, bytes: u64 },
    /// The agent is killed and starts again: only the state is left.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..3_000).prop_map(Step::Pass),
        1 => (-120_000i64..100_000).prop_map(Step::Jump),
        12 => (0usize..2, 0u8..3, 0u8..2, 1.0f64..4.0)
            .prop_map(|(rule, target, rank, times_bound)| Step::CaptureRequest { rule, target, rank, times_bound }),
        3 => (0usize..2, 0u8..3, 0u8..2).prop_map(|(rule, target, rank)| Step::Over { rule, target, rank }),
        8 => (prop::bool::weighted(0.2), 0u64..12, 0u64..30)
            .prop_map(|(unproven, stalled, bytes)| Step::End { unproven, stalled, bytes }),
        1 => Just(Step::Restart),
    ]
}

/// Servers 0 and 1 are of one group, 2 is alone.
fn group(target: u8) -> String {
    if target < 2 { "pair".into() } else { "alone".into() }
}

/// Everything that was ever granted, kept apart from the governor's own books.
#[derive(Default)]
struct Witness {
    /// With their ends, as this test made them.
    granted: Vec<Attempt>,
    /// What fires: the worst of its captures, and when the last one was.
    captured: BTreeMap<Firing, (f64, Time)>,
    /// The incident of what fires, as the living agent calls it.
    incidents: BTreeMap<Firing, (String, bool)>,
    named: usize,
}

/// A rule, a server, a rank.
type Firing = (usize, u8, u8);

impl Witness {
    /// Checks a grant against all before it, by counting.
    fn admit(
        &self,
        new: &Attempt,
        firing: Firing,
        limits: &Limits,
        expected: Estimate,
    ) -> Result<(), TestCaseError> {
        let open = self.granted.iter().filter(|a| a.end.is_none());
        prop_assert!(open.clone().all(|a| a.group != new.group), "two windows at once");
        let same: Vec<&Attempt> =
            self.granted.iter().filter(|a| a.rule == new.rule && a.target == new.target).collect();
        for before in &same {
            prop_assert!(new.at >= before.at + limits.cooldown, "within the cooldown");
        }
        let within = |per: Duration, of: &[&Attempt]| of.iter().filter(|a| a.at + per > new.at).count();
        prop_assert!(within(limits.per, &same) < limits.captures as usize, "over the rule's limit");
        let all: Vec<&Attempt> = self.granted.iter().collect();
        prop_assert!(within(DAY, &all) < budget().windows as usize, "over the day's windows");
        let today = || self.granted.iter().filter(|a| a.at + DAY > new.at).filter_map(|a| a.end.as_ref());
        prop_assert!(today().map(|e| e.stalled).sum::<Duration>() + expected.stalled <= budget().stalled);
        prop_assert!(today().map(|e| e.bytes).sum::<u64>() + expected.bytes <= budget().bytes);
        // Also where an agent before this one captured it, unless that is more than a day ago.
        let known = self.granted.iter().any(|a| a.incident == new.incident);
        if let Some((worst, at)) = self.captured.get(&firing).filter(|(_, at)| known || new.at < *at + DAY) {
            prop_assert!(new.times_bound >= worst * 1.5, "captured at {at}, and no worse");
        }
        let quiet = self.granted.iter().filter(|a| a.target == new.target).filter_map(|a| a.end.as_ref());
        for end in quiet.filter(|end| end.unproven.is_some()) {
            prop_assert!(new.at >= end.at + QUIET, "a server that is to be left alone");
        }
        Ok(())
    }

    /// The incident of what fires, and whether it may have fired before this agent was there.
    fn incident(&mut self, firing: Firing, now: Time, began: Time) -> (String, bool) {
        if let Some(known) = self.incidents.get(&firing) {
            return known.clone();
        }
        self.named += 1;
        let may_predate_start = now.since(began) < Duration::from_secs(10);
        if !may_predate_start {
            self.captured.remove(&firing);
        }
        let new = (format!("incident{}", self.named), may_predate_start);
        self.incidents.insert(firing, new.clone());
        new
    }
}

fn expected_of(ledger: &Ledger, target: &str) -> Estimate {
    // Bytes are counted in ones here; the guess for an unseen server would fill the budget.
    let learned = ledger.estimate(target, 1);
    Estimate { bytes: learned.bytes.min(30), ..learned }
}

fn run(steps: &[Step]) -> Result<BTreeMap<&'static str, u32>, TestCaseError> {
    let dir = tempfile::tempdir().expect("a folder");
    let mut state = State::open(dir.path()).expect("a state");
    let mut now = Time::from_epoch_s(1_700_000_000.0);
    let (mut witness, mut outcomes, mut began) = (Witness::default(), BTreeMap::new(), now);
    for step in steps {
        match step {
            Step::Pass(s) => now = now + Duration::from_secs(*s),
            Step::Jump(s) if *s < 0 => now = now - Duration::from_secs(s.unsigned_abs()),
            Step::Jump(s) => now = now + Duration::from_secs(s.unsigned_abs()),
            Step::Over { rule, target, rank } => {
                let (words, firing) = (firing_of(*rank), (*rule, *target, *rank));
                // RankId was not there when it fired cannot see it end.
                if witness.incidents.remove(&firing).is_some() {
                    witness.captured.remove(&firing);
                    let (rule, target) = (format!("rule{rule}"), format!("server{target}"));
                    state.end_firing(&rule, &target, &words, now).expect("writable");
                }
            }
            Step::Restart => {
                drop(state);
                witness.incidents.clear();
                began = now;
                state = State::open(dir.path()).expect("the lock was given back");
                let books = |attempts: &[Attempt]| -> BTreeMap<String, (Time, Option<AttemptEnd>)> {
                    attempts.iter().map(|a| (a.id.clone(), (a.at, a.end.clone()))).collect()
                };
                let kept = state.ledger().expect("readable").attempts;
                prop_assert_eq!(books(&kept), books(&witness.granted), "a restart refills nothing");
            }
            Step::End { unproven, stalled, bytes } => {
                let ledger = state.ledger().expect("readable");
                let Some(open) = ledger.open().next() else { continue };
                let end = AttemptEnd {
                    at: now,
                    stalled: Duration::from_secs(*stalled),
                    bytes: *bytes,
                    unproven: unproven.then(|| "the start timed out".to_owned()),
                    cost: None,
                    harm: None,
                };
                state.end(&open.id, &end).expect("writable");
                let known = witness.granted.iter_mut().find(|a| a.id == open.id);
                known.expect("it was granted here").end = Some(end);
            }
            Step::CaptureRequest { rule, target, rank, times_bound } => {
                let ledger = state.ledger().expect("readable");
                let (name, target_name) = (format!("rule{rule}"), format!("server{target}"));
                let firing = (*rule, *target, *rank);
                let (incident, may_predate_start) = witness.incident(firing, now, began);
                let (limits, group, words) = (&LIMITS[*rule], group(*target), firing_of(*rank));
                let request = CaptureRequest {
                    rule: &name,
                    limits,
                    target: &target_name,
                    group: &group,
                    incident: &incident,
                    firing: &words,
                    may_predate_start,
                    times_bound: *times_bound,
                };
                let expected = expected_of(&ledger, &target_name);
                match decide(&request, &ledger, &budget(), expected, now) {
                    Err(refusal) => {
                        prop_assert!(!refusal.to_string().is_empty());
                        *outcomes.entry(refusal.word()).or_default() += 1;
                    }
                    Ok(()) => {
                        let attempt = Attempt {
                            id: format!("{incident}/{}", witness.granted.len()),
                            rule: name.clone(),
                            target: target_name.clone(),
                            group: group.clone(),
                            incident: incident.clone(),
                            firing: words.clone(),
                            at: now,
                            times_bound: *times_bound,
                            over_at: None,
                            end: None,
                        };
                        witness.admit(&attempt, firing, limits, expected)?;
                        begin(&state, &attempt);
                        let worst = witness.captured.entry(firing).or_insert((0.0, now));
                        *worst = (worst.0.max(*times_bound), now);
                        witness.granted.push(attempt);
                        *outcomes.entry("granted").or_default() += 1;
                    }
                }
            }
        }
    }
    Ok(outcomes)
}

fn firing_of(rank: u8) -> String {
    format!("dp_rank={rank} high")
}

fn begin(state: &State, attempt: &Attempt) {
    let window = WindowRow {
        attempt: attempt.id.clone(),
        incident: attempt.incident.clone(),
        target: attempt.target.clone(),
        method: OpenMethod::Command { group: None },
        sent_at: attempt.at,
        granted: true,
        instance: None,
        unproven: None,
        stops: None,
        ended: false,
        log_from: None,
        logs_from: Default::default(),
        refused_double: false,
    };
    state.begin(attempt, &window, None).expect("writable");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_exceeds_a_limit_or_opens_two_windows_at_once(steps in prop::collection::vec(step(), 1..80)) {
        run(&steps)?;
    }

    #[test]
    fn no_window_is_open_beside_another_or_past_its_deadline_plus_grace(
        steps in prop::collection::vec(windows::step(), 1..40), sees in windows::sees(),
    ) {
        windows::run(&steps, sees)?;
    }
}

#[test]
fn the_sequences_of_windows_open_many_and_are_cut_short_by_restarts() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    for (log, files) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut runner = TestRunner::deterministic();
        let (mut granted, mut open, mut unproven) = (0, 0, 0);
        for _ in 0..10 {
            let steps =
                prop::collection::vec(windows::step(), 40).new_tree(&mut runner).expect("steps").current();
            let came = windows::run(&steps, Visibility { log, files }).expect("the property holds");
            (granted, unproven) = (granted + came.granted, unproven + came.unproven);
            open = open.max(came.most_open);
        }
        eprintln!("log {log}, files {files}: {granted} windows in 10 sequences, {unproven} unproven");
        assert!(granted >= 25 && open == 1, "{granted} windows were granted");
        // What nothing shows is not called closed; what the log shows is.
        assert!(if log || files { unproven * 2 < granted } else { unproven > 0 }, "{unproven} of {granted}");
    }
}

#[test]
fn the_sequences_of_the_property_test_reach_grants_and_every_kind_of_refusal() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<&'static str, u32> = BTreeMap::new();
    for _ in 0..40 {
        let steps = prop::collection::vec(step(), 80).new_tree(&mut runner).expect("steps").current();
        for (word, n) in run(&steps).expect("the property holds") {
            *seen.entry(word).or_default() += n;
        }
    }
    let wanted = [
        "granted",
        "cooldown",
        "rule_limit",
        "window_open",
        "not_worse",
        "daily_windows",
        "daily_stall",
        "daily_bytes",
        "quiet",
        "future_state",
    ];
    for word in wanted {
        assert!(seen.contains_key(word), "{word} was never reached: {seen:?}");
    }
    eprintln!("governor outcomes: {seen:?}");
}
