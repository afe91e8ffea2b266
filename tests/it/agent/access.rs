//! The doors of the running agent, through the real binary: its addresses, its token, its names.

use std::fs;
use std::process::Output;
use std::thread;
use std::time::Duration;

use crate::support::agent::{Agent, answer_to, skewtrap};

fn words_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn on_loopback_the_agent_makes_its_own_token_and_the_command_line_finds_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut agent = Agent::start(dir.path(), &["--log", "server.log", "--listen", "127.0.0.1:0"]);
    let url = agent.behind("status page and API on ");
    let asked = skewtrap(dir.path()).args(["capture", "stop", "--agent", &url]).output().expect("it runs");
    let said = words_of(&asked);
    assert!(said.contains("no window of the agent's is open"), "it is let in: {said}");
    let elsewhere = skewtrap(dir.path())
        .args(["capture", "stop", "--state-dir", "elsewhere", "--agent", &url])
        .output()
        .expect("it runs");
    assert!(words_of(&elsewhere).contains("this needs a token"), "{}", words_of(&elsewhere));
}

/// Asks under a name that is not an address.
fn get(url: &str, host: &str, path: &str) -> String {
    answer_to(url, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

#[test]
fn a_name_of_the_configuration_reaches_the_agent_and_another_does_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let config =
        "targets: [{ name: server, logs: [server.log] }]\nlisten: 127.0.0.1:0\nhosts: [gpu7.example.com]\n";
    fs::write(dir.path().join("skewtrap.yaml"), config).expect("written");
    let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
    let url = agent.behind("status page and API on ");
    let known = get(&url, "GPU7.example.com:9464", "/api/v1/status");
    assert!(known.starts_with("HTTP/1.1 200"), "{known}");
    let unknown = get(&url, "evil.example", "/api/v1/status");
    assert!(unknown.starts_with("HTTP/1.1 421") && unknown.contains("`hosts`"), "{unknown}");
}

#[test]
fn a_source_that_never_gave_a_sample_is_in_the_metrics_and_down() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut agent = Agent::start(dir.path(), &["--log", "missing.log", "--listen", "127.0.0.1:0"]);
    let url = agent.behind("status page and API on ");
    // The status is published about once a second.
    let mut page = (0..100).map(|_| {
        thread::sleep(Duration::from_millis(100));
        get(&url, "localhost", "/metrics")
    });
    let page = page.find(|page| page.contains("skewtrap_source_up{")).expect("it is shown");
    for line in [
        "skewtrap_source_up{target=\"server\",source=\"log\"} 0",
        "skewtrap_source_samples_total{target=\"server\",source=\"log\"} 0",
        "skewtrap_queue_length{queue=\"inbox\"}",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[test]
fn an_address_that_is_none_ends_the_agent_before_it_begins() {
    let dir = tempfile::tempdir().expect("a folder");
    let ran = assert_cmd::Command::from_std(skewtrap(dir.path()))
        .args(["run", "--log", "server.log", "--listen", "localhost:9464"])
        .timeout(Duration::from_secs(20))
        .output()
        .expect("it runs");
    assert_eq!(ran.status.code(), Some(2), "{}", words_of(&ran));
    assert!(
        words_of(&ran).contains("`--listen localhost:9464` is no address and port"),
        "{}",
        words_of(&ran)
    );
}
