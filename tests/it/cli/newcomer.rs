//! What a newcomer gets wrong, and what is said of it: everything at once, each mistake once, and where it is.

use std::fs;

use crate::support::agent::{Agent, run};

const RULE: &str = "rules:\n  - { name: a, signal: load, trigger: { cv: 0.2 }, notify: [oncal] }\n";

#[tokio::test]
async fn a_receiver_that_a_folder_of_rules_names_is_looked_up_in_the_configuration_that_is_here() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("mine")).unwrap();
    fs::write(dir.path().join("mine/a.yaml"), RULE).unwrap();
    let check = || run(dir.path(), &["check", "mine"]);
    let (code, said) = check().await;
    assert_eq!(code, 0, "nobody knows the receivers here: {said}");
    assert!(
        said.contains("warning: mine/a.yaml:2:") && said.contains("receiver `oncal` is not known"),
        "{said}"
    );

    let config = |name: &str| format!("receivers: [{{ name: {name}, stdout: {{}} }}]\nrules: [mine]\n");
    fs::write(dir.path().join("skewtrap.yaml"), config("oncall")).unwrap();
    let (code, said) = check().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no receiver is called `oncal` in skewtrap.yaml"), "{said}");
    assert!(said.contains("did you mean `oncall`?"), "{said}");
    let (code, said) = run(dir.path(), &["check", "skewtrap.yaml", "mine"]).await;
    assert_eq!(code, 1, "{said}");

    fs::write(dir.path().join("skewtrap.yaml"), config("oncal")).unwrap();
    let (code, said) = check().await;
    assert_eq!((code, said.contains("warning:")), (0, false), "{said}");
}

#[tokio::test]
async fn all_problems_of_a_file_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let text = "target: []
listen: 0.0.0.0:9464
receivers:
  - { name: a, slack: { url: { env: SKEWTRAP_NO_SUCH_VARIABLE } } }
  - { name: a, webhok: { url: 'http://x' } }
rules:
  - { name: b, signal: load, trigger: { max_over_maen: 1.5 }, notify: [c] }
";
    fs::write(dir.path().join("skewtrap.yaml"), text).unwrap();
    fs::write(dir.path().join("more.yaml"), "rules:\n  - { name: b, signal: load, trigger: { cv: 0.2 } }\n")
        .unwrap();
    let (code, said) = run(dir.path(), &["check", "skewtrap.yaml", "more.yaml"]).await;
    assert_eq!(code, 1, "{said}");
    for wanted in [
        "unknown key `target`",
        "this address is reachable from other machines",
        "the variable SKEWTRAP_NO_SUCH_VARIABLE is not set here",
        "two receivers are called `a`",
        "did you mean `webhook`?",
        "did you mean `max_over_mean`?",
        "no receiver is called `c`",
    ] {
        assert!(said.contains(wanted), "no `{wanted}` in\n{said}");
    }
    // A key that is misspelt is not missing as well.
    for untrue in ["names no statistic", "no means of delivery"] {
        assert!(!said.contains(untrue), "`{untrue}` in\n{said}");
    }
}

#[tokio::test]
async fn what_is_missing_beside_a_misspelt_key_is_told_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let check = || run(dir.path(), &["check", "a.yaml"]);
    fs::write(&file, "rules:\n  - { name: a, signal: load, severty: warning }\n").unwrap();
    let said = check().await.1;
    assert!(
        said.contains("did you mean `severity`?") && said.contains("the rule has no `trigger`"),
        "{said}"
    );
    fs::write(&file, "rules:\n  - { name: a, signal: load, trigger: { fro: 3s } }\n").unwrap();
    let said = check().await.1;
    assert!(said.contains("unknown key `fro`") && said.contains("the trigger names no statistic"), "{said}");
}

#[tokio::test]
async fn a_relative_path_starts_from_the_file_that_names_it_wherever_the_command_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("conf");
    fs::create_dir_all(there.join("mine")).unwrap();
    fs::write(there.join("key"), "s3cret\n").unwrap();
    fs::write(there.join("mine/a.yaml"), "rules:\n  - { name: a, signal: load, trigger: { cv: 0.2 } }\n")
        .unwrap();
    let text = "targets: [{ url: 'http://127.0.0.1:9', api_key: { file: key }, logs: [server.log] }]
receivers: [{ name: a, webhook: { url: 'http://127.0.0.1:9', bearer: { file: nokey } } }]
rules: [mine]
state_dir: state
";
    fs::write(there.join("skewtrap.yaml"), text).unwrap();
    let (code, said) = run(dir.path(), &["check", "conf/skewtrap.yaml", "--effective"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the file conf/nokey cannot be read here"), "{said}");
    assert!(!said.contains("conf/key cannot"), "{said}");
    assert!(said.contains("conf/server.log"), "{said}");
    let from_there = run(&there, &["check", "skewtrap.yaml"]).await.1;
    assert!(from_there.contains("the file nokey cannot be read here"), "{from_there}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silences_are_listed_with_their_why_where_nothing_else_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--log", "server.log", "--state-dir", "state", "--listen", "127.0.0.1:0"];
    let mut agent = Agent::start(dir.path(), &arguments);
    agent.until("status page and API on ");
    let silence = |more: &'static [&'static str]| {
        let dir = dir.path().to_owned();
        async move { run(&dir, &[&["silence", "--state-dir", "state"], more].concat()).await }
    };
    let (code, said) = silence(&[]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("nothing is silenced"), "{said}");
    let (code, said) = silence(&["dp-load-skew"]).await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("for how long? write `--for 2h`"), "{said}");
    let (code, said) = silence(&["dp-load-skew", "--for", "2h", "--why", "load test"]).await;
    assert_eq!(code, 0, "{said}");
    let (_, said) = silence(&[]).await;
    assert!(
        said.starts_with("dp-load-skew on every server until ") && said.ends_with(" (load test)\n"),
        "{said}"
    );
    let (_, said) = run(dir.path(), &["why", "dp-load-skew", "--state-dir", "state"]).await;
    assert!(
        said.contains("silenced: dp-load-skew on every server until ") && said.contains("(load test)"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_port_is_taken_says_that_its_messages_have_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = other.local_addr().unwrap().to_string();
    let mut agent =
        Agent::start(dir.path(), &["--log", "server.log", "--state-dir", "state", "--listen", &listen]);
    let said = agent.until("messages have no link to a page");
    assert!(said.iter().any(|line| line.contains("is another agent running?")), "{said:#?}");
}

#[tokio::test]
async fn a_path_of_rules_that_is_not_there_is_told_once_and_in_the_words_of_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("server.log"), "").unwrap();
    let (code, said) = run(dir.path(), &["run", "--log", "server.log", "--rules", "nowhere"]).await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("error: --rules: cannot read nowhere: No such file or directory"), "{said}");
    assert_eq!(said.matches("cannot read nowhere").count(), 1, "{said}");
    assert!(!said.contains("rules: ["), "nobody wrote that line: {said}");
}

#[tokio::test]
async fn an_agent_without_any_target_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("skewtrap.yaml"), "watch_only: true\nlisten: 127.0.0.1:0\nstate_dir: state\n")
        .unwrap();
    let end = tokio::time::timeout(std::time::Duration::from_secs(30), run(dir.path(), &["run"])).await;
    let (code, said) = end.expect("it does not watch nothing");
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("nothing to watch: skewtrap.yaml names no server") && said.contains("`targets`"),
        "{said}"
    );
    let (code, said) = run(dir.path(), &["check"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the agent would watch nothing"), "{said}");
}
