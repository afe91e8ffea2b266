use super::*;
use crate::capture::{CaptureSpec, Limits};
use crate::finding::{Side, Statistic};
use crate::rule::{Combine, Condition, FactorSet, Severity, Trigger};
use crate::signal::catalog::{self, Catalog};
use crate::signal::fields::Fields;
use crate::signal::sample::{Signal, Source};
use crate::signal::store::Bounds;
use skewtrap_trace::rank::Rank;

const START: f64 = 1_000.0;

fn condition(signal: Signal, bound: f64) -> Condition {
    let statistic = Statistic::MaxOverMean;
    Condition {
        signal,
        signal_name: catalog::name_of(signal).into(),
        statistic,
        bound,
        direction: statistic.direction(),
        side: statistic.side(),
        chance: None,
        above_baseline: None,
        smooth: Duration::ZERO,
        hold: Duration::ZERO,
        factors: FactorSet::NONE,
    }
}

fn any_of(conditions: Vec<Condition>) -> Rule {
    let combine = Combine::Any;
    Rule {
        name: "any".into(),
        about: None,
        across: vec!["dp_rank".into()],
        within: vec!["target".into()],
        clear: Trigger {
            combine: Combine::All,
            conditions: conditions.clone(),
            hold: Duration::from_secs(10),
        },
        trigger: Trigger { combine, conditions, hold: Duration::from_secs(2) },
        keep_firing_for: Duration::ZERO,
        rearm_after: Duration::ZERO,
        only_if: None,
        min_mean: 0.0,
        min_members: 2,
        min_impact: 0.05,
        joins_trouble: false,
        capture: CaptureSpec::None,
        limits: Limits { cooldown: Duration::ZERO, captures: 1, per: Duration::from_secs(60) },
        severity: Severity::Warning,
        notify: Vec::new(),
        labels: Labels::default(),
    }
}

/// `rule` after 90 seconds on four ranks whose running requests only wiggle, while from second 40 on
/// the queue of rank 2 grows; with the changes of its state.
fn played(rule: Rule) -> (Engine, Vec<Change>) {
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    let target = store.add_target("server".into(), None);
    let at = |s: f64| Time::from_epoch_s(START + s);
    let mut engine = Engine::new(vec![rule], &mut store, at(0.0));
    let mut changes = Vec::new();
    for second in 0..90_u32 {
        let now = at(f64::from(second));
        for rank in 0..4_u16 {
            let wiggle = f64::from((second * 7 + u32::from(rank) * 5) % 4);
            let grown = if rank == 2 { f64::from(second.saturating_sub(40)) } else { 0.0 };
            let mut fields = Fields::default();
            fields.set(catalog::RUNNING_REQS, 20.0 + wiggle);
            fields.set(catalog::QUEUE_REQS, 8.0 + wiggle + grown);
            store.record(target, Rank::dp(rank), Source::Loads, &fields, now, now);
        }
        engine.tick(&mut store, now, &mut changes);
    }
    (engine, changes)
}

fn first_firing(rule: Rule) -> Change {
    let (_, changes) = played(rule);
    changes.into_iter().find(|c| c.state == RuleState::Firing).expect("the queue departs")
}

#[test]
fn what_is_usual_is_learned_while_everything_is_within_its_bound() {
    let queue = Condition { above_baseline: Some(1.3), ..condition(catalog::QUEUE_REQS, 1.3) };
    let mut rule = any_of(vec![queue]);
    rule.clear.conditions = vec![condition(catalog::QUEUE_REQS, 1.3)];
    let fired = first_firing(rule);
    let after = fired.at.since(Time::from_epoch_s(START)).as_secs_f64();
    assert!((60.0..65.0).contains(&after), "a minute is learned first: {after}");
}

#[test]
fn the_onset_is_that_of_the_condition_that_fired_wherever_it_stands() {
    let running = condition(catalog::RUNNING_REQS, 1.9);
    let queue = condition(catalog::QUEUE_REQS, 1.5);
    let findings = [vec![running.clone(), queue.clone()], vec![queue, running]].map(|conditions| {
        let finding = first_firing(any_of(conditions)).finding.expect("what fires has a finding");
        assert_eq!(
            (finding.measured.as_ref().map(|m| &*m.signal), finding.side),
            (Some("queue_reqs"), Side::High)
        );
        finding
    });
    let onset_s = findings[0].onset.epoch_s() - START;
    assert!((onset_s - 40.0).abs() <= 3.0, "{onset_s} +- {}", findings[0].onset_error_s);
    assert_eq!(findings[0], findings[1]);
}

