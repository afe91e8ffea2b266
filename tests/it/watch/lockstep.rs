//! What servers whose ranks step together show without a capture, from the pages of real ones:
//! `docs/causes.md` says so of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use assert_cmd::Command;
use flate2::read::GzDecoder;
use jiff::{civil::DateTime, tz::TimeZone};
use serde_json::Value;

use crate::support::comparison::here;

/// TP and EP: one entry in `/v1/loads` for all ranks.
const OF_ONE_ENTRY: [&str; 4] = ["ep2", "ep2-big", "tp2-big", "tp2-nccl"];
/// DP attention: an entry for each rank.
const OF_EACH_RANK: [&str; 2] = ["dpa2", "dpa2-big"];

/// The pages of one server, and what was done to its rank 1 meanwhile.
struct Pages {
    folder: PathBuf,
}

/// A stretch in which one thing was done to the server.
struct Phase {
    name: String,
    from: f64,
    until: f64,
}

impl Phase {
    /// From the second on at which what was done shows.
    fn has(&self, at: f64) -> bool {
        (self.from + 2.0..=self.until).contains(&at)
    }
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"))
}

fn median(values: &[f64]) -> f64 {
    skewtrap_trace::median(values).expect("there are samples")
}

impl Pages {
    fn of(server: &str) -> Self {
        Self { folder: here("tests/data/recordings/two-gpus/pages").join(server) }
    }

    fn text(&self, name: &str) -> String {
        let mut text = String::new();
        let file = File::open(self.folder.join(name)).expect("recorded");
        GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
        text
    }

    fn phases(&self) -> Vec<Phase> {
        let events = fs::read_to_string(self.folder.join("events.jsonl")).expect("recorded");
        let events = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let mut phases: Vec<Phase> = Vec::new();
        for event in events {
            let (name, at) = (event["name"].as_str().unwrap_or_default().to_owned(), number(&event, "t"));
            match event["kind"].as_str() {
                Some("phase") => phases.push(Phase { name, from: at, until: at }),
                Some("phase_end") => phases.last_mut().expect("it began").until = at,
                _ => {}
            }
        }
        phases
    }

