//! An incident that was captured gets worse: escalation.
//!
//! After a first attempt a rule that still fires is watched for it (`rule::escalation`). An escalation that is refused
//! because time must pass (a cooldown, an open window, a server that is not well) is requested again when
//! that time has passed and it is still as bad, at the soonest a minute later where that time is unknown; any
//! other refusal applies until it has become worse by the margin again. So nothing is requested with every
//! sample, and nothing is forgotten.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::event::Effect;
use super::incidents::ActiveIncident;
use super::requests::refused_effect;
use super::windows::notify_result;
use crate::capture::refusal::Refusal;
use crate::incident::{CaptureOutcome, CaptureState, Escalation, Refused};
use crate::message::Update;
use crate::rule::{Change, times_bound};
use crate::signal::store::SignalStore;
use skewtrap_trace::time::Time;

/// While a window of its own is open, an escalation is not reported again sooner than this.
const BUSY: Duration = Duration::from_secs(5);

impl Core {
    /// From now on an incident's rule reports when it gets worse than at its last attempt, if there was
    /// one. `again_in` is how long the request that was just refused need not be repeated.
    pub(super) fn watch_escalation(&mut self, id: &Arc<str>, again_in: Option<Duration>, now: Time) {
        let Some(active) = self.incidents.get(id) else { return };
        let request = active.request(&active.incident.target, "", 1.0);
        let Some(worst) = self.ledger.worst(&request, now) else { return };
        let by = self.policy.budget.worse_by;
        self.engine.watch_escalation(&active.incident.rule, &active.group, worst.times_bound, by);
        if let Some(left) = again_in {
            self.engine.retry_escalation(&active.incident.rule, &active.group, now + left);
        }
    }

    /// A rule that was captured still fires, and is worse by the margin.
    pub(super) fn escalated(
        &mut self,
        store: &SignalStore,
        change: Change,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let (Some(active), Some(numbers)) = (self.incidents.firing(&change), &change.numbers) else { return };
        let (id, rule, group) = (active.incident.id.clone(), change.rule.clone(), active.group.clone());
        let is_open = matches!(active.incident.capture, CaptureOutcome::Open { .. });
        let (name, window) = (active.incident.target.clone(), active.incident.next_window());
        // What the rule may capture, and how often, may have been edited since it fired.
        if let Some(active) = self.incidents.get_mut(&id) {
            active.follow(&rule);
        }
        if is_open {
            // The open window records the escalation already.
            return self.engine.retry_escalation(&rule.name, &group, now + BUSY);
        }
        let Some(target) = self.target_named(&name) else { return };
        let times = times_bound(numbers.value, numbers.bound);
        let value = numbers.value;
        let worse = Escalation { at: now, value, times_bound: times, window, refused: None };
        let is_reported = match self.decide(store, &id, target, times, now) {
            Ok(None) => false,
            Ok(Some(granted)) => {
                if let Some(active) = self.incidents.get_mut(&id) {
                    active.incident.worse = Some(worse);
                }
                self.start(&id, target, granted, now, out);
                true
            }
            Err(refusal) => {
                if let Some(left) = refusal.again_in() {
                    self.engine.retry_escalation(&rule.name, &group, now + left);
                }
                self.escalation_refused(&id, worse, &refusal, out)
            }
        };
        if let Some(active) = self.incidents.get(&id).filter(|_| is_reported) {
            out.push(escalation_change(active, change));
        }
    }

    /// Records that an escalation is not captured; returns whether receivers are notified of it.
    pub(super) fn escalation_refused(
        &mut self,
        id: &Arc<str>,
        worse: Escalation,
        refusal: &Refusal,
        out: &mut Vec<Effect>,
    ) -> bool {
        if self.was_refused(id) {
            // It was not captured itself, but what it continues was, before the agent was restarted.
            self.refuse(id, refusal, out);
            return false;
        }
        let Some(active) = self.incidents.get_mut(id) else { return false };
        let last = active.incident.worse.as_ref().filter(|w| w.window == worse.window);
        let reported = last.and_then(|w| w.refused.as_ref()).map(|r| r.reason);
        if reported != Some(refusal.reason()) {
            out.push(refused_effect(active, refusal));
        }
        let is_reported = !refusal.is_by_configured_pace() && active.refusal_reported < worse.window;
        let window = worse.window;
        active.incident.worse = Some(Escalation { refused: Some(Refused::from(refusal)), ..worse });
        if is_reported {
            active.refusal_reported = window;
            notify_result(active, Update::Refused, out);
        }
        is_reported
    }
}

/// The change as the timeline shows it: the firing that it belongs to, with its present numbers.
fn escalation_change(active: &ActiveIncident, mut change: Change) -> Effect {
    let incident = &active.incident;
    let refused = incident.worse.as_ref().and_then(|w| w.refused.as_ref());
    change.continue_from(&incident.finding);
    let capture = if refused.is_some() { CaptureState::Refused } else { incident.capture.state() };
    Effect::Changed { change: Box::new(change), capture, why: refused.map(|r| r.why.clone()) }
}
