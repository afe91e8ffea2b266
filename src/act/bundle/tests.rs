//! Bundles on a real folder.

use super::*;
use crate::act::record_of_a_test;
use skewtrap_core::capture::governor::AttemptEnd;
use skewtrap_core::incident::Exchange;
use skewtrap_trace::rank::Rank;

fn artifact(path: &Path) -> Artifact {
    let found = fs::metadata(path).unwrap();
    Artifact {
        path: path.display().to_string(),
        size: found.len(),
        inode: found.ino(),
        whole: true,
        ..Artifact::default()
    }
}

#[test]
fn a_bundle_appears_whole_or_not_at_all_and_is_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    let mut record = record_of_a_test("i1", 10.0);
    let path = bundles.create(&record, b"{}\n").unwrap();
    record.incident.bundle = Some(path.display().to_string());
    bundles.write(&record).unwrap();
    assert_eq!(bundles.read("i1"), Some(record));
    let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["evidence.jsonl", "incident.json"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half-named is left");
}

#[test]
fn files_are_moved_in_and_what_cannot_be_moved_is_referenced_by_inode() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(&dir.path().join("incidents"), "agent".into()).unwrap();
    bundles.create(&record_of_a_test("i1", 10.0), b"").unwrap();
    let server = dir.path().join("skewtrap-i1");
    fs::create_dir(&server).unwrap();
    let (plain, link) = (server.join("a-TP-0.trace.json.gz"), server.join("b-TP-1.trace.json.gz"));
    fs::write(&plain, b"trace").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
    let linked = Artifact { path: link.display().to_string(), inode: 7, ..Artifact::default() };
    let files = bundles.adopt("i1", 1, &[artifact(&plain), linked]).unwrap();
    assert_eq!((files[0].path.as_str(), files[0].inode), ("traces/a-TP-0.trace.json.gz", None));
    assert_eq!((files[1].path.as_str(), files[1].inode), (link.to_str().unwrap(), Some(7)));
    assert!(link.exists() && !plain.exists() && server.exists());
    assert_eq!(bundles.traces("i1", 1).len(), 1);
}

#[test]
fn what_a_crash_left_half_named_is_completed_or_marked() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    for (incident, with_record) in [("whole", true), ("half", false), ("known", false)] {
        let partial = dir.path().join(format!(".{incident}.partial"));
        fs::create_dir(&partial).unwrap();
        let record =
            if with_record { json(&record_of_a_test(incident, 1.0)) } else { b"{\"agent\":".to_vec() };
        fs::write(partial.join(INCIDENT), record).unwrap();
    }
    // Killed before a byte was written: there is nothing to keep.
    fs::create_dir(dir.path().join(".nothing.partial")).unwrap();
    fs::write(dir.path().join(".nothing.partial").join(INCIDENT), "").unwrap();
    let known = [record_of_a_test("known", 1.0)];
    let (mut recovered, errors) = bundles.recover(&known, in_an_hour());
    assert!(errors.is_empty(), "{errors:?}");
    recovered.sort_by_key(|r| format!("{r:?}"));
    let completed = |name: &str| Recovered::Completed(name.into());
    assert_eq!(recovered, [completed("known"), completed("whole"), Recovered::Marked("half".into())]);
    assert!(
        bundles.read("whole").is_some()
            && bundles.read("known").is_some()
            && dir.path().join("half.incomplete").is_dir()
    );
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().contains("nothing")));
    assert_eq!(bundles.recover(&known, in_an_hour()).0, []);
}

#[test]
fn a_bundle_that_another_agent_is_writing_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    let theirs = Record { agent: "other".into(), ..record_of_a_test("theirs", 1.0) };
    for (incident, record) in [("theirs", json(&theirs)), ("begun", Vec::new()), ("half", b"{".to_vec())] {
        let partial = dir.path().join(format!(".{incident}.partial"));
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join(INCIDENT), record).unwrap();
    }
    let there = || ["theirs", "begun", "half"].map(|i| dir.path().join(format!(".{i}.partial")).is_dir());
    assert_eq!(bundles.recover(&[], crate::world::wall_time()).0, []);
    assert_eq!(there(), [true; 3]);
    assert_eq!(bundles.recover(&[], in_an_hour()).0, [Recovered::Marked("half".into())]);
    assert_eq!(there(), [true, false, false]);
}

