//! The state on a real file, closed and opened again.

use std::time::Duration;

use super::*;
use crate::act::{attempt_of_a_test, record_of_a_test, request_of_a_test};
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::preflight::Ranks;
use skewtrap_core::capture::window::Stops;
use skewtrap_trace::rank::Rank;

fn attempt(id: &str, s: f64) -> Attempt {
    Attempt {
        firing: "dp_rank=2 high".into(),
        at: Time::from_epoch_s(s),
        times_bound: 1.5,
        ..attempt_of_a_test(id)
    }
}

fn window(attempt: &str) -> WindowRow {
    WindowRow {
        attempt: attempt.into(),
        incident: "i1".into(),
        target: "server".into(),
        method: OpenMethod::Http(StartRequest {
            body: Some(serde_json::json!({"num_steps": 10})),
            ranks: Ranks { busy: vec![Rank::dp(1)], idle: vec![Rank::dp(0)] },
            deadline: Duration::from_secs(5),
            notes: vec!["DP0 had no work when the window opened".into()],
            ..request_of_a_test()
        }),
        sent_at: Time::from_epoch_s(10.0),
        granted: false,
        instance: None,
        unproven: None,
        stops: None,
        ended: false,
        log_from: None,
        logs_from: Default::default(),
        refused_double: false,
    }
}

#[test]
fn attempts_and_open_windows_are_there_after_a_restart_and_nothing_is_refilled() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let agent = state.agent().clone();
    state.begin(&attempt("a1", 10.0), &window("a1"), Some(&record_of_a_test("i1", 10.0))).unwrap();
    state.update(&WindowRow { granted: true, ..window("a1") }).unwrap();
    drop(state);
    let state = State::open(dir.path()).unwrap();
    assert_eq!((state.agent().clone(), state.ledger().unwrap().attempts), (agent, vec![attempt("a1", 10.0)]));
    assert_eq!(state.open_windows().unwrap(), [WindowRow { granted: true, ..window("a1") }]);
    assert_eq!(state.unfinished_incidents().unwrap(), [(record_of_a_test("i1", 10.0), false)]);
    let end = AttemptEnd {
        at: Time::from_epoch_s(12.0),
        stalled: Duration::from_millis(800),
        bytes: 1 << 20,
        unproven: None,
        cost: None,
        harm: None,
    };
    state.end("a1", &end).unwrap();
    assert_eq!(state.open_windows().unwrap(), []);
    assert_eq!(state.ledger().unwrap().attempts[0].end, Some(end));
}

#[test]
fn a_window_that_is_not_proven_closed_keeps_its_row_until_its_server_is_another_instance() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    let unproven = Some("the stop was answered with 500".to_owned());
    let at = Time::from_epoch_s(20.0);
    state
        .end(
            "a1",
            &AttemptEnd {
                at,
                stalled: Duration::ZERO,
                bytes: 0,
                unproven: unproven.clone(),
                ..AttemptEnd::default()
            },
        )
        .unwrap();
    drop(state);
    let state = State::open(dir.path()).unwrap();
    assert_eq!(state.open_windows().unwrap(), [WindowRow { unproven, ..window("a1") }]);
    state.release(Time::from_epoch_s(19.0), None).unwrap();
    state.release(Time::from_epoch_s(1e9), Some("another")).unwrap();
    // The disk took it late: the window is of the instance that came after.
    state.release(window("a1").sent_at - Duration::from_secs(1), Some("server")).unwrap();
    assert_eq!(state.open_windows().unwrap().len(), 1);
    state.release(at, Some("server")).unwrap();
    assert_eq!(state.open_windows().unwrap(), []);
    assert_eq!(state.ledger().unwrap().attempts[0].end.as_ref().unwrap().unproven, None);
}

