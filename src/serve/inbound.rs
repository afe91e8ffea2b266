//! Alertmanager's webhook as a trigger: an alert that fires in Prometheus, Mimir or VictoriaMetrics
//! asks for a capture, through the same governor as any rule.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use serde::Deserialize;
use serde_json::{Value, json};

use super::control::{Answer, Ask, CaptureRequest, asked, body};
use super::{Problem, Shared};
use crate::decide::labels::{LabelValue, Labels};
use crate::decide::status::TargetStatus;
use crate::decide::time::Time;

/// Alerts that are remembered: Alertmanager sends those of a group again whenever one changes.
const REMEMBERED: usize = 1024;
/// Alerts of one request that are looked at.
const ALERTS: usize = 64;

/// The part of Alertmanager's webhook (version 4) that matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Notification {
    #[serde(default)]
    alerts: Vec<InboundAlert>,
}

#[derive(Debug, Deserialize)]
pub(super) struct InboundAlert {
    status: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(rename = "startsAt", default)]
    starts_at: String,
    #[serde(default)]
    fingerprint: String,
}

/// Which alerts have asked already: fingerprint and start.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<VecDeque<(String, String)>>);

impl Seen {
    fn is_new(&self, alert: &InboundAlert) -> bool {
        let key = (alert.fingerprint.clone(), alert.starts_at.clone());
        let mut seen = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if alert.fingerprint.is_empty() || seen.contains(&key) {
            return alert.fingerprint.is_empty();
        }
        if seen.len() == REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(key);
        true
    }
}

/// Asks for a capture for each alert that newly fires. The response says what came of each; it is
/// 200 even where all were refused, or Alertmanager would send them again and again.
pub(super) async fn alerts(
    State(shared): State<Shared>,
    json: Result<Json<Notification>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let notification = body(json)?;
    let targets = shared.status().targets.clone();
    let mut results = Vec::new();
    for alert in notification.alerts.iter().take(ALERTS).filter(|a| a.status == "firing") {
        let name = alert.labels.get("alertname").map_or("an alert", String::as_str);
        let result = match target_of(&alert.labels, &targets) {
            Err(why) => json!({ "alert": name, "refused": why }),
            Ok(_) if !shared.alerts.is_new(alert) => json!({ "alert": name, "said": "it has asked before" }),
            Ok(target) => match asked(&shared, Ask::Capture(request_of(alert, name, target))).await? {
                Answer::Done { said, incident } => {
                    json!({ "alert": name, "said": said, "incident": incident })
                }
                Answer::Refused { why } | Answer::Wrong { why } | Answer::Missing { why } => {
                    json!({ "alert": name, "refused": why })
                }
            },
        };
        results.push(result);
    }
    Ok(Json(json!({ "results": results })))
}

fn request_of(alert: &InboundAlert, name: &str, target: Arc<str>) -> CaptureRequest {
    let said = alert.annotations.get("summary").or_else(|| alert.annotations.get("description"));
    let since = alert.starts_at.parse::<jiff::Timestamp>().ok();
    CaptureRequest {
        target: Some(target),
        reason: Some(said.map_or_else(|| format!("alert {name}"), |s| format!("alert {name}: {s}"))),
        num_steps: None,
        labels: labels_of(&alert.labels),
        since: since.map(|t| Time::from_nanos(i64::try_from(t.as_nanosecond()).unwrap_or(0))),
    }
}

fn labels_of(labels: &BTreeMap<String, String>) -> Labels {
    Labels(labels.iter().map(|(k, v)| (k.as_str().into(), LabelValue::Text(v.as_str().into()))).collect())
}

/// The server an alert means: its label `skewtrap_target`, else `target`, else an `instance` that is
/// the host and port of a server's address, else the only server there is.
fn target_of(labels: &BTreeMap<String, String>, targets: &[TargetStatus]) -> Result<Arc<str>, String> {
    let known = |name: &str| targets.iter().find(|t| &*t.name == name).map(|t| t.name.clone());
    if let Some(name) = labels.get("skewtrap_target") {
        return known(name).ok_or_else(|| format!("there is no target named {name}"));
    }
    let by_label = labels.get("target").and_then(|name| known(name));
    let by_instance = || {
        let instance = labels.get("instance")?;
        targets.iter().find(|t| host_of(&t.url) == instance).map(|t| t.name.clone())
    };
    match (by_label.or_else(by_instance), targets) {
        (Some(target), _) => Ok(target),
        (None, [only]) => Ok(only.name.clone()),
        (None, _) => {
            Err("it does not say which target: give the alert the label `skewtrap_target: NAME`".into())
        }
    }
}

/// `10.0.0.7:30000` of `http://10.0.0.7:30000/`.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets() -> Vec<TargetStatus> {
        [("a", "http://10.0.0.7:30000"), ("b", "http://10.0.0.8:30000/")]
            .map(|(name, url)| TargetStatus { name: name.into(), url: url.into(), ..TargetStatus::default() })
            .into()
    }

    fn of(labels: &[(&str, &str)], targets: &[TargetStatus]) -> Result<Arc<str>, String> {
        target_of(&labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), targets)
    }

    #[test]
    fn an_alert_names_its_server_by_label_by_instance_or_because_there_is_only_one() {
        let two = targets();
        assert_eq!(of(&[("skewtrap_target", "b"), ("instance", "10.0.0.7:30000")], &two).as_deref(), Ok("b"));
        assert_eq!(of(&[("target", "a")], &two).as_deref(), Ok("a"));
        assert_eq!(of(&[("instance", "10.0.0.8:30000")], &two).as_deref(), Ok("b"));
        assert_eq!(of(&[("target", "elsewhere")], &two[..1]).as_deref(), Ok("a"));
        assert!(of(&[], &two).expect_err("it may mean either").contains("skewtrap_target"));
        assert!(
            of(&[("skewtrap_target", "c")], &two).expect_err("there is no c").contains("no target named c")
        );
    }

    #[test]
    fn an_alert_that_is_sent_again_asks_only_once() {
        let seen = Seen::default();
        let alert = |starts: &str| InboundAlert {
            status: "firing".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            starts_at: starts.into(),
            fingerprint: "f".into(),
        };
        assert!(seen.is_new(&alert("1")));
        assert!(!seen.is_new(&alert("1")));
        assert!(seen.is_new(&alert("2")), "it fires anew");
    }
}
