//! `signals:`: signals that the user defines by metrics of pages, by patterns over the log or by queries.

#[cfg(test)]
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use regex::bytes::Regex;
#[cfg(test)]
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::de::{Field, TextOr};
use super::diagnostic::Findings;
use super::effective::Settings;
use super::quantity::Span;
use super::secret::{Address, SecretRef, SecretText, address_of, secret_of};
use super::target::Target;
use super::tree::Place;
use skewtrap_core::signal::catalog::{Catalog, Kind, UserSignal};
use skewtrap_core::signal::intake::UserSignals;
use skewtrap_core::signal::pattern::Pattern;
use skewtrap_core::signal::sample::{Signal, TargetId};
use skewtrap_core::signal::user_metric::{MetricStat, UserMetric};
use skewtrap_core::suggest::nearest;

/// Default interval of a query.
const EVERY: Duration = Duration::from_secs(5);
/// Default time of a mean or quantile.
const OVER: Duration = Duration::from_secs(10);

/// One signal: a name and exactly one of `metric`, `pattern` and `prometheus`.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SignalText {
    /// What rules call it. Lower-case letters, digits and `_`. Not where `signals` is a mapping by names.
    pub name: Field<String>,
    /// The unit of its values, for people.
    unit: Field<String>,
    /// `gauge` (default) or `counter`: a counter is compared by its rate.
    kind: Field<Kind>,
    /// A metric of a page that is read (`metrics` of a target): the name of a gauge or counter, of a
    /// histogram without `_bucket`, `_sum`, `_count`. Its rank labels tell ranks apart.
    metric: Field<String>,
    /// What of the metric: `value` (default), `rate` per second, `mean` or `p1` to `p99` of what a histogram
    /// observed lately.
    stat: Field<String>,
    /// Labels that the series must have; those of one rank that are left are added up.
    labels: Field<BTreeMap<String, Field<String>>>,
    /// A mean or quantile is of about this time. Default 10s.
    over: Field<Span>,
    /// A regular expression over the log's lines: the group `value` is the number, other named
    /// groups are labels (`dp_rank` and the like distinguish ranks).
    pattern: Field<String>,
    /// A query against a Prometheus-compatible server; the labels of its answer distinguish ranks.
    prometheus: Field<QueryText>,
    /// Only this target's log. Default: every target's.
    target: Field<String>,
}

/// `signals`: a list, or a mapping by names.
#[derive(Clone, Debug, Default)]
pub struct SignalsText(Vec<(Option<String>, Field<SignalText>)>);

impl<'de> Deserialize<'de> for SignalsText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(SignalsVisitor)
    }
}

struct SignalsVisitor;

impl<'de> Visitor<'de> for SignalsVisitor {
    type Value = SignalsText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of signals, or a mapping of names to signals")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<SignalsText, A::Error> {
        let mut signals = Vec::new();
        while let Some(signal) = list.next_element()? {
            signals.push((None, signal));
        }
        Ok(SignalsText(signals))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SignalsText, A::Error> {
        let mut signals = Vec::new();
        while let Some((name, signal)) = map.next_entry::<String, _>()? {
            signals.push((Some(name), signal));
        }
        Ok(SignalsText(signals))
    }
}

#[cfg(test)]
impl JsonSchema for SignalsText {
    fn schema_name() -> Cow<'static, str> {
        "SignalsText".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let signal = generator.subschema_for::<SignalText>();
        schemars::json_schema!({ "anyOf": [
            { "type": "array", "items": signal },
            { "type": "object", "additionalProperties": signal },
        ] })
    }
}

