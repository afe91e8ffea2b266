//! Queries against a Prometheus server, through the real binary.

use std::fs;

use crate::support::agent::{Agent, answer_to};

#[test]
fn the_secret_address_of_a_query_that_fails_is_printed_nowhere() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = dir.path().display();
    let text = format!(
        "targets: [{{ name: server, logs: [server.log] }}]\n\
         signals: [{{ name: mine, prometheus: {{ url: {{ env: PROM_URL }}, query: up, every: 1s }} }}]\n\
         rules: [{{ name: skew, signal: mine, trigger: {{ max_over_mean: 1.5, for: 3s }} }}]\n\
         state_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    let secret = [("PROM_URL", "http://user:s3cret@127.0.0.1:1/t0ken/")];
    let mut agent = Agent::with(dir.path(), &secret, &["--config", "skewtrap.yaml"]);
    let mut heard = agent.until("status page and API on ");
    let url = heard.last().and_then(|line| line.split_once("API on ")).expect("its address").1.to_owned();
    heard.extend(agent.until("nothing answers at {env: PROM_URL}/api/v1/query"));
    let shown = answer_to(&url, "GET /api/v1/status HTTP/1.0\r\nhost: localhost\r\n\r\n");
    assert!(shown.contains("nothing answers at {env: PROM_URL}"), "{shown}");
    for told in heard.iter().chain([&shown]) {
        assert!(!told.contains("s3cret") && !told.contains("t0ken"), "{told}");
    }
}
