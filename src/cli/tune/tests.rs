//! What `tune` promises of the bounds it tries and advises.

use super::*;
use skewtrap_core::rule::Statistic;

fn config_of(preset: &str) -> Config {
    rules_of(&[format!("preset:{preset}")]).expect("a shipped preset")
}

#[test]
fn every_bound_that_is_tried_can_fire_and_clear() {
    for preset in ["dp-attention-tokens", "kv-usage-skew", "dp-load-skew", "starved-rank", "slow-rank"] {
        let config = config_of(preset);
        for checked in &config.rules {
            for varied in VariedCondition::all_of(&checked.rule, &config.catalog) {
                assert!(varied.bounds.contains(&varied.own().bound), "{preset}: its own is tried");
                for copy in varied.copies() {
                    let trigger = &copy.trigger.conditions[varied.index];
                    assert!(can_trigger(trigger, &config.catalog), "{trigger:?}");
                    assert!(copy.clear.conditions.iter().all(|c| can_clear(c, &config.catalog)), "{copy:?}");
                }
            }
        }
    }
}

#[test]
fn a_clear_stays_as_far_from_even_as_its_trigger_is() {
    let config = config_of("dp-attention-tokens");
    let varied = &VariedCondition::all_of(&config.rules[0].rule, &config.catalog)[0];
    let loosest = varied.copies().next().expect("a bound");
    let (trigger, clear) = (loosest.trigger.conditions[0].bound, loosest.clear.conditions[0].bound);
    assert!((trigger - 1.08).abs() < 1e-9 && (clear - 1.05).abs() < 1e-9, "{trigger} {clear}");
}

#[test]
fn a_share_is_not_tried_beyond_1() {
    let config = config_of("kv-usage-skew");
    let any_member = &VariedCondition::all_of(&config.rules[0].rule, &config.catalog)[1];
    assert_eq!(any_member.own().statistic, Statistic::AnyMember);
    assert!(any_member.bounds.iter().all(|b| *b > 0.0 && *b < 1.0), "{:?}", any_member.bounds);
}

#[test]
fn a_bound_is_advised_only_if_all_stricter_ones_are_within_the_limit() {
    let tried = |per_day: &[f64]| -> Vec<BoundResult> {
        let one = |(i, &per_day): (usize, &f64)| BoundResult {
            bound: i as f64,
            is_reachable: i < 4,
            firings: 0,
            per_day,
        };
        per_day.iter().enumerate().map(one).collect()
    };
    assert_eq!(advised_of(&tried(&[1.0, 9.0, 4.0, 1.0, 0.0]), 1.0), Some(3.0), "the first fires for ever");
    assert_eq!(advised_of(&tried(&[9.0, 9.0, 9.0, 9.0, 0.0, 0.0]), 1.0), None, "nothing can cross it");
    assert_eq!(advised_of(&tried(&[1.0, 0.0]), 1.0), Some(0.0));
    assert_eq!(advised_of(&tried(&[0.0, 2.0]), 1.0), None);
    assert_eq!(advised_of(&[], 1.0), None);
}

#[test]
fn a_bound_that_the_ranks_of_a_group_cannot_reach_is_told_from_one_that_never_fires() {
    let of = |yaml: &str| {
        let text = format!("rules: [{{ name: x, signal: load, trigger: {yaml} }}]\n");
        let loaded = file::load("x", &text, &|_| Ok(Vec::new()));
        loaded.config.expect("it is right").rules[0].rule.trigger.conditions[0].clone()
    };
    let mean = of("{ max_over_mean: 1.5, beyond_chance: 1.2 }");
    assert!(is_reachable(&mean, 3.9, 4) && !is_reachable(&mean, 4.0, 4) && is_reachable(&mean, 4.0, 8));
    assert!(is_reachable(&mean, 99.0, 0), "nobody knows how many there are");
    let jain = of("{ jain: 0.5 }");
    assert!(is_reachable(&jain, 0.3, 4) && !is_reachable(&jain, 0.25, 4));
    let difference = of("{ max_minus_min: 20 }");
    assert!(is_reachable(&difference, 1e9, 4));
}

#[test]
fn advice_waits_for_a_recording_in_which_the_tolerable_rate_would_show() {
    assert_eq!([1.0, 2.0, 0.5, 0.0].map(advises_from), [24.0, 12.0, 48.0, 24.0]);
    let report =
        |hours: f64| Report { hours, advises_from_hours: 24.0, limit_per_day: 1.0, rules: Vec::new() };
    assert!(report(1.0 / 60.0).is_too_short() && !report(24.0).is_too_short());
    assert_eq!(
        report(1.0 / 60.0).too_short(),
        "the recordings cover 60 s; a bound for 1 a day is advised from 24 h on, and sure from 72 h on"
    );
}
