//! Windows of nsys sessions, with a fake nsys that has every message that was seen.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use skewtrap::act::nsys::Nsys;
use skewtrap::act::state::{OpenMethod, WindowRow};
use skewtrap::agent::capture::nsys::close;
use skewtrap::agent::cost::Meter;
use skewtrap::clock::{Clock, wall_time};
use skewtrap_core::capture::NsysSession;
use skewtrap_core::capture::governor::Attempt;
use skewtrap_core::capture::stall::UsualIntervals;
use skewtrap_core::incident::CaptureOutcome;
use skewtrap_core::message::serving;
use skewtrap_core::signal::sample::Source;
use skewtrap_trace::rank::Rank;
use tokio_util::sync::CancellationToken;

use crate::support::nsys::{FAKE, Wrapped, report};
use crate::support::stage;

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
    assert!(why.contains("another client collects or generates there"), "{why}");
    assert!(server.calls("start").is_empty() && server.calls("stop").is_empty());

    server.fault("importer_broken", "");
    let why = server.fails("i3", NsysSession::OfTarget).await;
    assert!(why.contains("The importer binary") && why.contains("QdstrmImporter -i"), "{why}");
    std::fs::remove_file(server.state("importer_broken")).unwrap();

    server.fault("permission", "");
    let why = server.fails("i4", NsysSession::OfTarget).await;
    assert!(why.contains("Permission denied"), "{why}");
    std::fs::remove_file(server.state("permission")).unwrap();

    let stops = server.calls("stop").len();
    server.fault("start_stolen", "");
    let why = server.fails("i5b", NsysSession::OfTarget).await;
    assert!(why.contains("which another client has started; it is left alone"), "{why}");
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
    assert!(server.store.state.open_windows().unwrap().is_empty() && server.is_alive());
    let left: Vec<_> = std::fs::read_dir(server.store.bundles.root()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "nothing lies beside the bundle: {left:?}");
}

#[tokio::test]
async fn a_session_that_the_agent_does_not_see_is_told_with_the_tmpdir_to_use() {
    let mut server = Wrapped::fake(&["launch", "--session-new=mine"]);
    let theirs = server.dir.path().display().to_string();
    // Sessions are files below TMPDIR: under another one there are none.
    let elsewhere = server.dir.path().join("elsewhere").display().to_string();
    server.handle.nsys.environment =
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
            let pid = server.handle.server.port().and_then(skewtrap::observe::process::listener).unwrap();
            Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
        });
    let CaptureOutcome::Failed { why, .. } = kept.record.incident.capture else {
        panic!("it cannot be done")
    };
    assert!(why.starts_with("the server went away in the middle of the window"), "{why}");
    assert_eq!(kept.end.unproven, None);
    assert!(server.store.state.open_windows().unwrap().is_empty());
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

#[tokio::test]
async fn what_was_closed_or_whose_agent_ends_while_its_session_was_looked_for_is_not_started() {
    let server = Wrapped::fake(&["launch", "--session-new=mine"]);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let of_target = NsysSession::OfTarget;
    let kept = server.window_until("i1", of_target, Duration::from_millis(300), None, cancel).await;
    let CaptureOutcome::Failed { why, .. } = kept.record.incident.capture else { panic!("it did not begin") };
    assert!(why.contains("before its start was sent"), "{why}");
    assert!(server.calls("start").is_empty() && server.store.state.open_windows().unwrap().is_empty());
}

#[tokio::test]
async fn a_stop_for_which_nothing_can_be_started_is_tried_again_and_then_left_to_the_next_agent() {
    for comes_back in [true, false] {
        let mut server = Wrapped::fake(&["launch", "--session-new=mine"]);
        let program = server.dir.path().join("our-nsys");
        std::os::unix::fs::symlink(FAKE, &program).unwrap();
        let environment = std::mem::take(&mut server.handle.nsys.environment);
        server.handle.nsys = Nsys::new(&program);
        server.handle.nsys.environment = environment;
        let cancel = CancellationToken::new();
        let (of_target, duration) = (NsysSession::OfTarget, Duration::from_millis(1_500));
        let window = server.window_until("i1", of_target, duration, None, cancel.clone());
        let (kept, ()) = tokio::join!(window, async {
            while !server.store.state.open_windows().unwrap().iter().any(|window| window.granted) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::fs::remove_file(&program).unwrap();
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(server.calls("stop").is_empty());
            match comes_back {
                true => std::os::unix::fs::symlink(FAKE, &program).unwrap(),
                false => cancel.cancel(),
            }
        });
        let rows = server.store.state.open_windows().unwrap();
        if comes_back {
            report(&kept);
            assert_eq!((server.calls("stop").len(), rows.len()), (1, 0));
        } else {
            assert!(matches!(kept.record.incident.capture, CaptureOutcome::Open { .. }), "it is left open");
            assert_eq!(rows.iter().map(|row| row.unproven.clone()).collect::<Vec<_>>(), [None]);
        }
    }
}

