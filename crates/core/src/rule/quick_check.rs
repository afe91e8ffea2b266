//! The cheap evaluation of a group at which nothing happens, which is nearly every one: what decides is read, and as
//! long as it does not hold nothing else of the group is touched. Thousands of groups of many rules then fit
//! into a cache.

use super::compiled::CompiledRule;
use super::condition::{Detected, Reading};
use super::group::Group;
use super::state::RuleState;
use crate::signal::store::{GroupId, SignalStore};
use skewtrap_trace::time::Time;

/// What is kept of a group for its next evaluation, apart from the group itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QuickCheck {
    /// When the group was last evaluated, in either way.
    pub evaluated: Option<Time>,
    /// What its only condition showed at the last quick check, where there was one since the group was
    /// evaluated in full.
    reading: Option<Reading>,
    /// Its id in the view of the rule's only probe.
    pub id: Option<GroupId>,
    /// Whether a quick check is enough while the condition does not hold.
    is_calm: bool,
    /// Whether time alone can change its state.
    pub is_timed: bool,
}

impl QuickCheck {
    /// What its only condition showed, where a quick check saw it.
    pub const fn reading(&self) -> Option<&Reading> {
        self.reading.as_ref()
    }

    /// Whether nothing happens at `now`; if not, the group must be evaluated in full.
    pub fn is_enough(
        &mut self,
        compiled: &CompiledRule,
        store: &mut SignalStore,
        scratch: &mut Vec<f64>,
        now: Time,
    ) -> bool {
        let (true, Some(id), [probe]) = (self.is_calm, self.id, &compiled.probes[..]) else { return false };
        let rule = &compiled.rule;
        let frame = store.frame(probe.view, id, now, probe.smooth);
        let members = frame.members.len();
        if members == 0 || members < rule.min_members || frame.summary.mean < rule.min_mean {
            return false;
        }
        let condition = &rule.trigger.conditions[0];
        let reading = condition.read(frame, Detected::default(), scratch);
        if condition.is_exceeded(&reading) {
            return false;
        }
        (self.evaluated, self.reading) = (Some(now), Some(reading));
        true
    }

    /// Before the group is evaluated in full: it gets what was seen since.
    pub fn hand_over(&mut self, group: &mut Group) {
        if let Some(reading) = self.reading.take() {
            group.was_calm(reading);
        }
    }

    /// After that, at `now`.
    pub fn note(&mut self, compiled: &CompiledRule, group: &Group, now: Time) {
        self.evaluated = Some(now);
        self.is_timed = matches!(group.rule_state(), RuleState::Pending | RuleState::Firing);
        self.is_calm = compiled.allows_glances && group.is_calm();
    }
}
