//! The double's ranks in trouble: hung, silent in the log, slow on the host, and drained.

use std::time::Duration;

use serde_json::Value;
use skewtrap::demo::ServerKind;
use skewtrap::demo::exchange::Request;
use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::sglang::{Config, ExportCost, ExportLaw, Faults, Version, World};
use skewtrap::demo::simulated::Simulated;
use skewtrap_trace::time::Time;

const BUSY: [(u32, u32); 3] = [(12, 0), (12, 0), (12, 0)];

fn begin() -> Time {
    Time::from_epoch_s(1_795_492_100.0)
}

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn config(load: LoadTrack) -> Config {
    let law = Some(ExportLaw { bytes_per_step: 20e3, s_per_mb: vec![1.2; 3] });
    let export = ExportCost { law, ..ExportCost::default() };
    Config { export, log_ms: true, decode_log_interval: 10, ..Config::new(Version::V0_5_16, 3, load) }
}

fn server(config: Config) -> Simulated {
    let mut server = Simulated::new(World::new(config, begin()), begin());
    server.wait(seconds(1.0));
    server
}

fn faults(server: &mut Simulated, change: impl FnOnce(&mut Faults)) {
    let ServerKind::Sglang(world) = &mut server.engine else { unreachable!("these tests play SGLang") };
    change(world.faults_mut());
}

fn start(steps: u32) -> Request {
    let body = format!(
        r#"{{"output_dir":"/data","num_steps":{steps},"activities":["GPU"],"with_stack":false,"record_shapes":false}}"#
    );
    Request::post("/start_profile", &body)
}

/// The running requests of each rank in `/v1/loads`, and how old they are, seconds.
fn loads(server: &mut Simulated) -> Vec<(u64, f64)> {
    let answer = server.ask(&Request::get("/v1/loads")).expect("a snapshot is answered");
    let page: Value = serde_json::from_str(&answer.body).expect("it is JSON");
    let now = server.now.epoch_s();
    let of = |rank: &Value| {
        (rank["num_running_reqs"].as_u64().unwrap(), now - rank["timestamp"].as_f64().unwrap())
    };
    page["loads"].as_array().unwrap().iter().map(of).collect()
}

fn lines_of(server: &Simulated, rank: &str) -> usize {
    server.lines_with("batch").iter().filter(|line| line.contains(rank)).count()
}

#[test]
fn a_hung_rank_takes_no_start_and_cannot_be_disarmed_and_goes_on_once_it_is_released() {
    let mut server = server(config(LoadTrack::constant(begin(), &BUSY)));
    faults(&mut server, |faults| faults.hung = vec![1]);
    let lines = lines_of(&server, "DP1");
    assert!(server.ask_for(&start(10), seconds(15.0)).is_none(), "every rank would have to take it");
    assert!(server.ask_for(&Request::post("/stop_profile", ""), seconds(5.0)).is_none());
    assert!(server.ask_for(&Request::get("/server_info"), seconds(1.0)).is_none());
    let loads = loads(&mut server);
    assert_eq!(loads.iter().map(|(running, _)| *running).collect::<Vec<_>>(), [12, 12, 12]);
    assert!(loads[1].1 > 20.0 && loads[0].1 < 1.0, "its entry keeps its numbers and grows old: {loads:?}");
    assert_eq!(lines_of(&server, "DP1"), lines);
    assert_eq!(server.files_in("/data").len(), 2, "the others wrote");
    faults(&mut server, |faults| faults.hung.clear());
    server.wait(seconds(2.0));
    assert!(lines_of(&server, "DP1") > lines);
    assert!(server.ask(&Request::get("/server_info")).is_some());
}

#[test]
fn a_silent_rank_works_and_prints_no_batch_line() {
    let mut server = server(Config {
        faults: Faults { silent: vec![2], ..Faults::default() },
        ..config(LoadTrack::constant(begin(), &BUSY))
    });
    server.wait(seconds(3.0));
    assert!(lines_of(&server, "DP2") == 0 && lines_of(&server, "DP0") > 10);
    assert!(loads(&mut server)[2].1 < 1.0);
}

#[test]
fn a_rank_whose_host_is_slow_steps_and_exports_more_slowly_by_that_factor() {
    let mut server = server(Config {
        faults: Faults { slow_host: vec![(0, 4.0)], ..Faults::default() },
        ..config(LoadTrack::constant(begin(), &BUSY))
    });
    server.wait(seconds(4.0));
    let (slow, usual) = (lines_of(&server, "DP0"), lines_of(&server, "DP1"));
    assert!(slow * 3 < usual && slow * 5 > usual, "{slow} and {usual} lines");
    server.ask(&start(10)).expect("it is answered");
    server.wait(seconds(5.0));
    let took = |rank: &str| {
        let at = |what: &str| {
            let lines = server.lines_with(what);
            let line = lines.iter().find(|line| line.contains(rank)).expect("it is printed");
            // [2026-11-24 03:48:21.123 DP0] ...
            let clock = line.split_whitespace().nth(1).expect("it has a time");
            let parts: Vec<f64> = clock.split(':').map(|part| part.parse().expect("a number")).collect();
            parts.iter().fold(0.0, |all, part| all * 60.0 + part)
        };
        at("Profiling done") - at("Stop profiling")
    };
    // 10 steps of 20 kB at 1.2 s a MB.
    assert!((took("DP1") - 0.24).abs() < 0.05, "{}", took("DP1"));
    assert!((took("DP0") - 0.96).abs() < 0.1, "{}", took("DP0"));
}

#[test]
fn a_drained_rank_empties_as_its_requests_end() {
    let load = LoadTrack::constant(begin(), &BUSY).with_drained(1, begin() + seconds(2.0), seconds(12.0));
    let mut server = server(config(load));
    let mut seen = Vec::new();
    for _ in 0..16 {
        server.wait(seconds(1.0));
        seen.push(loads(&mut server)[1].0);
    }
    assert!(seen.is_sorted_by(|a, b| a >= b) && seen[0] == 12 && seen[15] == 0, "{seen:?}");
    assert!(seen.iter().any(|n| (4..9).contains(n)), "not at once: {seen:?}");
    assert_eq!(loads(&mut server)[0].0, 12);
}