#[tokio::test]
async fn a_stop_that_is_tried_again_leaves_what_another_client_has_started_since() {
    let mut server = Wrapped::fake(&["launch", "--session-new=retried"]);
    let program = server.dir.path().join("our-nsys");
    std::os::unix::fs::symlink(FAKE, &program).unwrap();
    let environment = std::mem::take(&mut server.handle.nsys.environment);
    server.handle.nsys = Nsys::new(&program);
    server.handle.nsys.environment = environment;
    // Its window was begun minutes ago by this clock, and the other collection is of now.
    server.store.clock = Clock::anchored(wall_time() - Duration::from_secs(300));
    let collected = server.dir.path().join("report.qdstrm");
    let window = server.window_until(
        "i1",
        NsysSession::OfTarget,
        Duration::from_millis(1_500),
        None,
        Default::default(),
    );
    let (kept, mut theirs) = tokio::join!(window, async {
        while !server.store.state.open_windows().unwrap().iter().any(|window| window.granted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::fs::remove_file(&program).unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        // The agent of a session holds the file open that it collects into.
        let script = format!("exec 3>'{}'; read line", collected.display());
        let theirs = std::process::Command::new("sh")
            .args(["-c", &script, "--start-agent", "--session-name=retried"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        while !collected.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::os::unix::fs::symlink(FAKE, &program).unwrap();
        theirs
    });
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    assert!(server.calls("stop").is_empty());
    let CaptureOutcome::Failed { why, .. } = kept.record.incident.capture else { panic!("it has no report") };
    assert!(why.contains("another client has started one there, which is left alone"), "{why}");
    assert!(server.store.state.open_windows().unwrap().is_empty(), "nothing of ours is open");
}

fn id_of(server: &Wrapped) -> String {
    let mut ids = std::fs::read_dir(server.state("sessions")).unwrap().flatten();
    ids.next().unwrap().file_name().into_string().unwrap()
}

#[tokio::test]
async fn a_start_that_takes_effect_late_is_stopped_and_one_that_never_does_is_not_proven_and_keeps_its_row() {
    let (late, never) =
        (Wrapped::fake(&["launch", "--session-new=mine"]), Wrapped::fake(&["launch", "--session-new=mine"]));
    late.fault("start_late", "13");
    never.fault("start_ignored", "");
    let (why, kept) =
        tokio::join!(late.fails("i1", NsysSession::OfTarget), never.window("i2", NsysSession::OfTarget));
    assert!(why.contains("too late for this window, and was stopped at once"), "{why}");
    assert_eq!((late.calls("start").len(), late.calls("stop").len()), (1, 1));
    let state = std::fs::read_to_string(late.state("sessions/").join(id_of(&late)).join("state")).unwrap();
    assert_eq!(state.trim(), "Launched");
    let why = kept.end.unproven.expect("nobody knows whether it begins yet");
    assert!(why.contains("nsys stop --session=") && why.contains("it may begin yet"), "{why}");
    assert_eq!(never.calls("stop").len(), 0, "what did not begin is not stopped");
    let rows = never.store.state.open_windows().unwrap();
    assert_eq!(rows.iter().map(|row| row.unproven.clone()).collect::<Vec<_>>(), [Some(why)]);
}

#[tokio::test]
async fn a_slow_generation_is_waited_for() {
    let server = Wrapped::fake(&["launch", "--session-new=mine"]);
    server.fault("slow_generation", "2");
    let begun = Instant::now();
    report(&server.window("i1", NsysSession::OfTarget).await);
    assert!(begun.elapsed() >= Duration::from_secs(2), "it took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_silence_in_an_nsys_window_is_booked_and_what_no_sample_can_show_is_unknown_and_not_nothing() {
    let server = Wrapped::fake(&["launch", "--session-new=mine"]);
    let costs = |kept: &stage::Kept| match &kept.record.incident.capture {
        CaptureOutcome::Done(captured) => captured.clone(),
        other => panic!("{other:?}"),
    };
    let blind = costs(&server.window("i1", NsysSession::OfTarget).await);
    assert_eq!((blind.stall_s, blind.longest_stall_s), (0.0, None));
    let below = blind.unseen_stall_below_s.expect("nothing was seen");
    assert!(below >= blind.open_s, "a rank may have been silent all the time: {blind:?}");
    assert!(serving(&blind).starts_with("unknown: "), "{}", serving(&blind));

    // DP0 gives a sample every 100 ms, and the next one comes a second after the start.
    let usual = UsualIntervals::from([((Rank::dp(0), Source::Log), Duration::from_millis(100))]);
    let clock = server.store.clock;
    let (begun, meter) = (clock.now(), Meter::new(clock, Duration::ZERO, usual));
    meter.record_samples([(Rank::dp(0), Source::Log, begun + Duration::from_secs(1), true)]);
    let session = NsysSession::OfTarget;
    let metered = server.window_metered("i2", session, Duration::from_millis(1_200), Some(meter));
    let seen = costs(&metered.await);
    assert!(seen.longest_stall_s.is_some_and(|longest| longest > 0.85), "{seen:?}");
    assert_eq!(seen.unseen_stall_below_s, Some(0.2));
    assert!(serving(&seen).starts_with("at least "), "{}", serving(&seen));
}

#[tokio::test]
async fn a_server_that_is_not_under_nsys_and_an_nsys_that_is_not_there_are_said_with_what_to_do() {
    let mut server = Wrapped::start(Path::new("env"), &[]);
    server.handle.nsys = Nsys::new("/nonexistent/nsys");
    let why = server.fails("i1", NsysSession::OfTarget).await;
    assert!(why.starts_with("nsys cannot be run (/nonexistent/nsys: "), "{why}");
    let fake = Path::new(FAKE);
    let environment = server.handle.nsys.environment.clone();
    server.handle.nsys = Nsys::new(fake);
    server.handle.nsys.environment = vec![("FAKE_NSYS_STATE".into(), server.state("").display().to_string())];
    drop(environment);
    let why = server.fails("i2", NsysSession::OfTarget).await;
    assert!(why.contains("runs under no nsys session that can be proven; nsys has no session"), "{why}");
    assert!(why.contains("nsys profile --start-later=true"), "{why}");
}

#[tokio::test]
async fn a_list_that_fails_after_a_crash_is_asked_for_again_until_what_was_left_is_stopped() {
    for comes_back in [true, false] {
        let server = Wrapped::fake(&["launch", "--session-new=mine"]);
        let session = id_of(&server);
        let output = server.dir.path().join("report");
        server.nsys(&["start", &format!("--session={session}"), "-o", &output.display().to_string()]);
        server.fault("list_broken", "");
        let now = server.store.clock.now();
        let method = OpenMethod::Nsys { session, name: "mine".into() };
        let attempt = Attempt {
            id: "i1/1".into(),
            rule: "r".into(),
            target: "server".into(),
            group: "server".into(),
            incident: "i1".into(),
            firing: String::new(),
            at: now,
            times_bound: 1.0,
            over_at: None,
            end: None,
        };
        let window = WindowRow { granted: true, ..WindowRow::of(&attempt, method, now) };
        let (cancel, ended) = (CancellationToken::new(), AtomicBool::new(false));
        let closing = async {
            let result = close(&server.handle.nsys, &window, &output, now, &cancel).await;
            ended.store(true, Ordering::Relaxed);
            result
        };
        let (result, ()) = tokio::join!(closing, async {
            // A list takes two: as JSON, and in columns.
            while server.calls("sessions").len() < 3 && !ended.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            match comes_back {
                true => std::fs::remove_file(server.state("list_broken")).unwrap(),
                false => cancel.cancel(),
            }
        });
        assert_eq!((result.left_open, result.unproven), (!comes_back, None), "{:?}", result.failure);
        assert_eq!(server.calls("stop").len(), usize::from(comes_back));
    }
}
