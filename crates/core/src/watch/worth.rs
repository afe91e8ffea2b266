//! The impact of a trouble on the clients decides whether a window is spent on it, where factors are watched: it is
//! looked at a moment after the firing, and again as long as the trouble lasts and its impact is small.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::event::Effect;
use super::incidents::{ActiveIncident, Trigger};
use crate::capture::refusal::Refusal;
use crate::factor::Factor;
use crate::rule::{Change, ChangeKind};
use skewtrap_trace::time::Time;

/// At the second of a firing the impact of a sudden trouble is still small, and a burst has not subsided yet:
/// both are looked at again so much later, before a window is spent ...
const LOOK: Duration = Duration::from_millis(2500);
/// ... soon again where it seems to be over ...
const SOON: Duration = Duration::from_secs(1);
/// ... and so much later again while the impact is too small.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Core {
    /// Whether a trouble that still goes on is not worth a window now: it seems to be over, or its impact
    /// is too small. It is looked at again as long as it lasts.
    pub(super) fn defer_low_impact(&mut self, id: &Arc<str>, now: Time, out: &mut Vec<Effect>) -> bool {
        let Some(active) = self.incidents.firing_now().find(|c| c.incident.id == *id) else { return false };
        let Trigger::Rule(rule) = &active.trigger else { return false };
        let Some(impact) = active.incident.finding.impact.as_ref().map(|h| h.share) else { return false };
        let trouble = active.incident.trouble.and_then(|id| self.engine.trouble(&active.incident.target, id));
        match trouble {
            // It seems to be over.
            None | Some((_, true)) => {
                self.deferred.insert(id.clone(), now + SOON);
                return true;
            }
            // That no window may open while a rank hangs is told while it does.
            Some((Factor::Stuck, false)) => return false,
            Some((_, false)) => {}
        }
        let least = rule.min_impact;
        if impact >= least {
            return false;
        }
        self.deferred.insert(id.clone(), now + LOOK_AGAIN);
        let is_news = !self.was_refused(id);
        self.refuse(id, &Refusal::LittleImpact { impact, least }, out);
        if let Some(change) = self.unreported.get(id).cloned().filter(|_| is_news) {
            self.report_weighed(id, change, now, out);
        }
        true
    }

    /// Keeps the findings of troubles that go on up to date: who joined, what departed since, their impact.
    pub(super) fn follow_troubles(&mut self, out: &mut Vec<Effect>) {
        let engine = &self.engine;
        for active in self.incidents.firing_now_mut() {
            let finding = &mut active.incident.finding;
            if finding.impact.is_none() {
                continue;
            }
            let Some(findings) = engine.findings(&active.incident.target) else { continue };
            if findings.trouble.map(|t| t.id) != active.incident.trouble {
                continue;
            }
            let before = (finding.also.len(), finding.symptoms.len());
            findings.update(finding);
            if before != (finding.also.len(), finding.symptoms.len()) {
                out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
            }
        }
    }

    /// Tells what was decided of a firing whose impact was looked at.
    pub(super) fn report_weighed(&self, id: &str, change: Change, now: Time, out: &mut Vec<Effect>) {
        let Some(active) = self.incidents.get(id).filter(|c| c.incident.resolved_at.is_none()) else {
            return;
        };
        let finding = Some(active.incident.finding.clone());
        let change = Change { at: now, how: ChangeKind::Weighed, finding, ..change };
        let capture = &active.incident.capture;
        let why = capture.refused().map(|r| r.why.clone());
        out.push(Effect::Changed { change: Box::new(change), capture: capture.state(), why });
    }
}

/// How long after the firing its impact is looked at; zero where none is known.
pub(super) fn impact_delay(active: &ActiveIncident) -> Duration {
    if active.incident.finding.impact.is_some() { LOOK } else { Duration::ZERO }
}
