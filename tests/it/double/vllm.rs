//! The double of vLLM behaves as its releases do, in simulated time.

use std::time::Duration;

use skewtrap::demo::ServerKind;
use skewtrap::demo::exchange::Request;
use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::simulated::{Answer, Simulated};
use skewtrap::demo::vllm::{Config, Version, World};
use skewtrap_trace::time::Time;

const BUSY: [(u32, u32); 2] = [(30, 5), (20, 0)];

fn begin() -> Time {
    Time::from_epoch_s(1_795_492_100.0)
}

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn config(version: Version, load: &[(u32, u32)]) -> Config {
    Config::new(version, load.len() as u16, LoadTrack::constant(begin(), load), Some("/traces"))
}

fn server(config: Config) -> Simulated {
    Simulated::new(World::new(config, begin()), begin())
}

fn post(server: &mut Simulated, path: &str, body: &str) -> Answer {
    server.ask(&Request::post(path, body)).expect("it is answered")
}

fn open(server: &Simulated) -> Vec<u16> {
    match &server.engine {
        ServerKind::Vllm(world) => world.open_windows(),
        _ => unreachable!("these tests play vLLM"),
    }
}

#[test]
fn the_profile_api_is_post_only_and_404_unless_it_was_configured_at_launch() {
    let mut bare = config(Version::V0_33, &BUSY);
    bare.profiler_dir = None;
    let mut bare = server(bare);
    let mut configured = server(config(Version::V0_33, &BUSY));
    for path in ["/start_profile", "/stop_profile"] {
        assert_eq!(post(&mut bare, path, "").status, 404);
        assert_eq!(configured.ask(&Request::get(path)).unwrap().status, 405);
    }
}

#[test]
fn a_window_writes_each_engines_trace_into_the_fixed_folder_and_calls_every_worker_rank0() {
    let mut server = server(config(Version::V0_19, &BUSY));
    assert_eq!(post(&mut server, "/start_profile", "").status, 200);
    server.wait(seconds(0.5));
    let stopped = post(&mut server, "/stop_profile", "");
    assert!(
        stopped.status == 200 && stopped.took > seconds(1.0),
        "the stop waits for the flush: {stopped:?}"
    );
    let traces: Vec<_> = server.files_in("/traces").into_iter().filter(|f| f.ends_with(".gz")).collect();
    assert_eq!(traces.len(), 2);
    assert!(
        traces[0].starts_with("dp0_pp0_tp0_dcp0_ep0_rank0.")
            && traces[1].starts_with("dp1_pp0_tp0_dcp0_ep0_rank0.")
    );
    assert!(traces.iter().all(|t| t.ends_with(".pt.trace.json.gz")));
}

#[test]
fn what_a_second_start_does_depends_on_the_release() {
    let row = |version: Version| {
        let mut server = server(config(version, &BUSY));
        post(&mut server, "/start_profile", "");
        server.wait(seconds(0.2));
        let second = post(&mut server, "/start_profile", "").status;
        let stop = post(&mut server, "/stop_profile", "").status;
        let idle_stop = post(&mut server, "/stop_profile", "").status;
        format!("{}: second start {second}, stop {stop}, stop of nothing {idle_stop}", version.text())
    };
    insta::assert_snapshot!(Version::ALL.map(row).join("\n"), @r"
    0.11.0: second start 200, stop 200, stop of nothing 500
    0.19.0: second start 200, stop 200, stop of nothing 500
    0.33.0: second start 409, stop 200, stop of nothing 200
    ");
}

#[test]
fn after_max_iterations_nothing_can_be_started_until_somebody_stops() {
    for (version, second) in [(Version::V0_19, 200), (Version::V0_33, 409)] {
        let mut bounded = config(version, &BUSY);
        bounded.max_iterations = Some(5);
        let mut server = server(bounded);
        post(&mut server, "/start_profile", "");
        server.wait(seconds(5.0));
        let traces =
            |server: &Simulated| server.files_in("/traces").iter().filter(|f| f.ends_with(".gz")).count();
        assert_eq!((open(&server), traces(&server)), (vec![], 2), "it ended by itself");
        assert_eq!(post(&mut server, "/start_profile", "").status, second);
        assert!(open(&server).is_empty(), "and yet nothing starts");
        post(&mut server, "/stop_profile", "");
        assert_eq!(post(&mut server, "/start_profile", "").status, 200);
        server.wait(seconds(5.0));
        assert_eq!(traces(&server), 4);
    }
}

#[test]
fn an_idle_engine_never_reaches_max_iterations_and_needs_the_stop() {
    let mut server = server(config(Version::V0_33, &[(30, 0), (0, 0)]));
    post(&mut server, "/start_profile", r#"{"max_iterations":5,"profile_prefix":"skewtrap-1"}"#);
    server.wait(seconds(60.0));
    assert_eq!(open(&server), [1]);
    assert_eq!(post(&mut server, "/stop_profile", "").status, 200);
    let files = server.files_in("/traces");
    assert!(files.len() == 4 && files.iter().all(|f| f.starts_with("skewtrap-1_dp")), "{files:?}");
}

#[test]
fn a_prefix_with_a_slash_is_refused_by_0_33_and_unseen_by_0_19() {
    let body = r#"{"profile_prefix":"../x"}"#;
    assert_eq!(post(&mut server(config(Version::V0_33, &BUSY)), "/start_profile", body).status, 400);
    assert_eq!(post(&mut server(config(Version::V0_19, &BUSY)), "/start_profile", body).status, 200);
}

#[test]
fn the_log_has_one_line_for_each_engine_every_ten_seconds_and_falls_silent_when_idle() {
    let mut server = server(config(Version::V0_33, &BUSY));
    server.wait(seconds(10.0));
    insta::assert_snapshot!(server.log[0].1, @"(APIServer pid=387731) INFO 11-24 03:48:30 [loggers.py:257] Engine 000: Avg prompt throughput: 270.0 tokens/s, Avg generation throughput: 2700.0 tokens/s, Running: 30 reqs, Waiting: 5 reqs, GPU KV cache usage: 7.2%, Prefix cache hit rate: 0.0%");
    assert_eq!(server.log.len(), 2);
    if let ServerKind::Vllm(world) = &mut server.engine {
        world.set_load(&[(0, 0), (0, 0)]);
    }
    server.wait(seconds(100.0));
    assert_eq!(server.log.len(), 4, "idle once, then silence");
}

#[test]
fn metrics_name_the_engine_and_are_always_there() {
    let page = server(config(Version::V0_33, &BUSY)).ask(&Request::get("/metrics")).unwrap().body;
    assert!(
        page.contains("vllm:num_requests_running{engine=\"1\",model_name=\"/models/tiny\"} 20.0\n"),
        "{page}"
    );
}
