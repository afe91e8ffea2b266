//! Ranks that are compared by their summaries, and what is no summary.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::support::comparison::{attention_of, compared, here, named, refused, said, skew, summarise_half};
use skewtrap_trace::summary;
use skewtrap_trace::verdict::Kind;

fn summaries_of(path: &Path, folder: &Path) -> Vec<PathBuf> {
    compared(&[path.to_owned()]).write_summaries(folder).expect("they can be written")
}

/// The summary of a rank of the skewed window, changed.
fn changed(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = summaries_of(&skew(), dir.path()).swap_remove(0);
    let mut text: Value = serde_json::from_slice(&fs::read(&path).expect("written")).expect("JSON");
    change(&mut text);
    fs::write(&path, text.to_string()).expect("changed");
    (dir, path)
}

#[test]
fn summaries_of_every_recording_say_what_its_traces_say() {
    let recorded = [
        skew(),
        here("tests/data/recordings/dp4/traces/draining"),
        here("tests/data/recordings/dp4/traces/prefixed"),
        here("tests/data/recordings/dp4/traces/five-healthy-steps"),
        here("tests/data/recordings/dp4/traces/by-stage"),
        here("tests/data/recordings/nsight/dp4-skew-to-dp1.sqlite.gz"),
        here("tests/data/recordings/nsight/four-processes.sqlite.gz"),
    ];
    for path in recorded {
        let dir = tempfile::tempdir().expect("a folder");
        let (summaries, mixture) = (dir.path().join("summaries"), dir.path().join("mixture"));
        fs::create_dir(&mixture).expect("a folder");
        let of_traces = compared(std::slice::from_ref(&path));
        summarise_half(&of_traces, &summaries, &mixture);
        for of_summaries in [&summaries, &mixture] {
            assert_eq!(said(&compared(std::slice::from_ref(of_summaries))), said(&of_traces), "{path:?}");
        }
        let largest = fs::read_dir(&summaries)
            .expect("a folder")
            .flatten()
            .map(|e| e.metadata().expect("there").len())
            .max();
        println!("{}: the largest summary has {} bytes", path.display(), largest.expect("some"));
    }
}

#[test]
fn a_summary_for_each_rank_in_a_folder_of_its_own_is_one_capture() {
    let dir = tempfile::tempdir().expect("a folder");
    for path in summaries_of(&skew(), &dir.path().join("all")) {
        let name = path.file_name().expect("a name").to_string_lossy().replace(".summary.json", "");
        let folder = dir.path().join("stored").join(name);
        fs::create_dir_all(&folder).expect("a folder");
        fs::rename(path, folder.join("summary.json")).expect("moved");
    }
    assert_eq!(named(&compared(&[dir.path().join("stored")])), attention_of("DP2"));
}

#[test]
fn summaries_beside_the_traces_of_a_bundle_are_not_read_twice() {
    let dir = tempfile::tempdir().expect("a folder");
    let traces = dir.path().join("traces");
    fs::create_dir(&traces).expect("a folder");
    for entry in fs::read_dir(skew()).expect("the recording").flatten() {
        fs::copy(entry.path(), traces.join(entry.file_name())).expect("copied");
    }
    summaries_of(&skew(), &dir.path().join("summaries"));
    let c = compared(&[dir.path().to_owned()]);
    assert_eq!(named(&c), attention_of("DP2"));
    assert!(c.sources.iter().flat_map(|s| &s.1).all(|s| s.path().starts_with(&traces)));
}

#[test]
fn a_rank_whose_trace_could_not_be_read_is_missing_by_its_summary_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let (traces, summaries) = (dir.path().join("traces"), dir.path().join("summaries"));
    fs::create_dir(&traces).expect("a folder");
    for entry in fs::read_dir(skew()).expect("the recording").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let target = traces.join(&name);
        fs::copy(entry.path(), &target).expect("copied");
        if name.contains("dp3") {
            fs::write(target, "no trace").expect("broken");
        }
    }
    let of_traces = compared(std::slice::from_ref(&traces));
    assert_eq!(of_traces.unreadable.len(), 1);
    of_traces.write_summaries(&summaries).expect("they can be written");
    let c = compared(&[summaries]);
    assert_eq!(said(&c), said(&of_traces));
    assert_eq!(c.comparison.missing.iter().map(ToString::to_string).collect::<Vec<_>>(), ["DP3"]);
}

#[test]
fn ranks_without_annotations_that_were_summarised_apart_are_not_compared_by_different_steps() {
    let (dir, path) = changed(|text| text["period"] = json!({"kernel": "one_kernel", "runs": 1}));
    let mut other: Value =
        serde_json::from_slice(&fs::read(path.with_file_name("dp1.summary.json")).expect("there"))
            .expect("JSON");
    other["period"] = json!({"kernel": "another_kernel", "runs": 2});
    fs::write(path.with_file_name("dp1.summary.json"), other.to_string()).expect("changed");
    let v = compared(&[dir.path().to_owned()]).comparison.verdict;
    assert_eq!(v.kind, Kind::InsufficientEvidence);
    assert!(v.sentence.contains("2 x another_kernel, 1 x one_kernel"), "{}", v.sentence);
}

#[test]
fn a_summary_of_a_later_form_says_who_wrote_it() {
    let (_dir, path) = changed(|text| {
        text["summary"] = json!(summary::VERSION + 1);
        text["written_by"] = json!("skewtrap 9.0.0");
        text["steps"] = json!("in another form");
    });
    let said = refused(&[path]);
    assert!(said.contains("version 2, written by skewtrap 9.0.0"), "{said}");
    assert!(said.contains("reads up to version 1"), "{said}");
}

#[test]
fn what_does_not_fit_together_in_a_summary_is_refused() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 6] = [
        ("ends before it begins", |t| t["window_ns"] = json!([5, 4])),
        ("beyond any window's", |t| t["steps"][0]["wall_ns"] = json!(u64::MAX)),
        ("beyond any window's", |t| t["epoch_ns"] = json!(i64::MIN)),
        ("no hexadecimal number", |t| t["kernels"][0]["digest"] = json!("zz")),
        ("of different lengths", |t| t["collectives"]["after_ns"] = json!([1, 2, 3])),
        ("no axis is called node", |t| t["rank"] = json!({"node": 1})),
    ];
    for (wanted, change) in cases {
        let (_dir, path) = changed(change);
        let said = refused(&[path]);
        assert!(said.contains(wanted), "no `{wanted}` in: {said}");
    }
}

#[test]
fn the_command_writes_summaries_and_draws_nothing_from_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = |args: &[&str]| {
        let mut command = Command::cargo_bin("skewtrap").expect("the binary is built");
        command.arg("compare").args(args).output().expect("it runs")
    };
    let (folder, traces) = (dir.path().join("out").display().to_string(), skew().display().to_string());
    let of_traces = run(&[&traces, "--json", "--summary-out", &folder]);
    assert!(of_traces.status.success(), "{}", String::from_utf8_lossy(&of_traces.stderr));
    let of_summaries = run(&[&folder, "--json"]);
    let verdict = |out: &[u8]| serde_json::from_slice::<Value>(out).expect("JSON")["verdict"].clone();
    assert_eq!(verdict(&of_summaries.stdout), verdict(&of_traces.stdout));
    let drawing = dir.path().join("merged.json").display().to_string();
    let drawn = run(&[&folder, "--perfetto", &drawing]);
    assert!(!drawn.status.success());
    let told = String::from_utf8_lossy(&drawn.stderr).into_owned();
    assert!(told.contains("of DP2 there is only a summary"), "{told}");
}
