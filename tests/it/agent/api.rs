//! The agent's HTTP API over real sockets, with a loop of the test's own behind it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use skewtrap::clock::wall_time;
use skewtrap::http::client::client;
use skewtrap::serve::{Action, ApiServer, Command, ServeConfig, ServeError};
use skewtrap_core::factor::Mark;
use skewtrap_core::message::sample;
use skewtrap_core::rule::RuleState;
use skewtrap_core::status::{GroupStatus, History, HistoryLine, Status, TargetStatus};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::api::{Agent, answer_to, config, context, standing, status};

#[tokio::test]
async fn what_the_agent_published_can_be_read_in_parts() {
    let agent = Agent::start().await;
    let (code, body) = agent.get("/api/v1/status").await;
    assert_eq!(code, 200);
    assert_eq!(body["targets"][0]["ranks"][1]["rank"], json!({"dp_rank": 1}));
    assert_eq!(body["history"], Value::Null, "the history has a path of its own");
    assert_eq!(agent.get("/api/v1/history").await, (200, json!([])));
    for path in ["status", "history", "ranks", "signals", "rules"] {
        let wrong = agent.get(&format!("/api/v1/{path}?limit=x")).await;
        assert_eq!(wrong, (400, json!({ "error": "`limit` must be a whole number" })), "{path}");
    }
    assert_eq!(agent.get("/metrics?limit=x").await.0, 400);
    let (code, wrong) = agent.get("/api/v1/capture").await;
    assert!(code == 405 && wrong["error"].is_string(), "{code}: {wrong}");
    let mut drawn = status();
    let of = |signal: &str| History {
        signal: signal.into(),
        lines: vec![HistoryLine {
            target: drawn.targets[0].name.clone(),
            rank: Labels::default(),
            values: vec![Some(1.0)],
        }],
        end: drawn.at,
        step_s: 2.0,
    };
    drawn.history = ["load", "kv_usage"].map(of).into();
    agent.publisher.publish_fixed(drawn);
    let (_, only) = agent.get("/api/v1/history?signal=load").await;
    assert_eq!(only[0]["lines"][0]["values"], json!([1.0]));
    assert_eq!((&only[1]["signal"], &only[1]["lines"]), (&json!("kv_usage"), &json!([])));
    let (_, ranks) = agent.get("/api/v1/ranks").await;
    assert_eq!(ranks[0]["signals"]["load"]["value"], 9.0);
    let (_, signals) = agent.get("/api/v1/signals").await;
    assert_eq!(
        (&signals[0]["ranks"], &signals[0]["stale"], &signals[0]["sources"], &signals[0]["max"]),
        (&json!(2), &json!(1), &json!(["loads"]), &json!(9.0))
    );
    assert_eq!(agent.get("/api/v1/rules/dp-load-skew").await.1["capture"], "http, 10 steps");
    let (code, body) = agent.get("/api/v1/rules/other").await;
    assert_eq!((code, &body["error"]), (404, &json!("there is no rule named other")));
    assert_eq!(agent.get("/api/v1/nothing").await.0, 404);
}

