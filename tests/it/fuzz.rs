//! Every parser of what comes from outside, on inputs that are mutated from small recordings: whatever
//! the bytes, no panic, no hang. What once failed lies in `tests/data/fuzz/TARGET/` and is played first.
//!
//! | variable | |
//! |---|---|
//! | `SKEWTRAP_FUZZ_S`      | so many seconds for each target; without it some hundred inputs |
//! | `SKEWTRAP_FUZZ_TARGET` | only this one |
//! | `SKEWTRAP_FUZZ_SEED`   | where the numbers begin (1) |
//!
//! An input that fails is made smaller and written into that folder, where it stays as a regression.
//! The mutations are blind: there is no feedback of what code they reach, as a fuzzer on a nightly
//! compiler has it.

use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use skewtrap::config;
use skewtrap::observe::trace::nsight::Export;
use skewtrap_core::signal::catalog;
use skewtrap_core::signal::log_reader::{Arrival, LogReader};
use skewtrap_core::signal::metrics::Metrics;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::signal::{loads, promql};
use skewtrap_core::watch::{Mode, Watch};
use skewtrap_trace::read::{decompress, kineto};
use skewtrap_trace::{Limits, RankTrace};

use crate::support::api::Agent;
use crate::support::watch::{at, core};

/// An input may take so long in a debug build on a busy machine; more is a hang.
const HANGS: Duration = Duration::from_secs(20);
/// Inputs of a target in the gate.
const FEW: usize = 150;
/// Bytes of a seed: what is longer is cut, at a place that differs.
const SEED: usize = 24 << 10;

struct Target {
    name: &'static str,
    seeds: fn() -> Vec<Vec<u8>>,
    /// Pieces that its grammar is made of.
    words: &'static [&'static str],
    run: Box<dyn Fn(&[u8])>,
}

/// Numbers that look random and are the same in every run.
struct TestRng(u64);

impl TestRng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/recordings")
}

fn unzipped(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(recordings().join(name)).unwrap();
    flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Pieces of a recording, from several places in it.
fn pieces(name: &str) -> Vec<Vec<u8>> {
    let all = unzipped(name);
    (0..4).map(|i| all[all.len() * i / 4..].iter().copied().take(SEED).collect()).collect()
}

/// The second column of a JSON-lines recording of answers: `{"t": .., "body": ..}`.
fn bodies(name: &str) -> Vec<Vec<u8>> {
    let text = String::from_utf8(unzipped(name)).unwrap();
    let lines = text.lines().step_by(60).take(8);
    lines
        .filter_map(|line| {
            Some(serde_json::from_str::<serde_json::Value>(line).ok()?["body"].to_string().into())
        })
        .collect()
}

fn seeds_of_logs() -> Vec<Vec<u8>> {
    [pieces("dp4/server.stamped.log.gz"), pieces("cpu-dp2/server.log.gz")].concat()
}

fn seeds_of_pages() -> Vec<Vec<u8>> {
    [pieces("dp4/metrics.txt.gz"), pieces("cpu-dp2/metrics.txt.gz")].concat()
}

fn seeds_of_loads() -> Vec<Vec<u8>> {
    let made = [
        r#"[{"dp_rank":0,"num_reqs":5,"num_waiting_reqs":2,"num_tokens":7,"ts_tic":139.4}]"#,
        r#"{"load": 3}"#,
    ];
    [
        bodies("dp4/loads.jsonl.gz"),
        bodies("cpu-dp2/loads.jsonl.gz"),
        made.map(|t| t.as_bytes().to_vec()).to_vec(),
    ]
    .concat()
}

fn seeds_of_answers() -> Vec<Vec<u8>> {
    [
        r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{"dp_rank":"1","engine":"0","x":"y"},"value":[1795492100.5,"12.5"]},{"metric":{},"value":[1e300,"NaN"]}]}}"#,
        r#"{"status":"success","data":{"resultType":"scalar","result":[1795492100,"+Inf"]}}"#,
        r#"{"status":"error","errorType":"bad_data","error":"1:5: parse error"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn seeds_of_traces() -> Vec<Vec<u8>> {
    let zipped = "dp4/traces/by-stage/1795492178.920882-TP-0-DP-0-DECODE.trace.json.gz";
    let mut seeds = pieces(zipped);
    seeds.push(std::fs::read(recordings().join(zipped)).unwrap());
    seeds.push(br#"{"schemaVersion":1,"baseTimeNanoseconds":1795492100000000000,"distributedInfo":{"rank":1},"traceEvents":[{"ph":"X","cat":"kernel","name":"k","ts":"12.5","dur":3,"args":{"stream":7}}]}"#.to_vec());
    seeds
}

