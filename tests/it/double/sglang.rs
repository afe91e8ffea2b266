//! The double of the engines behaves as the real ones were measured to: one test for each row of
//! that table, in simulated time.

use std::io::Read as _;
use std::time::Duration;

use serde_json::Value;
use skewtrap::demo::ServerKind;
use skewtrap::demo::exchange::{HttpFault, HttpFaultKind, Request};
use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::sglang::{Config, Faults, Version, World};
use skewtrap::demo::simulated::{Answer, Simulated};
use skewtrap_trace::time::Time;

const BUSY: [(u32, u32); 4] = [(9, 0), (8, 0), (110, 3), (9, 0)];
const IDLE: [(u32, u32); 4] = [(0, 0); 4];

fn begin() -> Time {
    Time::from_epoch_s(1_795_492_100.0)
}

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn config(version: Version, load: &[(u32, u32)]) -> Config {
    Config::new(version, load.len() as u16, LoadTrack::constant(begin(), load))
}

fn server(config: Config) -> Simulated {
    let mut server = Simulated::new(World::new(config, begin()), begin());
    // Past the first steps, whose numbers a low start_step could still reach.
    server.wait(seconds(1.0));
    server
}

fn server_of(version: Version, load: &[(u32, u32)]) -> Simulated {
    server(config(version, load))
}

fn world(server: &mut Simulated) -> &mut World {
    match &mut server.engine {
        ServerKind::Sglang(world) => world,
        _ => unreachable!("these tests play SGLang"),
    }
}

fn start(server: &mut Simulated, body: &str) -> Answer {
    server.ask(&Request::post("/start_profile", body)).expect("a start is answered")
}

fn stop(server: &mut Simulated) -> Answer {
    server.ask(&Request::post("/stop_profile", "")).expect("a stop is answered")
}

fn health(server: &mut Simulated) -> Answer {
    server.ask(&Request::get("/health")).expect("health is answered")
}

/// The body without stacks that everybody should send.
fn window(dir: &str, steps: u32) -> String {
    format!(r#"{{"output_dir":"{dir}","num_steps":{steps},"with_stack":false,"record_shapes":false}}"#)
}

fn trace(server: &Simulated, path: &str) -> Option<Value> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(&**server.files.get(path)?).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn steps_in(server: &Simulated, path: &str) -> usize {
    let trace = trace(server, path).expect("the trace is whole");
    let events = trace["traceEvents"].as_array().expect("it has events");
    events.iter().filter(|e| e["cat"] == "user_annotation").count()
}

fn only_file(server: &Simulated, dir: &str, part: &str) -> String {
    let found: Vec<_> = server.files_in(dir).into_iter().filter(|f| f.contains(part)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    format!("{dir}/{}", found[0])
}

#[test]
fn end_profile_is_404_in_every_state_and_release() {
    for version in Version::ALL {
        let mut server = server_of(version, &BUSY);
        for method in [Request::post("/end_profile", ""), Request::get("/end_profile")] {
            let answer = server.ask(&method).unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (404, r#"{"detail":"Not Found"}"#));
        }
    }
}

#[test]
fn a_stop_when_nothing_runs_is_500_and_only_the_log_says_why() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    let answer = stop(&mut server);
    assert_eq!((answer.status, answer.body.as_str()), (500, "Internal Server Error"));
    assert_eq!(
        server.lines_with("RuntimeError: Profiling is not in progress. Call /start_profile first.").len(),
        1
    );
}

#[test]
fn a_start_answers_at_once_and_every_rank_writes_its_file_within_a_second() {
    for method in ["GET", "POST"] {
        let mut server = server_of(Version::V0_5_16, &BUSY);
        let request =
            Request { method: method.into(), ..Request::post("/start_profile", &window("/data/skew", 20)) };
        let answer = server.ask(&request).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "Start profiling.\n"));
        assert!(answer.took >= seconds(0.012) && answer.took <= seconds(0.085), "{:?}", answer.took);
        assert!(server.files.is_empty());
        server.wait(seconds(2.0));
        let files = server.files_in("/data/skew");
        let named: Vec<_> = files.iter().map(|f| f.split_once('-').unwrap().1).collect();
        let wanted: Vec<_> = (0..4).map(|n| format!("TP-0-DP-{n}.trace.json.gz")).collect();
        assert_eq!(named, wanted);
        assert_eq!(server.lines_with("Profiling done. Traces are saved to: /data/skew").len(), 4);
    }
}

