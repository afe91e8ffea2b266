//! Real agents of one pool with a store: one window at a time, whoever opens it, and one budget.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::agent::{Agent, skewtrap};

/// An agent of the pool, in a folder of its own.
struct Member {
    dir: PathBuf,
    agent: Agent,
    url: String,
}

impl Member {
    /// Its windows run `program` in a shell; `more` is added to its configuration.
    fn start(root: &Path, name: &str, program: &str, more: &str) -> Self {
        let dir = root.join(name);
        fs::create_dir_all(&dir).expect("a folder");
        let (at, bucket) = (dir.display(), root.join("bucket"));
        let text = format!(
            "targets: [{{ name: {name}, logs: ['{at}/server.log'] }}]\nstore: 'file://{}'\npool: prod-a\n{more}\
             capture: {{ command: {{ argv: [sh, -c, '{program}'], time_limit: 20s }} }}\n\
             state_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n",
            bucket.display()
        );
        fs::write(dir.join("skewtrap.yaml"), text).expect("written");
        let mut agent = Agent::start(&dir, &["--config", "skewtrap.yaml"]);
        let url = agent.behind("status page and API on ").trim().to_owned();
        Self { dir, agent, url }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let state = self.dir.join("state").display().to_string();
        let place = ["--agent", &self.url, "--state-dir", &state];
        skewtrap(&self.dir).args(arguments).args(place).output().expect("it runs")
    }

    /// Asks for a window.
    fn capture(&self) {
        let asked = self.run(&["capture", "start"]);
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    }
}

/// A pipe into which a window's program writes when it runs: reading it waits for that.
fn pipe(root: &Path) -> PathBuf {
    let path = root.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    path
}

fn bucket(root: &Path) -> PathBuf {
    let bucket = root.join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    bucket
}

/// The newest object of the lease.
fn lease(bucket: &Path) -> Value {
    let mut objects: Vec<PathBuf> =
        fs::read_dir(bucket.join("prod-a/lease")).expect("a lease").flatten().map(|e| e.path()).collect();
    objects.sort();
    serde_json::from_slice(&fs::read(objects.last().expect("one")).expect("read")).expect("JSON")
}

/// An agent that has a window open keeps another one of its pool from it, and its budget; `more` is added to both
/// configurations.
pub fn one_window_at_a_time(root: &Path, more: &str) {
    bucket(root);
    let gate = root.join("go-on");
    let started = pipe(root);
    let program =
        format!("echo > {}; until [ -e {} ]; do sleep 0.1; done", started.display(), gate.display());
    let mut first = Member::start(root, "first", &program, more);
    let mut second = Member::start(root, "second", "true", &format!("{more}budget: {{ windows: 1 }}\n"));
    first.capture();
    fs::read(&started).expect("it runs");
    second.capture();
    let said = second.agent.behind("no capture: ");
    assert!(
        said.contains("the pool allows one window at a time, and the agent on ")
            && said.contains(" has one on first, which is over in "),
        "{said}"
    );
    let shown = skewtrap(&first.dir).args(["fleet", "--json"]).output().expect("it runs");
    let view: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(view["lease"]["open"]["target"], "first", "{view}");
    fs::write(&gate, "").expect("written");
    first.agent.until("the lease of the pool is given back");
    // The window of the other counts: the budget is the pool's.
    second.capture();
    let said = second.agent.behind("no capture: ");
    assert!(
        said.contains("in the whole pool 1 windows were tried in the last 24 h, which is the budget"),
        "{said}"
    );
    let metrics =
        crate::support::agent::answer_to(&second.url, "GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n");
    assert!(
        metrics.contains("reason=\"pool_window\"") && metrics.contains("reason=\"pool_budget\""),
        "{metrics}"
    );
    // What is allowed is each agent's own, and is read again.
    let file = second.dir.join("skewtrap.yaml");
    let text = fs::read_to_string(&file).expect("read");
    fs::write(&file, text.replace("windows: 1 }", "windows: 5 }")).expect("written");
    let reloaded = second.run(&["reload"]);
    let told = String::from_utf8_lossy(&reloaded.stdout).into_owned();
    assert!(reloaded.status.success() && !told.contains("restarted"), "{told}");
    second.capture();
    second.agent.until("the lease of the pool is given back");
}

