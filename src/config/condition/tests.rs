//! What `condition` promises.

use crate::config::rules::load;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::signal::catalog::Catalog;

/// What is reported of a rule with that signal and those keys, in one line each.
fn report(signal: &str, keys: &str) -> String {
    let text = format!("rules:\n  - {{ name: a, signal: {signal}, {keys} }}\n");
    let loaded = load([("r.yaml", text.as_str())], &Catalog::default(), &CaptureSpec::None);
    let line = |d: &crate::config::diagnostic::Diagnostic| {
        let level = if d.is_error() { "error" } else { "warning" };
        let hint = d.hint.as_ref().map_or_else(String::new, |h| format!(" ({h})"));
        format!("{level}: {}{hint}", d.message)
    };
    loaded.diagnostics.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn assert_reported(cases: &[(&str, &str, &str)]) {
    for (signal, keys, wanted) in cases {
        let reported = report(signal, keys);
        assert!(
            reported.contains(wanted) && !reported.contains('\n'),
            "{signal} {keys}:\n{reported}\nnot: {wanted}"
        );
    }
}

#[test]
fn a_bound_that_nothing_or_everything_reaches_is_an_error() {
    assert_reported(&[
        (
            "kv_usage",
            "trigger: { any_member: { above: 95 } }",
            "never exceeded: `kv_usage` lies between 0 and 1 (it is a share, not a percentage: did you mean 0.95?)",
        ),
        (
            "kv_usage",
            "trigger: { all_members: { below: 20 } }",
            "always exceeded: `kv_usage` lies between 0 and 1 (it is a share, not a percentage: did you mean 0.2?)",
        ),
        (
            "kv_usage",
            "trigger: { max_minus_min: 30 }",
            "never exceeded: `max_minus_min` of `kv_usage` lies between 0 and 1 (it is a share, not a percentage: did you mean 0.3?)",
        ),
        (
            "fwd_occupancy",
            "trigger: { any_member: { above: 100 } }",
            "never exceeded: `fwd_occupancy` lies between 0 and 100",
        ),
        ("load", "trigger: { any_member: { below: 0 } }", "never exceeded: `load` is 0 or more"),
        (
            "load",
            "trigger: { lost_share: 30 }",
            "never exceeded: `lost_share` lies between 0 and 1 (it is a share, not a percentage: did you mean 0.3?)",
        ),
        (
            "load",
            "trigger: { min_over_mean: 20 }",
            "always exceeded: `min_over_mean` lies between 0 and 1 (it is a share",
        ),
        (
            "load",
            "trigger: { departure: 0 }",
            "error: this bound is always exceeded: `departure` is above 0 in every group",
        ),
        (
            "load",
            "trigger: { max_over_mean: 1 }",
            "error: `max_over_mean` is beyond 1 as soon as two members differ at all (write 1.5, say, or add `beyond_chance: 4`)",
        ),
        ("load", "trigger: { min_over_mean: 1 }", "error: `min_over_mean` is beyond 1 as soon as"),
        ("load", "trigger: { cv: 0 }", "error: `cv` is beyond 0 as soon as"),
        ("load", "trigger: { robust_z: 0.5 }", "error: `robust_z` is beyond 0.5 as soon as"),
        (
            "kv_usage",
            "trigger: { cv: 0.3 }, min_mean: 10",
            "no group has such a mean: `kv_usage` is at most 1 (it is a share, not a percentage: did you mean 0.1?)",
        ),
        ("load", "trigger: { cv: 0.3 }, min_mean: -1", "no group's mean is below 0"),
        ("load", "trigger: { cv: .nan }", "expected a finite number, found the number .nan"),
        ("load", "trigger: { cv: 1e999 }", "expected a finite number, found the number 1e999"),
    ]);
}

#[test]
fn a_bound_that_is_only_odd_is_a_warning() {
    assert_reported(&[
        ("load", "trigger: { departure: 1 }", "warning: healthy load departs by 3.5 now and then"),
        ("load", "trigger: { max_minus_min: 0 }", "warning: `max_minus_min` is beyond 0 as soon as"),
        (
            "fwd_occupancy",
            "trigger: { any_member: { above: 0.9 } }",
            "warning: `fwd_occupancy` is in percent, from 0 to 100 (did you mean 90?)",
        ),
    ]);
}

#[test]
fn a_bound_that_is_always_crossed_is_an_error_only_where_nothing_else_decides() {
    let even = "warning: `max_over_mean` is beyond 1 as soon as";
    assert_reported(&[
        ("kv_usage", "trigger: { all: [{ max_over_mean: 1 }, { any_member: { above: 0.95 } }] }", even),
        ("load", "trigger: { max_over_mean: 1, for: 3s }, only_if: 'max(queue_reqs) > 10'", even),
        (
            "load",
            "trigger: { any: [{ max_over_mean: 1 }, { cv: 1 }] }, only_if: 'max(queue_reqs) > 10'",
            even,
        ),
        (
            "load",
            "trigger: { all: [{ max_over_mean: 0.5 }, { cv: 1 }] }",
            "warning: this bound is always exceeded",
        ),
        (
            "load",
            "trigger: { departure: 0 }, only_if: 'max(load) > 10'",
            "warning: this bound is always exceeded",
        ),
        ("load", "trigger: { any: [{ max_over_mean: 1 }, { cv: 1 }] }", "error: `max_over_mean` is beyond 1"),
        ("load", "trigger: { all: [{ max_over_mean: 1 }] }", "error: `max_over_mean` is beyond 1"),
        ("load", "trigger: { max_over_mean: 0.5 }", "error: this bound is always exceeded"),
        (
            "load",
            "trigger: { all: [{ cv: 1 }, { gini: 1 }] }, only_if: 'max(load) > 10'",
            "error: this bound is never exceeded",
        ),
    ]);
}

#[test]
fn a_bound_at_the_even_value_is_right_where_chance_or_the_past_decides() {
    for trigger in
        ["{ max_over_mean: 1, beyond_chance: 4 }", "{ cv: 0, above_baseline: 1.5 }", "{ departure: 5 }"]
    {
        assert_eq!(report("load", &format!("trigger: {trigger}")), "", "{trigger}");
    }
    assert_eq!(report("kv_usage", "trigger: { any_member: { above: 0.95 } }"), "");
    assert_eq!(report("retracted_reqs", "trigger: { any_member: { above: 0 } }"), "", "any at all");
}

#[test]
fn a_key_that_would_do_nothing_beside_its_statistic_is_an_error() {
    let learned = "`factors` has a learned bound; `beyond_chance` does not apply (remove it; `budget.false_alarms` sets the bound)";
    assert_reported(&[
        ("load", "trigger: { factors: any, beyond_chance: 1 }", learned),
        ("load", "trigger: { factors: any, smooth: 60s }", "error: `smooth` does not apply to `factors`"),
        (
            "load",
            "trigger: { factors: any, above_baseline: 5 }",
            "error: `above_baseline` does not apply to `factors`",
        ),
        (
            "load",
            "trigger: { factors: any }, clear: { within_chance: 1 }",
            "error: `within_chance` does not apply to `factors`",
        ),
        (
            "load",
            "trigger: { departure: 5, beyond_chance: 4 }",
            "error: `beyond_chance` does not apply to `departure`",
        ),
        (
            "load",
            "trigger: { departure: 5 }, clear: { departure: 3, within_chance: 4 }",
            "error: `within_chance` does not apply to `departure`",
        ),
        (
            "load",
            "trigger: { all: [{ cv: 0.3 }, { gini: 0.3 }], smooth: 5s }",
            "error: `smooth` beside a list of conditions (put it into the list)",
        ),
        (
            "load",
            "trigger: { cv: 0.3 }, clear: { smooth: 5s }",
            "error: the clear has `smooth` without a statistic, so it would do nothing",
        ),
    ]);
    // The side and the hold of a departure of factors do count.
    assert_eq!(report("load", "trigger: { factors: any, side: high, for: 5s }, clear: { for: 30s }"), "");
}

#[test]
fn a_condition_whose_factors_are_wrong_leaves_no_rule() {
    for factors in ["[shares]", "[]"] {
        let text = format!("rules: [{{ name: a, signal: load, trigger: {{ factors: {factors} }} }}]\n");
        let loaded = load([("r.yaml", &*text)], &Catalog::default(), &CaptureSpec::None);
        assert_eq!(loaded.rules.len(), 0, "{:?}", loaded.rules);
        assert_eq!(loaded.diagnostics.len(), 1, "{factors}: {:?}", loaded.diagnostics);
    }
}

#[test]
fn a_clear_that_never_or_always_holds_or_looks_the_other_way_is_an_error() {
    assert_reported(&[
        (
            "load",
            "trigger: { cv: 0.3 }, clear: { max_over_mean: 0.5 }",
            "this clear never holds, so the rule would fire for ever: `max_over_mean` is 1 or more",
        ),
        (
            "load",
            "trigger: { cv: 0.3 }, clear: { departure: 0 }",
            "this clear never holds, so the rule would fire for ever: `departure` is above 0",
        ),
        (
            "load",
            "trigger: { cv: 0.3 }, clear: { lost_share: 1 }",
            "this clear always holds, so the rule would stop firing at once",
        ),
        (
            "kv_usage",
            "trigger: { any_member: { above: 0.9 } }, clear: { any_member: { below: 0.5 } }",
            "the trigger compares above its bound and the clear below its own",
        ),
    ]);
    assert_eq!(report("load", "trigger: { cv: 0.3 }, clear: { max_over_mean: 0.5, within_chance: 3 }"), "");
}
