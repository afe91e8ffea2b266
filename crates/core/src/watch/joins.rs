//! One trouble, one incident: which incident a firing belongs to, where it is not one of its own.
//!
//! A trouble of the factors has a number ([`crate::factor`]); what several rules find of it, and whom it is blamed
//! on in turn, is one incident. Rules that look at levels (a full cache, a queue) and say `joins_trouble` find
//! symptoms of it, while it goes on and for a minute after: the level of a load follows its cause and outlasts
//! it. Where the level fires first, the trouble of the factors takes its incident over.

use std::time::Duration;

use super::core::{Core, refused_in_silence, tell_beginning};
use super::event::Effect;
use super::incidents::{ActiveIncident, Trigger};
use super::shown::shown_by;
use crate::capture::refusal::Refusal;
use crate::finding::Finding;
use crate::incident::{CaptureState, Incident, IncidentId, Joined};
use crate::message::Update;
use crate::rule::{Change, How};
use crate::signal::store::SignalStore;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Levels that depart so soon after the end of a trouble are its wake, and a trouble that is found again is the same.
pub(super) const WAKE: Duration = Duration::from_secs(60);

/// Which incident an onset belongs to.
pub(super) enum IncidentMatch {
    /// It is one of its own.
    New,
    /// It is this one, which goes on under the rule that fired.
    Continues(IncidentId),
    /// It is this one, which was taken to be over and is not.
    Reopens(IncidentId),
    /// It is a symptom of this one.
    SymptomOf(IncidentId),
}

impl Core {
    /// Which incident an onset belongs to.
    pub(super) fn incident_of(&self, change: &Change) -> IncidentMatch {
        let Some(target) = &change.target else { return IncidentMatch::New };
        let is_there = |active: &&ActiveIncident| active.incident.target == *target;
        let found = match change.trouble {
            Some(trouble) => {
                let joins = |active: &&ActiveIncident| match &active.trigger {
                    Trigger::Rule(rule) => rule.joins_trouble && rule.across == change.rule.across,
                    _ => false,
                };
                let levels = self.incidents.firing_now().filter(is_there).filter(joins);
                let level = || levels.map(|active| active.incident.id.clone()).next();
                let told = self.incidents.of_trouble(target, trouble).map(IncidentMatch::Continues);
                let back = || self.over_before(change, trouble).map(IncidentMatch::Reopens);
                told.or_else(back).or_else(|| level().map(IncidentMatch::Continues))
            }
            None if self.incidents.firing(change).is_some() => self
                .incidents
                .firing(change)
                .map(|active| IncidentMatch::Continues(active.incident.id.clone())),
            None if change.rule.joins_trouble => {
                let is_recent = |active: &&ActiveIncident| {
                    let ended = active.incident.resolved_at;
                    active.incident.trouble.is_some() && ended.is_none_or(|at| change.at.since(at) < WAKE)
                };
                // Of several the one that goes on, and was found last.
                let of_troubles = self.incidents.newest_first().filter(is_there).filter(is_recent);
                let best =
                    of_troubles.max_by_key(|a| (a.incident.resolved_at.is_none(), a.incident.fired_at));
                best.map(|active| IncidentMatch::SymptomOf(active.incident.id.clone()))
            }
            None => None,
        };
        found.unwrap_or(IncidentMatch::New)
    }

    /// The incident of a trouble that a rule finds again, if it was taken to be over only a moment ago.
    fn over_before(&self, change: &Change, trouble: u64) -> Option<IncidentId> {
        let finding = change.finding.as_ref()?;
        let names = |rank: &Labels| finding.rank == *rank || finding.also.contains(rank);
        let is_it = |active: &&ActiveIncident| {
            let Incident { rule, target, group, trouble: of, finding, resolved_at, .. } = &active.incident;
            (rule, Some(target), group, *of)
                == (&change.rule.name, change.target.as_ref(), &change.group, Some(trouble))
                && resolved_at.is_some_and(|at| change.at.since(at) < WAKE)
                && [&finding.rank].into_iter().chain(&finding.also).any(names)
        };
        self.incidents.newest_first().find(is_it).map(|active| active.incident.id.clone())
    }

    /// An incident that was taken to be over is not: people are told so, and what was captured of it stays.
    pub(super) fn came_back(
        &mut self,
        id: &IncidentId,
        mut change: Change,
        finding: Finding,
        store: &SignalStore,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !self.incidents.come_back(id, &change) {
            return self.fired(store, change, finding, now, out);
        }
        // First: whether a window is asked for depends on it.
        let Some(incident) = self.incidents.get(id).map(|active| &active.incident) else { return };
        let silenced = self.silenced_until(&incident.rule, &incident.target, now);
        if let Some(active) = self.incidents.get_mut(id) {
            let before = std::mem::replace(&mut active.silenced, silenced);
            refused_in_silence(active, before);
        }
        self.watch_escalation(id, None, now);
        match silenced {
            Some(until) if self.is_undecided(id) => {
                let _ = self.refuse(id, &Refusal::Silenced { left: until.since(now) }, out);
            }
            _ => self.request_if_undecided(id, now),
        }
        let Some(active) = self.incidents.get_mut(id) else { return };
        change.how = How::Returned;
        change.continue_from(&active.incident.finding);
        tell_beginning(active, out);
        if silenced.is_some() {
            out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
        }
        let capture = active.incident.capture.state();
        out.push(Effect::Changed { change: Box::new(change), capture, why: None });
    }

