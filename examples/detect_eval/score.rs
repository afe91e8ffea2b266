//! What the firings of one configuration are worth against the labels.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::run::{Firing, Log, Rule};

/// Nothing can fire earlier: a detector needs this long to see what is normal.
const WARM_S: f64 = 60.0;

/// One line of `labels_*.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Label {
    pub kind: String,
    pub seed: u64,
    pub load: u32,
    pub router: String,
    pub file: String,
    pub onset_unix: Option<f64>,
    pub rank: Option<usize>,
    pub rank2: Option<usize>,
}

#[derive(Default)]
struct Kind {
    of: usize,
    found: usize,
    early: usize,
    right: usize,
    delays: Vec<f64>,
    errors: Vec<f64>,
}

/// All of one configuration.
#[derive(Default)]
pub struct Scores {
    kinds: BTreeMap<String, Kind>,
    normal_h: f64,
    normal_alarms: usize,
    before_h: f64,
    before_alarms: usize,
}

const ORDER: [&str; 8] =
    ["sticky", "hot_prefix", "oscillation", "drained", "slow_rank", "drift", "burst_heal", "load_step"];

impl Scores {
    pub fn of(logs: &[(Log, Label)], rule: &Rule, verbose: bool) -> Self {
        let mut scores = Self::default();
        for (log, label) in logs {
            let firings = log.firings(rule);
            scores.add(log, label, &firings, verbose);
        }
        scores
    }

    fn add(&mut self, log: &Log, label: &Label, firings: &[Firing], verbose: bool) {
        let begin = log.lines.first().map_or(0.0, |l| l.1.second as f64) + WARM_S;
        let end = log.lines.last().map_or(0.0, |l| l.1.second as f64);
        let Some(onset) = label.onset_unix else {
            self.normal_h += (end - begin).max(0.0) / 3600.0;
            self.normal_alarms += firings.len();
            if verbose {
                firings.iter().for_each(|f| {
                    println!(
                        "  normal {}: at {} by {} rank {}",
                        label.file,
                        f.at - begin + WARM_S,
                        f.by,
                        f.rank
                    )
                });
            }
            return;
        };
        self.before_h += (onset - begin).max(0.0) / 3600.0;
        self.before_alarms += firings.iter().filter(|f| f.at < onset).count();
        let kind = self.kinds.entry(label.kind.clone()).or_default();
        kind.of += 1;
        kind.early += usize::from(firings.iter().any(|f| f.at < onset));
        let Some(first) = firings.iter().find(|f| f.at >= onset) else {
            if verbose {
                println!("  {} {}: nothing", label.kind, label.seed);
            }
            return;
        };
        kind.found += 1;
        kind.delays.push(first.at - onset);
        kind.errors.push(first.onset - onset);
        kind.right += usize::from(Some(first.rank) == label.rank || Some(first.rank) == label.rank2);
        if verbose {
            println!(
                "  {} {}: +{:.1} s, onset {:+.1} s, rank {} of {:?} by {}",
                label.kind,
                label.seed,
                first.at - onset,
                first.onset - onset,
                first.rank,
                label.rank,
                first.by
            );
        }
    }

    pub fn false_alarms_h(&self) -> f64 {
        (self.normal_alarms + self.before_alarms) as f64 / (self.normal_h + self.before_h).max(1e-9)
    }

    /// One point of the frontier.
    pub fn point(&self, configuration: &str, rule: &Rule) -> Point {
        let (detector, bound) = match rule {
            Rule::Shipped(b) => ("skewtrap", b.departure),
            Rule::Textbook(t, b) => (t.name(), *b),
        };
        let pooled = |kinds: &[&str]| {
            let of = || self.kinds.iter().filter(|(name, _)| kinds.contains(&name.as_str()));
            let delays: Vec<f64> = of().flat_map(|(_, k)| k.delays.iter().copied()).collect();
            median_of_all(&delays, of().map(|(_, k)| k.of).sum())
        };
        Point {
            configuration: configuration.to_owned(),
            detector,
            bound,
            false_alarms_h: self.false_alarms_h(),
            sudden_s: pooled(&["sticky", "hot_prefix", "oscillation", "drained"]),
            creeping_s: pooled(&["slow_rank", "drift"]),
        }
    }
}

/// What one detector with one bound is worth in one configuration.
pub struct Point {
    pub configuration: String,
    pub detector: &'static str,
    pub bound: f64,
    pub false_alarms_h: f64,
    /// Median delay of sticky, hot_prefix, oscillation and drained together, in seconds.
    pub sudden_s: f64,
    /// The same of slow_rank and drift.
    pub creeping_s: f64,
}

/// The median where what was not found counts as never.
pub fn median_of_all(found: &[f64], of: usize) -> f64 {
    let mut all = found.to_vec();
    all.resize(of, f64::INFINITY);
    median(&all)
}

fn median(values: &[f64]) -> f64 {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    }
}

impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "false alarms: {} in {:.1} h of normal load, {} in {:.1} h before onsets: {:.2}/h",
            self.normal_alarms,
            self.normal_h,
            self.before_alarms,
            self.before_h,
            self.false_alarms_h()
        )?;
        writeln!(
            f,
            "| kind | found | median delay s | 90 % | rank right | median onset error s | bias s | voided by an earlier alarm |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for name in ORDER {
            let Some(k) = self.kinds.get(name) else { continue };
            let absolute: Vec<f64> = k.errors.iter().map(|e| e.abs()).collect();
            let mut sorted = k.delays.clone();
            sorted.sort_by(f64::total_cmp);
            let p90 = sorted
                .get((sorted.len() * 9 / 10).min(sorted.len().saturating_sub(1)))
                .copied()
                .unwrap_or(f64::NAN);
            writeln!(
                f,
                "| {name} | {}/{} | {:.1} | {p90:.1} | {}/{} | {:.1} | {:+.1} | {} |",
                k.found,
                k.of,
                median_of_all(&k.delays, k.of),
                k.right,
                k.found,
                median(&absolute),
                median(&k.errors),
                k.early
            )?;
        }
        Ok(())
    }
}