/// The signals of a configuration or of a file of tests, checked.
pub fn signals_of(
    text: &Field<SignalsText>,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Vec<UserSignalConfig> {
    let catalog = Catalog::default();
    let is_built_in = |name: &str| catalog.signal_named(name).is_some();
    let mut signals: Vec<UserSignalConfig> = Vec::new();
    for (key, field) in text.get().into_iter().flat_map(|list| &list.0) {
        let Some((s, place)) = field.placed() else { continue };
        let Some(own) = check(s, key.as_deref(), place, &is_built_in, settings, findings) else { continue };
        if signals.iter().any(|other| other.name == own.name) {
            findings.error(place, format!("two signals are called `{}`", own.name), None);
        }
        signals.push(own);
    }
    signals
}

/// The built-in signals, and these.
pub fn catalog_of(signals: &[UserSignalConfig]) -> Catalog {
    let mut catalog = Catalog::default();
    for own in signals {
        // The names are valid by now. A signal beyond the limit is reported as unknown by its rule.
        let _ = catalog.define(UserSignal { name: own.name.clone(), unit: own.unit.clone(), kind: own.kind });
    }
    catalog
}

/// What the core reads itself of these signals; those of queries are asked for by the shell.
pub fn user_signals_of(signals: &[UserSignalConfig], catalog: &Catalog, targets: &[Target]) -> UserSignals {
    let mut read = UserSignals::default();
    for own in signals {
        let Some(signal) = catalog.signal_named(&own.name) else { continue };
        match &own.source {
            OwnSource::Pattern(pattern) => read.patterns.extend(Pattern::new(signal, pattern)),
            OwnSource::Metric { metric, stat, labels, over } => {
                let target =
                    own.target.as_ref().and_then(|name| targets.iter().position(|t| t.name == *name));
                let target = target.and_then(|place| u16::try_from(place).ok()).map(TargetId);
                let (metric, stat, labels, over) = (metric.clone(), *stat, labels.clone(), *over);
                read.metrics.push(UserMetric { signal, metric, stat, labels, over, target });
            }
            OwnSource::Prometheus { .. } => {}
        }
    }
    read
}

/// A query.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct QueryText {
    /// The server: `http://prometheus:9090`.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    url: Field<TextOr<SecretText>>,
    /// PromQL, an instant vector.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    query: Field<String>,
    /// How often it is asked. Default 5s.
    every: Field<Span>,
    /// Sent as `Authorization: Bearer`.
    bearer: Field<TextOr<SecretText>>,
}

/// A user-defined signal, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct UserSignalConfig {
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

impl UserSignalConfig {
    /// Whether it is read from metrics pages of that target.
    pub fn is_on_a_page_of(&self, target: &str) -> bool {
        matches!(self.source, OwnSource::Metric { .. }) && self.target.as_deref().is_none_or(|t| t == target)
    }
}

