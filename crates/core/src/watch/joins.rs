//! One trouble, one incident: which incident a firing belongs to, where it is not one of its own.
//!
//! A trouble of the factors has a number ([`crate::factor`]); what several rules find of it, and whom it is blamed
//! on in turn, is one incident. Rules that look at levels (a full cache, a queue) and say `joins_trouble` find
//! symptoms of it, while it goes on and for a minute after: the level of a load follows its cause and outlasts
//! it. Where the level fires first, the trouble of the factors takes its incident over.

use std::time::Duration;

use super::core::{Core, notify_beginning, refused_in_silence};
use super::event::Effect;
use super::incidents::{ActiveIncident, Key, Trigger};
use super::shown::shown_by;
use crate::capture::refusal::Refusal;
use crate::finding::{Finding, Statistic};
use crate::incident::{CaptureState, Incident, IncidentId, Joined};
use crate::message::Update;
use crate::rule::{Change, ChangeKind, Condition, RuleState};
use crate::signal::store::SignalStore;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Levels that depart so soon after the end of a trouble are its wake, and a trouble that is found again is the same.
pub(super) const WAKE: Duration = Duration::from_secs(60);

/// Which incident an onset belongs to.
pub(super) enum IncidentMatch {
    New,
    /// It is this one, which goes on under the rule that fired.
    Continues(IncidentId),
    /// It is this one, which was taken to be over and is not.
    Reopens(IncidentId),
    SymptomOf(IncidentId),
}

impl Core {
    /// Which incident an onset belongs to.
    pub(super) fn incident_of(&self, change: &Change) -> IncidentMatch {
        let Some(target) = &change.target else { return IncidentMatch::New };
        let is_there = |active: &&ActiveIncident| active.incident.target == *target;
        let is_heard = |active: &&ActiveIncident| !self.is_swallowed_by(active, change);
        let found = match change.trouble {
            Some(trouble) => {
                let joins = |active: &&ActiveIncident| match &active.trigger {
                    Trigger::Rule(rule) => {
                        rule.joins_trouble && rule.across == change.rule.across && is_of_it(active, change)
                    }
                    _ => false,
                };
                let levels = self.incidents.firing_now().filter(is_there).filter(is_heard).filter(joins);
                let level = || levels.map(|active| active.incident.id.clone()).next();
                // Its own, where a silence made two of one trouble.
                let own = self.incidents.firing(change).filter(|a| a.incident.trouble == Some(trouble));
                let told = own.or_else(|| self.incidents.of_trouble(target, trouble).find(is_heard));
                let told = told.map(|active| IncidentMatch::Continues(active.incident.id.clone()));
                let back = || self.over_before(change, trouble).map(IncidentMatch::Reopens);
                told.or_else(back).or_else(|| level().map(IncidentMatch::Continues))
            }
            None if self.incidents.firing(change).is_some() => self
                .incidents
                .firing(change)
                .map(|active| IncidentMatch::Continues(active.incident.id.clone())),
            None => self.trouble_beside(change, change.at).map(IncidentMatch::SymptomOf),
        };
        found.unwrap_or(IncidentMatch::New)
    }

    /// The trouble of which a level is a symptom at `now`, if its rule joins troubles: of several the one that goes on,
    /// and was found last.
    fn trouble_beside(&self, level: &Change, now: Time) -> Option<IncidentId> {
        let is_recent = |active: &&ActiveIncident| {
            let ended = active.incident.resolved_at;
            active.incident.trouble.is_some() && ended.is_none_or(|at| now.since(at) < WAKE)
        };
        let is_there = |active: &&ActiveIncident| Some(&active.incident.target) == level.target.as_ref();
        let all = self.incidents.newest_first().filter(|_| level.rule.joins_trouble);
        let troubles = all.filter(is_there).filter(is_recent).filter(|a| !self.is_swallowed_by(a, level));
        let best = troubles.max_by_key(|a| (a.incident.resolved_at.is_none(), a.incident.fired_at));
        best.map(|active| active.incident.id.clone())
    }

    /// Whether what `change` says would be told to nobody in an incident, since that is silenced, though the rule of
    /// `change` is not.
    fn is_swallowed_by(&self, active: &ActiveIncident, change: &Change) -> bool {
        let Incident { rule, target, .. } = &active.incident;
        let is_silent = |rule: &str| self.silenced_until(rule, target, change.at).is_some();
        active.silenced.is_some() && is_silent(rule) && !is_silent(&change.rule.name)
    }

