//! The signals: their names, units and meanings, what silence of a rank means for them, and how ranks
//! add up. The built-in ones are the rows of [`table`]; a configuration adds its own behind them.

mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::table::*;
pub use crate::signal::sample::Signal;
use crate::signal::sample::SignalSet;

/// What a source counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The value at a time.
    Gauge,
    /// An ever growing total.
    // The signal is its rate per second.
    Counter,
}

/// What is true of a rank that has gone silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It has no work: zero.
    Zero,
    /// Its value is unknown (a ratio, a capacity).
    Unknown,
}

/// How ranks add up when a rule compares something larger (servers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// Requests, tokens, rates.
    Sum,
    /// Shares and ratios.
    Mean,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name in rules.
    pub name: &'static str,
    /// The unit of its values.
    pub unit: &'static str,
    /// What its sources count.
    pub kind: Kind,
    /// What silence means.
    pub silence: Silence,
    /// How ranks add up.
    pub fold: Fold,
    /// One sentence.
    pub meaning: &'static str,
    /// Keys in SGLang's batch lines of both kinds.
    pub log: &'static [&'static str],
    /// Keys in `Decode batch` lines only.
    pub decode: &'static [&'static str],
    /// Keys in `Prefill batch` lines only.
    pub prefill: &'static [&'static str],
    /// Keys in vLLM's log lines.
    pub vllm: &'static [&'static str],
    /// Metric names.
    pub metrics: &'static [&'static str],
    /// Fields of `/v1/loads` and `/get_load`.
    pub loads: &'static [&'static str],
}

/// The built-in signals and the user's own behind them. Numbers never change while the agent runs,
/// so that a reload can only add.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    own: Vec<UserSignal>,
    by_name: BTreeMap<Arc<str>, Signal>,
}

/// A signal that the configuration defines (by a pattern or a query).
#[derive(Clone, Debug, PartialEq)]
pub struct UserSignal {
    /// The name in rules.
    pub name: Arc<str>,
    /// Free text.
    pub unit: Arc<str>,
    /// What its source counts.
    pub kind: Kind,
}

/// Why a signal cannot be defined.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DefineError {
    /// The name belongs to a built-in signal.
    #[error("signal `{0}` is built in; give your own another name")]
    BuiltIn(Arc<str>),
    /// Too many.
    #[error("more than {} signals of your own; remove some", u16::MAX as usize - BUILT_IN_COUNT)]
    Full,
}

impl Catalog {
    /// Adds a signal of the user's; one that is there already keeps its number and takes the new
    /// unit and kind.
    ///
    /// # Errors
    /// When the name is a built-in one's, or there are too many.
    pub fn define(&mut self, own: UserSignal) -> Result<Signal, DefineError> {
        if signal_named(&own.name).is_some() {
            return Err(DefineError::BuiltIn(own.name));
        }
        if let Some(&signal) = self.by_name.get(&own.name) {
            self.own[usize::from(signal.0) - BUILT_IN_COUNT] = own;
            return Ok(signal);
        }
        let number = u16::try_from(BUILT_IN_COUNT + self.own.len()).map_err(|_| DefineError::Full)?;
        self.by_name.insert(own.name.clone(), Signal(number));
        self.own.push(own);
        Ok(Signal(number))
    }

    /// The signal that `name` means.
    pub fn signal_named(&self, name: &str) -> Option<Signal> {
        signal_named(name).or_else(|| self.by_name.get(name).copied())
    }

    /// The name of a signal; `?` for a number that was never given out.
    pub fn name_of(&self, signal: Signal) -> &str {
        match self.own_of(signal) {
            Some(own) => &own.name,
            None => name_of(signal),
        }
    }

    /// The unit of a signal's values.
    pub fn unit_of(&self, signal: Signal) -> &str {
        match self.own_of(signal) {
            Some(own) => &own.unit,
            None => entry(signal).map_or("", |e| e.unit),
        }
    }

