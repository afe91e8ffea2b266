//! Recordings of real servers, through the same reading, storing and grouping as live ones.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use skewtrap::observe::replay::{Format, Input, Replay};
use skewtrap_core::signal::catalog::{self, Catalog};
use skewtrap_core::signal::exposition;
use skewtrap_core::signal::frame::Frame;
use skewtrap_core::signal::intake::{Intake, IntakeStep};
use skewtrap_core::signal::metrics::Metrics;
use skewtrap_core::signal::observation::SourceId;
use skewtrap_core::signal::store::{Bounds, SignalStore};
use skewtrap_trace::time::Time;

use crate::beside::recording;

fn unzipped(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).expect("it exists");
    flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).expect("whole gzip");
    bytes
}

/// Load per DP rank at each of `times`, from the recordings given, in simulated time.
fn loads_at(inputs: &[(Format, PathBuf)], times: &[f64]) -> Vec<String> {
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    let target = store.add_target("server".into(), None);
    let view = store.subscribe(catalog::LOAD, &["dp_rank".into()], &["target".into(), "role".into()]);
    let input = |(i, (format, path)): (usize, &(Format, PathBuf))| Input {
        format: *format,
        path: path.clone(),
        target,
        source: SourceId(i as u16),
    };
    let inputs: Vec<_> = inputs.iter().enumerate().map(input).collect();
    let mut replay = Replay::open(&inputs, &TimeZone::UTC).expect("the recordings open");
    let mut intake = Intake::new(TimeZone::UTC);
    let (mut due, mut shown) = (times.iter().peekable(), Vec::new());
    while let Some(observation) = replay.next_observation().expect("the recordings are whole") {
        intake.take(&observation, &mut store, |store, at, step| {
            while let (IntakeStep::Due, Some(&&next)) = (&step, due.peek())
                && at > Time::from_epoch_s(next)
            {
                due.next();
                let Some((group, _)) = store.groups(view).next() else { continue };
                shown.push(text(store.frame(view, group, Time::from_epoch_s(next), Duration::ZERO)));
            }
        });
    }
    shown
}

