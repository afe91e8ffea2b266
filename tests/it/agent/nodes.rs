//! A window whose ranks write on eight nodes: real node agents bring the summaries of theirs through a store that is a
//! folder, and the leader compares them as if all traces were on its own disk.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use skewtrap::agent::pool::gather::gather;
use skewtrap::agent::upload::destination;
use skewtrap::config::store::StoreConfig;
use skewtrap::demo::sglang::World;
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::line::Marks;
use skewtrap_core::fleet::gather::{Gathered, VERSION, WindowManifest, manifest_object, report_object};
use skewtrap_fleet::upload::Destination;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::verdict::Kind;
use tokio::time::Instant;

use crate::support::agent::{Agent, skewtrap};
use crate::support::comparison::{compared, said};
use crate::support::stage;
use crate::support::traces::{self, Style, write};

const NODES: usize = 8;
const RANKS: usize = 64;
const POOL: &str = "prod-a";

/// Each node sees the server's folder, which the server calls `server`, elsewhere.
fn node(root: &Path, number: usize, server: &str) -> (Agent, PathBuf) {
    let dir = root.join(format!("node{number}"));
    let profiles = dir.join("profiles");
    fs::create_dir_all(&profiles).expect("a folder");
    configure_node(root, &dir, server);
    let name = format!("node{number}");
    let mut agent = Agent::start(&dir, &["--role", "node", "--node", &name, "--config", "skewtrap.yaml"]);
    agent.until("node agent of pool prod-a");
    (agent, profiles)
}

fn leader_of_new_bucket(root: &Path) -> Destination {
    fs::create_dir(root.join("bucket")).expect("a folder");
    leader(root)
}

fn configure_node(root: &Path, dir: &Path, server: &str) {
    let at = dir.display();
    let text = format!(
        "store: 'file://{}'\npool: {POOL}\nstate_dir: '{at}/state'\n\
         targets: [{{ name: server, logs: ['{at}/server.log'], path_map: [{{ server: '{server}', agent: '{at}/profiles' }}] }}]\n",
        root.join("bucket").display()
    );
    fs::write(dir.join("skewtrap.yaml"), text).expect("written");
}

fn leader(root: &Path) -> Destination {
    let config = StoreConfig::of(&format!("file://{}", root.join("bucket").display()), POOL);
    destination(&config).expect("a store")
}

/// Whether the store has an object within twenty seconds.
async fn comes(to: &Destination, object: &str) -> bool {
    for _ in 0..200 {
        if to.store.get(object).await.expect("read").is_some() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

fn manifest(mark: &str) -> WindowManifest {
    WindowManifest {
        window: VERSION,
        incident: mark.into(),
        mark: mark.into(),
        target: "server".into(),
        host: "head".into(),
        engine: ServerKind::Sglang,
        dir: format!("/profiles/{mark}"),
        marks: Marks { dir: Some(format!("/profiles/{mark}")), ..Marks::default() },
        expected: (0..RANKS).map(|dp| Rank::dp(u16::try_from(dp).expect("few")).labels()).collect(),
        collect_s: 300.0,
    }
}

/// A mark as the agent makes it, of now.
fn mark(name: &str) -> String {
    let now = jiff::Timestamp::now();
    format!("{}-{name}", now.strftime("%Y%m%dT%H%M%SZ"))
}

/// Ranks of which one has far more work.
fn traces(folder: &Path) -> Vec<PathBuf> {
    let mut ranks: Vec<traces::Rank> =
        (0..RANKS).map(|dp| traces::Rank::new(format!("DP-{dp}"), None)).collect();
    ranks[37].batch = 40.0;
    fs::create_dir_all(folder).expect("a folder");
    write(folder, &ranks, &Style::default());
    let plain = fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path());
    for path in plain.collect::<Vec<_>>() {
        // As SGLang writes them.
        let packed = fs::File::create(path.with_extension("json.gz")).expect("created");
        let mut packed = GzEncoder::new(packed, Compression::fast());
        packed.write_all(&fs::read(&path).expect("generated")).expect("written");
        packed.finish().expect("written");
        fs::remove_file(path).expect("removed");
    }
    (0..RANKS)
        .map(|dp| {
            let files = fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path());
            let name = format!("-DP-{dp}.trace.json.gz");
            files.into_iter().find(|f| f.to_string_lossy().ends_with(&name)).expect("its file")
        })
        .collect()
}

