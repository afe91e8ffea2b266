//! Windows on disks that are full, or that do not let go: small file systems are mounted where this
//! user may do so.

use std::path::Path;
use std::time::Duration;

use crate::support::stage;
use crate::support::stage::{SmallDisk, Stage, config, done, failed, short};
use skewtrap::act::bundle::Bundles;
use skewtrap::act::retention;
use skewtrap_core::capture::captured::Quality;
use skewtrap_core::capture::keep::Keep;
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use skewtrap_trace::time::Time;
use tokio_util::sync::CancellationToken;

const BUSY: [(u32, u32); 2] = [(9, 0), (8, 0)];

#[tokio::test]
async fn a_disk_that_is_full_in_the_middle_of_an_export_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let spec = CaptureSpec::Http(short());
    let grant = stage.grant(spec, &[0, 1], "i1").await.unwrap();
    let Some(disk) = SmallDisk::over(Path::new(&stage.base()), 1 << 16) else { return };
    std::fs::create_dir(Path::new(&stage.base()).join("skewtrap-i1")).unwrap();
    disk.fill();
    let kept = stage.take(&grant, CancellationToken::new()).await;
    let (why, _) = failed(&kept.record.incident.capture);
    assert!(why.starts_with("the server went away in the middle of the window"), "{why}");
    assert!(why.contains("No space left on device") && why.contains("raise keep.min_free"), "{why}");
    assert_eq!(kept.end.unproven, None);
    assert!(stage.store.state.open_windows().unwrap().is_empty());
}

#[tokio::test]
async fn a_bundle_that_does_not_fit_is_told_and_the_files_stay_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let Some(disk) = SmallDisk::over(&dir.path().join("incidents"), 1 << 14) else { return };
    disk.fill();
    let kept = stage.capture(HttpWindow::default(), &[0, 1]).await;
    let captured = done(&kept.record.incident.capture);
    let trouble = kept.trouble.unwrap();
    assert!(trouble.contains("No space left on device") && trouble.contains("free some space"), "{trouble}");
    assert!(captured.notes.contains(&trouble), "{:?}", captured.notes);
    assert_eq!((captured.quality, captured.files.len()), (Quality::Usable, 2));
    assert!(captured.files.iter().all(|f| f.path.starts_with(&stage.base()) && f.inode.is_some()));
    assert!(stage.store.state.open_windows().unwrap().is_empty() && stage.is_closed_and_alive().await);
}

#[test]
fn a_bundle_that_cannot_be_deleted_is_named_and_goes_on_counting_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    let record = |id: &str, s: f64| stage::record(id, "agent".into(), Time::from_epoch_s(s));
    bundles.create(&record("old", 1.0), &[b' '; 4000]).unwrap();
    bundles.create(&record("new", 2.0), b"").unwrap();
    // A file system in it is in the way even of the superuser.
    let Some(mut disk) = SmallDisk::over(&dir.path().join("old/traces"), 1 << 14) else { return };
    disk.fill();
    disk.read_only();
    let keep = Keep { count: 9, age: Duration::from_secs(1_000_000), bytes: 10_000 };
    let sweep = || retention::sweep(&bundles, "agent", &keep, 1000, Time::from_epoch_s(1000.0));
    for _ in 0..2 {
        let swept = sweep();
        assert!(swept.over && swept.bytes_left > 10_000, "{swept:?}");
        disk.is_now_at(dir.path().join(".old.deleted/traces"));
        assert!(swept.stuck[0].0.ends_with(".old.deleted/traces"), "{swept:?}");
        assert!(!swept.deleted.contains(&"old".to_owned()));
    }
    drop(disk);
    let swept = sweep();
    assert_eq!((swept.deleted, swept.stuck, swept.over), (vec!["old".to_owned()], Vec::new(), false));
    assert!(!dir.path().join(".old.deleted").exists());
}

#[tokio::test]
async fn an_attempt_that_does_not_fit_into_the_state_sends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::over(&dir.path().join("state"), 1 << 18) else { return };
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let spec = CaptureSpec::Http(short());
    let grant = stage.grant(spec, &[0, 1], "i1").await.unwrap();
    disk.fill();
    let (links, _status) = stage::links(None, &stage.store, CancellationToken::new());
    let record = stage::record("i1", stage.store.state.agent().clone(), stage.store.clock.now());
    let evidence = std::future::ready(Vec::new());
    let taken = stage::take(&stage.store, &stage.handle, &grant, record, evidence, links).await;
    let error = taken.unwrap_err().to_string();
    assert!(error.contains("no room for the end of a window") && error.contains("free some"), "{error}");
    assert!(stage.double.requests().iter().all(|r| r.path != "/start_profile"));
}
