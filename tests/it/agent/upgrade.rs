//! The state folder and the configuration of an earlier release: this one goes on where that one was
//! killed, with a window open, budgets used, messages undelivered and a rule silenced.
//!
//! `tests/data/state-VERSION` holds the state as SQL, with `@DIR@` for its folder. It is made by the binary
//! of that release, with `SKEWTRAP_OLD=BINARY cargo test --test it fixture_is_made -- --ignored`; the way
//! back is tested in the same way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::HeaderMap;
use regex::{Captures, Regex};
use rusqlite::Connection;
use skewtrap::act::state::{OpenMethod, State};
use skewtrap::clock::wall_time;
use skewtrap::config::file::load;
use skewtrap::demo::sglang::World;
use skewtrap::demo::shell::RunningDouble;
use skewtrap_core::capture::CaptureSpec;

use crate::support::agent::answer_to;
use crate::support::stage;

const FIXTURE: &str = "tests/data/state-0.1";
const UNEVEN: [(u32, u32); 2] = [(8, 0), (40, 2)];
const EVEN: [(u32, u32); 2] = [(20, 0), (20, 0)];
const TABLES: [&str; 6] = ["meta", "attempts", "windows", "incidents", "silences", "outbox"];

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(FIXTURE).join(file)
}

fn configuration(dir: &Path, url: &str, hook: &str) -> String {
    let text = std::fs::read_to_string(fixture("skewtrap.yaml")).unwrap();
    text.replace("@DIR@", &dir.display().to_string()).replace("@URL@", url).replace("@HOOK@", hook)
}

fn agent(binary: &Path, dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("agent.log")).unwrap();
    Command::new(binary)
        .args(["run", "--config"])
        .arg(dir.join("skewtrap.yaml"))
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Waits until something is so, or says what never was.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(tokio::time::Instant::now() < limit, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn asked(double: &RunningDouble, path: &str) -> usize {
    double.requests().iter().filter(|r| r.path.starts_with(path)).count()
}

async fn open_windows(double: &RunningDouble) -> usize {
    let (answer, waits) = tokio::sync::oneshot::channel();
    double.change(move |engine, _| {
        if let skewtrap::demo::ServerKind::Sglang(world) = engine {
            let _ = answer.send(world.open_windows().len());
        }
        Vec::new()
    });
    waits.await.unwrap()
}

/// Every time of the state, moved: epoch seconds in JSON, nanoseconds in columns.
fn moved(sql: &str, by_s: f64) -> String {
    let of = Regex::new(r"\b(1[6-9][0-9]{17}|1[6-9][0-9]{8}(\.[0-9]+)?)\b").unwrap();
    let to = |found: &Captures<'_>| match found[0].len() {
        19 if !found[0].contains('.') => (found[0].parse::<i64>().unwrap() + (by_s * 1e9) as i64).to_string(),
        // As it would be written again.
        _ => format!("{:?}", ((found[0].parse::<f64>().unwrap() + by_s) * 1e6).round() / 1e6),
    };
    of.replace_all(sql, to).into_owned()
}

/// The state of the fixture in `dir`, as if that agent had been killed a moment ago.
fn restore(dir: &Path) {
    let sql = std::fs::read_to_string(fixture("state.sql")).unwrap();
    let (head, rest) = sql.split_once('\n').unwrap();
    let made_at: f64 = head.trim_start_matches("-- made at ").parse().unwrap();
    let sql = moved(rest, wall_time().epoch_s() - made_at).replace("@DIR@", &dir.display().to_string());
    std::fs::create_dir_all(dir.join("state")).unwrap();
    let connection = Connection::open(dir.join("state/state.sqlite")).unwrap();
    connection.execute_batch(&sql).unwrap();
}

/// The bodies that a receiver got, by their keys.
type Mail = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

