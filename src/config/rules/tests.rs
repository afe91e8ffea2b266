//! What `rules` promises.

use super::*;

fn loaded(text: &str) -> LoadedRules {
    load([("rules.yaml", text)], &Catalog::default(), &CaptureSpec::None)
}

fn problems(text: &str) -> String {
    loaded(text).diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_rules_are_right() {
    let shipped = shipped(&Catalog::default(), &CaptureSpec::None);
    assert!(shipped.diagnostics.is_empty(), "{:?}", shipped.diagnostics);
    let names: Vec<&str> = shipped.rules.iter().map(|c| &*c.rule.name).collect();
    assert_eq!(names, ["dp-load-skew", "stuck-rank"]);
}

#[test]
fn the_rule_of_the_design_is_read() {
    let text = "rules:
  - name: dp-load-skew
    about: One DP rank holds more running and queued requests than its peers.
    signal: load
    across: dp_rank
    within: [target, role]
    trigger: { max_over_mean: 1.5, beyond_chance: 4, for: 3s }
    clear:   { max_over_mean: 1.5, within_chance: 3, for: 10s }
    min_mean: 4
    only_if: ranks(load) >= 2
    capture: { http: { num_steps: 10, deadline: 30s } }
    limits:  { cooldown: 10m, captures: 4, per: 24h }
    severity: warning
    notify:  [oncall]
";
    let loaded = loaded(text);
    assert!(loaded.diagnostics.is_empty(), "{}", problems(text));
    let checked = &loaded.rules[0];
    assert_eq!(checked.rule.trigger.hold.as_secs(), 3);
    assert_eq!(checked.rule.clear.conditions[0].chance, Some(3.0));
    insta::assert_snapshot!(checked.settings.to_string(), @r"
    name                               dp-load-skew                              rules.yaml:2
    about                              One DP rank holds more running and queued requests than its peers.  rules.yaml:3
    signal                             load                                      rules.yaml:4
    across                             dp_rank                                   rules.yaml:5
    within                             target, role                              rules.yaml:6
    trigger.for                        3s                                        rules.yaml:7
    trigger.max_over_mean              1.5                                       rules.yaml:7
    trigger.beyond_chance              4                                         rules.yaml:7
    trigger.signal                     load                                      rules.yaml:4
    trigger.side                       high                                      default
    trigger.smooth                     0s                                        default
    trigger.above_baseline             none                                      default
    clear.for                          10s                                       rules.yaml:8
    clear.max_over_mean                1.5                                       rules.yaml:8
    clear.within_chance                3                                         rules.yaml:8
    clear.signal                       load                                      rules.yaml:4
    clear.side                         high                                      default
    clear.smooth                       0s                                        default
    only_if                            ranks(load) >= 2                          rules.yaml:10
    capture                            http                                      rules.yaml:11
    capture.http.output_dir            the server's own                          default
    capture.http.max_stall             none (predicted 2.4 s before the first window, with 32 layers)  default
    capture.http.max_stall_slow_host   as max_stall                              default
    capture.http.num_steps             10                                        rules.yaml:11
    capture.http.activities            GPU alone                                 default
    capture.http.escalate              gpu                                       default
    capture.http.with_stack            false                                     default
    capture.http.record_shapes         false                                     default
    capture.http.profile_by_stage      false                                     default
    capture.http.profile_stages        both                                      default
    capture.http.profile_prefix        none                                      default
    capture.http.profile_id            the incident's                            default
    capture.http.detailed_annotations  false                                     default
    capture.http.merge_profiles        false                                     default
    capture.http.start_step            none                                      default
    capture.http.warmup                0s                                        default
    capture.http.until                 none                                      default
    capture.http.deadline              30s                                       rules.yaml:11
    capture.http.accept_risk           none                                      default
    limits.cooldown                    10m                                       rules.yaml:12
    limits.captures                    4                                         rules.yaml:12
    limits.per                         1d                                        rules.yaml:12
    min_members                        2                                         default
    severity                           warning                                   rules.yaml:13
    notify                             oncall                                    rules.yaml:14
    labels                             none                                      default
    enabled                            true                                      default
    keep_firing_for                    0s                                        default
    rearm_after                        0s                                        default
    min_mean                           4                                         rules.yaml:9
    min_impact                         0.05                                      default
    joins_trouble                      false                                     default
    ");
}

#[test]
fn the_old_name_of_the_least_impact_is_read_with_a_warning() {
    let with = |lines: &str| {
        loaded(&format!(
            "rules:\n  - name: a\n    signal: load\n    trigger: {{ factors: any, for: 3s }}\n{lines}"
        ))
    };
    let old = with("    min_harm: 0.2\n");
    assert_eq!(old.rules[0].rule.min_impact, 0.2);
    let [warning] = &old.diagnostics[..] else { panic!("{:?}", old.diagnostics) };
    assert!(
        !warning.is_error() && warning.to_string().contains("`min_harm` is called `min_impact` now"),
        "{warning}"
    );
    assert!(warning.to_string().contains("rules.yaml:5"), "{warning}");
    let both = with("    min_harm: 0.2\n    min_impact: 0.1\n");
    assert!(both.diagnostics.iter().any(|d| d.is_error() && d.to_string().contains("is set too")));
    let new = with("    min_impact: 0.1\n");
    assert!(new.diagnostics.is_empty() && new.rules[0].rule.min_impact == 0.1, "{:?}", new.diagnostics);
}

#[test]
fn a_rule_with_an_error_is_marked_and_the_one_beside_it_is_not() {
    let found = loaded(
        "rules:\n  - { name: a, signal: load, trigger: { max_over_mean: 0.5 } }\n  - { name: b, signal: load, trigger: { cv: 0.3 } }\n",
    );
    let marked: Vec<_> = found.rules.iter().map(|r| (&*r.rule.name, r.has_errors)).collect();
    assert_eq!(marked, [("a", true), ("b", false)]);
}

#[test]
fn a_least_impact_where_none_is_known_is_a_warning() {
    let found =
        loaded("rules:\n  - { name: a, signal: load, trigger: { max_over_mean: 2 }, min_impact: 0.9 }\n");
    let [warning] = &found.diagnostics[..] else { panic!("{:?}", found.diagnostics) };
    assert!(!warning.is_error(), "{warning}");
    assert!(warning.message.contains("`min_impact` applies to rules on `factors` only"), "{warning}");
}

#[test]
fn everything_wrong_with_a_file_is_told_at_once() {
    insta::assert_snapshot!(problems("rules:
  - name: Bad Name
    signal: laod
    trigger: { max_over_mean: 0.5, for: soon }
  - name: two
    signal: load
    trigger: { max_over_mean: 1.5, cv: 0.3, beyond_chance: 4 }
    only_if: meen(load) > 2 &&
  - name: three
    signal: load
    across: [target, dp_rank]
    within: [target]
    trigger: { min_over_mean: 0.3, side: high }
    clear: { min_over_mean: 0.2 }
    only_if: max(queu_reqs) > 2
  - name: three
    trigger: { max_over_mean: 1.5, beyond_chance: 3 }
    clear: { within_chance: 4 }
    signal: load
    capture: { http: { num_steps: 5000, deadline: 2m, start_step: 5, activities: [GPUS], with_stack: true } }
"), @r#"
        error: rules.yaml:2:11: `Bad Name` is no name for a rule: it becomes part of file names
           |
         2 |   - name: Bad Name
           |           ^^^^^^^^
          = use lower-case letters, digits and `-`
        error: rules.yaml:3:13: unknown signal `laod`
           |
         3 |     signal: laod
           |             ^^^^
          = did you mean `load`?
        error: rules.yaml:4:31: this bound is always exceeded: `max_over_mean` is 1 or more
           |
         4 |     trigger: { max_over_mean: 0.5, for: soon }
           |                               ^^^
        error: rules.yaml:4:41: expected a duration with its unit, like `5s`, `250ms`, `10m` or `24h`, found the text "soon"
           |
         4 |     trigger: { max_over_mean: 0.5, for: soon }
           |                                         ^^^^
        error: rules.yaml:7:40: two statistics in one condition: `max_over_mean` and `cv`
           |
         7 |     trigger: { max_over_mean: 1.5, cv: 0.3, beyond_chance: 4 }
           |                                        ^^^
          = several go into a list: `all: [{ cv: 0.3 }, { max_over_mean: 1.5 }]`
        error: rules.yaml:8:31: not valid CEL: it ends where something must follow
           |
         8 |     only_if: meen(load) > 2 &&
           |                               ^
        error: rules.yaml:11:13: `target` cannot be in `across` and in `within`: every group would have one member
            |
         11 |     across: [target, dp_rank]
            |             ^
          = to compare servers with each other write `within: [role]`
        error: rules.yaml:13:42: `min_over_mean` can only blame the low side
            |
         13 |     trigger: { min_over_mean: 0.3, side: high }
            |                                          ^^^^
          = use `max_over_mean`, or `max_minus_min`, `cv` or `robust_z` with `side: both`
        error: rules.yaml:14:29: the clear (min_over_mean 0.2) already holds where the trigger (0.3) fires: it would flap
            |
         14 |     clear: { min_over_mean: 0.2 }
            |                             ^^^
          = write 0.3 or a stricter bound
        error: rules.yaml:15:18: unknown signal `queu_reqs`; did you mean `queue_reqs`?
            |
         15 |     only_if: max(queu_reqs) > 2
            |                  ^^^^^^^^^
        error: rules.yaml:16:11: another rule is called `three`
            |
         16 |   - name: three
            |           ^^^^^
          = it is at rules.yaml:9; state is kept under the name
        error: rules.yaml:18:29: `within_chance: 4` already holds where `beyond_chance: 3` fires
            |
         18 |     clear: { within_chance: 4 }
            |                             ^
          = write 3 or less
        error: rules.yaml:20:35: a window has 1 to 1000 steps
            |
         20 |     capture: { http: { num_steps: 5000, deadline: 2m, start_step: 5, activities: [GPUS], with_stack: true } }
            |                                   ^^^^
          = write a number of them, or `max_stall: 300ms` in its place
        error: rules.yaml:20:51: `deadline` is more than 0s and at most 30s
            |
         20 |     capture: { http: { num_steps: 5000, deadline: 2m, start_step: 5, activities: [GPUS], with_stack: true } }
            |                                                   ^^
          = write `deadline: 30s` or less
        error: rules.yaml:20:67: the server takes `start_step` as an absolute step of each rank, and one that lies ahead leaves a window that cannot be disarmed
            |
         20 |     capture: { http: { num_steps: 5000, deadline: 2m, start_step: 5, activities: [GPUS], with_stack: true } }
            |                                                                   ^
          = for "wait, then start" write `warmup: 2s`; to pass the number on all the same, `accept_risk: [start_step]`
        error: rules.yaml:20:83: unknown activity `GPUS`: the server would answer 200 and record nothing
            |
         20 |     capture: { http: { num_steps: 5000, deadline: 2m, start_step: 5, activities: [GPUS], with_stack: true } }
            |                                                                                   ^^^^
          = did you mean `GPU`?
        error: rules.yaml:20:102: stacks fill memory without bound, stretch the export and have crashed servers
            |
         20 |     capture: { http: { num_steps: 5000, deadline: 2m, start_step: 5, activities: [GPUS], with_stack: true } }
            |                                                                                                      ^^^^
          = take it out, or write `accept_risk: [with_stack]`
        "#);
}

#[test]
fn a_file_that_is_not_yaml_or_has_no_rules_says_so() {
    insta::assert_snapshot!(problems("rules:\n  - name: a\n   - b\n"), @r"
        error: rules.yaml:3:4: this line is indented otherwise than the list that it is in
           |
         3 |    - b
           |    ^
          = give it the indentation of the list's other items
        ");
    insta::assert_snapshot!(problems("# nothing\n"), @r"
        error: rules.yaml: there are no rules in it
          = begin with `rules:`, and a rule below
        ");
}

#[test]
fn a_file_of_rules_takes_presets_and_names_no_other_file() {
    let both = loaded("rules:\n  - preset:slow-rank\n  - { name: a, signal: load, trigger: { cv: 0.3 } }\n");
    assert!(both.diagnostics.is_empty(), "{:?}", both.diagnostics);
    let names: Vec<(&str, &str)> = both.rules.iter().map(|c| (&*c.rule.name, &*c.file)).collect();
    assert_eq!(names, [("slow-rank", "preset:slow-rank"), ("a", "rules.yaml")]);
    assert!(problems("rules: [preset:slow]\n").contains("rules.yaml:1:9: no shipped rule is called `slow`"));
    let other = problems("rules: [other.yaml]\n");
    assert!(other.contains("rules.yaml:1:9: a file of rules holds rules and presets"), "{other}");
    let twice = problems("rules: [preset:slow-rank, preset:slow-rank]\n");
    assert!(twice.contains("another rule is called `slow-rank`"), "{twice}");
}

#[test]
fn a_clear_that_is_not_written_is_the_trigger_with_less_chance() {
    let rules = loaded(
        "rules:\n  - name: a\n    signal: load\n    trigger: { all: [{ max_over_mean: 1.5, beyond_chance: 4 }, { signal: queue_reqs, any_member: { above: 3 } }], for: 8s }\n",
    );
    assert!(rules.is_ok(), "{:?}", rules.diagnostics);
    let clear = &rules.rules[0].rule.clear;
    assert_eq!(clear.conditions[0].chance, Some(3.0));
    assert_eq!(clear.combine, skewtrap_core::rule::Combine::Any, "not (a and b) is (not a) or (not b)");
    assert_eq!(clear.hold.as_secs(), 16);
}
