//! The agent's API without an agent behind it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use skewtrap::clock::wall_time;
use skewtrap::http::Secret;
use skewtrap::http::client::client;
use skewtrap::serve::metrics::Metrics;
use skewtrap::serve::published::{Published, Publisher, Vitals, publisher};
use skewtrap::serve::{Action, Answer, ApiContext, ApiServer, Command, ServeConfig};
use skewtrap_core::message::sample;
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::{RankStatus, RuleStatus, SignalStatus, SourceStatus, Status, TargetStatus};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// An agent without a core: it publishes what the test says and keeps what it is asked.
pub struct Agent {
    pub api: SocketAddr,
    pub probes: Option<SocketAddr>,
    pub publisher: Publisher,
    pub asked: Arc<Mutex<Vec<Action>>>,
    pub dir: tempfile::TempDir,
    pub cancel: CancellationToken,
    pub http: reqwest::Client,
}

pub fn config(dir: &Path) -> ServeConfig {
    ServeConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics_listen: Some("127.0.0.1:0".parse().unwrap()),
        token: Some(Secret::new("t0ken")),
        own_token: Arc::default(),
        hosts: Vec::new(),
        incident_dir: dir.join("incidents"),
    }
}

/// What was published once, and stands.
pub fn standing(status: Status) -> (Publisher, Published) {
    let (publisher, published) = publisher(Vitals::default());
    publisher.publish_fixed(status);
    (publisher, published)
}

pub fn context(published: Published, commands: mpsc::Sender<Command>) -> ApiContext {
    ApiContext { published, commands, metrics: Arc::new(Metrics::default()), alerts: Arc::default() }
}

impl Agent {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ServeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        std::fs::create_dir_all(&config.incident_dir).unwrap();
        let (publisher, shown) = standing(status());
        let (commands, mut incoming) = mpsc::channel::<Command>(16);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        tokio::spawn(async move {
            while let Some(command) = incoming.recv().await {
                let answer = answer_to(&command.action);
                kept.lock().unwrap().push(command.action);
                let _ = command.answer.send(answer);
            }
        });
        let server = ApiServer::bind(&config, context(shown, commands)).await.0;
        let (api, probes) = (server.address().unwrap(), server.metrics_address());
        let cancel = CancellationToken::new();
        tokio::spawn(server.run(cancel.clone()));
        Self { api, probes, publisher, asked, dir, cancel, http: client(None).unwrap() }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.http.get(self.url(path)).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> (u16, Value) {
        let request = self.http.post(self.url(path)).header("authorization", format!("Bearer {token}"));
        let response = request.json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

pub fn answer_to(ask: &Action) -> Answer {
    match ask {
        Action::Capture(request) if request.target.as_deref() == Some("gone") => {
            Answer::Missing { why: "there is no target named gone".into() }
        }
        Action::Capture(request) if request.reason.as_deref() == Some("again") => {
            Answer::Refused { why: "a window was open 12 s ago; the next may open in 588 s".into() }
        }
        Action::Capture(_) => {
            Answer::Done { message: "a window opens".into(), incident: Some("20261124T1-manual".into()) }
        }
        _ => Answer::Done { message: "done".into(), incident: None },
    }
}

pub fn status() -> Status {
    let at = wall_time();
    let rank = |i: u16, value: f64| RankStatus {
        rank: skewtrap_trace::rank::Rank::dp(i).labels(),
        signals: [("load".into(), SignalStatus { value, at, stale: i == 1, source: "loads".into() })].into(),
    };
    let source = SourceStatus {
        kind: "loads".into(),
        place: "http://10.0.0.7:30000/v1/loads".into(),
        state: SourceState::Ok,
        problem: None,
        is_behind: false,
        remark: None,
        last: Some(at),
        lag_s: Some(0.01),
        samples: 7,
        dropped: 0,
    };
    Status {
        version: "0.2.0".into(),
        started: at,
        at,
        targets: vec![TargetStatus {
            name: "server".into(),
            url: "http://10.0.0.7:30000".into(),
            sources: vec![source],
            ranks: vec![rank(0, 9.0), rank(1, 0.0)],
            ..TargetStatus::default()
        }],
        rules: vec![RuleStatus {
            name: "dp-load-skew".into(),
            about: None,
            severity: skewtrap_core::rule::Severity::Warning,
            capture: "http, 10 steps".into(),
            groups: Vec::new(),
            last_evaluated: Some(at),
            silenced_until: None,
        }],
        incidents: vec![sample(at)],
        ..Status::default()
    }
}