#[test]
fn a_rule_that_fires_says_since_when_and_whom_it_blames() {
    let (engine, _) = played(any_of(vec![condition(catalog::QUEUE_REQS, 1.5)]));
    let evaluations = engine.evaluations(Time::from_epoch_s(START + 90.0));
    let why = &evaluations[0].why;
    assert!(why.starts_with("firing since ") && why.contains(": DP2 is high; it ends once "), "{why}");
}

#[test]
fn an_open_rule_says_what_ends_it_and_with_too_little_load_it_ends_after_the_time_of_its_clear() {
    let rule = Rule { min_mean: 2.0, ..any_of(vec![condition(catalog::QUEUE_REQS, 1.5)]) };
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    let target = store.add_target("server".into(), None);
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let mut engine = Engine::new(vec![rule], &mut store, at(0));
    let (mut changes, mut why) = (Vec::new(), Vec::new());
    // Skewed until 20 s, then one request is left, then nothing is heard.
    for second in 0..60_u32 {
        for rank in 0..4_u16 {
            let queue = match (second, rank) {
                (0..20, 2) => 40.0,
                (0..20, _) => 8.0,
                (_, rank) => f64::from(u8::from(rank == 2)),
            };
            let mut fields = Fields::default();
            fields.set(catalog::QUEUE_REQS, queue);
            store.record(target, Rank::dp(rank), Source::Loads, &fields, at(second), at(second));
        }
        engine.tick(&mut store, at(second), &mut changes);
        why.push(engine.evaluations(at(second))[0].why.clone());
    }
    let since = "firing since 1970-01-01 00:16:42.0 UTC: DP2 is high";
    assert_eq!(why[19], format!("{since}; it ends once max_over_mean(queue_reqs) is at most 1.5 for 10.0 s"));
    let low = "the group's mean is 0.250, below min_mean 2";
    assert_eq!(
        why[25],
        format!(
            "{since}; {low}, and with so little load nothing is uneven: it has been clear for 5.0 s, and ends after 10.0 s"
        )
    );
    assert_eq!(why[31], format!("{low}: too little load to judge"));
    let ended = changes.iter().rfind(|c| c.state == RuleState::Idle).expect("it ends");
    assert_eq!(ended.at, at(30));
}

#[test]
fn a_rule_that_fires_at_once_is_evaluated_at_lines_twenty_milliseconds_apart_and_no_other_is() {
    let running = condition(catalog::RUNNING_REQS, 1.5);
    let at_once = Rule {
        trigger: Trigger { combine: Combine::Any, conditions: vec![running.clone()], hold: Duration::ZERO },
        ..any_of(vec![running.clone()])
    };
    let held = Condition { hold: Duration::from_secs(1), ..running.clone() };
    let smoothed = Condition { smooth: Duration::from_secs(1), ..running.clone() };
    let of_factors = Condition { statistic: Statistic::Factors, ..running.clone() };
    let none_at_once =
        Trigger { combine: Combine::Any, conditions: vec![held, smoothed, of_factors], hold: Duration::ZERO };
    let slow = Rule { trigger: none_at_once, ..any_of(vec![running]) };
    let fired_after = |rule: Rule| {
        let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
        let target = store.add_target("server".into(), None);
        let at = |ms: u32| Time::from_epoch_s(START + f64::from(ms) / 1e3);
        let mut engine = Engine::new(vec![rule], &mut store, at(0));
        let mut changes = Vec::new();
        for ms in (0..200).step_by(20) {
            for rank in 0..4_u16 {
                let mut fields = Fields::default();
                fields.set(catalog::RUNNING_REQS, if rank == 2 && ms >= 20 { 200.0 } else { 20.0 });
                store.record(target, Rank::dp(rank), Source::Log, &fields, at(ms), at(ms));
            }
            engine.on_samples(&mut store, at(ms), &mut changes);
        }
        let fired = changes.iter().find(|c| c.state == RuleState::Firing).map(|c| c.at.since(at(0)));
        (engine.shortest_interval() < EVALUATION_INTERVAL, engine.evaluation_count(), fired)
    };
    assert_eq!(fired_after(at_once), (true, 10, Some(Duration::from_millis(20))));
    assert_eq!(fired_after(slow), (false, 2, Some(EVALUATION_INTERVAL)));
}

