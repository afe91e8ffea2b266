//! From a rule's change of state to an incident: opened at an onset, carried through its capture,
//! resolved when the rule clears.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::event::ManualRequest;
use super::messages::MessageProgress;
use crate::capture::governor::CaptureRequest;
use crate::capture::{CaptureSpec, Limits};
use crate::cause::Cause;
use crate::finding::Finding;
use crate::incident::{BY_HAND, CaptureOutcome, Death, EndReason, Incident, IncidentId};
use crate::rule::Change;
use crate::rule::{RESUMES_WITHIN, Rule, Severity};
use crate::signal::sample::{Signal, Source};
use skewtrap_trace::fnv1a;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Closed incidents that stay in memory, for the page and the API; the bundles hold them all.
const CLOSED_IN_MEMORY: usize = 100;

/// What identifies a firing: a rule on a group of a server, and the trouble that it is of where it is of one.
pub type Key = (Arc<str>, Option<Arc<str>>, Labels, Option<u64>);

/// Where a number of a whole server is read, and what it was before the onset: what is now must be of the same ranks,
/// signal and source, and the past is forgotten after minutes.
#[derive(Clone, Copy, Debug)]
pub struct ImpactProbe {
    pub signal: Signal,
    /// Who tells it.
    pub source: Source,
    /// How many ranks told it.
    pub ranks: usize,
    /// What all of them had before the onset.
    pub before: f64,
}

/// An incident, and what the core needs to go on with it.
#[derive(Clone, Debug)]
pub struct ActiveIncident {
    /// The incident as people see it; only the core changes it.
    pub incident: Incident,
    /// What started it.
    pub trigger: Trigger,
    /// What is captured of it.
    pub capture: CaptureSpec,
    /// How often.
    pub limits: Limits,
    /// Names of receivers; empty means the configuration's default ones.
    pub notify: Vec<Arc<str>>,
    /// Its group's labels, all of them.
    pub group: Labels,
    /// What identifies the firing in the state: the group, the blamed member and the side.
    pub firing: String,
    /// Whether it may have begun to fire before the agent started.
    pub may_predate_start: bool,
    /// Its messages are held back: until when, as was known when it fired.
    pub silenced: Option<Time>,
    /// Since when the data of its group have been absent, or cannot be compared: it may be over.
    pub away_since: Option<Time>,
    /// Whether its rule tells another trouble by now, while it may go on.
    pub is_behind: bool,
    /// When this agent took it up from one before it, until its rule fires again.
    pub taken_up: Option<Time>,
    /// Where what clients notice is read: tokens, the wait for the first one, requests that wait.
    pub impact_probes: [Option<ImpactProbe>; 3],
    /// What of it was told.
    pub messages: MessageProgress,
    /// The number of the last capture whose refusal was reported, of those that an escalation asked for.
    pub refusal_reported: usize,
}

impl ActiveIncident {
    /// The request for a capture of it, on a server of that name and group. `times_bound` is in multiples
    /// of the bound.
    pub fn request<'a>(&'a self, target: &'a str, group: &'a str, times_bound: f64) -> CaptureRequest<'a> {
        CaptureRequest {
            rule: &self.incident.rule,
            limits: &self.limits,
            target,
            group,
            incident: &self.incident.id,
            firing: &self.firing,
            may_predate_start: self.may_predate_start,
            times_bound,
        }
    }

    /// Whether the data of its group have been absent for so long, or could not be compared, that what fires
    /// later is not the same.
    pub fn is_away_for_good(&self, now: Time) -> bool {
        matches!(self.trigger, Trigger::Rule(_))
            && self.away_since.is_some_and(|at| now.since(at) > RESUMES_WITHIN)
    }

    /// Another rank is to blame for it, or the same for more.
    pub fn blame(&mut self, change: &Change, finding: Finding) {
        self.firing = firing_of(change, &finding);
        if finding.onset != self.incident.finding.onset {
            self.impact_probes = [None; 3];
        }
        self.incident.trouble = change.trouble;
        self.incident.blame(finding, change.at);
    }

    /// Takes over its rule as it is configured now.
    pub fn follow(&mut self, rule: &Arc<Rule>) {
        self.capture = rule.capture.clone();
        self.limits = rule.limits.clone();
        self.notify.clone_from(&rule.notify);
        self.trigger = Trigger::Rule(rule.clone());
    }
}

