//! Silences of the running agent, through the real binary and its API.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

#[path = "doors/agent.rs"]
mod agent;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use agent::Agent;

const RULES: &str = "rules:\n  - { name: skew, signal: load, trigger: { max_over_mean: 1.5, for: 3s } }\n";

/// An agent, and the address of its API.
fn started(dir: &Path) -> (Agent, String) {
    fs::write(dir.join("rules.yaml"), RULES).expect("written");
    let arguments =
        ["--log", "server.log", "--rules", "rules.yaml", "--listen", "127.0.0.1:0", "--state-dir", "state"];
    let mut agent = Agent::start(dir, &arguments);
    let said = agent.until("status page and API on http://").pop().expect("that line");
    let address = said.rsplit("http://").next().expect("an address").trim().to_owned();
    (agent, address)
}

/// Asks for a silence; the whole answer.
fn silence(dir: &Path, address: &str, body: &str) -> String {
    let token = fs::read_to_string(dir.join("state/api-token")).expect("its own token");
    let request = format!(
        "POST /api/v1/silence HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        token.trim(),
        body.len()
    );
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn a_silence_names_what_exists_outlives_a_restart_and_can_be_ended() {
    let dir = tempfile::tempdir().expect("a folder");
    let (agent, address) = started(dir.path());
    let wrong = silence(dir.path(), &address, r#"{"rule": "skwe", "for_s": 3600}"#);
    assert!(wrong.starts_with("HTTP/1.1 404") && wrong.contains("did you mean `skew`?"), "{wrong}");
    let wrong = silence(dir.path(), &address, r#"{"target": "elsewhere", "for_s": 3600}"#);
    assert!(
        wrong.starts_with("HTTP/1.1 404") && wrong.contains("no target is called `elsewhere`"),
        "{wrong}"
    );
    let none = silence(dir.path(), &address, r#"{"rule": "skew", "for_s": 0}"#);
    assert!(none.contains("there was no such silence"), "{none}");
    let right = silence(dir.path(), &address, r#"{"rule": "skew", "for_s": 3600, "why": "load test"}"#);
    assert!(right.starts_with("HTTP/1.1 200") && right.contains("silenced until"), "{right}");
    drop(agent);

    let (agent, address) = started(dir.path());
    let over = silence(dir.path(), &address, r#"{"rule": "skew", "for_s": 0}"#);
    assert!(over.contains("the silence is over"), "{over}");
    drop(agent);

    let (_agent, address) = started(dir.path());
    let none = silence(dir.path(), &address, r#"{"rule": "skew", "for_s": 0}"#);
    assert!(none.contains("there was no such silence"), "{none}");
}