struct Fleet {
    root: tempfile::TempDir,
    agents: Vec<(Agent, PathBuf)>,
    to: Destination,
    files: Vec<PathBuf>,
}

impl Fleet {
    fn start() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir(root.path().join("bucket")).expect("a folder");
        let files = traces(&root.path().join("all"));
        let agents: Vec<_> = (0..NODES).map(|number| node(root.path(), number, "/profiles")).collect();
        let to = leader(root.path());
        Self { root, agents, to, files }
    }

    async fn announce(&self, manifest: &WindowManifest) {
        let text = serde_json::to_vec(manifest).expect("plain data");
        self.to.store.put(&manifest_object(POOL, &manifest.mark), text.into()).await.expect("stored");
    }

    /// Puts a rank's file where its node's ranks write.
    fn lay(&self, manifest: &WindowManifest, rank: usize, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let folder = self.agents[rank % NODES].1.join(&manifest.mark);
        fs::create_dir_all(&folder).expect("a folder");
        let bytes = change(fs::read(&self.files[rank]).expect("generated"));
        fs::write(folder.join(self.files[rank].file_name().expect("a name")), bytes).expect("written");
    }

    async fn gathered(&self, manifest: &WindowManifest, wait: Duration) -> (Gathered, PathBuf) {
        let folder = self.root.path().join(format!("gathered-{}", manifest.mark));
        let gathered = gather(&self.to, manifest, &[], &folder, Instant::now() + wait).await;
        (gathered.expect("the store is there").expect("there are nodes"), folder)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verdict_over_eight_nodes_is_that_over_all_traces_and_comes_soon_after_the_last_file() {
    let fleet = Fleet::start();
    let manifest = manifest(&mark("whole"));
    fleet.announce(&manifest).await;
    let last = RANKS - 1;
    (0..last).for_each(|rank| fleet.lay(&manifest, rank, |bytes| bytes));
    let (waiting, _) = fleet.gathered(&manifest, Duration::ZERO).await;
    assert!(!waiting.is_complete(), "the last file is not written yet");
    fleet.lay(&manifest, last, |bytes| bytes);
    let written = Instant::now();
    let (gathered, folder) = fleet.gathered(&manifest, Duration::from_secs(120)).await;
    assert_eq!(gathered.notes(), Vec::<String>::new());
    assert_eq!((gathered.hosts.len(), gathered.summaries().count()), (NODES, RANKS));
    let over_summaries = compared(std::slice::from_ref(&folder));
    let took = written.elapsed();
    let over_traces = compared(&[fleet.root.path().join("all")]);
    assert_eq!(said(&over_summaries), said(&over_traces));
    assert_eq!(over_summaries.comparison.verdict.kind, Kind::UnevenWork);
    assert_eq!(over_summaries.comparison.verdict.rank.map(|r| r.to_string()).as_deref(), Some("DP37"));
    let size = |folder: &Path| -> u64 {
        fs::read_dir(folder).expect("there").flatten().map(|e| e.metadata().expect("there").len()).sum()
    };
    let (of_traces, of_summaries) = (size(&fleet.root.path().join("all")), size(&folder));
    println!(
        "the verdict of {RANKS} ranks on {NODES} nodes came {took:?} after the last file; {of_traces} bytes of traces stayed, {of_summaries} of summaries moved"
    );
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_without_a_file_and_one_whose_file_is_cut_off_are_named() {
    let mut fleet = Fleet::start();
    let manifest = manifest(&mark("parts"));
    fleet.announce(&manifest).await;
    for rank in (0..RANKS).filter(|rank| *rank != 5) {
        fleet.lay(&manifest, rank, |mut bytes| {
            bytes.truncate(if rank == 9 { bytes.len() / 2 } else { bytes.len() });
            bytes
        });
    }
    fleet.agents[9 % NODES].0.until("cannot be brought");
    let (waiting, _) = fleet.gathered(&manifest, Duration::from_secs(20)).await;
    assert!(!waiting.is_complete());
    let notes = waiting.notes();
    assert_eq!(notes.len(), 2, "{notes:#?}");
    assert!(notes[0].starts_with("no file of DP5 came from any node in time (node0, node1, "), "{notes:?}");
    assert!(notes[1].starts_with("the file of DP9 on node1 cannot be used: "), "{notes:?}");
    assert_eq!(waiting.summaries().count(), RANKS - 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_attention_dp_the_files_of_tensorrt_llm_are_those_of_the_dp_ranks() {
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir(root.path().join("bucket")).expect("a folder");
    let (mut node, profiles) = node(root.path(), 0, "/profiles");
    let to = leader(root.path());
    let mark = mark("trtllm");
    let expected = (0..2).map(|dp| Rank::dp(dp).labels()).collect();
    let manifest = WindowManifest { engine: ServerKind::TensorrtLlm, expected, ..manifest(&mark) };
    let manifest = WindowManifest { marks: Marks::default(), ..manifest };
    let text = serde_json::to_vec(&manifest).expect("plain data");
    to.store.put(&manifest_object(POOL, &mark), text.into()).await.expect("stored");
    let generated = root.path().join("all");
    fs::create_dir_all(&generated).expect("a folder");
    let ranks: Vec<_> = (0..2).map(|dp| traces::Rank::new(format!("DP-{dp}"), None)).collect();
    write(&generated, &ranks, &Style::default());
    let folder = profiles.join(&mark);
    fs::create_dir_all(&folder).expect("a folder");
    let mut files: Vec<_> = fs::read_dir(&generated).expect("there").flatten().map(|e| e.path()).collect();
    files.sort();
    for (number, file) in files.iter().enumerate() {
        let name = format!("trtllm-trace-1778480665-7993d824-rank-{number}.json");
        fs::copy(file, folder.join(name)).expect("written");
    }
    for _ in 0..2 {
        node.until("brought the summary of trtllm-trace-");
    }
    let until = Instant::now() + Duration::from_secs(20);
    let into = root.path().join("gathered");
    let gathered = gather(&to, &manifest, &[], &into, until).await.expect("the store").expect("a node");
    assert_eq!(gathered.notes(), Vec::<String>::new());
    let ranks: Vec<String> = compared(&[into]).ranks.iter().map(ToString::to_string).collect();
    assert_eq!(ranks, ["DP0", "DP1"]);
}

#[tokio::test]
async fn one_window_that_cannot_be_read_or_reported_keeps_no_other_from_a_node() {
    let root = tempfile::tempdir().expect("a folder");
    let windows = root.path().join("bucket").join(POOL).join("windows");
    let marks = ["a-too-large", "b-blocked", "c-good"].map(mark);
    let [large, blocked, good] = &marks;
    fs::create_dir_all(windows.join(large)).expect("a folder");
    let object = fs::File::create(windows.join(large).join("manifest.json")).expect("created");
    // More than is read of any object.
    object.set_len(65 << 20).expect("a hole");
    let to = leader(root.path());
    for mark in [blocked, good] {
        let text = serde_json::to_vec(&manifest(mark)).expect("plain data");
        to.store.put(&manifest_object(POOL, mark), text.into()).await.expect("stored");
    }
    fs::write(windows.join(blocked).join("nodes"), "where the reports are to be").expect("written");
    let (mut node, _) = node(root.path(), 0, "/profiles");
    let heard = node.until(&format!("window={good}"));
    let about = |mark: &str| heard.iter().filter(|line| line.contains(mark)).count();
    assert_eq!((about(large), about(blocked)), (1, 1), "{heard:#?}");
    let report = report_object(POOL, good, "node0");
    assert!(comes(&to, &report).await, "the node says what it has of the good one");
    let told = node.until(&format!("window={blocked}")).pop().expect("it is told");
    assert!(told.contains("cannot be brought"), "{told}");
}

#[tokio::test]
async fn a_window_whose_folder_hangs_keeps_no_other_from_a_node() {
    let root = tempfile::tempdir().expect("a folder");
    let (dir, to) = (root.path().join("node0"), leader_of_new_bucket(root.path()));
    let [hung, good] = &["a-hung", "b-good"].map(mark);
    let folder = dir.join("profiles").join(hung);
    fs::create_dir_all(&folder).expect("a folder");
    configure_node(root.path(), &dir, "/profiles");
    let arguments = ["--role", "node", "--node", "node0", "--config", "skewtrap.yaml"];
    let Some(mut node) = Agent::beside_hung_disk(&dir, &folder, &arguments) else { return };
    node.until("node agent of pool prod-a");
    for mark in [hung, good] {
        let text = serde_json::to_vec(&manifest(mark)).expect("plain data");
        to.store.put(&manifest_object(POOL, mark), text.into()).await.expect("stored");
        // The one that hangs comes first.
        node.until(&format!("window={mark}"));
    }
    let report = report_object(POOL, good, "node0");
    assert!(comes(&to, &report).await, "the node says what it has of the good one");
}

#[tokio::test]
async fn a_summary_that_the_store_does_not_take_is_brought_later_without_another_look_at_its_trace() {
    let root = tempfile::tempdir().expect("a folder");
    let mark = mark("refused");
    let window = root.path().join("bucket").join(POOL).join("windows").join(&mark);
    fs::create_dir_all(&window).expect("a folder");
    fs::write(window.join("dp0"), "where the summary is to be").expect("written");
    let text = serde_json::to_vec(&manifest(&mark)).expect("plain data");
    let to = leader(root.path());
    to.store.put(&manifest_object(POOL, &mark), text.into()).await.expect("stored");
    let (mut node, profiles) = node(root.path(), 0, "/profiles");
    let generated = traces(&root.path().join("all")).swap_remove(0);
    let trace = profiles.join(&mark).join(generated.file_name().expect("a name"));
    fs::create_dir(profiles.join(&mark)).expect("a folder");
    fs::copy(&generated, &trace).expect("written");
    node.until("what this host has of a window cannot be brought");
    let mut file = fs::File::options().write(true).open(&trace).expect("there");
    file.write_all(&vec![0; usize::try_from(file.metadata().expect("there").len()).expect("small")])
        .expect("written");
    fs::remove_file(window.join("dp0")).expect("removed");
    node.until("brought the summary of ");
    assert!(window.join("dp0/summary.json").is_file());
}

#[test]
fn a_node_agent_without_a_store_says_what_it_needs() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("skewtrap.yaml"), "pool: prod-a\n").expect("written");
    for args in [
        &["run", "--role", "node", "--config", "skewtrap.yaml"][..],
        &["run", "--role", "node", "--url", "http://127.0.0.1:1"][..],
    ] {
        let out = skewtrap(dir.path()).args(args).output().expect("it runs");
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{told}");
        assert!(told.contains("`--role node` needs a store, in which it hears of windows"), "{told}");
    }
    fs::remove_file(dir.path().join("skewtrap.yaml")).expect("removed");
    let out = skewtrap(dir.path()).args(["run", "--role", "node"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(told.contains("`--role node` needs a store, in which it hears of windows"), "{told}");
    assert!(!told.contains("nothing to watch"), "{told}");
}

#[tokio::test]
async fn a_node_agent_of_an_older_release_is_named_and_not_waited_for() {
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir(root.path().join("bucket")).expect("a folder");
    let to = leader(root.path());
    let manifest = manifest(&mark("old"));
    let folder = root.path().join("gathered");
    let wait = Instant::now() + Duration::from_secs(600);
    let alone = gather(&to, &manifest, &[], &folder, wait).await.expect("the store is there");
    assert_eq!(alone, None, "nobody is waited for where no node agent is");
    let old = r#"{"reads":0,"host":"node3","written_by":"0.0.9"}"#;
    to.store.put("prod-a/nodes/node3.json", old.into()).await.expect("stored");
    let gathered =
        gather(&to, &manifest, &[], &folder, wait).await.expect("the store is there").expect("one");
    let notes = gathered.notes();
    assert_eq!(notes.len(), RANKS + 1);
    let told = notes.last().expect("some");
    assert!(
        told.starts_with("the node agent on node3 is skewtrap 0.0.9 and cannot read the windows of this one"),
        "{told}"
    );
}

/// Moves the files of a server as if its ranks ran on two nodes: each window's `-DP-0` to the first folder, the rest to
/// the second. Until it is dropped.
struct TwoNodes(Arc<AtomicBool>);

impl TwoNodes {
    fn of(server: PathBuf, first: PathBuf, second: PathBuf) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let until = ends.clone();
        std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let windows = fs::read_dir(&server).into_iter().flatten().flatten();
                let files = windows.flat_map(|w| fs::read_dir(w.path()).into_iter().flatten().flatten());
                for file in files {
                    let (path, name) = (file.path(), file.file_name());
                    let window = path.parent().and_then(Path::file_name).expect("a folder");
                    let to = if name.to_string_lossy().contains("-DP-0") { &first } else { &second };
                    fs::create_dir_all(to.join(window)).expect("a folder");
                    fs::rename(&path, to.join(window).join(&name)).expect("moved");
                }
                std::thread::yield_now();
            }
        });
        Self(ends)
    }
}

