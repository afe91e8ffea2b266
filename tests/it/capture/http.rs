//! Windows against the double of SGLang, faults included: each ends in a named state and a message,
//! and the server survives all of them.

use std::time::Duration;

use crate::support::stage;
use crate::support::stage::{Stage, config, done, failed, short};
use skewtrap::demo::exchange::{HttpFault, HttpFaultKind, Request};
use skewtrap::demo::sglang::{Config, Faults, Version};
use skewtrap_core::capture::HttpWindow;
use skewtrap_core::capture::captured::Quality;
use skewtrap_core::incident::CaptureOutcome;
use skewtrap_trace::rank::Rank;
use tokio_util::sync::CancellationToken;

const BUSY: [(u32, u32); 4] = [(9, 0), (8, 0), (110, 3), (9, 0)];
const ONE_IDLE: [(u32, u32); 2] = [(0, 0), (40, 2)];

#[tokio::test]
async fn a_window_on_busy_ranks_brings_a_whole_file_of_each_and_needs_no_stop() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let kept = stage.capture(HttpWindow::default(), &[0, 1, 2, 3]).await;
    let captured = done(&kept.record.incident.capture);
    assert_eq!((captured.quality, captured.files.len()), (Quality::Usable, 4), "{captured:?}");
    assert_eq!((stage.stops(), kept.trouble.as_deref()), (0, None));
    assert!(captured.files.iter().all(|f| f.whole && f.sha256.len() == 64 && f.rank.is_some()));
    // The record on disk is the record, and its files lie where it says.
    let on_disk = stage.store.bundles.read("i1").unwrap();
    assert_eq!(on_disk.incident.capture.word(), "done");
    for file in &on_disk.files {
        let path = stage.store.bundles.path("i1").join(&file.path);
        assert_eq!(std::fs::metadata(path).unwrap().len(), file.size);
    }
    assert_eq!(on_disk.exchanges[0].request, "POST /start_profile");
    assert_eq!(on_disk.exchanges[0].body.as_ref().unwrap()["start_step"], 1);
    assert!(stage.store.state.open_windows().unwrap().is_empty());
    let end = stage.store.state.ledger().unwrap().attempts[0].end.clone().unwrap();
    assert_eq!((end.bytes, end.unproven), (captured.files.iter().map(|f| f.size).sum(), None));
}

#[tokio::test]
async fn a_starved_rank_is_closed_with_the_busy_ones_and_its_next_traffic_records_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&ONE_IDLE), dir.path()).await;
    let kept = stage.capture(HttpWindow::default(), &[1]).await;
    let captured = done(&kept.record.incident.capture);
    assert_eq!((captured.quality, &captured.idle[..]), (Quality::Usable, &[Rank::dp(0).labels()][..]));
    assert_eq!(kept.record.exchanges[0].body.as_ref().unwrap().get("start_step"), None);
    assert_eq!(stage.stops(), 1);
    assert!(
        captured.notes.iter().any(|n| n == "DP0 had no work when the window opened"),
        "{:?}",
        captured.notes
    );
    stage.ask(|world| world.set_load(&[(30, 0), (30, 0)])).await;
    assert!(stage.is_closed_and_alive().await);
}

#[tokio::test]
async fn merge_profiles_is_done_by_the_agent_and_never_sent() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let spec = HttpWindow { merge_profiles: true, ..HttpWindow::default() };
    let kept = stage.capture(spec, &[0, 1, 2, 3]).await;
    assert!(!kept.record.exchanges[0].body.as_ref().unwrap().to_string().contains("merge"));
    let merged = kept.record.files.last().unwrap();
    assert_eq!((merged.path.as_str(), merged.whole), ("merged-skewtrap-i1.trace.json.gz", true));
    assert_eq!(kept.trouble, None);
    assert!(stage.store.bundles.path("i1").join(&merged.path).exists());
}

