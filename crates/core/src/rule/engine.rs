//! All rules over all groups: which to evaluate when, and what came of it.
//!
//! A group is evaluated when a sample touched it, at most every [`EVERY`], and on ticks while time
//! alone can change its state. State is kept by rule name and group labels, and outlives a reload
//! of rules that still detect the same. Evaluating allocates nothing unless a state changes.

mod refine;
mod worse;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use self::refine::refined;
use super::change::{Change, How};
use super::condition::Condition;
use super::group::{GRACE, Group, Probe, Running};
use super::state::{Holds, RuleState};
use super::statistic::Statistic;
use super::watcher::Courses;
use super::{Rule, why};
use crate::signal::catalog;
use crate::signal::store::{GroupId, SignalStore, ViewId};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::time::Time;

/// No group is evaluated more often.
pub const EVERY: Duration = Duration::from_millis(100);
/// Time alone is looked at this often.
const AT_LEAST: Duration = Duration::from_secs(1);

/// Without a single number from any source, rules say that they are inert after this.
const SILENCE: Duration = Duration::from_secs(300);

/// What a capture's disturbance allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppression {
    /// The window is open: nothing begins or goes on, but a firing may clear.
    MayClear,
    /// The export stalls the server, or it has just ended: nothing that is seen counts.
    Nothing,
}

/// One rule with its groups.
#[derive(Debug)]
pub(super) struct Entry {
    pub running: Running,
    pub groups: Vec<Group>,
    /// For each look, the group that a view's group belongs to.
    places: Vec<Vec<u32>>,
    /// Groups to evaluate, by their places, and whether a group is among them. Rules are evaluated
    /// one after the other, each over its groups in the order of memory: thousands of groups do not
    /// fit into a cache, and walking them in order is what makes them cheap.
    due: Vec<u32>,
    is_due: Vec<bool>,
    by_labels: BTreeMap<Labels, u32>,
    /// Whether it was said that no group can be made, and why.
    pub inert: Option<String>,
    since: Time,
}

const NOWHERE: u32 = u32::MAX;

/// All rules.
#[derive(Debug, Default)]
pub struct Engine {
    entries: Vec<Entry>,
    /// By view: the entries and looks that use it.
    users: Vec<Vec<(u32, u32)>>,
    quiet: BTreeMap<Arc<str>, Suppression>,
    touched: Vec<(ViewId, GroupId)>,
    /// A buffer for statistics that sort, empty between evaluations.
    sorted: Vec<f64>,
    generation: u64,
    /// When the store had recorded something for the first time.
    heard: Option<Time>,
    ticked: Option<Time>,
    evaluations: u64,
    /// When the first of the groups that were touched too soon may be looked at.
    due: Option<Time>,
}

impl Engine {
    /// An engine for `rules`, whose views it asks `store` for.
    pub fn new(rules: Vec<Rule>, store: &mut SignalStore, now: Time) -> Self {
        let mut engine = Self::default();
        engine.reload(rules, store, now);
        engine
    }

    /// Takes other rules. A rule that still detects the same keeps its groups and their states;
    /// a firing of a rule that is gone, or now detects something else, is not resolved here: the
    /// returned names are those whose state was dropped.
    pub fn reload(&mut self, rules: Vec<Rule>, store: &mut SignalStore, now: Time) -> Vec<Arc<str>> {
        let mut old: BTreeMap<Arc<str>, Entry> =
            std::mem::take(&mut self.entries).into_iter().map(|e| (e.running.rule.name.clone(), e)).collect();
        for rule in rules {
            let running = Running::new(Arc::new(rule), store);
            let kept = match old.remove(&running.rule.name) {
                Some(e) if e.running.fingerprint == running.fingerprint => Some(e),
                Some(changed) => {
                    old.insert(changed.running.rule.name.clone(), changed);
                    None
                }
                None => None,
            };
            self.entries.push(match kept {
                Some(e) => Entry { running, ..e },
                None => Entry::new(running, now),
            });
        }
        self.users.clear();
        for (e, entry) in self.entries.iter().enumerate() {
            for (l, look) in entry.running.looks.iter().enumerate() {
                let view = look.view.0 as usize;
                self.users.resize_with(self.users.len().max(view + 1), Vec::new);
                self.users[view].push((e as u32, l as u32));
            }
        }
        self.find_groups(store, now);
        old.into_keys().collect()
    }

