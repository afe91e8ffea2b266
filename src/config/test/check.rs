//! What must be true of tests before they can run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::series::series_of;
use super::{Expect, ExpectText, Input, RecordingText, Test, TestText, When};
use crate::config::de::Field;
use crate::config::diagnostic::Findings;
use crate::config::quantity::{Span, duration_of};
use crate::config::rule::{Names, names_of};
use crate::config::target::zone_of;
use crate::config::tree::Place;
use skewtrap_core::rule::RuleState;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Axis;

/// Checks one test.
pub(super) fn test_of(text: &TestText, place: Place, findings: &mut Findings<'_>) -> Option<Test> {
    if text.name.is_absent() {
        findings.error(place, "the test has no `name`", Some("a sentence that says what must happen".into()));
    }
    if text.expect.get().is_none_or(Vec::is_empty) && !matches!(text.expect, Field::Wrong(_)) {
        let at = text.name.place().unwrap_or(place);
        let hint = "write for example `expect: [{ at: 12s, state: firing, rank: { dp_rank: 2 } }]`";
        findings.error(at, "the test expects nothing, so it tests nothing", Some(hint.into()));
    }
    let expect = text.expect.get().into_iter().flatten().filter_map(Field::placed);
    let expect: Vec<Expect> = expect.filter_map(|(e, at)| expect_of(e, at, findings)).collect();
    check_contradictions(&expect, findings);
    let input = match (text.series.get(), text.recording.get()) {
        (Some(series), None) => {
            let series = series.iter().filter_map(Field::placed);
            Input::Series(series.flat_map(|(s, at)| series_of(s, at, findings)).collect())
        }
        (None, Some(r)) => recording_of(r, text.recording.place().unwrap_or(place), findings),
        (Some(_), Some(_)) => {
            let at = text.recording.place().unwrap_or(place);
            findings.error(at, "`series` and `recording` in one test", Some("make two tests of it".into()));
            return None;
        }
        (None, None) => {
            if text.series.is_absent() && text.recording.is_absent() {
                findings.error(
                    place,
                    "nothing arrives in this test: it needs `series` or a `recording`",
                    None,
                );
            }
            return None;
        }
    };
    let interval = text.interval.or(Span(Duration::from_secs(1))).0;
    if interval.is_zero() {
        findings.error(text.interval.place().unwrap_or(place), "`interval` is more than 0s", None);
    }
    Some(Test { name: text.name.or(String::new()), interval, input, expect })
}

/// A state that is wanted at a time up to which it must never have been.
fn check_contradictions(expect: &[Expect], findings: &mut Findings<'_>) {
    for wanted in expect.iter().filter(|e| !e.never) {
        let forbids = |n: &&Expect| {
            let is_before = match (n.at, wanted.at) {
                (None, _) => true,
                (Some(When::After(until)), Some(When::After(at))) => at <= until,
                (Some(When::Epoch(until)), Some(When::Epoch(at))) => at <= until,
                _ => false,
            };
            n.never
                && n.state == wanted.state
                && n.rule == wanted.rule
                && is_before
                && wanted.group.contains(&n.group)
        };
        if let Some(never) = expect.iter().find(forbids) {
            let message = format!(
                "it must be {0} here, and line {1} says that it is never {0} up to then",
                wanted.state.word(),
                never.place.line
            );
            findings.error(
                wanted.place,
                message,
                Some("give the `never` an earlier `at`, or take one of them out".into()),
            );
        }
    }
}

fn recording_of(text: &RecordingText, place: Place, findings: &mut Findings<'_>) -> Input {
    let files = |field: &Field<Names>| -> Vec<String> {
        let names = field.placed().map(|(n, at)| names_of(n, at)).unwrap_or_default();
        names.into_iter().map(|(n, _)| n.to_owned()).collect()
    };
    let (logs, metrics, loads) = (files(&text.log), files(&text.metrics), files(&text.loads));
    if logs.is_empty() && metrics.is_empty() && loads.is_empty() {
        findings.error(place, "a recording is of a `log`, of `metrics` or of `loads`", None);
    }
    Input::Recording { logs, metrics, loads, zone: zone_of(&text.zone, findings) }
}

fn expect_of(text: &ExpectText, place: Place, findings: &mut Findings<'_>) -> Option<Expect> {
    let (state, never) = match (text.state.get(), text.never.get()) {
        (Some(s), None) => (RuleState::from(*s), false),
        (None, Some(s)) => (RuleState::from(*s), true),
        (None, None) if !text.state.is_absent() || !text.never.is_absent() => return None,
        _ => {
            findings.error(place, "an expectation has either `state` or `never`", None);
            return None;
        }
    };
    if text.at.is_absent() && !never {
        findings.error(place, "at which time? The expectation has no `at`", Some("write `at: 12s`".into()));
    }
    let wants_more = [text.rank.place(), text.side.place(), text.onset.place()];
    if let Some(at) = wants_more.into_iter().flatten().next()
        && (state != RuleState::Firing || never)
    {
        findings.error(at, "only a firing rule blames a rank since an onset", None);
    }
    let within = text.within.or(Span(Duration::from_secs(2))).0;
    Some(Expect {
        place,
        at: when_of(&text.at, findings),
        rule: text.rule.get().cloned(),
        group: labels_of(&text.group),
        state,
        never,
        rank: text.rank.get().map(|_| labels_of(&text.rank)),
        side: text.side.get().map(|s| (*s).into()),
        onset: when_of(&text.onset, findings).map(|w| (w, within)),
    })
}

fn when_of(field: &Field<String>, findings: &mut Findings<'_>) -> Option<When> {
    let (text, place) = field.placed()?;
    if let Some(after) = duration_of(text) {
        return Some(When::After(after));
    }
    match text.parse::<f64>() {
        Ok(epoch) if epoch > 1e8 => Some(When::Epoch(epoch)),
        _ => {
            let hint = "write `12s` after the beginning, or epoch seconds";
            findings.error(place, format!("`{text}` is no time"), Some(hint.into()));
            None
        }
    }
}

/// Labels as the core has them: rank indices are numbers.
fn labels_of(field: &Field<BTreeMap<String, Field<String>>>) -> Labels {
    let value = |name: &str, v: &str| match v.parse() {
        Ok(index) if Axis::ALL.iter().any(|a| a.label() == name) => LabelValue::Index(index),
        _ => LabelValue::Text(v.into()),
    };
    let given = field.get().into_iter().flatten();
    Labels(given.filter_map(|(k, v)| v.get().map(|v| (k.as_str().into(), value(k, v)))).collect())
}