/// Every change and every evaluation of a rule on four ranks whose loads wander and which are silent or idle
/// for a while; with how often the quick check had been enough, after how often not.
fn wandering(rule: Rule) -> (Vec<String>, [u32; 2]) {
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    let target = store.add_target("server".into(), None);
    let at = |s: f64| Time::from_epoch_s(START + s);
    let mut engine = Engine::new(vec![rule], &mut store, at(0.0));
    let (mut seen, mut quick_checks, mut changes) = (Vec::new(), [0; 2], Vec::new());
    let mut rng = pseudo_random(7);
    for tenth in 0..4_000_u32 {
        let s = f64::from(tenth) / 10.0;
        let is_silent = (2_000..2_080).contains(&tenth);
        let is_low = (2_500..2_600).contains(&tenth);
        for rank in (0..4_u16).filter(|_| !is_silent) {
            let skew = if rank == 2 && (tenth / 400) % 3 == 1 { 40.0 } else { 0.0 };
            let mut fields = Fields::default();
            let load = if is_low { 1.0 } else { 20.0 + f64::from(rng() % 16) + skew };
            fields.set(catalog::RUNNING_REQS, load);
            store.record(target, Rank::dp(rank), Source::Loads, &fields, at(s), at(s));
        }
        engine.tick(&mut store, at(s), &mut changes);
        for change in changes.drain(..) {
            let Change { at, state, how, since, finding, numbers, reason, may_predate_start, .. } = change;
            seen.push(format!(
                "{at:?} {state:?} {how:?} {since:?} {finding:?} {numbers:?} {reason:?} {may_predate_start}"
            ));
        }
        seen.push(format!("{:?}", engine.evaluations(at(s))));
        for quick_check in &engine.entries[0].quick_checks {
            quick_checks[usize::from(quick_check.reading().is_some())] += 1;
        }
    }
    seen.push(engine.evaluation_count().to_string());
    (seen, quick_checks)
}

/// A sequence that looks random and is always the same.
fn pseudo_random(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    }
}

#[test]
fn a_group_at_which_a_glance_is_enough_shows_and_fires_what_judging_it_in_full_does() {
    for statistic in Statistic::ALL {
        let bound = match statistic {
            Statistic::MaxOverMean => 1.5,
            Statistic::MinOverMean => 0.6,
            Statistic::Jain => 0.75,
            Statistic::MaxMinusMin => 30.0,
            Statistic::RobustZ => 6.0,
            Statistic::AnyMember => 50.0,
            Statistic::AllMembers => 30.0,
            _ => 0.3,
        };
        let once = Condition {
            statistic,
            direction: statistic.direction(),
            side: statistic.side(),
            chance: (statistic == Statistic::MaxOverMean).then_some(2.0),
            hold: if statistic == Statistic::Cv { Duration::from_secs(1) } else { Duration::ZERO },
            ..condition(catalog::RUNNING_REQS, bound)
        };
        let rule = |conditions: Vec<Condition>| {
            let mut rule = Rule { min_mean: 2.0, ..any_of(conditions) };
            rule.clear.conditions.iter_mut().for_each(|c| c.hold = Duration::ZERO);
            rule
        };
        // Of two conditions neither is checked quickly, and the same one twice is the same.
        let (by_quick_checks, quick_checks) = wandering(rule(vec![once.clone()]));
        let (in_full, none) = wandering(rule(vec![once.clone(), once]));
        let remembers = matches!(statistic, Statistic::Departure | Statistic::Factors);
        assert_eq!(none[1], 0);
        assert!(
            quick_checks[0] > 100 && (quick_checks[1] > 500 || remembers),
            "{statistic:?}: {quick_checks:?}"
        );
        for (quick, full) in by_quick_checks.iter().zip(&in_full) {
            assert_eq!(quick, full, "{statistic:?}");
        }
        assert_eq!(by_quick_checks.len(), in_full.len());
    }
}
