//! Silences: no captures and no messages of what they name. What still fires when one ends is told
//! then, for nobody has heard of it; what it would have captured is past.

use std::time::Duration;

use super::Watch;
use super::core::{Core, tell};
use super::event::Effect;
use crate::decide::status::Silence;
use crate::decide::time::Time;
use crate::explain::message::Update;

impl Core {
    /// A silence begins; one that ends now ends its like.
    pub(super) fn silenced(&mut self, silence: Silence, now: Time) {
        self.silences.retain(|s| s.rule != silence.rule || s.target != silence.target);
        if silence.until > now {
            self.silences.push(silence);
        }
    }

    /// How long the captures of a rule on a server are silenced still.
    pub(super) fn silenced_for(&self, rule: &str, target: &str, now: Time) -> Option<Duration> {
        let holds = self.silences.iter().filter(|s| {
            s.until > now
                && s.rule.as_ref().is_none_or(|r| **r == *rule)
                && s.target.as_ref().is_none_or(|t| **t == *target)
        });
        holds.map(|s| s.until.since(now)).max()
    }

    /// Forgets the silences that are over, and tells what outlived them.
    pub(super) fn unsilence(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.silences.retain(|s| s.until > now);
        let silenced = self.incidents.firing_now().filter(|case| case.is_silenced);
        let outlived = silenced
            .filter(|case| self.silenced_for(&case.rule.name, &case.incident.target, now).is_none())
            .map(|case| case.incident.id.clone());
        for id in outlived.collect::<Vec<_>>() {
            if let Some(case) = self.incidents.get_mut(&id) {
                case.is_silenced = false;
                tell(case, Update::Fired, out);
            }
        }
    }
}

impl Watch {
    /// The silences that hold, as they outlive the agent.
    pub fn silences(&self) -> &[Silence] {
        &self.core.silences
    }
}
