//! An agent that comes back watches at once, while the window that it left open is being closed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::stage::{Stage, config};
use crate::support::traces::{Rank, Style, write};
use crate::support::{request, stage};
use serde_json::Value;
use skewtrap::act::profile;
use skewtrap::act::server_lock::{self, LockHolder};
use skewtrap::act::state::{OpenMethod, WindowRow};
use skewtrap::agent::capture::{CaptureStore, Taken, close, find};
use skewtrap::agent::cost::Meter;
use skewtrap::agent::examine::take_one;
use skewtrap::demo::sglang::{Config, Faults, World};
use skewtrap::demo::shell::RunningDouble;
use skewtrap_core::capture::admit::CaptureMethod;
use skewtrap_core::capture::captured::{Captured, CapturedFile, Quality};
use skewtrap_core::capture::governor::{Attempt, AttemptEnd};
use skewtrap_core::capture::window::Answer;
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use skewtrap_core::incident::{CaptureOutcome, Record, StoredCapture};
use skewtrap_core::watch::KeptIncident;
use skewtrap_trace::time::Time;

/// A running agent, and where it answers.
struct Agent {
    _running: stage::Running,
    status: String,
}

impl Agent {
    fn start(dir: &std::path::Path, double: &RunningDouble) -> Self {
        Self::of(dir, "server", &double.url)
    }

    /// One whose target has that name and address.
    fn of(dir: &std::path::Path, name: &str, url: &str) -> Self {
        std::fs::write(dir.join("token"), "t0ken").unwrap();
        Self::with(dir, name, url, &format!("token: {{ file: '{}/token' }}", dir.display()))
    }

    /// The same, with that line of configuration.
    fn with(dir: &std::path::Path, name: &str, url: &str, line: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = dir.display();
        let text = format!(
            "targets: [{{ name: {name}, url: '{url}', logs: ['{at}/server.log'], poll: 200ms }}]
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
{line}
"
        );
        std::fs::write(dir.join("skewtrap.yaml"), text).unwrap();
        Self { _running: stage::agent(dir), status: format!("http://127.0.0.1:{port}/api/v1/status") }
    }

    /// Asks for a window by hand; what is said.
    async fn asked(&self) -> String {
        self.post("capture").await
    }

    async fn post(&self, what: &str) -> String {
        self.send(what, "{}").await
    }

    async fn send(&self, what: &str, body: &'static str) -> String {
        let client = skewtrap::http::client::client(None).unwrap();
        let url = self.status.replace("status", what);
        let answer = client
            .post(url)
            .bearer_auth("t0ken")
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap();
        answer.text().await.unwrap()
    }

