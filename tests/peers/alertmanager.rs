//! Messages to a real Alertmanager.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use skewtrap::act::notify::plan::delivery;
use skewtrap::act::notify::{DeliveryResult, Receiver, Transport};
use skewtrap::http::Secret;
use skewtrap::http::client::client;
use skewtrap_core::incident::IncidentState;
use skewtrap_core::message::{Alert, Update, sample};
use skewtrap_core::rule::Severity;
use skewtrap_trace::time::Time;

use crate::support::receiver::{AT, Double, hasty, message, next, start};
use crate::support::until;

/// A real Alertmanager with one webhook of ours behind it; `None`, loudly, where it is not installed.
struct Alertmanager {
    process: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Alertmanager {
    async fn start(hook: SocketAddr) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("alertmanager.yml");
        std::fs::write(
            &config,
            format!(
                "route: {{receiver: w, group_by: [alertname, target], group_wait: 0s, group_interval: 1s}}\n\
                 receivers: [{{name: w, webhook_configs: [{{url: 'http://{hook}/', send_resolved: true}}]}}]\n"
            ),
        )
        .unwrap();
        let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let started = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            eprintln!(
                "SKIPPED: the tests against a real Alertmanager (prometheus-alertmanager is not installed)"
            );
            return None;
        };
        let alertmanager = Self { process, url: format!("http://127.0.0.1:{port}"), _dir: dir };
        let http = client(None).unwrap();
        let ready = format!("{}/-/ready", alertmanager.url);
        until("Alertmanager is ready", async || {
            http.get(&ready).send().await.is_ok_and(|r| r.status().is_success())
        })
        .await;
        Some(alertmanager)
    }
}

#[tokio::test]
async fn a_real_alertmanager_tells_the_story_from_firing_to_resolved() {
    let hook = Double::default();
    let Some(alertmanager) = Alertmanager::start(hook.listen().await).await else { return };
    let means = Transport::Alertmanager { url: Secret::new(alertmanager.url.clone()), bearer: None };
    let (hands, mut results) = start(vec![Receiver::new("am", means)], &hasty());

    // Alertmanager compares with its own clock.
    let fired_at = Time::from_epoch_s(jiff::Timestamp::now().as_millisecond() as f64 / 1e3 - 1.0);
    let mut incident = sample(fired_at);
    let now = Time::from_epoch_s(AT);
    hands.hand_over(delivery(&"am".into(), message(&incident, Update::Fired), now)).unwrap();
    assert_eq!(next(&mut results).await.result, DeliveryResult::Sent);

    let http = client(None).unwrap();
    let active: Vec<Alert> =
        http.get(format!("{}/api/v2/alerts", alertmanager.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(active.len(), 1);
    assert_eq!(active[0].labels["alertname"], "dp-load-skew");
    assert!(active[0].annotations["rank"].starts_with("DP2 of 4"));
    assert!(active[0].annotations["how_much"].contains("DP2 46"));

    let told = |status: &str| {
        hook.bodies().iter().any(|b| b["alerts"].as_array().unwrap().iter().any(|a| a["status"] == status))
    };
    until("its webhook says firing", async || told("firing")).await;

    // A graver rule takes it over: one alert is open at any time, whichever it is.
    let graver_at = Time::from_epoch_s(jiff::Timestamp::now().as_millisecond() as f64 / 1e3);
    incident.raise(Severity::Critical, graver_at);
    hands.hand_over(delivery(&"am".into(), message(&incident, Update::Fired), now)).unwrap();
    assert_eq!(next(&mut results).await.result, DeliveryResult::Sent);
    until("one alert is open, the graver one", async || {
        let answer =
            http.get(format!("{}/api/v2/alerts?active=true", alertmanager.url)).send().await.unwrap();
        let open: Vec<Alert> = answer.json().await.unwrap();
        matches!(&open[..], [one] if one.labels["severity"] == "critical")
    })
    .await;
    until("its webhook says that the milder one is over", async || told("resolved")).await;
    let over = || {
        let all = |b: &serde_json::Value| b["alerts"].as_array().cloned().unwrap_or_default();
        let alerts: Vec<_> = hook.bodies().iter().flat_map(all).collect();
        let is_over = |a: &&serde_json::Value| a["status"] == "resolved";
        alerts.iter().filter(is_over).map(|a| a["labels"]["severity"].to_string()).collect::<Vec<_>>()
    };
    assert!(over().iter().all(|severity| severity.contains("warning")), "{:?}", over());
    incident.state = IncidentState::Resolved;
    incident.resolved_at = Some(Time::from_epoch_s(jiff::Timestamp::now().as_millisecond() as f64 / 1e3));
    hands.hand_over(delivery(&"am".into(), message(&incident, Update::Resolved), now)).unwrap();
    assert_eq!(next(&mut results).await.result, DeliveryResult::Sent);
    until("its webhook says resolved", async || over().iter().any(|s| s.contains("critical"))).await;
}
