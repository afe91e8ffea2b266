//! The real agent beside a double whose ranks drift apart, and then farther: two windows of one
//! incident, kept apart; and none where it gets no worse, also when the agent is killed meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::stage;
use axum::http::HeaderMap;
use serde_json::Value;
use skewtrap::act::state::State;
use skewtrap::demo::sglang::World;
use skewtrap::demo::shell::RunningDouble;

const EVEN: [(u32, u32); 2] = [(40, 0), (40, 0)];
/// 1.09 times the bound of 1.1, and 1.64 times.
const SKEWED: [(u32, u32); 2] = [(48, 0), (32, 0)];
const WORSE: [(u32, u32); 2] = [(72, 0), (8, 0)];

/// Every body that a receiver got, under the id of its message.
type Mail = Arc<Mutex<BTreeMap<String, Vec<Value>>>>;

async fn receiver() -> (String, Mail) {
    let mail = Mail::default();
    let kept = mail.clone();
    let take = move |headers: HeaderMap, body: String| async move {
        let id = headers["idempotency-key"].to_str().unwrap().to_owned();
        kept.lock().unwrap().entry(id).or_default().push(serde_json::from_str(&body).unwrap());
        "ok"
    };
    (stage::hook(axum::routing::post(take)).await, mail)
}

/// A double, what its watcher is told to do, and what people hear.
struct Scene {
    dir: PathBuf,
    double: RunningDouble,
    mail: Mail,
    port: u16,
}

