//! Alertmanager's webhook as a trigger: an alert that fires in Prometheus, Mimir or VictoriaMetrics
//! requests a capture, on which the same governor decides as for a rule.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use super::control::{Action, AlertKey, AlertOrigin, Answer, CaptureBody, body, send_command};
use super::{ApiError, Shared};
use skewtrap_core::printable::{LIMIT, printable};
use skewtrap_core::status::{Scope, TargetStatus};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::time::Time;

/// How many alerts are remembered: Alertmanager sends all alerts of a group again whenever one changes.
const REMEMBERED: usize = 1024;
/// How many alerts of one request are handled.
const MAX_ALERTS: usize = 64;
/// Bytes of a request: many alerts with their annotations need more than any other request.
pub(super) const BODY_LIMIT: usize = 1 << 20;
/// The label that only the agent's own alerts have.
const OWN_LABEL: &str = "incident";
const OWN_ALERT: &str =
    "its label `incident` says that it is of skewtrap's own making, which asks for no capture";

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

/// The alerts that have requested a capture already. Alertmanager repeats them for hours, also to the next life of an
/// agent, so the loop keeps them in its state.
#[derive(Debug, Default)]
pub struct HandledAlerts(Mutex<VecDeque<AlertKey>>);

impl HandledAlerts {
    fn contains(&self, key: &AlertKey) -> bool {
        !key.0.is_empty() && self.lock().contains(key)
    }

    /// Called only once the loop answered: otherwise the alert is handled when it is sent again.
    pub fn insert(&self, key: AlertKey) {
        if key.0.is_empty() || self.contains(&key) {
            return;
        }
        let mut handled = self.lock();
        handled.push_back(key);
        forget_oldest(&mut handled);
    }

    /// Adds those of an agent before this one.
    pub fn add_earlier(&self, earlier: Vec<AlertKey>) {
        let mut handled = self.lock();
        let since = std::mem::take(&mut *handled);
        handled.extend(earlier.into_iter().filter(|key| !since.contains(key)));
        handled.extend(since);
        forget_oldest(&mut handled);
    }

    /// All of them, the newest last.
    pub fn all(&self) -> Vec<AlertKey> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<AlertKey>> {
        crate::world::lock(&self.0)
    }
}

fn forget_oldest(handled: &mut VecDeque<AlertKey>) {
    let too_many = handled.len().saturating_sub(REMEMBERED);
    handled.drain(..too_many);
}

impl InboundAlert {
    fn key(&self) -> AlertKey {
        (self.fingerprint.clone(), self.starts_at.clone())
    }

    fn name(&self) -> &str {
        self.labels.get("alertname").map_or("an alert", String::as_str)
    }

    /// The agent's own alerts have the incident's id as a label. If they requested captures, each capture
    /// would cause the next.
    fn is_of_an_incident(&self) -> bool {
        self.labels.get(OWN_LABEL).is_some_and(|id| !id.is_empty())
    }
}

/// Requests a capture for each alert that newly fires. The response says what became of each. It is
/// 200 even where all were refused, because Alertmanager repeats a request that failed. Only a loop that
/// does not answer is an error: then a repetition helps.
pub(super) async fn alerts(
    State(shared): State<Shared>,
    json: Result<Json<Value>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let notification: Notification = body(json)?;
    let everyone = Scope { ranks: false, ..Scope::ALL };
    let targets = shared.context.published.status(everyone).await.targets.clone();
    let (firing, left_out) = firing_of(&notification.alerts);
    let mut results = Vec::new();
    for alert in firing {
        results.push(result_of(&shared, alert, &targets).await?);
    }
    let mut response = json!({ "results": results });
    if left_out > 0 {
        warn!("{left_out} alerts of one request were ignored; set `max_alerts` to at most {MAX_ALERTS}");
        response["left_out"] = left_out.into();
    }
    Ok(Json(response))
}

/// The alerts that fire, at most [`MAX_ALERTS`], and how many more there are.
fn firing_of(alerts: &[InboundAlert]) -> (Vec<&InboundAlert>, usize) {
    let mut firing: Vec<_> = alerts.iter().filter(|a| a.status == "firing").collect();
    let left_out = firing.len().saturating_sub(MAX_ALERTS);
    firing.truncate(MAX_ALERTS);
    (firing, left_out)
}

