//! `receivers:`: who is notified, and how.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::capture::texts;
use super::de::{Field, TextOr};
use super::diagnostic::Findings;
use super::effective::Settings;
use super::quantity::Span;
use super::secret::{Address, SecretRef, SecretText, address_of, secret_of};
use super::tree::Place;
use skewtrap_core::message::Update;
use skewtrap_core::rule::Severity;
use skewtrap_trace::labels::{LabelValue, Labels};

/// One receiver: a name, exactly one of the means, and which messages it takes.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ReceiverText {
    /// Unique; rules name it.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    pub name: Field<String>,
    /// JSON, posted.
    webhook: Field<WebhookText>,
    /// A Slack incoming webhook.
    slack: Field<SlackText>,
    /// Alertmanager's v2 API.
    alertmanager: Field<AlertmanagerText>,
    /// A program; it reads the JSON on standard input.
    command: Field<ProgramText>,
    /// Standard output.
    stdout: Field<StdoutText>,
    /// Takes messages at least this bad. Default `info`.
    min_severity: Field<Severity>,
    /// Takes messages of rules, groups or targets that carry each of these labels.
    labels: Field<BTreeMap<String, Field<String>>>,
    /// Takes only these updates: fired, refused, captured, verdict, resolved, returned, died. Default: all.
    updates: Field<Vec<Field<Update>>>,
    /// Whether it also takes those of rules that name no receiver. Default `true`.
    by_default: Field<bool>,
    /// How long one attempt may take. Default 10s.
    timeout: Field<Span>,
}

/// A webhook.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct WebhookText {
    /// Where; `{ env: ... }` or `{ file: ... }` when it carries a key.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    url: Field<TextOr<SecretText>>,
    /// Signs the body (HMAC-SHA256).
    signing_key: Field<TextOr<SecretText>>,
    /// Sent as `Authorization: Bearer`.
    bearer: Field<TextOr<SecretText>>,
}

/// A Slack incoming webhook.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SlackText {
    /// Its address is its key: `{ env: ... }` or `{ file: ... }`.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    url: Field<TextOr<SecretText>>,
}

/// Alertmanager.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct AlertmanagerText {
    /// `http://alertmanager:9093`.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    url: Field<TextOr<SecretText>>,
    /// Sent as `Authorization: Bearer`.
    bearer: Field<TextOr<SecretText>>,
}

/// A program.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ProgramText {
    /// Program and arguments; `{incident}`, `{update}`, `{rule}` and `{target}` are replaced. No shell.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    argv: Field<Vec<Field<String>>>,
}

/// Standard output.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct StdoutText {
    /// The JSON on one line instead of text. Default `false`.
    json: Field<bool>,
}

/// A receiver, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    /// Unique.
    pub name: Arc<str>,
    /// How messages reach it.
    pub means: Transport,
    /// The least severity that it takes.
    pub min_severity: Severity,
    /// Labels that the rule, group or target must have.
    pub labels: Labels,
    /// The updates that it takes; all when empty.
    pub updates: Vec<Update>,
    /// Whether it takes messages of rules that name no receiver.
    pub by_default: bool,
    /// Time limit of one attempt.
    pub timeout: Duration,
}

/// How a receiver is reached. `A` is an address that may hold a key, `K` a key: in the configuration
/// where each is to be found, in `act::notify` the texts themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport<A = Address, K = SecretRef> {
    /// The JSON of docs/notifications.md, posted.
    Webhook {
        /// Where.
        url: A,
        /// Signs the body: `X-Skewtrap-Signature-256`.
        signing_key: Option<K>,
        /// Sent as `Authorization: Bearer`.
        bearer: Option<K>,
    },
    /// A Slack incoming webhook.
    Slack {
        /// Its address, which is its key.
        url: K,
    },
    /// Alertmanager's v2 API.
    Alertmanager {
        /// Its base address: `http://alertmanager:9093`.
        url: A,
        /// Sent as `Authorization: Bearer`.
        bearer: Option<K>,
    },
    /// A program, without a shell; it reads the JSON on standard input.
    Command {
        /// Program and arguments; `{incident}`, `{update}`, `{rule}` and `{target}` are replaced.
        argv: Vec<String>,
    },
    /// Standard output.
    Stdout {
        /// The JSON on one line instead of text.
        json: bool,
    },
}

impl<A, K> Transport<A, K> {
    /// Whether programs read what is sent, which take a message with an id that they know for the same.
    pub fn is_for_programs(&self) -> bool {
        matches!(self, Self::Webhook { .. } | Self::Command { .. } | Self::Stdout { json: true })
    }
}

impl<A, K> Transport<A, K> {
    /// The word in the configuration: `webhook`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Slack { .. } => "slack",
            Self::Alertmanager { .. } => "alertmanager",
            Self::Command { .. } => "command",
            Self::Stdout { .. } => "stdout",
        }
    }
}

