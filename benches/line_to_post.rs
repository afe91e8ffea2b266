//! The time from a line appended to a log to `POST /start_profile` at the server: `cargo bench --bench line_to_post`.
//!
//! The real binary watches sixteen doubles of SGLang, each beside a log of its own, under a rule with
//! `for: 0s`. One line that shows a skew is written, and the time until the double has the request is
//! measured. Everything between counts: waking up, reading, evaluating, the governor, writing the
//! attempt to the state (with fsync), connecting. Run with the state in memory and on disk, on logs that are quiet
//! and on logs of 130 lines a second, which are read every 20 ms.
//! `SKEWTRAP_ROUNDS` says how often each server is tried (default 8, about 25 s each).
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::sglang::{Config, ExportCost, Version, World};
use skewtrap::demo::shell::{self, RunningDouble};
use skewtrap_trace::time::Time;

const SERVERS: usize = 16;
/// The window, its export, and the time in which samples after it do not count.
const ROUND: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let rounds = std::env::var("SKEWTRAP_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let on_disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (name, root) in [("state on tmpfs", Path::new("/dev/shm")), ("state on disk", on_disk)] {
        if !root.is_dir() {
            println!("SKIPPED: {name} ({} is not there)", root.display());
            continue;
        }
        for is_busy in [false, true] {
            let mut delays = measured(root, rounds, is_busy).await;
            delays.sort_unstable();
            let at =
                |share: f64| delays[((delays.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
            println!(
                "{name}, {}: {} of {} windows; median {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
                if is_busy { "busy log" } else { "quiet log" },
                delays.len(),
                rounds * SERVERS,
                at(0.5),
                at(0.9),
                at(0.99),
                at(1.0)
            );
        }
    }
}

struct Server {
    double: RunningDouble,
    log: PathBuf,
}

impl Server {
    async fn of(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let begin = Time::from_epoch_s(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64());
        let load = LoadTrack::constant(begin, &[(9, 0), (9, 0), (9, 0), (9, 0)]);
        let config = Config {
            health_takes: Duration::from_millis(50),
            export: ExportCost {
                base: Duration::from_millis(100),
                per_step: Duration::ZERO,
                ..ExportCost::default()
            },
            ..Config::new(Version::V0_5_16, 4, load)
        };
        let stage = shell::Stage { begin, speed: 1.0, log_path: dir.join("server.log"), port: 0, end: None };
        let double = shell::start(World::new(config, begin), stage).await.unwrap();
        let log = dir.join("skew.log");
        std::fs::write(&log, "").unwrap();
        Self { double, log }
    }

    /// Writes one line that shows a skew, and waits for the request. A group is evaluated
    /// at most every 100 ms, so the line is written when the last evaluation is longer ago.
    async fn delay(&self) -> Option<Duration> {
        self.even();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = self.starts().len();
        let written = self.double.clock.now();
        self.write(&[(2, 90)]);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            // Not often: going through all requests takes processor time from what is measured.
            tokio::time::sleep(Duration::from_millis(100)).await;
            if let Some(at) = self.starts().get(before) {
                return Some(at.since(written));
            }
        }
        None
    }

    /// The same while the log is busy with lines of the other ranks, 130 a second.
    async fn delay_when_busy(&self) -> Option<Duration> {
        let others = async {
            for rank in [0, 1, 3].into_iter().cycle() {
                self.write(&[(rank, 9)]);
                tokio::time::sleep(Duration::from_micros(7_700)).await;
            }
        };
        tokio::select! {
            delay = self.delay() => delay,
            () = others => None,
        }
    }

    fn even(&self) {
        self.write(&[(0, 9), (1, 9), (2, 9), (3, 9)]);
    }

    /// Appends a line for each `(rank, running requests)`, all at once.
    fn write(&self, ranks: &[(u16, u32)]) {
        let stamp = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S");
        let line = |(dp, running): &(u16, u32)| {
            format!("[{stamp} DP{dp}] Decode batch, #running-req: {running}, #queue-req: 0\n")
        };
        let lines: String = ranks.iter().map(line).collect();
        let mut log = OpenOptions::new().append(true).open(&self.log).unwrap();
        log.write_all(lines.as_bytes()).unwrap();
    }

    fn starts(&self) -> Vec<Time> {
        let requests = self.double.requests();
        requests.iter().filter(|r| r.path == "/start_profile").map(|r| r.at).collect()
    }
}

async fn measured(root: &Path, rounds: usize, is_busy: bool) -> Vec<Duration> {
    let dir = tempfile::tempdir_in(root).unwrap();
    std::fs::create_dir(dir.path().join("profiles")).unwrap();
    let mut servers = Vec::new();
    for i in 0..SERVERS {
        servers.push(Server::of(&dir.path().join(i.to_string())).await);
    }
    let config = dir.path().join("skewtrap.yaml");
    std::fs::write(&config, configuration(dir.path(), &servers)).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_skewtrap"))
        .args(["run", "--config"])
        .arg(&config)
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(root.join("line_to_post.log")).unwrap())
        .spawn()
        .unwrap();
    // Until every server was asked for its health and its version.
    let began = Instant::now();
    while began.elapsed() < ROUND {
        servers.iter().for_each(Server::even);
        tokio::time::sleep(Duration::from_millis(870)).await;
    }
    let mut delays = Vec::new();
    for _ in 0..rounds {
        let round = Instant::now();
        for server in &servers {
            delays.extend(if is_busy { server.delay_when_busy().await } else { server.delay().await });
        }
        let end = round.elapsed() + ROUND;
        while round.elapsed() < end {
            servers.iter().for_each(Server::even);
            tokio::time::sleep(Duration::from_millis(870)).await;
        }
    }
    Command::new("kill").args(["-TERM", &agent.id().to_string()]).status().unwrap();
    agent.wait().unwrap();
    assert!(!delays.is_empty(), "no window was opened; see {}", root.join("line_to_post.log").display());
    delays
}

fn configuration(dir: &Path, servers: &[Server]) -> String {
    let at = dir.display();
    let mut text = String::from("targets:\n");
    for (i, server) in servers.iter().enumerate() {
        let url = &server.double.url;
        writeln!(
            text,
            "  - {{ name: s{i}, url: '{url}', loads: false, metrics: false,
      logs: ['{at}/{i}/skew.log'] }}"
        )
        .unwrap();
    }
    write!(
        text,
        "rules:
  - name: skew
    signal: load
    across: dp_rank
    within: [target, role]
    trigger: {{ max_over_mean: 2, for: 0s }}
    clear: {{ max_over_mean: 1.5, for: 1s }}
    capture: {{ http: {{ output_dir: '{at}/profiles', num_steps: 5 }} }}
    limits: {{ cooldown: 0s, captures: 100000, per: 24h }}
budget: {{ stalled: 240h, bytes: 1000GiB, windows: 100000 }}
storm_cap: {{ incidents: 100000, per: 1s }}
keep: {{ incidents: 100000, min_free: 1MiB }}
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:0
"
    )
    .unwrap();
    text
}