/// The source of a user-defined signal.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnSource {
    /// A metric of a page.
    Metric {
        /// Its name.
        metric: Arc<str>,
        /// What of it.
        stat: MetricStat,
        /// Labels that series must have.
        labels: Vec<(Arc<str>, Arc<str>)>,
        /// The time of a mean or quantile.
        over: Duration,
    },
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
fn check(
    text: &SignalText,
    key: Option<&str>,
    place: Place,
    is_built_in: &dyn Fn(&str) -> bool,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<UserSignalConfig> {
    let source = source_of(text, place, findings);
    let given = text.name.placed().map(|(name, at)| (name.as_str(), at));
    let Some((name, at)) = key.map(|name| (name, place)).or(given) else {
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
    Some(UserSignalConfig {
        name: name.into(),
        unit: text.unit.or(String::new()).into(),
        kind: match &source {
            Some(OwnSource::Metric { stat: MetricStat::Rate, .. }) => Kind::Counter,
            _ => text.kind.or(Kind::Gauge),
        },
        target: text.target.get().map(|t| t.as_str().into()),
        place: text.target.place().unwrap_or(at),
        source: source?,
    })
}

/// Records the settings of a signal under its name.
fn record(text: &SignalText, name: &str, settings: &mut Settings) {
    let key = |field: &str| format!("signals.{name}.{field}");
    settings.record_option(&key("unit"), text.unit.get(), text.unit.place());
    if text.metric.is_absent() {
        let kind = if text.kind.get() == Some(&Kind::Counter) { "counter" } else { "gauge" };
        settings.record(&key("kind"), kind, text.kind.place());
    }
    settings.record(&key("target"), text.target.or("every target".into()), text.target.place());
    if let Some((pattern, at)) = text.pattern.placed() {
        settings.record_set(&key("pattern"), pattern, at);
    }
    if let Some((metric, at)) = text.metric.placed() {
        settings.record_set(&key("metric"), metric, at);
        settings.record(&key("stat"), text.stat.or("value".into()), text.stat.place());
        let labels = text.labels.get().into_iter().flatten();
        let labels = labels.filter_map(|(name, value)| Some(format!("{name}={}", value.get()?)));
        let labels = labels.collect::<Vec<_>>().join(", ");
        settings.record_option(&key("labels"), (!labels.is_empty()).then_some(labels), text.labels.place());
        settings.record(&key("over"), text.over.or(Span(OVER)), text.over.place());
    }
    if let Some(query) = text.prometheus.get() {
        settings.record_option(&key("prometheus.query"), query.query.get(), query.query.place());
        settings.record(&key("prometheus.every"), query.every.or(Span(EVERY)), query.every.place());
    }
}

fn source_of(text: &SignalText, place: Place, findings: &mut Findings<'_>) -> Option<OwnSource> {
    let sources = [
        ("metric", text.metric.place()),
        ("pattern", text.pattern.place()),
        ("prometheus", text.prometheus.place()),
    ];
    let given: Vec<(&str, Place)> = sources.into_iter().filter_map(|(word, at)| Some((word, at?))).collect();
    if let [(first, _), (second, at), ..] = given[..] {
        let message = format!("`{first}` and `{second}` in one signal");
        findings.error(at, message, Some("make two of it".into()));
        return None;
    }
    if given.is_empty() {
        let message = "nothing says where the signal comes from: `metric`, `pattern` or `prometheus`";
        findings.error(place, message, None);
    }
    let of_metrics =
        [("stat", text.stat.place()), ("labels", text.labels.place()), ("over", text.over.place())];
    for (word, at) in of_metrics.into_iter().filter_map(|(word, at)| Some((word, at?))) {
        if text.metric.is_absent() {
            findings.error(at, format!("`{word}` is of a `metric`, and there is none"), None);
        }
    }
    if let Some((pattern, at)) = text.pattern.placed() {
        check_pattern(pattern, at, findings);
        return Some(OwnSource::Pattern(pattern.clone()));
    }
    if let Some((query, at)) = text.prometheus.placed() {
        return query_of(query, at, findings);
    }
    metric_of(text, findings)
}

fn metric_of(text: &SignalText, findings: &mut Findings<'_>) -> Option<OwnSource> {
    let (metric, at) = text.metric.placed()?;
    if let Some(part) = ["_bucket", "_sum", "_count"].into_iter().find(|end| metric.ends_with(end))
        && !matches!(stat_of(text, &mut Vec::new()), MetricStat::Value | MetricStat::Rate)
    {
        let name = metric.trim_end_matches(part);
        let hint = format!("write `metric: {name}`");
        findings.error(at, format!("a histogram is named without `{part}`"), Some(hint));
    }
    if let Some(at) = text.kind.place() {
        findings.error(
            at,
            "`kind` cannot be combined with `metric`: `stat` decides",
            Some("take `kind` out".into()),
        );
    }
    let mut wrong = Vec::new();
    let stat = stat_of(text, &mut wrong);
    for (at, message) in wrong {
        findings.error(at, message, Some("known here: value, rate, mean, p1 to p99".into()));
    }
    let over = text.over.or(Span(OVER)).0;
    if let Some(at) = text.over.place()
        && !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&over)
    {
        findings.error(at, "`over` lies between 1s and 5m", None);
    }
    let labels = text.labels.get().into_iter().flatten();
    let labels =
        labels.filter_map(|(name, value)| Some((name.as_str().into(), value.get()?.as_str().into())));
    Some(OwnSource::Metric { metric: metric.as_str().into(), stat, labels: labels.collect(), over })
}

fn stat_of(text: &SignalText, wrong: &mut Vec<(Place, String)>) -> MetricStat {
    let Some((word, at)) = text.stat.placed() else { return MetricStat::Value };
    let percent = word.strip_prefix('p').and_then(|p| p.parse::<u8>().ok()).filter(|p| (1..=99).contains(p));
    match (word.as_str(), percent) {
        ("value", _) => MetricStat::Value,
        ("rate", _) => MetricStat::Rate,
        ("mean", _) => MetricStat::Mean,
        (_, Some(percent)) => MetricStat::Quantile(f64::from(percent) / 100.0),
        _ => {
            wrong.push((at, format!("unknown `stat`: `{word}`")));
            MetricStat::Value
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