    /// Tokens a second of all ranks in a phase, medians of what `/v1/loads` said.
    fn speed(&self, phase: &Phase) -> f64 {
        let loads = self.text("loads.jsonl.gz");
        let mut ranks: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for page in loads.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
            for entry in page["body"]["loads"].as_array().into_iter().flatten() {
                if phase.has(number(&page, "t")) {
                    let rank = entry["dp_rank"].as_u64().expect("a rank");
                    ranks.entry(rank).or_default().push(number(entry, "gen_throughput"));
                }
            }
        }
        ranks.into_values().map(|values| median(&values)).sum()
    }

    /// How busy each GPU was in a phase, percent, and at how many watts: medians of what `nvidia-smi` said.
    fn gpus(&self, phase: &Phase) -> Vec<(f64, f64)> {
        let mut gpus: BTreeMap<u32, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
        for line in self.text("gpu.csv.gz").lines() {
            let columns: Vec<&str> = line.split(", ").collect();
            let at = DateTime::strptime("%Y/%m/%d %H:%M:%S%.f", columns[0]).expect("a time");
            let at = TimeZone::UTC.to_timestamp(at).expect("UTC");
            let of = |column: usize| columns[column].parse::<f64>().expect("a number");
            if phase.has(at.as_millisecond() as f64 / 1e3) {
                let (busy, watts) = gpus.entry(columns[1].parse().expect("a GPU")).or_default();
                busy.push(of(4));
                watts.push(of(5));
            }
        }
        gpus.into_values().map(|(busy, watts)| (median(&busy), median(&watts))).collect()
    }

    /// Every change of the rules that compare ranks, as `replay` prints them.
    fn changes(&self) -> Vec<Value> {
        let mut command = Command::cargo_bin("skewtrap").expect("the binary is built");
        let file = |name: &str| self.folder.join(name).display().to_string();
        let rules = ["dp-load-skew", "stuck-rank", "slow-rank", "starved-rank"]
            .map(|rule| here("rules").join(format!("{rule}.yaml")).display().to_string());
        command.args(["replay", "--json", "--log", &file("server.stamped.log.gz")]);
        command.args(["--loads", &file("loads.jsonl.gz")]);
        for rule in &rules {
            command.args(["--rules", rule]);
        }
        let out = command.output().expect("it runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

#[test]
fn rules_that_compare_ranks_are_inert_where_tp_or_ep_ranks_have_one_entry_and_say_so() {
    for server in OF_ONE_ENTRY {
        let changes = Pages::of(server).changes();
        assert!(changes.iter().all(|c| c["state"] == "inert"), "{server}: {changes:?}");
        for rule in ["dp-load-skew", "stuck-rank", "slow-rank", "starved-rank"] {
            let last = changes.iter().rfind(|c| c["rule"] == rule).expect("it says so");
            let why = last["reason"].as_str().or(last["why"].as_str()).expect("a reason");
            assert!(why.contains("has one member (dp_rank)"), "{server}: {why}");
        }
    }
}

#[test]
fn a_crowded_scheduler_costs_such_a_server_half_of_its_speed_and_a_shared_gpu_does_not() {
    for server in OF_ONE_ENTRY {
        let pages = Pages::of(server);
        let phases = pages.phases();
        let at = |name: &str| phases.iter().position(|p| p.name == name).expect("it was done");
        let speed = |at: usize| pages.speed(&phases[at]);
        // What follows it is what the server can with as many requests.
        let crowded = speed(at("crowd1")) / speed(at("crowd1") + 1);
        let shared = speed(at("gpu1")) / speed(at("healthy"));
        assert!(crowded < 0.5 && shared > 0.75, "{server}: {crowded:.2} {shared:.2}");
    }
}

#[test]
fn with_dp_attention_a_redirect_is_told_and_nothing_else_that_slows_all_ranks_alike() {
    let mut told = 0;
    for server in OF_EACH_RANK {
        let pages = Pages::of(server);
        let phases = pages.phases();
        for change in pages.changes().iter().filter(|c| c["state"] == "firing") {
            let (at, rank) = (number(change, "at"), change["rank"]["dp_rank"].as_u64());
            let phase_at = |at: f64| &phases.iter().rfind(|p| p.from + 1.0 <= at).expect("a phase").name;
            // One that is told right after the redirect's end is of it if it began with it.
            let began = number(change, "onset") + number(change, "onset_error_s") + 1.0;
            let is_of_it =
                phase_at(at) == "skew1" || phase_at(began) == "skew1" && phase_at(at - 3.0) == "skew1";
            assert!(is_of_it, "{server}: {change}");
            // Rank 1 is sent seven of eight requests.
            let side = if rank == Some(1) { "high" } else { "low" };
            assert_eq!(change["side"], side, "{server}: {change}");
            told += 1;
        }
    }
    assert!(told > 1, "{told}");
}

#[test]
fn the_gpu_that_is_busy_least_is_that_of_the_rank_whose_host_the_others_wait_for() {
    let mut seen = 0;
    for server in OF_ONE_ENTRY.into_iter().chain(OF_EACH_RANK) {
        let pages = Pages::of(server);
        for phase in pages.phases() {
            // Crowded by busy loops, and stopped for half of the time.
            let at_most = match &*phase.name {
                "crowd1" => 0.4,
                "slow1" => 0.9,
                _ => continue,
            };
            let gpus = pages.gpus(&phase);
            assert!(gpus[1].0 < at_most * gpus[0].0, "{server} {}: {gpus:?}", phase.name);
            seen += 1;
        }
    }
    assert!(seen >= 12, "{seen}");
    // Hot experts are the other way round by their power: who waits spins, and counts as busy.
    let hot = Pages::of("ep2-hot-big");
    let gpus = hot.gpus(&hot.phases()[0]);
    assert!(gpus[1].0 < gpus[0].0 && gpus[1].1 > 2.0 * gpus[0].1, "{gpus:?}");
}