    /// A capture on `target` begins or ceases to disturb what is seen of it.
    pub fn set_quiet(&mut self, target: &Arc<str>, quiet: Option<Suppression>) {
        match quiet {
            Some(q) => self.quiet.insert(target.clone(), q),
            None => self.quiet.remove(target),
        };
    }

    /// Looks at the groups that got new samples. Call it after samples were recorded.
    pub fn on_samples(&mut self, store: &mut SignalStore, now: Time, changes: &mut Vec<Change>) {
        self.renew(store, now);
        let mut touched = std::mem::take(&mut self.touched);
        store.take_touched(&mut touched);
        for (view, group) in &touched {
            for u in 0..self.users.get(view.0 as usize).map_or(0, Vec::len) {
                let (e, look) = self.users[view.0 as usize][u];
                let entry = &mut self.entries[e as usize];
                let place = entry.place(look as usize, *group, store, now);
                entry.make_due(place);
            }
        }
        self.touched = touched;
        self.evaluate_due(store, now, changes);
    }

    /// Lets time pass: what is due is evaluated, and what time alone can change. Call it at least
    /// every second, better every 100 ms.
    pub fn tick(&mut self, store: &mut SignalStore, now: Time, changes: &mut Vec<Change>) {
        self.on_samples(store, now, changes);
        if self.ticked.is_some_and(|t| now >= t && now.since(t) < EVERY) {
            return;
        }
        self.ticked = Some(now);
        for entry in &mut self.entries {
            for place in 0..entry.groups.len() {
                let group = &entry.groups[place];
                let waits = matches!(group.phase(), RuleState::Pending | RuleState::Firing);
                if waits || group.evaluated.is_none_or(|t| t > now || now.since(t) >= AT_LEAST) {
                    entry.make_due(place as u32);
                }
            }
        }
        self.evaluate_due(store, now, changes);
        self.look_for_inert(store, now, changes);
    }

    /// How many evaluations there were.
    pub const fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// When to call [`Self::tick`] at the latest for the samples that came too soon after others.
    pub const fn due(&self) -> Option<Time> {
        self.due
    }

    /// The rules, in their order.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.entries.iter().map(|e| &e.running.rule)
    }

    /// Where every rule stands with every group, and the missing link where it does not fire.
    pub fn standing(&self, now: Time) -> Vec<why::Evaluation> {
        self.entries.iter().flat_map(|e| why::standing_of(e, now)).collect()
    }

    fn evaluate_due(&mut self, store: &mut SignalStore, now: Time, changes: &mut Vec<Change>) {
        self.due = None;
        for entry in &mut self.entries {
            let Entry { running, groups, due, is_due, .. } = entry;
            due.sort_unstable();
            due.retain(|place| {
                let group = &mut groups[*place as usize];
                if let Some(t) = group.evaluated.filter(|t| now >= *t && !now.is_past(*t, EVERY)) {
                    self.due = Some(self.due.map_or(t + EVERY, |due| due.min(t + EVERY)));
                    return true;
                }
                is_due[*place as usize] = false;
                self.evaluations += 1;
                let quiet = quiet_of(&self.quiet, group);
                let change = group.evaluate(running, store, quiet, &mut self.sorted, now);
                changes.extend(change.map(|c| refined(c, running, group, store)));
                false
            });
        }
    }

    /// Rules for which no group can be made say so, once.
    fn look_for_inert(&mut self, store: &SignalStore, now: Time, changes: &mut Vec<Change>) {
        if store.recorded() > 0 {
            self.heard.get_or_insert(now);
        }
        for entry in &mut self.entries {
            // A server that is still loading its model says nothing at all for minutes.
            let is_over = match self.heard {
                Some(heard) => now.since(entry.since.max(heard)) >= GRACE,
                None => now.since(entry.since) >= SILENCE,
            };
            if !entry.groups.is_empty() {
                entry.inert = None;
            } else if entry.inert.is_none() && is_over {
                let reason = why::no_group(&entry.running, store);
                entry.inert = Some(reason.clone());
                changes.push(Change {
                    at: now,
                    rule: entry.running.rule.clone(),
                    target: None,
                    group: Labels::default(),
                    state: RuleState::Inert,
                    how: How::Entered,
                    since: now,
                    finding: None,
                    numbers: None,
                    reason: Some(reason),
                    may_carry_on: false,
                });
            }
        }
    }

    /// The store sorted its series anew: group ids mean something else now.
    fn renew(&mut self, store: &SignalStore, now: Time) {
        if self.generation != store.generation() {
            self.find_groups(store, now);
        }
    }

    fn find_groups(&mut self, store: &SignalStore, now: Time) {
        self.generation = store.generation();
        for entry in &mut self.entries {
            entry.find_groups(store, now);
        }
    }
}

