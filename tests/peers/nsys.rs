//! Windows of the real nsys, and its reports.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use skewtrap::act::state::{OpenMethod, WindowRow};
use skewtrap::agent::capture::nsys::{close, output_of};
use skewtrap_core::capture::NsysSession;
use skewtrap_core::capture::nsys::{Readiness, Session};
use skewtrap_trace::time::Time;

use crate::beside::installed;
use crate::support::comparison::refused;
use crate::support::nsys::{Wrapped, report};

/// The nsys of this machine, for one test at a time.
struct RealNsys {
    program: PathBuf,
    /// Locked while it lives, also against other runs of these tests.
    _alone: File,
}

/// None is said loudly.
///
/// All nsys of a machine share a memory file. One that is killed while it holds the lock in there leaves it locked,
/// and every later launch then fails with `Agent launcher failed.`. So where no nsys runs, the file is removed.
fn real_nsys() -> Option<RealNsys> {
    let Some(program) = installed(&["nsys"]) else {
        eprintln!("SKIPPED: no nsys on PATH; scripts/install-nsys.sh FOLDER unpacks one");
        return None;
    };
    let alone = File::create(std::env::temp_dir().join("skewtrap-nsys-tests.lock")).unwrap();
    alone.lock().unwrap();
    if !another_nsys_runs() {
        let files = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        for file in files.filter(|f| f.file_name().to_string_lossy().starts_with("NSys-")) {
            let _ = std::fs::remove_file(file.path());
        }
    }
    Some(RealNsys { program, _alone: alone })
}

/// What the sessions of these tests are called, before the process that made them.
const SESSION: &str = "skewtrap-test";

/// Whether somebody's nsys runs here. What earlier tests left behind waits for the lock without end: it is killed.
fn another_nsys_runs() -> bool {
    let mut another = false;
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(line) = std::fs::read_to_string(process.path().join("cmdline")) else { continue };
        if !line.split('\0').next().is_some_and(|program| program.ends_with("/nsys")) {
            continue;
        }
        if line.contains(&format!("--session-name={SESSION}-")) {
            let _ = Command::new("kill").arg("-KILL").arg(process.file_name()).status();
        } else {
            another = true;
        }
    }
    another
}

#[tokio::test]
async fn the_real_nsys_takes_two_windows_of_a_live_process_without_ending_it() {
    let Some(nsys) = real_nsys() else { return };
    // A session that an earlier run left behind would keep the name from this one.
    let session = format!("--session-new={SESSION}-{}", std::process::id());
    let mut server = Wrapped::start(&nsys.program, &["launch", &session, "--trace=osrt"]);
    for incident in ["i1", "i2"] {
        let kept = server.window(incident, NsysSession::OfTarget).await;
        let (report, _) = report(&kept);
        let sqlite = server.dir.path().join(format!("{incident}.sqlite"));
        let (out, rep) = (sqlite.display().to_string(), report.display().to_string());
        server.nsys(&["export", "--type", "sqlite", "-o", &out, "-f", "true", &rep]);
        let database = rusqlite::Connection::open(&sqlite).unwrap();
        let strings: i64 =
            database.query_row("SELECT count(*) FROM StringIds", [], |row| row.get(0)).unwrap();
        assert!(strings > 100, "the export of a real window has strings: {strings}");
    }
    assert!(server.is_alive());
    assert_eq!(server.store.state.ledger().unwrap().attempts.len(), 2);
}

/// A window that an agent left behind just as it started it.
fn left(session: &Session, sent_at: Time, granted: bool) -> WindowRow {
    WindowRow {
        attempt: "i1/1".into(),
        incident: "i1".into(),
        target: "server".into(),
        method: OpenMethod::Nsys { session: session.id.clone(), name: session.name.clone() },
        sent_at,
        granted,
        instance: None,
        unproven: None,
        stops: None,
        ended: false,
        log_from: None,
        logs_from: Default::default(),
        refused_double: false,
    }
}

#[tokio::test]
async fn a_real_collection_that_was_left_behind_is_stopped_however_late_and_somebody_elses_never() {
    let Some(nsys) = real_nsys() else { return };
    let name = format!("{SESSION}-{}", std::process::id());
    let server = Wrapped::start(&nsys.program, &["launch", &format!("--session-new={name}"), "--trace=osrt"]);
    let (nsys, clock) = (&server.handle.nsys, server.store.clock);
    let session = || async {
        let sessions = nsys.sessions().await.unwrap();
        sessions.into_iter().find(|s| s.name == name).unwrap()
    };
    let output = output_of(&server.store, "i1", 1).await;
    server.store.bundles.scratch("i1", 1).unwrap();
    let (ready, hour) = (session().await, Duration::from_secs(3600));

    // Ours began when ours was sent: the agent is back after an hour, and stops it at once.
    let sent_at = clock.now();
    nsys.start(&ready.id, &output, &[], sent_at).await.unwrap();
    assert_eq!(session().await.readiness(), Readiness::Collecting);
    if skewtrap::observe::process::collecting_since(&name).is_none() {
        eprintln!("SKIPPED: when a collection began (it cannot be seen here)");
        return nsys.stop(&ready.id, clock.now()).await.map(|_| ()).unwrap();
    }
    let never = tokio_util::sync::CancellationToken::new();
    let came = close(nsys, &left(&ready, sent_at, false), &output, clock.now() + hour, &never).await;
    assert_eq!((session().await.readiness(), came.unproven), (Readiness::Ready, None), "{:?}", came.failure);
    assert_eq!(came.artifacts.len(), 1, "its report is kept: {:?}", came.failure);

    // Somebody else's began an hour later, whether ours was seen to begin or not.
    let theirs = server.dir.path().join("theirs");
    nsys.start(&ready.id, &theirs, &[], clock.now()).await.unwrap();
    for granted in [false, true] {
        let came =
            close(nsys, &left(&ready, clock.now() - hour, granted), &output, clock.now(), &never).await;
        let why = came.failure.unwrap();
        assert!(why.contains("that is another client's, and is left alone"), "{why}");
        // A start of ours that nobody saw take effect may still be on its way.
        let unproven = (!granted).then_some(why);
        assert_eq!((session().await.readiness(), came.unproven), (Readiness::Collecting, unproven));
    }
    nsys.stop(&ready.id, clock.now()).await.unwrap();
}

#[test]
fn a_report_of_a_real_nsys_is_exported_and_its_missing_kernels_are_named() {
    let Some(nsys) = real_nsys() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let report = dir.path().join("short.nsys-rep");
    let profiled = Command::new(&nsys.program)
        .arg("profile")
        .arg(format!("--session-new={SESSION}-{}", std::process::id()))
        .args(["--trace=osrt", "--sample=none", "--cpuctxsw=none", "--force-overwrite=true", "-o"])
        .arg(&report)
        .args(["sleep", "0.2"])
        .output()
        .expect("nsys runs");
    if !report.is_file() {
        let said = String::from_utf8_lossy(&profiled.stderr).into_owned();
        eprintln!("SKIPPED: this nsys made no report here: {said}");
        return;
    }
    let said = refused(std::slice::from_ref(&report));
    assert!(said.contains("short.nsys-rep: the Nsight export has no GPU kernels"), "{said}");
    assert!(said.contains("--trace=cuda"), "what to do is said: {said}");
}
