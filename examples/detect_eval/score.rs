//! What the firings of one configuration are worth against the labels.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::run::{Detector, Firing};

/// Nothing can fire earlier: a detector needs this long to see what is normal.
const WARM_S: f64 = 60.0;

/// How requests are given to ranks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Router {
    #[serde(rename = "rr")]
    RoundRobin,
    Random,
}

/// A router, and the usual running requests a rank; in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Configuration(Router, Reverse<u32>);

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let router = match self.0 {
            Router::RoundRobin => "round robin",
            Router::Random => "random",
        };
        write!(f, "{router}, {}", self.1.0)
    }
}

/// One line of `labels_*.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Label {
    pub kind: String,
    pub seed: u64,
    pub load: u32,
    pub router: Router,
    pub file: String,
    pub onset_unix: Option<f64>,
    pub rank: Option<usize>,
    pub rank2: Option<usize>,
    #[serde(skip)]
    pub path: PathBuf,
}

impl Label {
    pub const fn configuration(&self) -> Configuration {
        Configuration(self.router, Reverse(self.load))
    }
}

/// One log through one detector.
#[derive(Clone, Debug)]
pub struct Run {
    /// The seconds of its first and last line.
    pub span: (f64, f64),
    pub firings: Vec<Firing>,
}

#[derive(Clone, Default)]
struct Kind {
    of: usize,
    found: usize,
    right: usize,
    delays: Vec<f64>,
    errors: Vec<f64>,
}

/// All of one configuration.
#[derive(Clone, Default)]
pub struct Scores {
    /// The bound, where it differs from configuration to configuration.
    bound: Option<f64>,
    kinds: BTreeMap<String, Kind>,
    normal_h: f64,
    normal_alarms: usize,
    before_h: f64,
    before_alarms: usize,
}

const FIRE: [&str; 6] = ["sticky", "hot_prefix", "oscillation", "drained", "slow_rank", "drift"];
const QUIET: [&str; 2] = ["burst_heal", "load_step"];

impl Scores {
    pub fn add(&mut self, label: &Label, run: &Run) {
        let begin = run.span.0 + WARM_S;
        let Some(onset) = label.onset_unix else {
            self.normal_h += (run.span.1 - begin).max(0.0) / 3600.0;
            self.normal_alarms += run.firings.len();
            return;
        };
        self.before_h += (onset - begin).max(0.0) / 3600.0;
        self.before_alarms += run.firings.iter().filter(|f| f.at < onset).count();
        let kind = self.kinds.entry(label.kind.clone()).or_default();
        kind.of += 1;
        let Some(first) = run.firings.iter().find(|f| f.at >= onset) else { return };
        kind.found += 1;
        kind.delays.push(first.at - onset);
        kind.errors.push(first.onset - onset);
        kind.right += usize::from(Some(first.rank) == label.rank || Some(first.rank) == label.rank2);
    }

    pub fn false_alarms_h(&self) -> f64 {
        (self.normal_alarms + self.before_alarms) as f64 / (self.normal_h + self.before_h).max(1e-9)
    }

    /// One point of the frontier.
    pub fn point(&self, configuration: Configuration, detector: &Detector) -> Point {
        let name = match detector {
            Detector::Shipped(_) => "skewtrap",
            Detector::Textbook(t, _) => t.name(),
        };
        let pooled = |kinds: &[&str]| {
            let of = || self.kinds.iter().filter(|(name, _)| kinds.contains(&name.as_str()));
            let delays: Vec<f64> = of().flat_map(|(_, k)| k.delays.iter().copied()).collect();
            median_of_all(&delays, of().map(|(_, k)| k.of).sum())
        };
        Point {
            configuration,
            detector: name,
            bound: detector.bound().unwrap_or(f64::NAN),
            false_alarms_h: self.false_alarms_h(),
            sudden_s: pooled(&FIRE[..4]),
            creeping_s: pooled(&FIRE[4..]),
        }
    }