    async fn health(&self) -> String {
        let client = skewtrap::http::client::client(None).unwrap();
        let url = self.status.replace("api/v1/status", "healthz");
        client.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// Asks for the status until it is as wanted.
    async fn shows(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let client = skewtrap::http::client::client(None).unwrap();
        let mut last = Value::Null;
        for _ in 0..1200 {
            if let Ok(answer) = client.get(&self.status).bearer_auth("t0ken").send().await
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
    let spec = CaptureSpec::Http(HttpWindow { num_steps: Some(5), ..HttpWindow::default() });
    let grant = stage.grant(spec, &[0, 1], "left").await.unwrap();
    let CaptureMethod::Http(request) = &grant.method else { panic!("it is an HTTP window") };
    let (now, state) = (stage.store.clock.now(), &stage.store.state);
    let mut window = WindowRow {
        attempt: grant.attempt.id.clone(),
        incident: "left".into(),
        target: "server".into(),
        method: OpenMethod::Http(request.clone()),
        sent_at: now,
        granted: false,
        instance: None,
        unproven: None,
        stops: None,
        ended: false,
        log_from: None,
        logs_from: Default::default(),
        refused_double: false,
    };
    let mut record = stage::record("left", state.agent().clone(), now);
    record.incident.capture = CaptureOutcome::Open { since: now, expects: None };
    state.begin(&grant.attempt, &window, Some(&record)).unwrap();
    let (answer, _) = profile::start(&stage.handle.server, request, now).await;
    assert_eq!(answer, Answer::Ok);
    window.granted = true;
    state.update(&window).unwrap();
    stage.double
}

async fn exporting(double: &RunningDouble) -> Vec<u16> {
    let (answer, waits) = tokio::sync::oneshot::channel();
    double.change(move |engine, _| {
        if let skewtrap::demo::ServerKind::Sglang(world) = engine {
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
    // Then it is closed, samples are trusted again, and the rule asks for its window: what the other one
    // cost is booked, and it was far more than predicted.
    agent
        .shows("a refusal", |s| {
            let incidents = s["incidents"].as_array().unwrap();
            incidents.iter().any(|i| i["rule"] == "skew" && i["capture"]["reason"] == "suspended")
        })
        .await;
    let path = dir.path().join("incidents/left/incident.json");
    let read = || serde_json::from_str::<Value>(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let record = read();
    assert_eq!(record["capture"]["state"], "done", "{record:#}");
    assert_eq!(record["files"].as_array().unwrap().len(), 2);
    let [booked, seen] = ["stall_s", "longest_stall_s"].map(|key| record["capture"][key].as_f64().unwrap());
    assert!(booked >= seen && seen > 6.0 && seen < 14.0, "{record:#}");
    assert!(record["capture"]["notes"].to_string().contains("skewtrap resume"), "{record:#}");
    // It is compared like any other.
    agent.shows("a verdict", |_| !read()["verdict"].is_null()).await;
    // Nothing opens before a person has looked.
    let refused = agent.asked().await;
    assert!(refused.contains("are suspended since"), "{refused}");
    assert_eq!(starts(), 1);
    assert!(agent.post("resume").await.contains("windows may open again on server"));
    assert!(agent.post("resume").await.contains("no server has windows suspended"));
    // What that window taught holds all the same.
    let refused = agent.asked().await;
    assert!(refused.contains("are predicted to silence the slowest rank"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_is_stopped_by_whichever_name_and_spelling_its_server_is_a_target_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { decode_log_interval: 1000, ..config(&[(9, 0), (0, 0)]) };
    let double = left_open(Stage::of(config, dir.path()).await).await;
    let port = double.url.rsplit_once(':').unwrap().1.to_owned();
    let posts = |path: &str| double.requests().iter().filter(|r| r.path == path).count();
    // An agent watched it by that name and address, and nothing else was noted of the window.
    let known = [("server".to_owned(), format!("127.0.0.1:{port}"))];
    stage::store(dir.path()).state.servers_are(&known).unwrap();
    let elsewhere = Agent::of(dir.path(), "elsewhere", "http://127.0.0.1:1");
    elsewhere.shows("itself", |s| s["targets"].is_array()).await;
    let log = std::fs::read_to_string(dir.path().join("agent.log")).unwrap();
    assert!(log.contains("no target any more"), "{log}");
    drop(elsewhere);
    assert_eq!(posts("/stop_profile"), 0);
    let again = Agent::of(dir.path(), "again", &format!("http://localhost:{port}"));
    again
        .shows("the closed window", |s| posts("/stop_profile") > 0 && s["windows"] == serde_json::json!([]))
        .await;
    assert_eq!(posts("/start_profile"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_disk_that_hangs_at_the_start_keeps_nobody_from_watching_and_is_taken_over_when_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { decode_log_interval: 1000, ..config(&[(9, 0), (40, 2)]) };
    let double = left_open(Stage::of(config, dir.path()).await).await;
    let posts = |path: &str| double.requests().iter().filter(|r| r.path == path).count();
    // A file of the state folder whose opening does not come back before somebody writes to it.
    let hangs = dir.path().join("state/api-token");
    rustix::fs::mknodat(rustix::fs::CWD, &hangs, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let agent = Agent::with(dir.path(), "server", &double.url, "");
    let is_of = |s: &Value, reason: &str| {
        let incidents = s["incidents"].as_array().unwrap();
        incidents.iter().any(|i| i["rule"] == "skew" && i["capture"]["reason"] == reason)
    };
    let status = agent.shows("a refusal", |s| is_of(s, "state_disk")).await;
    assert!(status["targets"][0]["ranks"].as_array().is_some_and(|r| r.len() == 2), "{status:#}");
    let health = agent.health().await;
    let folder = dir.path().join("state").display().to_string();
    assert!(health.starts_with("ok, but the disk of the folder") && health.contains(&folder), "{health}");
    assert!(agent.asked().await.contains("/healthz"), "nobody can change anything yet");
    assert_eq!((posts("/start_profile"), posts("/stop_profile")), (1, 0), "what is open is not known");
    skewtrap::world::blocking(move || std::fs::write(hangs, "t0ken")).await.unwrap().unwrap();
    // It ended by its steps meanwhile, and that is seen only now; what it used is not given back.
    agent
        .shows("the closed window", |s| {
            s["windows"] == serde_json::json!([]) && s["budget"]["limits"][0]["used"].as_u64() > Some(0)
        })
        .await;
    let bundle = dir.path().join("incidents/left/incident.json");
    agent.shows("the bundle of the window", |_| bundle.exists()).await;
    assert_eq!(agent.health().await, "ok\n");
    // What was refused meanwhile is granted now.
    let mut answer = agent.asked().await;
    for _ in 0..600 {
        if !answer.contains("left a window open") && !answer.contains("/healthz") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer = agent.asked().await;
    }
    assert!(answer.contains("a window is being opened"), "{answer}");
    assert!(answer.contains("that may open within 24 h, by rules and by hand together"), "{answer}");
}

fn attempt_of(incident: &str, number: u32, at: Time, times_bound: f64) -> Attempt {
    Attempt {
        id: format!("{incident}/{number}"),
        rule: "skew".into(),
        target: "server".into(),
        group: "server".into(),
        incident: incident.into(),
        firing: "dp_rank=1 high".into(),
        at,
        times_bound,
        over_at: None,
        end: None,
    }
}

/// An incident that fires, as an agent before left it to the next one.
fn kept(record: &Record) -> KeptIncident {
    let labels = serde_json::json!({ "target": "server", "role": "unified" });
    serde_json::from_value(serde_json::json!({
        "incident": record.incident, "rule": "skew", "group": labels, "firing": "dp_rank=1 high",
        // As it is kept a moment before its message is written.
        "is_told": true, "silenced": null, "refusal_reported": 0, "is_behind": false,
    }))
    .unwrap()
}

/// A receiver, as a line of the configuration, and the keys of the messages that it got.
async fn told() -> (String, Arc<Mutex<Vec<String>>>) {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let kept = keys.clone();
    let take = move |headers: axum::http::HeaderMap, _: String| async move {
        kept.lock().unwrap().push(headers["idempotency-key"].to_str().unwrap().to_owned());
        "ok"
    };
    let hook = stage::hook(axum::routing::post(take)).await;
    (format!("receivers: [{{ name: hook, webhook: {{ url: '{hook}' }} }}]"), keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_that_nobody_was_told_of_is_told_by_the_next_agent_though_its_incident_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let double = stage::play(World::new(config(&[(9, 0), (40, 2)]), stage::begin()), dir.path()).await;
    let (receiver, keys) = told().await;
    {
        let store = stage::store(dir.path());
        let now = store.clock.now();
        let mut record = stage::record("i1", store.state.agent().clone(), now);
        record.incident.rule = "skew".into();
        record.incident.capture = CaptureOutcome::Open { since: now, expects: None };
        let attempt = attempt_of("i1", 1, now, 2.0);
        let window = WindowRow::of(&attempt, OpenMethod::Command { group: None }, now);
        store.state.begin(&attempt, &window, Some(&record)).unwrap();
        store.bundles.create(&record, b"{}\n").unwrap();
        store.state.save_known(&[], &[kept(&record)]).unwrap();
        // Its files are no traces, and the agent dies before it has told anybody.
        let file = CapturedFile { path: "traces/out.txt".into(), size: 5, ..CapturedFile::default() };
        let captured = Captured { files: vec![file.clone()], ..Captured::default() };
        let end =
            AttemptEnd { at: now, stalled: Duration::ZERO, bytes: 5, unproven: None, cost: None, harm: None };
        let outcome = CaptureOutcome::Done(captured);
        let stored =
            StoredCapture { outcome, files: vec![file], ..StoredCapture::failed(String::new(), end) };
        store.state.finish(&attempt.id, "i1", &stored).unwrap();
    }
    let agent = Agent::with(dir.path(), "server", &double.url, &receiver);
    let is_told = || keys.lock().unwrap().iter().any(|key| key.ends_with("i1:captured"));
    agent.shows("the result, which people were told", |_| is_told()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_incident_that_nobody_was_told_is_told_by_the_next_agent_though_it_may_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let double = stage::play(World::new(config(&[(9, 0), (40, 2)]), stage::begin()), dir.path()).await;
    let (receiver, keys) = told().await;
    {
        let store = stage::store(dir.path());
        let now = store.clock.now();
        let mut record = stage::record("i1", store.state.agent().clone(), now);
        record.incident.rule = "skew".into();
        record.incident.trouble = Some(1);
        store.bundles.create(&record, b"{}\n").unwrap();
        // The agent dies after the state knows of the end, and before its message is written.
        assert!(record.incident.resolve(now));
        store.state.save_known(&[], &[kept(&record)]).unwrap();
    }
    let agent = Agent::with(dir.path(), "server", &double.url, &receiver);
    let is_told = || keys.lock().unwrap().iter().any(|key| key.ends_with("i1:resolved"));
    agent.shows("the end, which people were told", |_| is_told()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovered_capture_outlives_its_verdict_though_the_state_kept_the_incident_before_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let double = stage::play(World::new(config(&[(9, 0), (40, 2)]), stage::begin()), dir.path()).await;
    {
        let store = stage::store(dir.path());
        let now = store.clock.now();
        let mut record = stage::record("i1", store.state.agent().clone(), now);
        record.incident.rule = "skew".into();
        record.incident.trouble = Some(1);
        record.incident.capture = CaptureOutcome::Open { since: now, expects: None };
        let attempt = attempt_of("i1", 1, now, 2.0);
        let window = WindowRow::of(&attempt, OpenMethod::Command { group: None }, now);
        store.state.begin(&attempt, &window, Some(&record)).unwrap();
        let traces = store.bundles.create(&record, b"{}\n").unwrap().join("traces");
        std::fs::create_dir(&traces).unwrap();
        let ranks: Vec<Rank> = (0..2).map(|dp| Rank::new(format!("DP-{dp}"), Some(0))).collect();
        write(&traces, &ranks, &Style::default());
        // It is resolved, and may come back, when the agent dies during the comparison.
        assert!(record.incident.resolve(now));
        store.state.save_known(&[], &[kept(&record)]).unwrap();
        let file = |entry: std::io::Result<std::fs::DirEntry>| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            CapturedFile { path: format!("traces/{name}"), size: 5, ..CapturedFile::default() }
        };
        let files: Vec<CapturedFile> = std::fs::read_dir(&traces).unwrap().map(file).collect();
        assert_eq!(files.len(), 2);
        let captured = Captured { files: files.clone(), quality: Quality::Usable, ..Captured::default() };
        let end = AttemptEnd { at: now, bytes: 10, ..AttemptEnd::default() };
        let outcome = CaptureOutcome::Done(captured);
        let stored = StoredCapture { outcome, files, ..StoredCapture::failed(String::new(), end) };
        store.state.finish(&attempt.id, "i1", &stored).unwrap();
    }
    let agent = Agent::with(dir.path(), "server", &double.url, "");
    let path = dir.path().join("incidents/i1/incident.json");
    let read = || serde_json::from_str::<Value>(&std::fs::read_to_string(&path).unwrap()).unwrap();
    agent.shows("a verdict", |_| !read()["verdict"].is_null()).await;
    let record = read();
    assert_eq!((&record["capture"]["state"], &record["state"]), (&"done".into(), &"resolved".into()));
    assert_eq!(record["files"].as_array().unwrap().len(), 2, "{record:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_waits_for_that_of_another_agent_on_the_same_server() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { decode_log_interval: 1000, ..config(&[(9, 0), (40, 2)]) };
    let double = stage::play(World::new(config, stage::begin()), dir.path()).await;
    let address = stage::handle(&double.url).server.address().unwrap();
    let folder = dir.path().join("profiles");
    std::fs::create_dir_all(&folder).unwrap();
    let now = skewtrap::clock::Clock::start().now();
    let other = LockHolder { agent: "other".into(), process: 7, until: now + Duration::from_secs(75) };
    let lock = server_lock::take(&server_lock::path(Some(&folder), &address), &other, now).unwrap().unwrap();
    let agent = Agent::start(dir.path(), &double);
    let capture_is = |s: &Value, state: &str, reason: Option<&str>| {
        let incidents = s["incidents"].as_array().unwrap();
        let is = |i: &Value| i["capture"]["state"] == state && i["capture"]["reason"].as_str() == reason;
        incidents.iter().any(|i| i["rule"] == "skew" && is(i))
    };
    agent.shows("a refusal", |s| capture_is(s, "refused", Some("other_agent"))).await;
    let starts = || double.requests().iter().filter(|r| r.path == "/start_profile").count();
    assert_eq!(starts(), 0);
    drop(lock);
    agent.shows("the capture", |s| capture_is(s, "done", None)).await;
    assert_eq!(starts(), 1);
}

/// Writes the traces of two ranks into that folder of a bundle, and gives what a capture says of them.
fn traces(bundle: &std::path::Path, folder: &str, now: Time) -> Captured {
    let traces = bundle.join(folder);
    std::fs::create_dir(&traces).unwrap();
    let ranks: Vec<Rank> = (0..2).map(|dp| Rank::new(format!("DP-{dp}"), Some(0))).collect();
    write(&traces, &ranks, &Style::default());
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        CapturedFile { path: format!("{folder}/{name}"), size: 5, ..CapturedFile::default() }
    };
    let files = std::fs::read_dir(&traces).unwrap().map(file).collect();
    Captured { files, quality: Quality::Usable, started_at: now, ..Captured::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_before_it_was_compared_gets_its_verdict_from_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let double = stage::play(World::new(config(&[(9, 0), (40, 2)]), stage::begin()), dir.path()).await;
    {
        let store = stage::store(dir.path());
        let now = store.clock.now();
        let record = |id: &str| {
            let mut record = stage::record(id, store.state.agent().clone(), now);
            record.incident.rule = "skew".into();
            record
        };
        // The second capture of one that goes on is told at once, and the state forgets it.
        let mut goes_on = record("i1");
        goes_on.incident.capture = CaptureOutcome::Done(Captured::default());
        let bundle = store.bundles.create(&goes_on, b"{}\n").unwrap();
        let captured = traces(&bundle, "traces-2", now);
        goes_on.incident.capture_again(CaptureOutcome::Done(captured), Some(1.4));
        store.bundles.write(&goes_on).unwrap();
        store.state.save_known(&[], &[kept(&goes_on)]).unwrap();
        // That of another one took longer to compare than people wait, and its trouble has ended.
        let mut over = record("i2");
        let bundle = store.bundles.create(&over, b"{}\n").unwrap();
        over.incident.capture = CaptureOutcome::Done(traces(&bundle, "traces", now));
        assert!(over.incident.resolve(now));
        store.bundles.write(&over).unwrap();
        // The end of a third one is told by the next agent, for its rule does not fire there.
        let mut left = record("i3");
        let bundle = store.bundles.create(&left, b"{}\n").unwrap();
        left.incident.capture = CaptureOutcome::Done(traces(&bundle, "traces", now));
        store.bundles.write(&left).unwrap();
    }
    let agent = Agent::with(dir.path(), "server", &double.url, "");
    let read = |id: &str| {
        let path = dir.path().join(format!("incidents/{id}/incident.json"));
        serde_json::from_str::<Value>(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let is_compared = |id: &str| !read(id)["verdict"].is_null();
    agent.shows("the verdicts", |_| ["i1", "i2", "i3"].into_iter().all(is_compared)).await;
    assert_eq!(["i2", "i3"].map(|id| read(id)["state"].clone()), ["resolved", "resolved"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_that_is_sent_again_to_the_next_agent_has_asked_before() {
    let dir = tempfile::tempdir().unwrap();
    let double = stage::play(World::new(config(&[(9, 0), (9, 0)]), stage::begin()), dir.path()).await;
    let alert = r#"{"alerts": [{"status": "firing", "fingerprint": "f", "startsAt": "2026-11-24T03:48:41.9Z",
        "labels": {"alertname": "Skew"}}]}"#;
    let is_there = |s: &Value| s["targets"].as_array().is_some_and(|targets| !targets.is_empty());
    let first = Agent::start(dir.path(), &double);
    first.shows("itself", is_there).await;
    let said = first.send("alerts", alert).await;
    assert!(said.contains("results") && !said.contains("asked before"), "{said}");
    let state = rusqlite::Connection::open(dir.path().join("state/state.sqlite")).unwrap();
    let is_kept = |_: &Value| {
        let kept = state.query_row("SELECT 1 FROM meta WHERE name = 'alerts'", [], |_| Ok(()));
        kept.is_ok()
    };
    first.shows("what is kept", is_kept).await;
    drop(first);
    let second = Agent::start(dir.path(), &double);
    second.shows("itself", is_there).await;
    let said = second.send("alerts", alert).await;
    assert!(said.contains("it has asked before"), "{said}");
}

/// An incident whose first capture is kept, and whose second one an agent left open when it died.
fn second_left_open(dir: &std::path::Path) -> (CaptureStore, WindowRow, Record) {
    let store = stage::store(dir);
    // The state keeps microseconds.
    let now = Time::from_epoch_s(store.clock.now().epoch_s());
    let agent = store.state.agent().clone();
    let mut record = stage::record("i1", agent, now);
    record.incident.capture = CaptureOutcome::Done(Captured::default());
    let first = CapturedFile { path: "traces/a.trace.json.gz".into(), size: 5, ..CapturedFile::default() };
    record.files = vec![first];
    store.bundles.create(&record, b"{}\n").unwrap();
    record.incident.capture_again(CaptureOutcome::Open { since: now, expects: None }, Some(1.4));
    let attempt = |number, times_bound| attempt_of("i1", number, now, times_bound);
    let window = |number: u32| WindowRow {
        attempt: format!("i1/{number}"),
        incident: "i1".into(),
        target: "server".into(),
        method: OpenMethod::Command { group: None },
        sent_at: now,
        granted: true,
        instance: None,
        unproven: None,
        stops: None,
        ended: false,
        log_from: None,
        logs_from: Default::default(),
        refused_double: false,
    };
    store.state.begin(&attempt(1, 1.4), &window(1), None).unwrap();
    let end =
        AttemptEnd { at: now, stalled: Duration::ZERO, bytes: 5, unproven: None, cost: None, harm: None };
    store.state.end("i1/1", &end).unwrap();
    store.state.begin(&attempt(2, 2.2), &window(2), Some(&record)).unwrap();
    (store, window(2), record)
}

#[tokio::test]
async fn a_second_window_that_was_left_open_is_closed_beside_the_first_whose_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (store, window, record) = second_left_open(dir.path());
    let scratch = store.bundles.scratch("i1", 2).unwrap();
    std::fs::write(scratch.join("out.txt"), b"half").unwrap();
    let still_fires = stage::record("i0", store.state.agent().clone(), record.incident.fired_at);
    store.bundles.create(&still_fires, b"{}\n").unwrap();
    let found = find(&store).unwrap();
    assert_eq!(found.left, [(window.clone(), record.clone())]);
    assert!(found.finished.is_empty());
    assert_eq!(found.open, [still_fires], "it has no window, and is to be told resolved");
    let handle = stage::handle("http://127.0.0.1:9");
    let known = Some(handle);
    let (mut record, cancel) = (record, tokio_util::sync::CancellationToken::new());
    let meter = Meter::of_before(store.clock, window.sent_at);
    let taken = close(store.clone(), known, window, record.clone(), (meter, cancel)).await;
    let Taken::Stored { capture, .. } = taken else { panic!("{taken:?}") };
    record.complete(&capture);
    assert_eq!(
        store.state.unfinished_incidents().unwrap(),
        [(record.clone(), false)],
        "the next agent knows it all"
    );
    store.bundles.update(record.incident.clone()).unwrap();
    let there = store.bundles.read("i1").unwrap();
    assert_eq!(there, record);
    let files: Vec<&str> = there.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(files, ["traces/a.trace.json.gz", "traces-2/out.txt"]);
    assert_eq!((there.incident.capture.word(), there.incident.earlier[0].capture.word()), ("failed", "done"));
    let marks: Vec<(f64, u64)> = store
        .state
        .ledger()
        .unwrap()
        .attempts
        .iter()
        .map(|a| (a.times_bound, a.end.as_ref().unwrap().bytes))
        .collect();
    assert_eq!(marks, [(1.4, 5), (2.2, 4)], "each is booked with its own bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_doctor_is_interrupted_in_is_closed_by_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults { slow_export: Duration::from_secs(60), ..Faults::default() };
    let stage = Stage::of(Config { faults, ..config(&[(9, 0), (40, 2)]) }, dir.path()).await;
    let spec = CaptureSpec::Http(HttpWindow { num_steps: Some(5), ..HttpWindow::default() });
    let plan = stage.grant(spec, &[0, 1], "doctor-1").await.unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let stop = cancel.clone();
    let (taken, ()) =
        tokio::join!(take_one(&stage.store, &stage.handle, None, &plan, Duration::ZERO, cancel), async {
            while exporting(&stage.double).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            stop.cancel();
        });
    assert!(matches!(taken.unwrap(), CaptureOutcome::Open { .. }));
    // Another agent waits with its own until this one's must be over.
    let lock =
        server_lock::path(Some(std::path::Path::new(&stage.base())), &stage.handle.server.address().unwrap());
    let now = stage.store.clock.now();
    let other = LockHolder { agent: "other".into(), process: 1, until: now };
    assert_eq!(
        &*server_lock::take(&lock, &other, now).unwrap().unwrap_err().agent,
        &**stage.store.state.agent()
    );
    let found = find(&stage.store).unwrap();
    assert_eq!(found.left.len(), 1, "{found:?}");
    assert_eq!(found.left[0].0.attempt, plan.attempt.id);
}

#[tokio::test]
async fn a_window_on_a_server_that_is_no_target_any_more_is_given_up_once_nothing_would_stop_it() {
    let (hour, seconds) = (Duration::from_secs(3600), Duration::from_secs);
    for (age, has_log, is_given_up) in [
        (seconds(600), false, false),
        (seconds(800), false, true),
        (hour, true, false),
        (25 * hour, true, true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut window, record) = second_left_open(dir.path());
        window.sent_at = store.clock.now() - age;
        window.method = OpenMethod::Http(request::of_steps(
            "i1",
            vec![skewtrap_trace::rank::Rank::dp(0)],
            Duration::from_secs(30),
        ));
        window.log_from = has_log.then_some(0);
        store.state.update(&window).unwrap();
        let cancel = tokio_util::sync::CancellationToken::new();
        let meter = Meter::of_before(store.clock, window.sent_at);
        cancel.cancel();
        let ends = if is_given_up { tokio_util::sync::CancellationToken::new() } else { cancel };
        let taken = close(store.clone(), None, window, record, (meter, ends)).await;
        let open = store.state.ledger().unwrap().open().count();
        assert_eq!(open == 0, is_given_up, "{age:?} {has_log}: {taken:?}");
        if is_given_up {
            let [kept] = store.state.open_windows().unwrap().try_into().unwrap();
            assert!(kept.unproven.unwrap().contains("no target any more"));
            store.state.release(store.clock.now() + seconds(1), None).unwrap();
            assert!(store.state.open_windows().unwrap().is_empty());
        }
    }
}

#[test]
fn a_bundle_that_knows_of_the_first_capture_only_hears_how_the_second_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (store, window, record) = second_left_open(dir.path());
    let end = AttemptEnd {
        at: store.clock.now(),
        stalled: Duration::ZERO,
        bytes: 0,
        unproven: None,
        cost: None,
        harm: None,
    };
    store.state.end(&window.attempt, &end).unwrap();
    let told = find(&store).unwrap().finished;
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].incident.window(), told[0].incident.capture.word()), (2, "failed"));
    assert_eq!(store.bundles.read("i1"), Some(told[0].clone()));
    assert_eq!(told[0].files, record.files);
}