/// Checks one receiver.
pub fn check(
    text: &ReceiverText,
    place: Place,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<Receiver> {
    let name = match text.name.placed() {
        Some((name, at)) if name.is_empty() || name.contains(char::is_whitespace) => {
            findings.error(at, "a receiver's name is one word", None);
            return None;
        }
        Some((name, _)) => Arc::from(name.as_str()),
        None if text.name.is_absent() && findings.is_misspelt(place, &["name"]) => return None,
        None if text.name.is_absent() => {
            findings.error(place, "the receiver has no `name`", None);
            return None;
        }
        None => return None,
    };
    let means = means_of(text, place, findings)?;
    let label = |(k, v): (&String, &Field<String>)| {
        v.get().map(|v| (Arc::from(k.as_str()), LabelValue::Text(v.as_str().into())))
    };
    let receiver = Receiver {
        name,
        means,
        min_severity: text.min_severity.or(Severity::Info),
        labels: Labels(text.labels.get().into_iter().flatten().filter_map(label).collect()),
        updates: text.updates.get().into_iter().flatten().filter_map(|u| u.get().copied()).collect(),
        by_default: text.by_default.or(true),
        timeout: text.timeout.or(Span(Duration::from_secs(10))).0,
    };
    record(text, place, &receiver, settings);
    Some(receiver)
}

/// Records the settings of a receiver under its name.
fn record(text: &ReceiverText, place: Place, receiver: &Receiver, settings: &mut Settings) {
    let key = |field: &str| format!("receivers.{}.{field}", receiver.name);
    settings.record_set(&key("means"), receiver.means.word(), place);
    settings.record(&key("min_severity"), receiver.min_severity.word(), text.min_severity.place());
    let labels = (!receiver.labels.0.is_empty()).then_some(&receiver.labels);
    settings.record_option(&key("labels"), labels, text.labels.place());
    let updates: Vec<&str> = receiver.updates.iter().map(|u| u.word()).collect();
    let updates = if updates.is_empty() { "all".to_owned() } else { updates.join(", ") };
    settings.record(&key("updates"), updates, text.updates.place());
    settings.record(&key("by_default"), receiver.by_default, text.by_default.place());
    settings.record(&key("timeout"), Span(receiver.timeout), text.timeout.place());
}

fn means_of(text: &ReceiverText, place: Place, findings: &mut Findings<'_>) -> Option<Transport> {
    let given = [
        ("webhook", text.webhook.place()),
        ("slack", text.slack.place()),
        ("alertmanager", text.alertmanager.place()),
        ("command", text.command.place()),
        ("stdout", text.stdout.place()),
    ];
    let mut given = given.into_iter().filter_map(|(name, place)| place.map(|p| (name, p)));
    match (given.next(), given.next()) {
        (None, _) => {
            const MEANS: [&str; 5] = ["webhook", "slack", "alertmanager", "command", "stdout"];
            if !findings.is_misspelt(place, &MEANS) {
                let hint = format!("one of {}", MEANS.join(", "));
                findings.error(place, "this receiver has no means of delivery", Some(hint));
            }
            return None;
        }
        (Some((first, _)), Some((second, at))) => {
            let hint = "make two receivers of it".to_owned();
            findings.error(at, format!("`{first}` and `{second}` in one receiver"), Some(hint));
            return None;
        }
        _ => {}
    }
    if let Some((w, at)) = text.webhook.placed() {
        return Some(Transport::Webhook {
            signing_key: secret_of(&w.signing_key, "`signing_key`", findings),
            bearer: secret_of(&w.bearer, "`bearer`", findings),
            url: wanted(address_of(&w.url, "`url`", findings), &w.url, at, findings)?,
        });
    }
    if let Some((s, at)) = text.slack.placed() {
        let url = secret_of(&s.url, "a Slack webhook's address", findings);
        return Some(Transport::Slack { url: wanted(url, &s.url, at, findings)? });
    }
    if let Some((a, at)) = text.alertmanager.placed() {
        return Some(Transport::Alertmanager {
            bearer: secret_of(&a.bearer, "`bearer`", findings),
            url: wanted(address_of(&a.url, "`url`", findings), &a.url, at, findings)?,
        });
    }
    if let Some((c, at)) = text.command.placed() {
        let argv = texts(&c.argv).unwrap_or_default();
        if argv.is_empty() {
            findings.error(
                at,
                "no command to run",
                Some("write `command: { argv: [/usr/local/bin/page] }`".into()),
            );
            return None;
        }
        return Some(Transport::Command { argv });
    }
    text.stdout.get().map(|s| Transport::Stdout { json: s.json.or(false) })
}

fn wanted<T, F>(value: Option<T>, field: &Field<F>, place: Place, findings: &mut Findings<'_>) -> Option<T> {
    if value.is_none() && field.is_absent() {
        findings.error(place, "the `url` is missing", None);
    }
    value
}
