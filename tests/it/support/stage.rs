//! A double behind a real port, and everything that a capture of it needs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use skewtrap::act::bundle::Bundles;
use skewtrap::act::nsys::Nsys;
use skewtrap::act::state::State;
use skewtrap::act::state::StateError;
use skewtrap::agent::capture::{CaptureStore, Taken};
use skewtrap::agent::cost::Meter;
use skewtrap::agent::window::{Links, Status, TargetHandle, WindowSignal};
use skewtrap::clock::Clock;
use skewtrap::demo::ServerKind;
use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::sglang::{Config, Version, World};
use skewtrap::demo::shell::{self, RunningDouble};
use skewtrap::http::{Server, client};
use skewtrap::observe;
use skewtrap_core::capture::Limits;
use skewtrap_core::capture::admit::{CapturePlan, Policy, admit};
use skewtrap_core::capture::captured::Captured;
use skewtrap_core::capture::facts::{Facts, Folder, HealthAnswer, Sizes};
use skewtrap_core::capture::governor::{AttemptEnd, Budget, CaptureRequest};
use skewtrap_core::capture::line::ProfileLine;
use skewtrap_core::capture::path_map::PathMap;
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::capture::stall::UsualIntervals;
use skewtrap_core::capture::window::{SettlingTime, WindowPhase};
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use skewtrap_core::finding::{Finding, Measured, Side, Statistic};
use skewtrap_core::incident::{CaptureOutcome, Incident, Record};
use skewtrap_core::signal::log_line::LineContent;
use skewtrap_core::signal::log_reader::{Arrival, LogReader};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The double's time runs this much faster than the agent's.
pub const SPEED: f64 = 5.0;

pub fn begin() -> Time {
    Time::from_epoch_s(1_795_492_100.0)
}

/// A healthy SGLang 0.5.16 whose ranks have `(running, waiting)` requests.
pub fn config(load: &[(u32, u32)]) -> Config {
    let track = LoadTrack::constant(begin(), load);
    Config {
        health_takes: Duration::from_millis(50),
        ..Config::new(Version::V0_5_16, load.len() as u16, track)
    }
}

