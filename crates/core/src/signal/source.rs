//! The configured sources: what each is, what it has delivered, and its state.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::signal::observation::{Problem, SourceId};
use crate::signal::sample::{Source, TargetId};
use skewtrap_trace::time::Time;

/// A source that has delivered nothing for this long is silent.
const SILENT_AFTER: Duration = Duration::from_secs(30);

/// A source of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedSource {
    pub id: SourceId,
    /// Of which server.
    pub target: TargetId,
    pub kind: Source,
    /// What it is called in messages: a path, an address.
    pub name: Arc<str>,
    /// Of a log, the zone of its stamps, where it is another than that of the other logs.
    pub zone: Option<TimeZone>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// It has delivered nothing yet.
    Starting,
    /// It delivers samples.
    Ok,
    /// It used to deliver samples, and no longer does.
    Silent,
    /// It cannot be read.
    Failing,
}

/// What a source has delivered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SourceStats {
    /// Samples that were recorded.
    pub samples: u64,
    /// Pages, lines of pages and samples that could not be used.
    pub dropped: u64,
    /// When the last sample arrived.
    pub last: Option<Time>,
    /// From when that one was true to its arrival; `None` where the source does not say.
    pub lag: Option<Duration>,
}

impl SourceStats {
    /// The state of the source, given what is wrong with it.
    pub fn state(&self, problem: Option<&Problem>, now: Time) -> SourceState {
        // The beginning of a long line is read all the same.
        let is_broken = problem.is_some_and(|p| !matches!(p, Problem::LongLines { .. }));
        match self.last {
            _ if is_broken => SourceState::Failing,
            None => SourceState::Starting,
            Some(last) if now.since(last) < SILENT_AFTER => SourceState::Ok,
            Some(_) => SourceState::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_ok_while_it_gives_samples_and_failing_while_it_cannot_be_read() {
        let at = Time::from_epoch_s;
        let given = |last: Option<f64>| SourceStats { last: last.map(at), ..SourceStats::default() };
        let unreadable = Problem::Unreadable { path: "/l".into(), why: "no".into() };
        let long = Problem::LongLines { path: "/l".into(), lines: 3 };
        assert_eq!(given(None).state(None, at(99.0)), SourceState::Starting);
        assert_eq!(given(Some(90.0)).state(None, at(99.0)), SourceState::Ok);
        assert_eq!(given(Some(60.0)).state(None, at(99.0)), SourceState::Silent);
        assert_eq!(given(Some(99.0)).state(Some(&unreadable), at(99.0)), SourceState::Failing);
        assert_eq!(given(Some(99.0)).state(Some(&long), at(99.0)), SourceState::Ok);
    }
}