fn quiet_of(quiet: &BTreeMap<Arc<str>, Suppression>, group: &Group) -> Option<Suppression> {
    if quiet.is_empty() {
        return None;
    }
    match group.labels.get("target") {
        Some(LabelValue::Text(name)) => quiet.get(name).copied(),
        // A group over several servers is disturbed by a capture on any of them.
        _ => quiet.values().next().copied(),
    }
}

impl Entry {
    fn new(running: Running, now: Time) -> Self {
        let places = vec![Vec::new(); running.looks.len()];
        Self {
            running,
            groups: Vec::new(),
            places,
            due: Vec::new(),
            is_due: Vec::new(),
            by_labels: BTreeMap::new(),
            inert: None,
            since: now,
        }
    }

    fn make_due(&mut self, place: u32) {
        if !std::mem::replace(&mut self.is_due[place as usize], true) {
            self.due.push(place);
        }
    }

    /// The group that a view's group belongs to, made when it is new.
    fn place(&mut self, look: usize, id: GroupId, store: &SignalStore, now: Time) -> u32 {
        let index = id.0 as usize;
        if let Some(&place) = self.places[look].get(index)
            && place != NOWHERE
        {
            return place;
        }
        let labels = store.group_labels(self.running.looks[look].view, id);
        let next = self.groups.len() as u32;
        let place = *self.by_labels.entry(labels.clone()).or_insert(next);
        if place == next {
            self.groups.push(Group::new(labels.clone(), self.running.looks.len(), now));
            self.is_due.push(false);
        }
        let places = &mut self.places[look];
        places.resize(places.len().max(index + 1), NOWHERE);
        places[index] = place;
        self.groups[place as usize].ids[look] = Some(id);
        place
    }

    fn find_groups(&mut self, store: &SignalStore, now: Time) {
        self.places = vec![Vec::new(); self.running.looks.len()];
        for group in &mut self.groups {
            group.ids = vec![None; self.running.looks.len()];
        }
        for look in 0..self.running.looks.len() {
            let view = self.running.looks[look].view;
            let ids: Vec<GroupId> = store.groups(view).map(|(id, _)| id).collect();
            for id in ids {
                self.place(look, id, store, now);
            }
        }
        (0..self.groups.len() as u32).for_each(|place| self.make_due(place));
    }
}

impl Running {
    fn new(rule: Arc<Rule>, store: &mut SignalStore) -> Self {
        let mut looks = Vec::new();
        let mut look_of = |signal, smooth| {
            let look = Probe { view: store.subscribe(signal, &rule.across, &rule.within), smooth };
            looks.iter().position(|l| *l == look).unwrap_or_else(|| {
                looks.push(look);
                looks.len() - 1
            })
        };
        let mut looks_of = |conditions: &[Condition]| -> Vec<usize> {
            conditions.iter().map(|c| look_of(c.signal, c.smooth)).collect()
        };
        let trigger = looks_of(&rule.trigger.conditions);
        let clear = looks_of(&rule.clear.conditions);
        let guard = match &rule.only_if {
            Some(guard) => guard.signals().map(|s| look_of(s, Duration::ZERO)).collect(),
            None => Vec::new(),
        };
        let courses = rule.conditions().position(|c| c.statistic == Statistic::Departure).map(|i| Courses {
            load: trigger.iter().chain(&clear).copied().nth(i).unwrap_or(0),
            ..Courses::default()
        });
        let is_load = |c: &Courses| store.signal_of(looks[c.load].view) == catalog::LOAD;
        let (required, with_more) = (looks.len(), courses.as_ref().is_some_and(is_load));
        let courses = courses.map(|c| match with_more {
            true => c.with_company(&mut |signal| {
                let view = store.subscribe(signal, &rule.across, &rule.within);
                let look = Probe { view, smooth: Duration::ZERO };
                looks.iter().position(|l| *l == look).unwrap_or_else(|| {
                    looks.push(look);
                    looks.len() - 1
                })
            }),
            false => c,
        });
        let (fingerprint, holds) = (rule.fingerprint(), Holds::of(&rule));
        Self { rule, fingerprint, holds, looks, trigger, clear, guard, required, courses }
    }
}