/// What must come of a fault: the sentence's beginning, or `done` and a quality.
enum Wanted {
    Done(Quality),
    Fails(&'static str),
    /// The fault itself is the server's death: the sentence's beginning, and the hint in it.
    Dies(&'static str, &'static str),
}

struct Case {
    name: &'static str,
    config: Config,
    busy: Vec<u16>,
    spec: HttpWindow,
    wanted: Wanted,
    stops: usize,
}

fn faulty(faults: Faults) -> Config {
    Config { faults, ..config(&BUSY[..2]) }
}

fn http(path: &str, kind: HttpFaultKind) -> Config {
    faulty(Faults { http: vec![HttpFault::once(path, kind)], ..Faults::default() })
}

fn cases() -> Vec<Case> {
    let start = |kind| http("/start_profile", kind);
    let stop = |kind| Config { faults: http("/stop_profile", kind).faults, ..config(&ONE_IDLE) };
    let stops = |kind| {
        let http = vec![HttpFault::always("/stop_profile", kind)];
        Config { faults: Faults { http, ..Faults::default() }, ..config(&ONE_IDLE) }
    };
    let case = |name, config: Config, wanted, stops| {
        let busy = if config.load.at(0, stage::begin()).running == 0 { vec![1] } else { vec![0, 1] };
        // RankId needs no stop must have the time to finish by its steps, however busy the machine.
        let patient = HttpWindow { deadline: Duration::from_secs(30), ..HttpWindow::default() };
        let is_lost = ["start reset before", "start without effect or answer"].contains(&name);
        let spec = if stops == 0 && !is_lost { patient } else { short() };
        Case { name, config, busy, spec, wanted, stops }
    };
    use HttpFaultKind::{Late, NeverAfter, NeverBefore, ResetAfter, ResetBefore, Status};
    use Wanted::{Dies, Done, Fails};
    let gone = "the server went away in the middle of the window";
    let restarts = |after| {
        let (restart_after_start, restart_takes) = (Some(after), Duration::from_secs(60));
        faulty(Faults { restart_after_start, restart_takes, ..Faults::default() })
    };
    let long = |mut case: Case| {
        case.spec = HttpWindow {
            num_steps: Some(1000),
            accept_risk: vec!["server_timer".into()],
            deadline: Duration::from_secs(20),
            ..HttpWindow::default()
        };
        case
    };
    vec![
        case("start 400", start(Status(400)), Fails("the server refused the start with 400"), 0),
        case("start 401", start(Status(401)), Fails("the server refused the start with 401"), 0),
        case("start 404", start(Status(404)), Fails("the server refused the start with 404"), 0),
        case("start 409", start(Status(409)), Fails("the server refused the start with 409"), 0),
        case("start 500", start(Status(500)), Fails("the start failed with 500"), 0),
        case("start 503", start(Status(503)), Fails("the start failed with 503"), 0),
        case("start redirected", start(Status(307)), Fails("the server refused the start with 307"), 0),
        case(
            "start reset before",
            start(ResetBefore),
            Fails("unknown start: the start lost its connection"),
            0,
        ),
        case("start reset after", start(ResetAfter), Done(Quality::Usable), 0),
        case("start never answered", start(NeverAfter), Done(Quality::Usable), 0),
        case(
            "start without effect or answer",
            start(NeverBefore),
            Fails("unknown start: the start was not answered"),
            0,
        ),
        case("start late", start(Late(Duration::from_secs(10))), Done(Quality::Usable), 0),
        case("stop 404 once", stop(Status(404)), Done(Quality::Usable), 2),
        case("stop 503 once", stop(Status(503)), Done(Quality::Usable), 2),
        case("stop 401", stops(Status(401)), Fails("the stop was answered with 401"), 1),
        case("stop 503", stops(Status(503)), Fails("the stop was answered with 503"), 4),
        case("stop reset before", stop(ResetBefore), Done(Quality::Usable), 2),
        case("stop reset after", stop(ResetAfter), Done(Quality::Usable), 1),
        case("stop never answered", stop(NeverAfter), Done(Quality::Usable), 1),
        case("stop late", stop(Late(Duration::from_secs(10))), Done(Quality::Usable), 1),
        case(
            "rank missing",
            // Its log says that it wrote a file that is not there: no proof that it ended.
            faulty(Faults { missing: vec![1], ..Faults::default() }),
            Done(Quality::Partial),
            1,
        ),
        case(
            "file cut",
            faulty(Faults { truncated: vec![0], ..Faults::default() }),
            Done(Quality::Partial),
            0,
        ),
        case(
            "all files cut",
            faulty(Faults { truncated: vec![0, 1], ..Faults::default() }),
            Fails("the window went as planned, but no whole file"),
            0,
        ),
        case(
            "folder not writable for the server",
            faulty(Faults { unwritable: vec!["/".into()], ..Faults::default() }),
            Dies(gone, "make capture.output_dir writable by the server's user"),
            0,
        ),
        case(
            "disk full",
            faulty(Faults { disk_full: true, ..Faults::default() }),
            Dies(gone, "its disk was full while it wrote the trace"),
            0,
        ),
        case(
            "watchdog in an export",
            Config {
                watchdog: Duration::from_secs(10),
                ..faulty(Faults { slow_export: Duration::from_secs(60), ..Faults::default() })
            },
            Dies(gone, "ask for fewer steps"),
            0,
        ),
        long(case(
            "restart in the window",
            restarts(Duration::from_secs(1)),
            Dies(gone, "its window went with it"),
            0,
        )),
        case(
            "slow export",
            faulty(Faults { slow_export: Duration::from_secs(10), ..Faults::default() }),
            Done(Quality::Usable),
            0,
        ),
    ]
}

#[tokio::test]
async fn every_fault_ends_in_a_named_state_and_a_message_and_the_server_survives() {
    // One after another would wait for every deadline in turn.
    let mut played = tokio::task::JoinSet::new();
    for case in cases() {
        played.spawn(async move {
            let dir = tempfile::tempdir().unwrap();
            let stage = Stage::of(case.config, dir.path()).await;
            let kept = stage.capture(case.spec, &case.busy).await;
            let outcome = &kept.record.incident.capture;
            match (&case.wanted, outcome) {
                (Wanted::Done(quality), CaptureOutcome::Done(c)) if c.quality == *quality => {}
                (Wanted::Fails(front), CaptureOutcome::Failed { why, .. }) if why.starts_with(front) => {}
                (Wanted::Dies(front, hint), CaptureOutcome::Failed { why, .. })
                    if why.starts_with(front) && why.contains(hint) => {}
                _ => panic!("{}: {outcome:#?}\n{:#?}", case.name, kept.record.exchanges),
            }
            assert_eq!(stage.stops(), case.stops, "{}: stops", case.name);
            assert_eq!(kept.trouble, None, "{}", case.name);
            // A server that was started anew is up again when it is seen to be another instance.
            let is_up = !matches!(case.wanted, Wanted::Dies(..)) || case.name == "restart in the window";
            assert_eq!(stage.ask(|w| w.is_up()).await, is_up, "{}: is the server up?", case.name);
            // The row of one that is not proven closed stays, with the reason.
            let rows = stage.store.state.open_windows().unwrap();
            assert!(rows.iter().all(|row| row.unproven.is_some()), "{}", case.name);
            assert_eq!(rows.is_empty(), kept.end.unproven.is_none(), "{}", case.name);
        });
    }
    let all = played.join_all().await;
    assert_eq!(all.len(), 28);
}

#[tokio::test]
async fn a_start_in_doubt_leaves_the_server_alone_for_ten_minutes() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(http("/start_profile", HttpFaultKind::ResetBefore), dir.path()).await;
    let kept = stage.capture(short(), &[0, 1]).await;
    assert!(kept.end.unproven.is_some());
    let spec = skewtrap_core::capture::CaptureSpec::Http(short());
    let refused = stage.grant(spec, &[0, 1], "i2").await.unwrap_err();
    assert_eq!(refused.word(), "quiet");
}

