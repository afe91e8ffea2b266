//! Captures of real servers, whose truth was written beside them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::comparison::{attention_of, check_nsight, compared, here, lost, named, skew};
use serde_json::Value;
use skewtrap::agent::compare::{CompareRequest, RankOverrides, run};
use skewtrap_trace::kernel::Family;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::verdict::{Confidence, Kind, Place};

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
    let c = compared(&[here("tests/data/recordings/dp4/traces/draining")]);
    assert_eq!(named(&c), attention_of("DP2"));
    assert!(lost(&c) < lost(&compared(&[skew()])));
}

/// Where the words of a line end, colours left out.
fn ends_of(line: &str) -> Vec<usize> {
    let letters: Vec<char> = line.chars().collect();
    (1..=letters.len())
        .filter(|i| letters[i - 1] != ' ' && letters.get(*i).is_none_or(|c| *c == ' '))
        .collect()
}

#[test]
fn every_heading_of_the_screen_stands_over_a_column_of_its_own() {
    for baseline in [vec![], vec![here("tests/data/recordings/dp4/traces/prefixed")]] {
        let request = CompareRequest {
            paths: vec![here("tests/data/recordings/dp4/traces/draining")],
            baseline,
            ..CompareRequest::default()
        };
        let compared = run(&request, &|_| ()).expect("comparable");
        let mut screen = Vec::new();
        skewtrap_trace::report::write_terminal(
            &mut anstream::StripStream::new(&mut screen),
            &compared.comparison,
        )
        .expect("into memory");
        let screen = String::from_utf8(screen).expect("text");
        let mut lines = screen.lines().skip_while(|l| !l.starts_with("rank ")).take_while(|l| !l.is_empty());
        // `host gap` is of two words.
        let heading = ends_of(&lines.next().expect("a heading").replace("host gap", "host-gap"));
        for row in lines.filter(|l| l.starts_with("DP")) {
            let row = ends_of(row);
            assert_eq!(row.len(), heading.len(), "{screen}");
            assert_eq!(row[1..row.len() - 1], heading[1..heading.len() - 1], "{screen}");
        }
    }
}

#[test]
fn a_legend_below_the_ranks_explains_the_columns_that_are_shown_and_no_other() {
    const ALWAYS: [&str; 3] = ["work/step: ", "gap: ", "host gap: "];
    let screen = |traces: &str, baseline: &[&str]| {
        let recordings = here("tests/data/recordings");
        let request = CompareRequest {
            paths: vec![recordings.join(traces)],
            baseline: baseline.iter().map(|b| recordings.join(b)).collect(),
            ..CompareRequest::default()
        };
        let compared = run(&request, &|_| ()).expect("comparable");
        let mut screen = Vec::new();
        skewtrap_trace::report::write_terminal(
            &mut anstream::StripStream::new(&mut screen),
            &compared.comparison,
        )
        .expect("into memory");
        String::from_utf8(screen).expect("text")
    };
    let plain = screen("dp4/traces/draining", &[]);
    let with_baseline = screen("dp4/traces/draining", &["dp4/traces/prefixed"]);
    let with_waits = screen("two-gpus/traces/tp2/crowd1-gpu-30", &[]);
    for (screen, column, meaning) in [
        (&plain, "prefill", "prefill: "),
        (&with_baseline, "/baseline", "/baseline: "),
        (&with_waits, "wait/step", "wait/step: "),
    ] {
        for told in ALWAYS.into_iter().chain([meaning]) {
            assert!(screen.contains(told), "{column} {told}: {screen}");
        }
    }
    for meaning in ["/baseline: ", "wait/step: "] {
        assert!(!plain.contains(meaning), "{plain}");
    }
}

#[test]
fn five_prefixed_steps_are_enough_for_a_careful_verdict() {
    let c = compared(&[here("tests/data/recordings/dp4/traces/prefixed")]);
    assert_eq!(named(&c), attention_of("DP2"));
    assert!(c.comparison.verdict.confidence < Confidence::High);
}

#[test]
fn five_steps_of_a_healthy_server_do_not_earn_a_slow_host() {
    let c = compared(&[here("tests/data/recordings/dp4/traces/five-healthy-steps")]);
    let v = &c.comparison.verdict;
    assert_eq!((v.kind, v.rank), (Kind::InsufficientEvidence, None));
    assert!(v.sentence.contains("about 8 steps on every rank would tell"), "{}", v.sentence);
}

