//! What people say of firings, and what that teaches.
//!
//! A detector cannot know which of its alarms were worth a look. One that somebody calls noise raises the
//! bound of the test that fired it, on that server; one that was useful is taken out of what the bound is
//! said to have cost. Both are bounded and forgotten, so that no click makes a server deaf.

use serde::{Deserialize, Serialize};

/// So many firings are remembered.
const KEPT: usize = 64;
/// A rule tells a firing this much later at most, in seconds.
const TOLD_WITHIN: f64 = 30.0;
/// A day, in seconds.
const DAY: f64 = 86_400.0;

/// What a person says of a firing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// It was worth a look.
    Useful,
    Noise,
}

impl Mark {
    /// As in the API and on the command line: `noise`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Useful => "useful",
            Self::Noise => "noise",
        }
    }
}

/// A firing, as far as a mark needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Firing {
    pub at: f64,
    /// By which way of knowing.
    pub way: usize,
    /// By which test; none for a rank that hangs, which has no bound.
    pub test: Option<usize>,
    /// How far it was beyond the test's threshold.
    pub excess: f64,
    /// What was said of it.
    pub mark: Option<Mark>,
}

/// The last firings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Firings(Vec<Firing>);

impl Firings {
    /// Remembers one.
    pub fn note(&mut self, firing: Firing) {
        if self.0.len() >= KEPT {
            self.0.remove(0);
        }
        self.0.push(firing);
    }

    /// They were by a clock that says `by_s` seconds more.
    pub fn shift(&mut self, by_s: f64) {
        self.0.iter_mut().for_each(|firing| firing.at += by_s);
    }

    /// The one that a rule told at `told`.
    pub fn told_at(&mut self, told: f64) -> Option<&mut Firing> {
        let is_it = |f: &&mut Firing| (-1.0..=TOLD_WITHIN).contains(&(told - f.at));
        self.0.iter_mut().rev().find(is_it)
    }

    /// How many in the day before `now`.
    pub fn in_a_day(&self, now: f64) -> usize {
        self.0.iter().filter(|f| now - f.at <= DAY).count()
    }
}

/// What a mark taught.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MarkEffect {
    /// The bound of the test that fired, in standard deviations: before.
    pub before: f64,
    pub after: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firing_is_found_by_when_a_rule_told_it_and_counted_for_a_day() {
        let mut firings = Firings::default();
        let firing = |at| Firing { at, way: 0, test: Some(0), excess: 3.0, mark: None };
        [100.0, 500.0].map(firing).into_iter().for_each(|f| firings.note(f));
        assert_eq!(firings.told_at(502.5).map(|f| f.at), Some(500.0));
        assert_eq!(firings.told_at(101.0).map(|f| f.at), Some(100.0));
        assert_eq!(firings.told_at(300.0), None);
        assert_eq!((firings.in_a_day(600.0), firings.in_a_day(86_550.0)), (2, 1));
    }
}
