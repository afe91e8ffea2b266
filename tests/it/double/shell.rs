//! The doubles behind a real port: real connections, real files, the recorded incident.

use std::path::Path;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::Value;
use skewtrap::demo::exchange::{HttpFault, HttpFaultKind};
use skewtrap::demo::incident;
use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::sglang::{Config, Version, World};
use skewtrap::demo::shell::{self, RunningDouble, Stage};
use skewtrap_trace::time::Time;

use crate::support::until;

fn client() -> Client {
    // The agent's TLS provider; a second installation in this process is refused and harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().timeout(Duration::from_secs(20)).build().unwrap()
}

async fn double(dir: &Path, change: impl FnOnce(&mut Config)) -> RunningDouble {
    let begin = Time::from_epoch_s(1_795_492_100.0);
    let mut config = Config::new(Version::V0_5_16, 2, LoadTrack::constant(begin, &[(9, 0), (30, 0)]));
    change(&mut config);
    let stage = Stage { begin, speed: 20.0, log_path: dir.join("server.log"), port: 0, end: None };
    shell::start(World::new(config, begin), stage).await.unwrap()
}

async fn post(double: &RunningDouble, path: &str, body: String) -> reqwest::Result<(StatusCode, String)> {
    let answer = client().post(format!("{}{path}", double.url)).body(body).send().await?;
    Ok((answer.status(), answer.text().await?))
}

fn window(dir: &Path) -> String {
    format!(r#"{{"output_dir":"{}","num_steps":5,"with_stack":false}}"#, dir.display())
}

#[tokio::test]
async fn a_window_over_http_leaves_real_files_and_log_lines() {
    let dir = tempfile::tempdir().unwrap();
    let double = double(dir.path(), |_| {}).await;
    let out = dir.path().join("w");
    let answer = post(&double, "/start_profile", window(&out)).await.unwrap();
    assert_eq!(answer, (StatusCode::OK, "Start profiling.\n".into()));
    let log = || std::fs::read_to_string(&double.log_path).unwrap();
    until("the end of the window", async || log().matches("Profiling done").count() == 2).await;
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);
    let seen: Vec<_> = double.requests().iter().map(|r| format!("{} {}", r.method, r.path)).collect();
    assert_eq!(seen, ["POST /start_profile"]);
}

#[tokio::test]
async fn a_broken_connection_is_an_error_of_the_client_and_not_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let reset = HttpFault::once("/start_profile", HttpFaultKind::ResetBefore);
    let double = double(dir.path(), |c| c.faults.http.push(reset)).await;
    assert!(post(&double, "/start_profile", window(dir.path())).await.is_err());
    assert!(post(&double, "/start_profile", window(dir.path())).await.is_ok());
}

#[tokio::test]
async fn a_folder_that_really_cannot_be_written_kills_the_server_and_its_port_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let double = double(dir.path(), |_| {}).await;
    std::fs::write(dir.path().join("file"), "not a folder").unwrap();
    let answer = post(&double, "/start_profile", window(&dir.path().join("file/x"))).await.unwrap();
    assert_eq!(answer.0, StatusCode::OK);
    until("the death", async || client().get(&double.url).send().await.is_err_and(|e| e.is_connect())).await;
    double.restart();
    until("the restart", async || client().get(format!("{}/health", double.url)).send().await.is_ok()).await;
}

#[tokio::test]
async fn the_recorded_incident_plays_to_its_end_and_gives_the_recorded_traces_under_the_asked_name() {
    let dir = tempfile::tempdir().unwrap();
    let double = incident::start(dir.path(), 60.0).await.unwrap();
    let running = async |rank: usize| -> u64 {
        let page =
            client().get(format!("{}/v1/loads", double.url)).send().await.unwrap().text().await.unwrap();
        let page: Value = serde_json::from_str(&page).unwrap();
        page["loads"][rank]["num_running_reqs"].as_u64().unwrap()
    };
    until("the skew", async || running(2).await > 150).await;
    assert!(running(0).await < 30);
    let out = dir.path().join("w");
    let body = format!(
        r#"{{"output_dir":"{}","num_steps":20,"profile_id":"mine","with_stack":false}}"#,
        out.display()
    );
    assert_eq!(post(&double, "/start_profile", body).await.unwrap().0, StatusCode::OK);
    let log = || std::fs::read_to_string(&double.log_path).unwrap();
    until("the files", async || log().matches("Profiling done").count() == 4).await;
    for n in 0..4 {
        let written = std::fs::read(out.join(format!("mine-TP-0-DP-{n}.trace.json.gz"))).unwrap();
        let recorded =
            std::fs::read(format!("{}/src/demo/data/skew/dp{n}.trace.json.gz", env!("CARGO_MANIFEST_DIR")));
        assert!(written == recorded.unwrap(), "the trace of rank {n}");
    }
    double.finished.cancelled().await;
    assert!(double.clock.now() >= Time::from_epoch_s(incident::END));
    assert!(log().contains("DP2] Decode batch, #running-req: 1"), "the recorded lines are there");
}