/// What started an incident.
#[derive(Clone, Debug)]
pub enum Trigger {
    /// A rule fired; it also ends the incident.
    Rule(Arc<Rule>),
    /// Somebody asked for a capture. The incident ends when the capture is done with, or refused.
    Manual,
    /// An alert of another system asked for a capture; as [`Self::Manual`] otherwise.
    Alert,
    /// The log of the server said that it dies. The incident ends when the server answers again.
    Death,
    /// Ranks have been uneven for as long as they are compared. The incident ends when they are no more.
    Standing,
}

impl Trigger {
    /// What is captured of what it started, how often, and who is told.
    pub fn asks(&self) -> (CaptureSpec, Limits, Vec<Arc<str>>) {
        match self {
            Self::Rule(rule) => (rule.capture.clone(), rule.limits.clone(), rule.notify.clone()),
            Self::Manual | Self::Alert | Self::Death | Self::Standing => {
                let day = Duration::from_secs(86_400);
                (
                    CaptureSpec::None,
                    Limits { cooldown: Duration::ZERO, captures: u32::MAX, per: day },
                    Vec::new(),
                )
            }
        }
    }

    /// Whether no rule ends it.
    pub const fn is_manual(&self) -> bool {
        matches!(self, Self::Manual | Self::Alert)
    }
}

/// All incidents: those that fire, and the last ones that do not.
#[derive(Debug, Default)]
pub struct Incidents {
    active: BTreeMap<Arc<str>, ActiveIncident>,
    firing: BTreeMap<Key, Arc<str>>,
}

impl Incidents {
    /// Opens an incident for a change that is an onset. `target` names the server that a capture
    /// would be taken on.
    pub fn open(&mut self, change: &Change, finding: Finding, target: Arc<str>) -> &mut ActiveIncident {
        let id = self.free_id(&change.rule.name, change.target.as_ref(), &change.group, change.at);
        self.firing.insert(key_of(change), id.clone());
        self.forget_old();
        self.active.entry(id.clone()).or_insert(active_of(id, change, finding, target))
    }

    /// Opens the incident of a capture that somebody asked for, on the server called `target`.
    pub fn open_manual(&mut self, request: ManualRequest, target: Arc<str>, now: Time) -> IncidentId {
        let ManualRequest { is_alert, is_baseline, capture, why, labels, since, .. } = request;
        let id = self.free_id(BY_HAND, Some(&target), &labels, now);
        let finding = Finding::requested(since.unwrap_or(now), Some(why));
        let incident = Incident {
            about: Some("Somebody, or another system's alert, asked for a window.".into()),
            group: labels.clone(),
            severity: Severity::Info,
            is_baseline,
            ..Incident::new(id, BY_HAND.into(), target.clone(), now, finding)
        };
        let trigger = if is_alert { Trigger::Alert } else { Trigger::Manual };
        self.open_without_rule(incident, trigger, capture, labels.with_target(&target), None)
    }

    /// Opens the incident of a server's death, under the name of `rule`.
    pub fn open_death(
        &mut self,
        rule: &str,
        target: Arc<str>,
        death: &Death,
        silenced: Option<Time>,
    ) -> IncidentId {
        let id = self.free_id(rule, Some(&target), &Labels::default(), death.at);
        let finding = Finding::requested(death.at, Some(death.line.clone()));
        let incident = Incident {
            about: Some("The server's own log says that it dies.".into()),
            severity: Severity::Critical,
            ..Incident::new(id, rule.into(), target.clone(), death.at, finding)
        };
        let group = Labels::default().with_target(&target);
        self.open_without_rule(incident, Trigger::Death, CaptureSpec::None, group, silenced)
    }

