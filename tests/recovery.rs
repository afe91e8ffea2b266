//! An agent that comes back watches at once, while the window that it left open is being closed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "capture/stage.rs"]
mod stage;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use skewtrap::act::profile;
use skewtrap::act::state::{OpenMeans, OpenWindow};
use skewtrap::decide::capture::admit::Means;
use skewtrap::decide::capture::window::Answer;
use skewtrap::decide::capture::{CaptureSpec, HttpWindow};
use skewtrap::demo::sglang::{Config, Faults};
use skewtrap::demo::shell::RunningDouble;
use stage::{Stage, config};

/// Ends with the test.
struct Agent(Child, String);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Agent {
    fn start(dir: &std::path::Path, double: &RunningDouble) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (at, url) = (dir.display(), &double.url);
        let text = format!(
            "targets: [{{ name: server, url: '{url}', logs: ['{at}/server.log'], poll: 200ms }}]
rules:
  - name: skew
    signal: load
    across: dp_rank
    within: [target, role]
    trigger: {{ max_over_mean: 1.2, for: 0s }}
    min_mean: 1
    capture: {{ http: {{ output_dir: '{at}/profiles', num_steps: 20, deadline: 5s }} }}
    limits: {{ cooldown: 0s, captures: 100, per: 24h }}
budget: {{ stalled: 24h, bytes: 100GiB, windows: 100 }}
keep: {{ min_free: 1MiB }}
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:{port}
token: {{ file: '{at}/token' }}
"
        );
        std::fs::write(dir.join("token"), "t0ken").unwrap();
        std::fs::write(dir.join("skewtrap.yaml"), text).unwrap();
        let log = std::fs::File::create(dir.join("agent.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_skewtrap"))
            .args(["run", "--config"])
            .arg(dir.join("skewtrap.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child, format!("http://127.0.0.1:{port}/api/v1/status"))
    }

    /// Asks for a window by hand; what is said.
    async fn asked(&self) -> String {
        let client = skewtrap::http::client::client(None).unwrap();
        let url = self.1.replace("status", "capture");
        let answer = client
            .post(url)
            .bearer_auth("t0ken")
            .header("content-type", "application/json")
            .body("{}")
            .send()
            .await
            .unwrap();
        answer.text().await.unwrap()
    }

    /// Asks for the status until it is as wanted.
    async fn shows(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let client = skewtrap::http::client::client(None).unwrap();
        let mut last = Value::Null;
        for _ in 0..1200 {
            if let Ok(answer) = client.get(&self.1).bearer_auth("t0ken").send().await
                && let Ok(status) = answer.json::<Value>().await
            {
                if wanted(&status) {
                    return status;
                }
                last = status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it never showed {what}: {last:#}");
    }
}

/// A window is open, and nobody is there any more who knows of it but the state.
async fn left_open(stage: Stage) -> RunningDouble {
    let spec = CaptureSpec::Http(HttpWindow { num_steps: 5, ..HttpWindow::default() });
    let grant = stage.grant(spec, &[0, 1], "left").await.unwrap();
    let Means::Http(request) = &grant.means else { panic!("it is an HTTP window") };
    let (now, state) = (stage.desk.clock.now(), &stage.desk.state);
    let mut window = OpenWindow {
        attempt: grant.attempt.id.clone(),
        incident: "left".into(),
        target: "server".into(),
        means: OpenMeans::Http(request.clone()),
        sent_at: now,
        granted: false,
    };
    let mut record = stage::record("left", state.agent().clone(), now);
    record.incident.capture = skewtrap::decide::incident::CaptureOutcome::Open { since: now };
    state.begin(&grant.attempt, &window, Some(&record)).unwrap();
    let (answer, _) = profile::start(&stage.site.server, request, now).await;
    assert_eq!(answer, Answer::Ok);
    window.granted = true;
    state.update(&window).unwrap();
    stage.double
}

async fn exporting(double: &RunningDouble) -> Vec<u16> {
    let (answer, waits) = tokio::sync::oneshot::channel();
    double.change(move |engine, _| {
        if let skewtrap::demo::Engine::Sglang(world) = engine {
            let _ = answer.send(world.exporting());
        }
        Vec::new()
    });
    waits.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_export_of_a_window_that_was_left_open_does_not_keep_the_agent_from_watching() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults { slow_export: Duration::from_secs(60), ..Faults::default() };
    let stage = Stage::of(Config { faults, ..config(&[(9, 0), (40, 2)]) }, dir.path()).await;
    let double = left_open(stage).await;
    let agent = Agent::start(dir.path(), &double);
    // The export takes 12 s. Meanwhile its samples open nothing, and who asks is told why.
    let status =
        agent.shows("the ranks", |s| s["targets"][0]["ranks"].as_array().is_some_and(|r| r.len() >= 2)).await;
    assert_eq!(status["windows"][0]["incident"], "left", "{status:#}");
    let refused = agent.asked().await;
    assert!(
        refused.contains("left a window open on server, for incident left; it is being closed first"),
        "{refused}"
    );
    assert!(!exporting(&double).await.is_empty());
    let starts = || double.requests().iter().filter(|r| r.path == "/start_profile").count();
    assert_eq!(starts(), 1);
    // Then it is closed, samples are trusted again, and the rule gets its window.
    agent
        .shows("a capture", |s| {
            let incidents = s["incidents"].as_array().unwrap();
            incidents.iter().any(|i| i["rule"] == "skew" && i["capture"]["state"] == "done")
        })
        .await;
    assert_eq!(starts(), 2);
    let text = std::fs::read_to_string(dir.path().join("incidents/left/incident.json")).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["capture"]["state"], "done", "{record:#}");
    assert_eq!(record["files"].as_array().unwrap().len(), 2);
}
