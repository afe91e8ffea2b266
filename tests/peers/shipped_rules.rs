//! The shipped rules over recordings of real servers, through the same core that runs live.
//!
//! The recordings lie beside a working copy of the project (`../shared`), not in it; without them
//! these tests say so and pass.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use jiff::tz::TimeZone;
use skewtrap::config::rules;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::finding::Side;
use skewtrap_core::rule::{Change, Engine, RuleState};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::loads;
use skewtrap_core::signal::log_line::LineContent;
use skewtrap_core::signal::log_reader::{Arrival, LogReader};
use skewtrap_core::signal::metrics::Metrics;
use skewtrap_core::signal::sample::{Source, TargetId};
use skewtrap_core::signal::store::{Bounds, SignalStore};
use skewtrap_trace::time::Time;

use crate::beside::recording;

fn lines_of(path: &str) -> Option<Box<dyn BufRead>> {
    let file = File::open(recording(path)?).expect("it can be read");
    Some(Box::new(BufReader::new(MultiGzDecoder::new(file))))
}

/// The shipped rules on one server, in simulated time.
struct Replay {
    store: SignalStore,
    engine: Option<Engine>,
    target: TargetId,
    now: Time,
    changes: Vec<Change>,
}

impl Replay {
    fn new() -> Self {
        let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
        let target = store.add_target("server".into(), None);
        Self { store, engine: None, target, now: Time::default(), changes: Vec::new() }
    }

    /// Time passes in ticks of 100 ms up to `at`.
    fn until(&mut self, at: Time) {
        let engine = self.engine.get_or_insert_with(|| {
            let catalog = Catalog::default();
            let loaded = rules::shipped(&catalog, &CaptureSpec::None);
            assert!(loaded.is_ok(), "{:?}", loaded.diagnostics);
            self.now = at;
            Engine::new(loaded.rules.into_iter().map(|c| c.rule).collect(), &mut self.store, at)
        });
        while self.now < at {
            self.now = (self.now + Duration::from_millis(100)).min(at);
            engine.tick(&mut self.store, self.now, &mut self.changes);
        }
    }

    fn log(mut self, lines: Box<dyn BufRead>) -> Vec<Change> {
        let mut reader = LogReader::new(TimeZone::UTC);
        for line in lines.split(b'\n') {
            let line = line.expect("the recording is readable");
            let heard = reader.read(&line, Arrival::Recorded);
            self.until(heard.at);
            match &heard.line.content {
                LineContent::Batch(_) => {
                    self.store.record(
                        self.target,
                        heard.line.rank,
                        Source::Log,
                        reader.fields(),
                        heard.at,
                        heard.at,
                    );
                }
                LineContent::Profile(fact) => self.store.note_profile(self.target, heard.line.rank, fact),
                _ => {}
            }
        }
        self.changes
    }

    fn loads(mut self, lines: Box<dyn BufRead>) -> Vec<Change> {
        for line in lines.lines() {
            let line = line.expect("the recording is readable");
            let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let at = Time::from_epoch_s(value["t"].as_f64().expect("a time"));
            self.until(at);
            let Ok(read) = loads::read(value["body"].to_string().as_bytes()) else { continue };
            for rank in read.ranks {
                self.store.record(self.target, rank.rank, Source::Loads, &rank.fields, at - rank.age, at);
            }
        }
        self.changes
    }

    fn metrics(mut self, lines: Box<dyn BufRead>) -> Vec<Change> {
        let mut metrics = Metrics::default();
        let (mut page, mut at) = (Vec::new(), None);
        for line in lines.split(b'\n').map(|l| l.expect("readable")).chain([b"#@ 0".to_vec()]) {
            if let Some(epoch) = line.strip_prefix(b"#@ ") {
                if let Some(at) = at {
                    self.until(at);
                    if metrics.read(&page).is_ok() {
                        self.store.record_page(self.target, &metrics, at);
                    }
                }
                at = std::str::from_utf8(epoch)
                    .ok()
                    .and_then(|e| e.trim().parse().ok())
                    .map(Time::from_epoch_s);
                page.clear();
            } else {
                page.extend_from_slice(&line);
                page.push(b'\n');
            }
        }
        self.changes
    }
}

fn told(changes: &[Change]) -> String {
    changes.iter().map(|c| serde_json::to_string(&c.line("none", None)).expect("a line") + "\n").collect()
}

/// What must be true of the recorded incident on the four ranks, from whichever source.
fn check_dp4(changes: &[Change]) {
    let skew = 1_795_492_121.33;
    println!("{}", told(changes));
    let early: Vec<_> = changes
        .iter()
        .filter(|c| c.state == RuleState::Firing && c.at.epoch_s() < skew)
        .map(|c| c.rule.name.clone())
        .collect();
    assert!(early.is_empty(), "fired before the skew: {early:?}");
    let fired = changes
        .iter()
        .find(|c| &*c.rule.name == "dp-load-skew" && c.state == RuleState::Firing)
        .expect("the skew is found");
    let finding = fired.finding.as_ref().expect("a firing has a finding");
    assert!(fired.at.epoch_s() - skew <= 6.0, "too late: {}", fired.at.epoch_s() - skew);
    assert_eq!(finding.rank.to_string(), "dp_rank=2");
    assert!((finding.onset.epoch_s() - skew).abs() <= 2.0, "onset {}", finding.onset.epoch_s() - skew);
    let state_at = |t: f64| {
        let of_rule = changes.iter().filter(|c| &*c.rule.name == "dp-load-skew");
        of_rule.take_while(|c| c.at.epoch_s() <= t).last().map(|c| c.state)
    };
    for t in [130.0, 145.0, 155.0, 165.0] {
        assert_eq!(state_at(1_795_492_000.0 + t), Some(RuleState::Firing), "at ...{t}");
    }
    assert_eq!(state_at(1_795_492_197.0), Some(RuleState::Idle));
    let starved = changes.iter().find(|c| &*c.rule.name == "starved-rank" && c.state == RuleState::Firing);
    assert!(starved.is_none(), "DP2 is overloaded, nobody is starved: {starved:?}");
}

#[test]
fn the_recorded_skew_is_found_from_the_loads_alone() {
    let Some(lines) = lines_of("sglang-0.5.16-dp4/loads.jsonl.gz") else { return };
    check_dp4(&Replay::new().loads(lines));
}

#[test]
fn the_recorded_skew_is_found_from_the_log_alone() {
    let Some(lines) = lines_of("sglang-0.5.16-dp4/server.stamped.log.gz") else { return };
    check_dp4(&Replay::new().log(lines));
}

#[test]
fn the_recorded_skew_is_found_from_the_metrics_alone() {
    let Some(lines) = lines_of("sglang-0.5.16-dp4/metrics.txt.gz") else { return };
    check_dp4(&Replay::new().metrics(lines));
}

#[test]
fn a_starved_rank_is_found_from_the_log_alone() {
    let Some(lines) = lines_of("sglang-0.5.23-cpu-dp2/server.log.gz") else { return };
    let changes = Replay::new().log(lines);
    println!("{}", told(&changes));
    assert!(
        changes.iter().any(|c| &*c.rule.name == "starved-rank"
            && c.state == RuleState::Firing
            && c.finding.as_ref().is_some_and(|f| f.rank.to_string() == "dp_rank=0" && f.side == Side::Low)),
        "the starvation of DP0 went unseen"
    );
}