    /// Opens the incident of a standing imbalance, which needs an id yet.
    pub fn open_standing(&mut self, incident: Incident, silenced: Option<Time>) -> &mut ActiveIncident {
        let Incident { rule, target, fired_at, .. } = &incident;
        let id = self.free_id(rule, Some(target), &Labels::default(), *fired_at);
        let key = (rule.clone(), Some(target.clone()), Labels::default(), None);
        let group = Labels::default().with_target(target);
        let incident = Incident { id: id.clone(), ..incident };
        self.open_without_rule(incident, Trigger::Standing, CaptureSpec::None, group, silenced);
        self.firing.insert(key, id.clone());
        self.active.get_mut(&id).expect("it was opened")
    }

    /// The standing imbalance of a server, if one goes on.
    pub fn standing(&self, target: &str) -> Option<&ActiveIncident> {
        let is_it = |active: &&ActiveIncident| {
            matches!(active.trigger, Trigger::Standing) && *active.incident.target == *target
        };
        self.firing_now().find(is_it)
    }

    /// The causes of the incidents that fire on a server alone; `None` for one that nobody has looked for yet.
    pub fn causes_on(&self, target: &str) -> impl Iterator<Item = Option<&Cause>> {
        let there = self.firing_now().filter(move |active| *active.incident.target == *target);
        there.map(|active| active.incident.cause.as_ref())
    }

    /// Whether a death of that server was told, after which it has not lived again.
    pub fn is_dead(&self, target: &str) -> bool {
        let is_it = |active: &ActiveIncident| {
            matches!(active.trigger, Trigger::Death)
                && *active.incident.target == *target
                && active.incident.resolved_at.is_none()
        };
        self.active.values().any(is_it)
    }

    /// Resolves the incidents that are nothing but the death of a server.
    pub fn resolve_deaths(&mut self, target: &str, at: Time) -> Vec<ActiveIncident> {
        let of_target = self.active.values_mut().filter(|active| *active.incident.target == *target);
        let deaths = of_target.filter(|active| matches!(active.trigger, Trigger::Death));
        deaths.filter_map(|active| active.incident.resolve(at).then(|| active.clone())).collect()
    }

    /// Whether an incident of that key fires.
    pub fn is_firing(&self, key: &Key) -> bool {
        self.firing.contains_key(key)
    }

    /// Takes up an incident that an agent before this one left open.
    pub fn take_up(&mut self, id: IncidentId, key: Key, active: ActiveIncident) {
        self.firing.insert(key, id.clone());
        self.active.insert(id, active);
    }

    /// The id of an incident that begins now.
    fn free_id(&self, rule: &str, target: Option<&Arc<str>>, group: &Labels, at: Time) -> IncidentId {
        let ids = (0..).map(|taken| id_of(rule, target, group, at, taken));
        ids.into_iter().find(|id| !self.active.contains_key(id)).expect("few incidents are in memory")
    }

    fn open_without_rule(
        &mut self,
        incident: Incident,
        trigger: Trigger,
        capture: CaptureSpec,
        group: Labels,
        silenced: Option<Time>,
    ) -> IncidentId {
        self.forget_old();
        let id = incident.id.clone();
        let (_, limits, notify) = trigger.asks();
        let active = ActiveIncident {
            incident,
            trigger,
            capture,
            limits,
            notify,
            group,
            firing: String::new(),
            may_predate_start: false,
            silenced,
            away_since: None,
            is_behind: false,
            taken_up: None,
            impact_probes: [None; 3],
            messages: MessageProgress::default(),
            refusal_reported: 0,
        };
        self.active.insert(id.clone(), active);
        id
    }

    /// The incident that fires for the rule and group of a change.
    pub fn firing(&self, change: &Change) -> Option<&ActiveIncident> {
        self.active.get(self.firing.get(&key_of(change))?)
    }

    /// The same, to be changed.
    pub fn firing_mut(&mut self, change: &Change) -> Option<&mut ActiveIncident> {
        self.active.get_mut(self.firing.get(&key_of(change))?)
    }

