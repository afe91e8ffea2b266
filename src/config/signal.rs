//! `signals:`: numbers that the user's own patterns or queries bring.

use std::sync::Arc;
use std::time::Duration;

use regex::bytes::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::{Field, TextOr};
use super::diagnostic::Findings;
use super::effective::Settings;
use super::quantity::Span;
use super::secret::{Address, SecretRef, SecretText, address_of, secret_of};
use super::tree::Place;

/// How often a query is asked.
const EVERY: Duration = Duration::from_secs(5);

/// One signal: a name and exactly one of `pattern` and `prometheus`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SignalText {
    /// What rules call it. Lower-case letters, digits and `_`.
    #[schemars(required)]
    pub name: Field<String>,
    /// The unit of its values, for people.
    unit: Field<String>,
    /// `gauge` (default) or `counter`: a counter is compared by its rate.
    kind: Field<KindText>,
    /// A regular expression over the log's lines: the group `value` is the number, other named
    /// groups are labels (`dp_rank` and the like tell ranks apart).
    pattern: Field<String>,
    /// A query against a Prometheus-compatible server; the labels of its answer tell ranks apart.
    prometheus: Field<QueryText>,
    /// Only this target's log. Default: every target's.
    target: Field<String>,
}

/// What a source counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KindText {
    /// The value at a time.
    #[default]
    Gauge,
    /// An ever growing total.
    Counter,
}

/// A query.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueryText {
    /// The server: `http://prometheus:9090`.
    #[schemars(required)]
    url: Field<TextOr<SecretText>>,
    /// PromQL, an instant vector.
    #[schemars(required)]
    query: Field<String>,
    /// How often it is asked. Default 5s.
    every: Field<Span>,
    /// Sent as `Authorization: Bearer`.
    bearer: Field<TextOr<SecretText>>,
}

/// A signal of the user's, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnSignal {
    /// Unique, and no built-in one's.
    pub name: Arc<str>,
    /// Free text.
    pub unit: Arc<str>,
    /// Gauge or counter.
    pub kind: KindText,
    /// Only this target's.
    pub target: Option<Arc<str>>,
    /// Where it comes from.
    pub source: OwnSource,
}

/// Where a signal of the user's comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnSource {
    /// A regular expression with a group `value`.
    Pattern(String),
    /// A query.
    Prometheus {
        /// The server.
        url: Address,
        /// PromQL.
        query: String,
        /// How often.
        every: Duration,
        /// Bearer token.
        bearer: Option<SecretRef>,
    },
}

/// Checks one signal. `is_built_in` knows the names that are taken.
pub fn check(
    text: &SignalText,
    place: Place,
    is_built_in: &dyn Fn(&str) -> bool,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<OwnSignal> {
    let source = source_of(text, place, findings);
    let Some((name, at)) = text.name.placed() else {
        if text.name.is_absent() {
            findings.error(place, "the signal has no `name`", None);
        }
        return None;
    };
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(fits) {
        let message = format!("`{name}` is no name for a signal: guards must be able to say it");
        findings.error(at, message, Some("use lower-case letters, digits and `_`".into()));
        return None;
    }
    if is_built_in(name) {
        findings.error(at, format!("`{name}` is a built-in signal"), Some("give yours another name".into()));
        return None;
    }
    note(text, name, settings);
    Some(OwnSignal {
        name: name.as_str().into(),
        unit: text.unit.or(String::new()).into(),
        kind: text.kind.or(KindText::Gauge),
        target: text.target.get().map(|t| t.as_str().into()),
        source: source?,
    })
}

/// Notes a signal's settings, below its name.
fn note(text: &SignalText, name: &str, settings: &mut Settings) {
    let key = |field: &str| format!("signals.{name}.{field}");
    settings.note_any(&key("unit"), text.unit.get(), text.unit.place());
    let kind = if text.kind.get() == Some(&KindText::Counter) { "counter" } else { "gauge" };
    settings.note(&key("kind"), kind, text.kind.place());
    settings.note(&key("target"), text.target.or("every target".into()), text.target.place());
    if let Some((pattern, at)) = text.pattern.placed() {
        settings.given(&key("pattern"), pattern, at);
    }
    if let Some(query) = text.prometheus.get() {
        settings.note_any(&key("prometheus.query"), query.query.get(), query.query.place());
        settings.note(&key("prometheus.every"), query.every.or(Span(EVERY)), query.every.place());
    }
}

fn source_of(text: &SignalText, place: Place, findings: &mut Findings<'_>) -> Option<OwnSource> {
    match (text.pattern.placed(), text.prometheus.placed()) {
        (Some((pattern, at)), None) => {
            check_pattern(pattern, at, findings);
            Some(OwnSource::Pattern(pattern.clone()))
        }
        (None, Some((query, at))) => query_of(query, at, findings),
        (Some(_), Some((_, at))) => {
            findings.error(at, "`pattern` and `prometheus` in one signal", Some("make two of it".into()));
            None
        }
        (None, None) => {
            if text.pattern.is_absent() && text.prometheus.is_absent() {
                findings.error(
                    place,
                    "nothing says where the signal comes from: `pattern` or `prometheus`",
                    None,
                );
            }
            None
        }
    }
}

fn check_pattern(pattern: &str, at: Place, findings: &mut Findings<'_>) {
    match Regex::new(pattern) {
        Err(e) => {
            let text = e.to_string();
            let last = text.lines().last().unwrap_or("").trim_start_matches("error: ").to_owned();
            findings.error(at, format!("the pattern is not a regular expression: {last}"), None);
        }
        Ok(regex) if !regex.capture_names().flatten().any(|n| n == "value") => {
            let hint = "write `(?<value>[0-9.]+)` around the number".to_owned();
            findings.error(at, "the pattern has no group `value`", Some(hint));
        }
        Ok(_) => {}
    }
}

fn query_of(text: &QueryText, at: Place, findings: &mut Findings<'_>) -> Option<OwnSource> {
    let url = address_of(&text.url, "`url`", findings);
    if text.url.is_absent() || text.query.is_absent() {
        findings.error(at, "a query has a `url` and a `query`", None);
    }
    let every = text.every.or(Span(EVERY)).0;
    if let Some(place) = text.every.place()
        && every < Duration::from_millis(500)
    {
        findings.error(
            place,
            "`every` is at least 500ms: Prometheus has no newer samples than its scrapes",
            None,
        );
    }
    let bearer = secret_of(&text.bearer, "`bearer`", findings);
    Some(OwnSource::Prometheus { url: url?, query: text.query.get()?.clone(), every, bearer })
}
