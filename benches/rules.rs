//! What evaluating rules costs: 10,000 series at 10 Hz through 20 rules, as a share of one core.
//!
//! `cargo bench --bench rules`. Once as servers are (each rank reports twenty signals, each rule
//! looks at one of them), once at the worst (one signal, and every rule looks at every series), and
//! for one server, whose whole history fits. The second line of each is five minutes later, when the
//! history is thirty times as long: the cost of a sample must not depend on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use skewtrap::config::rules;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::rule::{Engine, Rule};
use skewtrap_core::signal::catalog::{Catalog, DERIVED, Kind};
use skewtrap_core::signal::fields::Fields;
use skewtrap_core::signal::sample::{Signal, Source, TargetId};
use skewtrap_core::signal::store::{Bounds, SignalStore};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

const STEP: Duration = Duration::from_millis(100);

/// How the 10,000 series are spread.
#[derive(Clone, Copy)]
struct Spread {
    servers: u16,
    ranks: u16,
    signals: usize,
}

const AS_SERVERS_ARE: Spread = Spread { servers: 50, ranks: 10, signals: 20 };
const AT_THE_WORST: Spread = Spread { servers: 1_250, ranks: 8, signals: 1 };
const ONE_SERVER: Spread = Spread { servers: 1, ranks: 10, signals: 20 };

/// Gauges that every rank reports; rules look at them one each, or all at the first.
fn signals(catalog: &Catalog) -> Vec<(Signal, String)> {
    let names: Vec<String> = catalog.names().map(str::to_owned).collect();
    let known = names.into_iter().filter_map(|n| Some((catalog.signal_named(&n)?, n)));
    let gauges = known.filter(|(s, _)| catalog.kind_of(*s) == Kind::Gauge);
    // What is computed from others comes from them.
    gauges.filter(|(s, _)| DERIVED.iter().all(|d| d.signal != *s)).take(20).collect()
}

/// Twenty rules, every statistic among them.
fn twenty_rules(spread: Spread) -> Vec<Rule> {
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
    let catalog = Catalog::default();
    let signals = signals(&catalog);
    let mut text = String::from("rules:\n");
    for (i, trigger) in triggers.iter().enumerate() {
        let signal = &signals[i % spread.signals].1;
        text.push_str(&format!(
            "  - {{ name: r{i}, signal: {signal}, trigger: {{ {trigger}, for: 3s }} }}\n"
        ));
    }
    let loaded = rules::load([("bench", text.as_str())], &catalog, &CaptureSpec::None);
    assert!(loaded.is_ok(), "{:?}", loaded.diagnostics);
    loaded.rules.into_iter().map(|c| c.rule).collect()
}

struct Bench {
    spread: Spread,
    signals: Vec<Signal>,
    store: SignalStore,
    engine: Engine,
    now: Time,
    noise: u64,
}

impl Bench {
    fn new(spread: Spread) -> Self {
        let catalog = Arc::new(Catalog::default());
        let signals = signals(&catalog).into_iter().map(|(s, _)| s).take(spread.signals).collect();
        let mut store = SignalStore::new(catalog, Bounds::default());
        for s in 0..spread.servers {
            store.add_target(format!("server{s}").into(), None);
        }
        let now = Time::from_epoch_s(1_795_490_000.0);
        let engine = Engine::new(twenty_rules(spread), &mut store, now);
        Self { spread, signals, store, engine, now, noise: 1 }
    }

    /// One tenth of a second: every series has a new value. Returns what recording alone took.
    fn step(&mut self) -> Duration {
        self.now = self.now + STEP;
        let start = Instant::now();
        let mut fields = Fields::default();
        for server in 0..self.spread.servers {
            for rank in 0..self.spread.ranks {
                fields.clear();
                for signal in &self.signals {
                    self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    fields.set(*signal, 20.0 + (self.noise >> 60) as f64);
                }
                let (target, rank) = (TargetId(server), Rank::dp(rank));
                self.store.record(target, rank, Source::Loads, &fields, self.now, self.now);
            }
        }
        let recorded = start.elapsed();
        let mut changes = Vec::new();
        self.engine.on_samples(&mut self.store, self.now, &mut changes);
        recorded
    }

    fn run(&mut self, seconds: u32) {
        let evaluations = self.engine.evaluation_count();
        let start = Instant::now();
        let recording: Duration = (0..seconds * 10).map(|_| self.step()).sum();
        let all = start.elapsed();
        let evaluated = self.engine.evaluation_count() - evaluations;
        let share = |d: Duration| d.as_secs_f64() / f64::from(seconds) * 100.0;
        let samples = f64::from(seconds)
            * 10.0
            * f64::from(self.spread.servers)
            * f64::from(self.spread.ranks)
            * self.signals.len() as f64;
        println!(
            "{:5.2} % of a core, {:.0} ns a sample (recording {:.2} %, rules {:.2} %), {} ns an evaluation, {} evaluations a second",
            share(all),
            all.as_nanos() as f64 / samples,
            share(recording),
            share(all - recording),
            (all - recording).as_nanos() / u128::from(evaluated.max(1)),
            evaluated / u64::from(seconds),
        );
    }
}

fn main() {
    for (name, spread) in
        [("as servers are", AS_SERVERS_ARE), ("at the worst", AT_THE_WORST), ("one server", ONE_SERVER)]
    {
        let mut bench = Bench::new(spread);
        let Spread { servers, ranks, signals } = spread;
        let series = usize::from(servers) * usize::from(ranks) * signals;
        println!(
            "20 rules, {series} series at 10 Hz, {name}: {servers} servers x {ranks} ranks x {signals} signals"
        );
        bench.run(10);
        for _ in 0..3_000 {
            bench.step();
        }
        bench.run(10);
    }
}