#[test]
fn too_few_steps_say_how_many_are_needed_and_name_nobody_as_found() {
    for (window, steps) in [("one-gpu/traces/dp4/slow0-gpu-5-again", 4), ("dp4/traces/five-healthy-steps", 5)]
    {
        let c = compared(&[here("tests/data/recordings").join(window)]);
        let v = &c.comparison.verdict;
        assert_eq!((v.kind, v.rank), (Kind::InsufficientEvidence, None), "{window}");
        let told = format!("the window has {steps} steps on the rank with the fewest");
        assert!(v.sentence.contains(&told) && v.sentence.contains("about 8 steps"), "{}", v.sentence);
        assert!(!v.sentence.contains("DP"), "{}", v.sentence);
        let seen = v.points().into_iter().filter(|p| p.contains("DP")).collect::<Vec<_>>();
        assert!(seen.iter().all(|p| p.starts_with("so few steps are no finding")), "{seen:?}");
    }
}

#[test]
fn stages_of_one_step_are_declined() {
    let by_stage = compared(&[here("tests/data/recordings/dp4/traces/by-stage")]);
    assert_eq!(by_stage.comparison.verdict.kind, Kind::InsufficientEvidence);
}

#[test]
fn an_nsight_window_of_fixed_time_blames_the_process_with_the_fewest_kernels() {
    check_nsight(here("tests/data/recordings/nsight/dp4-skew-to-dp1.sqlite.gz"));
}

#[test]
fn a_report_is_exported_by_the_nsys_on_the_path_where_nobody_else_can_read_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let recording = here("tests/data/recordings/nsight/dp4-skew-to-dp1.sqlite.gz");
    let script = format!(
        "#!/bin/sh\nwhile [ \"$1\" != -o ]; do shift; done\nstat -c %a \"$(dirname \"$2\")\" >'{0}/mode'\ngzip -dc '{1}' >\"$2\"\n",
        dir.path().display(),
        recording.display()
    );
    let nsys = dir.path().join("nsys");
    fs::write(&nsys, script).expect("writable");
    fs::set_permissions(&nsys, fs::Permissions::from_mode(0o755)).expect("set");
    let (report, temp) = (dir.path().join("window.1.nsys-rep"), dir.path().join("tmp"));
    fs::write(&report, "a report").expect("writable");
    fs::create_dir(&temp).expect("made");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    let out = Command::new(env!("CARGO_BIN_EXE_skewtrap"))
        .args(["compare", "--json", "--rank", "743=dp1"])
        .arg(&report)
        .env("PATH", path)
        .env("TMPDIR", &temp)
        .output()
        .expect("it runs");
    let doc: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(
        (&doc["verdict"]["kind"], &doc["verdict"]["rank"]["dp_rank"]),
        (&"uneven_work".into(), &1.into())
    );
    assert_eq!(fs::read_to_string(dir.path().join("mode")).expect("nsys ran").trim(), "700");
    assert_eq!(fs::read_dir(&temp).expect("is there").count(), 0, "the export is removed");
}

#[test]
fn a_process_that_the_user_names_is_still_compared_with_those_he_did_not() {
    let pids = [(743, Rank::dp(1)), (9, Rank::dp(2))].into_iter().collect();
    let rank_overrides = RankOverrides { pids, ..RankOverrides::default() };
    let paths = vec![here("tests/data/recordings/nsight/dp4-skew-to-dp1.sqlite.gz")];
    let c = run(&CompareRequest { paths, rank_overrides, ..CompareRequest::default() }, &|_| {})
        .expect("it compares");
    assert_eq!(named(&c), attention_of("DP1"));
    let reasons = c.comparison.verdict.reasons.join("; ");
    assert!(!reasons.contains("with two ranks"), "{reasons}");
    assert!(c.comparison.notes.iter().any(|n| n.contains("no process 9")), "{:?}", c.comparison.notes);
}

