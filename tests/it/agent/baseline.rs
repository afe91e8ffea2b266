//! `skewtrap capture baseline` against the double: a window of the healthy server, and the next one, of a
//! rank whose host is slow, says what changed since.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::stage;
use crate::support::traces::{Rank, Style, write};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use skewtrap::demo::sglang::{Config, World};

const EVEN: [(u32, u32); 2] = [(40, 0), (40, 0)];
const SKEWED: [(u32, u32); 2] = [(60, 0), (20, 0)];

/// What the two ranks write, where DP0's host needs so many times as long as usual.
fn traces(host: f64) -> Vec<Arc<[u8]>> {
    let dir = tempfile::tempdir().unwrap();
    let mut ranks: Vec<Rank> = (0..2).map(|i| Rank::new(format!("DP-{i}"), None)).collect();
    ranks[0].host = host;
    write(dir.path(), &ranks, &Style { id: "recorded", ..Style::default() });
    let file = |rank: &Rank| {
        let text = std::fs::read(dir.path().join(format!("recorded-{}.trace.json", rank.name))).unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(&text).unwrap();
        Arc::from(gzip.finish().unwrap())
    };
    ranks.iter().map(file).collect()
}

/// The stored incidents of a rule.
fn incidents(dir: &Path, rule: &str) -> Vec<Value> {
    let folders = std::fs::read_dir(dir.join("incidents")).into_iter().flatten().flatten();
    let records = folders.filter_map(|f| std::fs::read(f.path().join("incident.json")).ok());
    let records = records.filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    records.filter(|incident| incident["rule"] == rule).collect()
}

fn sentence(incident: &Value) -> &str {
    incident["verdict"]["sentence"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_after_a_baseline_says_what_changed_on_the_blamed_rank() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    std::fs::create_dir_all(dir.path().join("profiles")).unwrap();
    // The rule's windows ask for CPU activity, so the double gives them other traces.
    let config = Config {
        recorded_traces: Some(traces(1.0)),
        recorded_cpu_traces: Some(traces(6.0)),
        ..stage::config(&EVEN)
    };
    let double = stage::play(World::new(config, stage::begin()), dir.path()).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let http = format!("output_dir: '{at}/profiles', max_stall: 10s, deadline: 5s");
    let yaml = format!(
        "targets: [{{ name: server, url: '{}', logs: ['{at}/server.log'], poll: 200ms }}]
capture: {{ http: {{ {http} }} }}
rules:
  - name: skew
    signal: load
    across: dp_rank
    within: [target, role]
    trigger: {{ max_over_mean: 1.1, for: 1s }}
    clear: {{ max_over_mean: 1.05, for: 5s }}
    capture: {{ http: {{ {http}, activities: [CPU, GPU] }} }}
    limits: {{ cooldown: 1h, captures: 4, per: 24h }}
keep: {{ min_free: 1MiB }}
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:{port}
",
        double.url
    );
    let file = dir.path().join("skewtrap.yaml");
    std::fs::write(&file, yaml).unwrap();
    let _agent = stage::agent(dir.path());
    let said = || std::fs::read_to_string(dir.path().join("agent.log")).unwrap_or_default();
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        stage::until(dir.path(), what, holds, String::new).await;
    };
    until("a watch of the even load", &|| {
        double.requests().iter().filter(|r| r.path.starts_with("/v1/loads")).count() > 10
    })
    .await;
    let taken = Command::new(env!("CARGO_BIN_EXE_skewtrap"))
        .args(["capture", "baseline", "--agent"])
        .arg(format!("http://127.0.0.1:{port}"))
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .output()
        .unwrap();
    assert!(taken.status.success(), "{}\n{}", String::from_utf8_lossy(&taken.stderr), said());
    let ends = " Later captures of this server are compared with this one.";
    until("the baseline", &|| incidents(dir.path(), "by hand").iter().any(|i| sentence(i).ends_with(ends)))
        .await;
    let baseline = incidents(dir.path(), "by hand").remove(0);
    assert_eq!(baseline["baseline"], true);
    let bundle = Path::new(baseline["bundle"].as_str().unwrap());
    assert!(bundle.join("pinned").exists(), "it is kept");

    stage::set_load(&double, SKEWED);
    until("the verdict", &|| incidents(dir.path(), "skew").iter().any(|i| !sentence(i).is_empty())).await;
    let incident = incidents(dir.path(), "skew").remove(0);
    let sentence = sentence(&incident);
    assert!(sentence.starts_with("DP0 is slowed by its host: "), "{sentence}");
    assert!(sentence.contains(" Since the baseline DP0's steps take "), "{sentence}");
    assert!(sentence.contains(": host time +"), "{sentence}");
    assert_eq!(incident["baseline"], Value::Null);
}