    /// Resolves an incident that fires; `end` says how it ended where its rule did not see it clear.
    pub fn resolve(&mut self, id: &str, at: Time, end: Option<EndReason>) -> Option<&ActiveIncident> {
        self.firing.retain(|_, firing| **firing != *id);
        let active = self.active.get_mut(id)?;
        active.incident.ended_unseen = active.taken_up.is_some();
        active.incident.end = end;
        active.incident.resolve(at);
        Some(active)
    }

    /// An incident that was taken to be over is found again by `change`; returns whether it goes on.
    pub fn come_back(&mut self, id: &IncidentId, change: &Change) -> bool {
        let Some(active) = self.active.get_mut(id).filter(|active| active.incident.resolved_at.is_some())
        else {
            return false;
        };
        if !active.incident.come_back(change.at) {
            return false;
        }
        (active.away_since, active.is_behind, active.taken_up) = (None, false, None);
        active.follow(&change.rule);
        self.firing.insert(key_of(change), id.clone());
        true
    }

    /// Keeps an incident that was over when an agent before this one ended, since it may come back.
    pub fn keep_resolved(&mut self, id: IncidentId, active: ActiveIncident) {
        self.active.insert(id, active);
    }

    /// The incidents that fire for the rule and group of a change, but of other troubles.
    pub fn others(&self, change: &Change) -> Vec<IncidentId> {
        let (rule, target, group, trouble) = key_of(change);
        let is_other = |key: &Key| (&key.0, &key.1, &key.2) == (&rule, &target, &group) && key.3 != trouble;
        self.firing.iter().filter(|(key, _)| is_other(key)).map(|(_, id)| id.clone()).collect()
    }

    /// The incidents of a trouble of the factors on a server that fire, under whichever rule: one, or a second one
    /// where the first is silenced.
    pub fn of_trouble(&self, target: &str, trouble: u64) -> impl Iterator<Item = &ActiveIncident> {
        self.firing_now().filter(move |active| {
            *active.incident.target == *target && active.incident.trouble == Some(trouble)
        })
    }

    /// From now on an incident that fires already is told by the rule of `change`.
    pub fn take_over(
        &mut self,
        id: &IncidentId,
        change: &Change,
        finding: Finding,
    ) -> Option<&mut ActiveIncident> {
        self.firing.retain(|_, firing| firing != id);
        self.firing.insert(key_of(change), id.clone());
        let active = self.active.get_mut(id)?;
        active.follow(&change.rule);
        active.blame(change, finding);
        active.incident.raise(change.rule.severity, change.at);
        Some(active)
    }

    /// Resolves an incident that no rule started; `None` where one did, or it is resolved already.
    pub fn resolve_manual(&mut self, id: &str, at: Time) -> Option<&ActiveIncident> {
        let active = self.active.get_mut(id)?;
        (active.trigger.is_manual() && active.incident.resolve(at)).then_some(active)
    }

    /// The incidents that fire by a rule.
    pub fn firing_of_rule(&self, rule: &str) -> Vec<IncidentId> {
        self.firing.iter().filter(|((name, ..), _)| **name == *rule).map(|(_, id)| id.clone()).collect()
    }

    /// The clock was set by so many nanoseconds. What people were told keeps its times.
    pub fn shift(&mut self, by_ns: i64) {
        for active in self.active.values_mut() {
            active.messages.shift(by_ns);
            Time::shift_all(active.taken_up.iter_mut().chain(&mut active.away_since), by_ns);
        }
    }

    /// Those whose result has waited long enough for a verdict.
    pub fn with_due_results(&self, now: Time) -> Vec<Arc<str>> {
        let due = self.active.iter().filter(|(_, active)| active.messages.is_due(now));
        due.map(|(id, _)| id.clone()).collect()
    }