#[test]
fn a_window_that_is_open_when_the_clock_is_set_is_as_old_as_before_whoever_writes_of_it() {
    let state = State::in_memory().unwrap();
    let at = Time::from_epoch_s;
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    let ahead = ClockJump { before: at(20.0), by_ns: 3_600_000_000_000, started: at(0.0) };
    state.clock_was_set(ahead).unwrap();
    let row = || state.open_windows().unwrap().remove(0);
    assert_eq!(row().sent_at, at(3610.0));
    assert_eq!(state.ledger().unwrap().attempts[0].at, at(3610.0));
    // Whoever closes it goes by a clock that was not set.
    let stops = Stops { count: 1, last: at(15.0), answer: None };
    state.update(&WindowRow { stops: Some(stops), ..window("a1") }).unwrap();
    assert_eq!((row().sent_at, row().stops.unwrap().last), (at(3610.0), at(3615.0)));
    // One that is begun afterwards goes by the new clock, and so it is when that is set back.
    state.begin(&attempt("a2", 3700.0), &WindowRow { sent_at: at(3700.0), ..window("a2") }, None).unwrap();
    let sent = || state.open_windows().unwrap().iter().map(|w| w.sent_at).collect::<Vec<_>>();
    let back = ClockJump { before: at(3710.0), by_ns: -3_600_000_000_000, started: at(3650.0) };
    state.clock_was_set(back).unwrap();
    assert_eq!(sent(), [at(3610.0), at(100.0)], "the first one is of before this process");
    state.update(&WindowRow { sent_at: at(3700.0), ..window("a2") }).unwrap();
    assert_eq!(sent(), [at(3610.0), at(100.0)]);
}

#[test]
fn an_attempt_whose_row_cannot_be_read_is_known_all_the_same() {
    let state = State::in_memory().unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    state.execute("UPDATE attempts SET body = '{}'", []).unwrap();
    assert!(state.ledger().unwrap().attempts.is_empty());
    assert!(state.knows("a1").unwrap() && !state.knows("a2").unwrap());
}

#[test]
fn a_server_that_is_called_otherwise_keeps_its_open_window_and_its_attempts() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let server = |name: &str, address: &str| (name.to_owned(), address.to_owned());
    state.servers_are(&[server("server", "127.0.0.1:1"), server("other", "127.0.0.1:2")]).unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    // Removed for a while: it is still known where it was.
    assert_eq!(state.servers_are(&[server("other", "127.0.0.1:2")]).unwrap(), []);
    let renamed = state.servers_are(&[server("other", "127.0.0.1:2"), server("new", "127.0.0.1:1")]).unwrap();
    assert_eq!(renamed, [("server".to_owned(), "new".to_owned())]);
    let named = |target: &str| WindowRow { target: target.into(), ..window("a1") };
    assert_eq!(state.open_windows().unwrap(), [named("new")]);
    let before = attempt("a1", 10.0);
    let group = if before.group == "server" { "new".to_owned() } else { before.group.clone() };
    assert_eq!(state.ledger().unwrap().attempts, [Attempt { target: "new".into(), group, ..before }]);
    // Another server where it was is not it, and one that keeps its name is not renamed.
    assert_eq!(state.servers_are(&[server("new", "127.0.0.1:3")]).unwrap(), []);
    assert_eq!(state.servers_are(&[server("third", "127.0.0.1:1")]).unwrap(), []);
    assert_eq!(state.open_windows().unwrap(), [named("new")]);
}

#[test]
fn a_row_that_cannot_be_read_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    state.begin(&attempt("a2", 10.0), &window("a2"), None).unwrap();
    let connection = Connection::open(dir.path().join("state.sqlite")).unwrap();
    connection
        .execute_batch(
            "INSERT INTO attempts VALUES ('a1', 5, '{'); INSERT INTO windows VALUES ('a1', 'not JSON');
             INSERT INTO incidents VALUES ('i0', '[]'); INSERT INTO silences VALUES ('7');
             INSERT INTO outbox VALUES ('k1', 'r', 'never', 0, 0, 'x'); INSERT INTO outbox VALUES ('k2', 'r', 0, 0, 0, x'00');",
        )
        .unwrap();
    assert_eq!(state.ledger().unwrap().attempts.len(), 1);
    assert_eq!(state.open_windows().unwrap(), [window("a2")]);
    assert!(state.unfinished_incidents().unwrap().is_empty() && state.silences().unwrap().is_empty());
    let keys: Vec<String> = state.undelivered().unwrap().iter().map(|row| row.key.to_string()).collect();
    assert_eq!(keys, ["k2"]);
    state.end_firing("r", "t", "f", Time::from_epoch_s(1.0)).unwrap();
}