    /// The cell of one kind in the table.
    fn cell(&self, kind: &str) -> String {
        let Some(k) = self.kinds.get(kind) else { return "-".into() };
        if QUIET.contains(&kind) {
            return format!("{}/{}", k.found, k.of);
        }
        let absolute: Vec<f64> = k.errors.iter().map(|e| e.abs()).collect();
        let (delay, error, bias) = (median_of_all(&k.delays, k.of), median(&absolute), median(&k.errors));
        let delay = if delay.is_finite() { format!("{delay:.1} s") } else { "never".into() };
        let onset = if k.found > 0 { format!(", {error:.1} s ({bias:+.1})") } else { String::new() };
        format!("{}/{}, {delay}{onset}", k.found, k.of)
    }
}

/// For each configuration, the scores of the least of the rising bounds from which on there are at
/// most `false_alarms_h` an hour; of the highest where there is none.
pub fn calibrated(
    of_bounds: &[(&Detector, &BTreeMap<Configuration, Scores>)],
    false_alarms_h: f64,
) -> BTreeMap<Configuration, Scores> {
    let mut chosen = BTreeMap::new();
    for configuration in of_bounds.iter().flat_map(|(_, s)| s.keys()) {
        let falling = || of_bounds.iter().rev().filter_map(|(d, s)| Some((d.bound(), s.get(configuration)?)));
        let least = falling().take_while(|(_, s)| s.false_alarms_h() <= false_alarms_h).last();
        if let Some((bound, scores)) = least.or_else(|| falling().next()) {
            chosen.insert(*configuration, Scores { bound, ..scores.clone() });
        }
    }
    chosen
}

/// All configurations as one Markdown table, as it stands in docs/departure.md.
pub fn table(scores: &BTreeMap<Configuration, Scores>) -> String {
    let mut rows = vec![
        row("", scores, |name, _| name.to_string()),
        row("---", scores, |_, _| "---".into()).replace(' ', ""),
        row("false alarms an hour", scores, |_, s| {
            let alarms = s.normal_alarms + s.before_alarms;
            format!("{:.2} ({alarms} in {:.1} h)", s.false_alarms_h(), s.normal_h + s.before_h)
        }),
    ];
    if scores.values().any(|s| s.bound.is_some()) {
        rows.insert(2, row("bound", scores, |_, s| s.bound.map_or("-".into(), |b| format!("{b:.2}"))));
    }
    let head = |kind: &str| match kind {
        "sticky" => "sticky: found, delay, onset error (bias)".to_owned(),
        kind if QUIET.contains(&kind) => format!("{kind} fired (must not)"),
        kind => kind.to_owned(),
    };
    rows.extend(FIRE.iter().map(|kind| row(&head(kind), scores, |_, s| s.cell(kind))));
    rows.push(row("right rank, of all found", scores, |_, s| {
        let sum = |of: fn(&Kind) -> usize| FIRE.iter().filter_map(|k| s.kinds.get(*k)).map(of).sum::<usize>();
        format!("{}/{}", sum(|k| k.right), sum(|k| k.found))
    }));
    rows.extend(QUIET.iter().map(|kind| row(&head(kind), scores, |_, s| s.cell(kind))));
    rows.concat()
}

fn row(
    head: &str,
    scores: &BTreeMap<Configuration, Scores>,
    cell: impl Fn(Configuration, &Scores) -> String,
) -> String {
    let cells: Vec<String> = scores.iter().map(|(of, s)| cell(*of, s)).collect();
    format!("| {head} | {} |\n", cells.join(" | "))
}

/// Prints every firing of a run and what it was of.
pub fn print_run(label: &Label, run: &Run) {
    let onset = label.onset_unix;
    let after = |f: &&Firing| onset.is_some_and(|onset| f.at >= onset);
    for f in run.firings.iter().filter(|f| !after(f)) {
        println!("  {}: false alarm at {:.0} s, rank {} by {}", label.file, f.at - run.span.0, f.rank, f.by);
    }
    match (run.firings.iter().find(after), onset) {
        (Some(f), Some(onset)) => println!(
            "  {} {}: +{:.1} s, onset {:+.1} s, rank {} of {:?} by {}",
            label.kind,
            label.seed,
            f.at - onset,
            f.onset - onset,
            f.rank,
            label.rank,
            f.by
        ),
        (None, Some(_)) => println!("  {} {}: nothing", label.kind, label.seed),
        _ => {}
    }
}

/// What one detector with one bound is worth in one configuration.
pub struct Point {
    pub configuration: Configuration,
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
