//! What the agent takes of its machine: memory whatever comes, and memory, descriptors and threads over
//! a long time with faults.
//!
//! | variable | |
//! |---|---|
//! | `SKEWTRAP_FLOOD_MB` | megabytes of log in the flood (48); `.ci/long` sends 2,500 |
//! | `SKEWTRAP_SOAK_S`   | seconds of the soak (1,800), which only `--ignored` runs |

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};

use crate::support::agent::skewtrap;
use crate::support::stage::{self, Running, config, play, set_load};
use skewtrap::demo::ServerKind;
use skewtrap::demo::exchange::{HttpFault, HttpFaultKind};
use skewtrap::demo::sglang::{Faults, World};

const MB: u64 = 1 << 20;
/// More than idle, whatever comes.
const MORE: u64 = 64 * MB;

/// A line of `/proc/PID/status`, in bytes or as the number it is.
fn status_of(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of that name");
    let mut words = line.trim_start_matches(':').split_whitespace();
    let number: u64 = words.next().unwrap().parse().unwrap();
    if words.next() == Some("kB") { number << 10 } else { number }
}

fn descriptors_of(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

fn agent(dir: &Path, target: &str) -> Running {
    let at = dir.display();
    let text = format!(
        "targets: [{{ name: server, {target} }}]
rules:
  - name: skew
    signal: load
    trigger: {{ max_over_mean: 1.2, for: 0s }}
    clear: {{ max_over_mean: 1.2, for: 0s }}
    limits: {{ cooldown: 5s, captures: 100000, per: 24h }}
capture: {{ http: {{ output_dir: '{at}/profiles', num_steps: 5, deadline: 2s }} }}
budget: {{ stalled: 240h, bytes: 1000GiB, windows: 100000 }}
keep: {{ incidents: 50, min_free: 1MiB }}
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:0
"
    );
    fs::create_dir_all(dir.join("profiles")).unwrap();
    fs::write(dir.join("skewtrap.yaml"), text).unwrap();
    let errors = File::create(dir.join("agent.log")).unwrap();
    let mut command = skewtrap(dir);
    command.args(["run", "--config"]).arg(dir.join("skewtrap.yaml"));
    Running(command.stdout(Stdio::null()).stderr(errors).spawn().unwrap())
}

/// Waits until the memory of the process has not grown for two seconds; its highest so far.
async fn settled_memory(pid: u32) -> u64 {
    let (mut most, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(2) {
        let now = status_of(pid, "VmHWM");
        if now > most {
            (most, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    most
}

/// A body that never ends.
fn endless() -> Response {
    struct Endless;
    impl std::io::Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            into.fill(b'x');
            Ok(into.len())
        }
    }
    let reader = tokio_util::io::ReaderStream::with_capacity(EndlessAsync, 64 << 10);
    return Body::from_stream(reader).into_response();

    struct EndlessAsync;
    impl tokio::io::AsyncRead for EndlessAsync {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            into: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let room = into.remaining();
            std::io::Read::read_exact(&mut Endless, into.initialize_unfilled())?;
            into.advance(room);
            std::task::Poll::Ready(Ok(()))
        }
    }
}

/// A server of which every page is a trap: other ranks at each scrape, bodies without an end.
async fn hostile(labels: usize) -> String {
    let scrapes = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let app = axum::Router::new().fallback(move |uri: Uri| {
        let scrape = scrapes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            match uri.path() {
                "/metrics" => {
                    let mut page = String::from("# TYPE sglang:num_running_reqs gauge\n");
                    for rank in scrape * labels..(scrape + 1) * labels {
                        page += &format!(
                            "sglang:num_running_reqs{{dp_rank=\"{rank}\",engine_type=\"unified\"}} 7\n"
                        );
                    }
                    Bytes::from(page).into_response()
                }
                "/v1/loads" => {
                    let rank =
                        |i| format!("{{\"dp_rank\":{i},\"num_running_reqs\":7,\"num_waiting_reqs\":0}}");
                    let ranks: Vec<String> = (scrape * labels..(scrape + 1) * labels).map(rank).collect();
                    format!("{{\"version\":\"0.5.16\",\"loads\":[{}]}}", ranks.join(",")).into_response()
                }
                _ => endless(),
            }
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn number_of(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_log_takes_64_mb_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("server.log");
    let megabytes = number_of("SKEWTRAP_FLOOD_MB", 48);
    let line = |i: u64| {
        format!(
            "[2026-11-24 03:48:29 DP{}] Decode batch, #running-req: {i}, #token: 12, token usage: 0.10, cuda graph: True, gen throughput (token/s): 900.00, #queue-req: 2\n",
            i % 4
        )
    };
    let piece: String = (0..6_000).map(line).collect();
    let flood = |megabytes: u64| {
        let mut file = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        (0..megabytes * MB / piece.len() as u64).for_each(|_| file.write_all(piece.as_bytes()).unwrap());
    };
    File::create(&log).unwrap();
    let process = agent(dir.path(), "logs: [{ path: server.log, from_start: true }]");
    let pid = process.0.id();
    let idle = settled_memory(pid).await;
    // A burst, then what was written while nobody looked, with a line that never ends.
    flood(megabytes / 2);
    let burst = settled_memory(pid).await;
    drop(process);
    flood(megabytes / 2);
    File::options().append(true).open(&log).unwrap().set_len((megabytes + 64) * MB).unwrap();
    let process = agent(dir.path(), "logs: [{ path: server.log, from_start: true }]");
    let backlog = settled_memory(process.0.id()).await;
    println!(
        "idle {} MB, a burst {} MB, a backlog {} MB, of {megabytes} MB",
        idle / MB,
        burst / MB,
        backlog / MB
    );
    assert!(burst <= idle + MORE, "a burst takes {} MB more", (burst - idle) / MB);
    assert!(backlog <= idle + MORE, "a backlog takes {} MB more", (backlog - idle) / MB);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_ranks_at_every_scrape_and_bodies_without_an_end_take_64_mb_at_most() {
    let (calm, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    File::create(calm.path().join("server.log")).unwrap();
    let idle = {
        let process = agent(calm.path(), "logs: [server.log]");
        settled_memory(process.0.id()).await
    };
    let url = hostile(200_000).await;
    let process = agent(dir.path(), &format!("url: '{url}', metrics: '{url}/metrics', poll: 1s"));
    tokio::time::sleep(Duration::from_secs(8)).await;
    let most = settled_memory(process.0.id()).await;
    println!("idle {} MB, most {} MB", idle / MB, most / MB);
    assert!(most <= idle + MORE, "it takes {} MB more", (most.saturating_sub(idle)) / MB);
}

/// Faults that follow each other.
fn disturb(double: &skewtrap::demo::shell::RunningDouble, log: &Path, number: u64) {
    let faults = |change: fn(&mut Faults)| {
        double.change(move |engine, _| {
            if let ServerKind::Sglang(world) = engine {
                change(world.faults_mut());
            }
            Vec::new()
        });
    };
    match number % 8 {
        0 => double.kill(),
        1 => double.restart(),
        2 => faults(|f| {
            f.http =
                vec![HttpFault { path: "/start_profile".into(), kind: HttpFaultKind::ResetAfter, times: 2 }]
        }),
        3 => faults(|f| {
            f.http =
                vec![HttpFault { path: "/stop_profile".into(), kind: HttpFaultKind::Status(503), times: 2 }]
        }),
        4 => faults(|f| {
            f.http = vec![HttpFault { path: "/v1/loads".into(), kind: HttpFaultKind::NeverBefore, times: 5 }]
        }),
        5 => faults(|f| f.slow_export = Duration::from_secs(3)),
        6 => {
            faults(|f| f.slow_export = Duration::ZERO);
            // copytruncate.
            File::options().write(true).open(log).unwrap().set_len(0).unwrap();
        }
        _ => {
            let mut log = OpenOptions::new().append(true).open(log).unwrap();
            log.write_all(&[b'y'; 3 << 20]).unwrap();
            log.write_all(b"\n").unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Usage {
    memory: u64,
    descriptors: u64,
    threads: u64,
}

impl Usage {
    fn of(pid: u32) -> Self {
        Self {
            memory: status_of(pid, "VmRSS"),
            descriptors: descriptors_of(pid),
            threads: status_of(pid, "Threads"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "half an hour; .ci/long runs it"]
async fn over_a_long_time_with_faults_it_takes_no_more_of_its_machine() {
    let dir = tempfile::tempdir().unwrap();
    let seconds = number_of("SKEWTRAP_SOAK_S", 1_800);
    let double = play(World::new(config(&[(20, 0), (20, 0)]), stage::begin()), dir.path()).await;
    let log = dir.path().join("server.log");
    let url = &double.url;
    let process =
        agent(dir.path(), &format!("url: '{url}', metrics: '{url}/metrics', poll: 1s, logs: [server.log]"));
    let (pid, began) = (process.0.id(), Instant::now());
    let (mut start, mut most, mut faults, mut skewed) = (None, Usage::of(pid), 0, false);
    while began.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (now, second) = (Usage::of(pid), began.elapsed().as_secs());
        most.memory = most.memory.max(now.memory);
        most.descriptors = most.descriptors.max(now.descriptors);
        most.threads = most.threads.max(now.threads);
        // What it needs once is had by then: the rings of samples are full, ranks were compared.
        if second >= 300.min(seconds / 3) && start.is_none() {
            start = Some(now);
        }
        if second / 20 > faults && second + 60 < seconds {
            disturb(&double, &log, faults);
            faults += 1;
        }
        if second % 10 == 0 {
            skewed = !skewed;
            set_load(&double, if skewed { [(5, 0), (40, 2)] } else { [(20, 0), (20, 0)] });
        }
        if second % 60 == 0 {
            println!(
                "{second:5} s: {} MB, {} descriptors, {} threads",
                now.memory / MB,
                now.descriptors,
                now.threads
            );
        }
    }
    let (start, end) = (start.expect("it ran for some minutes"), Usage::of(pid));
    let windows = double.requests().iter().filter(|r| r.path == "/start_profile").count();
    println!("{seconds} s, {faults} faults, {windows} windows; start {start:?}, most {most:?}, end {end:?}");
    assert!(windows > 0, "no window was opened");
    assert!(most.memory <= 80 * MB, "{} MB", most.memory / MB);
    assert!(end.memory <= start.memory + 5 * MB, "{} MB more at the end", (end.memory - start.memory) / MB);
    assert!(end.descriptors <= start.descriptors + 4, "descriptors grew: {start:?} {end:?}");
    assert!(end.threads <= start.threads + 2, "threads grew: {start:?} {end:?}");
}
