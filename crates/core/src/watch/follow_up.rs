//! The second window of an incident: kernels alone can blame a rank's host, and only CPU activity shows in
//! which operator it spends its time. It is asked for once, when the first verdict is there, by rules that
//! say so (`escalate: [gpu, cpu]`), within the same `max_stall` and the same limits. The first verdict stays
//! what it is unless the second agrees: the second window is smaller.

use std::sync::Arc;

use super::Mode;
use super::core::Core;
use super::event::Effect;
use super::incidents::ActiveIncident;
use super::windows::notify_result;
use crate::capture::admit::RequestKind;
use crate::capture::refusal::Refusal;
use crate::capture::{CaptureSpec, HttpWindow};
use crate::incident::{FollowUp, Refused};
use crate::message::Update;
use crate::signal::store::SignalStore;
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::Place;

/// What it is to show.
const WHY: &str = "its first window blames a host, and CPU activity shows the operator";

impl Core {
    /// A verdict came: whether it asks for a second window.
    pub(super) fn weigh_follow_up(&mut self, id: &Arc<str>) {
        let asks = |active: &ActiveIncident| {
            self.mode == Mode::Live
                && active.incident.follow_up.is_none()
                && active.incident.verdict.as_ref().is_some_and(|verdict| verdict.by == Some(Place::Host))
                && second_window(&active.capture).is_some()
        };
        if self.incidents.get(id).is_some_and(asks) {
            self.follow_ups.insert(id.clone());
        }
    }

    /// Second windows that verdicts asked for.
    pub(super) fn request_follow_ups(&mut self, store: &SignalStore, now: Time, out: &mut Vec<Effect>) {
        for id in std::mem::take(&mut self.follow_ups) {
            let Some(active) = self.incidents.get(&id) else { continue };
            let Some(spec) = second_window(&active.capture) else { continue };
            let ends = active.incident.resolved_at.is_some() || active.away_since.is_some();
            let (name, window) = (active.incident.target.clone(), active.incident.next_window());
            let times_bound =
                self.ledger.attempts.iter().rev().find(|a| *a.incident == *id).map_or(1.0, |a| a.times_bound);
            let Some(target) = self.target_named(&name) else { continue };
            let decided = match ends {
                // It would show something else.
                true => Err(Refusal::Cleared),
                false => {
                    self.decide_request(RequestKind::FollowUp, &spec, store, (&id, target), times_bound, now)
                }
            };
            let Some(active) = self.incidents.get_mut(&id) else { continue };
            let asked = |refused| Some(FollowUp { at: now, window, why: WHY.into(), refused });
            match decided {
                Ok(None) => {}
                Ok(Some(granted)) => {
                    active.incident.follow_up = asked(None);
                    self.start(&id, target, granted, now, out);
                }
                Err(refusal) => {
                    active.incident.follow_up = asked(Some(Refused::from(&refusal)));
                    out.push(super::requests::refused_effect(active, &refusal));
                    notify_result(active, Update::Refused, out);
                }
            }
        }
    }
}

/// The second window of a rule that asks for one: small, with CPU activity.
fn second_window(spec: &CaptureSpec) -> Option<CaptureSpec> {
    let CaptureSpec::Http(http) = spec else { return None };
    let is_gpu_alone = http.activities.as_ref().is_none_or(|all| all.iter().all(|a| a == "GPU"));
    let second = || HttpWindow {
        activities: Some(vec!["CPU".into(), "GPU".into()]),
        num_steps: None,
        until_cleared: false,
        escalates: false,
        ..http.clone()
    };
    (http.escalates && is_gpu_alone).then(|| CaptureSpec::Http(second()))
}