impl Drop for TwoNodes {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_compares_its_own_ranks_with_those_of_another_node() {
    let root = tempfile::tempdir().expect("a folder");
    let (server, head) = (root.path().join("server"), root.path().join("head"));
    let (profiles, seen) = (server.join("profiles"), head.join("profiles"));
    for dir in [&root.path().join("bucket"), &profiles, &seen] {
        fs::create_dir_all(dir).expect("a folder");
    }
    let (_node, of_node) = node(root.path(), 0, &profiles.display().to_string());
    let _ranks = TwoNodes::of(profiles.clone(), seen.clone(), of_node);
    let world = World::new(stage::config(&[(20, 0), (20, 0)]), stage::begin());
    let double = stage::play(world, &server).await;
    let (at, written) = (head.display(), profiles.display());
    let text = format!(
        "targets: [{{ name: server, url: '{}', logs: ['{}/server.log'], path_map: [{{ server: '{written}', agent: '{}' }}] }}]\n\
         store: 'file://{}/bucket'\npool: {POOL}\nrules: []\nkeep: {{ min_free: 1MiB }}\n\
         capture: {{ http: {{ output_dir: '{written}', num_steps: 20, deadline: 5s, accept_risk: [server_timer] }} }}\n\
         state_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n",
        double.url,
        server.display(),
        seen.display(),
        root.path().display(),
    );
    fs::write(head.join("skewtrap.yaml"), text).expect("written");
    let mut agent = Agent::start(&head, &["--config", "skewtrap.yaml"]);
    let url = agent.behind("status page and API on ").trim().to_owned();
    let state = head.join("state").display().to_string();
    let mut refused = String::new();
    let asked = (0..300).any(|_| {
        let asked = skewtrap(&head)
            .args(["capture", "start", "--agent", &url, "--state-dir", &state])
            .output()
            .expect("it runs");
        refused = String::from_utf8_lossy(&asked.stderr).into_owned();
        asked.status.success()
    });
    assert!(asked, "{refused}");
    agent.until("summaries of 1 ranks came from 1 nodes");
    agent.until("uploaded to");
    let store = leader(root.path()).store;
    let names = store.list(&format!("{POOL}/incidents")).await.expect("listed");
    let summaries: Vec<&str> = names
        .iter()
        .filter(|n| n.ends_with("/summary.json"))
        .map(|n| n.rsplit('/').nth(1).expect("a rank"))
        .collect();
    assert_eq!(summaries, ["dp0-tp0", "dp1-tp0"], "{names:?}");
    let record = names.iter().find(|n| n.ends_with("/incident.json")).expect("a record");
    let record: serde_json::Value =
        serde_json::from_slice(&store.get(record).await.expect("read").expect("there")).expect("JSON");
    assert!(record["verdict"]["kind"].is_string(), "{record}");
    assert_eq!(
        record["capture"]["missing"],
        serde_json::json!([{ "dp_rank": 1 }]),
        "not on the leader's own node: {record}"
    );
}