#[test]
fn a_half_written_bundle_of_another_user_is_left_alone_and_is_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let allow = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    allow(dir.path(), 0o777);
    let partial = dir.path().join(".theirs.partial");
    fs::create_dir(&partial).unwrap();
    allow(&partial, 0o000);
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    let recovering = std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            let (same, other) = (rustix::process::Uid::ROOT, rustix::process::Uid::from_raw(65534));
            rustix::thread::set_thread_res_uid(same, other, same).unwrap();
        }
        bundles.recover(&[], in_an_hour())
    });
    let (recovered, errors) = recovering.join().unwrap();
    assert_eq!((recovered, errors.len()), (Vec::new(), 0));
    assert!(partial.is_dir());
}

#[test]
fn a_bundle_that_cannot_be_completed_keeps_no_other_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    let known: Vec<_> = ["i1", "i2", "i3"].map(|id| record_of_a_test(id, 1.0)).into();
    for (incident, fails) in [("i1", false), ("i2", true), ("i3", false)] {
        let partial = dir.path().join(format!(".{incident}.partial"));
        fs::create_dir(&partial).unwrap();
        if fails {
            fs::create_dir(partial.join(INCIDENT)).unwrap();
        }
    }
    let (recovered, errors) = bundles.recover(&known, crate::world::wall_time());
    let [error] = &errors[..] else { panic!("{errors:?}") };
    assert!(error.to_string().contains(".i2.partial") && !error.is_of_room(), "{error}");
    assert_eq!(recovered.len(), 2);
    assert!(bundles.read("i1").is_some() && bundles.read("i3").is_some());
}

fn in_an_hour() -> Time {
    crate::world::wall_time() + Duration::from_secs(3600)
}

#[test]
fn what_is_left_in_the_scratch_folder_goes_into_the_bundle_and_only_its_owner_enters() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(&dir.path().join("incidents"), "agent".into()).unwrap();
    let path = bundles.create(&record_of_a_test("i1", 1.0), b"").unwrap();
    let scratch = bundles.scratch("i1", 1).unwrap();
    fs::create_dir(scratch.join("folder")).unwrap();
    fs::write(scratch.join("out.txt"), b"x").unwrap();
    assert_eq!(bundles.scratched("i1", 1), [scratch.join("out.txt")]);
    bundles.adopt("i1", 1, &[]).unwrap();
    assert!(!scratch.exists() && path.join("left/out.txt").exists() && path.join("left/folder").is_dir());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    // An empty one just goes.
    bundles.scratch("i1", 1).unwrap();
    bundles.adopt("i1", 1, &[]).unwrap();
    assert!(!scratch.exists());
}

#[test]
fn a_second_capture_of_an_incident_lies_beside_the_first_under_names_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(&dir.path().join("incidents"), "agent".into()).unwrap();
    let mut record = record_of_a_test("i1", 1.0);
    let path = bundles.create(&record, b"first").unwrap();
    for window in 1..=2 {
        let file = dir.path().join("a.trace.json.gz");
        fs::write(&file, format!("of window {window}")).unwrap();
        let scratch = bundles.scratch("i1", window).unwrap();
        fs::write(scratch.join("left.txt"), b"x").unwrap();
        let files = bundles.adopt("i1", window, &[artifact(&file)]).unwrap();
        record.files.extend(files);
        if window == 1 {
            record.incident.capture_again(skewtrap_core::incident::CaptureOutcome::None, Some(1.2));
            bundles.create(&record, b"second").unwrap();
        }
    }
    let paths: Vec<&str> = record.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(paths, ["traces/a.trace.json.gz", "traces-2/a.trace.json.gz"]);
    let text = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    assert_eq!(
        [text("traces/a.trace.json.gz"), text("traces-2/a.trace.json.gz")],
        ["of window 1", "of window 2"]
    );
    assert_eq!([text("evidence.jsonl"), text("evidence-2.jsonl")], ["first", "second"]);
    assert!(path.join("left/left.txt").is_file() && path.join("left-2/left.txt").is_file());
    assert_eq!((bundles.traces("i1", 1).len(), bundles.traces("i1", 2).len()), (1, 1));
}

