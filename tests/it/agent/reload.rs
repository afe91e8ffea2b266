//! The running agent when somebody edits its rules, through the real binary.

use std::fs;
use std::path::Path;

use crate::support::agent::Agent;

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