#[test]
fn windows_are_per_rank_the_overloaded_one_is_open_several_times_as_long() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    // The first window of a process is longer: it loads CUPTI.
    start(&mut server, &window("/warm", 1));
    server.wait(seconds(3.0));
    server.log.clear();
    start(&mut server, &window("/d", 20));
    server.wait(seconds(3.0));
    let open_for = |dp: u16| {
        let at = |part: &str| {
            server
                .log
                .iter()
                .find(|(_, l)| l.contains(&format!("DP{dp}] {part}")))
                .map(|(at, _)| *at)
                .unwrap()
        };
        at("Stop profiling").since(at("Profiling starts")).as_secs_f64()
    };
    assert!(open_for(2) > 3.0 * open_for(0), "{} against {}", open_for(2), open_for(0));
    assert!((0.06..0.12).contains(&open_for(0)) && (0.3..0.6).contains(&open_for(2)));
}

#[test]
fn a_long_window_makes_the_stop_take_seconds_and_health_waits_for_the_export() {
    let mut server = server_of(Version::V0_5_16, &[(120, 0); 4]);
    start(&mut server, r#"{"output_dir":"/d","with_stack":false}"#);
    server.wait(seconds(2.0));
    let asked = server.now;
    let call = server.send(&Request::post("/stop_profile", ""));
    let answer = health(&mut server);
    assert_eq!(answer.status, 200);
    assert!(answer.took >= seconds(3.0) && answer.took.subsec_nanos() == 0, "{:?}", answer.took);
    server.wait(seconds(20.0));
    let stopped = server.answer(call, asked).expect("the stop has ended");
    assert_eq!((stopped.status, stopped.body.as_str()), (200, "Stop profiling. This will take some time.\n"));
    assert!(stopped.took > seconds(3.0), "{:?}", stopped.took);
    assert_eq!(health(&mut server).took, seconds(1.0));
}

#[test]
fn a_rank_that_exports_makes_no_step_and_prints_nothing_meanwhile() {
    let mut server = server_of(Version::V0_5_16, &[(20, 0); 2]);
    world(&mut server).faults_mut().slow_export = seconds(30.0);
    start(&mut server, &window("/d", 5));
    server.wait(seconds(5.0));
    let before = server.lines_with("batch").len();
    server.wait(seconds(20.0));
    assert_eq!(server.lines_with("batch").len(), before);
    server.wait(seconds(10.0));
    assert!(server.lines_with("batch").len() > before);
}

#[test]
fn a_health_check_gives_up_with_503_after_20_seconds_of_export() {
    let mut server = server_of(Version::V0_5_16, &[(20, 0); 2]);
    world(&mut server).faults_mut().slow_export = seconds(60.0);
    start(&mut server, &window("/d", 5));
    server.wait(seconds(1.0));
    let answer = health(&mut server);
    assert_eq!((answer.status, answer.took), (503, seconds(20.0)));
}

#[test]
fn a_second_start_without_start_step_is_200_and_loses_the_first_windows_data() {
    let mut server = server_of(Version::V0_5_16, &[(9, 0); 4]);
    start(&mut server, &window("/data/dbl", 60));
    server.wait(seconds(0.1));
    let answer = start(&mut server, &window("/data/dbl2", 60));
    assert_eq!(answer.status, 200);
    server.wait(seconds(10.0));
    assert_eq!(server.files_in("/data/dbl").len(), 4);
    assert!(server.files_in("/data/dbl2").is_empty());
    let path = only_file(&server, "/data/dbl", "DP-0");
    assert!(steps_in(&server, &path) < 60, "the steps before the second start are lost");
    assert_eq!(stop(&mut server).status, 500);
}

#[test]
fn a_second_start_with_start_step_is_500_and_leaves_the_first_window_unharmed() {
    let mut server = server_of(Version::V0_5_16, &[(9, 0); 4]);
    start(&mut server, &window("/data/one", 60));
    server.wait(seconds(0.1));
    let second = r#"{"output_dir":"/data/two","num_steps":5,"start_step":1,"with_stack":false}"#;
    assert_eq!(start(&mut server, second).status, 500);
    server.wait(seconds(10.0));
    assert_eq!(steps_in(&server, &only_file(&server, "/data/one", "DP-0")), 60);
    assert!(server.files_in("/data/two").is_empty());
}

#[test]
fn num_steps_on_an_idle_server_never_ends_by_itself() {
    let mut server = server_of(Version::V0_5_16, &IDLE);
    let answer = start(&mut server, &window("/d", 5));
    assert_eq!(answer.status, 200);
    server.wait(seconds(3600.0));
    assert_eq!(world(&mut server).open_windows(), [0, 1, 2, 3]);
    assert!(server.files.is_empty());
}

#[test]
fn one_idle_second_with_stacks_makes_the_stop_take_55_seconds() {
    let mut server = server_of(Version::V0_5_23, &[(0, 0); 2]);
    start(&mut server, r#"{"output_dir":"/d","num_steps":5}"#);
    server.wait(seconds(1.0));
    let answer = stop(&mut server);
    assert_eq!(answer.status, 200);
    assert!((50.0..65.0).contains(&answer.took.as_secs_f64()), "{:?}", answer.took);
}

#[test]
fn a_longer_idle_window_with_stacks_ends_in_the_watchdog_killing_the_server() {
    let mut server = server_of(Version::V0_5_23, &[(0, 0); 2]);
    start(&mut server, r#"{"output_dir":"/d","num_steps":5}"#);
    server.wait(seconds(6.0));
    let answer = stop(&mut server);
    assert_eq!(answer.status, 0, "the connection breaks");
    assert!((299.0..301.0).contains(&answer.took.as_secs_f64()), "{:?}", answer.took);
    assert!(!world(&mut server).is_up());
    assert_eq!(
        server.lines_with("Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)").len(),
        1
    );
}

#[test]
fn with_one_rank_idle_the_stop_is_500_although_that_rank_did_stop_and_write() {
    let mut server = server_of(Version::V0_5_16, &[(0, 0), (12, 0)]);
    start(&mut server, &window("/d", 5));
    server.wait(seconds(3.0));
    assert_eq!(server.files_in("/d").len(), 1, "the busy rank has finished");
    assert_eq!(world(&mut server).open_windows(), [0]);
    assert_eq!(stop(&mut server).status, 500);
    server.wait(seconds(3.0));
    assert_eq!(server.files_in("/d").len(), 2);
    assert!(world(&mut server).open_windows().is_empty());
}

#[test]
fn without_that_stop_the_idle_ranks_next_window_lands_under_the_old_id_and_folder() {
    let mut server = server_of(Version::V0_5_16, &[(0, 0), (12, 0)]);
    start(&mut server, &window("/old", 5));
    server.wait(seconds(3.0));
    start(&mut server, &window("/new", 5));
    world(&mut server).set_load(&[(12, 0), (12, 0)]);
    server.wait(seconds(3.0));
    let old = server.files_in("/old");
    let ids: Vec<_> = old.iter().map(|f| f.split_once("-TP").unwrap().0).collect();
    assert_eq!((old.len(), ids[0]), (2, ids[1]), "both under the first id: {old:?}");
    assert_eq!(server.files_in("/new").len(), 1);
}

#[test]
fn an_idle_rank_armed_by_start_step_opens_on_its_next_traffic_and_no_stop_disarms_it() {
    let mut server = server_of(Version::V0_5_16, &[(0, 0), (12, 0)]);
    start(&mut server, r#"{"output_dir":"/d","num_steps":5,"start_step":1,"with_stack":false}"#);
    server.wait(seconds(3.0));
    assert_eq!(server.lines_with("Profiling starts").len(), 1, "the idle rank is armed only");
    assert_eq!(stop(&mut server).status, 500);
    server.wait(seconds(60.0));
    assert_eq!(server.files_in("/d").len(), 1);
    world(&mut server).set_load(&[(12, 0), (12, 0)]);
    server.wait(seconds(3.0));
    assert_eq!(server.lines_with("DP0] Profiling starts").len(), 1);
    assert_eq!(server.files_in("/d").len(), 2, "unasked, a minute later");
}

#[test]
fn start_step_is_absolute_a_low_one_starts_at_once_and_a_high_one_never() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    start(&mut server, r#"{"output_dir":"/low","start_step":5,"num_steps":5,"with_stack":false}"#);
    server.wait(seconds(2.0));
    assert_eq!(server.files_in("/low").len(), 4);
    let answer = start(
        &mut server,
        r#"{"output_dir":"/high","start_step":100000000,"num_steps":5,"with_stack":false}"#,
    );
    assert_eq!(answer.status, 200);
    server.wait(seconds(60.0));
    assert_eq!(stop(&mut server).status, 500);
    assert!(server.files_in("/high").is_empty());
}

#[test]
fn num_steps_records_one_step_less_before_0_5_16_and_exactly_n_with_start_step() {
    let recorded = |version: Version, extra: &str| {
        let mut server = server_of(version, &[(9, 0)]);
        start(&mut server, &format!(r#"{{"output_dir":"/d","num_steps":10,"with_stack":false{extra}}}"#));
        server.wait(seconds(3.0));
        steps_in(&server, &only_file(&server, "/d", "TP-0"))
    };
    let table: Vec<_> = Version::ALL
        .iter()
        .map(|v| format!("{}: {} {}", v.text(), recorded(*v, ""), recorded(*v, r#","start_step":1"#)))
        .collect();
    insta::assert_snapshot!(table.join("\n"), @r"
    0.4.7.post1: 9 9
    0.5.3: 9 10
    0.5.9: 9 10
    0.5.16: 10 10
    0.5.23: 10 10
    ");
}

#[test]
fn merging_makes_a_stop_several_times_as_long() {
    let took = |merge: bool| {
        let mut server = server_of(Version::V0_5_23, &[(20, 0); 2]);
        start(&mut server, &format!(r#"{{"output_dir":"/d","with_stack":false,"merge_profiles":{merge}}}"#));
        server.wait(seconds(1.0));
        let took = stop(&mut server).took.as_secs_f64();
        let merged = server.files_in("/d").iter().filter(|f| f.starts_with("merged-")).count();
        (took, merged)
    };
    let (plain, none) = took(false);
    let (merged, one) = took(true);
    assert_eq!((none, one), (0, 1));
    assert!(merged > 3.5 * plain, "{merged} against {plain}");
}

#[test]
fn a_merge_with_a_prefix_silently_does_nothing() {
    let mut server = server_of(Version::V0_5_16, &[(9, 0); 2]);
    start(
        &mut server,
        r#"{"output_dir":"/d","num_steps":5,"merge_profiles":true,"profile_prefix":"exp1","with_stack":false}"#,
    );
    server.wait(seconds(5.0));
    let files = server.files_in("/d");
    assert!(files.len() == 2 && files.iter().all(|f| f.starts_with("exp1-")), "{files:?}");
    assert_eq!(server.lines_with("Merge failed: No trace files found for profile_id").len(), 1);
}

#[test]
fn an_unwritable_folder_kills_the_whole_server_at_the_export() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    world(&mut server).faults_mut().unwritable.push("/forbidden".into());
    assert_eq!(start(&mut server, &window("/forbidden/x", 5)).status, 200);
    assert!(world(&mut server).is_up());
    server.wait(seconds(2.0));
    assert!(!world(&mut server).is_up());
    assert_eq!(server.lines_with("Scheduler hit an exception: Traceback").len(), 1);
    assert_eq!(server.ask(&Request::get("/health")).unwrap().status, 0);
}

#[test]
fn a_full_disk_leaves_half_a_file_and_a_dead_server() {
    let mut server = server_of(Version::V0_5_16, &[(9, 0); 2]);
    world(&mut server).faults_mut().disk_full = true;
    start(&mut server, &window("/d", 5));
    server.wait(seconds(2.0));
    assert!(world(&mut server).cause_of_death().unwrap().contains("No space left on device"));
    assert!(trace(&server, &only_file(&server, "/d", "TP-0")).is_none(), "the gzip stream has no end");
}

#[test]
fn a_file_is_seen_half_written_before_it_is_whole() {
    let mut server = server_of(Version::V0_5_16, &[(9, 0)]);
    world(&mut server).faults_mut().slow_export = seconds(10.0);
    start(&mut server, &window("/d", 5));
    server.wait(seconds(8.0));
    let path = only_file(&server, "/d", "TP-0");
    assert!(trace(&server, &path).is_none());
    server.wait(seconds(5.0));
    assert!(trace(&server, &path).is_some());
}

#[test]
fn a_rank_may_lose_its_file_or_truncate_it_and_still_say_done() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    *world(&mut server).faults_mut() = Faults { missing: vec![1], truncated: vec![3], ..Faults::default() };
    start(&mut server, &window("/d", 5));
    server.wait(seconds(3.0));
    assert_eq!(server.lines_with("Profiling done").len(), 4);
    let whole: Vec<_> =
        server.files_in("/d").iter().map(|f| trace(&server, &format!("/d/{f}")).is_some()).collect();
    assert_eq!(whole, [true, true, false], "DP0, DP2, and the half of DP3");
}

#[test]
fn profile_by_stage_on_a_mixed_server_writes_decode_files_only() {
    let mut server = server_of(Version::V0_5_16, &[(9, 0); 2]);
    start(&mut server, r#"{"output_dir":"/d","num_steps":5,"profile_by_stage":true,"with_stack":false}"#);
    server.wait(seconds(3.0));
    let files = server.files_in("/d");
    assert!(files.len() == 2 && files.iter().all(|f| f.ends_with("-DECODE.trace.json.gz")), "{files:?}");
    assert_eq!(stop(&mut server).status, 500);
}

#[test]
fn profile_by_stage_without_num_steps_kills_the_server_at_the_next_batch() {
    let mut server = server_of(Version::V0_5_16, &[(9, 0); 2]);
    start(&mut server, r#"{"output_dir":"/d","profile_by_stage":true}"#);
    server.wait(seconds(0.1));
    assert!(world(&mut server).cause_of_death().unwrap().starts_with("TypeError"));
}

#[test]
fn a_body_that_is_no_json_or_holds_a_wrong_type_is_400_with_a_json_error() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    for body in ["{num_steps", r#"{"num_steps":"abc"}"#] {
        let answer = start(&mut server, body);
        assert_eq!(answer.status, 400);
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((&error["object"], &error["code"]), (&Value::from("error"), &Value::from(400)));
    }
    assert!(server.lines_with("Profiling starts").is_empty());
}

#[test]
fn unknown_fields_are_ignored_and_unknown_activities_record_nothing() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    assert_eq!(start(&mut server, r#"{"colour":"blue","activities":["FOO"],"num_steps":5}"#).status, 200);
    server.wait(seconds(3.0));
    assert!(server.files.is_empty() && server.lines_with("Profiling starts").is_empty());
    assert_eq!(stop(&mut server).status, 500);
}

#[test]
fn a_connection_may_break_before_or_after_a_start_took_effect() {
    for (kind, windows) in [(HttpFaultKind::ResetBefore, 0), (HttpFaultKind::ResetAfter, 2)] {
        let mut server = server_of(Version::V0_5_16, &[(9, 0); 2]);
        world(&mut server).faults_mut().http.push(HttpFault::once("/start_profile", kind));
        assert_eq!(start(&mut server, &window("/d", 50)).status, 0);
        assert_eq!(world(&mut server).open_windows().len(), windows);
        assert_eq!(start(&mut server, &window("/d", 50)).status, 200, "only once");
    }
}

#[test]
fn an_answer_may_never_come_whether_or_not_the_start_took_effect() {
    for (kind, windows) in [(HttpFaultKind::NeverBefore, 0), (HttpFaultKind::NeverAfter, 2)] {
        let mut server = server_of(Version::V0_5_16, &[(9, 0); 2]);
        world(&mut server).faults_mut().http.push(HttpFault::once("/start_profile", kind));
        let request = Request::post("/start_profile", r#"{"output_dir":"/d","with_stack":false}"#);
        assert_eq!(server.ask_for(&request, seconds(30.0)), None);
        assert_eq!(world(&mut server).open_windows().len(), windows);
    }
}

#[test]
fn a_server_may_answer_401_or_500_to_everything() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    let faults = [("/start_profile", 500), ("/v1/loads", 401)]
        .map(|(p, s)| HttpFault::always(p, HttpFaultKind::Status(s)));
    world(&mut server).faults_mut().http.extend(faults);
    assert_eq!(start(&mut server, &window("/d", 5)).status, 500);
    let refused = server.ask(&Request::get("/v1/loads")).unwrap();
    assert_eq!((refused.status, refused.body.as_str()), (401, r#"{"error":"Unauthorized"}"#));
}

#[test]
fn a_restart_in_the_middle_of_a_window_forgets_it_and_writes_nothing() {
    let mut server = server_of(Version::V0_5_16, &BUSY);
    let faults = world(&mut server).faults_mut();
    (faults.restart_after_start, faults.restart_takes) = (Some(seconds(0.05)), seconds(20.0));
    start(&mut server, &window("/d", 400));
    server.wait(seconds(1.0));
    assert_eq!(server.ask(&Request::get("/health")).unwrap().status, 0);
    server.wait(seconds(30.0));
    assert!(world(&mut server).is_up() && world(&mut server).open_windows().is_empty());
    assert!(server.files.is_empty());
    assert_eq!(server.lines_with("The server is fired up and ready to roll!").len(), 2);
    assert_eq!(stop(&mut server).status, 500);
}

#[test]
fn keys_follow_the_rules_of_the_release() {
    let ask = |version: Version, path: &str, key: Option<&str>, admin: bool| {
        let mut config = config(version, &BUSY);
        config.api_key = Some("user".into());
        config.admin_api_key = admin.then(|| "boss".to_owned());
        let mut request =
            if path.ends_with("profile") { Request::post(path, "") } else { Request::get(path) };
        request.bearer = key.map(str::to_owned);
        server(config).ask(&request).unwrap().status
    };
    let new = Version::V0_5_16;
    assert_eq!(ask(new, "/stop_profile", None, false), 401);
    assert_eq!(ask(new, "/stop_profile", Some("user"), false), 500, "let in: nothing runs");
    assert_eq!(ask(new, "/stop_profile", Some("user"), true), 401, "only the admin key works");
    assert_eq!(ask(new, "/stop_profile", Some("boss"), true), 500);
    assert_eq!(ask(new, "/v1/loads", Some("user"), true), 200);
    assert_eq!(ask(new, "/v1/loads", None, true), 401);
    assert_eq!(ask(Version::V0_5_3, "/stop_profile", Some("user"), true), 500, "no admin keys yet");
    for open in ["/health", "/metrics"] {
        assert_eq!(ask(new, open, None, true), 200);
    }
}

#[test]
fn profile_v2_dies_of_every_plain_start_and_of_every_stop() {
    for request in [Request::post("/start_profile", &window("/d", 5)), Request::post("/stop_profile", "")] {
        let mut config = config(Version::V0_5_16, &BUSY);
        config.profile_v2 = true;
        let mut server = server(config);
        assert_eq!(server.ask(&request).unwrap().status, 0);
        assert!(!world(&mut server).is_up());
    }
}

#[test]
fn under_dp_attention_idle_ranks_count_their_idle_batches_and_finish_too() {
    let mut config = config(Version::V0_5_16, &[(0, 0), (12, 0)]);
    (config.dp_attention, config.tp) = (true, 4);
    let mut server = server(config);
    start(&mut server, r#"{"output_dir":"/d","num_steps":5,"start_step":1,"with_stack":false}"#);
    server.wait(seconds(5.0));
    let named: Vec<_> =
        server.files_in("/d").iter().map(|f| f.split_once('-').unwrap().1.to_owned()).collect();
    assert_eq!(
        named,
        ["TP-0-DP-0", "TP-1-DP-0", "TP-2-DP-1", "TP-3-DP-1"].map(|n| format!("{n}.trace.json.gz"))
    );
    assert_eq!(server.lines_with("DP0 TP0] Decode batch").len(), 0, "an idle rank prints nothing");
}

#[test]
fn before_0_5_5_two_replicas_write_the_same_file() {
    let mut server = server_of(Version::V0_5_3, &[(9, 0); 2]);
    start(&mut server, &window("/d", 5));
    server.wait(seconds(3.0));
    let files = server.files_in("/d");
    assert!(files.len() == 1 && files[0].ends_with("-TP-0.trace.json.gz"), "{files:?}");
}

#[test]
fn a_starved_rank_falls_silent_in_the_log_but_shows_0_on_the_pages() {
    let mut server = server_of(Version::V0_5_23, &[(6, 0), (6, 0)]);
    server.wait(seconds(10.0));
    world(&mut server).set_load(&[(0, 0), (12, 0)]);
    server.wait(seconds(0.1));
    let before = server.lines_with("DP0]").len();
    let loads = server.ask(&Request::get("/v1/loads")).unwrap().body;
    let loads: Value = serde_json::from_str(&loads).unwrap();
    assert_eq!(
        (&loads["loads"][0]["num_running_reqs"], &loads["version"]),
        (&Value::from(0), &Value::from("0.5.23"))
    );
    let gauge = |server: &mut Simulated| {
        let page = server.ask(&Request::get("/metrics")).unwrap().body;
        page.lines().find(|l| l.starts_with("sglang:num_running_reqs{dp_rank=\"0\"")).unwrap().to_owned()
    };
    let stale = gauge(&mut server);
    assert!(stale.ends_with(" 6.0"), "a gauge is what was last reported: {stale}");
    server.wait(seconds(9.0));
    assert!(gauge(&mut server).ends_with(" 0.0"));
    server.wait(seconds(60.0));
    assert_eq!(server.lines_with("DP0]").len(), before, "silence, not a line with 0");
}

#[test]
fn which_load_pages_exist_and_whether_they_hang_in_an_export_depends_on_the_release() {
    let row = |version: Version| {
        let mut server = server_of(version, &[(9, 0); 2]);
        world(&mut server).faults_mut().slow_export = seconds(30.0);
        start(&mut server, &window("/d", 5));
        server.wait(seconds(5.0));
        let mut ask = |path: &str| match server.ask_for(&Request::get(path), seconds(1.0)) {
            Some(answer) => answer.status.to_string(),
            None => "hangs".into(),
        };
        let pages = ["/v1/loads", "/get_load", "/server_info", "/get_server_info"].map(&mut ask);
        format!("{}: {}", version.text(), pages.join(" "))
    };
    let table = Version::ALL.map(row).join("\n");
    insta::assert_snapshot!(table, @r"
    0.4.7.post1: 404 hangs 404 hangs
    0.5.3: 404 hangs 404 hangs
    0.5.9: hangs hangs hangs hangs
    0.5.16: 200 200 hangs hangs
    0.5.23: 200 404 hangs hangs
    ");
}

#[test]
fn a_caller_may_choose_the_id_since_0_5_15_and_the_prefix_since_0_5_7() {
    let named = |version: Version| {
        let mut server = server_of(version, &[(9, 0)]);
        let body = r#"{"output_dir":"/d","num_steps":5,"profile_id":"mine","profile_prefix":"pre","with_stack":false}"#;
        start(&mut server, body);
        server.wait(seconds(3.0));
        let name = server.files_in("/d")[0].to_owned();
        name.replace(
            name.split("-TP").next().unwrap().trim_start_matches("pre-"),
            if name.contains("mine") { "mine" } else { "CLOCK" },
        )
    };
    let table = Version::ALL.map(|v| format!("{}: {}", v.text(), named(v))).join("\n");
    insta::assert_snapshot!(table, @r"
    0.4.7.post1: CLOCK-TP-0.trace.json.gz
    0.5.3: CLOCK-TP-0.trace.json.gz
    0.5.9: pre-CLOCK-TP-0.trace.json.gz
    0.5.16: pre-mine-TP-0.trace.json.gz
    0.5.23: pre-mine-TP-0.trace.json.gz
    ");
}

#[test]
fn the_same_requests_at_the_same_times_do_exactly_the_same() {
    let play = || {
        let mut server = server_of(Version::V0_5_16, &BUSY);
        start(&mut server, &window("/d", 20));
        server.wait(seconds(20.0));
        (server.log, server.files)
    };
    assert_eq!(play(), play());
}

mod robustness {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Start(String),
        Stop,
        Get(&'static str),
        Load(Vec<(u32, u32)>),
        Wait(u64),
        Kill,
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        let field = |name: &'static str, values: &'static [&'static str]| {
            prop::option::of(prop::sample::select(values))
                .prop_map(move |v| v.map(|v| format!("\"{name}\":{v}")))
        };
        let body = (
            field("num_steps", &["1", "20", "\"5\"", "null"]),
            field("start_step", &["1", "5", "100000000"]),
            field("with_stack", &["false", "true"]),
            field("profile_by_stage", &["true"]),
            field("merge_profiles", &["true"]),
            field("activities", &["[\"CPU\"]", "[\"CUDA_PROFILER\"]", "[\"FOO\"]"]),
        )
            .prop_map(|(a, b, c, d, e, f)| {
                let fields: Vec<_> = [a, b, c, d, e, f].into_iter().flatten().collect();
                format!("{{\"output_dir\":\"/d\",{}", fields.join(",")).trim_end_matches(',').to_owned() + "}"
            });
        prop_oneof![
            4 => body.prop_map(Op::Start),
            3 => Just(Op::Stop),
            2 => prop::sample::select(&["/health", "/v1/loads", "/metrics", "/server_info"][..]).prop_map(Op::Get),
            2 => prop::collection::vec((0_u32..40, 0_u32..3), 2).prop_map(Op::Load),
            3 => (1_u64..3_000).prop_map(Op::Wait),
            1 => Just(Op::Kill),
            1 => Just(Op::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_is_asked_time_goes_on_and_every_request_ends(
            ops in prop::collection::vec(op(), 1..25),
            version in prop::sample::select(&Version::ALL[..]),
            dp_attention: bool,
        ) {
            let mut config = config(version, &[(9, 0), (0, 0)]);
            (config.dp_attention, config.tp) = (dp_attention, if dp_attention { 2 } else { 1 });
            let mut server = Simulated::new(World::new(config, begin()), begin());
            let mut asked = Vec::new();
            for op in ops {
                match op {
                    Op::Start(body) => asked.push(server.send(&Request::post("/start_profile", &body))),
                    Op::Stop => asked.push(server.send(&Request::post("/stop_profile", ""))),
                    Op::Get(path) => asked.push(server.send(&Request::get(path))),
                    Op::Load(load) => world(&mut server).set_load(&load),
                    Op::Wait(ms) => server.wait(Duration::from_millis(ms)),
                    Op::Kill => server.apply(ServerKind::kill),
                    Op::Restart => server.apply(ServerKind::restart),
                }
            }
            world(&mut server).set_load(&[(0, 0), (0, 0)]);
            // An export is over after 300 s at the latest: then the watchdog has killed the server.
            server.wait(seconds(400.0));
            for call in asked {
                prop_assert!(server.ended.contains_key(&call), "{call:?} never ended");
            }
            prop_assert!(server.files.keys().all(|f| f.starts_with("/d/")));
        }
    }
}
