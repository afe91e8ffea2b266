//! Bundles that are brought into stores: a folder, and a real S3 server (moto) where there is one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use skewtrap_core::finding::{Finding, Side};
use skewtrap_core::fleet::{FleetView, Share};
use skewtrap_core::incident::{Exchange, Incident, Record};
use skewtrap_fleet::upload::{Destination, UPLOADED};
use skewtrap_fleet::{Store, StoreError, index};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

use crate::support::{Moto, TOKEN, client, environment};

const PROMPT: &str = "planted prompt of a user";
fn destination(address: &str, share: Share, environment: Vec<(String, String)>) -> Destination {
    let store = Store::open(address, client(), environment).expect("an address");
    Destination { store, pool: "prod".into(), host: "node7".into(), share, rate: None }
}

fn record(id: &str) -> Record {
    let at = Time::from_epoch_s(1_795_492_125.0);
    let finding = Finding { onset_error_s: 0.5, ..Finding::of(Rank::dp(2).labels(), Side::High, at) };
    let mut incident = Incident::new(id.into(), "dp-load-skew".into(), "server".into(), at, finding);
    incident.resolve(at);
    let mut record = Record::new("agent".into(), incident);
    let (request, answer) = (format!("nsys --token {TOKEN}"), PROMPT.to_owned());
    record.exchanges.push(Exchange { at, request, body: None, answer, took_s: 0.1 });
    record
}

/// A bundle with all that one may have; its trace has so many bytes.
fn bundle(root: &Path, id: &str, trace: usize) -> PathBuf {
    let folder = root.join(id);
    let files: [(&str, Vec<u8>); 7] = [
        ("incident.json", serde_json::to_vec(&record(id)).expect("it serialises")),
        ("summaries/dp2.summary.json", format!("{{\"of\":\"{id}\"}}").into_bytes()),
        ("kernels.csv", b"rank,kernel\nDP2,gemm\n".to_vec()),
        ("evidence.jsonl", PROMPT.into()),
        ("server.log", PROMPT.into()),
        ("traces/x-DP-2.trace.json", [PROMPT.as_bytes(), &noise(id, trace)].concat()),
        ("traces/x.nsys-rep", TOKEN.into()),
    ];
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, content).expect("written");
    }
    std::os::unix::fs::symlink("/etc/hostname", folder.join("summaries/dp3.summary.json")).expect("linked");
    folder
}

/// Bytes of which no part looks like another.
fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut state = seed.bytes().fold(7u64, |h, b| h.wrapping_mul(31) + u64::from(b));
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

async fn uploaded(to: &Destination, folder: &Path) -> Result<(), StoreError> {
    let bytes = fs::read(folder.join("incident.json")).expect("a record");
    if to.has(folder, &bytes) {
        return Ok(());
    }
    let record: Record = serde_json::from_slice(&bytes).expect("a record");
    to.upload(folder, &record, &bytes).await.map(|_| ())
}

async fn objects(store: &Store) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in store.list("prod").await.expect("listed") {
        let bytes = store.get(&name).await.expect("read").expect("it was listed");
        found.insert(name, bytes.to_vec());
    }
    found
}

