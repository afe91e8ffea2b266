//! The running agent when somebody edits its rules, through the real binary.

use std::fs;
use std::path::Path;

use crate::support::agent::{Agent, answer_to, skewtrap};

const RULES: &str = "rules:\n  - { name: skew, signal: load, trigger: { max_over_mean: 1.5, for: 3s } }\n";

/// An agent whose page is served.
fn started(dir: &Path, arguments: &[&str]) -> Agent {
    let arguments = [arguments, &["--listen", "127.0.0.1:0", "--state-dir", "state"]].concat();
    let mut agent = Agent::start(dir, &arguments);
    agent.until("status page");
    agent
}

#[test]
fn a_changed_rule_file_is_read_again_and_a_broken_one_is_told_once_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let rules = dir.path().join("rules.yaml");
    fs::write(&rules, RULES).expect("written");
    let mut agent = started(dir.path(), &["--log", "server.log", "--rules", "rules.yaml"]);

    fs::write(&rules, RULES.replace("1.5", "1.6")).expect("written");
    agent.until("the configuration was read again; 1 rules are in force");

    fs::write(&rules, RULES.replace("max_over_mean", "max_over_meen")).expect("written");
    let told = agent.until("the old rules stay in force").join("\n");
    assert!(told.contains("did you mean `max_over_mean`?"), "{told}");

    let second = RULES.replace("rules:\n", "").replace("skew", "other");
    fs::write(&rules, format!("{RULES}{second}")).expect("written");
    let told = agent.until("2 rules are in force").join("\n");
    assert!(!told.contains("the old rules stay"), "a broken file is told of once: {told}");
}

#[test]
fn a_folder_of_rules_that_a_configuration_names_is_watched_too_and_so_is_the_configuration() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("mine")).expect("made");
    fs::write(dir.path().join("mine/one.yaml"), RULES).expect("written");
    let config = "targets: [{ name: server, logs: [server.log] }]\nrules: [mine]\n";
    fs::write(dir.path().join("skewtrap.yaml"), config).expect("written");
    let mut agent = started(dir.path(), &["--config", "skewtrap.yaml"]);

    fs::write(dir.path().join("mine/two.yaml"), RULES.replace("skew", "other")).expect("written");
    agent.until("2 rules are in force");
    let config = config.replace("[mine]", "[mine, preset:slow-rank]");
    fs::write(dir.path().join("skewtrap.yaml"), config).expect("written");
    agent.until("3 rules are in force");
}

