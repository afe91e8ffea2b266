//! The storm cap limits how many new incidents a receiver is notified of in a period. Pure.
//!
//! It counts incidents, not messages: once the first message of an incident was sent all of them are,
//! and once it was held back all of them are, so that nobody reads an end without a beginning. The first
//! message counts whatever its update: a manual capture never has `fired`, and a route may exclude
//! `fired`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use skewtrap_trace::time::Time;

/// How many announced and how many held incidents are remembered; the oldest are forgotten first (ids
/// sort by time).
const REMEMBERED: usize = 1024;

/// How many new incidents a receiver is notified of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StormCap {
    /// At most this many ...
    pub incidents: u32,
    /// ... in any period of this length.
    pub per: Duration,
}

impl Default for StormCap {
    fn default() -> Self {
        Self { incidents: 20, per: Duration::from_secs(600) }
    }
}

/// Whether a message may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may; `held_back` incidents were held back since the last one.
    Pass { held_back: u32 },
    /// It may, and it is the last one for now.
    Last { held_back: u32 },
    /// It may not.
    Hold,
}

/// What one receiver was notified of lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Storm {
    /// When the incidents of the current period were announced.
    opened: VecDeque<Time>,
    announced: BTreeSet<Arc<str>>,
    held: BTreeSet<Arc<str>>,
    held_back: u32,
}

impl Storm {
    pub(super) fn admit(&mut self, cap: StormCap, incident: &Arc<str>, now: Time) -> Admission {
        if self.held.contains(incident) {
            return Admission::Hold;
        }
        if self.announced.contains(incident) {
            return Admission::Pass { held_back: 0 };
        }
        while self.opened.front().is_some_and(|&at| now.since(at) >= cap.per) {
            self.opened.pop_front();
        }
        if self.opened.len() >= cap.incidents as usize {
            self.held_back += 1;
            remember(&mut self.held, incident);
            return Admission::Hold;
        }
        remember(&mut self.announced, incident);
        self.opened.push_back(now);
        let held_back = std::mem::take(&mut self.held_back);
        if self.opened.len() == cap.incidents as usize {
            Admission::Last { held_back }
        } else {
            Admission::Pass { held_back }
        }
    }

    /// Whether the receiver was told of an incident.
    pub(super) fn has_announced(&self, incident: &Arc<str>) -> bool {
        self.announced.contains(incident)
    }

    /// Marks an incident as announced: an earlier run of the agent did it.
    pub(super) fn mark_announced(&mut self, incident: &Arc<str>) {
        remember(&mut self.announced, incident);
    }
}

fn remember(incidents: &mut BTreeSet<Arc<str>>, incident: &Arc<str>) {
    incidents.insert(incident.clone());
    if incidents.len() > REMEMBERED {
        incidents.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: StormCap = StormCap { incidents: 2, per: Duration::from_secs(60) };

    fn admit(storm: &mut Storm, id: &str, at: f64) -> Admission {
        storm.admit(CAP, &id.into(), Time::from_epoch_s(at))
    }

    #[test]
    fn a_storm_is_cut_and_the_next_message_says_how_much_was_held_back() {
        let mut storm = Storm::default();
        assert_eq!(admit(&mut storm, "a", 0.0), Admission::Pass { held_back: 0 });
        assert_eq!(admit(&mut storm, "b", 1.0), Admission::Last { held_back: 0 });
        assert_eq!(admit(&mut storm, "c", 2.0), Admission::Hold);
        assert_eq!(admit(&mut storm, "d", 59.9), Admission::Hold);
        assert_eq!(admit(&mut storm, "e", 60.0), Admission::Last { held_back: 2 });
    }

    #[test]
    fn an_open_story_is_told_to_its_end_and_a_held_one_never_begins() {
        let mut storm = Storm::default();
        for id in ["a", "b", "c"] {
            admit(&mut storm, id, 0.0);
        }
        assert_eq!(admit(&mut storm, "a", 1.0), Admission::Pass { held_back: 0 });
        assert_eq!(admit(&mut storm, "a", 2.0), Admission::Pass { held_back: 0 });
        assert_eq!(admit(&mut storm, "c", 100.0), Admission::Hold);
        assert_eq!(admit(&mut storm, "c", 101.0), Admission::Hold);
        assert_eq!(admit(&mut storm, "d", 102.0), Admission::Pass { held_back: 1 });
    }

    #[test]
    fn what_is_remembered_of_a_storm_without_end_is_bounded() {
        let mut storm = Storm::default();
        for i in 0..3000 {
            admit(&mut storm, &format!("{i:05}"), f64::from(i) * 10.0);
        }
        assert!(storm.held.len() <= REMEMBERED && storm.announced.len() <= REMEMBERED);
    }
}