fn seeds_of_summaries() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let compared = crate::support::comparison::compared(&[recordings().join("dp4/traces/prefixed")]);
    let written = compared.write_summaries(dir.path()).unwrap();
    written.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn seeds_of_exports() -> Vec<Vec<u8>> {
    vec![unzipped("nsight/four-processes.sqlite.gz")]
}

fn seeds_of_configurations() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seeds = vec![std::fs::read(root.join("deploy/examples/full.yaml")).unwrap()];
    let rules = std::fs::read_dir(root.join("rules")).unwrap().flatten().map(|entry| entry.path());
    let mut rules: Vec<PathBuf> = rules.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    rules.sort();
    seeds.extend(rules.iter().map(|path| std::fs::read(path).unwrap()));
    seeds
}

fn seeds_of_requests() -> Vec<Vec<u8>> {
    [
        r#"{"target":"server","reason":"why","num_steps":5}"#,
        r#"{"rule":"dp-load-skew","target":"server","for_s":600}"#,
        r#"{"pinned":true}"#,
        r#"{"version":"4","groupKey":"{}","status":"firing","alerts":[{"status":"firing","labels":{"alertname":"A","instance":"10.0.0.7:30000","dp_rank":"1"},"annotations":{"summary":"s"},"startsAt":"2026-11-24T03:48:29Z","fingerprint":"f00"}]}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn observed(watch: &mut Watch, observation: &Observation) {
    watch.observe(observation, at(10.0), &mut Vec::new());
}

fn on_log(bytes: &[u8]) {
    let mut reader = LogReader::new(TimeZone::UTC);
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        for arrival in [Arrival::Recorded, Arrival::Live(at(9.0)), Arrival::Backlog(at(9.0))] {
            reader.read(line, arrival);
        }
    }
    let (target, source) = (TargetId(0), SourceId(0));
    let lines = Observation::Lines { target, source, lines: bytes.to_vec(), arrival: Arrival::Live(at(9.0)) };
    observed(&mut core(None, Mode::Live, at(0.0)), &lines);
}

fn on_page(bytes: &[u8]) {
    let mut metrics = Metrics::default();
    if metrics.read(bytes).is_ok() {
        assert!(metrics.ranks().count() <= 1 << 20);
    }
    let page =
        Observation::Page { target: TargetId(0), source: SourceId(0), body: bytes.to_vec(), at: at(9.0) };
    observed(&mut core(None, Mode::Live, at(0.0)), &page);
}

fn on_loads(bytes: &[u8]) {
    // An error is as good as an answer.
    let _ = loads::read(bytes);
    let loads =
        Observation::Loads { target: TargetId(0), source: SourceId(0), body: bytes.to_vec(), at: at(9.0) };
    observed(&mut core(None, Mode::Live, at(0.0)), &loads);
}

fn on_answer(bytes: &[u8]) {
    if let Ok(samples) = promql::samples_of(bytes, catalog::RUNNING_REQS) {
        assert!(samples.iter().all(|sample| sample.value.is_finite()));
    }
}

fn on_trace(bytes: &[u8]) {
    let Ok(reader) = decompress(bytes) else { return };
    let mut trace = RankTrace::default();
    let limits = Limits { rows: 10_000, ..Limits::default() };
    if let Ok(info) = kineto::read(reader, limits, &mut trace) {
        assert!(trace.rows.len() <= limits.rows);
        let _ = info.rank();
    }
}