#[tokio::test]
async fn a_bundle_is_stored_with_its_index_and_nothing_that_people_wrote_leaves_unless_it_is_said() {
    let cases = [
        (Share::default(), vec!["dp2/summary.json", "incident.json", "kernels.csv"], false, false),
        (
            Share { raw: true, secrets: false },
            vec![
                "dp2/summary.json",
                "evidence.jsonl",
                "incident.json",
                "kernels.csv",
                "server.log",
                "traces/x-DP-2.trace.json",
            ],
            true,
            true,
        ),
        (
            Share { raw: false, secrets: true },
            vec!["dp2/summary.json", "incident.json", "kernels.csv", "traces/x.nsys-rep"],
            false,
            true,
        ),
    ];
    for (share, wanted, has_prompt, has_token) in cases {
        let dir = tempfile::tempdir().expect("a folder");
        let bucket = dir.path().join("bucket");
        fs::create_dir(&bucket).expect("created");
        let to = destination(&format!("file://{}", bucket.display()), share, environment());
        let folder = bundle(dir.path(), "20261124T034845Z-a", 100);
        uploaded(&to, &folder).await.expect("stored");
        let found = objects(&to.store).await;
        let base = "prod/incidents/2026-11-24/20261124T034845Z-a/";
        let mut names: Vec<String> = wanted.iter().map(|n| format!("{base}{n}")).collect();
        names.push("prod/index/2026-11-24/20261124T034845Z-a.jsonl".into());
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), names, "{share:?}");
        let has = |text: &str| found.values().any(|o| o.windows(text.len()).any(|w| w == text.as_bytes()));
        assert_eq!((has(PROMPT), has(TOKEN)), (has_prompt, has_token), "{share:?}");
        let read = index::read(&to.store, "prod", None).await.expect("read");
        assert_eq!(FleetView::new(read.lines).all.incidents, 1);
        let later = index::read(&to.store, "prod", Some("2026-11-25")).await.expect("read");
        assert_eq!(later.lines, []);
    }
}

#[tokio::test]
async fn a_record_that_changed_is_stored_again_under_its_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let to = destination(&format!("file://{}", dir.path().display()), Share::default(), environment());
    let folder = bundle(&dir.path().join("bundles"), "20261124T034845Z-a", 100);
    uploaded(&to, &folder).await.expect("stored");
    let bytes = fs::read(folder.join("incident.json")).expect("a record");
    assert!(to.has(&folder, &bytes));
    let mut changed: Record = serde_json::from_slice(&bytes).expect("a record");
    changed.incident.rule = "another-rule".into();
    let bytes = serde_json::to_vec(&changed).expect("it serialises");
    fs::write(folder.join("incident.json"), &bytes).expect("written");
    assert!(!to.has(&folder, &bytes));
    uploaded(&to, &folder).await.expect("stored");
    let read = index::read(&to.store, "prod", None).await.expect("read");
    assert_eq!(read.lines.iter().map(|l| &*l.rule).collect::<Vec<_>>(), ["another-rule"]);
}

#[test]
fn an_address_that_is_no_store_says_how_one_is_written_and_repeats_no_secret() {
    let said =
        |address: &str| Store::open(address, client(), environment()).expect_err("refused").to_string();
    assert!(said("bucket/prefix").contains("write s3://BUCKET/PREFIX"));
    assert!(said("ftp://x/y").contains("`ftp` is no kind of store"));
    assert!(said("file:///no/such/folder").contains("the folder is not there: create it"));
    for address in ["s3://me:s3cr3t@bucket/x", "s3://bucket/x?secret=s3cr3t"] {
        let told = said(address);
        assert!(
            told.contains("credentials belong into the environment") && !told.contains("s3cr3t"),
            "{told}"
        );
    }
}

// ---- killed at any byte ----

/// Not a test: what [`kill_anywhere`] starts and kills.
#[test]
#[ignore = "started by kill_anywhere"]
fn child_that_uploads() {
    let (Ok(address), Ok(folder)) = (std::env::var("UPLOAD_TO"), std::env::var("UPLOAD_FROM")) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let to = destination(&address, Share { raw: true, secrets: false }, environment());
    runtime.block_on(uploaded(&to, Path::new(&folder))).expect("stored");
}

fn child(address: &str, folder: &Path, variables: &[(String, String)]) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "store::child_that_uploads", "--ignored"])
        .env("UPLOAD_TO", address)
        .env("UPLOAD_FROM", folder)
        .envs(variables.iter().cloned())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

