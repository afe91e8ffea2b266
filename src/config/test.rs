//! `x.test.yaml`: unit tests of rules, in the manner of Prometheus' promtool.
//!
//! A test plays series, in promtool's notation, or a recording, and says in which state the rule must
//! be at a time, which rank it must blame, and since when. A test without expectations is an error.

use std::collections::BTreeMap;
use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::{Field, did_you_mean, read};
use super::diagnostic::{Diagnostic, Findings};
use super::effective::Settings;
use super::names::{Names, names_of};
use super::quantity::{Span, duration_of};
use super::signal::{SignalsText, UserSignalConfig, signals_of};
use super::target::zone_of;
use super::tree::{self, Place};
use skewtrap_core::finding::Side;
use skewtrap_core::rule::RuleState;
use skewtrap_core::signal::metrics::Role;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::{Axis, Rank};

/// A file of tests.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TestFileText {
    /// Files with the rules under test, or `preset:NAME`. Default: the file without `.test`.
    rules: Field<Names>,
    /// Signals of your own, as in the configuration.
    signals: Field<SignalsText>,
    /// The tests.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    tests: Field<Vec<Field<TestText>>>,
}

/// One test.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TestText {
    /// A sentence.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    name: Field<String>,
    /// Time between two values of a series. Default 1s.
    interval: Field<Span>,
    /// What arrives.
    series: Field<Vec<Field<SeriesText>>>,
    /// A recording instead of series.
    recording: Field<RecordingText>,
    /// What must come of it.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    expect: Field<Vec<Field<ExpectText>>>,
}

/// One signal, of one rank (`values`) or of DP ranks 0, 1, ... (`ranks`).
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SeriesText {
    /// Which signal.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    signal: Field<String>,
    /// `20x30` is 20 and 30 times more; `0+2x5` climbs; `_` is missing, `_x5` five times.
    values: Field<String>,
    /// Values of DP ranks 0, 1, ..., one text each.
    ranks: Field<Vec<Field<String>>>,
    /// The rank's place on an axis.
    dp_rank: Field<u16>,
    /// The rank's place on an axis.
    tp_rank: Field<u16>,
    /// The rank's place on an axis.
    pp_rank: Field<u16>,
    /// The rank's place on an axis.
    ep_rank: Field<u16>,
    /// The server. Default `server`.
    target: Field<String>,
    /// The server's role: unified, prefill, decode.
    role: Field<Role>,
}

/// Files of a recording, relative to the test file; they may be gzip.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RecordingText {
    /// A server's log.
    log: Field<Names>,
    /// Metrics pages, each after `#@ EPOCH`.
    metrics: Field<Names>,
    /// `{"t": EPOCH, "body": ...}` a line.
    loads: Field<Names>,
    /// The zone of the log's stamps. Default UTC.
    zone: Field<String>,
}

/// What must be true.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ExpectText {
    /// When: `12s` after the beginning, or epoch seconds.
    at: Field<String>,
    /// Which rule. Default: the only one.
    rule: Field<String>,
    /// The group's labels, as many as tell it apart.
    group: Field<BTreeMap<String, Field<String>>>,
    /// The state it must be in.
    state: Field<RuleState>,
    /// The rank that must be blamed.
    rank: Field<BTreeMap<String, Field<String>>>,
    /// The side that must be blamed.
    side: Field<Side>,
    /// The onset that must be reported.
    onset: Field<String>,
    /// How far the onset may be off. Default 2s.
    within: Field<Span>,
    /// A state that it must never be in, up to `at` (default: the end).
    never: Field<RuleState>,
}

/// A file of tests, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct TestFile {
    /// Where the rules are; empty for the file beside.
    pub rules: Vec<String>,
    /// Signals of the user's.
    pub signals: Vec<UserSignalConfig>,
    /// The tests.
    pub tests: Vec<Test>,
}

