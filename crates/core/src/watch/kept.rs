//! Incidents outlive the agent. Those whose rules fire, and those that were resolved a moment ago and may come back,
//! are kept with what was told of them, and the next agent takes them up. What still fires is then the same incident,
//! and is not told again; what has ended meanwhile is resolved, and its message says so.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::event::Effect;
use super::incidents::{ActiveIncident, Key, Trigger};
use super::joins::WAKE;
use super::messages::MessageProgress;
use super::windows::notify_result;
use crate::incident::{Incident, STANDING};
use crate::message::Update;
use crate::rule::Change;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// A trouble whose ranks were not all heard yet is not taken to be over ...
const LISTENS_FOR: Duration = Duration::from_secs(5);
/// ... but whatever was not seen for so long is.
const LOOKS_FOR: Duration = Duration::from_secs(60);

/// An incident whose rule fires, or fired a moment ago, as an agent leaves it to the next one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptIncident {
    pub incident: Incident,
    /// The rule that tells it, which need not be the one that opened it.
    rule: Arc<str>,
    group: Labels,
    /// What identifies the firing in the state.
    firing: String,
    /// Whether its beginning was told; releases that do not write it told that of all but those that are silenced.
    #[serde(default)]
    has_begun: bool,
    /// Whether its result was told.
    is_told: bool,
    /// Its messages are held back until then.
    silenced: Option<Time>,
    refusal_reported: usize,
    is_behind: bool,
}

impl KeptIncident {
    /// Its capture has ended since it was kept, and that was told: `known` is what its bundle says.
    pub fn captured_since(&mut self, known: Incident) {
        let Incident { capture, verdict, bundle, earlier, .. } = known;
        let incident = &mut self.incident;
        (incident.capture, incident.verdict, incident.bundle, incident.earlier) =
            (capture, verdict, bundle, earlier);
        self.is_told = true;
    }
}

impl Core {
    /// The incidents that fire, or may come back, and are `wanted`, for an agent after this one.
    pub(super) fn kept(&self, wanted: impl Fn(&Incident) -> bool) -> Vec<KeptIncident> {
        let may_come_back = |active: &&ActiveIncident| {
            let Incident { trouble, resolved_at, .. } = &active.incident;
            trouble.is_some() && resolved_at.is_some_and(|at| self.now.since(at) < WAKE)
        };
        let over = self.incidents.newest_first().filter(may_come_back);
        let all = self.incidents.firing_now().chain(over);
        all.filter(|active| wanted(&active.incident)).filter_map(kept_of).collect()
    }

    /// Takes up incidents that an agent before this one left open, but for those of rules, or of servers, that are
    /// gone, and for a further one of the same firing.
    pub(super) fn take_up(&mut self, kept: Vec<KeptIncident>, now: Time) {
        for kept in kept {
            let is_watched = self.servers.iter().any(|server| server.name == kept.incident.target);
            let trigger = match *kept.rule == *STANDING {
                true => Some(Trigger::Standing),
                false => self.engine.rules().find(|rule| rule.name == kept.rule).cloned().map(Trigger::Rule),
            };
            let KeptIncident { incident, group, firing, silenced, refusal_reported, is_behind, .. } = kept;
            let id = incident.id.clone();
            let Some(trigger) = trigger.filter(|_| is_watched) else { continue };
            let (capture, limits, notify) = trigger.asks();
            let target = group.get("target").is_some().then(|| incident.target.clone());
            let key: Key = (kept.rule, target, incident.group.clone(), incident.trouble);
            let is_over = incident.resolved_at.is_some();
            if !is_over && self.incidents.is_firing(&key) {
                continue;
            }
            let active = ActiveIncident {
                // What the detector says of one that stands is known after ten minutes, and no rule tells it.
                taken_up: (!is_over && matches!(trigger, Trigger::Rule(_))).then_some(now),
                trigger,
                capture,
                limits,
                notify,
                group,
                firing,
                may_predate_start: true,
                silenced,
                away_since: Some(now),
                is_behind,
                impact_probes: [None; 3],
                messages: MessageProgress::resumed(kept.has_begun || silenced.is_none(), kept.is_told),
                refusal_reported,
                incident,
            };
            match is_over {
                true => self.incidents.keep_resolved(id, active),
                false => self.incidents.take_up(id, key, active),
            }
        }
    }

