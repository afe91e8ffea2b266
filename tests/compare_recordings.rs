//! Captures of real servers, whose truth was written beside them, and everything that is not one.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

#[path = "compare/generator.rs"]
#[allow(dead_code)]
mod generator;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use serde_json::Value;
use skewtrap::agent::compare::{Compared, Request, Told, run};
use skewtrap::decide::signal::rank::Rank;
use skewtrap::explain::kernel::Family;
use skewtrap::explain::trace::{Limit, RankTrace};
use skewtrap::explain::verdict::{Confidence, Kind};
use skewtrap::observe::trace::kineto;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn skew() -> PathBuf {
    here("src/demo/data/skew")
}

fn compared(paths: &[PathBuf]) -> Compared {
    run(&Request { paths: paths.to_vec(), ..Request::default() }, &|_| {}).expect("it compares")
}

fn refused(paths: &[PathBuf]) -> String {
    match run(&Request { paths: paths.to_vec(), ..Request::default() }, &|_| {}) {
        Ok(c) => panic!("it should be refused, but said: {}", c.comparison.verdict.sentence),
        Err(e) => e.to_string(),
    }
}

/// A recording that lies beside the repository; says so loudly where it does not.
fn beside(path: &str) -> Option<PathBuf> {
    let found = [here("../shared/recordings"), here("../../shared/recordings")].map(|p| p.join(path));
    let found = found.into_iter().find(|p| p.exists());
    if found.is_none() {
        eprintln!("SKIPPED: the recording {path} is not beside this repository");
    }
    found
}

fn named(c: &Compared) -> (Kind, Option<String>, Option<Family>, String) {
    let v = &c.comparison.verdict;
    let cause = v.causes.first();
    let kernel = cause.map_or_else(String::new, |c| c.kernel.clone());
    (v.kind, v.rank.map(|r| r.to_string()), cause.map(|c| c.family), kernel)
}

fn attention_of(rank: &str) -> (Kind, Option<String>, Option<Family>, String) {
    (Kind::UnevenWork, Some(rank.into()), Some(Family::Attention), "_fwd_grouped_kernel_stage1".into())
}

#[test]
fn the_skewed_window_is_uneven_work_on_dp2_with_attention_first() {
    let c = compared(&[skew()]);
    assert_eq!(named(&c), attention_of("DP2"));
    let v = &c.comparison.verdict;
    assert_eq!(v.confidence, Confidence::High);
    let lost = v.lost_ms_per_step.expect("a gap");
    assert!((0.4..0.7).contains(&lost), "{lost}");
    assert!(v.host_gap_ms_per_step.expect("known") > 10.0, "stands beside the gap, not in it");
}

#[test]
fn the_window_while_the_backlog_drained_is_uneven_work_with_a_smaller_gap() {
    let Some(draining) = beside("sglang-0.5.16-dp4/traces/draining") else { return };
    let c = compared(&[draining]);
    assert_eq!(named(&c), attention_of("DP2"));
    assert!(c.comparison.verdict.lost_ms_per_step < compared(&[skew()]).comparison.verdict.lost_ms_per_step);
}

#[test]
fn five_prefixed_steps_are_enough_for_a_careful_verdict() {
    let c = compared(&[here("tests/data/recordings/dp4/traces/prefixed")]);
    assert_eq!(named(&c), attention_of("DP2"));
    assert!(c.comparison.verdict.confidence < Confidence::High);
}

#[test]
fn stages_of_one_step_are_declined() {
    let Some(by_stage) = beside("sglang-0.5.16-dp4/traces/by-stage") else { return };
    assert_eq!(compared(&[by_stage]).comparison.verdict.kind, Kind::InsufficientEvidence);
}

