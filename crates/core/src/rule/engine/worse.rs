//! Firings that were captured, and whether they get worse.

use super::Engine;
use crate::rule::group::{Group, Running};
use crate::rule::worse::Worsening;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

impl Engine {
    /// A firing was captured, or tried to be, at `mark` times its bound: it is told when it is `by`
    /// times worse than that. `group` has all of the group's labels.
    pub fn watch_worse(&mut self, rule: &str, group: &Labels, mark: f64, by: f64) {
        if let Some((running, group)) = self.group_mut(rule, group) {
            group.watch_worse(running, mark, by);
        }
    }

    /// What was told as worse came to nothing, for a reason that may have passed at `not_before`:
    /// then it is told again if it is still as bad.
    pub fn tell_worse_again(&mut self, rule: &str, group: &Labels, not_before: Time) {
        if let Some(worse) = self.group_mut(rule, group).and_then(|(_, g)| g.worse.as_mut()) {
            worse.again(not_before);
        }
    }

    /// From how many times its bound on a firing is told to be worse, once it was captured.
    pub fn worse_from(&self, rule: &str, group: &Labels) -> Option<f64> {
        let entry = self.entries.iter().find(|e| *e.running.rule.name == *rule)?;
        let place = *entry.by_labels.get(group)?;
        entry.groups[place as usize].worse.as_ref().map(Worsening::needed)
    }

    fn group_mut(&mut self, rule: &str, group: &Labels) -> Option<(&Running, &mut Group)> {
        let entry = self.entries.iter_mut().find(|e| *e.running.rule.name == *rule)?;
        let place = *entry.by_labels.get(group)?;
        Some((&entry.running, &mut entry.groups[place as usize]))
    }
}
