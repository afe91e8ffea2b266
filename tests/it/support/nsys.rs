//! A server that runs under an nsys, the fake one or the real one, and what a capture of it needs.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use skewtrap::act::nsys::Nsys;
use skewtrap::agent::capture::CaptureStore;
use skewtrap::agent::cost::Meter;
use skewtrap::agent::window::TargetHandle;
use skewtrap_core::capture::admit::{CaptureMethod, CapturePlan};
use skewtrap_core::capture::captured::Quality;
use skewtrap_core::capture::governor::Attempt;
use skewtrap_core::capture::{NsysSession, NsysWindow};
use skewtrap_core::incident::CaptureOutcome;
use tokio_util::sync::CancellationToken;

use super::stage;

/// Set for a child process that plays the server: the port it listens on is printed to this file.
pub const SERVER: &str = "SKEWTRAP_TEST_SERVER";

/// That test's name within this binary.
const SERVER_TEST: &str = "support::nsys::plays_the_server_when_asked";
/// The program that says and does what the real ones were seen to.
pub const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_nsys/nsys");

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
pub struct Wrapped {
    pub dir: tempfile::TempDir,
    pub store: CaptureStore,
    pub handle: TargetHandle,
    pub launcher: Child,
    pub program: PathBuf,
}

impl Wrapped {
    /// Starts `PROGRAM ARGS... server`. The real nsys loses its own agent now and then on a loaded
    /// machine, before anything of ours has happened: then it is launched again.
    pub fn start(program: &Path, args: &[&str]) -> Self {
        for _ in 0..2 {
            if let Some(wrapped) = Self::try_start(program, args) {
                return wrapped;
            }
        }
        Self::try_start(program, args).expect("the server comes up under nsys")
    }

    pub fn try_start(program: &Path, args: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port_file = dir.path().join("port");
        let log = std::fs::File::create(dir.path().join("launcher.log")).unwrap();
        let mut launcher = Command::new(program)
            .args(args)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", SERVER_TEST, "--nocapture"])
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
        let store = stage::store(dir.path());
        let mut handle = stage::handle(&format!("http://127.0.0.1:{port}"));
        handle.nsys = Nsys::new(program);
        handle.nsys.environment = vec![
            ("FAKE_NSYS_STATE".into(), dir.path().join("nsys").display().to_string()),
            ("TMPDIR".into(), dir.path().display().to_string()),
        ];
        Some(Self { dir, store, handle, launcher, program: program.to_owned() })
    }

    pub fn fake(args: &[&str]) -> Self {
        let program = Path::new(FAKE);
        Self::start(program, args)
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("nsys").join(name)
    }

    pub fn fault(&self, name: &str, value: &str) {
        std::fs::write(self.state(name), value).unwrap();
    }

    pub fn nsys(&self, args: &[&str]) {
        let status = Command::new(&self.program)
            .args(args)
            .env("FAKE_NSYS_STATE", self.dir.path().join("nsys"))
            .env("TMPDIR", self.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{args:?}");
    }

    /// What was run since the server was started: `start --session=7 ...`.
    pub fn calls(&self, command: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.state("calls.log")).unwrap();
        log.lines().filter(|l| l.starts_with(command)).map(str::to_owned).collect()
    }

    pub async fn window(&self, incident: &str, session: NsysSession) -> stage::Kept {
        self.window_of(incident, session, Duration::from_millis(300)).await
    }

    pub async fn window_of(&self, incident: &str, session: NsysSession, duration: Duration) -> stage::Kept {
        self.window_metered(incident, session, duration, None).await
    }

    /// One whose cost is measured by `meter`.
    pub async fn window_metered(
        &self,
        incident: &str,
        session: NsysSession,
        duration: Duration,
        meter: Option<Meter>,
    ) -> stage::Kept {
        self.window_until(incident, session, duration, meter, CancellationToken::new()).await
    }

    /// One whose agent ends with `cancel`.
    pub async fn window_until(
        &self,
        incident: &str,
        session: NsysSession,
        duration: Duration,
        meter: Option<Meter>,
        cancel: CancellationToken,
    ) -> stage::Kept {
        let spec = NsysWindow { session, duration, args: Vec::new(), accept_risk: Vec::new() };
        let now = self.store.clock.now();
        let attempt = Attempt {
            id: format!("{incident}/1"),
            rule: "r".into(),
            target: "server".into(),
            group: "server".into(),
            incident: incident.into(),
            firing: String::new(),
            at: now,
            times_bound: 1.0,
            over_at: None,
            end: None,
        };
        let grant = CapturePlan { attempt, method: CaptureMethod::Nsys(spec) };
        let record = stage::record(incident, self.store.state.agent().clone(), now);
        let (mut links, _shown) = stage::links(None, &self.store, cancel);
        links.meter = meter.unwrap_or(links.meter);
        stage::take(&self.store, &self.handle, &grant, record, std::future::ready(Vec::new()), links)
            .await
            .unwrap()
    }

    pub async fn fails(&self, incident: &str, session: NsysSession) -> String {
        let kept = self.window(incident, session).await;
        assert!(self.store.state.open_windows().unwrap().is_empty());
        match kept.record.incident.capture {
            CaptureOutcome::Failed { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }

    pub fn is_alive(&mut self) -> bool {
        self.launcher.try_wait().unwrap().is_none()
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        // The server is a grandchild: it is found by its port.
        if let Some(pid) = self.handle.server.port().and_then(skewtrap::observe::process::listener) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        let _ = self.launcher.wait();
    }
}

/// The port, once the server has written it; `None` when its launcher ends before.
pub fn wait_for(launcher: &mut Child, port_file: &Path) -> Option<String> {
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

pub fn report(kept: &stage::Kept) -> (PathBuf, Vec<String>) {
    match &kept.record.incident.capture {
        CaptureOutcome::Done(captured) => {
            assert_eq!((captured.quality, captured.files.len()), (Quality::Usable, 1), "{captured:?}");
            let bundle = PathBuf::from(kept.record.incident.bundle.clone().unwrap());
            (bundle.join(&captured.files[0].path), captured.notes.clone())
        }
        other => panic!("{other:?}\n{:?}", kept.record.exchanges),
    }
}
