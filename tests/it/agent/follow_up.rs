//! The agent against a double whose first window, of kernels alone, blames a host: the second one has CPU
//! activity, and its verdict names the operator.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::support::stage;
use crate::support::traces::{Rank, Style, write};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use skewtrap::demo::sglang::{Config, World};

const EVEN: [(u32, u32); 2] = [(40, 0), (40, 0)];
const SKEWED: [(u32, u32); 2] = [(60, 0), (20, 0)];

/// What the two ranks write: DP0's host needs six times as long between steps.
fn traces(cpu: bool) -> Vec<Arc<[u8]>> {
    let dir = tempfile::tempdir().unwrap();
    let mut ranks: Vec<Rank> = (0..2).map(|i| Rank::new(format!("DP-{i}"), None)).collect();
    ranks[0].host = 6.0;
    write(dir.path(), &ranks, &Style { cpu, id: "recorded", ..Style::default() });
    let file = |rank: &Rank| {
        let text = std::fs::read(dir.path().join(format!("recorded-{}.trace.json", rank.name))).unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(&text).unwrap();
        Arc::from(gzip.finish().unwrap())
    };
    ranks.iter().map(file).collect()
}

fn configuration(at: &Path, url: &str) -> String {
    let at = at.display();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!(
        "targets: [{{ name: server, url: '{url}', logs: ['{at}/server.log'], poll: 200ms }}]
rules:
  - name: skew
    signal: load
    across: dp_rank
    within: [target, role]
    trigger: {{ max_over_mean: 1.1, for: 1s }}
    clear: {{ max_over_mean: 1.05, for: 5s }}
    capture: {{ http: {{ output_dir: '{at}/profiles', max_stall: 10s, escalate: [gpu, cpu], deadline: 5s }} }}
    limits: {{ cooldown: 1h, captures: 4, per: 24h }}
keep: {{ min_free: 1MiB }}
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:{port}
"
    )
}

/// The only incident, as far as it is stored.
fn incident(dir: &Path) -> Option<Value> {
    let bundle = std::fs::read_dir(dir.join("incidents")).ok()?.find_map(|entry| {
        let file = entry.ok()?.path().join("incident.json");
        std::fs::read(file).ok()
    })?;
    serde_json::from_slice(&bundle).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_window_with_cpu_activity_names_the_operator_that_keeps_a_blamed_host() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("profiles")).unwrap();
    let config = Config {
        recorded_traces: Some(traces(false)),
        recorded_cpu_traces: Some(traces(true)),
        ..stage::config(&EVEN)
    };
    let double = stage::play(World::new(config, stage::begin()), dir.path()).await;
    let file = dir.path().join("skewtrap.yaml");
    std::fs::write(&file, configuration(dir.path(), &double.url)).unwrap();
    let _agent = stage::agent(dir.path());
    let said = || format!("{:#}", incident(dir.path()).unwrap_or_default());
    let until =
        async |what: &str, holds: &dyn Fn() -> bool| stage::until(dir.path(), what, holds, said).await;
    until("a watch of the even load", &|| {
        double.requests().iter().filter(|r| r.path.starts_with("/v1/loads")).count() > 10
    })
    .await;
    stage::set_load(&double, SKEWED);
    until("the operator", &|| {
        incident(dir.path()).is_some_and(|i| i["verdict"]["sentence"].to_string().contains("recv_requests"))
    })
    .await;

    let requests = double.requests().into_iter().filter(|r| r.path == "/start_profile");
    let starts: Vec<Value> = requests.map(|r| serde_json::from_str(&r.body).unwrap()).collect();
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert_eq!(
        (&starts[0]["activities"], &starts[1]["activities"]),
        (&json!(["GPU"]), &json!(["CPU", "GPU"]))
    );
    assert_eq!(starts[1]["with_stack"], json!(false));
    let incident = incident(dir.path()).unwrap();
    let sentence = incident["verdict"]["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("DP0 is slowed by its host: "), "{sentence}");
    assert!(sentence.contains(" Most of it is in `recv_requests`: "), "{sentence}");
    let follow_up = &incident["follow_up"];
    assert_eq!((&follow_up["window"], &follow_up["refused"]), (&json!(2), &Value::Null), "{}", said());
}