#[test]
fn an_nsight_window_of_fixed_time_blames_the_process_with_the_fewest_kernels() {
    let trimmed = here("tests/data/recordings/nsight/dp4-skew-to-dp1.sqlite.gz");
    let whole = beside("sglang-0.5.16-dp4-nsys/window.sqlite.gz");
    for path in std::iter::once(trimmed).chain(whole) {
        let c = compared(std::slice::from_ref(&path));
        assert_eq!(named(&c), attention_of("process 743"), "{path:?}");
        let busy = |pid: u32| {
            c.comparison
                .ranks
                .iter()
                .find(|r| r.rank.to_string() == format!("process {pid}"))
                .map(|r| r.busy_ms)
        };
        assert!([742, 744, 745].iter().all(|p| busy(*p) > busy(743)), "in all it is the least busy");
        let pids = [(742, 0), (743, 1), (744, 2), (745, 3)]
            .map(|(pid, dp)| (pid, Rank::dp(dp)))
            .into_iter()
            .collect();
        let told = Told { pids, ..Told::default() };
        let c =
            run(&Request { paths: vec![path], told, ..Request::default() }, &|_| {}).expect("it compares");
        assert_eq!(named(&c), attention_of("DP1"));
    }
}

#[test]
fn four_processes_of_which_the_third_runs_three_times_the_products() {
    let c = compared(&[here("tests/data/recordings/nsight/four-processes.sqlite.gz")]);
    let (kind, rank, family, _) = named(&c);
    assert_eq!((kind, rank.as_deref(), family), (Kind::UnevenWork, Some("process 450"), Some(Family::Gemm)));
}

#[test]
fn a_manifest_tells_the_ranks_of_processes_and_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let from = here("tests/data/recordings/nsight/dp4-skew-to-dp1.sqlite.gz");
    fs::copy(from, dir.path().join("w.sqlite.gz")).expect("copied");
    fs::write(dir.path().join("incident.json"), r#"{"processes": {"742": {"dp_rank": 0}, "743": {"dp_rank": 1}, "744": {"dp_rank": 2}, "745": {"dp_rank": 3}}}"#)
        .expect("written");
    assert_eq!(named(&compared(&[dir.path().to_owned()])), attention_of("DP1"));
}

#[test]
fn every_byte_of_a_verdict_is_the_same_again() {
    let json = || {
        let mut out = Vec::new();
        skewtrap::explain::report::json::write(&mut out, &compared(&[skew()]).comparison).expect("writes");
        out
    };
    assert_eq!(json(), json());
}

#[test]
fn the_json_keeps_the_names_that_scripts_rely_on() {
    let c = compared(&[skew()]);
    let mut out = Vec::new();
    skewtrap::explain::report::json::write(&mut out, &c.comparison).expect("writes");
    let text = String::from_utf8(out).expect("utf-8");
    assert!(text.trim_start_matches(['{', '\n', ' ']).starts_with("\"verdict\""), "the verdict comes first");
    let doc: Value = serde_json::from_str(&text).expect("JSON");
    let v = &doc["verdict"];
    assert_eq!(v["rank"]["dp_rank"], 2);
    assert_eq!((&v["kind"], &v["confidence"]), (&"uneven_work".into(), &"high".into()));
    for key in ["lost_ms_per_step", "host_gap_ms_per_step"] {
        assert!(v[key].is_number(), "{key}");
    }
    for key in ["family", "kernel", "share"] {
        assert!(!v["causes"][0][key].is_null(), "{key}");
    }
    assert_eq!(doc["ranks"].as_array().map(Vec::len), Some(4));
}

// What is not a capture, or not one capture.

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut to = GzEncoder::new(Vec::new(), Compression::default());
    to.write_all(bytes).expect("memory");
    to.finish().expect("memory")
}

fn copy_skew(dir: &Path) {
    for i in 0..4 {
        let name = format!("dp{i}.trace.json.gz");
        fs::copy(skew().join(&name), dir.join(format!("1795492133.332911-TP-0-DP-{i}.trace.json.gz")))
            .expect("copied");
    }
}