/// What became of one alert.
async fn result_of(
    shared: &Shared,
    alert: &InboundAlert,
    targets: &[TargetStatus],
) -> Result<Value, ApiError> {
    let name = &*printable(alert.name(), LIMIT);
    if alert.is_of_an_incident() {
        return Ok(json!({ "alert": name, "ignored": OWN_ALERT }));
    }
    let target = match target_of(&alert.labels, targets) {
        Ok(target) => target,
        Err(why) => return Ok(json!({ "alert": name, "refused": why })),
    };
    if shared.context.alerts.contains(&alert.key()) {
        return Ok(json!({ "alert": name, "said": "it has asked before" }));
    }
    let answer = send_command(shared, Action::Capture(request_of(alert, name, target))).await?;
    shared.context.alerts.insert(alert.key());
    Ok(match answer {
        Answer::Done { message, incident } => {
            json!({ "alert": name, "said": message, "incident": incident })
        }
        Answer::Refused { why } | Answer::Wrong { why } | Answer::Missing { why } => {
            json!({ "alert": name, "refused": why })
        }
    })
}

fn request_of(alert: &InboundAlert, name: &str, target: Arc<str>) -> CaptureBody {
    let summary = alert.annotations.get("summary").or_else(|| alert.annotations.get("description"));
    let since = alert.starts_at.parse::<jiff::Timestamp>().ok();
    CaptureBody {
        target: Some(target),
        reason: Some(
            summary.map_or_else(
                || format!("alert {name}"),
                |s| format!("alert {name}: {}", printable(s, LIMIT)),
            ),
        ),
        num_steps: None,
        baseline: false,
        alert: Some(AlertOrigin {
            key: alert.key(),
            labels: labels_of(&alert.labels),
            since: since.map(|t| Time::from_nanos(i64::try_from(t.as_nanosecond()).unwrap_or(0))),
        }),
    }
}

fn labels_of(labels: &BTreeMap<String, String>) -> Labels {
    Labels(
        labels
            .iter()
            .map(|(k, v)| (printable(k, LIMIT).into(), LabelValue::Text(printable(v, LIMIT).into())))
            .collect(),
    )
}

/// The server that an alert is about: its label `skewtrap_target`, else `target`, else an `instance` that is
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
        let handled = HandledAlerts::default();
        let alert = |starts: &str| InboundAlert {
            status: "firing".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            starts_at: starts.into(),
            fingerprint: "f".into(),
        };
        let asked = |starts: &str| handled.contains(&alert(starts).key());
        assert!(!asked("1"));
        handled.insert(alert("1").key());
        assert!(asked("1"));
        assert!(!asked("2"), "it fires anew");
        // The disk of the state answers, and there was an agent before.
        handled.add_earlier(vec![alert("0").key(), alert("1").key()]);
        assert!(asked("0") && handled.all().len() == 2);
        for number in 2..=REMEMBERED {
            handled.insert(alert(&number.to_string()).key());
        }
        assert!(!asked("0") && asked("1") && asked("1024"), "the newest ones");
        let unnamed = InboundAlert { fingerprint: String::new(), ..alert("3") };
        handled.insert(unnamed.key());
        assert!(!handled.contains(&unnamed.key()), "nobody knows which it is");
    }

    #[test]
    fn alerts_that_no_longer_fire_take_no_place_from_those_that_do() {
        let alert = |status: &str| InboundAlert {
            status: status.into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            starts_at: String::new(),
            fingerprint: String::new(),
        };
        let mut alerts: Vec<_> = (0..100).map(|_| alert("resolved")).collect();
        alerts.push(alert("firing"));
        let (firing, left_out) = firing_of(&alerts);
        assert_eq!((firing.len(), left_out), (1, 0));
        alerts.extend((0..70).map(|_| alert("firing")));
        let (firing, left_out) = firing_of(&alerts);
        assert_eq!((firing.len(), left_out), (64, 7));
    }
}
