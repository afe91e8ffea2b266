//! What a log line costs: understanding it, keeping its numbers, showing groups.
//!
//! `cargo bench --bench replay_parse`. The lines are those of a busy server of eight ranks: 60 %
//! decode, 20 % prefill, 20 % access log, 162 bytes each.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::BytesCount;
use jiff::tz::TimeZone;
use skewtrap_core::signal::catalog::{self, Catalog};
use skewtrap_core::signal::fields::Fields;
use skewtrap_core::signal::intake::{Intake, IntakeStep};
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::Source;
use skewtrap_core::signal::sglang_line;
use skewtrap_core::signal::store::{Bounds, SignalStore};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

fn main() {
    divan::main();
}

/// A minute of the log.
fn log() -> Vec<u8> {
    let mut text = String::new();
    for second in 0..60 {
        for n in 0..160 {
            let (dp, x) = (n % 8, (second * 160 + n) * 7919 % 10_007);
            let stamp = format!("[2026-11-24 03:48:{second:02}");
            let line = match n / 8 % 20 {
                0..12 => writeln!(
                    text,
                    "{stamp} DP{dp} TP0] Decode batch, #running-req: {}, #token: {}, token usage: 0.{:02}, cuda graph: True, gen throughput (token/s): {}.{:02}, #queue-req: {}",
                    x % 128,
                    x * 40,
                    x % 100,
                    x,
                    x % 100,
                    x % 5
                ),
                12..16 => writeln!(
                    text,
                    "{stamp} DP{dp} TP0] Prefill batch, #new-seq: {}, #new-token: {x}, #cached-token: {}, token usage: 0.{:02}, #running-req: {}, #queue-req: {}, #pending-token: {x}, cuda graph: False, input throughput (token/s): {x}.50",
                    x % 6,
                    x % 2000,
                    x % 100,
                    x % 128,
                    x % 5
                ),
                _ => writeln!(
                    text,
                    "{stamp}] INFO:     127.0.0.1:{} - \"POST /v1/chat/completions HTTP/1.1\" 200 OK",
                    30_000 + x
                ),
            };
            line.expect("a string takes everything");
        }
    }
    text.into_bytes()
}

#[divan::bench]
fn understanding(bencher: Bencher) {
    let log = log();
    let (mut fields, mut shapes) = (Fields::default(), sglang_line::Shapes::of_a_log());
    bencher.counter(BytesCount::new(log.len())).bench_local(|| {
        let mut found = 0;
        for line in memchr::memchr_iter(b'\n', &log)
            .scan(0, |from, end| Some(&log[std::mem::replace(from, end + 1)..end]))
        {
            divan::black_box(sglang_line::read_next(line, &mut fields, &mut shapes));
            found += fields.len();
        }
        found
    });
}

/// Everything up to the rules; a group is looked at every tenth of a (simulated) second.
#[divan::bench]
fn up_to_the_groups(bencher: Bencher) {
    let lines = log();
    let bytes = lines.len();
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    let target = store.add_target("server".into(), None);
    let across = ["dp_rank".into()];
    let within = ["target".into(), "role".into()];
    let views = [catalog::LOAD, catalog::KV_USAGE, catalog::RUNNING_REQS]
        .map(|s| store.subscribe(s, &across, &within));
    let mut intake = Intake::new(TimeZone::UTC);
    let seen = Observation::Lines { target, source: SourceId(0), lines, arrival: Arrival::Recorded };
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        let mut looked = Time::default();
        let mut touched = Vec::new();
        intake.take(&seen, &mut store, |store, at, step| {
            if matches!(step, IntakeStep::Recorded) && at.since(looked) >= Duration::from_millis(100) {
                looked = at;
                store.take_touched(&mut touched);
                for view in views {
                    let group = store.groups(view).next().map(|g| g.0);
                    group.map(|g| divan::black_box(store.frame(view, g, at, Duration::ZERO).members.len()));
                }
            }
        });
    });
}

/// One turn of a fleet: a sample each of 10,000 series, and 20 rules that look at them. Ten such
/// turns a second are to cost at most a twentieth of a core: 5 ms a turn.
#[divan::bench]
fn a_turn_of_ten_thousand_series(bencher: Bencher) {
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    let targets: Vec<_> = (0..625).map(|i| store.add_target(format!("server-{i}").into(), None)).collect();
    let views: Vec<_> = (0..20)
        .map(|n| {
            let within = ["target".into(), format!("label_{n}").into()];
            store.subscribe(catalog::KV_USAGE, &["dp_rank".into()], &within)
        })
        .collect();
    let (mut fields, mut turn) = (Fields::default(), 0.0);
    bencher.bench_local(|| {
        turn += 0.1;
        let now = Time::from_epoch_s(turn);
        for &target in &targets {
            for dp in 0..16 {
                fields.clear();
                fields.set(catalog::KV_USAGE, f64::from(dp) / 16.0);
                store.record(target, Rank::dp(dp), Source::Metrics, &fields, now, now);
            }
        }
        let mut touched = Vec::new();
        store.take_touched(&mut touched);
        assert_eq!(touched.len(), views.len() * targets.len());
        touched.iter().map(|(v, g)| store.frame(*v, *g, now, Duration::ZERO).members.len()).sum::<usize>()
    });
}
