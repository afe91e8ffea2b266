//! What evaluating rules costs: 10,000 series at 10 Hz through 20 rules, as a share of one core.
//!
//! `cargo bench --bench rules`. 1,250 servers of 8 ranks, one signal; every rule looks at every group
//! ten times a second. The second line repeats it with a history twenty times as long: the cost of a
//! sample must not depend on it.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use skewtrap::config::rule::Signals;
use skewtrap::config::rules;
use skewtrap::decide::capture::CaptureSpec;
use skewtrap::decide::rule::{Engine, Rule};
use skewtrap::decide::signal::catalog::{self, Catalog};
use skewtrap::decide::signal::fields::Fields;
use skewtrap::decide::signal::rank::Rank;
use skewtrap::decide::signal::sample::{Source, TargetId};
use skewtrap::decide::signal::store::{Bounds, SignalStore};
use skewtrap::decide::time::Time;

const SERVERS: u16 = 1_250;
const RANKS: u16 = 8;
const STEP: Duration = Duration::from_millis(100);

/// Twenty rules, every statistic among them.
fn twenty_rules() -> Vec<Rule> {
    let triggers = [
        "max_over_mean: 1.5, beyond_chance: 4",
        "max_over_mean: 1.8, beyond_chance: 5",
        "max_over_mean: 2.5",
        "min_over_mean: 0.2, beyond_chance: 2",
        "min_over_mean: 0.4, beyond_chance: 4",
        "max_minus_min: 40",
        "max_minus_min: 80",
        "cv: 0.8",
        "cv: 1.2, side: low",
        "gini: 0.5",
        "gini: 0.7",
        "jain: 0.5",
        "jain: 0.4",
        "lost_share: 0.6",
        "lost_share: 0.8",
        "robust_z: 12",
        "robust_z: 20",
        "any_member: { above: 200 }",
        "all_members: { below: 1 }",
        "max_over_mean: 1.4, above_baseline: 1.5",
    ];
    let mut text = String::from("rules:\n");
    for (i, trigger) in triggers.iter().enumerate() {
        text.push_str(&format!("  - {{ name: r{i}, signal: load, trigger: {{ {trigger}, for: 3s }} }}\n"));
    }
    let catalog = Catalog::default();
    let names: Vec<&str> = catalog.names().collect();
    let of = |n: &str| catalog.signal_named(n);
    let loaded =
        rules::load([("bench", text.as_str())], Signals { of: &of, names: &names }, &CaptureSpec::None);
    assert!(loaded.is_ok(), "{:?}", loaded.diagnostics);
    loaded.rules.into_iter().map(|c| c.rule).collect()
}

struct Bench {
    store: SignalStore,
    engine: Engine,
    now: Time,
    noise: u64,
}

impl Bench {
    fn new(rules: Vec<Rule>) -> Self {
        let bounds = Bounds::default();
        let mut store = SignalStore::new(Arc::new(Catalog::default()), bounds);
        for s in 0..SERVERS {
            store.add_target(format!("server{s}").into(), None);
        }
        let now = Time::from_epoch_s(1_795_490_000.0);
        let engine = Engine::new(rules, &mut store, now);
        Self { store, engine, now, noise: 1 }
    }

    /// One tenth of a second: every series has a new value. Returns what recording alone took.
    fn step(&mut self) -> Duration {
        self.now = self.now + STEP;
        let start = Instant::now();
        let mut fields = Fields::default();
        for server in 0..SERVERS {
            for rank in 0..RANKS {
                self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                fields.clear();
                fields.set(catalog::LOAD, 20.0 + (self.noise >> 60) as f64);
                self.store.record(
                    TargetId(server),
                    Rank::dp(rank),
                    Source::Loads,
                    &fields,
                    self.now,
                    self.now,
                );
            }
        }
        let recorded = start.elapsed();
        let mut changes = Vec::new();
        self.engine.on_samples(&mut self.store, self.now, &mut changes);
        recorded
    }

    fn run(&mut self, seconds: u32) {
        let evaluations = self.engine.evaluations();
        let start = Instant::now();
        let recording: Duration = (0..seconds * 10).map(|_| self.step()).sum();
        let all = start.elapsed();
        let evaluated = self.engine.evaluations() - evaluations;
        let share = |d: Duration| d.as_secs_f64() / f64::from(seconds) * 100.0;
        println!(
            "{:5.2} % of a core (recording {:.2} %, rules {:.2} %), {} ns an evaluation, {} evaluations a second",
            share(all),
            share(recording),
            share(all - recording),
            (all - recording).as_nanos() / u128::from(evaluated.max(1)),
            evaluated / u64::from(seconds),
        );
    }
}

fn main() {
    for rules in [twenty_rules(), twenty_rules().into_iter().take(3).collect()] {
        let count = rules.len();
        let mut bench = Bench::new(rules);
        println!("{} series at 10 Hz, {count} rules", u32::from(SERVERS) * u32::from(RANKS));
        bench.run(10);
        (0..2_000).for_each(|_| {
            bench.step();
        });
        bench.run(10);
    }
}