#[test]
fn what_the_user_tells_of_ranks_and_fits_nothing_is_said() {
    let rank_overrides =
        RankOverrides { files: vec![("nodeB".into(), Rank::dp(1))], ..RankOverrides::default() };
    let regex = regex::Regex::new("worker([0-9]+)").expect("valid");
    let request = CompareRequest {
        paths: vec![skew()],
        rank_overrides,
        rank_regex: Some(regex),
        ..CompareRequest::default()
    };
    let notes = run(&request, &|_| {}).expect("it compares").comparison.notes.join("; ");
    assert!(notes.contains("no file has nodeB in its name"), "{notes}");
    assert!(notes.contains("worker([0-9]+) finds a rank in no file name"), "{notes}");
}

#[test]
fn four_processes_of_which_the_third_runs_three_times_the_products() {
    let c = compared(&[here("tests/data/recordings/nsight/four-processes.sqlite.gz")]);
    let (kind, rank, family, _) = named(&c);
    assert_eq!((kind, rank.as_deref(), family), (Kind::UnevenWork, Some("process 450"), Some(Family::Gemm)));
}

#[test]
fn rows_of_an_export_that_cannot_be_read_are_counted_and_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let from = here("tests/data/recordings/nsight/four-processes.sqlite.gz");
    let unpacked = Command::new("gzip").arg("-dc").arg(from).output().expect("gzip runs").stdout;
    let path = dir.path().join("w.sqlite");
    fs::write(&path, unpacked).expect("written");
    let database = rusqlite::Connection::open(&path).expect("a database");
    database
        .execute_batch(
            "CREATE TABLE NVTX_EVENTS (start, end, text, textId, globalTid);
             INSERT INTO NVTX_EVENTS VALUES ('soon', 10, 'step[DECODE bs=4]', NULL, 450 << 24);
             INSERT INTO NVTX_EVENTS VALUES ('later', 20, 'step[DECODE bs=4]', NULL, 450 << 24);",
        )
        .expect("tables");
    drop(database);
    let told = serde_json::to_string(&compared(&[path]).comparison).expect("plain data");
    assert!(told.contains("2 rows of the file could not be read and are left out"), "{told}");
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
fn a_report_of_nsys_over_two_gpus_names_the_rank_whose_host_is_crowded_and_nobody_where_both_are_healthy() {
    let of = |report: &str| {
        let dir = tempfile::tempdir().expect("a folder");
        let from = here("tests/data/recordings/nsight").join(report);
        fs::copy(from, dir.path().join("w.sqlite.gz")).expect("copied");
        let manifest = r#"{"processes": {"1097": {"tp_rank": 0}, "1098": {"tp_rank": 1}}}"#;
        fs::write(dir.path().join("incident.json"), manifest).expect("written");
        let verdict = compared(&[dir.path().to_owned()]).comparison.verdict;
        (verdict.kind, verdict.rank.map(|rank| rank.to_string()), verdict.by)
    };
    let crowded = (Kind::SlowRank, Some("TP1".to_owned()), Some(Place::Host));
    assert_eq!(of("tp2-crowded.sqlite.gz"), crowded);
    assert_eq!(of("tp2-healthy.sqlite.gz"), (Kind::InsufficientEvidence, None, None));
}

#[test]
fn every_byte_of_a_verdict_is_the_same_again() {
    let json = || {
        let mut out = Vec::new();
        skewtrap_trace::report::write_json(&mut out, &compared(&[skew()]).comparison).expect("writes");
        out
    };
    assert_eq!(json(), json());
}