#[tokio::test]
async fn a_window_of_somebody_else_makes_our_start_fail_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let theirs = format!(r#"{{"output_dir":"{}/theirs"}}"#, stage.base());
    stage.double.change(move |engine, now| engine.request(now, &Request::post("/start_profile", &theirs)).1);
    let kept = stage.capture(short(), &[0, 1, 2, 3]).await;
    assert!(failed(&kept.record.incident.capture).0.starts_with("the start failed with 500"));
    assert_eq!((stage.stops(), stage.ask(|w| w.open_windows()).await), (0, vec![0, 1, 2, 3]));
}

#[tokio::test]
async fn a_server_that_restarts_in_the_middle_is_noticed_and_nothing_is_left_running() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults {
        restart_after_start: Some(Duration::from_secs(1)),
        restart_takes: Duration::from_secs(60),
        ..Faults::default()
    };
    let mut config = Config { faults, ..config(&BUSY) };
    config.version = Version::V0_5_16;
    let stage = Stage::of(config, dir.path()).await;
    let spec = HttpWindow {
        num_steps: Some(1000),
        accept_risk: vec!["server_timer".into()],
        deadline: Duration::from_secs(20),
        ..HttpWindow::default()
    };
    let kept = stage.capture(spec, &[0, 1, 2, 3]).await;
    let (why, _) = failed(&kept.record.incident.capture);
    assert!(why.starts_with("the server went away in the middle of the window"), "{why}");
    assert_eq!(kept.end.unproven, None);
}

