//! Signals that are computed from others.

use super::*;
use crate::signal::fields::Set;

/// A signal computed from two others of the same rank, source and time.
#[derive(Clone, Copy, Debug)]
pub struct Derived {
    /// The computed one.
    pub signal: Signal,
    /// How.
    pub how: How,
    /// First operand.
    pub a: Signal,
    /// Second operand.
    pub b: Signal,
    /// Both: looked for in every line.
    pub operands: Set,
}

/// The arithmetic of a derived signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// a + b
    Sum,
    /// a / (a + b); nothing when both are 0
    Share,
    /// a / b; nothing when b is 0
    Ratio,
}

/// Every derived signal.
pub const DERIVED: &[Derived] = &[
    derived(LOAD, How::Sum, RUNNING_REQS, QUEUE_REQS),
    derived(DP_LOST_SHARE, How::Share, DP_TOKENS_IMBALANCE, DP_TOKENS_SCHEDULED),
    derived(DP_PAIRS_LOST_SHARE, How::Share, DP_PAIRS_IMBALANCE, DP_PAIRS_SCHEDULED),
    derived(DP_RATIO, How::Ratio, DP_RATIO_SUM, DP_RATIO_COUNT),
    derived(DP_SYNC_WAIT, How::Ratio, DP_SYNC_WAIT_SUM, DP_SYNC_WAIT_COUNT),
];

const fn derived(signal: Signal, how: How, a: Signal, b: Signal) -> Derived {
    Derived { signal, how, a, b, operands: Set::of_both(a, b) }
}

impl Derived {
    /// Its value for the operands' values.
    pub fn of(&self, a: f64, b: f64) -> Option<f64> {
        match self.how {
            How::Sum => Some(a + b),
            How::Share => (a + b > 0.0).then(|| a / (a + b)),
            How::Ratio => (b > 0.0).then(|| a / b),
        }
    }
}
