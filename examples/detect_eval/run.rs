//! A log through one detector: ours is the whole core with the shipped rule, as `skewtrap replay` runs it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use jiff::tz::TimeZone;
use skewtrap::config::rules;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::capture::admit::Policy;
use skewtrap_core::capture::governor::Ledger;
use skewtrap_core::rule::{Change, Rule};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::{Source, TargetId};
use skewtrap_core::signal::source::WatchedSource;
use skewtrap_core::watch::{Effect, Mode, Setup, Watch, WatchedTarget};
use skewtrap_trace::labels::LabelValue;
use skewtrap_trace::time::Time;

use super::textbook::Textbook;

/// The rule that is evaluated.
const RULE: &str = "dp-load-skew";

/// The numbers in a rank's last line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    pub second: i64,
    pub running: f64,
    pub queued: f64,
}

/// One log: its text, and its lines by second for the textbook detectors.
pub struct Log {
    text: Vec<u8>,
    lines: Vec<(usize, Line)>,
    ranks: usize,
}

/// One firing.
#[derive(Clone, Debug)]
pub struct Firing {
    pub at: f64,
    pub onset: f64,
    pub rank: usize,
    /// What showed it, of the shipped rule.
    pub by: String,
}

/// What is evaluated.
pub enum Detector {
    /// The shipped rule, with another budget of false alarms a day where one is given.
    Shipped(Option<f64>),
    Textbook(Textbook, f64),
}

impl Detector {
    /// The static detector with every bound among which one is chosen for each configuration, rising.
    pub fn to_calibrate() -> Vec<Self> {
        (0..=90).map(|i| Self::Textbook(Textbook::Static, 1.4 + 0.02 * f64::from(i))).collect()
    }

    /// The one that was given.
    pub fn bound(&self) -> Option<f64> {
        match self {
            Self::Shipped(bound) => *bound,
            Self::Textbook(_, bound) => Some(*bound),
        }
    }

    pub fn sweep() -> Vec<Self> {
        let ours = [0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0].map(|budget| Self::Shipped(Some(budget)));
        let theirs = Textbook::sweep().into_iter().map(|(t, bound)| Self::Textbook(t, bound));
        ours.into_iter().chain(theirs).collect()
    }
}

impl Log {
    /// Reads a log and lets its lines arrive spread evenly over the second that they are stamped
    /// with, as they do from a live server: a stamp alone is up to a second early.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let parsed: Vec<(&str, usize, Line)> =
            text.lines().filter_map(|l| Line::parse(l).map(|(rank, line)| (l, rank, line))).collect();
        let mut arriving = Vec::with_capacity(text.len() * 9 / 8);
        for second in parsed.chunk_by(|a, b| a.2.second == b.2.second) {
            for (i, (text, _, line)) in second.iter().enumerate() {
                let within = (i as f64 + 0.5) / second.len() as f64;
                let at = line.second as f64 + within;
                arriving.extend_from_slice(format!("{at:.3}\t{text}\n").as_bytes());
            }
        }
        let lines: Vec<(usize, Line)> = parsed.into_iter().map(|(_, rank, line)| (rank, line)).collect();
        let ranks = lines.iter().map(|(rank, _)| rank + 1).max().unwrap_or(0);
        Ok(Self { text: arriving, lines, ranks })
    }

    /// The seconds of its first and last line.
    pub fn span(&self) -> (f64, f64) {
        let at = |l: Option<&(usize, Line)>| l.map_or(0.0, |(_, l)| l.second as f64);
        (at(self.lines.first()), at(self.lines.last()))
    }

    /// Every second's end with the ranks' last lines, those silent for long as idle.
    pub fn seconds(&self) -> impl Iterator<Item = (i64, Vec<Line>)> + '_ {
        let first = self.lines.first().map_or(0, |l| l.1.second);
        let last = self.lines.last().map_or(-1, |l| l.1.second);
        let (mut next, mut now) = (0, vec![Line::default(); self.ranks]);
        (first..=last).map(move |second| {
            while next < self.lines.len() && self.lines[next].1.second <= second {
                now[self.lines[next].0] = self.lines[next].1;
                next += 1;
            }
            (second + 1, now.iter().map(|l| l.or_idle(second)).collect())
        })
    }

    pub fn firings(&self, detector: &Detector) -> Vec<Firing> {
        match detector {
            Detector::Shipped(bound) => self.replayed(*bound),
            Detector::Textbook(detector, bound) => detector.firings(self, *bound),
        }
    }

    /// Through the core in simulated time. A firing is dated to the end of its second, as the
    /// textbook detectors' are.
    fn replayed(&self, bound: Option<f64>) -> Vec<Firing> {
        let mut watch = Watch::new(setup(bound), Time::default());
        let (target, source) = (TargetId(0), SourceId(0));
        let lines = self.text.clone();
        let seen = Observation::Lines { target, source, lines, arrival: Arrival::Recorded };
        let mut effects = Vec::new();
        watch.observe(&seen, Time::default(), &mut effects);
        let changes = effects.into_iter().filter_map(|e| match e {
            Effect::Changed { change, .. } => Some(change),
            _ => None,
        });
        changes.filter(|c| c.is_onset()).filter_map(|c| Firing::of(&c)).collect()
    }
}