/// One test, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// Its name: a sentence.
    pub name: String,
    /// Between two values.
    pub interval: Duration,
    /// What is played.
    pub input: Input,
    /// What the rules must do.
    pub expect: Vec<Expect>,
}

/// What a test plays.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Series, whose first values come at time zero.
    Series(Vec<Series>),
    /// Recorded files.
    Recording {
        /// Logs.
        logs: Vec<String>,
        /// Metrics.
        metrics: Vec<String>,
        /// Loads.
        loads: Vec<String>,
        /// Zone of the stamps.
        zone: Option<String>,
    },
}

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The signal's name.
    pub signal: String,
    /// Its place in the file, for problems that are found when the test runs.
    pub place: Place,
    /// The rank that it belongs to.
    pub rank: Rank,
    /// The server.
    pub target: String,
    /// Its declared role.
    pub role: Option<Role>,
    /// Value by value; `None` is missing.
    pub values: Vec<Option<f64>>,
}

/// A time in a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// After the beginning.
    After(Duration),
    /// Epoch seconds.
    Epoch(f64),
}

/// What must be true.
#[derive(Clone, Debug, PartialEq)]
pub struct Expect {
    /// Its place in the file.
    pub place: Place,
    /// When; `None` for the end.
    pub at: Option<When>,
    /// Which rule; `None` for the only one.
    pub rule: Option<String>,
    /// Labels that the group must have.
    pub group: Labels,
    /// The state that the rule must be in, or never be in.
    pub state: RuleState,
    /// Whether the rule must never have been in `state` up to `at`.
    pub never: bool,
    /// The rank that it must blame.
    pub rank: Option<Labels>,
    /// The side that it must blame.
    pub side: Option<Side>,
    /// The onset, and the tolerance.
    pub onset: Option<(When, Duration)>,
}

/// Reads a file of tests.
pub fn load(file: &str, text: &str) -> (Option<TestFile>, Vec<Diagnostic>) {
    let mut findings = Findings::new(file, text);
    let parsed = match tree::parse(text) {
        Ok(node) => read::<TestFileText>(&node, &mut findings),
        Err(e) => {
            findings.error(e.place, e.message, e.hint);
            None
        }
    };
    let Some(parsed) = parsed else { return (None, findings.into_sorted()) };
    let rules = parsed.rules.placed().map(|(n, at)| names_of(n, at)).unwrap_or_default();
    let rules = rules.into_iter().map(|(n, _)| n.to_owned()).collect();
    let texts = parsed.tests.get().into_iter().flatten().filter_map(Field::placed);
    let tests: Vec<Test> = texts.filter_map(|(t, at)| test_of(t, at, &mut findings)).collect();
    if parsed.tests.get().is_none_or(Vec::is_empty) && findings.errors() == 0 {
        findings.error(Place::default(), "the file has no tests", Some("begin with `tests:`".into()));
    }
    let mut settings = Settings::of(findings.file().clone());
    let signals = signals_of(&parsed.signals, &mut settings, &mut findings);
    let is_ok = findings.errors() == 0;
    (is_ok.then_some(TestFile { rules, signals, tests }), findings.into_sorted())
}

/// Message and hint for an expectation that names an unknown rule.
pub fn unknown_rule(name: &str, known: &[&str]) -> (String, String) {
    (format!("no rule is called `{name}`"), did_you_mean(name, known))
}