#[test]
fn a_folder_that_was_deleted_while_the_agent_runs_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let state = State::open(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let error = state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap_err();
    assert!(matches!(error, StateError::Vanished { .. }), "{error}");
    // Another agent made it anew.
    let _other = State::open(&folder).unwrap();
    assert!(state.begin(&attempt("a1", 10.0), &window("a1"), None).is_err());
}

#[test]
fn a_database_that_was_put_back_from_a_backup_while_the_agent_runs_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let file = dir.path().join("state.sqlite");
    std::fs::copy(&file, dir.path().join("backup")).unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    std::fs::rename(dir.path().join("backup"), &file).unwrap();
    let error = state.begin(&attempt("a2", 20.0), &window("a2"), None).unwrap_err();
    assert!(matches!(error, StateError::Vanished { .. }), "{error}");
}

#[test]
fn only_the_owner_may_read_the_state() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    // A folder that somebody made for it.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let state = State::open(dir.path()).unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
}

#[test]
fn on_a_full_disk_what_is_open_is_still_known_and_its_end_is_booked_from_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let Some(disk) = FullDisk::over(&folder) else { return };
    let state = State::open(&folder).unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    drop(state);
    disk.fill();
    let state = State::open(&folder).unwrap();
    assert_eq!(state.open_windows().unwrap(), [window("a1")]);
    let end = AttemptEnd {
        at: Time::from_epoch_s(12.0),
        stalled: Duration::ZERO,
        bytes: 1,
        ..AttemptEnd::default()
    };
    state.end("a1", &end).unwrap();
    drop(state);
    // Even with the reserve spent.
    let _ = std::fs::remove_file(folder.join("reserve"));
    disk.fill();
    let state = State::open(&folder).unwrap();
    assert_eq!(state.open_windows().unwrap(), []);
    assert_eq!(state.ledger().unwrap().attempts[0].end, Some(end));
}

#[test]
fn a_disk_that_fills_up_while_a_window_is_open_still_takes_its_end_and_opens_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let Some(disk) = FullDisk::over(&folder) else { return };
    let state = State::open(&folder).unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    disk.fill();
    let end = AttemptEnd { at: Time::from_epoch_s(12.0), bytes: 1, ..AttemptEnd::default() };
    let end_at = end.at;
    let row = OutboxRow {
        key: "oncall/i1:captured".into(),
        receiver: "oncall".into(),
        created: end.at,
        due: end.at,
        attempts: 0,
        body: vec![b'x'; 200_000],
    };
    state.end("a1", &end).unwrap();
    state.add_to_outbox(std::slice::from_ref(&row)).unwrap();
    assert_eq!(state.open_windows().unwrap(), []);
    assert_eq!(state.ledger().unwrap().attempts[0].end, Some(end));
    assert_eq!(state.undelivered().unwrap(), std::slice::from_ref(&row));
    // The last page, too.
    disk.fill();
    state.reschedule(&row.key, 1, end_at).unwrap();
    state.remove_from_outbox(&row.key).unwrap();
    assert_eq!(state.undelivered().unwrap(), []);
    let refused = state.begin(&attempt("a2", 20.0), &window("a2"), None).unwrap_err().to_string();
    assert!(
        refused.contains("no room for the end of a window") && refused.contains("free some"),
        "{refused}"
    );
    state.later(|state| state.keep_reserve());
    assert!(state.settle(Duration::from_secs(5)));
    assert!(state.failed().is_some_and(|why| why.contains(&folder.display().to_string())), "for /healthz");
    disk.free();
    state.begin(&attempt("a2", 20.0), &window("a2"), None).unwrap();
    state.later(|state| state.keep_reserve());
    assert!(state.settle(Duration::from_secs(5)));
    assert_eq!(state.failed(), None);
}

#[test]
fn a_disk_that_takes_no_writes_still_tells_what_is_open_and_opens_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let Some(disk) = FullDisk::over(&folder) else { return };
    let state = State::open(&folder).unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    let _ = std::fs::copy(folder.join("state.sqlite-wal"), folder.join("kept"));
    drop(state);
    // A program that another test starts at this moment may still hold a file open for writing.
    assert!((0..1000).any(|_| disk.mount("remount,ro")), "it becomes read-only");
    let Ok(state) = State::open(&folder) else {
        // The lock itself cannot be taken: the agent watches with a state in memory.
        return;
    };
    assert_eq!(state.open_windows().unwrap(), [window("a1")]);
    assert!(state.read_only().is_some() && !state.outlives_restart());
}