#[test]
fn a_truncated_file_gives_what_is_readable_marked_and_lowers_confidence() {
    let dir = tempfile::tempdir().expect("a folder");
    copy_skew(dir.path());
    let victim = dir.path().join("1795492133.332911-TP-0-DP-2.trace.json.gz");
    let bytes = fs::read(&victim).expect("readable");
    fs::write(&victim, &bytes[..bytes.len() * 2 / 3]).expect("writable");
    let c = compared(&[dir.path().to_owned()]);
    let dp2 = &c.comparison.ranks[2];
    assert!(
        dp2.partial && dp2.steps > 0 && dp2.notes.iter().any(|n| n.contains("ends too early")),
        "{dp2:?}"
    );
    let v = &c.comparison.verdict;
    assert!(
        v.kind == Kind::InsufficientEvidence || v.kind == Kind::UnevenWork && v.confidence < Confidence::High,
        "{v:?}"
    );
}

#[test]
fn a_file_that_is_no_trace_makes_its_rank_missing_and_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    copy_skew(dir.path());
    fs::write(dir.path().join("1795492133.332911-TP-0-DP-1.trace.json.gz"), gz(b"not json at all"))
        .expect("writable");
    let c = compared(&[dir.path().to_owned()]);
    assert_eq!(named(&c), attention_of("DP2"));
    assert_eq!(c.comparison.missing.iter().map(ToString::to_string).collect::<Vec<_>>(), ["DP1"]);
    assert!(
        c.comparison.notes.iter().any(|n| n.contains("not a profiler trace")),
        "{:?}",
        c.comparison.notes
    );
}

#[test]
fn other_files_of_a_folder_are_recognised_and_left_out() {
    let dir = tempfile::tempdir().expect("a folder");
    copy_skew(dir.path());
    fs::copy(skew().join("dp0.trace.json.gz"), dir.path().join("merged-1795492133.332911.trace.json.gz"))
        .expect("copied");
    fs::write(dir.path().join("server_args.json"), "{}").expect("writable");
    fs::write(dir.path().join("1795-TP-0-memory.pickle"), "x").expect("writable");
    let c = compared(&[dir.path().to_owned()]);
    assert_eq!(named(&c), attention_of("DP2"));
    let notes = c.comparison.notes.join("\n");
    for part in ["merged-1795492133", "server_args.json", "memory.pickle"] {
        assert!(notes.contains(part), "{part} in {notes}");
    }
}

#[test]
fn two_captures_in_one_folder_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    copy_skew(dir.path());
    fs::copy(skew().join("dp0.trace.json.gz"), dir.path().join("1795999999.1-TP-0-DP-0.trace.json.gz"))
        .expect("copied");
    assert!(refused(&[dir.path().to_owned()]).contains("2 captures"));
    // Of vLLM's names only the ranks tell.
    let dir = tempfile::tempdir().expect("a folder");
    for (n, i) in [(1, 0), (2, 1), (3, 1)] {
        let name = format!("dp{i}_pp0_tp0_dcp0_ep0_rank0.{n}.pt.trace.json.gz");
        fs::copy(skew().join(format!("dp{i}.trace.json.gz")), dir.path().join(name)).expect("copied");
    }
    assert!(refused(&[dir.path().to_owned()]).contains("several captures"));
}

#[test]
fn nothing_foreign_is_taken_for_a_trace() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(refused(&[dir.path().to_owned()]).contains("no profiler trace"));
    assert!(refused(&[dir.path().join("absent")]).contains("cannot read"));
    let cases: [(&str, &[u8], &str); 6] = [
        ("a-TP-0.trace.json", b"", "it is empty"),
        ("b-TP-0.trace.json", b"hello", "does not begin with a JSON object"),
        ("c-TP-0.trace.json", b"{\"a\": 1}", "no `traceEvents`"),
        ("d-TP-0.trace.json", b"{\"traceEvents\": 3}", "not a list"),
        ("e.sqlite", b"SQLite format 3\0 or not", "not an Nsight Systems export"),
        ("f.txt", b"x", "no profiler trace"),
    ];
    for (name, bytes, wanted) in cases {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("writable");
        let said = refused(std::slice::from_ref(&path));
        assert!(said.contains(wanted) && said.contains(name), "{name}: {said}");
    }
}

