//! The real agent beside a store that is a folder: what it brings there, what `compare` and `fleet` read
//! of it, and what it says when the store is gone.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use skewtrap::act::bundle::Bundles;
use skewtrap::act::state::State;
use skewtrap_core::finding::{Finding, Side};
use skewtrap_core::incident::{
    CaptureOutcome, Captured, CapturedFile, Exchange, Incident, Quality, Record, VerdictNote,
};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::{Confidence, Kind};

use crate::support::agent::{Agent, answer_to, skewtrap};
use crate::support::comparison::{attention_of, compared, named, skew};

const PROMPT: &str = "planted prompt of a user";
const TOKEN: &str = "planted-token-7f3a";
const ID: &str = "20261124T034845Z-dp-load-skew-3f9a";
const OTHER: &str = "20261124T034845Z-dp-load-skew-4000";

/// An incident that is over, with the traces of the skewed window and text of people in every place for it.
fn bundle_of(dir: &Path, id: &str) -> PathBuf {
    let state = State::open(&dir.join("state")).expect("a state");
    let bundles = Bundles::open(&dir.join("incidents"), state.agent().clone()).expect("a folder");
    let at = Time::from_epoch_s(1_795_492_125.0);
    let finding = Finding { onset_error_s: 0.5, ..Finding::of(Rank::dp(2).labels(), Side::High, at) };
    let mut incident = Incident::new(id.into(), "dp-load-skew".into(), "server".into(), at, finding);
    let files = vec![CapturedFile { size: 1000, ..CapturedFile::default() }];
    let captured = Captured { quality: Quality::Usable, files, stall_s: 0.25, ..Captured::default() };
    incident.capture = CaptureOutcome::Done(captured);
    incident.verdict = Some(VerdictNote {
        kind: Kind::UnevenWork,
        rank: Some(Rank::dp(2).labels()),
        by: None,
        sentence: "DP2 has more work.".into(),
        lost_ms_per_step: Some(0.5),
        confidence: Confidence::High,
        confirms: Some(true),
        suspect: None,
    });
    incident.resolve(at);
    let mut record = Record::new(state.agent().clone(), incident);
    let (request, answer) = (format!("nsys --token {TOKEN}"), PROMPT.to_owned());
    record.exchanges.push(Exchange { at, request, body: None, answer, took_s: 0.1 });
    let bundle = bundles.create(&record, &PROMPT.as_bytes()).expect("a bundle");
    fs::write(bundle.join("server.log"), PROMPT).expect("written");
    fs::create_dir(bundle.join("traces")).expect("a folder");
    for entry in fs::read_dir(skew()).expect("the recording").flatten() {
        fs::copy(entry.path(), bundle.join("traces").join(entry.file_name())).expect("copied");
    }
    bundle
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).expect("a folder").flatten().map(|e| e.path()) {
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// An agent with a store; `upload` is that key of its configuration, or nothing.
fn agent(dir: &Path, upload: &str) -> Agent {
    let at = dir.display();
    let text = format!(
        "targets: [{{ name: server, logs: ['{at}/server.log'] }}]\nstore: 'file://{at}/bucket'\npool: prod-a\n\
         {upload}state_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    fs::write(dir.join("skewtrap.yaml"), text).expect("written");
    Agent::start(dir, &["--config", "skewtrap.yaml"])
}

#[test]
fn an_ended_incident_is_in_the_store_with_its_summaries_and_without_what_people_wrote() {
    let dir = tempfile::tempdir().expect("a folder");
    let bundle = bundle_of(dir.path(), ID);
    let bucket = dir.path().join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    let mut agent = agent(dir.path(), "");
    let mut said = agent.until("uploaded to");
    assert!(bundle.join(".uploaded.json").exists());
    let folder = bucket.join("prod-a/incidents/2026-11-24").join(ID);
    let names: Vec<String> = files_below(&bucket)
        .iter()
        .map(|p| p.strip_prefix(&bucket).expect("below it").display().to_string())
        // What measures the store's clock.
        .filter(|name| !name.starts_with("prod-a/clocks/"))
        .collect();
    let expected = ["dp0/summary.json", "dp1/summary.json", "dp2/summary.json", "dp3/summary.json"];
    let mut wanted: Vec<String> = expected.map(|n| format!("prod-a/incidents/2026-11-24/{ID}/{n}")).to_vec();
    wanted.push(format!("prod-a/incidents/2026-11-24/{ID}/incident.json"));
    wanted.push(format!("prod-a/incidents/2026-11-24/{ID}/kernels.csv"));
    wanted.push(format!("prod-a/index/2026-11-24/{ID}.jsonl"));
    assert_eq!(names, wanted);
    for path in files_below(&bucket) {
        let text = fs::read_to_string(&path).expect("text");
        assert!(!text.contains(PROMPT) && !text.contains(TOKEN), "{path:?}");
    }
    said.retain(|line| line.contains(TOKEN));
    assert_eq!(said, Vec::<String>::new());
    assert_eq!(named(&compared(&[folder])), attention_of("DP2"), "the verdict over what is stored");
    assert_eq!(named(&compared(&[bundle])), attention_of("DP2"), "the traces of the bundle are compared");

    let line = fs::read(bucket.join(&wanted[6])).expect("the index");
    let line: Value = serde_json::from_slice(&line).expect("one line of JSON");
    for key in line.as_object().expect("an object").keys() {
        assert!(
            include_str!("../../../docs/fleet.md").contains(&format!("`{key}`")),
            "docs/fleet.md lacks {key}"
        );
    }

    let shown = skewtrap(dir.path()).args(["fleet", "--json"]).output().expect("it runs");
    let view: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(view["all"]["captured"], 1, "{view}");
    assert_eq!(view["verdicts"][0]["name"], "uneven_work");
    let address = format!("file://{}", bucket.display());
    let other = ["fleet", "--store", &address, "--pool", "prod-b"];
    let shown = skewtrap(dir.path()).args(other).output().expect("it runs");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("no incident of pool prod-b"));
}

#[test]
fn what_an_alert_says_stays_on_its_host() {
    let dir = tempfile::tempdir().expect("a folder");
    let bucket = dir.path().join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    let mut agent = agent(dir.path(), "capture: { command: { argv: [sh, -c, 'true'], time_limit: 20s } }\n");
    let url = agent.behind("status page and API on ").trim().to_owned();
    let token = fs::read_to_string(dir.path().join("state/api-token")).expect("its own");
    let alert = serde_json::json!({
        "status": "firing",
        "labels": { "alertname": "slow", "customer": TOKEN },
        "annotations": { "summary": PROMPT },
        "startsAt": "2026-11-24T03:48:45Z",
        "fingerprint": "f1",
    });
    let body = serde_json::json!({ "alerts": [alert] }).to_string();
    let asked = answer_to(
        &url,
        &format!(
            "POST /api/v1/alerts HTTP/1.0\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            token.trim(),
            body.len()
        ),
    );
    assert!(asked.contains("a window is being opened"), "{asked}");
    agent.until("uploaded to");
    let files = files_below(&bucket);
    assert!(files.iter().any(|path| path.ends_with("incident.json")), "{files:?}");
    for path in files {
        let text = fs::read_to_string(&path).expect("text");
        assert!(!text.contains(PROMPT) && !text.contains(TOKEN), "{path:?}: {text}");
    }
}

#[test]
fn a_store_that_is_not_there_is_told_and_the_watching_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    bundle_of(dir.path(), ID);
    let mut agent = agent(dir.path(), "");
    // The two come in any order.
    let (page, trouble) = ("status page and API on ", "incidents are not uploaded: ");
    let mut heard = agent.until(page);
    if !heard.iter().any(|line| line.contains(trouble)) {
        heard.extend(agent.until(trouble));
    }
    let behind =
        |words: &str| heard.iter().find_map(|l| Some(l.split_once(words)?.1.to_owned())).expect("heard");
    let (url, told) = (behind(page), behind(trouble));
    assert!(told.contains("the folder is not there: create it"), "{told}");
    let health = answer_to(&url, "GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n");
    assert!(health.contains("200 OK") && health.contains("ok, but incidents are not uploaded"), "{health}");
    let doctor =
        skewtrap(dir.path()).args(["doctor", "--config", "skewtrap.yaml"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(told.contains("NO    prod-a  store: ") && told.contains("the folder is not there"), "{told}");
    let check = skewtrap(dir.path()).args(["check", "skewtrap.yaml"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(
        told.contains("warning: skewtrap.yaml:2:8") && told.contains("the folder is not there"),
        "{told}"
    );
}

#[test]
fn an_incident_that_the_store_does_not_take_keeps_no_other_from_it_and_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    for id in [ID, OTHER] {
        bundle_of(dir.path(), id);
    }
    // A folder stands where the record of the older one is to be.
    let day = dir.path().join("bucket/prod-a/incidents/2026-11-24");
    fs::create_dir_all(day.join(ID).join("incident.json/in-the-way")).expect("a folder");
    let mut agent = agent(dir.path(), "");
    let heard = agent.until(&format!("incident={OTHER}"));
    assert!(!heard.iter().any(|line| line.contains("uploaded to") && line.contains(ID)), "{heard:#?}");
    let told = agent.behind("incidents are not uploaded: ");
    assert!(told.contains(ID), "{told}");
    assert!(dir.path().join(format!("bucket/prod-a/index/2026-11-24/{OTHER}.jsonl")).exists());
}

#[test]
fn an_uploaded_bundle_is_deleted_here_when_it_is_old_and_not_pinned() {
    let dir = tempfile::tempdir().expect("a folder");
    let (old, pinned) = (bundle_of(dir.path(), ID), bundle_of(dir.path(), OTHER));
    fs::write(pinned.join("pinned"), "").expect("written");
    fs::create_dir(dir.path().join("bucket")).expect("a folder");
    // The incidents fired days ago by the clock of any machine.
    let mut agent = agent(dir.path(), "upload: { keep_local: 1s }\n");
    agent.until("it is in the store, and older than upload.keep_local");
    assert!(!old.exists() && pinned.join("traces").exists(), "both were looked at");
    for id in [ID, OTHER] {
        assert!(dir.path().join(format!("bucket/prod-a/index/2026-11-24/{id}.jsonl")).exists());
    }
}

#[test]
fn an_incident_in_the_store_is_compared_by_its_address_and_of_several_one_is_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    for id in [ID, OTHER] {
        bundle_of(dir.path(), id);
    }
    let bucket = dir.path().join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    let mut agent = agent(dir.path(), "");
    for id in [ID, OTHER] {
        agent.until(&format!("incident={id}"));
    }
    let compare =
        |address: &str| skewtrap(dir.path()).args(["compare", "--json", address]).output().expect("it runs");
    let day = format!("file://{}/prod-a/incidents/2026-11-24", bucket.display());
    let said = compare(&format!("{day}/{ID}"));
    let verdict: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    assert_eq!(verdict["verdict"]["rank"], serde_json::json!({ "dp_rank": 2 }), "{verdict}");
    let several = compare(&day);
    let told = String::from_utf8_lossy(&several.stderr).into_owned();
    assert_eq!(several.status.code(), Some(2), "{told}");
    assert!(
        told.contains("holds 2 incidents") && told.contains(&format!("name its folder, as {day}/{ID}")),
        "{told}"
    );
    let none = compare(&format!("file://{}/prod-a/index", bucket.display()));
    let told = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(told.contains("no summary of a rank lies below"), "{told}");
}
