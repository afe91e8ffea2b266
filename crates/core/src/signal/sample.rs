//! One measured number, and where it came from.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Where a number came from, best first: when several sources give one signal, the better wins
/// for as long as it is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `/v1/loads` or `/get_load`.
    Loads,
    /// The server's own `/metrics`.
    Metrics,
    /// The server's log.
    Log,
    /// A query against a Prometheus-compatible server.
    Prometheus,
    /// A regular expression of the user's.
    Pattern,
    /// A metric of the user's, from any page.
    Page,
    /// `/proc` and the cgroup of the engine's processes.
    Host,
}

impl Source {
    /// As in messages and the API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Loads => "loads",
            Self::Metrics => "metrics",
            Self::Log => "log",
            Self::Prometheus => "prometheus",
            Self::Pattern => "pattern",
            Self::Page => "page",
            Self::Host => "host",
        }
    }
}

/// A signal, by its place in the catalog (`catalog::name_of`); the user's own come after the built-in ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(pub u16);

/// A set of built-in signals, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalSet([u64; 2]);

impl SignalSet {
    /// The set of these two built-in signals.
    pub const fn of_both(a: Signal, b: Signal) -> Self {
        let mut set = Self([0; 2]);
        set.0[a.0 as usize / 64] |= 1 << (a.0 % 64);
        set.0[b.0 as usize / 64] |= 1 << (b.0 % 64);
        set
    }

    /// Whether all of `others` are in it.
    #[inline]
    pub const fn has_all(self, others: Self) -> bool {
        others.0[0] & !self.0[0] == 0 && others.0[1] & !self.0[1] == 0
    }

    /// Adds a signal; one that is not built in is ignored.
    pub fn insert(&mut self, signal: Signal) {
        if let Some(word) = self.0.get_mut(usize::from(signal.0) / 64) {
            *word |= 1 << (signal.0 % 64);
        }
    }

    /// Whether the built-in signal is in it.
    #[inline]
    pub const fn has(self, signal: Signal) -> bool {
        let at = signal.0 as usize;
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    /// Whether no signal is in it.
    pub const fn is_empty(self) -> bool {
        self.0[0] | self.0[1] == 0
    }

    /// How many signals are in it.
    pub fn len(self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Its signals, in the order of the catalog.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        let ([mut left, mut next], mut from) = (self.0, 0_u16);
        std::iter::from_fn(move || {
            if left == 0 {
                (left, next, from) = (next, 0, 64);
                if left == 0 {
                    return None;
                }
            }
            let at = from + left.trailing_zeros() as u16;
            left &= left - 1;
            Some(Signal(at))
        })
    }
}

/// A target (one server as the agent knows it), by its place in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u16);

/// One sample, and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleEvidence {
    /// When it was true.
    pub at: Time,
    /// In the signal's unit.
    pub value: f64,
    /// Where it came from.
    pub source: Source,
    /// The log line it was read from, at most 512 bytes of it.
    pub line: Option<String>,
}

/// One number of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub rank: Rank,
    pub signal: Signal,
    /// How much, in the catalog's unit. Never NaN: a source drops and counts those.
    pub value: f64,
    /// When it was true, by the server where it says so, else its arrival.
    pub at: Time,
    /// Labels beside the rank (a pattern's captures, a query's labels); `None` for the built-in sources.
    pub extra: Option<Arc<Labels>>,
}