/// A process that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The agent that `skewtrap.yaml` in a folder is for; what it logs is added to `agent.log` there.
pub fn agent(dir: &Path) -> Running {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("agent.log")).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_skewtrap"))
        .args(["run", "--config"])
        .arg(dir.join("skewtrap.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    Running(child)
}

/// Waits up to a minute for what happens beside the agent of a folder; `else_told` says what was seen instead.
pub async fn until(dir: &Path, what: &str, holds: impl Fn() -> bool, else_told: impl Fn() -> String) {
    for _ in 0..1200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = std::fs::read_to_string(dir.join("agent.log")).unwrap_or_default();
    panic!("{what} never came: {}\n{log}", else_told());
}

/// A receiver of webhooks that answers with `take`; its URL.
pub async fn hook(take: axum::routing::MethodRouter) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let app = axum::Router::new().route("/hook", take);
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// The ranks' `(running, waiting)` requests from now on.
pub fn set_load(double: &RunningDouble, ranks: [(u32, u32); 2]) {
    double.change(move |engine, _| {
        if let ServerKind::Sglang(world) = engine {
            world.set_load(&ranks);
        }
        Vec::new()
    });
}

/// A capture that must be done.
pub fn done(outcome: &CaptureOutcome) -> &Captured {
    match outcome {
        CaptureOutcome::Done(captured) => captured,
        other => panic!("the capture is not done: {other:?}"),
    }
}

/// One that must have failed: why, and what it brought.
pub fn failed(outcome: &CaptureOutcome) -> (&str, Option<&Captured>) {
    match outcome {
        CaptureOutcome::Failed { why, captured } => (why, captured.as_ref()),
        other => panic!("the capture has not failed: {other:?}"),
    }
}

pub struct Stage {
    pub double: RunningDouble,
    pub dir: PathBuf,
    pub store: CaptureStore,
    pub handle: TargetHandle,
    pub sees_log: bool,
}

pub async fn play(engine: impl Into<ServerKind>, dir: &Path) -> RunningDouble {
    let stage =
        shell::Stage { begin: begin(), speed: SPEED, log_path: dir.join("server.log"), port: 0, end: None };
    shell::start(engine, stage).await.unwrap()
}

pub fn store(dir: &Path) -> CaptureStore {
    let state = State::open(&dir.join("state")).unwrap();
    let bundles = Bundles::open(&dir.join("incidents"), state.agent().clone()).unwrap();
    CaptureStore { state, bundles, clock: Clock::start(), pool: None }
}

pub fn handle(url: &str) -> TargetHandle {
    TargetHandle {
        server: Server::new(client::unpooled(None).unwrap(), url, None, None),
        target: "server".into(),
        instance: None,
        sizes: Sizes::default(),
        paths: PathMap::default(),
        default_dir: None,
        sees_log: true,
        logs: Vec::new(),
        nsys: Nsys::new("nsys"),
    }
}

impl Stage {
    pub async fn of(config: Config, dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("profiles")).unwrap();
        let double = play(World::new(config, begin()), dir).await;
        let (store, mut handle) = (store(dir), handle(&double.url));
        handle.instance = observe::server::facts(&handle.server, 1).await.ok().map(|facts| facts.instance);
        Self { double, dir: dir.to_owned(), store, handle, sees_log: true }
    }

    /// BASE, as the server sees it; here both see the same.
    pub fn base(&self) -> String {
        self.dir.join("profiles").display().to_string()
    }

    pub async fn facts(&self, busy: &[u16]) -> Facts {
        let info = observe::server::facts(&self.handle.server, busy.len() as u16).await.unwrap();
        let now = self.store.clock.now();
        let mut facts = Facts { server: Some(info), sees_log: self.sees_log, ..Facts::default() };
        facts.health.answered(HealthAnswer::Healthy(Duration::from_millis(50)), now);
        let seen = observe::artifact::room(Path::new(&self.base()));
        facts.folder_seen(Folder { server_path: self.base(), seen, at: now });
        facts.ranks_at = Some(now);
        busy.iter().for_each(|dp| facts.rank_seen(Rank::dp(*dp), true, now));
        facts
    }

    pub async fn grant(
        &self,
        spec: CaptureSpec,
        busy: &[u16],
        incident: &str,
    ) -> Result<CapturePlan, Refusal> {
        let facts = self.facts(busy).await;
        self.grant_of(spec, &facts, incident)
    }

    /// The same of these facts.
    pub fn grant_of(&self, spec: CaptureSpec, facts: &Facts, incident: &str) -> Result<CapturePlan, Refusal> {
        let limits = Limits { cooldown: Duration::ZERO, captures: 100, per: Duration::from_secs(86_400) };
        let request = CaptureRequest {
            rule: "dp-load-skew",
            limits: &limits,
            target: "server",
            group: "server",
            incident,
            firing: "dp_rank=1 high",
            may_predate_start: false,
            times_bound: 2.0,
        };
        let policy = Policy {
            budget: Budget {
                windows: 1000,
                stalled: Duration::from_secs(10_000),
                bytes: u64::MAX,
                ..Budget::default()
            },
            min_free: 0,
            output_dir: Some(self.base()),
            watch_only: false,
            awaits_state: false,
            bundles: None,
        };
        let ledger = self.store.state.ledger().unwrap();
        admit(&spec, &request, &ledger, facts, &policy, Some(1.0), self.store.clock.now())
            .map(|g| g.expect("it captures"))
    }

    /// Takes a window as the agent would, with the log followed.
    pub async fn capture(&self, spec: HttpWindow, busy: &[u16]) -> Kept {
        let grant = self.grant(CaptureSpec::Http(spec), busy, "i1").await.unwrap();
        self.take(&grant, CancellationToken::new()).await
    }

    pub async fn take(&self, grant: &CapturePlan, cancel: CancellationToken) -> Kept {
        let log = self.sees_log.then(|| self.double.log_path.clone());
        let (links, _status) = links(log, &self.store, cancel);
        let record =
            record(&grant.attempt.incident, self.store.state.agent().clone(), self.store.clock.now());
        take(&self.store, &self.handle, grant, record, std::future::ready(b"{}\n".to_vec()), links)
            .await
            .unwrap()
    }

    pub fn stops(&self) -> usize {
        self.double.requests().iter().filter(|r| r.path == "/stop_profile").count()
    }

    /// Asks the world behind the port.
    pub async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&mut World) -> T + Send + 'static) -> T {
        let (answer, waits) = tokio::sync::oneshot::channel();
        self.double.change(move |engine, _| {
            if let ServerKind::Sglang(world) = engine {
                let _ = answer.send(question(world));
            }
            Vec::new()
        });
        waits.await.expect("the double answers")
    }

    pub async fn is_closed_and_alive(&self) -> bool {
        self.ask(|world| world.is_up() && world.open_windows().is_empty()).await
    }
}

