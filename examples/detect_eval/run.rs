//! A log second by second through one detector.

use std::time::Duration;

use skewtrap::decide::onset;
use skewtrap::decide::rule::Side;
use skewtrap::decide::rule::departure::{Course, Departure, Evidence, Work};
use skewtrap::decide::time::Time;

use super::textbook::Textbook;

/// What a rank's last line said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    pub second: i64,
    pub running: f64,
    pub queued: f64,
    pub tokens: f64,
    pub throughput: f64,
}

/// One log: its lines by second.
pub struct Log {
    pub lines: Vec<(usize, Line)>,
    pub ranks: usize,
}

/// One firing.
#[derive(Clone, Copy, Debug)]
pub struct Firing {
    pub at: f64,
    pub onset: f64,
    pub rank: usize,
    /// What showed it, of the shipped rule.
    pub by: &'static str,
}

/// The bounds of the shipped rule.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub departure: f64,
    pub clear: f64,
    pub hold_s: f64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { departure: 5.0, clear: 3.5, hold_s: 0.0 }
    }
}

/// What is evaluated.
pub enum Rule {
    Shipped(Bounds),
    Textbook(Textbook, f64),
}

impl Rule {
    pub fn sweep() -> Vec<Self> {
        let ours = [3.6, 3.9, 4.2, 4.5, 4.7, 4.9, 5.1, 5.4, 5.8, 6.3]
            .map(|departure| Self::Shipped(Bounds { departure, ..Bounds::default() }));
        ours.into_iter().chain(Textbook::sweep().into_iter().map(|(t, b)| Self::Textbook(t, b))).collect()
    }
}

impl Log {
    pub fn parse(text: &str) -> Self {
        let mut lines = Vec::new();
        let mut ranks = 0;
        for line in text.lines() {
            let Some((rank, line)) = Line::parse(line) else { continue };
            ranks = ranks.max(rank + 1);
            lines.push((rank, line));
        }
        Self { lines, ranks }
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

    pub fn firings(&self, rule: &Rule) -> Vec<Firing> {
        match rule {
            Rule::Shipped(bounds) => self.shipped(*bounds),
            Rule::Textbook(detector, bound) => detector.firings(self, *bound),
        }
    }

    fn shipped(&self, bounds: Bounds) -> Vec<Firing> {
        let mut departure = Departure::default();
        let mut state = State::default();
        let mut firings = Vec::new();
        for (now, lines) in self.seconds() {
            let members: Vec<Work> = lines.iter().map(Line::work).collect();
            let now = Time::from_epoch_s(now as f64);
            if !departure.observe(now, &members, !state.is_firing && state.above_since.is_none()) {
                continue;
            }
            let Some(e) = departure.evidence().copied() else { continue };
            if state.step(now, &e, bounds) {
                let found = onset_of(&departure, &e);
                firings.push(Firing {
                    at: now.epoch_s(),
                    onset: found.map_or(now.epoch_s(), |o| o.at.epoch_s()),
                    rank: e.member,
                    by: match e.course {
                        Course::Load => "load",
                        Course::Tokens => "tokens",
                        Course::Speed => "speed",
                    },
                });
            }
        }
        firings
    }
}

/// The least of a rule's states.
#[derive(Default)]
struct State {
    is_firing: bool,
    above_since: Option<Time>,
    below_since: Option<Time>,
}

impl State {
    fn step(&mut self, now: Time, e: &Evidence, bounds: Bounds) -> bool {
        if self.is_firing {
            self.below_since = (e.lately < bounds.clear).then(|| self.below_since.unwrap_or(now));
            if self.below_since.is_some_and(|s| now.since(s) >= Duration::from_secs(10)) {
                *self = Self::default();
            }
            return false;
        }
        self.above_since = (e.value > bounds.departure).then(|| self.above_since.unwrap_or(now));
        self.is_firing = self.above_since.is_some_and(|s| now.signed_s_since(s) >= bounds.hold_s);
        self.is_firing
    }
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
        Some((
            rank,
            Self {
                second,
                running: field("#running-req: ")?,
                queued: field("#queue-req: ")?,
                tokens: field("#token: ")?,
                throughput: field("gen throughput (token/s): ")?,
            },
        ))
    }

    /// A rank that has said nothing for six seconds is idle.
    fn or_idle(self, second: i64) -> Self {
        if second - self.second < 6 { self } else { Self { second: self.second, ..Self::default() } }
    }

    pub fn load(&self) -> f64 {
        self.running + self.queued
    }

    fn work(&self) -> Work {
        Work {
            load: self.load(),
            tokens: Some(self.tokens),
            speed: (self.running > 0.0).then(|| self.throughput / self.running),
            at: Time::from_epoch_s(self.second as f64),
        }
    }
}

/// Days from the epoch to a date (Howard Hinnant's days_from_civil).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let (era, yoe) = (y.div_euclid(400), y.rem_euclid(400));
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Which side the rank is on: for the detectors that tell.
#[allow(dead_code)]
pub fn is_low(side: Side) -> bool {
    side == Side::Low
}

fn onset_of(departure: &Departure, e: &Evidence) -> Option<onset::Onset> {
    let course: Vec<(Time, f64)> = departure.history(e.member, e.course).collect();
    onset::locate(&course, e.side, e.course.manner())
}
