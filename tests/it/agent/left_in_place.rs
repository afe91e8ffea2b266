//! Traces that cannot be moved into the bundle are compared where the server wrote them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::stage;
use serde_json::Value;
use skewtrap::demo::sglang::World;

const EVEN: [(u32, u32); 2] = [(40, 0), (40, 0)];

fn by_hand(incidents: &Path) -> Option<Value> {
    let folders = fs::read_dir(incidents).into_iter().flatten().flatten();
    let records = folders.filter_map(|f| fs::read(f.path().join("incident.json")).ok());
    records.filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok()).find(|i| i["rule"] == "by hand")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_on_another_file_system_are_compared_and_the_message_says_that_they_stay() {
    let dir = tempfile::tempdir().unwrap();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        return eprintln!("SKIPPED: traces that cannot be moved (no second file system at /dev/shm)");
    };
    let (at, incidents) = (dir.path().display(), other.path().join("incidents"));
    fs::create_dir_all(dir.path().join("profiles")).unwrap();
    let config = stage::config(&EVEN);
    let double = stage::play(World::new(config, stage::begin()), dir.path()).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let yaml = format!(
        "targets: [{{ name: server, url: '{}', logs: ['{at}/server.log'], poll: 200ms }}]
capture: {{ http: {{ output_dir: '{at}/profiles', max_stall: 10s, deadline: 5s }} }}
rules: []
keep: {{ min_free: 1MiB }}
state_dir: '{at}/state'
incident_dir: '{}'
listen: 127.0.0.1:{port}
",
        double.url,
        incidents.display()
    );
    fs::write(dir.path().join("skewtrap.yaml"), yaml).unwrap();
    let _agent = stage::agent(dir.path());
    stage::until(
        dir.path(),
        "a watch of the even load",
        || double.requests().iter().filter(|r| r.path.starts_with("/v1/loads")).count() > 10,
        String::new,
    )
    .await;
    let program = || Command::new(env!("CARGO_BIN_EXE_skewtrap"));
    let url = format!("http://127.0.0.1:{port}");
    let taken = program()
        .args(["capture", "start", "--agent", &url, "--state-dir"])
        .arg(dir.path().join("state"))
        .output()
        .unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let sentence = || Some(by_hand(&incidents)?["verdict"]["sentence"].as_str()?.to_owned());
    stage::until(dir.path(), "the verdict", || sentence().is_some(), String::new).await;
    let incident = by_hand(&incidents).unwrap();
    let capture = &incident["capture"];
    let files = capture["files"].as_array().unwrap();
    assert!(files.iter().all(|f| f["path"].as_str().unwrap().starts_with('/')), "{files:#?}");
    let notes = capture["notes"].to_string();
    assert!(notes.contains("2 files could not be moved into the bundle and stay where"), "{notes}");
    let bundle = Path::new(incident["bundle"].as_str().unwrap());
    let report: Value = serde_json::from_slice(&fs::read(bundle.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["ranks"].as_array().map(Vec::len), Some(2), "{report:#}");

    for given in [bundle.to_owned(), bundle.join("traces")] {
        let compared = program().args(["compare", "--json"]).arg(&given).output().unwrap();
        let said = String::from_utf8_lossy(&compared.stderr);
        assert!(compared.status.success(), "{}: {said}", given.display());
        let again: Value = serde_json::from_slice(&compared.stdout).unwrap();
        assert_eq!(again["ranks"], report["ranks"], "{}", given.display());
    }
    // What is something else by now is not compared.
    let first = files[0]["path"].as_str().unwrap();
    fs::remove_file(first).unwrap();
    fs::write(first, "{\"traceEvents\":[]}").unwrap();
    let compared = program().args(["compare", "--json"]).arg(bundle).output().unwrap();
    let again: Value = serde_json::from_slice(&compared.stdout).unwrap();
    assert_eq!(again["ranks"].as_array().map(Vec::len), Some(1));
}
