//! The progress and the result of a window: both are recorded in its incident, its cost in the ledger.

use std::sync::Arc;

use super::core::Core;
use super::event::{Effect, WindowEvent};
use super::incidents::ActiveIncident;
use crate::capture::governor::AttemptEnd;
use crate::incident::VerdictNote;
use crate::message::Update;
use skewtrap_trace::time::Time;

impl Core {
    /// A window of the agent made progress.
    pub(super) fn window_event(
        &mut self,
        id: &Arc<str>,
        event: WindowEvent,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let server = self.servers.iter_mut().find(|s| s.window.as_ref().is_some_and(|w| w.incident == *id));
        if let Some(server) = server {
            server.window_event(&event, now);
            self.is_disturbed = true;
        }
        let stored = match event {
            WindowEvent::Entered(_) => return,
            WindowEvent::Refused(refusal) => return self.refused_by_pool(id, &refusal, now, out),
            WindowEvent::Ended(stored) => stored,
        };
        self.settle_attempt(id, &stored.end);
        let Some(active) = self.incidents.get_mut(id) else { return };
        active.incident.captured(&stored);
        if stored.outcome.is_comparable() {
            active.messages.await_verdict(now);
        }
        if active.messages.is_awaiting() {
            return out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
        }
        notify_result(active, Update::Captured, out);
        if !stored.outcome.is_comparable() {
            self.manual_is_over(id, now, out);
        }
    }

    /// Books what an attempt cost.
    fn settle_attempt(&mut self, incident: &str, end: &AttemptEnd) {
        let mut latest_first = self.ledger.attempts.iter_mut().rev();
        if let Some(attempt) = latest_first.find(|a| a.incident == incident && a.end.is_none()) {
            attempt.end = Some(end.clone());
        }
    }

    /// The ranks of an incident's capture of that number were compared.
    pub(super) fn compared(
        &mut self,
        id: &Arc<str>,
        window: usize,
        note: VerdictNote,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(active) = self.incidents.get_mut(id) else { return };
        if window != active.incident.window() {
            // Another capture has begun meanwhile, whose messages list this one.
            active.incident.conclude(window, note);
            return out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
        }
        let note = match active.incident.is_follow_up(window) {
            true => concluded(active.incident.earlier.last().and_then(|e| e.verdict.as_ref()), note),
            false => note,
        };
        active.incident.conclude(window, note);
        notify_result(active, Update::Verdict, out);
        self.weigh_follow_up(id);
        self.manual_is_over(id, now, out);
    }
}

/// Tells the result of an incident; a result after the first only renews what can be edited. During a
/// silence it is stored and not told.
pub(super) fn notify_result(active: &mut ActiveIncident, update: Update, out: &mut Vec<Effect>) {
    let incident = Box::new(active.incident.clone());
    if active.silenced.is_some() {
        return out.push(Effect::Store { incident });
    }
    let only_edits = active.messages.tell();
    out.push(Effect::Notify { incident, update, only_edits, receivers: active.notify.clone() });
}

impl Core {
    /// Results that waited long enough for a verdict are told without one.
    pub(super) fn notify_due_results(&mut self, now: Time, out: &mut Vec<Effect>) {
        for id in self.incidents.with_due_results(now) {
            if let Some(active) = self.incidents.get_mut(&id) {
                notify_result(active, Update::Captured, out);
            }
        }
    }

    /// The ranks of a capture could not be compared.
    pub(super) fn not_compared(&mut self, id: &str, now: Time, out: &mut Vec<Effect>) {
        if let Some(active) = self.incidents.get_mut(id).filter(|active| active.messages.is_awaiting()) {
            notify_result(active, Update::Captured, out);
        }
        self.manual_is_over(id, now, out);
    }
}

/// What an incident concludes when its second window was compared.
fn concluded(first: Option<&VerdictNote>, second: VerdictNote) -> VerdictNote {
    match first {
        Some(first) if (first.kind, &first.rank) != (second.kind, &second.rank) => VerdictNote {
            sentence: format!("{} With CPU activity: {}", first.sentence, second.sentence),
            ..first.clone()
        },
        _ => second,
    }
}