#[tokio::test]
async fn with_two_hundred_servers_an_answer_is_of_some_and_says_how_to_go_on() {
    let agent = Agent::start().await;
    let mut many = status();
    let name = |i: usize| -> std::sync::Arc<str> { format!("s{i:03}").into() };
    let one = many.targets[0].clone();
    many.targets = (0..200).map(|i| TargetStatus { name: name(i), ..one.clone() }).collect();
    let group = |i| GroupStatus {
        target: name(i),
        group: Labels::default(),
        state: if i == 199 { RuleState::Firing } else { RuleState::Idle },
        why: "max_over_mean of load is 1.1".into(),
        since: None,
        statistic: "max_over_mean of load".into(),
        value: Some(1.1),
        bound: Some(1.5),
        rank: None,
        incident: None,
        refused: None,
        again: None,
    };
    many.rules[0].groups = (0..200).map(group).collect();
    agent.publisher.publish_fixed(many);
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let (_, part) = agent.get(&format!("/api/v1/status?limit=30{after}")).await;
        assert_eq!(part["servers"], 200);
        let targets = part["targets"].as_array().unwrap();
        assert!(targets.len() <= 30);
        seen.extend(targets.iter().map(|t| t["name"].as_str().unwrap().to_owned()));
        let groups = part["rules"][0]["groups"].as_array().unwrap();
        assert!(
            groups.len() <= 31 && groups.iter().any(|g| g["target"] == "s199"),
            "what fires is in every part"
        );
        let Some(next) = part["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen, (0..200).map(|i| name(i).to_string()).collect::<Vec<_>>());
    let (_, usual) = agent.get("/api/v1/status").await;
    assert_eq!((usual["targets"].as_array().unwrap().len(), &usual["next"]), (25, &json!("s024")));
    let (_, only) = agent.get("/api/v1/ranks?target=s150").await;
    assert_eq!((only.as_array().unwrap().len(), &only[0]["target"]), (2, &json!("s150")));
    let listed = agent.http.get(agent.url("/api/v1/rules?after=s024&limit=1")).send().await.unwrap();
    assert_eq!(listed.headers()["x-next"], "s025");
}

#[tokio::test]
async fn the_probes_say_what_is_wrong_and_need_no_token_on_their_own_address() {
    let agent = Agent::start().await;
    let probe = |path: &str| agent.http.get(format!("http://{}{path}", agent.probes.unwrap()));
    for path in ["/healthz", "/readyz", "/metrics"] {
        let response = probe(path).header("host", "10-0-0-7.pods.example:9465").send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    assert_eq!(probe("/api/v1/status").send().await.unwrap().status(), 404);
    assert_eq!(probe("/").send().await.unwrap().status(), 404);

    let mut behind = status();
    behind.targets[0].sources[0].is_behind = true;
    agent.publisher.publish_fixed(behind);
    let ready = agent.http.get(agent.url("/readyz")).send().await.unwrap();
    let told = (ready.status().as_u16(), ready.text().await.unwrap());
    assert_eq!(told, (200, "ready, but the agent is behind, and skips answers of server\n".into()));
    let mut lost = status();
    lost.targets[0].unanswered_since = Some(Time::from_epoch_s(1_795_492_126.1));
    agent.publisher.publish_fixed(lost);
    let ready = agent.http.get(agent.url("/readyz")).send().await.unwrap().text().await.unwrap();
    assert_eq!(ready, "ready, but server has not answered since 2026-11-24 03:48:46.1 UTC\n");

    let mut stuck = status();
    stuck.at = stuck.at - Duration::from_secs(60);
    stuck.targets[0].sources[0].last = None;
    agent.publisher.publish_fixed(stuck);
    let (code, body) = agent.get("/healthz").await;
    assert_eq!(code, 503);
    assert!(
        body["error"].as_str().unwrap().starts_with("the agent's loop has published nothing for 6"),
        "{body}"
    );
    assert_eq!(agent.get("/readyz").await, (503, json!({"error": "no sample yet from server"})));
}

#[tokio::test]
async fn what_people_ask_reaches_the_loop_and_its_answer_comes_back() {
    let agent = Agent::start().await;
    let (code, body) =
        agent.post("/api/v1/capture", "t0ken", json!({"target": "server", "reason": "a look"})).await;
    assert_eq!((code, &body["incident"]), (200, &json!("20261124T1-manual")));
    let (code, body) = agent.post("/api/v1/capture", "t0ken", json!({"reason": "again"})).await;
    assert_eq!(code, 409);
    assert!(body["error"].as_str().unwrap().contains("588 s"));
    assert_eq!(agent.post("/api/v1/capture", "t0ken", json!({"target": "gone"})).await.0, 404);
    assert_eq!(agent.post("/api/v1/capture", "t0ken", json!({"num_steps": 0})).await.0, 400);
    let (code, body) = agent.post("/api/v1/capture", "t0ken", json!({"numsteps": 5})).await;
    assert_eq!(code, 422);
    assert!(body["error"].as_str().unwrap().contains("unknown field `numsteps`"), "{body}");

    agent
        .post("/api/v1/silence", "t0ken", json!({"rule": "dp-load-skew", "for_s": 600, "why": "drill"}))
        .await;
    assert_eq!(agent.post("/api/v1/silence", "t0ken", json!({"for_s": -1})).await.0, 400);
    agent.post("/api/v1/reload", "t0ken", json!({})).await;
    agent.post("/api/v1/stop", "t0ken", json!({"target": "server"})).await;
    agent.post("/api/v1/incidents/20261124T1-manual/pin", "t0ken", json!({"pinned": true})).await;
    let (code, body) =
        agent.post("/api/v1/incidents/20261124T1-skew/mark", "t0ken", json!({"mark": "dull"})).await;
    assert_eq!(code, 422);
    assert!(body["error"].as_str().unwrap().contains("expected `useful` or `noise`"), "{body}");
    agent.post("/api/v1/incidents/20261124T1-skew/mark", "t0ken", json!({"mark": "noise"})).await;
    let asked = agent.asked.lock().unwrap();
    assert_eq!(asked.len(), 8);
    assert_eq!(
        asked[3],
        Action::Silence {
            rule: Some("dp-load-skew".into()),
            target: None,
            duration: Duration::from_secs(600),
            why: Some("drill".into())
        }
    );
    assert_eq!(asked[4], Action::Reload);
    assert_eq!(asked[5], Action::Stop { target: Some("server".into()) });
    assert_eq!(asked[6], Action::Pin { incident: "20261124T1-manual".into(), pinned: true });
    assert_eq!(asked[7], Action::Mark { incident: "20261124T1-skew".into(), mark: Mark::Noise });
}

#[tokio::test]
async fn a_wrong_or_missing_token_changes_nothing() {
    let agent = Agent::start().await;
    for path in ["capture", "stop", "reload", "silence", "alerts", "incidents/x/pin", "incidents/x/mark"] {
        let path = format!("/api/v1/{path}");
        assert_eq!(agent.post(&path, "other", json!({})).await.0, 401, "{path}");
        let bare = agent.http.post(agent.url(&path)).json(&json!({})).send().await.unwrap();
        assert_eq!(bare.status(), 401, "{path}");
        assert!(bare.headers().contains_key("www-authenticate"));
    }
    assert!(agent.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn beyond_loopback_nothing_is_shown_without_a_token_and_none_configured_is_an_error() {
    let agent = Agent::with(|c| c.listen = "0.0.0.0:0".parse().unwrap()).await;
    let at = |path: &str| format!("http://127.0.0.1:{}{path}", agent.api.port());
    for path in ["/", "/page.js", "/metrics", "/healthz", "/api/v1/status", "/api/v1/incidents/x/files/y"] {
        assert_eq!(agent.http.get(at(path)).send().await.unwrap().status(), 401, "{path}");
        let given = agent.http.get(at(path)).header("authorization", "Bearer t0ken").send().await.unwrap();
        assert_ne!(given.status(), 401, "{path}");
    }
    let dir = tempfile::tempdir().unwrap();
    let open = ServeConfig { listen: "0.0.0.0:0".parse().unwrap(), token: None, ..config(dir.path()) };
    let (_publisher, shown) = standing(Status::default());
    let (server, mut refused) = ApiServer::bind(&open, context(shown, mpsc::channel(1).0)).await;
    let refused = refused.remove(0);
    assert!(server.address().is_none());
    assert!(matches!(refused, ServeError::NoToken { .. }));
    assert!(refused.to_string().contains("set `token`"), "{refused}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_with_the_key_that_changes_it_and_costs_only_itself() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = ServeConfig { metrics_listen: Some(taken.local_addr().unwrap()), ..config(dir.path()) };
    let (_publisher, shown) = standing(Status::default());
    let (server, mut refused) = ApiServer::bind(&config, context(shown, mpsc::channel(1).0)).await;
    assert_eq!((refused.len(), server.address().is_some()), (1, true), "the API is served all the same");
    let refused = refused.remove(0).to_string();
    assert!(refused.contains("set `metrics_listen` to another address"), "{refused}");
    assert!(refused.contains(&taken.local_addr().unwrap().to_string()), "{refused}");
}

#[tokio::test]
async fn the_probes_answer_though_the_address_of_the_api_is_taken() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = ServeConfig { listen: taken.local_addr().unwrap(), ..config(dir.path()) };
    let (_publisher, shown) = standing(status());
    let (server, refused) = ApiServer::bind(&config, context(shown, mpsc::channel(1).0)).await;
    assert!(refused[0].to_string().contains("set `listen` to another address"), "{refused:?}");
    let probe = format!("http://{}/healthz", server.metrics_address().unwrap());
    tokio::spawn(server.run(CancellationToken::new()));
    assert_eq!(client(None).unwrap().get(probe).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_list_is_no_request_for_a_capture() {
    let agent = Agent::start().await;
    for path in ["/api/v1/capture", "/api/v1/alerts", "/api/v1/stop"] {
        let (code, body) = agent.post(path, "t0ken", json!([])).await;
        assert_eq!((code, &body["error"]), (422, &json!("the body must be a JSON object")), "{path}");
    }
    assert!(agent.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_page_elsewhere_cannot_reach_the_agent_by_another_name() {
    let agent = Agent::start().await;
    let rebound =
        agent.http.get(agent.url("/api/v1/status")).header("host", "evil.example").send().await.unwrap();
    assert_eq!(rebound.status(), 421);
}

#[tokio::test]
async fn alertmanagers_webhook_asks_for_one_capture_per_alert_that_newly_fires() {
    let agent = Agent::start().await;
    let alert = |status: &str, fingerprint: &str, target: &str| {
        json!({
            "status": status, "fingerprint": fingerprint, "startsAt": "2026-11-24T03:48:41.9Z",
            "labels": {"alertname": "ReplicaSkew", "target": target}, "annotations": {"summary": "replica 3 is full"}
        })
    };
    let body = json!({"version": "4", "receiver": "skewtrap", "alerts": [
        alert("firing", "f1", "server"), alert("resolved", "f2", "server")
    ]});
    let (code, results) = agent.post("/api/v1/alerts", "t0ken", body.clone()).await;
    assert_eq!(code, 200);
    assert_eq!(results["results"][0]["said"], "a window opens");
    let (_, again) = agent.post("/api/v1/alerts", "t0ken", body).await;
    assert_eq!(again["results"][0]["said"], "it has asked before");
    let asked = agent.asked.lock().unwrap();
    let [Action::Capture(request)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(request.target.as_deref(), Some("server"));
    assert_eq!(request.reason.as_deref(), Some("alert ReplicaSkew: replica 3 is full"));
    assert_eq!(request.alert.as_ref().unwrap().since.unwrap().epoch_s(), 1_795_492_121.9);
}

#[tokio::test]
async fn an_alert_that_the_loop_did_not_answer_asks_again_when_it_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let (_publisher, shown) = standing(status());
    let (commands, mut asked) = mpsc::channel::<Command>(1);
    let server = ApiServer::bind(&config(dir.path()), context(shown, commands)).await.0;
    let url = format!("http://{}/api/v1/alerts", server.address().unwrap());
    tokio::spawn(server.run(CancellationToken::new()));
    let alert = json!({"status": "firing", "fingerprint": "f", "labels": {"alertname": "Skew"}});
    let body = json!({"alerts": [alert]});
    let http = client(None).unwrap();
    let send = || http.post(&url).header("authorization", "Bearer t0ken").json(&body).send();
    // Dropped without an answer, as by a loop that ends or hangs.
    let losing = async { drop(asked.recv().await.expect("it asks")) };
    let (response, ()) = tokio::join!(send(), losing);
    assert_eq!(response.unwrap().status(), 503);
    let answering = async {
        let command = asked.recv().await.expect("it asks again");
        command.answer.send(answer_to(&command.action)).unwrap();
    };
    let (response, ()) = tokio::join!(send(), answering);
    let said: Value = response.unwrap().json().await.unwrap();
    assert_eq!(said["results"][0]["said"], "a window opens", "{said}");
}

#[tokio::test]
async fn the_agents_own_alerts_ask_for_nothing_and_many_alerts_fit_into_one_request() {
    let agent = Agent::start().await;
    let own = json!({"status": "firing", "fingerprint": "own", "labels": {"alertname": "dp-load-skew", "incident": "i1"}});
    let (_, said) = agent.post("/api/v1/alerts", "t0ken", json!({ "alerts": [own] })).await;
    assert!(said["results"][0]["ignored"].as_str().unwrap().contains("skewtrap's own"), "{said}");
    assert!(agent.asked.lock().unwrap().is_empty());

    let long = json!({"status": "resolved", "annotations": {"description": "x".repeat(2000)}});
    let mut alerts = vec![long; 200];
    alerts.push(json!({"status": "firing", "fingerprint": "f", "labels": {"alertname": "Skew"}}));
    let (code, said) = agent.post("/api/v1/alerts", "t0ken", json!({ "alerts": alerts })).await;
    assert_eq!((code, &said["results"][0]["said"]), (200, &json!("a window opens")), "{said}");
}

/// Runs the real binary against the agent; exit status, standard output and standard error.
async fn skewtrap(args: Vec<String>) -> (i32, String, String) {
    let run = move || assert_cmd::Command::cargo_bin("skewtrap").unwrap().args(args).output().unwrap();
    let output = skewtrap::world::blocking(run).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn the_command_line_shows_what_the_agent_shows() {
    let agent = Agent::start().await;
    let token = agent.dir.path().join("token");
    std::fs::write(&token, "t0ken\n").unwrap();
    let ask = |words: &[&str]| {
        let mut args: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        args.extend(["--agent".into(), agent.url(""), "--token-file".into(), token.display().to_string()]);
        skewtrap(args)
    };
    let (code, out, _) = ask(&["why"]).await;
    assert_eq!((code, out.lines().next()), (0, Some("dp-load-skew")));
    let (code, _, err) = ask(&["why", "dp-load-skw"]).await;
    assert_eq!(code, 2);
    assert!(err.contains("the agent has no rule `dp-load-skw`; it has dp-load-skew"), "{err}");
    let (_, out, _) = ask(&["signals"]).await;
    assert!(out.contains("DP1") && out.contains("0~"), "{out}");
    let (code, out, err) = ask(&["signals", "--target", "zz"]).await;
    assert_eq!((code, &*out), (1, ""), "{err}");
    assert!(err.contains("no target is called `zz`; there are server"), "{err}");
    let (_, out, _) = ask(&["incidents", "--json"]).await;
    let incidents: Value = serde_json::from_str(&out).unwrap();
    let id = incidents[0]["id"].as_str().unwrap();
    let (_, out, _) = ask(&["incidents", id]).await;
    assert!(out.contains("how much") && !out.contains('\u{1b}'), "{out}");
    let (code, _, err) = ask(&["incidents", id, "--pin"]).await;
    assert_eq!((code, err.trim()), (0, "done"));
    assert_eq!(*agent.asked.lock().unwrap(), [Action::Pin { incident: id.into(), pinned: true }]);
    let (code, _, err) = ask(&["incidents", "mark", id, "useful"]).await;
    assert_eq!((code, err.trim()), (0, "done"));
    let marked = Action::Mark { incident: id.into(), mark: Mark::Useful };
    assert_eq!(agent.asked.lock().unwrap().last(), Some(&marked));
    std::fs::write(&token, "wrong").unwrap();
    let (code, _, err) = ask(&["incidents", id, "--pin"]).await;
    assert_eq!(code, 1);
    assert!(
        err.contains(
            "this token is not the agent's; name the agent's folder with --state-dir or the token's file"
        ),
        "{err}"
    );
    let (code, _, err) = skewtrap(vec!["why".into(), "--agent".into(), "http://127.0.0.1:1".into()]).await;
    assert_eq!(code, 1);
    assert!(err.contains("no agent answers at http://127.0.0.1:1: start one with `skewtrap run`"), "{err}");
}

#[tokio::test]
async fn a_receiver_can_be_tried_before_anything_happens() {
    let dir = tempfile::tempdir().unwrap();
    let (out, config) = (dir.path().join("out"), dir.path().join("skewtrap.yaml"));
    std::fs::write(
        &config,
        format!(
            "targets: [{{ url: 'http://127.0.0.1:30000' }}]\nrules: [mine]\nreceivers:\n\
             - {{ name: file, command: {{ argv: [sh, -c, 'cat > {}'] }} }}\n\
             - {{ name: dead, webhook: {{ url: 'http://127.0.0.1:1/s3cret' }} }}\n",
            out.display()
        ),
    )
    .unwrap();
    // Beside the configuration, as for `run`.
    let rule = "rules:\n  - { name: skew, signal: load, trigger: { cv: 0.4 }, notify: file }\n";
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    std::fs::write(dir.path().join("mine/skew.yaml"), rule).unwrap();
    let test = |name: &str| {
        skewtrap(vec!["notify-test".into(), name.into(), "--config".into(), config.display().to_string()])
    };
    let (code, _, err) = test("file").await;
    assert_eq!(code, 0, "{err}");
    let sent: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(sent["test"], true);
    assert!(sent["title"].as_str().unwrap().starts_with("[test] "), "{sent}");
    let (code, _, err) = test("dead").await;
    assert_eq!(code, 1);
    assert!(err.contains("it cannot be reached") && !err.contains("s3cret"), "{err}");
    let (code, _, err) = test("fil").await;
    assert_eq!(code, 2);
    assert!(err.contains("it has file, dead"), "{err}");
    std::fs::remove_file(&config).unwrap();
    let (code, _, err) = test("file").await;
    assert_eq!(code, 2);
    assert!(err.contains("name the configuration of the agent with --config FILE"), "{err}");
}

/// A bundle as the agent leaves it, a secret beside the folder, and links that lead out.
fn bundle(agent: &Agent) {
    let dir = agent.dir.path().join("incidents/20261124T1-kept");
    std::fs::create_dir_all(dir.join("traces")).unwrap();
    let mut incident = sample(wall_time());
    incident.id = "20261124T1-kept".into();
    std::fs::write(dir.join("incident.json"), serde_json::to_string(&incident).unwrap()).unwrap();
    std::fs::write(dir.join("report.html"), "<p>report</p>").unwrap();
    std::fs::write(dir.join("traces/TP-0.trace.json.gz"), vec![7; 300_000]).unwrap();
    std::fs::write(dir.join(".draft"), "half").unwrap();
    std::fs::write(agent.dir.path().join("secret"), "s3cret").unwrap();
    std::os::unix::fs::symlink("../../secret", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("../..", dir.join("up")).unwrap();
    std::os::unix::fs::symlink(agent.dir.path(), agent.dir.path().join("incidents/out")).unwrap();
}

#[tokio::test]
async fn an_incident_of_an_earlier_run_and_its_files_can_be_read() {
    let agent = Agent::start().await;
    bundle(&agent);
    let (_, list) = agent.get("/api/v1/incidents").await;
    let ids: Vec<&str> = list.as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2);
    assert!(ids.contains(&"20261124T1-kept"), "{ids:?}");
    assert_eq!(agent.get("/api/v1/incidents/20261124T1-kept").await.1["rule"], "dp-load-skew");
    let (_, files) = agent.get("/api/v1/incidents/20261124T1-kept/files").await;
    let names: Vec<&str> = files.as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["incident.json", "report.html", "traces/TP-0.trace.json.gz"]);

    let get = |path: &str| {
        agent.http.get(agent.url(&format!("/api/v1/incidents/20261124T1-kept/files/{path}"))).send()
    };
    let report = get("report.html").await.unwrap();
    assert_eq!(report.headers()["content-type"], "text/html; charset=utf-8");
    let policy = report.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("sandbox") && policy.contains("default-src 'none'"), "{policy}");
    assert_eq!(report.text().await.unwrap(), "<p>report</p>");
    let trace = get("traces/TP-0.trace.json.gz").await.unwrap();
    assert_eq!(trace.bytes().await.unwrap().len(), 300_000);
}

#[tokio::test]
async fn a_file_with_the_environment_of_the_server_needs_the_token_on_loopback_too() {
    let agent = Agent::start().await;
    bundle(&agent);
    let dir = agent.dir.path().join("incidents/20261124T1-kept");
    std::fs::create_dir_all(dir.join("left-2")).unwrap();
    for secret in ["traces/a.nsys-rep", "traces/a.sqlite", "left-2/part"] {
        std::fs::write(dir.join(secret), "HF_TOKEN=s3cret").unwrap();
    }
    let get = |path: &str, token: Option<&str>| {
        let request = agent.http.get(agent.url(&format!("/api/v1/incidents/20261124T1-kept/files/{path}")));
        token.map_or(request.try_clone().unwrap(), |token| request.bearer_auth(token)).send()
    };
    for path in
        ["traces/a.nsys-rep", "traces/a.sqlite", "left-2/part", "traces/a%2Ensys-rep", "%6ceft-2/part"]
    {
        let bare = get(path, None).await.unwrap();
        assert_eq!(bare.status(), 401, "{path}");
        assert!(bare.headers().contains_key("www-authenticate"), "a browser asks for it");
        assert!(!bare.text().await.unwrap().contains("s3cret"));
        assert_eq!(get(path, Some("other")).await.unwrap().status(), 401, "{path}");
        assert_eq!(
            get(path, Some("t0ken")).await.unwrap().text().await.unwrap(),
            "HF_TOKEN=s3cret",
            "{path}"
        );
    }
    assert_eq!(get("report.html", None).await.unwrap().status(), 200);
    let (_, files) = agent.get("/api/v1/incidents/20261124T1-kept/files").await;
    let files = files.as_array().unwrap().iter();
    let secret: Vec<&str> =
        files.filter(|f| f["needs_token"] == true).map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(secret, ["left-2/part", "traces/a.nsys-rep", "traces/a.sqlite"]);
}

#[tokio::test]
async fn no_path_leads_out_of_a_bundle() {
    let agent = Agent::start().await;
    bundle(&agent);
    let base = "/api/v1/incidents/20261124T1-kept/files";
    let tries = [
        "/link",
        "/up/secret",
        "/up",
        "/../../secret",
        "/..%2f..%2fsecret",
        "/%2e%2e/%2e%2e/secret",
        "/.draft",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/traces/../../../secret",
        "/traces",
        "/link%00.json",
        "/incident.json/x",
        "/%2e%2e%5c%2e%2e%5csecret",
    ];
    for path in tries {
        // A raw request: a client library would fold the dots away.
        let answer = raw(
            agent.api,
            format!("GET {base}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
        assert!(!answer.contains("s3cret") && !answer.contains("root:"), "{path}: {answer}");
    }
    for id in ["out", "..", "%2e%2e", "../incidents/20261124T1-kept", "."] {
        for path in ["files/secret", "files", ""] {
            let request = format!(
                "GET /api/v1/incidents/{id}/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            );
            let answer = raw(agent.api, request.as_bytes()).await;
            assert!(
                !answer.contains("s3cret") && !answer.starts_with("HTTP/1.1 200"),
                "{id}/{path}: {answer}"
            );
        }
    }
}

/// Sends bytes as they are and reads what comes until the end.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let Ok(mut stream) = TcpStream::connect(address).await else { return String::new() };
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends a malformed request; what came back first. One that the server still waits to be completed
/// is ended by our end of the connection.
async fn provoke(address: SocketAddr, n: u64) -> String {
    let Ok(mut stream) = TcpStream::connect(address).await else { return String::new() };
    let _ = stream.write_all(&malformed(n)).await;
    if !matches!(n % 10, 2 | 6 | 7 | 8) {
        let _ = stream.shutdown().await;
    }
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).await.unwrap_or(0);
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

/// The n-th of many requests that no honest client sends.
fn malformed(n: u64) -> Vec<u8> {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = |count: usize| -> Vec<u8> {
        (0..count)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x >> 24) as u8
            })
            .collect()
    };
    let auth = "Authorization: Bearer t0ken\r\nContent-Type: application/json\r\n";
    match n % 10 {
        0 => noise(400),
        1 => b"GET / HTTP/1.1\r\n".to_vec(),
        2 => format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a/".repeat(3000)).into_bytes(),
        3 => [b"POST /api/v1/capture HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999999999999999\r\n\r\n", &noise(64)[..]].concat(),
        4 => format!("POST /api/v1/silence HTTP/1.1\r\nHost: localhost\r\n{auth}Content-Length: 50\r\n\r\n{{\"for_s\": 1e999").into_bytes(),
        5 => format!("POST /api/v1/capture HTTP/1.1\r\nHost: localhost\r\n{auth}Transfer-Encoding: chunked\r\n\r\nZZ\r\n").into_bytes(),
        6 => [b"GET /api/v1/incidents/".as_slice(), &noise(60), b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat(),
        7 => format!("POST /api/v1/alerts HTTP/1.1\r\nHost: localhost\r\n{auth}Content-Length: 4000\r\n\r\n{}", "[".repeat(4000)).into_bytes(),
        8 => format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X-A: b\r\n".repeat(300)).into_bytes(),
        _ => [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &noise(100)].concat(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_malformed_requests_leave_it_serving() {
    let agent = Agent::start().await;
    let address = agent.api;
    let clients = (0..20u64).map(|client| {
        tokio::spawn(async move {
            let mut answered = 0;
            for n in 0..500 {
                let answer = provoke(address, client * 500 + n).await;
                assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
                answered += usize::from(answer.starts_with("HTTP/1.1 4"));
            }
            answered
        })
    });
    let mut answered = 0;
    for client in clients.collect::<Vec<_>>() {
        answered += client.await.unwrap();
    }
    assert!(answered >= 4000, "those that were whole enough were answered: {answered}");
    assert_eq!(agent.get("/api/v1/status").await.0, 200);
    assert_eq!(agent.post("/api/v1/reload", "t0ken", json!({})).await.0, 200);
    assert_eq!(*agent.asked.lock().unwrap(), [Action::Reload], "none of them asked for anything");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
    let agent = Agent::start().await;
    let (code, body) = agent.post("/api/v1/capture", "t0ken", json!({"reason": "x".repeat(70_000)})).await;
    assert_eq!(code, 413, "{body}");
    assert!(agent.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn clients_that_connect_and_say_nothing_do_not_keep_a_reader_out() {
    let agent = Agent::start().await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(agent.api).await.unwrap());
    }
    assert_eq!(agent.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn a_loop_that_hangs_is_said_so_and_reading_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_publisher, shown) = standing(status());
    let (commands, _never_read) = mpsc::channel(1);
    let server = ApiServer::bind(&config(dir.path()), context(shown, commands)).await.0;
    let address = server.address().unwrap();
    let cancel = CancellationToken::new();
    let running = tokio::spawn(server.run(cancel.clone()));
    let http = client(None).unwrap();
    let ask = |http: reqwest::Client| async move {
        let url = format!("http://{address}/api/v1/reload");
        http.post(url).header("authorization", "Bearer t0ken").send().await.unwrap().status().as_u16()
    };
    // The first waits for its answer; the second finds the queue full and is told at once.
    let first = tokio::spawn(ask(http.clone()));
    while ask(http.clone()).await != 503 {}
    assert_eq!(http.get(format!("http://{address}/api/v1/status")).send().await.unwrap().status(), 200);
    assert!(!first.is_finished(), "it still waits, and holds nobody up when the agent goes");
    cancel.cancel();
    tokio::time::timeout(Duration::from_secs(5), running).await.expect("it ends when it is told to").unwrap();
}
