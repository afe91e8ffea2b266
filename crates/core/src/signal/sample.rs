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
        }
    }
}

/// A signal, by its place in the catalog (`catalog::name_of`); the user's own come after the built-in ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(pub u16);

/// A target (one server as the agent knows it), by its place in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u16);

/// One sample, and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownBy {
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
    /// Whose.
    pub rank: Rank,
    /// Of what.
    pub signal: Signal,
    /// How much, in the catalog's unit. Never NaN: a source drops and counts those.
    pub value: f64,
    /// When it was true, by the server where it says so, else its arrival.
    pub at: Time,
    /// Labels beside the rank (a pattern's captures, a query's labels); `None` for the built-in sources.
    pub extra: Option<Arc<Labels>>,
}
