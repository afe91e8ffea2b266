//! Kills the real agent (SIGKILL) at random points of captures of a double, by its own profiler, by
//! an nsys session and by a program, and counts what is lost.
//!
//! `SKEWTRAP_KILLS` says how often; the default keeps `cargo test` short; 200 take some minutes.
//! `SKEWTRAP_KILLS_OF` says in what circumstances ([`Circumstances::of_words`]): `log` (the default) or `no_log`, with
//! `full_disk` or `slow_disk`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::nsys::FAKE;
use crate::support::stage;
use crate::support::stage::SmallDisk;
use axum::http::HeaderMap;
use skewtrap::act::bundle::Bundles;
use skewtrap::act::state::State;
use skewtrap::demo::sglang::World;
use skewtrap::demo::shell::RunningDouble;
use skewtrap_core::incident::CaptureOutcome;

/// Each lane has a double and an agent of its own; a window that was killed costs it a quiet time.
const LANES: usize = 5;
/// After a window that was left open samples are distrusted until its export has settled.
const QUIET: Duration = Duration::from_secs(18);
const ONE_IDLE: [(u32, u32); 2] = [(0, 0), (40, 2)];
const EVEN: [(u32, u32); 2] = [(20, 0), (20, 0)];

/// Without a log no window opens beside an idle rank.
const ONE_BUSIER: [(u32, u32); 2] = [(8, 0), (40, 2)];

/// In what circumstances agents are killed.
#[derive(Clone, Copy, Debug, Default)]
struct Circumstances {
    no_log: bool,
    /// From each start of a window on until the next agent has closed it, the disk of the state is full.
    full_disk: bool,
    /// Every write of the state takes its time.
    slow_disk: bool,
}

impl Circumstances {
    /// Of `no_log,full_disk`, say.
    fn of_words(words: &str) -> Self {
        let has = |word: &str| words.split([',', ' ']).any(|w| w == word);
        for word in words.split([',', ' ']).filter(|w| !w.is_empty()) {
            assert!(
                ["log", "no_log", "full_disk", "slow_disk"].contains(&word),
                "SKEWTRAP_KILLS_OF: {word}?"
            );
        }
        Self { no_log: has("no_log"), full_disk: has("full_disk"), slow_disk: has("slow_disk") }
    }
}

/// What a receiver got: every body under its key, in the order of arrival, with the number of the
/// agent that was alive then.
type Mail = Arc<Mutex<BTreeMap<String, Vec<(usize, String)>>>>;

#[derive(Debug, Default)]
struct Counts {
    kills: usize,
    starts: usize,
    attempts: usize,
    windows_left_open: usize,
    attempts_forgotten: usize,
    bundles: usize,
    bundles_lost_or_half_named: usize,
    messages: usize,
    messages_lost: usize,
    repeats: usize,
    /// Kills after which more than one message came again, and messages that came twice without any.
    repeats_too_many: usize,
    altered: usize,
    /// Which messages were lost, and how that is known.
    lost: Vec<String>,
    /// Why windows were refused, and how often.
    refused: BTreeMap<String, usize>,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.starts += other.starts;
        self.attempts += other.attempts;
        self.windows_left_open += other.windows_left_open;
        self.attempts_forgotten += other.attempts_forgotten;
        self.bundles += other.bundles;
        self.bundles_lost_or_half_named += other.bundles_lost_or_half_named;
        self.messages += other.messages;
        self.messages_lost += other.messages_lost;
        self.repeats += other.repeats;
        self.repeats_too_many += other.repeats_too_many;
        self.altered += other.altered;
        self.lost.extend(other.lost.iter().cloned());
        for (reason, times) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += times;
        }
    }
}

/// Numbers that look random and are the same in every run.
struct TestRng(u64);

impl TestRng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn receiver(life: Arc<AtomicUsize>) -> (String, Mail) {
    let mail = Mail::default();
    let kept = mail.clone();
    let take = move |headers: HeaderMap, body: String| async move {
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        let life = life.load(Ordering::SeqCst);
        kept.lock().unwrap().entry(key).or_default().push((life, body));
        // Slow enough that a kill falls between the delivery and the agent's knowing of it.
        tokio::time::sleep(Duration::from_millis(20)).await;
        "ok"
    };
    (stage::hook(axum::routing::post(take)).await, mail)
}

/// How a lane captures.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Http,
    Nsys,
    Command,
}

impl Kind {
    fn of_lane(lane: usize) -> Self {
        match lane % LANES {
            3 => Self::Nsys,
            4 => Self::Command,
            _ => Self::Http,
        }
    }