fn on_export(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    let Ok(export) = Export::open(file.path()) else { return };
    let Ok(processes) = export.processes(file.path()) else { return };
    for process in processes.into_iter().take(4) {
        let limits = Limits { rows: 10_000, ..Limits::default() };
        let _ = export.read(file.path(), process.pid, limits, &mut RankTrace::default());
    }
}

fn on_configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let loaded = config::file::load("skewtrap.yaml", &text, &|_| Ok(Vec::new()));
    assert!(loaded.config.is_some() || !loaded.diagnostics.is_empty(), "refused without a word");
    let rules = [("rules.yaml", &*text)];
    let capture = skewtrap_core::capture::CaptureSpec::None;
    config::rules::load(rules, &catalog::Catalog::default(), &capture);
    config::test::load("rules.test.yaml", &text);
}

/// The API behind a real port: what panics in it breaks the connection.
fn on_api() -> Box<dyn Fn(&[u8])> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let agent = runtime.block_on(Agent::start());
    Box::new(move |bytes| {
        for path in ["capture", "stop", "resume", "silence", "alerts", "incidents/20261124T1/pin"] {
            let post = agent.http.post(agent.url(&format!("/api/v1/{path}")));
            let post =
                post.header("authorization", "Bearer t0ken").header("content-type", "application/json");
            let answer = runtime.block_on(post.body(bytes.to_vec()).send());
            let status = answer.expect("an answer, whatever was sent").status().as_u16();
            assert!(status != 500, "{path}: 500");
        }
    })
}

fn targets() -> Vec<Target> {
    let json = &["null", "true", "{}", "[]", "\"\"", "-0", "1e999", "\\ud800", "\\u0000", "[[[[[[[["][..];
    let target = |name, seeds, words, run: fn(&[u8])| Target { name, seeds, words, run: Box::new(run) };
    vec![
        target(
            "log",
            seeds_of_logs,
            &[
                "[2026-11-24 03:48:29 DP1]",
                "#running-req: ",
                "Profiling starts",
                "\t",
                "\r\n",
                "99999999999999999999",
                "\u{202e}",
                "token usage: ",
            ],
            on_log,
        ),
        target(
            "exposition",
            seeds_of_pages,
            &["# TYPE ", " histogram\n", "{dp_rank=\"", "le=\"+Inf\"", "NaN", "1e400", "\\n", "\"} "],
            on_page,
        ),
        target("loads", seeds_of_loads, json, on_loads),
        target("promql", seeds_of_answers, json, on_answer),
        target(
            "kineto",
            seeds_of_traces,
            &[
                "\"traceEvents\":[",
                "{\"ph\":\"X\"",
                "\"ts\":",
                "\"dur\":-",
                "ProfilerStep#",
                "\\u00",
                "]}",
                "1e308",
            ],
            on_trace,
        ),
        target(
            "sqlite",
            seeds_of_exports,
            &["CUPTI_ACTIVITY_KIND_KERNEL", "StringIds", "SQLite format 3\0"],
            on_export,
        ),
        target(
            "yaml",
            seeds_of_configurations,
            &[
                "&a ", "*a", "<<: ", "- ", ": ", "{ ", " }", "|\n", "\t", "!!float ", "-1s", "1e9h", "for: ",
                "[[[[",
            ],
            on_configuration,
        ),
        target("summary", seeds_of_summaries, json, |bytes| {
            if let Ok(profile) = skewtrap_trace::summary::read(bytes) {
                let mut other = profile.clone();
                other.rank = skewtrap_trace::RankId::Pid(u32::MAX);
                let profiles = vec![profile, other];
                skewtrap_trace::compare(&skewtrap_trace::ComparisonInput { profiles, ..Default::default() });
            }
        }),
        Target { name: "api", seeds: seeds_of_requests, words: json, run: on_api() },
    ]
}

