//! What became of the windows of many runs, each count with its ceiling.

use std::collections::BTreeMap;
use std::fmt;

/// Why a window may end without a proof of its end: words of the reason.
const LISTED: &[&str] = &[
    "the start was not answered in time",
    "the start lost its connection",
    "the agent died before the start was answered",
    "the start was answered with",
    "its export had not ended",
    "the agent ended first",
    "somebody else's profile kept ours",
    "the server was not reached",
    "the stop was answered with",
    "is armed and will record",
    "nothing shows that",
    "was started anew with other ranks just before the start",
];

/// Counts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub runs: u64,
    pub attempts: u64,
    pub proven: u64,
    pub captured: u64,
    /// Not booked yet when the run was over.
    pub under_way: u64,
    pub unproven: BTreeMap<&'static str, u64>,
    pub unlisted: Vec<String>,
    /// Stops of somebody else's profile that the agent could not know of.
    pub unseen_stops: u64,
    /// Windows on an instance that the agent could not know of: the one before was gone for less than one
    /// poll, and it was not told after the start.
    pub outdated: u64,
    pub refused: BTreeMap<&'static str, u32>,
}

impl Tally {
    /// An attempt ended, with this reason where it is unproven; `None` when it has not.
    pub fn attempt(&mut self, end: Option<Option<&str>>) {
        self.attempts += 1;
        match end {
            None => self.under_way += 1,
            Some(None) => self.proven += 1,
            Some(Some(why)) => match LISTED.iter().find(|listed| why.contains(**listed)) {
                Some(listed) => *self.unproven.entry(listed).or_default() += 1,
                None => self.unlisted.push(why.to_owned()),
            },
        }
    }

    pub fn unproven(&self) -> u64 {
        self.unproven.values().sum::<u64>() + self.unlisted.len() as u64
    }

    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.attempts += other.attempts;
        self.proven += other.proven;
        self.captured += other.captured;
        self.under_way += other.under_way;
        self.unseen_stops += other.unseen_stops;
        self.outdated += other.outdated;
        for (why, count) in &other.unproven {
            *self.unproven.entry(why).or_default() += count;
        }
        for (why, count) in &other.refused {
            *self.refused.entry(why).or_default() += count;
        }
        self.unlisted.extend(other.unlisted.iter().cloned());
    }

    /// The ceilings: a change that gives up more windows, or refuses more, is seen here.
    pub fn check(&self) {
        let share = |count: u64| count as f64 / self.attempts.max(1) as f64;
        assert!(share(self.unproven()) <= 0.10, "too many windows are unproven:\n{self}");
        assert!(share(self.proven) >= 0.85, "too few windows are proven:\n{self}");
        assert!(share(self.captured) >= 0.60, "too few windows are captured:\n{self}");
        assert!(
            share(self.unseen_stops) <= 0.001,
            "too many profiles of somebody else's are stopped:\n{self}"
        );
        assert!(
            share(self.outdated) <= 0.005,
            "too many windows are started as on an instance before:\n{self}"
        );
        let refused = self.refused.values().map(|count| u64::from(*count)).sum::<u64>();
        assert!(share(refused) <= 3.0, "too many windows are refused:\n{self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, attempts, proven, captured, under_way, .. } = self;
        writeln!(
            f,
            "{runs} runs: {attempts} windows, {proven} proven, {captured} captured, {} unproven, {under_way} under way at the end",
            self.unproven()
        )?;
        for (why, count) in &self.unproven {
            writeln!(f, "  unproven: {count:6} {why}")?;
        }
        if self.unseen_stops > 0 {
            writeln!(f, "  stops of somebody else's profile, not to be known of: {}", self.unseen_stops)?;
        }
        if self.outdated > 0 {
            writeln!(
                f,
                "  started as on an instance that was gone for less than one poll: {}",
                self.outdated
            )?;
        }
        for (why, count) in &self.refused {
            writeln!(f, "  refused:  {count:6} {why}")?;
        }
        Ok(())
    }
}