/// A file system of a megabyte over a folder.
struct FullDisk(std::path::PathBuf);

impl FullDisk {
    /// `None`, said loudly, where this user may not mount.
    fn over(folder: &Path) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let disk = Self(folder.to_owned());
        if disk.mount("size=1400k,mode=0777") {
            return Some(disk);
        }
        std::mem::forget(disk);
        eprintln!("SKIPPED: a disk that is full (no tmpfs can be mounted here)");
        None
    }

    fn mount(&self, options: &str) -> bool {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.0);
        mount.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    }

    /// Cut to nothing: a process that another test starts at this moment may still hold the file open, and its room.
    fn free(&self) {
        std::fs::File::create(self.0.join("filler")).unwrap();
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_second_agent_on_one_state_folder_is_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = State::open(dir.path()).unwrap();
    let refused = State::open(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("is in use by another skewtrap (process "), "{refused}");
    drop(first);
    State::open(dir.path()).expect("it is free again");
}

#[test]
fn a_message_keeps_its_key_and_its_bytes_until_it_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let row = OutboxRow {
        key: "oncall/i1:fired".into(),
        receiver: "oncall".into(),
        created: Time::from_epoch_s(1.0),
        due: Time::from_epoch_s(1.0),
        attempts: 0,
        body: b"{\"value\": 2.1000000000000001}".to_vec(),
    };
    state.add_to_outbox(std::slice::from_ref(&row)).unwrap();
    state.reschedule(&row.key, 3, Time::from_epoch_s(60.0)).unwrap();
    // The same message offered again neither doubles it nor forgets its tries.
    state.add_to_outbox(std::slice::from_ref(&row)).unwrap();
    drop(state);
    let state = State::open(dir.path()).unwrap();
    let kept = OutboxRow { attempts: 3, due: Time::from_epoch_s(60.0), ..row };
    assert_eq!(state.undelivered().unwrap(), [kept]);
    state.remove_from_outbox("oncall/i1:fired").unwrap();
    assert_eq!(state.undelivered().unwrap(), []);
}

#[test]
fn old_attempts_are_forgotten_but_never_one_whose_window_may_be_open() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    state.begin(&attempt("open", 1.0), &window("open"), Some(&record_of_a_test("i1", 10.0))).unwrap();
    state.begin(&attempt("old", 2.0), &window("old"), Some(&record_of_a_test("i1", 10.0))).unwrap();
    let end = AttemptEnd {
        at: Time::from_epoch_s(3.0),
        stalled: Duration::ZERO,
        bytes: 0,
        unproven: None,
        cost: None,
        harm: None,
    };
    state.end("old", &end).unwrap();
    state.prune(Time::from_epoch_s(1e9)).unwrap();
    let ids: Vec<String> = state.ledger().unwrap().attempts.into_iter().map(|a| a.id).collect();
    assert_eq!(ids, ["open"]);
}

#[test]
fn a_state_of_a_later_release_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(State::open(dir.path()).unwrap());
    let file = dir.path().join("state.sqlite");
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(State::open(dir.path()), Err(StateError::Newer { found: 99, .. })));
}

#[test]
fn what_was_seen_to_end_is_no_mark_after_a_restart_and_what_was_not_is() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let other = Attempt { firing: "dp_rank=1 low".into(), ..attempt("a2", 11.0) };
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    state.begin(&other, &window("a2"), None).unwrap();
    let at = Time::from_epoch_s(20.0);
    state.end_firing("dp-load-skew", "server", "dp_rank=2 high", at).unwrap();
    // Its window ended after it was over: neither forgets the other.
    let end = AttemptEnd { at, stalled: Duration::ZERO, bytes: 7, unproven: None, cost: None, harm: None };
    state.end("a1", &end).unwrap();
    drop(state);
    let kept = State::open(dir.path()).unwrap().ledger().unwrap().attempts;
    assert_eq!(kept, [Attempt { over_at: Some(at), end: Some(end), ..attempt("a1", 10.0) }, other]);
}