fn mutated(seeds: &[Vec<u8>], words: &[&str], rng: &mut TestRng) -> Vec<u8> {
    let mut bytes = seeds[rng.below(seeds.len())].clone();
    if bytes.len() > SEED && rng.below(2) == 0 {
        bytes.truncate(rng.below(SEED));
    }
    for _ in 0..=rng.below(6) {
        if bytes.is_empty() {
            break;
        }
        let (from, length) = (rng.below(bytes.len()), 1 + rng.below(64));
        let to = (from + length).min(bytes.len());
        match rng.below(9) {
            0 => bytes[from] ^= 1 << rng.below(8),
            1 => bytes[from] = [0, 0xff, b'"', b'\n', b'{', b'}', b'-', 0x80][rng.below(8)],
            2 => drop(bytes.drain(from..to)),
            3 => {
                let again = bytes[from..to].repeat(1 + rng.below(20));
                bytes.splice(from..from, again);
            }
            4 => bytes.truncate(from),
            5 | 6 => {
                let word = words[rng.below(words.len())].as_bytes().to_vec();
                bytes.splice(from..from, word);
            }
            7 => {
                let number =
                    ["0", "-1", "18446744073709551616", "4294967296", "0.0000000001", "1e-400"][rng.below(6)];
                let digits = bytes[from..].iter().position(u8::is_ascii_digit).map(|at| from + at);
                if let Some(at) = digits {
                    let end =
                        bytes[at..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| at + n);
                    bytes.splice(at..end, number.bytes());
                }
            }
            _ => {
                let other = &seeds[rng.below(seeds.len())];
                let begin = rng.below(other.len());
                bytes.splice(from..to, other[begin..].iter().copied().take(length * 8));
            }
        }
    }
    bytes
}

/// What is wrong with an input, if anything.
fn failure(target: &Target, bytes: &[u8]) -> Option<String> {
    let began = Instant::now();
    let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    match ran {
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            Some(words.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
        }
        Ok(()) if began.elapsed() > HANGS => Some(format!("it took {:?}", began.elapsed())),
        Ok(()) => None,
    }
}

/// A shorter input that fails as well.
fn shrunk(target: &Target, mut bytes: Vec<u8>) -> Vec<u8> {
    let mut piece = bytes.len() / 2;
    while piece > 0 {
        let mut from = 0;
        while from < bytes.len() {
            let to = (from + piece).min(bytes.len());
            let shorter = [&bytes[..from], &bytes[to..]].concat();
            if failure(target, &shorter).is_some() {
                bytes = shorter;
            } else {
                from = to;
            }
        }
        piece /= 2;
    }
    bytes
}

#[test]
fn no_input_makes_a_parser_panic_or_hang() {
    let seconds = std::env::var("SKEWTRAP_FUZZ_S").ok().map(|s| s.parse().expect("seconds"));
    let only = std::env::var("SKEWTRAP_FUZZ_TARGET").ok();
    let seed = std::env::var("SKEWTRAP_FUZZ_SEED").map_or(1, |s| s.parse().expect("a number"));
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fuzz");
    let mut failed = Vec::new();
    for target in targets().iter().filter(|t| only.as_deref().is_none_or(|name| name == t.name)) {
        let folder = kept.join(target.name);
        let known = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in known {
            if let Some(why) = failure(target, &std::fs::read(&path).unwrap()) {
                failed.push(format!("{}: {why}", path.display()));
            }
        }
        let (seeds, mut rng, began, mut count) = ((target.seeds)(), TestRng(seed), Instant::now(), 0);
        let goes_on = |count: usize| match seconds {
            Some(seconds) => began.elapsed() < Duration::from_secs(seconds),
            None => count < FEW,
        };
        while goes_on(count) {
            count += 1;
            let bytes = mutated(&seeds, target.words, &mut rng);
            let Some(why) = failure(target, &bytes) else { continue };
            let bytes = shrunk(target, bytes);
            std::fs::create_dir_all(&folder).unwrap();
            let path = folder.join(format!("found-{seed}-{count}"));
            std::fs::write(&path, &bytes).unwrap();
            failed.push(format!("{}: {} bytes, kept as {}: {why}", target.name, bytes.len(), path.display()));
            break;
        }
        println!("{}: {count} inputs in {:.0} s", target.name, began.elapsed().as_secs_f64());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