    /// The lowest and the highest value that a signal can have, as far as its unit says; for a signal
    /// of the user's, nothing is known.
    pub fn range_of(&self, signal: Signal) -> (f64, f64) {
        match entry(signal).map(|e| e.unit) {
            Some("share" | "0 or 1") => (0.0, 1.0),
            Some("percent") => (0.0, 100.0),
            Some(_) => (0.0, f64::INFINITY),
            None => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    /// What the sources of a signal count.
    pub fn kind_of(&self, signal: Signal) -> Kind {
        match self.own_of(signal) {
            Some(own) => own.kind,
            None => entry(signal).map_or(Kind::Gauge, |e| e.kind),
        }
    }

    /// Every name, the built-in ones first: what a typo is compared with.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        BUILT_IN.iter().map(|e| e.name).chain(self.own.iter().map(|o| &*o.name))
    }

    /// How many signals there are.
    pub fn len(&self) -> usize {
        BUILT_IN_COUNT + self.own.len()
    }

    /// Whether the configuration defines signals of its own, whose labels may be any.
    pub fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// Never: the built-in ones are always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn own_of(&self, signal: Signal) -> Option<&UserSignal> {
        usize::from(signal.0).checked_sub(BUILT_IN_COUNT).and_then(|i| self.own.get(i))
    }
}

/// A signal computed from two others of the same rank, source and time.
#[derive(Clone, Copy, Debug)]
pub struct Derived {
    /// The computed one.
    pub signal: Signal,
    pub how: DerivedOp,
    /// First operand.
    pub a: Signal,
    /// Second operand.
    pub b: Signal,
    /// Both operands, for a quick test of what a line has.
    pub operands: SignalSet,
}

/// The arithmetic of a derived signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DerivedOp {
    /// a + b
    Sum,
    /// a / (a + b); nothing when both are 0
    Share,
    /// a / b; nothing when b is 0
    Ratio,
}

/// Every derived signal.
pub const DERIVED: &[Derived] = &[
    derived(LOAD, DerivedOp::Sum, RUNNING_REQS, QUEUE_REQS),
    derived(DP_LOST_SHARE, DerivedOp::Share, DP_TOKENS_IMBALANCE, DP_TOKENS_SCHEDULED),
    derived(DP_PAIRS_LOST_SHARE, DerivedOp::Share, DP_PAIRS_IMBALANCE, DP_PAIRS_SCHEDULED),
    derived(DP_RATIO, DerivedOp::Ratio, DP_RATIO_SUM, DP_RATIO_COUNT),
    derived(DP_SYNC_WAIT, DerivedOp::Ratio, DP_SYNC_WAIT_SUM, DP_SYNC_WAIT_COUNT),
    // Of two pairs for one signal the later counts where a page has both: vLLM's own count of waits.
    derived(QUEUE_TIME, DerivedOp::Ratio, QUEUE_TIME_SUM, ADMISSIONS),
    derived(QUEUE_TIME, DerivedOp::Ratio, QUEUE_TIME_SUM, QUEUE_TIME_COUNT),
    derived(TTFT, DerivedOp::Ratio, TTFT_SUM, ADMISSIONS),
    derived(TTFT, DerivedOp::Ratio, TTFT_SUM, TTFT_COUNT),
    derived(ITL, DerivedOp::Ratio, ITL_SUM, ITL_COUNT),
    derived(CACHED_SHARE, DerivedOp::Share, PREFILL_CACHE_TOKENS, PREFILL_COMPUTE_TOKENS),
    derived(CACHED_SHARE, DerivedOp::Ratio, PREFILL_CACHE_TOKENS, CACHE_QUERIES),
];

const fn derived(signal: Signal, how: DerivedOp, a: Signal, b: Signal) -> Derived {
    Derived { signal, how, a, b, operands: SignalSet::of_both(a, b) }
}

impl Derived {
    /// Its value for the operands' values.
    pub fn of(&self, a: f64, b: f64) -> Option<f64> {
        match self.how {
            DerivedOp::Sum => Some(a + b),
            DerivedOp::Share => (a + b > 0.0).then(|| a / (a + b)),
            DerivedOp::Ratio => (b > 0.0).then(|| a / b),
        }
    }
}

/// What the machine tells of the ranks' processes, read beside the engine and by no page.
pub const OF_MACHINE: [Signal; 3] = [RUN_DELAY, THROTTLED, CPU_PRESSURE];

/// The built-in signals with their rows.
pub fn built_in() -> impl Iterator<Item = (Signal, &'static Entry)> {
    (0..).map(Signal).zip(BUILT_IN)
}

/// The row of a built-in signal.
pub fn entry(signal: Signal) -> Option<&'static Entry> {
    BUILT_IN.get(usize::from(signal.0))
}

/// The built-in signal that `name` means.
pub fn signal_named(name: &str) -> Option<Signal> {
    built_in().find(|(_, entry)| entry.name == name).map(|(signal, _)| signal)
}

/// The name of a built-in signal; `?` for any other (see [`Catalog::name_of`]).
pub fn name_of(signal: Signal) -> &'static str {
    entry(signal).map_or("?", |e| e.name)
}

#[cfg(test)]
mod tests;