#[test]
fn the_json_keeps_the_names_that_scripts_rely_on() {
    let c = compared(&[skew()]);
    let mut out = Vec::new();
    skewtrap_trace::report::write_json(&mut out, &c.comparison).expect("writes");
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

/// One window of a real server, and what was done to whom while it was open.
#[derive(serde::Deserialize)]
struct Window {
    window: String,
    rank: Option<u16>,
    kind: String,
    by: Option<String>,
}

/// The windows of a recording by what was said of them: right, declined, wrong.
fn judged(recording: &str) -> [Vec<String>; 3] {
    let folder = here("tests/data/recordings").join(recording);
    let truth = fs::read_to_string(folder.join("truth.jsonl")).expect("readable");
    let (mut right, mut declined, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for line in truth.lines() {
        let truth: Window = serde_json::from_str(line).expect("a window");
        let c = compared(&[folder.join("traces").join(&truth.window)]);
        let v = serde_json::to_value(&c.comparison.verdict).expect("it serialises");
        let ranks = ["dp_rank", "tp_rank", "ep_rank"].map(|axis| v["rank"][axis].as_u64());
        let told = ranks.into_iter().flatten().next();
        let by = truth.by.as_deref().is_none_or(|by| v["by"] == by);
        let said = format!("{}: {}", truth.window, c.comparison.verdict.sentence);
        if v["kind"] == "insufficient_evidence" {
            declined.push(said);
        } else if v["kind"] == truth.kind.as_str() && told == truth.rank.map(u64::from) && by {
            right.push(said);
        } else {
            wrong.push(said);
        }
    }
    [right, declined, wrong]
}

#[test]
fn of_four_gpus_one_that_is_shared_is_slow_and_has_no_hot_experts_and_a_crowded_host_is_named() {
    // Another process takes turns on GPU 1: most of the time that it takes is the experts', as of all work, and the
    // other kernels grew in proportion.
    let [right, declined, wrong] = judged("four-gpus");
    assert_eq!((right.len(), wrong), (2, Vec::new()), "{right:?}");
    // Under DP attention 19 steps do not tell which scheduler was stopped for half of the time.
    assert_eq!(declined.len(), 1, "{declined:?}");
    assert!(declined[0].starts_with("dpa4/slow1-gpu-20: The traces do not tell: "), "{declined:?}");
}

#[test]
fn requests_that_pile_up_behind_a_scheduler_that_is_stopped_half_of_the_time_are_no_uneven_work() {
    let [right, declined, wrong] = judged("one-gpu");
    assert_eq!(wrong, Vec::<String>::new());
    let told: Vec<&str> = right.iter().filter_map(|said| said.split(':').next()).collect();
    assert_eq!(told, ["dp4/skew2-gpu-10", "dp4/slow0-gpu-10"], "{right:?}");
    assert_eq!(declined.len(), 3, "{declined:?}");
    assert!(declined[0].contains("stood idle for 42.2 ms at once"), "{declined:?}");
}

#[test]
fn where_the_steps_of_one_rank_take_twice_their_peers_time_alike_gpus_are_no_verdict() {
    let c = compared(&[here("tests/data/recordings/one-gpu/traces/dp4/skew2-gpu-14")]);
    let v = &c.comparison.verdict;
    assert_eq!((v.kind, v.rank, v.confirms), (Kind::InsufficientEvidence, None, None));
    assert!(v.sentence.contains("a step of DP2 takes"), "{}", v.sentence);
}

/// The bytes of all files below a path.
fn bytes_below(path: &Path) -> u64 {
    let meta = fs::metadata(path).expect("is there");
    if meta.is_file() {
        return meta.len();
    }
    fs::read_dir(path).expect("readable").map(|entry| bytes_below(&entry.expect("readable").path())).sum()
}

#[test]
fn the_recordings_of_several_gpus_have_at_most_twelve_million_bytes() {
    let parts = ["two-gpus", "four-gpus", "nsight/tp2-crowded.sqlite.gz", "nsight/tp2-healthy.sqlite.gz"];
    let bytes: u64 = parts.iter().map(|part| bytes_below(&here("tests/data/recordings").join(part))).sum();
    assert!(
        (1_000_000..=12_000_000).contains(&bytes),
        "{bytes} bytes: cut them by scripts/rig/cut_traces.py"
    );
}

#[test]
fn windows_of_two_real_gpus_are_judged_right_or_declined_never_wrong() {
    let [right, declined, wrong] = judged("two-gpus");
    println!("{} right, {} declined, {} wrong", right.len(), declined.len(), wrong.len());
    [&right, &declined].into_iter().flatten().for_each(|said| println!("{said}"));
    assert_eq!(wrong, Vec::<String>::new());
    // Every scheduler that was crowded is named, and so are hot experts and a shared GPU that bounds the steps.
    for window in
        ["dpa2/crowd1", "dpa2-big/crowd1", "ep2/crowd1", "ep2-big/crowd1", "tp2/crowd1", "tp2-big/crowd1"]
            .into_iter()
            .chain([
                "tp2-nccl/crowd1",
                "ep2-hot-big/hot1",
                "tp2-big/gpu1",
                "tp2-big/healthy",
                "dpa2-big/healthy",
            ])
    {
        assert!(right.iter().any(|said| said.starts_with(window)), "{window} is not told");
    }
}
