//! How a window goes on, and what comes of it: into its incident, and on its account.

use std::sync::Arc;

use super::core::{Core, tell};
use super::event::{Effect, WindowNews};
use crate::capture::governor::AttemptEnd;
use crate::incident::{CaptureOutcome, IncidentState, VerdictNote};
use crate::message::Update;
use skewtrap_trace::time::Time;

impl Core {
    /// A window of ours went on.
    pub(super) fn window_news(&mut self, id: &Arc<str>, news: WindowNews, now: Time, out: &mut Vec<Effect>) {
        let server = self.servers.iter_mut().find(|s| s.window.as_ref().is_some_and(|w| w.incident == *id));
        if let Some(server) = server {
            server.window_news(&news, now);
        }
        let WindowNews::Ended { outcome, end } = news else { return };
        self.book(id, end);
        let Some(case) = self.incidents.get_mut(id) else { return };
        let outcome = *outcome;
        let came = matches!(outcome, CaptureOutcome::Done(_));
        let is_compared = outcome.is_comparable();
        case.incident.capture = outcome;
        if came && case.incident.state != IncidentState::Resolved {
            case.incident.state = IncidentState::Captured;
        }
        tell(case, Update::Captured, out);
        if !is_compared {
            self.asked_over(id, now, out);
        }
    }

    /// What an attempt cost, on its account.
    fn book(&mut self, incident: &str, end: AttemptEnd) {
        let open = self.ledger.attempts.iter_mut().rev();
        if let Some(attempt) = open.into_iter().find(|a| a.incident == incident && a.end.is_none()) {
            attempt.end = Some(end);
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
        let Some(case) = self.incidents.get_mut(id) else { return };
        if window != case.incident.window() {
            // Another capture has begun meanwhile, whose messages list this one.
            if let Some(earlier) = case.incident.earlier.get_mut(window.saturating_sub(1)) {
                earlier.verdict = Some(note);
                out.push(Effect::Keep { incident: Box::new(case.incident.clone()) });
            }
            return;
        }
        case.incident.verdict = Some(note);
        if case.incident.state == IncidentState::Captured {
            case.incident.state = IncidentState::Compared;
        }
        tell(case, Update::Verdict, out);
        self.asked_over(id, now, out);
    }
}