    /// A capture of an incident that was taken up had ended before, and nobody was told. Of one that is resolved it is
    /// told with the end, by who calls this.
    pub(super) fn adopt_capture_result(&mut self, known: &Incident, out: &mut Vec<Effect>) {
        let Some(active) = self.incidents.get_mut(&known.id) else { return };
        let Incident { capture, verdict, bundle, earlier, state, .. } = known.clone();
        let is_comparing = verdict.is_none() && capture.is_comparable();
        let incident = &mut active.incident;
        (incident.capture, incident.verdict, incident.bundle) = (capture, verdict, bundle);
        incident.earlier = earlier;
        if incident.resolved_at.is_some() {
            if !is_comparing {
                active.messages.tell();
            }
            return;
        }
        incident.state = state;
        if incident.earlier.is_empty() {
            // It may have been kept as told before its message was written, and then died with that agent.
            active.messages = MessageProgress::resumed(active.messages.has_begun(), false);
        }
        let incident = &active.incident;
        let update = if incident.verdict.is_some() { Update::Verdict } else { Update::Captured };
        notify_result(active, update, out);
    }

    /// Whether the rule of `change`, which does not fire, has left an incident that it may not have seen yet.
    pub(super) fn may_still_fire(&self, change: &Change, now: Time) -> bool {
        let active = self.incidents.firing(change);
        active.is_some_and(|active| active.taken_up.is_some() && !self.is_left(active, now))
    }

    /// Resolves incidents that were taken up and that are over, and those whose ranks are heard and can no longer be
    /// compared: one rank of several is left, or their labels have changed.
    pub(super) fn resolve_stale_adopted(&mut self, now: Time, out: &mut Vec<Effect>) {
        let over: Vec<_> = self
            .incidents
            .firing_now()
            .filter(|active| {
                active.taken_up.is_some() && self.is_left(active, now)
                    || active.is_away_for_good(now) && self.engine.is_heard(&active.incident.target)
            })
            .map(|active| active.incident.id.clone())
            .collect();
        for id in over {
            self.resolve_incident(&id, now, out);
        }
    }

    /// Whether an incident that was taken up, and whose rule has not fired since, is over as far as this agent can
    /// see. Where nothing is heard of its server nobody knows.
    fn is_left(&self, active: &ActiveIncident, now: Time) -> bool {
        let incident = &active.incident;
        let Some(since) = active.taken_up.map(|at| now.since(at)) else { return false };
        let is_over = match incident.trouble {
            Some(trouble) => since >= LISTENS_FOR && !self.engine.is_open(&incident.target, trouble),
            // Also while the window that was left open is being closed, and nothing can fire.
            None if self.engine.has_been_clear(&incident.rule, &active.group) => return true,
            None => false,
        };
        (is_over || since >= LOOKS_FOR) && self.engine.is_judged(&incident.target)
    }
}

fn kept_of(active: &ActiveIncident) -> Option<KeptIncident> {
    let rule = match &active.trigger {
        Trigger::Rule(rule) => rule.name.clone(),
        Trigger::Standing => STANDING.into(),
        Trigger::Manual | Trigger::Alert | Trigger::Death => return None,
    };
    Some(KeptIncident {
        incident: active.incident.clone(),
        rule,
        group: active.group.clone(),
        firing: active.firing.clone(),
        has_begun: active.messages.has_begun(),
        is_told: active.messages.is_told(),
        silenced: active.silenced,
        refusal_reported: active.refusal_reported,
        is_behind: active.is_behind,
    })
}