/// Takes a window of many steps while somebody does `theirs` as soon as it is open on every rank.
async fn disturbed(config: Config, theirs: &str) -> (Stage, tempfile::TempDir, stage::Kept) {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config, dir.path()).await;
    let spec = HttpWindow {
        num_steps: Some(1000),
        accept_risk: vec!["server_timer".into()],
        deadline: Duration::from_secs(2),
        ..HttpWindow::default()
    };
    let grant = stage.grant(skewtrap_core::capture::CaptureSpec::Http(spec), &[0, 1], "i1").await.unwrap();
    let (path, body) = theirs.split_once(' ').unwrap_or((theirs, ""));
    let request = Request::post(path, &body.replace("BASE", &stage.base()));
    let (kept, ()) = tokio::join!(stage.take(&grant, CancellationToken::new()), async {
        while stage.ask(|w| w.open_windows()).await.len() < 2 {
            tokio::task::yield_now().await;
        }
        stage.double.change(move |engine, now| engine.request(now, &request).1);
    });
    (stage, dir, kept)
}

#[tokio::test]
async fn somebody_elses_start_over_ours_is_told_and_its_end_waited_for() {
    let theirs = r#"/start_profile {"output_dir":"BASE/theirs","num_steps":20,"with_stack":false}"#;
    let (stage, _dir, kept) = disturbed(config(&BUSY[..2]), theirs).await;
    let said = format!("{:?}", kept.record.incident.capture);
    assert!(said.contains("somebody"), "{said}");
    assert!(stage.is_closed_and_alive().await, "{said}");
    assert!(stage.store.state.open_windows().unwrap().is_empty());
}

#[tokio::test]
async fn a_second_start_that_makes_torch_raise_ends_in_a_message_on_a_release_that_survives_it() {
    let faults = Faults { torch_raises_on_second_start: true, ..Faults::default() };
    let theirs = r#"/start_profile {"output_dir":"BASE/theirs","num_steps":20,"with_stack":false}"#;
    let (stage, _dir, kept) = disturbed(Config { faults, ..config(&BUSY[..2]) }, theirs).await;
    // The server forgot our window: nothing comes, and nothing can be proven.
    let (why, _) = failed(&kept.record.incident.capture);
    assert!(why.starts_with("the stop was answered with 500"), "{why}");
    assert!(kept.end.unproven.is_some());
    assert!(stage.is_closed_and_alive().await);
}