/// Checks one test.
fn test_of(text: &TestText, place: Place, findings: &mut Findings<'_>) -> Option<Test> {
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

/// Reports a state that is expected at a time up to which it must never occur.
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
        (Some(s), None) => (*s, false),
        (None, Some(s)) => (*s, true),
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
        side: text.side.get().copied(),
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

/// Labels as the core has them, with rank indices as numbers.
fn labels_of(field: &Field<BTreeMap<String, Field<String>>>) -> Labels {
    let value = |name: &str, v: &str| match v.parse() {
        Ok(index) if Axis::ALL.iter().any(|a| a.label() == name) => LabelValue::Index(index),
        _ => LabelValue::Text(v.into()),
    };
    let given = field.get().into_iter().flatten();
    Labels(given.filter_map(|(k, v)| v.get().map(|v| (k.as_str().into(), value(k, v)))).collect())
}

/// The series of one entry: one, or one for each rank.
fn series_of(text: &SeriesText, place: Place, findings: &mut Findings<'_>) -> Vec<Series> {
    let Some((signal, at)) = text.signal.placed() else {
        findings.error(place, "the series has no `signal`", None);
        return Vec::new();
    };
    let axes = [
        (Axis::Dp, &text.dp_rank),
        (Axis::Tp, &text.tp_rank),
        (Axis::Pp, &text.pp_rank),
        (Axis::Ep, &text.ep_rank),
    ];
    let rank = axes.iter().fold(Rank::NONE, |rank, (axis, index)| match index.get() {
        Some(i) => rank.with(*axis, *i),
        None => rank,
    });
    let target = text.target.or("server".into());
    let one = |rank: Rank, text_of: &Field<String>, findings: &mut Findings<'_>| {
        let (values, at_values) = text_of.placed()?;
        let values = match values_of(values) {
            Ok(values) if values.is_empty() => {
                let hint = "write numbers, as in `20x60`; `_x60` is a minute of silence";
                findings.error(at_values, "nothing arrives by this series", Some(hint.into()));
                return None;
            }
            Ok(values) => values,
            Err(item) => {
                let hint =
                    "`20` once, `20x9` ten times, `0+2x9` climbing, `_` missing, `_x5` five times missing";
                findings.error(at_values, format!("`{item}` is no value"), Some(hint.into()));
                return None;
            }
        };
        let (signal, target, role) = (signal.clone(), target.clone(), text.role.get().copied());
        Some(Series { signal, place: at, rank, target, role, values })
    };
    match (text.values.is_absent(), text.ranks.get()) {
        (false, None) => one(rank, &text.values, findings).into_iter().collect(),
        (true, Some(ranks)) => {
            let numbered = ranks.iter().enumerate();
            numbered.filter_map(|(i, v)| one(rank.with(Axis::Dp, i as u16), v, findings)).collect()
        }
        _ => {
            findings.error(place, "a series has either `values` or `ranks`", None);
            Vec::new()
        }
    }
}

/// Reads promtool's notation: `a`, `axn`, `a+bxn`, `a-bxn`, `_`, `_xn`. `n` is the number of values after
/// the first one; for `_xn` it is the number of missing values.
///
/// # Errors
/// The item that is not in this notation.
pub fn values_of(text: &str) -> Result<Vec<Option<f64>>, String> {
    let mut values = Vec::new();
    for item in text.split_whitespace() {
        let wrong = || item.to_owned();
        let (start, times) = match item.rsplit_once('x') {
            Some((start, times)) => (start, times.parse::<usize>().map_err(|_| wrong())?),
            None => (item, 0),
        };
        if times > 100_000 {
            return Err(wrong());
        }
        if start == "_" {
            values.extend(std::iter::repeat_n(None, times.max(usize::from(!item.contains('x')))));
            continue;
        }
        let (first, step) = first_and_step(start).ok_or_else(wrong)?;
        values.extend((0..=times).map(|i| Some(first + step * i as f64)));
    }
    Ok(values)
}

fn first_and_step(text: &str) -> Option<(f64, f64)> {
    if let Ok(value) = text.parse::<f64>() {
        return value.is_finite().then_some((value, 0.0));
    }
    let sign = text.char_indices().skip(1).find(|(_, c)| *c == '+' || *c == '-')?.0;
    let (first, step) = text.split_at(sign);
    let (first, step) = (first.parse::<f64>().ok()?, step.parse::<f64>().ok()?);
    (first.is_finite() && step.is_finite()).then_some((first, step))
}

#[cfg(test)]
mod tests;
