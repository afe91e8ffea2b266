//! The storm cap: a receiver hears of at most so many new incidents in a stretch of time. Pure.
//!
//! It counts incidents, not messages: the story of an incident that was opened is told to its end,
//! and one that was held back stays held back, so that nobody reads an end without a beginning.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::decide::time::Time;
use crate::explain::message::Update;

/// Incidents held back that are remembered; the oldest go first (their ids sort by time).
const REMEMBERED: usize = 1024;

/// How many new incidents a receiver hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StormCap {
    /// At most this many ...
    pub incidents: u32,
    /// ... in any stretch of this length.
    pub per: Duration,
}

impl Default for StormCap {
    fn default() -> Self {
        Self { incidents: 20, per: Duration::from_secs(600) }
    }
}

/// Whether a message may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may; so many incidents were held back since the last one.
    Pass { held_back: u32 },
    /// It may, and it is the last one for now.
    Last { held_back: u32 },
    /// It may not.
    Hold,
}

/// What a receiver was told lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Storm {
    opened: VecDeque<Time>,
    held: BTreeSet<Arc<str>>,
    held_back: u32,
}

impl Storm {
    pub(super) fn admit(
        &mut self,
        cap: StormCap,
        incident: &Arc<str>,
        update: Update,
        now: Time,
    ) -> Admission {
        if self.held.contains(incident) {
            if update == Update::Resolved {
                self.held.remove(incident);
            }
            return Admission::Hold;
        }
        if update != Update::Fired {
            return Admission::Pass { held_back: 0 };
        }
        while self.opened.front().is_some_and(|&at| now.since(at) >= cap.per) {
            self.opened.pop_front();
        }
        if self.opened.len() >= cap.incidents as usize {
            self.hold(incident.clone());
            return Admission::Hold;
        }
        self.opened.push_back(now);
        let held_back = std::mem::take(&mut self.held_back);
        if self.opened.len() == cap.incidents as usize {
            Admission::Last { held_back }
        } else {
            Admission::Pass { held_back }
        }
    }

    fn hold(&mut self, incident: Arc<str>) {
        self.held.insert(incident);
        self.held_back += 1;
        if self.held.len() > REMEMBERED {
            self.held.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: StormCap = StormCap { incidents: 2, per: Duration::from_secs(60) };

    fn admit(storm: &mut Storm, id: &str, update: Update, at: f64) -> Admission {
        storm.admit(CAP, &id.into(), update, Time::from_epoch_s(at))
    }

    #[test]
    fn a_storm_is_cut_and_the_next_message_says_how_much_was_held_back() {
        let mut storm = Storm::default();
        assert_eq!(admit(&mut storm, "a", Update::Fired, 0.0), Admission::Pass { held_back: 0 });
        assert_eq!(admit(&mut storm, "b", Update::Fired, 1.0), Admission::Last { held_back: 0 });
        assert_eq!(admit(&mut storm, "c", Update::Fired, 2.0), Admission::Hold);
        assert_eq!(admit(&mut storm, "d", Update::Fired, 59.9), Admission::Hold);
        assert_eq!(admit(&mut storm, "e", Update::Fired, 60.0), Admission::Last { held_back: 2 });
    }

    #[test]
    fn an_open_story_is_told_to_its_end_and_a_held_one_never_begins() {
        let mut storm = Storm::default();
        for id in ["a", "b", "c"] {
            admit(&mut storm, id, Update::Fired, 0.0);
        }
        assert_eq!(admit(&mut storm, "a", Update::Captured, 1.0), Admission::Pass { held_back: 0 });
        assert_eq!(admit(&mut storm, "a", Update::Resolved, 2.0), Admission::Pass { held_back: 0 });
        assert_eq!(admit(&mut storm, "c", Update::Captured, 100.0), Admission::Hold);
        assert_eq!(admit(&mut storm, "c", Update::Resolved, 101.0), Admission::Hold);
        assert!(storm.held.is_empty());
    }
}