#[test]
fn in_the_folder_of_its_configuration_the_agent_is_started_and_found_without_a_flag() {
    let dir = tempfile::tempdir().expect("a folder");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it").port();
    let config = format!(
        "targets: [{{ name: server, logs: [server.log] }}]\nstate_dir: state\nlisten: 127.0.0.1:{port}\n{RULES}"
    );
    let file = dir.path().join("skewtrap.yaml");
    fs::write(&file, &config).expect("written");
    let mut agent = Agent::start(dir.path(), &[]);
    agent.until("status page");
    let said = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_skewtrap"));
        command.args(arguments).current_dir(dir.path());
        let output =
            command.env_remove("SKEWTRAP_CONFIG").env_remove("SKEWTRAP_AGENT").output().expect("runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let status = said(&["status"]);
    assert!(status.contains("nothing fires, of 1 rule\n"), "{status}");
    let silenced = said(&["silence", "skew", "--for", "2h", "--why", "a load test"]);
    assert!(silenced.contains("silenced until"), "{silenced}");
    // The agent publishes its status a few times a second.
    assert!((0..200).any(|_| said(&["status"]).contains("silenced: skew on every server until")));
    assert!(said(&["silence", "skew", "--end"]).contains("the silence is over"));
    assert!(said(&["silence", "skew", "--for", "2"]).contains("a number with its unit"));
    assert!(said(&["reload"]).contains("rules are in force"));
    fs::write(&file, config.replace("max_over_mean", "max_over_meen")).expect("written");
    let wrong = said(&["reload"]);
    assert!(wrong.contains("skewtrap.yaml:5:") && wrong.contains("did you mean `max_over_mean`?"), "{wrong}");
    let is_told =
        || said(&["status"]).contains("the configuration on disk is wrong, and the one before it in force");
    assert!((0..200).any(|_| is_told()), "{}", said(&["status"]));
    fs::write(&file, &config).expect("written");
    assert!(said(&["reload"]).contains("rules are in force"));
    let is_over =
        |status: String| status.contains("of 1 rule\n") && !status.contains("the configuration on disk");
    assert!((0..200).any(|_| is_over(said(&["status"]))), "{}", said(&["status"]));
    let wrong = said(&["why", "--agent", "http://127.0.0.1:9"]);
    assert!(wrong.contains("no agent answers at http://127.0.0.1:9"), "{wrong}");
}

#[test]
fn a_disk_that_hangs_while_the_configuration_is_read_again_keeps_nothing_from_being_watched() {
    let dir = tempfile::tempdir().expect("a folder");
    let rules = dir.path().join("rules.yaml");
    fs::write(&rules, RULES).expect("written");
    let arguments =
        ["--log", "server.log", "--rules", "rules.yaml", "--listen", "127.0.0.1:0", "--state-dir", "state"];
    let mut agent = Agent::start(dir.path(), &arguments);
    let url = agent.behind("status page and API on ").trim().to_owned();
    // Reading a pipe waits until somebody writes.
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    fs::rename(&pipe, &rules).expect("moved");
    let asked = skewtrap(dir.path())
        .args(["reload", "--agent", &url, "--state-dir", "state"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&[asked.stdout, asked.stderr].concat()).into_owned();
    assert!(said.contains("the disk of the configuration does not answer"), "{said}");
    let at = || {
        let answer = answer_to(&url, "GET /api/v1/status HTTP/1.0\r\nhost: localhost\r\n\r\n");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str::<serde_json::Value>(body).expect("JSON")["at"].as_f64().expect("a time")
    };
    let before = at();
    let goes_on = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        at() > before + 2.0
    });
    assert!(goes_on, "the loop stands still");
    let second = RULES.replace("rules:\n", "").replace("skew", "other");
    fs::write(&rules, format!("{RULES}{second}")).expect("it is read");
    agent.until("the configuration was read again; 2 rules are in force");
}

#[test]
fn in_an_emergency_no_window_is_opened_from_the_next_reading_on_and_what_needs_a_restart_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("skewtrap.yaml");
    let config = |more: &str| {
        format!(
            "targets: [{{ name: server, logs: [server.log] }}]\ncapture: {{ command: {{ argv: ['true'] }} }}\n{more}{RULES}"
        )
    };
    fs::write(&file, config("")).expect("written");
    let arguments = ["--config", "skewtrap.yaml", "--listen", "127.0.0.1:0", "--state-dir", "state"];
    let mut agent = Agent::start(dir.path(), &arguments);
    let url = agent.behind("status page and API on ").trim().to_owned();
    let said = |arguments: &[&str]| {
        let mut command = skewtrap(dir.path());
        let output =
            command.args(arguments).args(["--agent", &url, "--state-dir", "state"]).output().expect("runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    fs::write(&file, config("watch_only: true\n")).expect("written");
    let told = said(&["reload"]);
    assert!(told.contains("rules are in force") && !told.contains("restarted"), "{told}");
    let refused = said(&["capture", "start"]);
    assert!(refused.contains("watch"), "{refused}");
    fs::write(&file, config("budget: { windows: 0 }\n")).expect("written");
    said(&["reload"]);
    let refused = said(&["capture", "start"]);
    assert!(refused.contains("0 windows") || refused.contains("budget"), "{refused}");
    let more = "keep: { age: 1d, min_free: 1MiB }\nmetrics_listen: 127.0.0.1:0\n";
    fs::write(&file, config(more).replace("name: server", "name: other")).expect("written");
    let told = said(&["reload"]);
    let wanted =
        "changed, and not in force until the agent is restarted: `targets`, `keep.age`, `metrics_listen`";
    assert!(told.contains(wanted), "{told}");
    agent.until(wanted);
    let taken = said(&["capture", "start"]);
    assert!(taken.contains("incident"), "{taken}");
}
