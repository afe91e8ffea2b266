//! The real agent beside a list of targets in Prometheus' form, which changes while it runs.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::support::agent::{Agent, answer_to, skewtrap};
use crate::support::stage::hook;

fn list(dir: &Path, text: &str) {
    // As whoever keeps such a list writes it: never half of it under its name.
    fs::write(dir.join("new.json"), text).expect("written");
    fs::rename(dir.join("new.json"), dir.join("targets.json")).expect("moved");
}

fn watched(url: &str) -> Vec<String> {
    let answer = answer_to(url, "GET /api/v1/status HTTP/1.0\r\nhost: localhost\r\n\r\n");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let status: Value = serde_json::from_str(body).expect("JSON");
    let name = |target: &Value| target["name"].as_str().expect("a name").to_owned();
    status["targets"].as_array().expect("targets").iter().map(name).collect()
}

#[test]
fn targets_of_a_list_come_and_go_and_a_broken_list_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = dir.path().display();
    let text = format!(
        "discover: {{ file: targets.json }}\nstate_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    list(dir.path(), r#"[{"targets": ["127.0.0.1:1"], "labels": {"group": "chat"}}]"#);
    let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
    let url = agent.behind("status page and API on ").trim().to_owned();
    assert_eq!(watched(&url), ["127.0.0.1:1"]);
    list(dir.path(), r#"[{"targets": ["127.0.0.1:1", "127.0.0.1:2"], "labels": {"group": "chat"}}]"#);
    agent.until("the list of targets has changed: 1 came, 0 went");
    let url = agent.behind("status page and API on ").trim().to_owned();
    assert_eq!(watched(&url), ["127.0.0.1:1", "127.0.0.1:2"]);
    list(dir.path(), r#"[{"targets": ["127.0.0.1:2""#);
    let told = agent.behind("targets.json: it is no list of targets in the form of Prometheus");
    assert!(told.contains("write [{"), "{told}");
    assert_eq!(watched(&url), ["127.0.0.1:1", "127.0.0.1:2"], "the old ones are watched on");
    list(dir.path(), r#"[{"targets": ["127.0.0.1:2"], "labels": {"group": "chat"}}]"#);
    agent.until("the list of targets has changed: 0 came, 1 went");
    let heard = agent.until("status page and API on ");
    let only_watches = "opens no window until that is corrected";
    assert!(!heard.iter().any(|line| line.contains(only_watches)), "the state was free again: {heard:#?}");
    let (_, url) =
        heard.last().and_then(|line| line.split_once("status page and API on ")).expect("it is said");
    assert_eq!(watched(url.trim()), ["127.0.0.1:2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_fetched_over_http_and_kept_for_when_nobody_serves_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let served = Arc::new(Mutex::new(r#"[{"targets": ["127.0.0.1:1"]}]"#.to_owned()));
    let answers = served.clone();
    let url = hook(axum::routing::get(move || {
        let answers = answers.clone();
        async move { answers.lock().expect("whole").clone() }
    }))
    .await;
    let at = dir.path().display();
    let text = format!(
        "discover: {{ http: '{url}', every: 1s }}\nstate_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
    agent.until("the list of targets has changed: 1 came, 0 went");
    *served.lock().expect("whole") = "<html>503</html>".into();
    let told = agent.behind("it is no list of targets in the form of Prometheus");
    assert!(told.contains("the targets of before are watched on"), "{told}");
    drop(agent);
    // The next agent has the list of before.
    let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
    agent.until("watching 127.0.0.1:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_kubernetes_come_and_go_by_their_names() {
    let dir = tempfile::tempdir().expect("a folder");
    let pod = |name: &str, port: u8| {
        serde_json::json!({
            "metadata": {"name": name, "labels": {"app": "chat"}},
            "status": {"phase": "Running", "podIP": format!("127.0.0.{port}")},
        })
    };
    let pods = Arc::new(Mutex::new(vec![pod("chat-0", 1)]));
    let served = pods.clone();
    // As `kubectl proxy` serves the API.
    let api = axum::Router::new().route(
        "/api/v1/namespaces/prod/pods",
        axum::routing::get(move || {
            let items = served.lock().expect("whole").clone();
            async move { axum::Json(serde_json::json!({"kind": "PodList", "metadata": {}, "items": items})) }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, api).await });
    let at = dir.path().display();
    let text = format!(
        "discover:\n  kubernetes: {{ selector: app=chat, port: 1, namespace: prod, api: '{url}' }}\n  every: 1s\nstate_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    std::fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    let talk = move || {
        let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
        agent.until("the list of targets has changed: 1 came, 0 went");
        let url = agent.behind("status page and API on ").trim().to_owned();
        assert_eq!(watched(&url), ["chat-0"]);
        *pods.lock().expect("whole") = vec![pod("chat-0", 1), pod("chat-1", 2)];
        agent.until("the list of targets has changed: 1 came, 0 went");
        let url = agent.behind("status page and API on ").trim().to_owned();
        assert_eq!(watched(&url), ["chat-0", "chat-1"]);
    };
    skewtrap::world::blocking(talk).await.expect("it runs");
}

/// A pipe: reading it waits until somebody writes.
fn pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
}

#[test]
fn a_list_that_changes_while_the_agent_begins_anew_is_watched_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = dir.path().display();
    let (started, ends) = (dir.path().join("started"), dir.path().join("ends"));
    [&started, &ends].into_iter().for_each(|path| pipe(path));
    // The agent ends its windows before it begins anew; this one ends when the test says so.
    let program = format!(
        "trap \"echo > {at}/ends; until [ -e {at}/go-on ]; do sleep 0.05; done; exit\" TERM; echo > {at}/started; while :; do sleep 0.05; done"
    );
    let text = format!(
        "targets: [{{ name: server, logs: ['{at}/server.log'] }}]\ndiscover: {{ file: targets.json }}\n\
         capture: {{ command: {{ argv: [sh, -c, '{program}'], time_limit: 60s }} }}\n\
         state_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    list(dir.path(), r#"[{"targets": ["127.0.0.1:1"]}]"#);
    let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
    let url = agent.behind("status page and API on ").trim().to_owned();
    let asked = skewtrap(dir.path())
        .args(["capture", "start", "--target", "server", "--state-dir", "state", "--agent", &url])
        .output()
        .expect("it runs");
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    fs::read(&started).expect("it runs");
    list(dir.path(), r#"[{"targets": ["127.0.0.1:1", "127.0.0.1:2"]}]"#);
    fs::read(&ends).expect("it is ended");
    list(dir.path(), r#"[{"targets": ["127.0.0.1:2"]}]"#);
    fs::write(dir.path().join("go-on"), "").expect("written");
    agent.until("the list of targets has changed: 1 came, 0 went");
    agent.until("the list of targets has changed: 0 came, 1 went");
    let url = agent.behind("status page and API on ").trim().to_owned();
    assert_eq!(watched(&url), ["server", "127.0.0.1:2"]);
}

#[test]
fn a_list_that_says_something_else_of_the_same_servers_is_another_list() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = dir.path().display();
    let text = format!(
        "discover: {{ file: targets.json }}\nstate_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    fs::write(dir.path().join("skewtrap.yaml"), &text).expect("written");
    let labelled = |labels: &str| {
        list(dir.path(), &format!(r#"[{{"targets": ["127.0.0.1:1"], "labels": {{{labels}}}}}]"#));
    };
    labelled(r#""role": "prefill""#);
    let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
    agent.until("status page and API on ");
    for labels in [
        r#""role": "decode""#,
        r#""role": "decode", "group": "chat""#,
        r#""role": "decode", "group": "chat", "engine": "vllm""#,
        r#""role": "decode", "group": "chat", "engine": "vllm", "__metrics_path__": "/m""#,
    ] {
        labelled(labels);
        agent.until("the list of targets has changed: 0 came, 0 went, 1 changed");
        agent.until("status page and API on ");
    }
    // What is written otherwise and says the same is the same list.
    fs::write(dir.path().join("skewtrap.yaml"), format!("# moved down by a line\n{text}")).expect("written");
    let told = agent.until("the configuration was read again").join("\n");
    assert!(!told.contains("the list of targets has changed"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_fetched_from_the_address_that_the_configuration_says_now() {
    let dir = tempfile::tempdir().expect("a folder");
    let serving = |port: u8| {
        hook(axum::routing::get(move || async move { format!(r#"[{{"targets": ["127.0.0.1:{port}"]}}]"#) }))
    };
    let (first, second) = (serving(1).await, serving(2).await);
    let at = dir.path().to_owned();
    let configured = move |url: &str| {
        let dir = at.display();
        let text = format!(
            "discover: {{ http: '{url}', every: 1s }}\nstate_dir: '{dir}/state'\nincident_dir: '{dir}/incidents'\nlisten: 127.0.0.1:0\n"
        );
        fs::write(at.join("skewtrap.yaml"), text).expect("written");
    };
    configured(&first);
    let talk = move || {
        let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
        agent.until("watching 127.0.0.1:1");
        agent.until("status page and API on ");
        configured(&second);
        agent.until("watching 127.0.0.1:2");
    };
    skewtrap::world::blocking(talk).await.expect("it runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_at_an_address_that_another_had_is_another_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let pod = |name: &str| {
        serde_json::json!({
            "metadata": {"name": name, "labels": {"app": "chat"}},
            "status": {"phase": "Running", "podIP": "127.0.0.1"},
        })
    };
    let pods = Arc::new(Mutex::new(vec![pod("chat-0")]));
    let served = pods.clone();
    let api = axum::Router::new().route(
        "/api/v1/namespaces/prod/pods",
        axum::routing::get(move || {
            let items = served.lock().expect("whole").clone();
            async move { axum::Json(serde_json::json!({"kind": "PodList", "metadata": {}, "items": items})) }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, api).await });
    let at = dir.path().display();
    let text = format!(
        "targets: [{{ name: mine, logs: [server.log] }}]\ndiscover:\n  kubernetes: {{ selector: app=chat, port: 1, namespace: prod, api: '{url}' }}\n  every: 1s\nstate_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    std::fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    let talk = move || {
        let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
        agent.until("the list of targets has changed: 1 came, 0 went");
        agent.until("status page and API on ");
        pods.lock().expect("whole").clear();
        agent.until("the list of targets has changed: 0 came, 1 went");
        agent.until("status page and API on ");
        *pods.lock().expect("whole") = vec![pod("chat-1")];
        agent.until("the list of targets has changed: 1 came, 0 went");
        let heard = agent.until("status page and API on ");
        assert!(!heard.iter().any(|line| line.contains("is the server that was called")), "{heard:#?}");
    };
    skewtrap::world::blocking(talk).await.expect("it runs");
}
