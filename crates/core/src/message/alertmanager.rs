//! A message as alerts of Alertmanager's v2 API (`POST /api/v2/alerts`).
//!
//! Every update of an incident is the same alert (the same labels, so the same fingerprint) with
//! newer annotations; resolving sets its end. The rank is an annotation: the blame may move to another one.
//! Routes go by `severity`, so an incident whose severity rises is another alert from then on; the one before ends
//! at that moment, in the same request and in every later one, since any of them may be the first that arrives.
//! Alertmanager forwards to PagerDuty, e-mail and others.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Message;

/// The end of an alert that still fires. Without one, Alertmanager would resolve it after its
/// `resolve_timeout` (5 minutes); an incident that is open for longer than this has lost its agent.
pub const LONGEST_ALERT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A sample ends by itself: long enough to be routed, too short to be taken for real.
const LONGEST_TEST: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Its identity.
    pub labels: BTreeMap<String, String>,
    /// Its facts and title.
    pub annotations: BTreeMap<String, String>,
    /// When the rule fired, RFC 3339.
    #[serde(rename = "startsAt")]
    pub starts_at: String,
    /// When it ended; in the future while it fires.
    #[serde(rename = "endsAt")]
    pub ends_at: String,
    /// The incident on the agent's page.
    #[serde(rename = "generatorURL", default, skip_serializing_if = "String::is_empty")]
    pub generator_url: String,
}

/// The alerts to post for a message: the incident's, then those of lower severity that it was before.
pub fn alerts(message: &Message) -> Vec<Alert> {
    let mut all = vec![alert(message)];
    for raised in &message.incident.raised {
        let mut before = all[0].clone();
        before.labels.insert("severity".into(), raised.from.word().into());
        before.ends_at = raised.at.max(message.incident.fired_at).rfc3339();
        all.push(before);
    }
    all
}

fn alert(message: &Message) -> Alert {
    let incident = &message.incident;
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    // The incident's own labels come last, so that a label of the rule cannot replace them.
    for (name, value) in incident.labels.0.iter().chain(&incident.group.0) {
        labels.insert(label_name(name), value.to_string());
    }
    let own = [
        ("alertname", incident.rule.to_string()),
        ("severity", incident.severity.word().into()),
        ("target", incident.target.to_string()),
        ("incident", incident.id.to_string()),
    ];
    labels.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
    if message.test {
        labels.insert("alertname".into(), "SkewtrapTest".into());
        labels.insert("test".into(), "true".into());
    }
    // To Alertmanager an empty value means that the label is absent, and some versions refuse it.
    labels.retain(|_, value| !value.is_empty());

    let mut annotations: BTreeMap<String, String> = message
        .facts
        .lines()
        .iter()
        .map(|(name, text)| (name.replace(' ', "_"), (*text).to_owned()))
        .collect();
    annotations.insert("summary".into(), message.title.clone());
    annotations.insert("update".into(), message.update.word().into());
    if !message.notes.is_empty() {
        annotations.insert("notes".into(), message.notes.join("; "));
    }
    if message.test {
        annotations.insert("test".into(), "a sample of skewtrap notify-test".into());
    }
    // An alert that ends before it began is refused, and would then go on: a clock may have been set back.
    let ended = incident.resolved_at.map(|end| end.max(incident.fired_at));
    let longest = if message.test { LONGEST_TEST } else { LONGEST_ALERT };
    Alert {
        labels,
        annotations,
        starts_at: incident.fired_at.rfc3339(),
        ends_at: ended.unwrap_or(incident.fired_at + longest).rfc3339(),
        generator_url: message.page.clone().unwrap_or_default(),
    }
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`: anything else becomes an underscore.
fn label_name(name: &str) -> String {
    let clean: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if clean.starts_with(|c: char| c.is_ascii_digit()) { format!("_{clean}") } else { clean }
}