    /// Tells the levels that have outlived the trouble whose symptoms they were: no further onset of them comes.
    pub(super) fn tell_levels_left(&mut self, store: &SignalStore, now: Time, out: &mut Vec<Effect>) {
        if self.levels.is_empty() {
            return;
        }
        let engine = &self.engine;
        let group_of = |level: &Change| {
            let group = level.group.clone();
            level.target.as_ref().map_or_else(|| group.clone(), |t| group.clone().with_target(t))
        };
        let state = |level: &Change| engine.state_of(&level.rule.name, &group_of(level));
        // What is about to clear is no news.
        let is_clearing = |level: &Change| engine.is_clearing(&level.rule.name, &group_of(level), now);
        self.levels.retain(|_, level| matches!(state(level), Some(RuleState::Firing | RuleState::Unknown)));
        let is_left = |(key, level): &(&Key, &Change)| {
            state(level) == Some(RuleState::Firing)
                && !self.incidents.is_firing(key)
                && self.trouble_beside(level, now).is_none()
                && !is_clearing(level)
        };
        let left: Vec<Change> = self
            .levels
            .iter()
            .filter(is_left)
            .map(|(_, level)| Change { at: now, ..level.clone() })
            .collect();
        for level in left {
            if let Some(finding) = level.finding.clone() {
                self.fired(store, level, finding, now, out);
            }
        }
    }

    /// Whether the trouble of the incident that its rule ends goes on where that does not see it: another
    /// trouble is told, or its ranks do something that the rule does not ask for.
    pub(super) fn is_out_of_sight(&self, change: &Change) -> bool {
        let Some(active) = self.incidents.firing(change) else { return false };
        let (id, target) = (&active.incident.id, &active.incident.target);
        let Some(trouble) = active.incident.trouble.filter(|_| self.trouble_is_open(id)) else {
            return false;
        };
        let asks = |c: &Condition| c.statistic == Statistic::Factors;
        let is_seen = self.engine.findings(target).and_then(|told| told.trouble).is_some_and(|t| {
            t.id == trouble && change.rule.trigger.conditions.iter().any(|c| c.factors.has(t.factor))
        });
        let mut others = self.incidents.of_trouble(target, trouble).filter(|a| a.incident.id != *id);
        change.rule.clear.conditions.iter().any(asks) && !is_seen && others.next().is_none()
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
    pub(super) fn reopen_incident(
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
        change.how = ChangeKind::Returned;
        change.continue_from(&active.incident.finding);
        notify_beginning(active, out);
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
    pub(super) fn end_symptom(&mut self, change: &Change, out: &mut Vec<Effect>) {
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
    pub(super) fn continue_incident(
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
        (active.is_behind, active.away_since, active.taken_up) = (false, None, None);
        if is_same {
            change.how = ChangeKind::Resumed;
            change.continue_from(&before);
            self.watch_escalation(id, None, now);
        } else {
            let level = (active.incident.trouble.is_none()).then(|| joined_of_level(active));
            let finding = Finding { shown_by: shown_by(store, &change, &finding), ..finding };
            if let Some(active) = self.incidents.take_over(id, &change, finding) {
                level.into_iter().for_each(|level| active.incident.join(level));
            }
            self.note_usual_pause(id, now);
            self.reconsider(store, id, now);
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
    pub(super) fn supersede_others(&mut self, change: &Change, out: &mut Vec<Effect>) {
        for id in self.incidents.others(change) {
            match self.trouble_is_open(&id) {
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
    pub(super) fn resolve_superseded(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Self { incidents, engine, .. } = self;
        let is_left = |active: &ActiveIncident| active.is_behind && active.taken_up.is_some();
        if incidents.firing_now().any(is_left) {
            // One that was taken up is not told by its rule again: the detector says that it goes on.
            for active in incidents.firing_now_mut().filter(|active| is_left(active)) {
                let trouble = active.incident.trouble;
                if trouble.is_some_and(|id| engine.trouble(&active.incident.target, id).is_some()) {
                    (active.taken_up, active.away_since) = (None, None);
                }
            }
        }
        let behind =
            self.incidents.firing_now().filter(|active| active.is_behind && active.taken_up.is_none());
        let behind: Vec<IncidentId> = behind.map(|active| active.incident.id.clone()).collect();
        for id in behind.into_iter().filter(|id| !self.trouble_is_open(id)).collect::<Vec<_>>() {
            self.resolve_incident(&id, now, out);
        }
    }

    fn trouble_is_open(&self, id: &str) -> bool {
        let Some(active) = self.incidents.get(id) else { return false };
        let trouble = active.incident.trouble;
        trouble.is_some_and(|trouble| self.engine.is_open(&active.incident.target, trouble))
    }
}

/// Whether a level that fires belongs to the trouble of `change`: it began with it, or on one of its ranks
/// shortly before. A rank that has been full for long is nothing of a trouble that begins now.
fn is_of_it(level: &ActiveIncident, change: &Change) -> bool {
    let Some(Finding { rank, also, onset, onset_error_s, .. }) = &change.finding else { return false };
    let (fired_at, blamed) = (level.incident.fired_at, &level.incident.finding.rank);
    let earliest = *onset - Duration::from_secs_f64(onset_error_s.max(0.0));
    let is_one = blamed == rank || also.contains(blamed);
    fired_at >= earliest || is_one && earliest.since(fired_at) < WAKE
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
