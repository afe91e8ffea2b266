//! An incident that was captured and gets worse: another capture is wished for, within the limits.
//!
//! What a wish costs is decided by the governor as for any other; here it is decided when there is
//! one. A rule that still fires is watched from its first attempt on (`rule::escalation`). A wish
//! that is refused because time must pass (a cooldown, a window that is open, a server that is not
//! well) is repeated when that time has passed and it is still as bad, at the soonest a minute
//! later where nobody can tell how long; any other refusal stands until it has become worse by the
//! margin again. So nothing is wished for with every sample, and nothing is forgotten either.

use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, tell};
use super::event::Effect;
use super::incidents::ActiveIncident;
use super::wish::refused_effect;
use crate::capture::refusal::Refusal;
use crate::incident::{CaptureOutcome, Escalation, Refused};
use crate::message::Update;
use crate::rule::{Change, times_bound};
use crate::signal::sample::TargetId;
use crate::signal::store::SignalStore;
use skewtrap_trace::time::Time;

/// While a window of its own is open, worse is not told again sooner.
const BUSY: Duration = Duration::from_secs(5);

impl Core {
    /// From now on an incident's rule tells when it gets worse than at its last attempt, if there was
    /// one. `again_in` is how long the wish that was just refused need not be repeated.
    pub(super) fn watch_worse(&mut self, id: &Arc<str>, again_in: Option<Duration>, now: Time) {
        let Some(case) = self.incidents.get(id) else { return };
        let wish = case.wish(&case.incident.target, "", 1.0);
        let Some(worst) = self.ledger.worst(&wish, now) else { return };
        let by = self.policy.budget.worse_by;
        self.engine.watch_escalation(&case.rule.name, &case.group, worst.badness, by);
        if let Some(left) = again_in {
            self.engine.retry_escalation(&case.rule.name, &case.group, now + left);
        }
    }

    /// A rule that was captured still fires, and is worse by the margin.
    pub(super) fn worsened(&mut self, store: &SignalStore, change: Change, now: Time, out: &mut Vec<Effect>) {
        let (Some(case), Some(numbers)) = (self.incidents.firing(&change), &change.numbers) else { return };
        let (id, rule, group) = (case.incident.id.clone(), change.rule.clone(), case.group.clone());
        let is_open = matches!(case.incident.capture, CaptureOutcome::Open { .. });
        let (name, window) = (case.incident.target.clone(), case.incident.next_window());
        // What the rule may capture, and how often, may have been edited since it fired.
        if let Some(case) = self.incidents.get_mut(&id) {
            case.rule = rule.clone();
        }
        if is_open {
            // Its own window is the answer to that, until it is over.
            return self.engine.retry_escalation(&rule.name, &group, now + BUSY);
        }
        let place = self.servers.iter().position(|s| s.name == name);
        let Some(target) = place.and_then(|t| u16::try_from(t).ok()).map(TargetId) else { return };
        let times = times_bound(numbers.value, numbers.bound);
        let value = numbers.value;
        let worse = Escalation { at: now, value, times_bound: times, window, refused: None };
        let decided = match self.silenced_until(&rule.name, &name, now) {
            Some(until) => Err(Refusal::Silenced { left: until.since(now) }),
            None => self.decided(store, &id, target, times, now),
        };
        let is_told = match decided {
            Ok(None) => false,
            Ok(Some(granted)) => {
                if let Some(case) = self.incidents.get_mut(&id) {
                    case.incident.worse = Some(worse);
                }
                self.start(&id, target, granted, now, out);
                true
            }
            Err(refusal) => {
                if let Some(left) = refusal.again_in() {
                    self.engine.retry_escalation(&rule.name, &group, now + left);
                }
                self.refused_again(&id, worse, &refusal, out)
            }
        };
        if let Some(case) = self.incidents.get(&id).filter(|_| is_told) {
            out.push(told_change(case, change));
        }
    }

    /// Whether people are told that it is not captured again.
    fn refused_again(
        &mut self,
        id: &Arc<str>,
        worse: Escalation,
        refusal: &Refusal,
        out: &mut Vec<Effect>,
    ) -> bool {
        if self.was_refused(id) {
            // It was never captured itself: what it carries on was, before the agent was started again.
            self.refuse(id, refusal, out);
            return false;
        }
        let Some(case) = self.incidents.get_mut(id) else { return false };
        let last = case.incident.worse.as_ref().filter(|w| w.window == worse.window);
        let said = last.and_then(|w| w.refused.as_ref()).map(|r| r.reason.clone());
        if said.as_deref() != Some(refusal.word()) {
            out.push(refused_effect(case, refusal));
        }
        let is_news = !refusal.is_agreed() && case.told_refused < worse.window;
        let window = worse.window;
        case.incident.worse = Some(Escalation { refused: Some(Refused::from(refusal)), ..worse });
        if is_news {
            case.told_refused = window;
            tell(case, Update::Refused, out);
        }
        is_news
    }
}

/// The change as the timeline shows it: the firing that it is of, as bad as it is now.
fn told_change(case: &ActiveIncident, mut change: Change) -> Effect {
    let incident = &case.incident;
    let refused = incident.worse.as_ref().and_then(|w| w.refused.as_ref());
    change.continue_from(&incident.finding);
    let capture = if refused.is_some() { "refused" } else { incident.capture.word() };
    Effect::Changed { change: Box::new(change), capture, why: refused.map(|r| r.why.clone()) }
}
