//! A server whose ranks work on one batch together, the plain set-up of one large model: what a newcomer is told
//! that cannot be watched there, at each place where silence might be taken for health.

use std::fs;
use std::path::Path;

use crate::support::agent::{Agent, run};
use crate::support::stage::{begin, config, play};
use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::sglang::{Config, World};
use skewtrap::demo::shell::RunningDouble;
use skewtrap::demo::vllm;

/// An SGLang server of TP 8 and DP 1 with some work.
async fn server(dir: &Path) -> RunningDouble {
    let config = Config { tp: 8, ..config(&[(8, 0)]) };
    play(World::new(config, begin()), dir).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_offers_what_can_fire_where_ranks_show_one_load_and_says_what_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let double = server(dir.path()).await;
    let (code, said) = run(dir.path(), &["init", &double.url]).await;
    assert_eq!(code, 0, "{said}");
    let written = fs::read_to_string(dir.path().join("skewtrap.yaml")).unwrap();
    let rules: Vec<&str> = written.lines().filter(|line| line.starts_with("  - preset:")).collect();
    assert_eq!(rules, ["  - preset:crowded-scheduler"], "{written}");
    // As one sentence again.
    let flowing = written.lines().map(|line| line.trim_start_matches("# ")).collect::<Vec<_>>().join(" ");
    for wanted in [
        "NOT everything can be watched here: its 8 ranks (tp 8)",
        "one load for all",
        "skewtrap capture start",
    ] {
        assert!(flowing.contains(wanted), "no {wanted} in\n{written}");
    }
    let (code, checked) = run(dir.path(), &["check", "skewtrap.yaml"]).await;
    assert_eq!(code, 0, "{checked}");

    let against = run(dir.path(), &["check", "skewtrap.yaml", "--against", &double.url]).await.1;
    assert!(against.contains("it is read of the ranks' processes"), "the double has none: {against}");
    assert!(against.contains("NOT watched on that server: its 8 ranks"), "{against}");
    let doctor = run(dir.path(), &["doctor", "--state-dir", "doctor-state"]).await.1;
    let watched = doctor.lines().find(|line| line.contains("watched: its 8 ranks (tp 8)"));
    assert!(watched.is_some_and(|line| line.starts_with("warn")), "{doctor}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_why_of_an_agent_beside_ranks_of_one_load_say_that_nothing_can_fire() {
    let dir = tempfile::tempdir().unwrap();
    let double = server(dir.path()).await;
    let arguments = ["--url", &double.url, "--state-dir", "state", "--listen", "127.0.0.1:0"];
    let mut agent = Agent::start(dir.path(), &arguments);
    let url = agent.behind("status page and API on ");
    let asked = |command: &'static str| {
        let (dir, url) = (dir.path().to_owned(), url.clone());
        async move { run(&dir, &[command, "--agent", url.trim(), "--state-dir", "state"]).await.1 }
    };
    // As soon as the server has said what it is: long before a rule gives up waiting for more ranks.
    let mut status = asked("status").await;
    for _ in 0..200 {
        if status.contains("sglang 0.5.16") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        status = asked("status").await;
    }
    let told = "NOT watched: ";
    assert!(status.contains(told) && status.contains("its 8 ranks (tp 8)"), "{status}");
    assert!(status.contains("no rule that is in force can fire on it"), "{status}");
    let why = asked("why").await;
    assert!(why.contains(told) && why.contains("Add `preset:crowded-scheduler` to `rules`"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_log_says_at_the_start_that_nothing_can_be_compared_once() {
    let dir = tempfile::tempdir().unwrap();
    let double = server(dir.path()).await;
    let arguments = ["--url", &double.url, "--state-dir", "state", "--listen", "127.0.0.1:0"];
    let mut agent = Agent::start(dir.path(), &arguments);
    let said = agent.until("NOT watched: its 8 ranks (tp 8)");
    assert!(said.last().is_some_and(|line| line.contains("WARN")), "{said:#?}");
}

/// What `status` says of an agent beside a vLLM server with these loads, as soon as it says all of `wanted`.
async fn status_beside_vllm(load: &[(u32, u32)], wanted: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let ranks = u16::try_from(load.len()).unwrap();
    let config = vllm::Config::new(vllm::Version::V0_33, ranks, LoadTrack::constant(begin(), load), None);
    let double = play(vllm::World::new(config, begin()), dir.path()).await;
    let arguments = ["--url", &double.url, "--state-dir", "state", "--listen", "127.0.0.1:0"];
    let mut agent = Agent::start(dir.path(), &arguments);
    let url = agent.behind("status page and API on ");
    let ask = ["status", "--agent", url.trim(), "--state-dir", "state"];
    let mut status = String::new();
    for _ in 0..200 {
        status = run(dir.path(), &ask).await.1;
        if wanted.iter().all(|wanted| status.contains(wanted)) {
            return status;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("it never said {wanted:?}: {status}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_does_not_say_how_many_ranks_it_has_is_judged_by_those_that_report() {
    let several = status_beside_vllm(&[(9, 0), (8, 0), (9, 1)], &["vllm", "DP0 9", "DP2 10"]).await;
    assert!(!several.contains("NOT watched"), "{several}");
    let one = status_beside_vllm(&[(9, 0)], &["vllm", "DP0 9", "NOT watched"]).await;
    assert!(one.contains("it shows the numbers of one engine"), "{one}");
}