#[test]
fn that_somebody_let_windows_open_again_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    state.begin(&attempt("a1", 10.0), &window("a1"), None).unwrap();
    let harm = skewtrap_core::capture::governor::Harm { why: "it died".into(), is_acknowledged: false };
    let at = Time::from_epoch_s(20.0);
    let end =
        AttemptEnd { at, stalled: Duration::ZERO, bytes: 7, unproven: None, cost: None, harm: Some(harm) };
    state.end("a1", &end).unwrap();
    let acknowledged = |state: &State| {
        let attempts = state.ledger().unwrap().attempts;
        attempts[0].end.as_ref().unwrap().harm.as_ref().unwrap().is_acknowledged
    };
    state.resume(Some("another")).unwrap();
    assert!(!acknowledged(&state));
    state.resume(Some("server")).unwrap();
    drop(state);
    assert!(acknowledged(&State::open(dir.path()).unwrap()));
}

#[test]
fn an_attempt_that_an_earlier_release_wrote_is_read_and_goes_on_counting() {
    let dir = tempfile::tempdir().unwrap();
    drop(State::open(dir.path()).unwrap());
    let old = r#"{"id":"i1/1","rule":"r","target":"t","group":"t","incident":"i1","at":10.0,"badness":1.5,"end":null}"#;
    let file = dir.path().join("state.sqlite");
    Connection::open(&file)
        .unwrap()
        .execute("INSERT INTO attempts (id, at, body) VALUES ('i1/1', 10000000000, ?1)", [old])
        .unwrap();
    let state = State::open(dir.path()).unwrap();
    let kept = state.ledger().unwrap().attempts;
    assert_eq!((kept[0].times_bound, kept[0].firing.as_str(), kept[0].over_at), (1.5, "", None));
}

#[test]
fn silences_are_there_after_a_restart_until_others_take_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let silence = |rule: Option<&str>, s: f64| skewtrap_core::status::Silence {
        rule: rule.map(Into::into),
        target: None,
        until: Time::from_epoch_s(s),
        why: Some("load test".into()),
    };
    let two = [silence(None, 1e9), silence(Some("dp-load-skew"), 2e9)];
    State::open(dir.path()).unwrap().save_silences(&two).unwrap();
    let state = State::open(dir.path()).unwrap();
    assert_eq!(state.silences().unwrap(), two);
    state.save_silences(&two[1..]).unwrap();
    assert_eq!(state.silences().unwrap(), two[1..]);
}

#[test]
fn what_a_capture_stored_is_known_with_its_end_until_its_incident_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let record = record_of_a_test("i1", 10.0);
    state.begin(&attempt("a1", 10.0), &window("a1"), Some(&record)).unwrap();
    let end = AttemptEnd {
        at: Time::from_epoch_s(12.0),
        stalled: Duration::ZERO,
        bytes: 5,
        unproven: None,
        cost: None,
        harm: None,
    };
    let stored = StoredCapture::failed("no whole file came".into(), end.clone());
    state.finish("a1", "i1", &stored).unwrap();
    assert!(state.open_windows().unwrap().is_empty());
    assert_eq!(state.ledger().unwrap().attempts[0].end, Some(end));
    let mut completed = record;
    completed.complete(&stored);
    assert_eq!(state.unfinished_incidents().unwrap(), [(completed.clone(), false)]);
    state.reported("i1").unwrap();
    drop(state);
    let state = State::open(dir.path()).unwrap();
    assert_eq!(state.unfinished_incidents().unwrap(), [(completed, true)], "after a restart too");
    state.delete_incident("i1").unwrap();
    assert!(state.unfinished_incidents().unwrap().is_empty());
    state.reported("i1").unwrap();
    assert!(state.unfinished_incidents().unwrap().is_empty(), "what is forgotten stays so");
}

#[test]
fn a_folder_is_free_again_at_once_though_a_program_that_is_being_started_has_a_copy_of_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let copy = state.lock.as_ref().expect("a folder has a lock").0.try_clone().unwrap();
    assert!(matches!(State::open(dir.path()), Err(StateError::InUse { .. })), "while it is held");
    drop(state);
    State::open(dir.path()).expect("the lock was given back");
    drop(copy);
}