impl Firing {
    fn of(change: &Change) -> Option<Self> {
        let finding = change.finding.as_ref()?;
        let Some(LabelValue::Index(rank)) = finding.rank.get("dp_rank") else { return None };
        Some(Self {
            at: change.at.epoch_s().floor() + 1.0,
            onset: finding.onset.epoch_s(),
            rank: usize::try_from(*rank).ok()?,
            by: format!("{} {:?}", finding.measured.as_ref()?.statistic, finding.side),
        })
    }
}

fn setup(budget: Option<f64>) -> Setup {
    let rule = shipped_rule();
    let mut policy = Policy::default();
    policy.budget.false_alarms = budget.unwrap_or(policy.budget.false_alarms);
    let server: Arc<str> = "server".into();
    Setup {
        rules: vec![rule],
        catalog: Arc::new(Catalog::default()),
        own: Default::default(),
        pages: Vec::new(),
        sources: vec![WatchedSource {
            id: SourceId(0),
            target: TargetId(0),
            kind: Source::Log,
            name: "log".into(),
            zone: None,
        }],
        targets: vec![WatchedTarget { name: server.clone(), role: None, group: server, sees_log: true }],
        policy,
        ledger: Ledger::default(),
        zone: TimeZone::UTC,
        mode: Mode::Replay,
    }
}

/// As the binary carries it.
fn shipped_rule() -> Rule {
    let catalog = Catalog::default();
    let preset = rules::preset(RULE).expect("the rule is shipped");
    let file = [(preset.name, preset.text)];
    let loaded = rules::load(file, &catalog, &CaptureSpec::None);
    loaded.rules.into_iter().next().expect("the shipped rule loads").rule
}

impl Line {
    fn parse(line: &str) -> Option<(usize, Self)> {
        let bytes = line.get(..20)?.as_bytes();
        let number = |from: usize, to: usize| line.get(from..to)?.parse::<i64>().ok();
        let day = days(number(1, 5)?, number(6, 8)?, number(9, 11)?);
        let second = day * 86_400 + number(12, 14)? * 3_600 + number(15, 17)? * 60 + number(18, 20)?;
        debug_assert_eq!(bytes[0], b'[');
        let rank = line.get(23..)?.split([' ', ']']).next()?.parse().ok()?;
        let field = |key: &str| -> Option<f64> {
            let rest = &line[line.find(key)? + key.len()..];
            rest[..rest.find(',').unwrap_or(rest.len())].parse().ok()
        };
        Some((rank, Self { second, running: field("#running-req: ")?, queued: field("#queue-req: ")? }))
    }

    /// A rank that has said nothing for six seconds is idle.
    fn or_idle(self, second: i64) -> Self {
        if second - self.second < 6 { self } else { Self { second: self.second, ..Self::default() } }
    }

    pub fn load(&self) -> f64 {
        self.running + self.queued
    }
}

/// Days from the epoch to a date (Howard Hinnant's days_from_civil).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let (era, yoe) = (y.div_euclid(400), y.rem_euclid(400));
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}