    /// One incident.
    pub fn get(&self, id: &str) -> Option<&ActiveIncident> {
        self.active.get(id)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut ActiveIncident> {
        self.active.get_mut(id)
    }

    /// Whether any fires, or may again once its data are back.
    pub fn is_any_firing(&self) -> bool {
        !self.firing.is_empty()
    }

    /// Those that fire, and those whose data have been absent since, in the order of their rules and groups.
    pub fn firing_now(&self) -> impl Iterator<Item = &ActiveIncident> {
        self.firing.values().filter_map(|id| self.active.get(id))
    }

    /// The same, to be changed.
    pub fn firing_now_mut(&mut self) -> impl Iterator<Item = &mut ActiveIncident> {
        let firing: BTreeSet<Arc<str>> = self.firing.values().cloned().collect();
        self.active.iter_mut().filter(move |(id, _)| firing.contains(*id)).map(|(_, active)| active)
    }

    /// All that are in memory, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &ActiveIncident> {
        self.active.values().rev()
    }

    /// Those that are over and without an open window; a dead server fires by no rule, and is over when it lives again.
    fn forget_old(&mut self) {
        let firing: Vec<&Arc<str>> = self.firing.values().collect();
        let is_over = |active: &ActiveIncident| {
            active.incident.resolved_at.is_some()
                && !matches!(active.incident.capture, CaptureOutcome::Open { .. })
        };
        let closed = self.active.iter().filter(|(id, active)| !firing.contains(id) && is_over(active));
        let closed: Vec<Arc<str>> = closed.map(|(id, _)| id.clone()).collect();
        for id in closed.iter().take(closed.len().saturating_sub(CLOSED_IN_MEMORY)) {
            self.active.remove(id);
        }
    }
}

fn active_of(id: Arc<str>, change: &Change, finding: Finding, target: Arc<str>) -> ActiveIncident {
    let rule = change.rule.clone();
    let group = match &change.target {
        Some(target) => change.group.clone().with_target(target),
        None => change.group.clone(),
    };
    let firing = firing_of(change, &finding);
    let incident = Incident {
        trouble: change.trouble,
        about: rule.about.clone(),
        group: change.group.clone(),
        severity: rule.severity,
        labels: rule.labels.clone(),
        ..Incident::new(id, rule.name.clone(), target, change.at, finding)
    };
    let may_predate_start = change.may_predate_start;
    ActiveIncident {
        incident,
        capture: rule.capture.clone(),
        limits: rule.limits.clone(),
        notify: rule.notify.clone(),
        trigger: Trigger::Rule(rule),
        group,
        firing,
        may_predate_start,
        silenced: None,
        away_since: None,
        is_behind: false,
        taken_up: None,
        impact_probes: [None; 3],
        messages: MessageProgress::default(),
        refusal_reported: 0,
    }
}

/// What identifies a firing in the state. Without a blamed member there is nothing to recognise it by.
fn firing_of(change: &Change, finding: &Finding) -> String {
    match finding.rank.0.is_empty() {
        true => String::new(),
        false => format!("{} {} {}", change.group, finding.rank, finding.side.word()).trim().to_owned(),
    }
}

/// What identifies the firing that a change is of.
pub(super) fn key_of(change: &Change) -> Key {
    (change.rule.name.clone(), change.target.clone(), change.group.clone(), change.trouble)
}

/// `20261124T034845Z-dp-load-skew-3f9a`: sortable, and the same whenever the same is replayed. The
/// last part distinguishes groups whose rules fire in the same second; where it is the same by chance, by how many are
/// `taken`.
fn id_of(rule: &str, target: Option<&Arc<str>>, group: &Labels, at: Time, taken: u32) -> IncidentId {
    let stamp = jiff::Timestamp::from_nanosecond(i128::from(at.nanos())).unwrap_or_default();
    let again = if taken == 0 { String::new() } else { format!(" {taken}") };
    let hash = fnv1a(format!("{target:?}{group}{}{again}", at.nanos()).bytes());
    let rule: String = rule.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{}-{rule}-{:04x}", stamp.strftime("%Y%m%dT%H%M%SZ"), hash & 0xffff).into()
}
