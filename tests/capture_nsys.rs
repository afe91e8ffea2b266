//! Windows of nsys sessions: a fake nsys with every message that was seen, and the real one.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "capture/stage.rs"]
mod stage;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use skewtrap::act::nsys::Nsys;
use skewtrap::act::state::{OpenMethod, OpenWindow};
use skewtrap::agent::capture::{CaptureStore, StoredCapture, take};
use skewtrap::agent::nsys::{close, output_of};
use skewtrap::agent::window::TargetHandle;
use skewtrap_core::capture::admit::{CaptureMethod, CapturePlan};
use skewtrap_core::capture::captured::Quality;
use skewtrap_core::capture::governor::Attempt;
use skewtrap_core::capture::nsys::{Readiness, Session};
use skewtrap_core::capture::{NsysSession, NsysWindow};
use skewtrap_core::incident::CaptureOutcome;
use skewtrap_trace::time::Time;
use tokio_util::sync::CancellationToken;

/// Set for a child process that plays the server: the port it listens on is printed to this file.
const SERVER: &str = "SKEWTRAP_TEST_SERVER";

/// Not a test: with the variable set it is the server under nsys, which answers 200 to everything.
#[test]
fn plays_the_server_when_asked() {
    let Ok(file) = std::env::var(SERVER) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(format!("{file}.new"), listener.local_addr().unwrap().port().to_string()).unwrap();
    std::fs::rename(format!("{file}.new"), file).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
}

/// A server under an nsys, with all that a capture needs.
struct Wrapped {
    dir: tempfile::TempDir,
    desk: CaptureStore,
    site: TargetHandle,
    launcher: Child,
    program: PathBuf,
}

impl Wrapped {
    /// Starts `PROGRAM ARGS... server`. The real nsys loses its own agent now and then on a loaded
    /// machine, before anything of ours has happened: then it is launched again.
    fn start(program: &Path, args: &[&str]) -> Self {
        for _ in 0..2 {
            if let Some(wrapped) = Self::try_start(program, args) {
                return wrapped;
            }
        }
        Self::try_start(program, args).expect("the server comes up under nsys")
    }