impl Scene {
    async fn of(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("profiles")).unwrap();
        let double = stage::play(World::new(stage::config(&EVEN), stage::begin()), dir).await;
        let (hook, mail) = receiver().await;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (at, url) = (dir.display(), &double.url);
        let text = format!(
            "targets: [{{ name: server, url: '{url}', logs: ['{at}/server.log'], poll: 200ms }}]
rules:
  - name: skew
    signal: load
    across: dp_rank
    within: [target, role]
    trigger: {{ max_over_mean: 1.1, for: 1s }}
    clear: {{ max_over_mean: 1.05, for: 5s }}
    capture: {{ http: {{ output_dir: '{at}/profiles', num_steps: 10, deadline: 5s }} }}
    limits: {{ cooldown: 6s, captures: 100, per: 24h }}
    notify: [hook]
budget: {{ stalled: 24h, bytes: 100GiB, windows: 100 }}
keep: {{ min_free: 1MiB }}
receivers: [{{ name: hook, webhook: {{ url: '{hook}' }} }}]
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:{port}
"
        );
        std::fs::write(dir.join("skewtrap.yaml"), text).unwrap();
        Self { dir: dir.to_owned(), double, mail, port }
    }

    fn agent(&self) -> stage::Running {
        stage::agent(&self.dir)
    }

    fn load(&self, ranks: [(u32, u32); 2]) {
        stage::set_load(&self.double, ranks);
    }

    /// The bodies of the starts that the server got.
    fn starts(&self) -> Vec<Value> {
        let requests = self.double.requests().into_iter().filter(|r| r.path == "/start_profile");
        requests.map(|r| serde_json::from_str(&r.body).unwrap()).collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        stage::until(&self.dir, what, || holds(self), || format!("{:?}", self.told())).await;
    }

    /// The updates that were told, without the incident.
    fn told(&self) -> Vec<String> {
        let mail = self.mail.lock().unwrap();
        mail.keys().map(|id| id.split_once(':').unwrap().1.to_owned()).collect()
    }

    fn has_told(&self, update: &str) -> bool {
        self.told().iter().any(|u| u == update)
    }

    fn message(&self, update: &str) -> Value {
        let mail = self.mail.lock().unwrap();
        let (_, bodies) = mail.iter().find(|(id, _)| id.split_once(':').unwrap().1 == update).unwrap();
        bodies[0].clone()
    }

    /// What `skewtrap why` says.
    fn why(&self) -> String {
        let agent = format!("http://127.0.0.1:{}", self.port);
        let said =
            Command::new(env!("CARGO_BIN_EXE_skewtrap")).args(["why", "--agent", &agent]).output().unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// The agent has seen the even load for a while, and knows that the server is well.
    async fn watched_even_load(&self) {
        self.until("a watch of the even load", |s| {
            let requests = s.double.requests();
            let of = |path: &str| requests.iter().filter(|r| r.path.starts_with(path)).count();
            of("/health") > 1 && of("/v1/loads") > 10
        })
        .await;
    }

    /// An even start, so that the skew is seen to begin; then the first window, with its message.
    async fn captured_once(&self) {
        self.watched_even_load().await;
        self.load(SKEWED);
        self.until("the first result", |s| s.has_told("verdict")).await;
        assert_eq!(self.message("verdict")["incident"]["capture"]["state"], "done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_that_gets_worse_has_a_second_window_whose_files_and_messages_are_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::of(dir.path()).await;
    let agent = scene.agent();
    scene.captured_once().await;
    scene.load(WORSE);
    // What comes after the result is told with the end.
    scene
        .until("the second window", |s| s.starts().len() == 2 && !s.why().contains("a window is open"))
        .await;
    scene.load(EVEN);
    scene.until("the end", |s| s.has_told("resolved")).await;
    assert_eq!(scene.told().len(), 3, "{:?}", scene.told());
    let starts = scene.starts();
    assert_eq!(starts.len(), 2);
    let dirs: Vec<&str> = starts.iter().map(|s| s["output_dir"].as_str().unwrap()).collect();
    assert_eq!(dirs[1], format!("{}-w2", dirs[0]));

    let message = scene.message("resolved");
    let incident = &message["incident"];
    assert_eq!(incident["capture"]["state"], "done", "{message:#}");
    let said = message["facts"]["capture"].as_str().unwrap();
    assert!(
        said.starts_with("it got worse, 1.64 times its bound at ")
            && said.contains("capture 1, at 1.09 times"),
        "{said}"
    );
    assert_eq!(incident["earlier"][0]["capture"]["state"], "done");
    drop(agent);

    // One bundle, one record, two captures, whose files lie apart and are all listed.
    let bundle = dir.path().join("incidents").join(incident["id"].as_str().unwrap());
    let record: Value =
        serde_json::from_slice(&std::fs::read(bundle.join("incident.json")).unwrap()).unwrap();
    let files: Vec<&str> =
        record["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    let of = |folder: &str| files.iter().filter(|f| f.starts_with(folder)).count();
    assert_eq!((files.len(), of("traces/"), of("traces-2/")), (4, 2, 2), "{files:?}");
    for file in &files {
        assert!(bundle.join(file).is_file(), "{file}");
    }
    assert!(bundle.join("evidence.jsonl").is_file() && bundle.join("evidence-2.jsonl").is_file());
    let sent =
        record["exchanges"].as_array().unwrap().iter().filter(|e| e["request"] == "POST /start_profile");
    assert_eq!(sent.count(), 2);
    let compared = Command::new(env!("CARGO_BIN_EXE_skewtrap")).arg("compare").arg(&bundle).output().unwrap();
    let refused = String::from_utf8_lossy(&compared.stderr).into_owned();
    assert!(refused.contains("holds 2 captures") && refused.contains("traces-2"), "{refused}");

    let attempts = State::open(&dir.path().join("state")).unwrap().ledger().unwrap().attempts;
    let marks: Vec<(bool, f64)> =
        attempts.iter().map(|a| (a.incident == *incident["id"].as_str().unwrap(), a.times_bound)).collect();
    assert_eq!(marks.len(), 2);
    assert!(marks[0].0 && marks[1].0 && marks[1].1 >= 1.5 * marks[0].1, "{marks:?}");
    assert!(scene.mail.lock().unwrap().values().all(|bodies| bodies.len() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_that_gets_no_worse_has_one_window_also_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::of(dir.path()).await;
    let agent = scene.agent();
    scene.captured_once().await;
    // The agent's own clock must pass the cooldown and the settling time of its own window: what is shown
    // is that nothing happens then.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(scene.starts().len(), 1);
    let why = scene.why();
    assert!(
        why.contains("it was captured at 1.09 times its bound and is captured again from 1.64 times on"),
        "{why}"
    );
    let told = || scene.mail.lock().unwrap().keys().cloned().collect::<Vec<_>>();
    let before = told();
    // It is killed, and the next agent finds the same still firing.
    drop(agent);
    let agent = scene.agent();
    scene.until("that it is watched for getting worse", |s| s.why().contains("is captured again from")).await;
    assert_eq!(scene.starts().len(), 1);
    assert_eq!(told(), before, "it is the same incident, and nobody is told again");
    scene.load(WORSE);
    scene.until("a window after all", |s| s.starts().len() == 2).await;
    scene.load(EVEN);
    scene.until("the end", |s| s.has_told("resolved")).await;
    drop(agent);
    let incidents: std::collections::BTreeSet<String> =
        told().iter().filter_map(|id| id.split(':').next().map(str::to_owned)).collect();
    assert_eq!(incidents.len(), 1, "one trouble, one incident: {:?}", told());
    let ends: Vec<String> = told().into_iter().filter(|id| id.ends_with(":resolved")).collect();
    assert_eq!(ends.len(), 1, "{ends:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_can_be_written_the_watching_and_telling_go_on_without_windows() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::of(dir.path()).await;
    // Below a file there can be no folder, whoever runs this.
    let file = dir.path().join("skewtrap.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let at = dir.path().display();
    let text = text.replace(&format!("'{at}/state'"), &format!("'{at}/skewtrap.yaml/state'"));
    let text = text.replace(&format!("'{at}/incidents'"), &format!("'{at}/skewtrap.yaml/incidents'"));
    std::fs::write(&file, text).unwrap();
    let _agent = scene.agent();
    scene.watched_even_load().await;
    scene.load(SKEWED);
    scene.until("the refusal", |s| s.has_told("fired")).await;
    let refused = scene.message("fired");
    assert_eq!(refused["incident"]["capture"]["reason"], "watch_only", "{refused}");
    assert_eq!(scene.starts(), Vec::<Value>::new());
    let log = std::fs::read_to_string(dir.path().join("agent.log")).unwrap();
    let told = log.matches("the agent keeps watching, but opens no window").count();
    assert_eq!(told, 2, "once for the state and once for the bundles: {log}");
    assert!(!log.contains("panicked"), "{log}");
}
