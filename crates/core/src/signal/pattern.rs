//! Signals that the user reads out of log lines with a regular expression of his own.
//!
//! The group `value` is the number; every other named group is a label. A group named like a rank
//! (`dp_rank`) is the rank; without one the line's own prefix names the rank.

use std::sync::Arc;

use regex::bytes::{Captures, Regex, RegexBuilder};
use thiserror::Error;

use crate::printable::{LIMIT, printable};
use crate::signal::number;
use crate::signal::sample::{Sample, Signal};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::time::Time;

/// A pattern's automaton may take this many bytes.
const SIZE_LIMIT: usize = 1 << 20;

#[derive(Clone, Debug)]
pub struct Pattern {
    signal: Signal,
    regex: Regex,
    /// Named groups beside `value`.
    labels: Vec<(Arc<str>, Option<Axis>)>,
}

/// What is wrong with a pattern.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PatternError {
    /// Not a regular expression.
    #[error("the pattern is not a regular expression: {0}")]
    Syntax(String),
    /// No number.
    #[error("the pattern has no group `value`: write `(?<value>[0-9.]+)` around the number")]
    NoValue,
}

impl Pattern {
    /// A pattern that gives `signal`.
    ///
    /// # Errors
    /// When it is no regular expression, or has no group `value`.
    pub fn new(signal: Signal, pattern: &str) -> Result<Self, PatternError> {
        let built = RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).build();
        let regex = built.map_err(|e| PatternError::Syntax(e.to_string()))?;
        let names: Vec<&str> = regex.capture_names().flatten().collect();
        if !names.contains(&"value") {
            return Err(PatternError::NoValue);
        }
        let labels =
            names.iter().filter(|n| **n != "value").map(|n| ((*n).into(), Axis::of_label(n))).collect();
        Ok(Self { signal, regex, labels })
    }

    /// What a line gives, at the time and of the rank that the line has by itself.
    pub fn read(&self, line: &[u8], rank: Rank, at: Time) -> Option<Sample> {
        let captures = self.regex.captures(line)?;
        let value = number::whole(captures.name("value")?.as_bytes()).filter(|v| v.is_finite())?;
        let (named, extra) = self.identity(&captures);
        let rank = if named.is_none() { rank } else { named };
        let extra = (!extra.0.is_empty()).then(|| Arc::new(extra));
        Some(Sample { rank, signal: self.signal, value, at, extra })
    }

    fn identity(&self, captures: &Captures<'_>) -> (Rank, Labels) {
        let (mut rank, mut extra) = (Rank::NONE, Labels::default());
        for (name, axis) in &self.labels {
            let Some(found) = captures.name(name) else { continue };
            let text = String::from_utf8_lossy(found.as_bytes());
            match (axis, text.parse()) {
                (Some(axis), Ok(index)) => rank = rank.with(*axis, index),
                _ => drop(extra.0.insert(name.clone(), LabelValue::Text(printable(&text, LIMIT).into()))),
            }
        }
        (rank, extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pattern: &str, line: &str) -> Option<(f64, String, String)> {
        let pattern = Pattern::new(Signal(200), pattern).expect("a pattern");
        let sample = pattern.read(line.as_bytes(), Rank::tp(7), Time::default())?;
        Some((sample.value, sample.rank.to_string(), sample.extra.map_or(String::new(), |e| e.to_string())))
    }

    #[test]
    fn groups_are_the_value_the_rank_and_labels() {
        let found = read(
            r"worker (?<dp_rank>\d+) pool=(?<pool>\w+) wait (?<value>[0-9.]+) ms",
            "worker 3 pool=a wait 12.5 ms",
        );
        assert_eq!(found, Some((12.5, "DP3".into(), "pool=a".into())));
        assert_eq!(read("wait (?<value>[0-9.]+)", "wait 2"), Some((2.0, "TP7".into(), String::new())));
        assert_eq!(read("wait (?<value>.+)", "wait long"), None);
        assert_eq!(read("wait (?<value>.+)", "nothing"), None);
    }

    #[test]
    fn a_broken_pattern_says_what_would_be_right() {
        let error = |p: &str| Pattern::new(Signal(0), p).map(|_| ()).expect_err("broken");
        assert!(error("(").to_string().starts_with("the pattern is not a regular expression: "));
        assert_eq!(error("a (.*)"), PatternError::NoValue);
    }
}