#[test]
fn a_bundle_that_is_created_again_keeps_its_files_exchanges_and_processes() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    let begun = record_of_a_test("i1", 1.0);
    bundles.create(&begun, b"").unwrap();
    let file = CapturedFile { path: "traces/a.trace.json.gz".into(), ..CapturedFile::default() };
    let exchange = Exchange {
        at: Time::from_epoch_s(2.0),
        request: "POST /start_profile".into(),
        body: None,
        answer: "200".into(),
        took_s: 0.5,
    };
    let capture = StoredCapture {
        files: vec![file],
        exchanges: vec![exchange],
        processes: [(7, Rank::dp(2).labels())].into(),
        ..StoredCapture::failed("it failed".into(), AttemptEnd::default())
    };
    bundles.add_files("i1", &capture).unwrap();
    let mut again = begun.notifying(vec!["oncall".into()]);
    again.incident.resolved_at = None;
    bundles.create(&again, b"later").unwrap();
    let mut expected = again.clone();
    expected.add_files(&capture);
    assert_eq!(bundles.read("i1"), Some(expected.clone()));
    // A record that was read from it has what is there already: nothing is listed twice.
    expected.files.push(CapturedFile { path: "traces-2/b.trace.json.gz".into(), ..CapturedFile::default() });
    bundles.create(&expected, b"").unwrap();
    assert_eq!(bundles.read("i1"), Some(expected));
}

#[test]
fn incidents_of_this_agent_that_fired_since_are_found_again_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    let open = |id: &str, fired_at_s| {
        let mut record = record_of_a_test(id, fired_at_s).notifying(vec!["oncall".into()]);
        record.incident.resolved_at = None;
        record
    };
    let foreign = Record { agent: "another".into(), ..open("i3", 20.0) };
    for record in
        [open("i2", 20.0), open("i1", 10.0), foreign, open("old", 5.0), record_of_a_test("i4", 20.0)]
    {
        bundles.create(&record, b"").unwrap();
    }
    fs::create_dir(dir.path().join("copy")).unwrap();
    fs::copy(dir.path().join("i1").join(INCIDENT), dir.path().join("copy").join(INCIDENT)).unwrap();
    let found = bundles.fired_since(Time::from_epoch_s(10.0));
    assert_eq!(found, [open("i1", 10.0), open("i2", 20.0), record_of_a_test("i4", 20.0)]);
}

#[test]
fn a_record_that_cannot_be_read_is_set_aside_and_keeps_no_incident_from_being_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
    let record = record_of_a_test("i1", 10.0);
    let path = bundles.create(&record, b"").unwrap();
    fs::write(path.join(INCIDENT), b"{\"of\": \"a later release\"}").unwrap();
    assert!(bundles.update(record.incident.clone()).unwrap());
    assert_eq!(bundles.read("i1").unwrap().incident.fired_at, record.incident.fired_at);
    let aside = fs::read_to_string(path.join("incident.json.unreadable")).unwrap();
    assert!(aside.contains("a later release"));
}

#[test]
fn a_record_of_a_release_that_kept_no_receivers_is_read() {
    let mut old =
        serde_json::to_value(record_of_a_test("i1", 10.0).notifying(vec!["oncall".into()])).unwrap();
    old.as_object_mut().unwrap().remove("notify").expect("it was written");
    let read: Record = serde_json::from_value(old).expect("it is read");
    assert!(read.notify.is_empty());
}