    fn try_start(program: &Path, args: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port_file = dir.path().join("port");
        let log = std::fs::File::create(dir.path().join("launcher.log")).unwrap();
        let mut launcher = Command::new(program)
            .args(args)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "plays_the_server_when_asked", "--nocapture"])
            .env(SERVER, &port_file)
            .env("FAKE_NSYS_STATE", dir.path().join("nsys"))
            .env("TMPDIR", dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let port = wait_for(&mut launcher, &port_file)?;
        let desk = stage::desk(dir.path());
        let mut site = stage::site(&format!("http://127.0.0.1:{port}"));
        site.nsys = Nsys::new(program);
        site.nsys.environment = vec![
            ("FAKE_NSYS_STATE".into(), dir.path().join("nsys").display().to_string()),
            ("TMPDIR".into(), dir.path().display().to_string()),
        ];
        Some(Self { dir, desk, site, launcher, program: program.to_owned() })
    }

    fn fake(args: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nsys/nsys");
        Self::start(&program, args)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("nsys").join(name)
    }

    fn fault(&self, name: &str, value: &str) {
        std::fs::write(self.state(name), value).unwrap();
    }

    fn nsys(&self, args: &[&str]) {
        let status = Command::new(&self.program)
            .args(args)
            .env("FAKE_NSYS_STATE", self.dir.path().join("nsys"))
            .env("TMPDIR", self.dir.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{args:?}");
    }

    /// What was run since the server was started: `start --session=7 ...`.
    fn calls(&self, command: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.state("calls.log")).unwrap();
        log.lines().filter(|l| l.starts_with(command)).map(str::to_owned).collect()
    }

    async fn window(&self, incident: &str, session: NsysSession) -> StoredCapture {
        self.window_of(incident, session, Duration::from_millis(300)).await
    }

    async fn window_of(&self, incident: &str, session: NsysSession, duration: Duration) -> StoredCapture {
        let spec = NsysWindow { session, duration, args: Vec::new(), accept_risk: Vec::new() };
        let now = self.desk.clock.now();
        let attempt = Attempt {
            id: format!("{incident}/1"),
            rule: "r".into(),
            target: "server".into(),
            group: "server".into(),
            incident: incident.into(),
            firing: String::new(),
            at: now,
            badness: 1.0,
            over_at: None,
            end: None,
        };
        let grant = CapturePlan { attempt, means: CaptureMethod::Nsys(spec) };
        let record = stage::record(incident, self.desk.state.agent().clone(), now);
        let (links, _shown) = stage::links(None, &self.desk, CancellationToken::new());
        take(&self.desk, &self.site, &grant, record, std::future::ready(Vec::new()), links).await.unwrap()
    }

    async fn fails(&self, incident: &str, session: NsysSession) -> String {
        let kept = self.window(incident, session).await;
        assert!(self.desk.state.open_windows().unwrap().is_empty());
        match kept.record.incident.capture {
            CaptureOutcome::Failed { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }

    fn is_alive(&mut self) -> bool {
        self.launcher.try_wait().unwrap().is_none()
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        // The server is a grandchild: it is found by its port.
        if let Some(pid) = self.site.server.port().and_then(skewtrap::observe::process::listener) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        let _ = self.launcher.wait();
    }
}

/// The port, once the server has written it; `None` when its launcher ends before.
fn wait_for(launcher: &mut Child, port_file: &Path) -> Option<String> {
    for _ in 0..3_000 {
        if let Ok(port) = std::fs::read_to_string(port_file) {
            return Some(port);
        }
        if launcher.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

fn report(kept: &StoredCapture) -> (PathBuf, Vec<String>) {
    match &kept.record.incident.capture {
        CaptureOutcome::Done(captured) => {
            assert_eq!((captured.quality, captured.files.len()), (Quality::Usable, 1), "{captured:?}");
            let bundle = PathBuf::from(kept.record.incident.bundle.clone().unwrap());
            (bundle.join(&captured.files[0].path), captured.notes.clone())
        }
        other => panic!("{other:?}\n{:?}", kept.record.exchanges),
    }
}

#[tokio::test]
async fn the_targets_own_session_is_found_and_nobody_elses_is_touched() {
    let mut server = Wrapped::fake(&["launch", "--session-new=mine"]);
    server.nsys(&["fake", "session", "7", "theirs", "Launched"]);
    server.nsys(&["fake", "session", "8", "collecting", "Collection"]);
    let kept = server.window("i1", NsysSession::OfTarget).await;
    let (report, notes) = report(&kept);
    assert_eq!(std::fs::metadata(&report).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(notes.iter().any(|n| n.contains("treat it as a secret")), "{notes:?}");
    let (starts, stops) = (server.calls("start"), server.calls("stop"));
    assert_eq!((starts.len(), stops.len()), (1, 1));
    assert!(starts[0].ends_with("--force-overwrite=true --sample=none --cpuctxsw=none"), "{starts:?}");
    let id = stops[0].strip_prefix("stop --session=").unwrap();
    assert!(id != "7" && id != "8" && starts[0].contains(&format!("--session={id} -o /")), "{starts:?}");
    assert!(server.calls("shutdown").is_empty() && server.calls("cancel").is_empty());
    // A second window of the same life.
    self::report(&server.window("i2", NsysSession::Named("mine".into())).await);
    assert!(server.is_alive());
}

#[tokio::test]
async fn a_server_launched_as_the_howto_says_works_though_its_first_window_ignores_the_output() {
    let server = Wrapped::fake(&["profile", "--start-later=true", "-o", "sglang.out"]);
    let kept = server.window("i1", NsysSession::OfTarget).await;
    let (report, _) = report(&kept);
    assert_eq!(report.file_name().unwrap(), "sglang.out.nsys-rep");
    assert!(report.exists());
}

#[tokio::test]
async fn every_trouble_with_nsys_has_its_own_message_and_stops_nothing_of_others() {
    let mut server = Wrapped::fake(&["launch", "--session-new=mine"]);
    server.nsys(&["fake", "session", "8", "collecting", "Collection"]);
    let named = |name: &str| NsysSession::Named(name.into());
    let why = server.fails("i1", named("nobody")).await;
    assert!(why.starts_with("nsys knows no session nobody; it has "), "{why}");
    let why = server.fails("i2", named("collecting")).await;
    assert!(why.contains("somebody else collects or generates there"), "{why}");
    assert!(server.calls("start").is_empty() && server.calls("stop").is_empty());

    server.fault("importer_broken", "");
    let why = server.fails("i3", NsysSession::OfTarget).await;
    assert!(why.contains("The importer binary") && why.contains("QdstrmImporter -i"), "{why}");
    std::fs::remove_file(server.state("importer_broken")).unwrap();

    server.fault("permission", "");
    let why = server.fails("i4", NsysSession::OfTarget).await;
    assert!(why.contains("Permission denied"), "{why}");
    std::fs::remove_file(server.state("permission")).unwrap();

    server.fault("start_ignored", "");
    let stops = server.calls("stop").len();
    let why = server.fails("i5", NsysSession::OfTarget).await;
    assert!(why.starts_with("nsys did not begin to collect in session mine"), "{why}");
    assert_eq!(server.calls("stop").len(), stops, "what did not begin is not stopped");
    std::fs::remove_file(server.state("start_ignored")).unwrap();

    server.fault("start_stolen", "");
    let why = server.fails("i5b", NsysSession::OfTarget).await;
    assert!(why.contains("which somebody else has started; it is left alone"), "{why}");
    assert_eq!(server.calls("stop").len(), stops, "what is somebody else's is not stopped");
    std::fs::remove_file(server.state("start_stolen")).unwrap();
    server.nsys(&["stop", "--session=mine"]);

    server.fault("stop_ignored", "");
    let kept = server.window("i6", NsysSession::OfTarget).await;
    assert!(kept.end.unproven.is_some_and(|why| why.contains("stop it by hand: nsys stop --session=")));
    assert!(server.is_alive());
}

#[tokio::test]
async fn a_disk_that_is_full_in_the_middle_of_a_report_is_named_and_what_there_is_is_kept() {
    let mut server = Wrapped::fake(&["launch", "--session-new=mine"]);
    server.fault("disk_full", "");
    let kept = server.window("i1", NsysSession::OfTarget).await;
    let CaptureOutcome::Failed { why, captured: Some(captured) } = kept.record.incident.capture else {
        panic!("{:?}", kept.record.incident.capture)
    };
    assert!(why.contains("No space left on device") && why.contains("free some space first"), "{why}");
    assert_eq!((captured.files[0].path.as_str(), captured.files[0].whole), ("traces/window.qdstrm", false));
    assert!(server.desk.state.open_windows().unwrap().is_empty() && server.is_alive());
    let left: Vec<_> = std::fs::read_dir(server.desk.bundles.root()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "nothing lies beside the bundle: {left:?}");
}

#[tokio::test]
async fn a_session_that_the_agent_does_not_see_is_told_with_the_tmpdir_to_use() {
    let mut server = Wrapped::fake(&["launch", "--session-new=mine"]);
    let theirs = server.dir.path().display().to_string();
    // Sessions are files below TMPDIR: under another one there are none.
    let elsewhere = server.dir.path().join("elsewhere").display().to_string();
    server.site.nsys.environment =
        vec![("FAKE_NSYS_STATE".into(), elsewhere.clone()), ("TMPDIR".into(), elsewhere.clone())];
    let why = server.fails("i1", NsysSession::OfTarget).await;
    assert!(why.contains("nsys shows the agent no session of it"), "{why}");
    let wanted = format!(
        "its TMPDIR is {theirs} and the agent's is {elsewhere}, so start the agent with TMPDIR={theirs}"
    );
    assert!(why.contains(&wanted), "{why}");
    assert!(server.calls("start").is_empty() && server.is_alive());
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_an_nsys_window_leaves_nothing_running() {
    let server = Wrapped::fake(&["launch", "--session-new=mine"]);
    let (kept, ()) =
        tokio::join!(server.window_of("i1", NsysSession::OfTarget, Duration::from_secs(2)), async {
            while server.calls("start").is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            let pid = server.site.server.port().and_then(skewtrap::observe::process::listener).unwrap();
            Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
        });
    let CaptureOutcome::Failed { why, .. } = kept.record.incident.capture else {
        panic!("it cannot be done")
    };
    assert!(why.starts_with("the server went away in the middle of the window"), "{why}");
    assert_eq!(kept.end.unproven, None);
    assert!(server.desk.state.open_windows().unwrap().is_empty());
}

#[tokio::test]
async fn a_stop_that_took_nothing_is_sent_again_and_a_list_that_fails_proves_nothing() {
    let server = Wrapped::fake(&["launch", "--session-new=mine"]);
    server.fault("stop_lazy", "");
    report(&server.window("i1", NsysSession::OfTarget).await);
    assert_eq!(server.calls("stop").len(), 2);
    server.fault("list_broken", "");
    let kept = server.window("i2", NsysSession::OfTarget).await;
    let why = kept.end.unproven.unwrap();
    assert!(
        why.contains("its state cannot be read") && why.contains("Failed to connect to the daemon"),
        "{why}"
    );
    assert_eq!(server.calls("stop").len(), 3, "what was started is stopped all the same");
    std::fs::remove_file(server.state("list_broken")).unwrap();
    assert!(
        std::fs::read_to_string(server.state("sessions/").join(id_of(&server)).join("state"))
            .unwrap()
            .starts_with("Launched")
    );
}

fn id_of(server: &Wrapped) -> String {
    let mut ids = std::fs::read_dir(server.state("sessions")).unwrap().flatten();
    ids.next().unwrap().file_name().into_string().unwrap()
}

#[tokio::test]
async fn a_slow_generation_is_waited_for() {
    let server = Wrapped::fake(&["launch", "--session-new=mine"]);
    server.fault("slow_generation", "2");
    report(&server.window("i1", NsysSession::OfTarget).await);
}

#[tokio::test]
async fn a_server_that_is_not_under_nsys_and_an_nsys_that_is_not_there_are_said_with_what_to_do() {
    let mut server = Wrapped::start(Path::new("env"), &[]);
    server.site.nsys = Nsys::new("/nonexistent/nsys");
    let why = server.fails("i1", NsysSession::OfTarget).await;
    assert!(why.starts_with("nsys cannot be run (/nonexistent/nsys: "), "{why}");
    let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nsys/nsys");
    let environment = server.site.nsys.environment.clone();
    server.site.nsys = Nsys::new(fake);
    server.site.nsys.environment = vec![("FAKE_NSYS_STATE".into(), server.state("").display().to_string())];
    drop(environment);
    let why = server.fails("i2", NsysSession::OfTarget).await;
    assert!(why.contains("runs under no nsys session that can be proven; nsys has no session"), "{why}");
    assert!(why.contains("nsys profile --start-later=true"), "{why}");
}

/// The nsys of this machine; none is said loudly.
fn real_nsys() -> Option<PathBuf> {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|dir| dir.join("nsys")).find(|program| program.is_file())
    });
    if found.is_none() {
        eprintln!("SKIPPED: no nsys on PATH; scripts/install-nsys.sh FOLDER unpacks one");
    }
    found
}

#[tokio::test]
async fn the_real_nsys_takes_two_windows_of_a_live_process_without_ending_it() {
    let Some(program) = real_nsys() else { return };
    // A session that an earlier run left behind would keep the name from this one.
    let session = format!("--session-new=skewtrap-test-{}", std::process::id());
    let mut server = Wrapped::start(&program, &["launch", &session, "--trace=osrt"]);
    for incident in ["i1", "i2"] {
        let kept = server.window(incident, NsysSession::OfTarget).await;
        let (report, _) = report(&kept);
        let sqlite = server.dir.path().join(format!("{incident}.sqlite"));
        let (out, rep) = (sqlite.display().to_string(), report.display().to_string());
        server.nsys(&["export", "--type", "sqlite", "-o", &out, "-f", "true", &rep]);
        let database = rusqlite::Connection::open(&sqlite).unwrap();
        let strings: i64 =
            database.query_row("SELECT count(*) FROM StringIds", [], |row| row.get(0)).unwrap();
        assert!(strings > 100, "the export of a real window has strings: {strings}");
    }
    assert!(server.is_alive());
    assert_eq!(server.desk.state.ledger().unwrap().attempts.len(), 2);
}

/// A window that an agent left behind just as it started it.
fn left(session: &Session, sent_at: Time, granted: bool) -> OpenWindow {
    OpenWindow {
        attempt: "i1/1".into(),
        incident: "i1".into(),
        target: "server".into(),
        means: OpenMethod::Nsys { session: session.id.clone(), name: session.name.clone() },
        sent_at,
        granted,
    }
}

#[tokio::test]
async fn a_real_collection_that_was_left_behind_is_stopped_however_late_and_somebody_elses_never() {
    let Some(program) = real_nsys() else { return };
    let name = format!("skewtrap-left-{}", std::process::id());
    let server = Wrapped::start(&program, &["launch", &format!("--session-new={name}"), "--trace=osrt"]);
    let (nsys, clock) = (&server.site.nsys, server.desk.clock);
    let session = || async {
        let sessions = nsys.sessions().await.unwrap();
        sessions.into_iter().find(|s| s.name == name).unwrap()
    };
    let output = output_of(&server.desk, "i1", 1);
    server.desk.bundles.scratch("i1", 1).unwrap();
    let (ready, hour) = (session().await, Duration::from_secs(3600));

    // Ours began when ours was sent: the agent is back after an hour, and stops it at once.
    let sent_at = clock.now();
    nsys.start(&ready.id, &output, &[], sent_at).await.unwrap();
    assert_eq!(session().await.readiness(), Readiness::Collecting);
    if skewtrap::observe::process::collecting_since(&name).is_none() {
        eprintln!("SKIPPED: when a collection began (it cannot be seen here)");
        return nsys.stop(&ready.id, clock.now()).await.map(|_| ()).unwrap();
    }
    let came = close(nsys, &left(&ready, sent_at, false), &output, clock.now() + hour).await;
    assert_eq!((session().await.readiness(), came.unproven), (Readiness::Ready, None), "{:?}", came.failure);
    assert_eq!(came.artifacts.len(), 1, "its report is kept: {:?}", came.failure);

    // Somebody else's began an hour later, whether ours was seen to begin or not.
    let theirs = server.dir.path().join("theirs");
    nsys.start(&ready.id, &theirs, &[], clock.now()).await.unwrap();
    for granted in [false, true] {
        let came = close(nsys, &left(&ready, clock.now() - hour, granted), &output, clock.now()).await;
        let why = came.failure.unwrap();
        assert!(why.contains("that is somebody else's, and is left alone"), "{why}");
        // A start of ours that nobody saw take effect may still be on its way.
        let unproven = (!granted).then_some(why);
        assert_eq!((session().await.readiness(), came.unproven), (Readiness::Collecting, unproven));
    }
    nsys.stop(&ready.id, clock.now()).await.unwrap();
}
