//! Silences: no captures and no messages of what they name. What still fires when one ends is told
//! then, for nobody has heard of it; what it would have captured is past.

use super::Watch;
use super::core::{Core, tell};
use super::event::Effect;
use crate::capture::refusal::SILENCED;
use crate::incident::CaptureOutcome;
use crate::message::{Update, utc};
use crate::status::Silence;
use skewtrap_trace::time::Time;

impl Core {
    /// A silence begins; one that ends now ends its like.
    pub(super) fn silenced(&mut self, silence: Silence, now: Time) {
        self.silences.retain(|s| s.rule != silence.rule || s.target != silence.target);
        if silence.until > now {
            self.silences.push(silence);
        }
    }

    /// Until when the captures of a rule on a server are silenced, if they are.
    pub(super) fn silenced_until(&self, rule: &str, target: &str, now: Time) -> Option<Time> {
        let holds = self.silences.iter().filter(|s| s.until > now && s.covers(rule, target));
        holds.map(|s| s.until).max()
    }

    /// Forgets the silences that are over, and tells what outlived them. What may be over itself,
    /// for its data are away, is told when they are back and show that it goes on.
    pub(super) fn unsilence(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.silences.retain(|s| s.until > now);
        let silenced = self.incidents.firing_now().filter(|case| case.silenced.is_some() && !case.is_away);
        let outlived = silenced
            .filter(|case| self.silenced_until(&case.rule.name, &case.incident.target, now).is_none())
            .map(|case| case.incident.id.clone());
        for id in outlived.collect::<Vec<_>>() {
            let Some(case) = self.incidents.get_mut(&id) else { continue };
            let until = case.silenced.take();
            if let (Some(until), CaptureOutcome::Refused(refused)) = (until, &mut case.incident.capture)
                && *refused.reason == *SILENCED
            {
                refused.why = format!("it was silenced until {} when it fired", utc(until));
            }
            tell(case, Update::Fired, out);
        }
    }
}

impl Watch {
    /// The silences that hold, as they outlive the agent.
    pub fn silences(&self) -> &[Silence] {
        &self.core.silences
    }

    /// Until when a rule on a server is silenced, if it is.
    pub fn silenced_until(&self, rule: &str, target: &str, now: Time) -> Option<Time> {
        self.core.silenced_until(rule, target, now)
    }
}