fn text(frame: &Frame) -> String {
    let member =
        |m: &skewtrap_core::signal::frame::Member| format!("{}{}", m.value, if m.stale { "*" } else { "" });
    frame.members.iter().map(member).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_source_alone_and_all_together_show_the_skew_of_the_gpu_server() {
    let Some(log) = recording("sglang-0.5.16-dp4/server.stamped.log.gz") else { return };
    let metrics = recording("sglang-0.5.16-dp4/metrics.txt.gz").expect("beside the log");
    let loads = recording("sglang-0.5.16-dp4/loads.jsonl.gz").expect("beside the log");
    let all = [(Format::Log, log), (Format::Metrics, metrics), (Format::Loads, loads)];
    let times = [1_795_492_115.5, 1_795_492_128.5, 1_795_492_140.5];
    let show = |inputs: &[(Format, PathBuf)]| loads_at(inputs, &times).join(" | ");
    insta::assert_snapshot!(show(&all[..1]), @"15 14 17 11 | 7 5 191 1 | 2 7 322 11");
    insta::assert_snapshot!(show(&all[1..2]), @"11 11 17 16 | 9 6 194 1 | 1 7 324 9");
    insta::assert_snapshot!(show(&all[2..]), @"12 12 18 15 | 8 5 195 1 | 1 8 323 9");
    assert_eq!(show(&all), show(&all[2..]), "the loads endpoint wins");
}

#[test]
fn a_rank_that_starves_on_the_cpu_server_becomes_zero_from_the_log_alone() {
    let Some(log) = recording("sglang-0.5.23-cpu-dp2/server.log.gz") else { return };
    let times = [1_795_491_700.0, 1_795_491_728.0, 1_795_491_731.0, 1_795_491_760.0, 1_795_491_850.0];
    insta::assert_snapshot!(loads_at(&[(Format::Log, log)], &times).join(" | "), @"6 5 | 2 11 | 0* 10 | 0* 11 | 0* 6");
}

#[test]
fn the_exposition_parser_keeps_every_sample_of_the_recordings() {
    for (name, wanted) in [
        ("sglang-0.5.16-dp4/http/metrics.txt", 527),
        ("sglang-0.5.16-dp4/metrics.txt.gz", 152_450),
        ("sglang-0.5.23-cpu-dp2/metrics.txt.gz", 251_647),
        ("sglang-0.5.16-dp4/http/v1_loads_prometheus.txt", 108),
    ] {
        let Some(path) = recording(name) else { return };
        let page =
            if name.ends_with("gz") { unzipped(&path) } else { std::fs::read(&path).expect("it exists") };
        let (mut labels, mut names) = (0, BTreeMap::new());
        let read = exposition::read(&page, |sample| {
            labels += sample.labels.raw_iter().count();
            *names.entry(sample.name.to_vec()).or_insert(0_usize) += 1;
        });
        assert_eq!(read.map(|p| (p.samples, p.bad)), Ok((wanted, 0)), "{name}");
        assert_eq!(names.values().sum::<usize>(), wanted);
        assert!(labels > 0, "{name}");
    }
}

#[test]
fn a_recorded_page_gives_each_rank_its_signals() {
    let Some(path) = recording("sglang-0.5.16-dp4/http/metrics.txt") else { return };
    let mut metrics = Metrics::default();
    metrics.read(&std::fs::read(path).expect("it exists")).expect("a metrics page");
    let ranks: Vec<_> =
        metrics.ranks().map(|(rank, fields)| format!("{rank}: {} signals", fields.len())).collect();
    insta::assert_snapshot!(ranks.join("\n"), @r"
    DP0 TP0 PP0 EP0: 29 signals
    DP1 TP0 PP0 EP0: 29 signals
    DP2 TP0 PP0 EP0: 23 signals
    DP3 TP0 PP0 EP0: 23 signals
    ");
}

/// What was done to one rank of a recorded server, and until when.
struct Trouble {
    name: String,
    rank: u64,
    from: f64,
    until: f64,
}

fn troubles(events: &Path) -> Vec<Trouble> {
    let text = std::fs::read_to_string(events).expect("it exists");
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let phases = |kind| events.iter().filter(move |e| e["kind"] == kind);
    let found = phases("phase").zip(phases("phase_end")).filter_map(|(begin, end)| {
        let name = begin["name"].as_str()?.to_owned();
        // `slow0`: the kind of trouble and its rank.
        let rank = u64::from(name.chars().last()?.to_digit(10)?);
        Some(Trouble { name, rank, from: begin["t"].as_f64()?, until: end["t"].as_f64()? })
    });
    found.collect()
}

#[test]
fn every_trouble_of_a_recorded_gpu_server_is_found_by_each_source_alone_and_nothing_else() {
    let of = |file: &str| recording(&format!("sglang-0.5.16-dp4-troubles/{file}"));
    let Some(events) = of("events.jsonl") else { return };
    let troubles = troubles(&events);
    assert_eq!(troubles.len(), 4);
    // Long prompts, a rank that is stopped again and again, one that is crowded, a mild redirect: seconds at most.
    for (flag, file, within) in [
        ("--log", "server.stamped.log.gz", [10.0, 12.0, 12.0, 30.0]),
        ("--metrics", "metrics.txt.gz", [10.0, 12.0, 12.0, 30.0]),
        ("--loads", "loads.jsonl.gz", [10.0, 18.0, 12.0, 30.0]),
    ] {
        let file = of(file).expect("beside the events");
        let replay = std::process::Command::new(env!("CARGO_BIN_EXE_skewtrap"))
            .args(["replay", "--json", flag])
            .arg(file)
            .output()
            .expect("it runs");
        let lines = String::from_utf8_lossy(&replay.stdout).into_owned();
        let changes =
            lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let firings: Vec<(f64, u64)> = changes
            .filter(|c| c["state"] == "firing")
            .filter_map(|c| Some((c["at"].as_f64()?, c["rank"]["dp_rank"].as_u64()?)))
            .collect();
        for (trouble, within) in troubles.iter().zip(within) {
            let is_it = |(at, rank): &&(f64, u64)| {
                *rank == trouble.rank && (trouble.from..trouble.until).contains(at)
            };
            let delay = firings.iter().find(is_it).map(|(at, _)| at - trouble.from);
            assert!(delay.is_some_and(|d| d <= within), "{flag}: {} after {delay:?} s", trouble.name);
        }
        // The wake of a trouble is its rank's for a while.
        let is_known = |(at, rank): &(f64, u64)| {
            troubles.iter().any(|t| *rank == t.rank && (t.from..t.until + 45.0).contains(at))
        };
        let other: Vec<_> = firings.iter().filter(|firing| !is_known(firing)).collect();
        assert!(other.is_empty(), "{flag}: {other:?}");
    }
}