#[tokio::test]
async fn somebody_elses_stop_ends_ours_early_with_its_files() {
    let (stage, _dir, kept) = disturbed(config(&BUSY[..2]), "/stop_profile").await;
    let captured = done(&kept.record.incident.capture);
    assert_eq!((captured.quality, stage.stops()), (Quality::Usable, 0), "{captured:?}");
    assert!(stage.is_closed_and_alive().await);
}

#[tokio::test]
async fn an_idle_server_is_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&[(0, 0), (0, 0)]), dir.path()).await;
    let spec = skewtrap_core::capture::CaptureSpec::Http(short());
    assert_eq!(stage.grant(spec, &[], "i1").await.unwrap_err().word(), "all_idle");
}

#[tokio::test]
async fn without_its_log_a_server_opens_windows_only_while_every_rank_has_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::of(config(&BUSY), dir.path()).await;
    let spec = || skewtrap_core::capture::CaptureSpec::Http(short());
    for (sees_log, busy, wanted) in [
        (true, &[0, 1, 2, 3][..], None),
        (true, &[1, 2, 3], None),
        (false, &[0, 1, 2, 3], None),
        (false, &[1, 2, 3], Some("needs_log")),
        (false, &[2], Some("needs_log")),
    ] {
        stage.sees_log = sees_log;
        // The double has four ranks, whoever is busy.
        let mut facts = stage.facts(&[0, 1, 2, 3]).await;
        facts.last_work.retain(|rank, _| busy.iter().any(|dp| *rank == Rank::dp(*dp)));
        let refused = stage.grant_of(spec(), &facts, "i1").err().map(|refusal| refusal.word());
        assert_eq!(refused, wanted, "log {sees_log}, busy {busy:?}");
    }
}

#[tokio::test]
async fn an_agent_that_is_told_to_end_closes_its_window_first() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let spec = HttpWindow {
        num_steps: Some(1000),
        accept_risk: vec!["server_timer".into()],
        deadline: Duration::from_secs(20),
        ..HttpWindow::default()
    };
    let grant =
        stage.grant(skewtrap_core::capture::CaptureSpec::Http(spec), &[0, 1, 2, 3], "i1").await.unwrap();
    let cancel = CancellationToken::new();
    let (taken, ()) = tokio::join!(stage.take(&grant, cancel.clone()), async {
        while stage.ask(|w| w.open_windows()).await.len() < 4 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    });
    assert_eq!(stage.stops(), 1);
    assert!(stage.is_closed_and_alive().await);
    assert_eq!(taken.end.unproven, None, "{:?}", taken.record.incident.capture);
}

#[tokio::test]
async fn the_deadline_holds_though_the_task_that_opened_the_window_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let stage = std::sync::Arc::new(Stage::of(config(&BUSY), dir.path()).await);
    let spec = HttpWindow { num_steps: Some(1000), accept_risk: vec!["server_timer".into()], ..short() };
    let grant =
        stage.grant(skewtrap_core::capture::CaptureSpec::Http(spec), &[0, 1, 2, 3], "i1").await.unwrap();
    let taking = stage.clone();
    let task = tokio::spawn(async move { taking.take(&grant, CancellationToken::new()).await });
    while stage.ask(|w| w.open_windows()).await.len() < 4 {
        tokio::task::yield_now().await;
    }
    task.abort();
    // The row of one that is not proven closed stays, with the reason.
    while stage.store.state.open_windows().unwrap().iter().any(|row| row.unproven.is_none()) {
        tokio::task::yield_now().await;
    }
    // Nobody hears the log any more: if the steps ran out first, a stop is tried again.
    assert!((1..=4).contains(&stage.stops()));
    assert!(stage.is_closed_and_alive().await);
}

#[tokio::test]
async fn a_folder_that_the_server_cannot_write_is_refused_before_it_kills_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    std::fs::remove_dir(stage.base()).unwrap();
    let spec = skewtrap_core::capture::CaptureSpec::Http(short());
    let refused = stage.grant(spec, &[0, 1, 2, 3], "i1").await.unwrap_err();
    assert_eq!(refused.word(), "bad_folder");
    assert!(stage.double.requests().iter().all(|r| r.path != "/start_profile"));
}