async fn receiver() -> (String, Mail) {
    let mail = Mail::default();
    let kept = mail.clone();
    let take = move |headers: HeaderMap, body: String| async move {
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        kept.lock().unwrap().entry(key).or_default().push(body);
        "ok"
    };
    (stage::hook(axum::routing::post(take)).await, mail)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_release_left_is_closed_counted_and_delivered_though_this_one_is_killed_too() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::create_dir_all(dir.join("profiles")).unwrap();
    let double = stage::play(World::new(stage::config(&EVEN), stage::begin()), dir).await;
    let (hook, mail) = receiver().await;
    std::fs::write(dir.join("skewtrap.yaml"), configuration(dir, &double.url, &hook)).unwrap();
    restore(dir);
    let (window, before, undelivered, silences) = {
        let state = State::open(&dir.join("state")).unwrap();
        let [window] = &state.open_windows().unwrap()[..] else { panic!("one window is open") };
        let (ledger, outbox) = (state.ledger().unwrap(), state.undelivered().unwrap());
        (window.clone(), ledger, outbox, state.silences().unwrap())
    };
    assert!(before.attempts.len() >= 2 && before.open().count() == 1, "{before:?}");
    assert!(!undelivered.is_empty() && silences.len() == 1);
    // The window runs on the server, and does not end by itself.
    let OpenMethod::Http(request) = &window.method else { panic!("{window:?}") };
    let mut body = request.body.clone().unwrap();
    body["num_steps"] = serde_json::json!(1_000_000);
    let client = skewtrap::http::client::client(None).unwrap();
    let started = client.post(format!("{}/start_profile", double.url)).json(&body).send().await.unwrap();
    assert!(started.status().is_success() && open_windows(&double).await > 0);

    let binary = Path::new(env!("CARGO_BIN_EXE_skewtrap"));
    let mut first = agent(binary, dir);
    until("the server is asked", || asked(&double, "/server_info") > 0).await;
    first.kill().unwrap();
    first.wait().unwrap();
    let mut second = agent(binary, dir);
    until("the messages are delivered", || {
        let mail = mail.lock().unwrap();
        undelivered.iter().all(|row| mail.keys().any(|key| row.key.ends_with(key.as_str())))
    })
    .await;
    let incident = window.incident.clone();
    until("the end of the window is told", || {
        let mail = mail.lock().unwrap();
        ["captured", "verdict"].iter().any(|update| mail.contains_key(&format!("{incident}:{update}")))
    })
    .await;
    assert_eq!(open_windows(&double).await, 0, "it was stopped");
    Command::new("kill").args(["-TERM", &second.id().to_string()]).status().unwrap();
    second.wait().unwrap();

    let state = State::open(&dir.join("state")).unwrap();
    let after = state.ledger().unwrap();
    let booked =
        |id: &str| after.attempts.iter().find(|a| a.id == id).unwrap_or_else(|| panic!("{id} is gone"));
    for attempt in &before.attempts {
        let now = booked(&attempt.id);
        assert_eq!((now.at, now.times_bound), (attempt.at, attempt.times_bound));
        assert!(attempt.end.is_none() || now.end == attempt.end, "what it cost is not forgotten");
    }
    assert!(after.open().count() == 0 && state.open_windows().unwrap().is_empty());
    assert_eq!(state.undelivered().unwrap(), []);
    assert_eq!(state.silences().unwrap(), silences);
    let mail = mail.lock().unwrap();
    for row in &undelivered {
        let (_, bodies) = mail.iter().find(|(key, _)| row.key.ends_with(key.as_str())).unwrap();
        assert_eq!(bodies[0], String::from_utf8_lossy(&row.body), "the same bytes");
    }
}

