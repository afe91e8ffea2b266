//! `signals:`: signals that the user defines by patterns over the log or by queries.

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
use skewtrap_core::rule::guard::nearest;
use skewtrap_core::signal::catalog::{Catalog, Kind};
use skewtrap_core::signal::sample::Signal;

/// Default interval of a query.
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
    kind: Field<Kind>,
    /// A regular expression over the log's lines: the group `value` is the number, other named
    /// groups are labels (`dp_rank` and the like tell ranks apart).
    pattern: Field<String>,
    /// A query against a Prometheus-compatible server; the labels of its answer tell ranks apart.
    prometheus: Field<QueryText>,
    /// Only this target's log. Default: every target's.
    target: Field<String>,
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

/// A user-defined signal, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnSignal {
    /// Unique, and different from every built-in one.
    pub name: Arc<str>,
    /// Free text.
    pub unit: Arc<str>,
    /// Gauge or counter.
    pub kind: Kind,
    /// Only from this target; `None` for every target.
    pub target: Option<Arc<str>>,
    /// The place of its `target`, or else of its name.
    pub place: Place,
    /// Where it comes from.
    pub source: OwnSource,
}

/// The source of a user-defined signal.
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
        /// Interval between two queries.
        every: Duration,
        /// Bearer token.
        bearer: Option<SecretRef>,
    },
}

/// Checks one signal. `is_built_in` tells whether a name is taken.
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
    record(text, name, settings);
    Some(OwnSignal {
        name: name.as_str().into(),
        unit: text.unit.or(String::new()).into(),
        kind: text.kind.or(Kind::Gauge),
        target: text.target.get().map(|t| t.as_str().into()),
        place: text.target.place().unwrap_or(at),
        source: source?,
    })
}

/// Records the settings of a signal under its name.
fn record(text: &SignalText, name: &str, settings: &mut Settings) {
    let key = |field: &str| format!("signals.{name}.{field}");
    settings.record_option(&key("unit"), text.unit.get(), text.unit.place());
    let kind = if text.kind.get() == Some(&Kind::Counter) { "counter" } else { "gauge" };
    settings.record(&key("kind"), kind, text.kind.place());
    settings.record(&key("target"), text.target.or("every target".into()), text.target.place());
    if let Some((pattern, at)) = text.pattern.placed() {
        settings.record_set(&key("pattern"), pattern, at);
    }
    if let Some(query) = text.prometheus.get() {
        settings.record_option(&key("prometheus.query"), query.query.get(), query.query.place());
        settings.record(&key("prometheus.every"), query.every.or(Span(EVERY)), query.every.place());
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

/// Looks a signal up by its name; an unknown one is an error with a suggestion.
pub fn signal_of(
    name: &Field<String>,
    catalog: &Catalog,
    findings: &mut Findings<'_>,
) -> Option<(Signal, Arc<str>)> {
    let (name, place) = name.placed()?;
    let found = catalog.signal_named(name);
    if found.is_none() {
        let hint = match nearest(name, catalog.names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`skewtrap signals` lists those that arrive; `signals:` defines your own".into(),
        };
        findings.error(place, format!("unknown signal `{name}`"), Some(hint));
    }
    found.map(|signal| (signal, name.as_str().into()))
}
