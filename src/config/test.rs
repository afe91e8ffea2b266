//! `x.test.yaml`: what a rule must do, in the manner of promtool.
//!
//! A test plays series, written in promtool's little language, or a recording, and says in which
//! state the rule must be when, whom it must blame and since when. A test that expects nothing
//! tests nothing and is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::de::{Field, did_you_mean, read};
use super::diagnostic::{Diagnostic, Findings};
use super::quantity::Span;
use super::rule::{Names, names_of};
use super::tree::{self, Place};
use skewtrap_core::finding::Side;
use skewtrap_core::rule::RuleState;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;

mod check;
mod series;

use check::test_of;

/// A file of tests.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TestFileText {
    /// Files with the rules under test, or `preset:NAME`. Default: the file without `.test`.
    rules: Field<Names>,
    /// The tests.
    #[schemars(required)]
    tests: Field<Vec<Field<TestText>>>,
}

/// One test.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TestText {
    /// A sentence.
    #[schemars(required)]
    name: Field<String>,
    /// Time between two values of a series. Default 1s.
    interval: Field<Span>,
    /// What arrives.
    series: Field<Vec<Field<SeriesText>>>,
    /// A recording instead of series.
    recording: Field<RecordingText>,
    /// What must come of it.
    #[schemars(required)]
    expect: Field<Vec<Field<ExpectText>>>,
}

/// One signal, of one rank (`values`) or of DP ranks 0, 1, ... (`ranks`).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SeriesText {
    /// Which signal.
    #[schemars(required)]
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
    role: Field<super::target::RoleText>,
}

/// Files of a recording, relative to the test file; they may be gzip.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExpectText {
    /// When: `12s` after the beginning, or epoch seconds.
    at: Field<String>,
    /// Which rule. Default: the only one.
    rule: Field<String>,
    /// The group's labels, as many as tell it apart.
    group: Field<BTreeMap<String, Field<String>>>,
    /// The state it must be in.
    state: Field<StateText>,
    /// The rank that must be blamed.
    rank: Field<BTreeMap<String, Field<String>>>,
    /// The side that must be blamed.
    side: Field<super::condition::SideText>,
    /// The onset that must be told.
    onset: Field<String>,
    /// How far the onset may be off. Default 2s.
    within: Field<Span>,
    /// A state that it must never be in, up to `at` (default: the end).
    never: Field<StateText>,
}

/// A rule's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the states are those of `RuleState`")]
pub enum StateText {
    Warming,
    Idle,
    Pending,
    Firing,
    Unknown,
    Inert,
}

impl From<StateText> for RuleState {
    fn from(text: StateText) -> Self {
        match text {
            StateText::Warming => Self::Warming,
            StateText::Idle => Self::Idle,
            StateText::Pending => Self::Pending,
            StateText::Firing => Self::Firing,
            StateText::Unknown => Self::Unknown,
            StateText::Inert => Self::Inert,
        }
    }
}

/// A file of tests, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct TestFile {
    /// Where the rules are; empty for the file beside.
    pub rules: Vec<String>,
    /// The tests.
    pub tests: Vec<Test>,
}

/// One test, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// Its sentence.
    pub name: String,
    /// Between two values.
    pub interval: Duration,
    /// What arrives.
    pub input: Input,
    /// What must come of it.
    pub expect: Vec<Expect>,
}

/// What arrives.
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
    /// Where it stands, for what can only be checked later.
    pub place: Place,
    /// Whose.
    pub rank: Rank,
    /// The server.
    pub target: String,
    /// Its declared role.
    pub role: Option<super::target::RoleText>,
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
    /// Where it stands.
    pub place: Place,
    /// When; `None` for the end.
    pub at: Option<When>,
    /// Which rule; `None` for the only one.
    pub rule: Option<String>,
    /// Labels that the group must have.
    pub group: Labels,
    /// The state it must be in, or (never) not be in.
    pub state: RuleState,
    /// Whether it must never have been in it up to then.
    pub never: bool,
    /// Whom it must blame.
    pub rank: Option<Labels>,
    /// On which side.
    pub side: Option<Side>,
    /// Since when, and how far off that may be.
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
    if parsed.tests.get().is_none_or(Vec::is_empty) && !findings.has_errors() {
        findings.error(Place::default(), "the file has no tests", Some("begin with `tests:`".into()));
    }
    let is_ok = !findings.has_errors();
    (is_ok.then_some(TestFile { rules, tests }), findings.into_sorted())
}

/// An expectation that names a rule that is not there.
pub fn unknown_rule(name: &str, known: &[&str]) -> (String, String) {
    (format!("no rule is called `{name}`"), did_you_mean(name, known))
}

#[cfg(test)]
mod tests;