#[test]
fn the_number_of_steps_of_an_earlier_configuration_keeps_its_meaning() {
    let text = configuration(Path::new("/tmp"), "http://127.0.0.1:30000", "http://127.0.0.1:9/hook");
    let config = load("skewtrap.yaml", &text, &|_| Ok(Vec::new())).config.expect("it is still right");
    let rule = &config.rules.iter().find(|rule| &*rule.rule.name == "crash-skew").expect("it is there").rule;
    let CaptureSpec::Http(http) = &rule.capture else { panic!("{:?}", rule.capture) };
    assert_eq!((http.num_steps, http.max_stall, http.deadline), (Some(20), None, Duration::from_secs(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes the fixture, with the binary of an earlier release"]
async fn the_fixture_is_made_by_the_binary_of_its_release() {
    let old = PathBuf::from(std::env::var_os("SKEWTRAP_OLD").expect("SKEWTRAP_OLD names the binary"));
    // Kept: what that agent said of itself is in it.
    let dir = &tempfile::tempdir().unwrap().keep();
    std::fs::create_dir_all(dir.join("profiles")).unwrap();
    let double = stage::play(World::new(stage::config(&EVEN), stage::begin()), dir).await;
    let text = configuration(dir, &double.url, "http://127.0.0.1:9/hook");
    std::fs::write(dir.join("skewtrap.yaml"), text).unwrap();
    let mut agent = agent(&old, dir);
    until("it watches", || asked(&double, "/v1/loads") >= 3).await;
    stage::set_load(&double, UNEVEN);
    until("a first window", || asked(&double, "/start_profile") == 1).await;
    let database = dir.join("state/state.sqlite");
    let ended = || {
        let read = Connection::open(&database).unwrap();
        let bodies =
            read.query_row("SELECT group_concat(body) FROM attempts", [], |row| row.get::<_, String>(0));
        bodies.is_ok_and(|bodies| bodies.contains("\"stalled"))
    };
    until("its end", ended).await;
    stage::set_load(&double, EVEN);
    let log = std::fs::read_to_string(dir.join("agent.log")).unwrap();
    let (_, api) = log.split_once("status page and API on ").expect("it serves");
    let (url, token) =
        (api.lines().next().unwrap(), std::fs::read_to_string(dir.join("state/api-token")).unwrap());
    let body = r#"{"rule": "queue-skew", "for_s": 86400, "why": "load test"}"#;
    let answer = answer_to(
        url,
        &format!(
            "POST /api/v1/silence HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            token.trim(),
            body.len()
        ),
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Samples are distrusted for a while after a window.
    tokio::time::sleep(Duration::from_secs(22)).await;
    stage::set_load(&double, UNEVEN);
    until("a second window", || asked(&double, "/start_profile") == 2).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    std::fs::write(fixture("state.sql"), dump(&database, dir)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "goes back to the binary of an earlier release"]
async fn an_earlier_release_goes_on_where_this_one_was_killed() {
    let old = PathBuf::from(std::env::var_os("SKEWTRAP_OLD").expect("SKEWTRAP_OLD names the binary"));
    let dir = &tempfile::tempdir().unwrap().keep();
    std::fs::create_dir_all(dir.join("profiles")).unwrap();
    let double = stage::play(World::new(stage::config(&EVEN), stage::begin()), dir).await;
    let configure = |hook: &str| {
        std::fs::write(dir.join("skewtrap.yaml"), configuration(dir, &double.url, hook)).unwrap()
    };
    configure("http://127.0.0.1:9/hook");
    let mut new = agent(Path::new(env!("CARGO_BIN_EXE_skewtrap")), dir);
    until("it watches", || asked(&double, "/v1/loads") >= 3).await;
    stage::set_load(&double, UNEVEN);
    until("a window", || asked(&double, "/start_profile") == 1).await;
    new.kill().unwrap();
    new.wait().unwrap();
    stage::set_load(&double, EVEN);
    let (before, undelivered) = {
        let state = State::open(&dir.join("state")).unwrap();
        assert_eq!(state.open_windows().unwrap().len(), 1);
        (state.ledger().unwrap(), state.undelivered().unwrap())
    };
    let (hook, mail) = receiver().await;
    configure(&hook);
    let mut agent = agent(&old, dir);
    let incident = before.attempts[0].incident.clone();
    until("all is told", || {
        let mail = mail.lock().unwrap();
        let is_told = |update: &str| mail.contains_key(&format!("{incident}:{update}"));
        let is_delivered =
            undelivered.iter().all(|row| mail.keys().any(|key| row.key.ends_with(key.as_str())));
        is_delivered && (is_told("captured") || is_told("verdict"))
    })
    .await;
    assert_eq!(open_windows(&double).await, 0, "it was stopped");
    Command::new("kill").args(["-TERM", &agent.id().to_string()]).status().unwrap();
    agent.wait().unwrap();
    let state = State::open(&dir.join("state")).unwrap();
    let after = state.ledger().unwrap();
    let ids: Vec<_> = after.attempts.iter().map(|a| (&a.id, a.end.is_some())).collect();
    assert_eq!(ids, [(&before.attempts[0].id, true)], "booked, once");
    assert!(state.open_windows().unwrap().is_empty() && state.undelivered().unwrap().is_empty());
}

/// A database as SQL that makes it again.
fn dump(database: &Path, dir: &Path) -> String {
    let read = Connection::open(database).unwrap();
    let version: i64 = read.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    let mut sql = format!("-- made at {}\nPRAGMA user_version = {version};\n", wall_time().epoch_s());
    let made = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name";
    let mut query = read.prepare(made).unwrap();
    for table in query.query_map([], |row| row.get::<_, String>(0)).unwrap() {
        sql += &format!("{};\n", table.unwrap());
    }
    for table in TABLES {
        let mut query = read.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let names: Vec<String> = query.column_names().map(str::to_owned).collect();
        let quoted = |name: &String| match (table, name.as_str()) {
            // Text, so that it can be read here and its folder replaced.
            ("outbox", "body") => format!("'CAST(' || quote(CAST({name} AS TEXT)) || ' AS BLOB)'"),
            _ => format!("quote({name})"),
        };
        let values = names.iter().map(quoted).collect::<Vec<_>>().join(" || ', ' || ");
        query = read.prepare(&format!("SELECT {values} FROM {table}")).unwrap();
        for row in query.query_map([], |row| row.get::<_, String>(0)).unwrap() {
            sql += &format!("INSERT INTO {table} VALUES ({});\n", row.unwrap());
        }
    }
    sql.replace(&dir.display().to_string(), "@DIR@")
}
