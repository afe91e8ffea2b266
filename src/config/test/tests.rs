//! What `test` promises.

use super::values_of;
use super::*;

#[test]
fn series_are_written_as_in_promtool() {
    let some = |v: &[f64]| v.iter().map(|x| Some(*x)).collect::<Vec<_>>();
    assert_eq!(values_of("1 2.5 -3"), Ok(some(&[1.0, 2.5, -3.0])));
    assert_eq!(values_of("5x3"), Ok(some(&[5.0; 4])));
    assert_eq!(values_of("0+2x3 10-1x2"), Ok(some(&[0.0, 2.0, 4.0, 6.0, 10.0, 9.0, 8.0])));
    assert_eq!(values_of("1 _ _x2 2"), Ok(vec![Some(1.0), None, None, None, Some(2.0)]));
    assert_eq!(values_of("1e2"), Ok(some(&[100.0])));
    for wrong in ["x3", "abc", "1x", "1+x3", "NaN", "1x9999999"] {
        assert!(values_of(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_test_that_expects_nothing_or_something_odd_is_refused() {
    let text = "tests:
  - name: nothing expected
    series: [{ signal: load, ranks: [5x3] }]
  - series: [{ signal: load, ranks: [5x3, fivex3], values: '1' }]
    expect: [{ state: firing }, { at: noon, state: idle, rank: { dp_rank: 1 } }, { at: 3s, state: frying }]
";
    let (file, diagnostics) = load("x.test.yaml", text);
    assert!(file.is_none());
    let problems: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(problems.join("\n"), @r"
    error: x.test.yaml:2:11: the test expects nothing, so it tests nothing
       |
     2 |   - name: nothing expected
       |           ^^^^^^^^^^^^^^^^
      = write for example `expect: [{ at: 12s, state: firing, rank: { dp_rank: 2 } }]`
    error: x.test.yaml:4:5: the test has no `name`
       |
     4 |   - series: [{ signal: load, ranks: [5x3, fivex3], values: '1' }]
       |     ^
      = a sentence that says what must happen
    error: x.test.yaml:4:14: a series has either `values` or `ranks`
       |
     4 |   - series: [{ signal: load, ranks: [5x3, fivex3], values: '1' }]
       |              ^
    error: x.test.yaml:5:14: at which time? The expectation has no `at`
       |
     5 |     expect: [{ state: firing }, { at: noon, state: idle, rank: { dp_rank: 1 } }, { at: 3s, state: frying }]
       |              ^
      = write `at: 12s`
    error: x.test.yaml:5:39: `noon` is no time
       |
     5 |     expect: [{ state: firing }, { at: noon, state: idle, rank: { dp_rank: 1 } }, { at: 3s, state: frying }]
       |                                       ^^^^
      = write `12s` after the beginning, or epoch seconds
    error: x.test.yaml:5:64: only a firing rule blames a rank since an onset
       |
     5 |     expect: [{ state: firing }, { at: noon, state: idle, rank: { dp_rank: 1 } }, { at: 3s, state: frying }]
       |                                                                ^
    error: x.test.yaml:5:99: unknown choice `frying`
       |
     5 |     expect: [{ state: firing }, { at: noon, state: idle, rank: { dp_rank: 1 } }, { at: 3s, state: frying }]
       |                                                                                                   ^^^^^^
      = did you mean `firing`?
    ");
}

#[test]
fn a_state_that_must_be_where_it_must_never_have_been_is_a_contradiction() {
    let problems = |expect: &str| {
        let text = format!(
            "tests:\n  - name: t\n    series: [{{ signal: load, ranks: [5x30, 5x30] }}]\n    expect: [{expect}]\n"
        );
        load("x.test.yaml", &text).1.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let firing = "{ at: 12s, state: firing }";
    for never in ["{ never: firing }", "{ at: 12s, never: firing }", "{ at: 20s, never: firing }"] {
        let problems = problems(&format!("{firing}, {never}"));
        assert!(
            problems.contains("it must be firing here, and line 4 says that it is never firing up to then"),
            "{problems}"
        );
    }
    for never in
        ["{ at: 11s, never: firing }", "{ never: pending }", "{ never: firing, group: { target: b } }"]
    {
        assert_eq!(problems(&format!("{firing}, {never}")), "", "{never}");
    }
}

#[test]
fn a_series_without_a_value_is_refused() {
    let text = "tests:\n  - name: t\n    series: [{ signal: load, ranks: [5x30, ''] }]\n    expect: [{ never: firing }]\n";
    let (file, diagnostics) = load("x.test.yaml", text);
    assert!(file.is_none());
    assert!(diagnostics[0].message.contains("nothing arrives by this series"), "{diagnostics:?}");
}