/// A capture as its incident knows it afterwards.
#[derive(Debug)]
pub struct Kept {
    /// As it is in the bundle.
    pub record: Record,
    pub end: AttemptEnd,
    pub trouble: Option<String>,
}

/// Takes a capture, and does with it what the agent's loop and its archive do.
pub async fn take(
    store: &CaptureStore,
    handle: &TargetHandle,
    grant: &CapturePlan,
    mut record: Record,
    evidence: impl Future<Output = Vec<u8>>,
    links: Links,
) -> Result<Kept, StateError> {
    record.incident.capture = CaptureOutcome::Open { since: store.clock.now(), expects: None };
    let taken = skewtrap::agent::capture::take(store, handle, grant, &record, evidence, links).await?;
    let (end, trouble) = match taken {
        Taken::Stored { capture, problem } => {
            record.complete(&capture);
            let _ = store.bundles.update(record.incident.clone());
            (capture.end, problem)
        }
        Taken::LeftOpen => {
            let now = store.clock.now();
            (
                AttemptEnd {
                    at: now,
                    stalled: Duration::ZERO,
                    bytes: 0,
                    unproven: None,
                    cost: None,
                    harm: None,
                },
                None,
            )
        }
    };
    Ok(Kept { record, end, trouble })
}

/// Links of a window; with a log, its profiling lines are heard.
pub fn links(
    log: Option<PathBuf>,
    store: &CaptureStore,
    cancel: CancellationToken,
) -> (Links, watch::Receiver<Status>) {
    let (tell, signals) = mpsc::channel(1024);
    let from = store.clock.now();
    let (status, shown) =
        watch::channel(Status { phase: WindowPhase::Starting, settling: SettlingTime::opened(from) });
    if let Some(log) = log {
        let skip = std::fs::metadata(&log).map_or(0, |m| m.len());
        tokio::spawn(follow(log, skip as usize, tell));
    }
    let meter = Meter::new(store.clock, Duration::from_millis(50), UsualIntervals::new());
    (Links { signals, status, meter, cancel, lease: None }, shown)
}

async fn follow(log: PathBuf, mut read: usize, tell: mpsc::Sender<WindowSignal>) {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let mut reader = LogReader::new(jiff::tz::TimeZone::UTC);
    loop {
        tick.tick().await;
        let bytes = std::fs::read(&log).unwrap_or_default();
        let new = &bytes[read.min(bytes.len())..];
        let Some(end) = new.iter().rposition(|b| *b == b'\n') else { continue };
        for line in new[..end].split(|b| *b == b'\n') {
            let line = reader.read(line, Arrival::Recorded).line;
            let heard = match &line.content {
                LineContent::Profile(profile) => {
                    WindowSignal::Line { rank: line.rank, line: ProfileLine::from(&**profile) }
                }
                LineContent::Fatal(words) => WindowSignal::Dying(String::from_utf8_lossy(words).into_owned()),
                _ => continue,
            };
            if tell.send(heard).await.is_err() {
                return;
            }
        }
        read += end + 1;
    }
}

pub fn record(id: &str, agent: Arc<str>, now: Time) -> Record {
    let finding = Finding {
        onset_error_s: 0.5,
        measured: Some(Measured {
            statistic: Statistic::MaxOverMean,
            signal: "load".into(),
            value: 2.1,
            bound: 1.5,
            members_signal: None,
        }),
        ..Finding::of(Rank::dp(1).labels(), Side::High, now)
    };
    let incident = Incident::new(id.into(), "dp-load-skew".into(), "server".into(), now, finding);
    Record::new(agent, incident)
}

/// A window whose deadline is a second.
pub fn short() -> HttpWindow {
    HttpWindow { deadline: Duration::from_secs(1), ..HttpWindow::default() }
}

/// A file system of so many bytes, mounted over a folder as long as this lives.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, said loudly, where this user may not mount.
    pub fn over(folder: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let size = format!("size={bytes},mode=0777");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder)
            .stderr(std::process::Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(folder.to_owned()));
        }
        eprintln!("SKIPPED: a disk that is full (no tmpfs can be mounted here)");
        None
    }

    /// Writes until nothing more fits.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    }
}

impl SmallDisk {
    /// From now on nothing on it can be changed or deleted.
    pub fn read_only(&self) {
        let mut mount = std::process::Command::new("mount");
        assert!(mount.args(["-o", "remount,ro"]).arg(&self.0).status().unwrap().success());
    }

    /// A folder above it was renamed.
    pub fn is_now_at(&mut self, folder: PathBuf) {
        self.0 = folder;
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the test's own files in it are still open.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