#[test]
fn traces_that_nothing_names_are_refused_with_their_list() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["left.json", "right.json"] {
        let text = r#"{"schemaVersion":1,"traceEvents":[{"ph":"X","cat":"kernel","name":"k","ts":1,"dur":1,"tid":7}]}"#;
        fs::write(dir.path().join(name), text).expect("writable");
    }
    let said = refused(&[dir.path().to_owned()]);
    assert!(
        said.contains("--rank-regex") && said.contains("left.json") && said.contains("right.json"),
        "{said}"
    );
}

#[test]
fn ten_thousand_ranks_are_refused_in_a_sentence() {
    let dir = tempfile::tempdir().expect("a folder");
    for i in 0..10_000 {
        fs::write(dir.path().join(format!("id-TP-{i}.trace.json")), "{}").expect("writable");
    }
    assert!(refused(&[dir.path().to_owned()]).contains("10000 traces are more than"));
}

#[test]
fn a_gzip_bomb_is_cut_off_early() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("id-TP-0.trace.json.gz");
    let mut to = GzEncoder::new(fs::File::create(&path).expect("writable"), Compression::best());
    to.write_all(b"{\"schemaVersion\": 1, \"traceEvents\": [").expect("writable");
    let spaces = vec![b' '; 1 << 20];
    (0..400).for_each(|_| to.write_all(&spaces).expect("writable"));
    to.finish().expect("writable");
    let c = compared(&[path]);
    assert_eq!(c.comparison.verdict.kind, Kind::InsufficientEvidence);
    let said = format!("{:?}{:?}", c.comparison.notes, c.comparison.ranks);
    assert!(said.contains("200 times its size"), "{said}");
}

#[test]
fn one_event_without_end_does_not_fill_the_memory() {
    let mut bytes = b"{\"traceEvents\": [{\"ph\": \"X\", \"name\": \"".to_vec();
    bytes.resize(40 << 20, b'a');
    let mut trace = RankTrace::default();
    kineto::read(&bytes[..], Limit::default(), &mut trace).expect("it is a trace");
    assert!(trace.partial && trace.notes[0].contains("longer than 16 MiB"), "{:?}", trace.notes);
}

/// A small trace of every shape of event.
fn seed_trace() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a folder");
    let mut rank = generator::Rank::new("TP-0", Some(0));
    rank.steps = 2;
    let style = generator::Style { layers: 1, numbered: true, ..generator::Style::default() };
    generator::write(dir.path(), &[rank], &style);
    fs::read(dir.path().join(format!("{}-TP-0.trace.json", style.id))).expect("was written")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bytes changed, cut out and doubled anywhere: read or refused, never a panic, never endless.
    #[test]
    fn mutated_traces_never_break_the_reader(edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>(), 1usize..40), 1..8)) {
        let mut bytes = seed_trace();
        for (at, what, byte, n) in edits {
            if bytes.is_empty() { break; }
            let at = at.index(bytes.len());
            let end = (at + n).min(bytes.len());
            match what {
                0 => bytes[at] = byte,
                1 => { bytes.drain(at..end); }
                2 => { let again = bytes[at..end].to_vec(); bytes.splice(at..at, again); }
                _ => bytes.truncate(at),
            }
        }
        let mut trace = RankTrace::default();
        if kineto::read(&bytes[..], Limit { rows: 10_000, names: 1000 }, &mut trace).is_ok() {
            trace.finish();
            prop_assert!(trace.rows.is_sorted_by_key(|r| r.start));
        }
    }

    /// A real trace cut anywhere gives the rows before the cut.
    #[test]
    fn a_cut_trace_gives_the_rows_before_the_cut(at in any::<prop::sample::Index>()) {
        let bytes = seed_trace();
        let read = |b: &[u8]| {
            let mut trace = RankTrace::default();
            kineto::read(b, Limit::default(), &mut trace).map(|_| trace.rows.len())
        };
        let whole = read(&bytes).expect("it is a trace");
        let cut = at.index(bytes.len());
        let rows = bytes[..cut].windows(15).filter(|w| w == b"\"cat\":\"kernel\",").count();
        if let Ok(seen) = read(&bytes[..cut]) {
            prop_assert!(seen <= whole && rows.saturating_sub(1) <= seen, "{seen} of {rows}");
        }
    }
}