#[test]
fn while_one_agent_has_a_window_another_of_the_pool_is_refused_and_says_whose_it_is() {
    let root = tempfile::tempdir().expect("a folder");
    one_window_at_a_time(root.path(), "");
    let state = lease(&root.path().join("bucket"));
    assert_eq!((&state["open"], &state["windows"][0]["end"]), (&Value::Null, &Value::from("closed")));
}

#[test]
fn a_store_that_is_away_opens_no_window_unless_the_configuration_says_so() {
    let root = tempfile::tempdir().expect("a folder");
    let mut strict = Member::start(root.path(), "strict", "true", "");
    strict.capture();
    let said = strict.agent.behind("no capture: ");
    assert!(
        said.contains("whether another agent of the pool has a window open cannot be told: ")
            && said.contains("the folder is not there: create it"),
        "{said}"
    );
    let health =
        crate::support::agent::answer_to(&strict.url, "GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n");
    assert!(health.contains("200 OK") && health.contains("none is opened until it can"), "{health}");
    let started = pipe(root.path());
    let program = format!("echo > {}", started.display());
    let mut loose = Member::start(root.path(), "loose", &program, "on_lease_loss: local_budget\n");
    loose.capture();
    loose.agent.until("a window is opened without the lease of the pool (on_lease_loss: local_budget)");
    fs::read(&started).expect("it runs");
}

#[test]
fn what_a_killed_agent_left_is_given_back_when_it_is_back() {
    let root = tempfile::tempdir().expect("a folder");
    let bucket = bucket(root.path());
    let started = pipe(root.path());
    let program = format!("echo > {}; sleep 600", started.display());
    let member = Member::start(root.path(), "first", &program, "");
    member.capture();
    fs::read(&started).expect("it runs");
    let taken = lease(&bucket)["open"]["fence"].clone();
    drop(member);
    let mut member = Member::start(root.path(), "first", &program, "");
    member.agent.until("the lease of the pool is given back");
    let state = lease(&bucket);
    assert_eq!(state["open"], Value::Null, "{state}");
    assert_eq!(
        (&state["windows"][0]["fence"], &state["windows"][0]["end"]),
        (&taken, &Value::from("closed"))
    );
}

#[test]
fn a_store_on_a_disk_that_hangs_keeps_no_window_open_and_no_request_without_an_answer() {
    let root = tempfile::tempdir().expect("a folder");
    let bucket = bucket(root.path());
    let started = pipe(root.path());
    let program = format!("echo $$ > {}; sleep 600", started.display());
    let member = Member::start(root.path(), "first", &program, "");
    member.capture();
    let program = fs::read_to_string(&started).expect("it runs");
    let dir = member.dir.clone();
    drop(member);
    let Some(mut agent) = Agent::beside_hung_disk(&dir, &bucket, &["--config", "skewtrap.yaml"]) else {
        return;
    };
    let url = agent.behind("status page and API on ").trim().to_owned();
    // What was killed and is not reaped yet has no environment.
    let runs = || fs::read(format!("/proc/{}/environ", program.trim())).is_ok_and(|held| !held.is_empty());
    let is_closed = (0..600).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        !runs()
    });
    assert!(is_closed, "the window left behind is still open");
    let told = agent.behind("incidents are not uploaded: ");
    assert!(told.contains("the disk does not answer"), "{told}");
    let health = crate::support::agent::answer_to(&url, "GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n");
    assert!(health.contains("200 OK") && health.contains("the disk does not answer"), "{health}");
}
