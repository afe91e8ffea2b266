//! What is not a capture, or not one, or not whole: a clear error or a clear warning, never a wrong
//! verdict.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use crate::support::comparison::{attention_of, compared, named, refused, skew};
use crate::support::traces as generator;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use skewtrap_trace::read::kineto;
use skewtrap_trace::verdict::{Confidence, Kind};
use skewtrap_trace::{Limits, RankTrace};

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
fn steps_whose_kernels_a_cut_file_lacks_are_not_counted_as_steps_without_work() {
    let dir = tempfile::tempdir().expect("a folder");
    copy_skew(dir.path());
    let victim = dir.path().join("1795492133.332911-TP-0-DP-2.trace.json.gz");
    let bytes = fs::read(&victim).expect("readable");
    fs::write(&victim, &bytes[..bytes.len() * 7 / 10]).expect("writable");
    let c = compared(&[dir.path().to_owned()]);
    let dp2 = &c.comparison.ranks[2];
    assert!((3..20).contains(&dp2.steps) && dp2.work_ms_per_step > 0.7, "{dp2:?}");
    assert_eq!(named(&c), attention_of("DP2"));
    assert_eq!(c.comparison.verdict.confidence, Confidence::Low);
}

#[test]
fn a_peer_whose_file_is_cut_is_no_measure_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    copy_skew(dir.path());
    for i in [1, 3] {
        let name = format!("1795492133.332911-TP-0-DP-{i}.trace.json.gz");
        fs::remove_file(dir.path().join(name)).expect("removed");
    }
    let victim = dir.path().join("1795492133.332911-TP-0-DP-0.trace.json.gz");
    let bytes = fs::read(&victim).expect("readable");
    fs::write(&victim, &bytes[..bytes.len() * 9 / 10]).expect("writable");
    let v = compared(&[dir.path().to_owned()]).comparison.verdict;
    assert_eq!(v.kind, Kind::InsufficientEvidence);
    assert!(v.sentence.contains("a part of DP0's window is missing"), "{}", v.sentence);
}

#[test]
fn windows_an_hour_apart_are_not_compared_whatever_their_names_say() {
    let dir = tempfile::tempdir().expect("a folder");
    for i in 0..4u64 {
        let mut text = String::new();
        let file = fs::File::open(skew().join(format!("dp{i}.trace.json.gz"))).expect("is there");
        MultiGzDecoder::new(file).read_to_string(&mut text).expect("readable");
        let base = text.split_once("\"baseTimeNanoseconds\": ").expect("has a base").1;
        let base: u64 = base[..base.find(',').expect("ends")].parse().expect("a number");
        let later = base + i / 2 * 3_600_000_000_000;
        let text = text.replacen(&base.to_string(), &later.to_string(), 1);
        let name = format!("dp{i}_pp0_tp0_dcp0_ep0_rank0.1.pt.trace.json");
        fs::write(dir.path().join(name), text).expect("writable");
    }
    let v = compared(&[dir.path().to_owned()]).comparison.verdict;
    assert_eq!(v.kind, Kind::InsufficientEvidence);
    assert!(v.sentence.contains("60 minutes after"), "{}", v.sentence);
}

#[test]
fn a_merged_trace_alone_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("all.json");
    let process = |pid: u32| {
        format!(
            r#"{{"ph":"M","pid":{pid},"tid":1,"name":"process_name","args":{{"name":"sglang::scheduler_DP{pid}"}}}}"#
        )
    };
    fs::write(&path, format!(r#"{{"traceEvents":[{},{}]}}"#, process(0), process(1))).expect("writable");
    let said = refused(&[path]);
    assert!(said.contains("no trace of one rank") && said.contains("several ranks are merged"), "{said}");
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
fn of_ranks_with_two_numbers_each_the_one_without_a_file_is_missing() {
    let dir = tempfile::tempdir().expect("a folder");
    for i in [0, 2, 3] {
        let to = dir.path().join(format!("1795492133.332911-TP-{i}-DP-{i}.trace.json.gz"));
        fs::copy(skew().join(format!("dp{i}.trace.json.gz")), to).expect("copied");
    }
    let c = compared(&[dir.path().to_owned()]);
    assert_eq!(c.comparison.missing.iter().map(ToString::to_string).collect::<Vec<_>>(), ["DP1 TP1"]);
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
fn a_database_that_is_no_export_is_called_what_it_is_with_what_to_give_in_its_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let said = |name: &str, sql: &str| {
        let path = dir.path().join(name);
        let database = rusqlite::Connection::open(&path).expect("a database");
        database.execute_batch(sql).expect("tables");
        drop(database);
        refused(std::slice::from_ref(&path))
    };
    let state = said("state.sqlite", "CREATE TABLE attempts (id TEXT); CREATE TABLE outbox (id TEXT);");
    assert!(state.contains("the agent's own state, which holds no traces"), "{state}");
    assert!(state.contains("the folder of an incident") && !state.contains("Nsight"), "{state}");
    let other = said("other.sqlite", "CREATE TABLE songs (title TEXT);");
    assert!(other.contains("a SQLite database, but not an Nsight Systems export"), "{other}");
    assert!(other.contains("tables such as songs") && other.contains(".trace.json.gz"), "{other}");
}

#[test]
fn a_wrong_file_or_rank_ends_in_status_2_with_one_sentence() {
    let cases: [(&[&str], &str); 4] = [
        (&["Cargo.toml"], "error: Cargo.toml: this is no profiler trace"),
        (&["absent"], "error: cannot read absent: No such file or directory"),
        (&["src/demo/data/skew", "--rank", "743"], "error: --rank 743: write a process"),
        (
            &["src/demo/data/skew", "--perfetto", "/dev/null", "--perfetto-ranks", "dp9"],
            "error: DP9 is none of",
        ),
    ];
    for (args, wanted) in cases {
        let out = Command::new(env!("CARGO_BIN_EXE_skewtrap"))
            .arg("compare")
            .args(args)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.starts_with(wanted) && said.lines().count() == 1, "{said}");
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
    kineto::read(&bytes[..], Limits::default(), &mut trace).expect("it is a trace");
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
        if kineto::read(&bytes[..], Limits { rows: 10_000, names: 1000 }, &mut trace).is_ok() {
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
            kineto::read(b, Limits::default(), &mut trace).map(|_| trace.rows.len())
        };
        let whole = read(&bytes).expect("it is a trace");
        let cut = at.index(bytes.len());
        let rows = bytes[..cut].windows(15).filter(|w| w == b"\"cat\":\"kernel\",").count();
        if let Ok(seen) = read(&bytes[..cut]) {
            prop_assert!(seen <= whole && rows.saturating_sub(1) <= seen, "{seen} of {rows}");
        }
    }
}