fn rounds() -> u64 {
    std::env::var("SKEWTRAP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

/// Uploads a bundle a round, kills the upload somewhere, looks at what is there, and lets another go on.
async fn kill_anywhere(address: &str, variables: Vec<(String, String)>) {
    let dir = tempfile::tempdir().expect("a folder");
    let trace = 18 << 20;
    let share = Share { raw: true, secrets: false };
    let to = destination(address, share, variables.clone());
    let whole = bundle(dir.path(), "20261124T034845Z-whole", trace);
    let began = Instant::now();
    assert!(child(address, &whole, &variables).wait().expect("it ends").success(), "without a kill");
    let usual = began.elapsed();
    let (mut halfway, mut before, mut after) = (0, 0, 0);
    for round in 0..rounds() {
        let id = format!("20261124T034845Z-{round:03}");
        let folder = bundle(dir.path(), &id, trace);
        let mut upload = child(address, &folder, &variables);
        let at = usual.mul_f64(f64::from(noise(&id, 9)[8]) / 255.0);
        // The time of the kill is what is tried here, not waited for.
        std::thread::sleep(at);
        upload.kill().expect("killed");
        upload.wait().expect("it ends");
        let expected = contents(&folder);
        let present = of_incident(&to.store, &id).await;
        match present.len() {
            0 => before += 1,
            n if n < expected.len() + 2 => halfway += 1,
            _ => after += 1,
        }
        check_present(&present, &expected, &id);
        assert!(child(address, &folder, &variables).wait().expect("it ends").success(), "it goes on");
        assert!(folder.join(UPLOADED).exists());
        let present = of_incident(&to.store, &id).await;
        assert_eq!(present.len(), expected.len() + 2, "nothing lost, nothing doubled: {:?}", present.keys());
        check_present(&present, &expected, &id);
    }
    println!("{} kills: {before} before anything was there, {halfway} halfway, {after} after all", rounds());
    let lines = index::read(&to.store, "prod", None).await.expect("read").lines;
    assert_eq!(lines.len() as u64, rounds() + 1);
}

/// The files of a bundle that are stored, by the end of their names.
fn contents(folder: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    [
        ("/dp2/summary.json", "summaries/dp2.summary.json"),
        ("/kernels.csv", "kernels.csv"),
        ("/evidence.jsonl", "evidence.jsonl"),
        ("/server.log", "server.log"),
        ("/traces/x-DP-2.trace.json", "traces/x-DP-2.trace.json"),
    ]
    .map(|(name, path)| (name, fs::read(folder.join(path)).expect("there")))
    .into()
}

async fn of_incident(store: &Store, id: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in store.list("prod").await.expect("listed").into_iter().filter(|n| n.contains(id)) {
        let bytes = store.get(&name).await.expect("read").expect("it was listed");
        found.insert(name, bytes.to_vec());
    }
    found
}

/// Whatever has a name is whole, a record comes after all that it names, the index after the record.
fn check_present(present: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<&str, Vec<u8>>, id: &str) {
    let has = |end: &str| present.keys().any(|name| name.ends_with(end));
    for (name, bytes) in present {
        if name.ends_with("/incident.json") {
            serde_json::from_slice::<Record>(bytes).expect("a whole record");
            assert!(expected.keys().all(|end| has(end)), "{id}: a record without its files");
        } else if name.ends_with(".jsonl") && name.contains("/index/") {
            assert!(has("/incident.json"), "{id}: a line of the index without its record");
        } else {
            let (_, wanted) =
                expected.iter().find(|(end, _)| name.ends_with(**end)).expect("a name of the bundle");
            assert!(bytes == wanted, "{id}: {name} is not whole");
        }
    }
}

#[tokio::test]
async fn an_upload_into_a_folder_that_is_killed_anywhere_goes_on_and_leaves_nothing_half_named() {
    let bucket = tempfile::tempdir().expect("a folder");
    kill_anywhere(&format!("file://{}", bucket.path().display()), Vec::new()).await;
}

// ---- a real S3 server ----

#[tokio::test]
async fn an_upload_into_s3_that_is_killed_anywhere_goes_on_and_leaves_nothing_half_named() {
    let Some(moto) = Moto::start(&[]).await else { return };
    moto.create("traces").await;
    kill_anywhere("s3://traces/of/skewtrap", moto.variables()).await;
    let to = destination("s3://traces/of/skewtrap", Share::default(), moto.variables());
    to.store.try_out("node7").await.expect("it can be written");
    assert_eq!(to.store.list(".skewtrap").await.expect("listed"), Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_bucket_and_wrong_credentials_are_told_apart_without_a_secret() {
    let Some(moto) = Moto::start(&[]).await else { return };
    let to = destination("s3://nowhere/x", Share::default(), moto.variables());
    let said = to.store.try_out("node7").await.expect_err("no bucket").to_string();
    assert!(said.starts_with("s3://nowhere/x: the bucket is not there: NoSuchBucket"), "{said}");
    let Some(strict) = Moto::start(&[("INITIAL_NO_AUTH_ACTION_COUNT", "0")]).await else { return };
    let to = destination("s3://traces/x", Share::default(), strict.variables());
    let said = to.store.try_out("node7").await.expect_err("an unknown key").to_string();
    assert!(said.contains("s3://traces/x refuses: ") && said.contains("AWS_SECRET_ACCESS_KEY"), "{said}");
    assert!(!said.contains(TOKEN) && !said.contains("Signature="), "{said}");
}

/// A server that answers every request like S3 answers a wrong signature.
fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let body = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>Check your key.</Message>\
                        <AWSAccessKeyId>AKIAPLANTED</AWSAccessKeyId><StringToSign>AWS4-HMAC of all</StringToSign></Error>";
            let answer = format!(
                "HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn what_s3_repeats_of_a_signature_is_not_repeated() {
    let variables = [
        ("AWS_ENDPOINT_URL", &*refusing()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "AKIAPLANTED"),
        ("AWS_SECRET_ACCESS_KEY", TOKEN),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .to_vec();
    let to = destination("s3://traces/x", Share::default(), variables);
    // A HEAD has no body, so its refusal has no words either; listing has.
    let said = to.store.list("prod").await.expect_err("refused").to_string();
    assert!(said.contains("refuses: SignatureDoesNotMatch: Check your key.;"), "{said}");
    assert!(!said.contains("AKIAPLANTED") && !said.contains("AWS4-HMAC"), "{said}");
}

#[tokio::test]
async fn without_a_key_it_is_said_which_variables_would_have_one() {
    // Nobody is an instance's metadata service here.
    let variables = vec![("AWS_METADATA_ENDPOINT".to_owned(), "http://127.0.0.1:1".to_owned())];
    let to = destination("s3://traces/x", Share::default(), variables);
    let said = to.store.try_out("node7").await.expect_err("no key").to_string();
    assert!(said.starts_with("s3://traces/x refuses: ") && said.contains("AWS_ACCESS_KEY_ID"), "{said}");
}

#[tokio::test]
async fn what_is_read_back_counts_in_the_rate_and_what_is_too_large_is_not_read() {
    let bucket = tempfile::tempdir().expect("a folder");
    let address = format!("file://{}", bucket.path().display());
    let store = Store::open(&address, client(), Vec::new()).expect("an address");
    let file = bucket.path().join("file");
    fs::write(&file, [7; 100]).expect("written");
    let begun = Instant::now();
    store.put_file("a", &file, Some(400)).await.expect("stored");
    assert!(begun.elapsed().as_secs_f64() >= 0.5, "a quarter of a second there and one back");
    fs::File::create(bucket.path().join("large")).and_then(|f| f.set_len((64 << 20) + 1)).expect("sparse");
    let why = store.get("large").await.expect_err("nobody reads that").to_string();
    assert!(why.contains("are not read"), "{why}");
    let why = store.get_stamped("large").await.expect_err("nor here").to_string();
    assert!(why.contains("are not read"), "{why}");
}
