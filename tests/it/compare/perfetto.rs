//! The merged trace for ui.perfetto.dev, held to what that viewer demands (its trace processor drops
//! what breaks these rules): one object, complete events whose slices are disjoint or nested on each
//! row, every row and group named, rows in one order on every rank.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use skewtrap::agent::compare::perfetto;
use skewtrap::agent::compare::{CompareRequest, Compared, run};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::rank::RankId;

fn compared(path: &str) -> Compared {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    run(&CompareRequest { paths: vec![path], ..CompareRequest::default() }, &|_| {}).expect("it compares")
}

/// A merged trace, taken apart as the viewer does.
struct Seen {
    /// Groups by number: their label.
    groups: BTreeMap<i64, String>,
    /// Rows by group and number: their label.
    rows: BTreeMap<(i64, i64), String>,
    /// Slices by row: start and end in nanoseconds, and the name.
    slices: BTreeMap<(i64, i64), Vec<(i64, i64, String)>>,
    /// Kernels that found no free row.
    crowded: u64,
}

fn nanos(number: &Value) -> i64 {
    let text = number.to_string();
    let (whole, part) = text.split_once('.').unwrap_or((&text, "0"));
    assert!(part.len() <= 3, "finer than a nanosecond: {text}");
    let part: i64 = format!("{part:0<3}").parse().expect("digits");
    whole.parse::<i64>().expect("digits") * 1000 + part
}

fn seen(c: &Compared) -> Seen {
    let mut out = Vec::new();
    let ranks = perfetto::profiles_of(c, &[]).expect("are there");
    let crowded = perfetto::write(c, &ranks, &mut out).expect("writes");
    let doc: Value = serde_json::from_slice(&out).expect("one JSON object");
    let mut seen = Seen { groups: BTreeMap::new(), rows: BTreeMap::new(), slices: BTreeMap::new(), crowded };
    for event in doc["traceEvents"].as_array().expect("a list") {
        let of = |key: &str| event[key].as_i64().expect("a number");
        let at = (of("pid"), of("tid"));
        let label = || event["args"]["name"].as_str().expect("a name").to_owned();
        match (event["ph"].as_str(), event["name"].as_str()) {
            (Some("M"), Some("process_name")) => {
                assert!(seen.groups.insert(at.0, label()).is_none(), "a group is named once");
            }
            (Some("M"), Some("thread_name")) => {
                assert!(seen.rows.insert(at, label()).is_none(), "a row is named once");
            }
            (Some("M"), Some("process_sort_index" | "thread_sort_index")) => {
                assert!(event["args"]["sort_index"].is_i64(), "{event}");
            }
            (Some("X"), Some(name)) => {
                let start = nanos(&event["ts"]);
                let end = start + nanos(&event["dur"]);
                seen.slices.entry(at).or_default().push((start, end, name.to_owned()));
            }
            _ => panic!("an event of another kind: {event}"),
        }
    }
    seen
}

/// Holds a merged trace to the rules. Gives how many kernels it shows.
fn holds(seen: &mut Seen) -> usize {
    assert_eq!(seen.crowded, 0);
    let mut names = BTreeSet::new();
    for (&(pid, tid), slices) in &mut seen.slices {
        assert_ne!(pid, tid, "the viewer shows such a row first");
        assert!(seen.groups.contains_key(&pid) && seen.rows.contains_key(&(pid, tid)), "{pid} {tid}");
        assert!(names.insert(tid), "a row's number is its own over all groups: {tid}");
        slices.sort_by_key(|(start, end, _)| (*start, std::cmp::Reverse(*end)));
        let mut open: Vec<i64> = Vec::new();
        for (start, end, name) in slices.iter() {
            assert!(*start >= 0 && end >= start, "{name}");
            open.retain(|until| until > start);
            assert!(open.iter().all(|until| until >= end), "{name} at {start} overlaps in row {tid}");
            open.push(*end);
        }
    }
    let kernels = seen.slices.iter().filter(|(at, _)| seen.rows[at] != "steps");
    kernels.map(|(_, slices)| slices.len()).sum()
}

/// The labels of a group's rows from top to bottom.
fn order(seen: &Seen, pid: i64) -> Vec<&str> {
    seen.rows.iter().filter(|(at, _)| at.0 == pid).map(|(_, label)| label.as_str()).collect()
}

fn rows_of(c: &Compared, whom: &[RankId]) -> usize {
    let profiles = c.input.profiles.iter().filter(|p| whom.contains(&p.rank));
    profiles.map(|p| usize::try_from(p.rows).expect("few")).sum()
}

#[test]
fn a_merged_trace_of_a_recording_holds_to_what_the_viewer_demands() {
    let cases = [
        ("src/demo/data/skew", "DP2 (culprit)"),
        ("tests/data/recordings/dp4/traces/prefixed", "DP2 (culprit)"),
        ("tests/data/recordings/nsight/dp4-skew-to-dp1.sqlite.gz", "process 743 (culprit)"),
        ("tests/data/recordings/nsight/four-processes.sqlite.gz", "process 450 (culprit)"),
    ];
    for (path, culprit) in cases {
        let c = compared(path);
        let whom = c.comparison.representative_ranks();
        let mut seen = seen(&c);
        assert_eq!(holds(&mut seen), rows_of(&c, &whom), "{path}: every kernel of the chosen ranks");
        assert_eq!(seen.groups.values().next().map(String::as_str), Some(culprit), "{path}");
        assert_eq!(seen.groups.len(), whom.len());
        let top = c.comparison.verdict.causes[0].family.name();
        let common: BTreeSet<&str> = {
            let all: Vec<BTreeSet<&str>> =
                seen.groups.keys().map(|pid| order(&seen, *pid).into_iter().collect()).collect();
            all.iter().skip(1).fold(all[0].clone(), |a, b| a.intersection(b).copied().collect())
        };
        let mut orders = BTreeSet::new();
        for pid in seen.groups.keys() {
            let rows = order(&seen, *pid);
            assert_eq!(rows[..2], ["steps", top], "{path}: the key rows come first");
            orders.insert(rows.into_iter().filter(|r| common.contains(r)).collect::<Vec<_>>());
        }
        assert_eq!(orders.len(), 1, "{path}: rows come in one order on every rank: {orders:?}");
    }
}

#[test]
fn a_rank_that_is_not_there_is_named_with_those_that_are() {
    let c = compared("src/demo/data/skew");
    let absent = perfetto::profiles_of(&c, &[RankId::Rank(Rank::dp(9))]).map(|p| p.len());
    let said = absent.expect_err("there is no DP9").to_string();
    assert!(said.contains("DP9") && said.contains("DP0, DP1, DP2, DP3"), "{said}");
}
