//! Silences of the running agent, through the real binary and its API.

use std::fs;
use std::path::Path;

use crate::support::agent::{Agent, answer_to};

const RULES: &str = "rules:\n  - { name: skew, signal: load, trigger: { max_over_mean: 1.5, for: 3s } }\n";

/// An agent, and where its API is.
fn started(dir: &Path) -> (Agent, String) {
    fs::write(dir.join("rules.yaml"), RULES).expect("written");
    started_with(dir, &["--log", "server.log", "--rules", "rules.yaml", "--state-dir", "state"])
}

fn started_with(dir: &Path, arguments: &[&str]) -> (Agent, String) {
    let mut agent = Agent::start(dir, &[arguments, &["--listen", "127.0.0.1:0"]].concat());
    let url = agent.behind("status page and API on ");
    (agent, url)
}

/// Asks for a silence with the agent's own token; the whole answer.
fn silence(dir: &Path, url: &str, body: &str) -> String {
    let token = fs::read_to_string(dir.join("state/api-token")).expect("its own token");
    silence_by(&token, url, body)
}

fn silence_by(token: &str, url: &str, body: &str) -> String {
    post_by(token, url, "silence", body)
}

fn post_by(token: &str, url: &str, path: &str, body: &str) -> String {
    let request = format!(
        "POST /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        token.trim(),
        body.len()
    );
    answer_to(url, &request)
}

#[test]
fn a_silence_names_what_exists_outlives_a_restart_and_can_be_ended() {
    let dir = tempfile::tempdir().expect("a folder");
    let (agent, url) = started(dir.path());
    let wrong = silence(dir.path(), &url, r#"{"rule": "skwe", "for_s": 3600}"#);
    assert!(wrong.starts_with("HTTP/1.1 404") && wrong.contains("did you mean `skew`?"), "{wrong}");
    let wrong = silence(dir.path(), &url, r#"{"target": "elsewhere", "for_s": 3600}"#);
    assert!(
        wrong.starts_with("HTTP/1.1 404") && wrong.contains("no target is called `elsewhere`"),
        "{wrong}"
    );
    // Whoever names a target that is none hears which there are, whatever was asked for.
    let token = fs::read_to_string(dir.path().join("state/api-token")).expect("its own token");
    for path in ["silence", "resume", "stop", "capture"] {
        let more = if path == "silence" { r#", "for_s": 60"# } else { "" };
        let wrong = post_by(&token, &url, path, &format!(r#"{{"target": "zz"{more}}}"#));
        assert!(
            wrong.starts_with("HTTP/1.1 404") && wrong.contains("no target is called `zz`; there are "),
            "{path}: {wrong}"
        );
    }
    let none = silence(dir.path(), &url, r#"{"rule": "skew", "for_s": 0}"#);
    assert!(none.contains("there was no such silence"), "{none}");
    let right = silence(dir.path(), &url, r#"{"rule": "skew", "for_s": 3600, "why": "load test"}"#);
    assert!(right.starts_with("HTTP/1.1 200") && right.contains("silenced until"), "{right}");
    drop(agent);

    let (agent, url) = started(dir.path());
    let over = silence(dir.path(), &url, r#"{"rule": "skew", "for_s": 0}"#);
    assert!(over.contains("the silence is over"), "{over}");
    drop(agent);

    let (_agent, url) = started(dir.path());
    let none = silence(dir.path(), &url, r#"{"rule": "skew", "for_s": 0}"#);
    assert!(none.contains("there was no such silence"), "{none}");
}

#[test]
fn a_silence_that_nothing_can_keep_says_that_a_restart_forgets_it() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("token"), "t0ken").expect("written");
    // Below a file there can be no folder, whoever runs this.
    let config = format!(
        "targets: [{{ logs: [server.log] }}]\nstate_dir: token/state\nincident_dir: incidents\ntoken: {{ file: token }}\n{RULES}"
    );
    fs::write(dir.path().join("skewtrap.yaml"), config).expect("written");
    let (_agent, url) = started_with(dir.path(), &["--config", "skewtrap.yaml"]);
    let kept = silence_by("t0ken", &url, r#"{"rule": "skew", "for_s": 3600}"#);
    assert!(kept.starts_with("HTTP/1.1 200") && kept.contains("silenced until"), "{kept}");
    assert!(kept.contains("a restart of the agent forgets that"), "{kept}");
    let over = silence_by("t0ken", &url, r#"{"rule": "skew", "for_s": 0}"#);
    assert!(over.contains("the silence is over") && !over.contains("forgets"), "{over}");
}