    /// What a rule found belongs to an incident: it is recorded there, and stands in its messages.
    pub(super) fn join(&mut self, id: &IncidentId, change: Change, finding: &Finding, out: &mut Vec<Effect>) {
        if let Some(active) = self.incidents.get_mut(id) {
            active.incident.join(joined_of(&change, finding));
            let incident = Box::new(active.incident.clone());
            out.push(Effect::Store { incident });
        }
        let why = Some(format!("it belongs to the trouble of {id}"));
        out.push(Effect::Changed { change: Box::new(change), capture: CaptureState::None, why });
    }

    /// What a rule had found of an incident is over.
    pub(super) fn left(&mut self, change: &Change, out: &mut Vec<Effect>) {
        if !change.rule.joins_trouble {
            return;
        }
        let is_open = |j: &Joined| j.rule == change.rule.name && j.until.is_none();
        let there = |active: &&ActiveIncident| Some(&active.incident.target) == change.target.as_ref();
        let with =
            self.incidents.newest_first().filter(there).filter(|a| a.incident.joined.iter().any(is_open));
        for id in with.map(|active| active.incident.id.clone()).collect::<Vec<_>>() {
            let Some(active) = self.incidents.get_mut(&id) else { continue };
            for joined in active.incident.joined.iter_mut().filter(|j| is_open(j)) {
                joined.until = Some(change.at);
            }
            out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
        }
    }

    /// An incident goes on: with other blame, under another rule, or told again after another trouble.
    pub(super) fn told_again(
        &mut self,
        store: &SignalStore,
        id: &IncidentId,
        mut change: Change,
        finding: Finding,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(active) = self.incidents.get_mut(id) else { return };
        let before = active.incident.finding.clone();
        let is_same = (&before.rank, before.side) == (&finding.rank, finding.side)
            && active.incident.trouble == change.trouble
            && active.incident.rule == change.rule.name;
        (active.is_behind, active.is_away, active.taken_up) = (false, false, None);
        if is_same {
            change.how = How::Resumed;
            change.continue_from(&before);
            self.watch_escalation(id, None, now);
        } else {
            let level = (active.incident.trouble.is_none()).then(|| joined_of_level(active));
            let finding = Finding { shown_by: shown_by(store, &change, &finding), ..finding };
            if let Some(active) = self.incidents.take_over(id, &change, finding) {
                level.into_iter().for_each(|level| active.incident.join(level));
            }
            self.note_usual_pause(id, now);
            self.look_at_once(store, id, now);
            if let Some(active) = self.incidents.get(id).filter(|active| active.silenced.is_none()) {
                let (incident, receivers) = (Box::new(active.incident.clone()), active.notify.clone());
                out.push(Effect::Notify { incident, update: Update::Fired, only_edits: true, receivers });
            }
        }
        let capture =
            self.incidents.get(id).map_or(CaptureState::None, |active| active.incident.capture.state());
        out.push(Effect::Changed { change: Box::new(change), capture, why: None });
    }

    /// The rule of `change` tells another trouble from now on. What it told before goes on behind it, or is over.
    pub(super) fn leave_others(&mut self, change: &Change, out: &mut Vec<Effect>) {
        for id in self.incidents.others(change) {
            match self.goes_on(&id) {
                true => self.incidents.get_mut(&id).into_iter().for_each(|active| active.is_behind = true),
                false => self.resolve_incident(&id, change.at, out),
            }
        }
        // Of rules without troubles the one before is over.
        if change.trouble.is_none()
            && let Some(id) = self.incidents.firing(change).map(|active| active.incident.id.clone())
        {
            self.resolve_incident(&id, change.at, out);
        }
    }

    /// Resolves the incidents behind the ones that are told, whose troubles have ended.
    pub(super) fn end_those_behind(&mut self, now: Time, out: &mut Vec<Effect>) {
        let behind = self.incidents.firing_now().filter(|active| active.is_behind);
        let behind: Vec<IncidentId> = behind.map(|active| active.incident.id.clone()).collect();
        for id in behind.into_iter().filter(|id| !self.goes_on(id)).collect::<Vec<_>>() {
            self.resolve_incident(&id, now, out);
        }
    }

    fn goes_on(&self, id: &str) -> bool {
        let Some(active) = self.incidents.get(id) else { return false };
        let trouble = active.incident.trouble;
        trouble.is_some_and(|trouble| self.engine.is_open(&active.incident.target, trouble))
    }
}

fn joined_of(change: &Change, finding: &Finding) -> Joined {
    let what = finding.measured.as_ref().map_or_else(String::new, |m| {
        format!("{}({}) {:.2} against {:.2}", m.statistic, m.signal, m.value, m.bound)
    });
    let (rule, rank, side) = (change.rule.name.clone(), finding.rank.clone(), finding.side);
    Joined { at: change.at, rule, rank, side, what, until: None }
}

/// What the rule of an incident found that a trouble of the factors takes over.
fn joined_of_level(active: &ActiveIncident) -> Joined {
    let incident = &active.incident;
    let what = incident.finding.measured.as_ref().map_or_else(String::new, |m| {
        format!("{}({}) {:.2} against {:.2}", m.statistic, m.signal, m.value, m.bound)
    });
    let Finding { rank, side, .. } = incident.finding.clone();
    Joined { at: incident.fired_at, rule: incident.rule.clone(), rank, side, what, until: None }
}