    fn capture(self, at: &str) -> String {
        match self {
            Self::Http => format!(
                "http: {{ output_dir: '{at}/profiles', num_steps: 20, deadline: 2s, accept_risk: [server_timer] }}"
            ),
            Self::Nsys => "nsys: { session: mine, duration: 500ms }".into(),
            Self::Command => {
                format!("command: {{ argv: ['{at}/program', '{{output_dir}}'], time_limit: 2s }}")
            }
        }
    }
}

/// Marks every process of a lane.
const LANE: &str = "SKEWTRAP_TEST_LANE";

struct Lane {
    kind: Kind,
    of: Circumstances,
    /// What the state lies on, where it is to be full.
    disk: Option<SmallDisk>,
    dir: PathBuf,
    double: RunningDouble,
    mail: Mail,
    /// How many agents have lived.
    life: Arc<AtomicUsize>,
}

impl Lane {
    async fn of(kind: Kind, of: Circumstances, dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("profiles")).unwrap();
        let disk = of.full_disk.then(|| {
            SmallDisk::over(&dir.join("state"), 6 << 20).expect("a file system can be mounted here")
        });
        let double = stage::play(World::new(stage::config(&ONE_IDLE), stage::begin()), dir).await;
        let life = Arc::new(AtomicUsize::new(0));
        let (hook, mail) = receiver(life.clone()).await;
        let (at, url) = (dir.display(), &double.url);
        let capture = kind.capture(&at.to_string());
        let logs = if of.no_log { String::new() } else { format!(", logs: ['{at}/server.log']") };
        let text = format!(
            "targets: [{{ name: server, url: '{url}'{logs} }}]
rules:
  - name: crash-skew
    signal: load
    across: dp_rank
    within: [target, role]
    trigger: {{ max_over_mean: 1.2, for: 0s }}
    clear: {{ max_over_mean: 1.2, for: 0s }}
    min_mean: 1
    capture: {{ {capture} }}
    limits: {{ cooldown: 0s, captures: 100000, per: 24h }}
    notify: [hook]
budget: {{ stalled: 240h, bytes: 1000GiB, windows: 100000 }}
storm_cap: {{ incidents: 100000, per: 1s }}
keep: {{ incidents: 100000, min_free: 1MiB }}
receivers: [{{ name: hook, webhook: {{ url: '{hook}' }} }}]
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:0
"
        );
        std::fs::write(dir.join("skewtrap.yaml"), text).unwrap();
        // A program that starts another one, so that killing it alone would leave something.
        let program = format!(
            "#!/bin/sh\necho $$ >>'{at}/starts'\nsleep 1.2 &\necho half >\"$1/out.txt\"\nsleep 0.6\necho whole >\"$1/out.txt\"\n"
        );
        std::fs::write(dir.join("program"), program).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.join("program"), executable).unwrap();
        let lane = Self { kind, of, disk, dir: dir.to_owned(), double, mail, life };
        let session = ["fake", "session", "7", "mine", "Launched"];
        assert!(lane.command(Path::new(FAKE)).args(session).status().unwrap().success());
        lane
    }

    /// A command that finds the fake nsys, and is known to be of this lane.
    fn command(&self, program: &Path) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(program);
        command
            .env(LANE, &self.dir)
            .env("FAKE_NSYS_STATE", self.dir.join("nsys"))
            .env("TMPDIR", &self.dir)
            .env("PATH", format!("{}:{path}", Path::new(FAKE).parent().unwrap().display()));
        command
    }

    fn agent(&self) -> Child {
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.join("agent.log")).unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_skewtrap"));
        let mut command = match self.of.slow_disk {
            false => self.command(binary),
            // Every write waits for 20 ms. The tracer is not the agent's parent (-D), so that the agent is
            // what is killed.
            true => {
                let mut traced = self.command(Path::new("strace"));
                traced.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64,fdatasync,fsync"]);
                traced.args(["-e", "inject=pwrite64,fdatasync,fsync:delay_enter=20000"]);
                traced.arg(binary);
                traced
            }
        };
        command
            .args(["run", "--config"])
            .arg(self.dir.join("skewtrap.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn starts(&self) -> usize {
        let lines = |file: &str, front: &str| {
            let text = std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
            text.lines().filter(|l| l.starts_with(front)).count()
        };
        match self.kind {
            Kind::Http => self.double.requests().iter().filter(|r| r.path == "/start_profile").count(),
            Kind::Nsys => lines("nsys/calls.log", "start"),
            Kind::Command => lines("starts", ""),
        }
    }

    /// The state as a dead agent left it: ids of attempts, and undelivered messages.
    fn left(&self) -> (BTreeSet<String>, BTreeMap<String, String>) {
        let state = State::open(&self.dir.join("state")).unwrap();
        // On a busy machine a window takes longer than was predicted, and then no other would be killed. A disk
        // that is full may have no room for this.
        let _ = state.resume(None);
        let attempts = state.ledger().unwrap().attempts.into_iter().map(|a| a.id).collect();
        let parcels = state.undelivered().unwrap().into_iter();
        (
            attempts,
            parcels.map(|p| (p.key.to_string(), String::from_utf8_lossy(&p.body).into_owned())).collect(),
        )
    }

    fn uneven(&self) -> [(u32, u32); 2] {
        if self.of.no_log { ONE_BUSIER } else { ONE_IDLE }
    }

    /// Runs an agent until a point that the dice choose, and kills it.
    async fn kill_one(&self, rng: &mut TestRng) {
        let before = self.starts();
        let early = rng.below(4) == 0;
        // What fires already is not captured again by the next agent: it must see it begin.
        if !early {
            stage::set_load(&self.double, EVEN);
        }
        let asked = self.asked();
        let mut agent = self.agent();
        if early {
            tokio::time::sleep(Duration::from_millis(rng.below(1_500))).await;
        } else {
            // Until the window is asked for, or for so long that a recovery alone is hit.
            let until = tokio::time::Instant::now() + QUIET;
            while self.asked() < asked + 3 && tokio::time::Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // What an agent before had left open is closed by now: there is room again.
            if self.disk.is_some() {
                let _ = std::fs::remove_file(self.dir.join("state/filler"));
            }
            stage::set_load(&self.double, self.uneven());
            while self.starts() == before && tokio::time::Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if let Some(disk) = self.disk.as_ref().filter(|_| self.starts() > before) {
                disk.fill();
            }
            tokio::time::sleep(Duration::from_millis(rng.below(1_600))).await;
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
        // What the dead one had sent is taken before the next one lives.
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    async fn run(&self, kills: usize, seed: u64) -> Counts {
        let mut rng = TestRng(seed);
        let mut counts = Counts { kills, ..Counts::default() };
        let (mut attempts, mut posted) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..kills {
            self.kill_one(&mut rng).await;
            let (now, parcels) = self.left();
            counts.attempts_forgotten += attempts.difference(&now).count();
            attempts = now;
            posted.extend(parcels.into_keys());
        }
        self.settle().await;
        self.count(&mut counts, &attempts, &posted).await;
        counts
    }

    /// How often the server was asked for its ranks' load.
    fn asked(&self) -> usize {
        self.double.requests().iter().filter(|r| r.path.starts_with("/v1/loads")).count()
    }

    /// A last agent on an even load closes, completes and delivers what is left, and is told to end.
    async fn settle(&self) {
        stage::set_load(&self.double, EVEN);
        let mut agent = self.agent();
        // What is left of a full disk is room for the end of what is open, and not for hundreds of messages.
        if self.disk.is_some() {
            tokio::time::sleep(Duration::from_secs(6)).await;
            let _ = std::fs::remove_file(self.dir.join("state/filler"));
        }
        // Its state is locked while it lives, so that nothing tells when it is done.
        tokio::time::sleep(Duration::from_secs(12)).await;
        Command::new("kill").args(["-TERM", &agent.id().to_string()]).status().unwrap();
        agent.wait().unwrap();
    }

    async fn count(&self, counts: &mut Counts, attempts: &BTreeSet<String>, posted: &BTreeSet<String>) {
        let state = State::open(&self.dir.join("state")).unwrap();
        let ledger = state.ledger().unwrap();
        counts.starts = self.starts();
        counts.attempts = ledger.attempts.len();
        let ids: BTreeSet<String> = ledger.attempts.iter().map(|a| a.id.clone()).collect();
        counts.attempts_forgotten +=
            attempts.difference(&ids).count() + counts.starts.saturating_sub(ids.len());
        let open = self.open_windows().await
            + state.open_windows().unwrap().iter().filter(|w| w.unproven.is_none()).count();
        counts.windows_left_open = open + ledger.open().count();
        let root = self.dir.join("incidents");
        let bundles = Bundles::open(&root, state.agent().clone()).unwrap();
        let incidents: BTreeSet<String> = ledger.attempts.iter().map(|a| a.incident.clone()).collect();
        for incident in &incidents {
            let whole = bundles.read(incident);
            let settled = whole.is_some_and(|r| !matches!(r.incident.capture, CaptureOutcome::Open { .. }));
            counts.bundles_lost_or_half_named += usize::from(!settled);
        }
        for entry in std::fs::read_dir(&root).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            counts.bundles += 1;
            counts.bundles_lost_or_half_named +=
                usize::from(name.starts_with('.') || name.ends_with(".incomplete"));
        }
        let log = std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
        for reason in log.split("reason=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            *counts.refused.entry(reason.to_owned()).or_default() += 1;
        }
        self.count_mail(counts, posted, &incidents);
        counts.lost.extend(state.undelivered().unwrap().iter().map(|row| format!("{} waits still", row.key)));
        counts.messages_lost = counts.lost.len();
    }

    fn count_mail(&self, counts: &mut Counts, posted: &BTreeSet<String>, incidents: &BTreeSet<String>) {
        let mail = self.mail.lock().unwrap();
        counts.messages = mail.len();
        let mut again: BTreeMap<usize, usize> = BTreeMap::new();
        for (key, arrivals) in mail.iter() {
            counts.repeats += arrivals.len() - 1;
            for two in arrivals.windows(2) {
                // Its receiver had it, and the agent was killed before it knew that.
                *again.entry(two[0].0).or_default() += 1;
                counts.repeats_too_many += usize::from(two[0].0 == two[1].0);
            }
            let (_, first) = &arrivals[0];
            if let Some((_, other)) = arrivals.iter().find(|(_, body)| body != first) {
                counts.altered += 1;
                eprintln!("{key} was altered from\n{first}\nto\n{other}");
            }
        }
        counts.repeats_too_many += again.values().filter(|repeats| **repeats > 1).count();
        // What was in the outbox at some kill must have come.
        let came = |key: &&String| mail.keys().any(|k| key.ends_with(k.as_str()));
        let lost = posted.iter().filter(|key| !came(key));
        counts.lost.extend(lost.map(|key| format!("{key} was in the outbox and never came")));
        // And of every window people were told how it ended.
        let told = |incident: &&String| {
            ["captured", "verdict"].iter().any(|update| mail.contains_key(&format!("{incident}:{update}")))
        };
        let untold = incidents.iter().filter(|incident| !told(incident));
        counts.lost.extend(untold.map(|incident| format!("{incident} has no result")));
    }

    async fn open_windows(&self) -> usize {
        match self.kind {
            Kind::Http => {}
            Kind::Nsys => {
                let state = std::fs::read_to_string(self.dir.join("nsys/sessions/7/state")).unwrap();
                return usize::from(state.trim() != "Launched");
            }
            // The agent itself has ended by now.
            Kind::Command => {
                let lane = self.dir.display().to_string();
                return skewtrap::observe::process::marked(LANE, &lane).len();
            }
        }
        let (answer, waits) = tokio::sync::oneshot::channel();
        self.double.change(move |engine, _| {
            if let skewtrap::demo::ServerKind::Sglang(world) = engine {
                let _ = answer.send(world.open_windows().len());
            }
            Vec::new()
        });
        waits.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_anywhere_leaves_no_window_open_and_loses_nothing() {
    let of = Circumstances::of_words(&std::env::var("SKEWTRAP_KILLS_OF").unwrap_or_default());
    let kills: usize = std::env::var("SKEWTRAP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let dir = tempfile::tempdir().unwrap();
    let mut lanes = tokio::task::JoinSet::new();
    // Many kills are shared by more lanes, or they would take hours of quiet times.
    let count = if kills > 50 { 2 * LANES } else { LANES };
    for lane in 0..count {
        let at = dir.path().join(format!("lane{lane}"));
        // The other kinds need no log, and have nothing to do with what the agent sees of the server.
        let kind = if of.no_log { Kind::Http } else { Kind::of_lane(lane) };
        lanes.spawn(async move {
            let counts = Lane::of(kind, of, &at).await.run(kills.div_ceil(count), 7 + lane as u64).await;
            eprintln!("{kind:?}: {counts:?}");
            counts
        });
    }
    let mut all = Counts::default();
    lanes.join_all().await.iter().for_each(|counts| all.add(counts));
    eprintln!("{all:#?}");
    let failed = all.windows_left_open
        + all.attempts_forgotten
        + all.bundles_lost_or_half_named
        + all.messages_lost
        + all.repeats_too_many
        + all.altered;
    if failed > 0 {
        let kept = dir.keep();
        panic!("something was lost, see {}: {all:?}", kept.display());
    }
    assert!(all.starts * 5 >= all.kills * 2, "the kills mostly fell outside of captures: {all:?}");
}
