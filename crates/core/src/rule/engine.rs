//! All rules over all groups: when each is evaluated, and what changed.
//!
//! A group is evaluated when it has got a sample, at most once in its rule's interval, and on ticks
//! while time alone can change its state. States are kept by rule name and group labels, and outlive a
//! reload of rules that still detect the same. Evaluating allocates nothing unless a state changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::change::{Change, ChangeKind};
use super::compiled::{CompiledRule, EVALUATION_INTERVAL};
use super::escalation::EscalationWatch;
use super::factors::{DetectorFindings, FactorDetectors, LearnedServer};
use super::group::{GRACE, Group, LastEvaluation, Unjudged};
use super::locate::with_evidence;
use super::quick_check::QuickCheck;
use super::state::{RuleState, Suppression};
use super::{Condition, Rule, why};
use crate::factor::{FALSE_ALARMS_PER_DAY, Mark, MarkEffect};
use crate::finding::Statistic;
use crate::signal::fields::Fields;
use crate::signal::intake::Report;
use crate::signal::store::{GroupId, SignalStore, ViewId};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// A group without a new sample is still evaluated this often.
const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// A rule without a group is reported as inert after this time, if no source has given a single number.
const NO_SAMPLES_GRACE: Duration = Duration::from_secs(300);

/// In [`RuleEntry::group_of_view`]: no group yet.
const NO_GROUP: u32 = u32::MAX;

/// One rule with its groups.
#[derive(Debug)]
struct RuleEntry {
    compiled: CompiledRule,
    groups: Vec<Group>,
    /// One for each group.
    quick_checks: Vec<QuickCheck>,
    /// For each probe and each group of its view, the index in `groups`, or [`NO_GROUP`].
    group_of_view: Vec<Vec<u32>>,
    /// Groups to evaluate, by their indexes, and whether a group is among them. Rules are evaluated
    /// one after the other, each over its groups in the order of memory: thousands of groups do not
    /// fit into a cache, and walking them in order is what makes them cheap.
    due: Vec<u32>,
    is_due: Vec<bool>,
    by_labels: BTreeMap<Arc<Labels>, u32>,
    /// Why no group can be made, once that has been reported.
    inert: Option<String>,
    loaded_at: Time,
}

/// All rules.
#[derive(Debug)]
pub struct Engine {
    factors: FactorDetectors,
    entries: Vec<RuleEntry>,
    /// For each view, the probes that read it: the index of the entry and of the probe there.
    probes_of_view: Vec<Vec<(u32, u32)>>,
    /// By target: how a capture disturbs it now.
    suppressions: BTreeMap<Arc<str>, Suppression>,
    touched: Vec<(ViewId, GroupId)>,
    /// A buffer for statistics that sort, empty between evaluations.
    scratch: Vec<f64>,
    generation: u64,
    /// When the store was first found to hold a sample.
    first_sample: Option<Time>,
    last_tick: Option<Time>,
    evaluation_count: u64,
    /// When the first of the groups that got a sample too soon may be evaluated.
    due: Option<Time>,
    /// The shortest time between two evaluations of a group.
    shortest_interval: Duration,
}

impl Engine {
    /// An engine for `rules`; it subscribes to their views in `store`.
    pub fn new(rules: Vec<Rule>, store: &mut SignalStore, now: Time) -> Self {
        let mut engine = Self {
            factors: FactorDetectors::new(FALSE_ALARMS_PER_DAY),
            entries: Vec::new(),
            probes_of_view: Vec::new(),
            suppressions: BTreeMap::new(),
            touched: Vec::new(),
            scratch: Vec::new(),
            generation: 0,
            first_sample: None,
            last_tick: None,
            evaluation_count: 0,
            due: None,
            shortest_interval: EVALUATION_INTERVAL,
        };
        engine.reload(rules, store, now);
        engine
    }

    /// How many false alarms a day are accepted on each server, all factors together; to be called before
    /// anything is read.
    pub fn accept_false_alarms(&mut self, per_day: f64) {
        self.factors = FactorDetectors::new(per_day);
    }

    /// Takes other rules. A rule that still detects the same keeps its groups and their states;
    /// a firing of a rule that is gone, or now detects something else, is not resolved here: the
    /// returned names are those whose state was dropped.
    pub fn reload(&mut self, rules: Vec<Rule>, store: &mut SignalStore, now: Time) -> Vec<Arc<str>> {
        let mut old: BTreeMap<Arc<str>, RuleEntry> = std::mem::take(&mut self.entries)
            .into_iter()
            .map(|e| (e.compiled.rule.name.clone(), e))
            .collect();
        // Each rule asks anew for what it reads; what only a rule asked for that is gone is not done any more.
        store.keep_none_in_order();
        for rule in rules {
            let compiled = CompiledRule::new(Arc::new(rule), store);
            let unchanged = match old.remove(&compiled.rule.name) {
                Some(e) if e.compiled.fingerprint == compiled.fingerprint => Some(e),
                Some(changed) => {
                    old.insert(changed.compiled.rule.name.clone(), changed);
                    None
                }
                None => None,
            };
            self.entries.push(match unchanged {
                Some(e) => RuleEntry { compiled, ..e },
                None => RuleEntry::new(compiled, now),
            });
        }
        let intervals = self.entries.iter().map(|e| e.compiled.interval);
        self.shortest_interval = intervals.min().unwrap_or(EVALUATION_INTERVAL);
        self.probes_of_view.clear();
        for (e, entry) in self.entries.iter().enumerate() {
            for (l, probe) in entry.compiled.probes.iter().enumerate() {
                let view = probe.view.0 as usize;
                self.probes_of_view.resize_with(self.probes_of_view.len().max(view + 1), Vec::new);
                self.probes_of_view[view].push((e as u32, l as u32));
            }
        }
        self.find_groups(store, now);
        old.into_keys().collect()
    }

    /// How a capture disturbs the samples of `target` from now on; `None` when it no longer does.
    pub fn set_suppression(&mut self, target: &Arc<str>, suppression: Option<Suppression>) {
        match suppression {
            Some(suppression) => self.suppressions.insert(target.clone(), suppression),
            None => self.suppressions.remove(target),
        };
    }

    /// Takes in the numbers of one rank of a server.
    pub fn read(&mut self, server: &Arc<str>, rank: Rank, report: Report, fields: &Fields, at: Time) {
        self.factors.take(server, rank, report, fields, at);
    }

    /// A server says what it is: see [`FactorDetectors::server_is`].
    pub fn server_is(&mut self, server: &Arc<str>, limit: Option<u16>, is_another: bool, now: Time) {
        self.factors.server_is(server, limit, is_another, now);
    }

    /// The clock was set by so many nanoseconds: all that is remembered is as long ago as before.
    pub fn shift(&mut self, by_ns: i64) {
        self.factors.shift(by_ns);
        for entry in &mut self.entries {
            entry.loaded_at = entry.loaded_at.shifted(by_ns);
            entry.groups.iter_mut().for_each(|group| group.shift(by_ns));
            Time::shift_all(entry.quick_checks.iter_mut().filter_map(|q| q.evaluated.as_mut()), by_ns);
        }
        let times = [&mut self.first_sample, &mut self.last_tick, &mut self.due];
        Time::shift_all(times.into_iter().flatten(), by_ns);
    }

    /// What was learned of the factors of every server, to be kept over a restart.
    pub fn learned_servers(&self, now: Time) -> Vec<LearnedServer> {
        self.factors.learned_servers(now)
    }

    /// The same of one server.
    pub fn learned_of(&self, server: &str, now: Time) -> Option<LearnedServer> {
        self.factors.learned_of(server, now)
    }

    /// Goes on with what an agent before this one learned.
    pub fn remember(&mut self, learned_servers: Vec<LearnedServer>, now: Time) {
        self.factors.remember(learned_servers, now);
    }

    /// A person says what a firing was worth that was told of `server` at `told`; what that taught.
    pub fn mark(&mut self, server: &str, told: Time, mark: Mark, now: Time) -> Option<MarkEffect> {
        self.factors.mark(server, told, mark, now)
    }

    /// Whether this engine has seen a rule calm on a group for as long as its clear wants.
    pub fn has_been_clear(&self, rule: &str, group: &Labels) -> bool {
        self.group(rule, group).is_some_and(Group::has_been_clear)
    }

    /// The state of a rule on a group, where it was evaluated there.
    pub fn state_of(&self, rule: &str, group: &Labels) -> Option<RuleState> {
        self.group(rule, group).map(Group::rule_state)
    }

    /// Whether the clear of a rule that fires on a group has begun to hold.
    pub fn is_clearing(&self, rule: &str, group: &Labels, now: Time) -> bool {
        self.group(rule, group).is_some_and(|group| group.is_clearing(now))
    }

    /// Whether the trouble of that number, on `server`, is the one that is told there and has begun to calm.
    pub fn is_calming(&self, server: &str, trouble: u64) -> bool {
        let told = self.factors.findings(server);
        told.is_some_and(|told| told.is_calming && told.trouble.is_some_and(|t| t.id == trouble))
    }

    /// Whether any rule was judged on a group of `server`.
    pub fn is_judged(&self, server: &str) -> bool {
        let is_there = |group: &Group| group.target().is_some_and(|target| **target == *server);
        let is_judged =
            |group: &Group| !matches!(group.rule_state(), RuleState::Warming | RuleState::Unknown);
        self.entries.iter().flat_map(|entry| &entry.groups).any(|group| is_there(group) && is_judged(group))
    }

    /// Whether any rank of `server` is heard, though no rule may be able to compare it.
    pub fn is_heard(&self, server: &str) -> bool {
        let is_there = |group: &&Group| group.target().is_some_and(|target| **target == *server);
        let is_alone =
            |group: &Group| matches!(group.last, LastEvaluation::Unjudged(Unjudged::TooFewMembers(_)));
        let mut groups = self.entries.iter().flat_map(|entry| &entry.groups).filter(is_there);
        self.is_judged(server) || groups.any(is_alone)
    }

    /// Whether a trouble of the factors of `server` goes on, told or behind another one.
    pub fn is_open(&self, server: &str, trouble: u64) -> bool {
        self.factors.is_open(server, trouble)
    }

    /// In what the ranks of a trouble depart, as [`FactorDetectors::trouble`] says it.
    pub fn trouble(&self, server: &str, trouble: u64) -> Option<(crate::factor::Factor, bool)> {
        self.factors.trouble(server, trouble)
    }

    /// Whether a trouble of the factors of `server` counts as usual by now.
    pub fn became_usual(&self, server: &str, trouble: u64) -> bool {
        self.factors.became_usual(server, trouble)
    }

    /// Whether the trouble of that number ended, on a server, since nobody could observe it any more.
    pub fn ended_unseen(&self, server: &str, trouble: u64) -> bool {
        self.factors.ended_unseen(server, trouble)
    }

    /// The imbalance of a server that was there before anything could be compared, as
    /// [`FactorDetectors::standing`] says it; `None` also where no rule asks for factors.
    pub fn standing(&self, server: &str) -> Option<Option<(crate::factor::Uneven, &[u16])>> {
        self.factors.standing(server).filter(|_| self.reads_factors())
    }

    /// Whether any rule asks for factors.
    pub fn reads_factors(&self) -> bool {
        let asks = |c: &Condition| c.statistic == Statistic::Factors;
        self.rules().any(|rule| rule.trigger.conditions.iter().any(asks))
    }

    /// What the detector of factors holds against the ranks of a server.
    pub fn findings(&self, server: &str) -> Option<DetectorFindings<'_>> {
        self.factors.findings(server)
    }

    /// The longest pause of a rank with work in health, of a server, in seconds.
    pub fn usual_pause_s(&self, server: &str, now: Time) -> Option<f64> {
        let pause = self.factors.learned_of(server, now)?.known.longest_pause;
        (pause > 0.0).then_some(pause)
    }

    /// How the DP ranks of a server get on with their work.
    pub fn progress(&self, server: &str, now: Time) -> Vec<(u16, crate::factor::Progress)> {
        self.factors.progress(server, now)
    }

    /// When a rank of a server that was stuck moved again, if it has not been stuck since.
    pub fn resumed(&self, server: &str, rank: &Labels) -> Option<Time> {
        self.factors.resumed(server, rank)
    }

    /// Evaluates the groups that got new samples. Call it after samples were recorded.
    pub fn on_samples(&mut self, store: &mut SignalStore, now: Time, changes: &mut Vec<Change>) {
        self.factors.step(now);
        self.refresh_groups(store, now);
        let mut touched = std::mem::take(&mut self.touched);
        store.take_touched(&mut touched);
        for (view, group) in &touched {
            for u in 0..self.probes_of_view.get(view.0 as usize).map_or(0, Vec::len) {
                let (e, probe) = self.probes_of_view[view.0 as usize][u];
                let entry = &mut self.entries[e as usize];
                let index = entry.group_index(probe as usize, *group, store, now);
                entry.make_due(index);
            }
        }
        self.touched = touched;
        self.evaluate_due(store, now, changes);
    }

    /// Lets time pass: what is due is evaluated, and what time alone can change. Call it at least
    /// every second, better every 100 ms.
    pub fn tick(&mut self, store: &mut SignalStore, now: Time, changes: &mut Vec<Change>) {
        self.on_samples(store, now, changes);
        if self.last_tick.is_some_and(|t| now >= t && now.since(t) < EVALUATION_INTERVAL) {
            return;
        }
        self.last_tick = Some(now);
        for entry in &mut self.entries {
            for index in 0..entry.groups.len() {
                let quick_check = &entry.quick_checks[index];
                if quick_check.is_timed
                    || quick_check.evaluated.is_none_or(|t| t > now || now.is_past(t, MAX_INTERVAL))
                {
                    entry.make_due(index as u32);
                }
            }
        }
        self.evaluate_due(store, now, changes);
        self.report_inert(store, now, changes);
    }

    /// How many evaluations there were so far.
    pub const fn evaluation_count(&self) -> u64 {
        self.evaluation_count
    }

    /// The shortest time between two evaluations of a group.
    pub const fn shortest_interval(&self) -> Duration {
        self.shortest_interval
    }

    /// When to call [`Self::tick`] at the latest for the samples that came too soon after others.
    pub const fn due(&self) -> Option<Time> {
        self.due
    }

    /// The rules, in their order.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.entries.iter().map(|e| &e.compiled.rule)
    }

    /// The state of every rule on every group, and why it does not fire.
    pub fn evaluations(&self, now: Time) -> Vec<why::Evaluation> {
        self.evaluations_where(|_, _| true, now)
    }

    /// The same of the groups of which labels and state are `wanted`.
    pub fn evaluations_where(
        &self,
        wanted: impl Fn(&Labels, RuleState) -> bool,
        now: Time,
    ) -> Vec<why::Evaluation> {
        let of_entry =
            |e: &RuleEntry| why::evaluations_of(&e.compiled, e.shown(), e.inert.as_deref(), &wanted, now);
        self.entries.iter().flat_map(of_entry).collect()
    }

    fn evaluate_due(&mut self, store: &mut SignalStore, now: Time, changes: &mut Vec<Change>) {
        self.due = None;
        for entry in &mut self.entries {
            let RuleEntry { compiled, groups, quick_checks, due, is_due, .. } = entry;
            due.sort_unstable();
            due.retain(|index| {
                let quick_check = &mut quick_checks[*index as usize];
                let is_too_soon = |t: &Time| now >= *t && !now.is_past(*t, compiled.interval);
                if let Some(evaluated) = quick_check.evaluated.filter(is_too_soon) {
                    let next = evaluated + compiled.interval;
                    self.due = Some(self.due.map_or(next, |due| due.min(next)));
                    return true;
                }
                is_due[*index as usize] = false;
                self.evaluation_count += 1;
                let is_disturbed = !self.suppressions.is_empty();
                if !is_disturbed && quick_check.is_enough(compiled, store, &mut self.scratch, now) {
                    return false;
                }
                let group = &mut groups[*index as usize];
                quick_check.hand_over(group);
                let suppression = suppression_of(&self.suppressions, group);
                let change =
                    group.evaluate(compiled, store, &self.factors, suppression, &mut self.scratch, now);
                quick_check.note(compiled, group, now);
                changes.extend(change.map(|c| with_evidence(c, compiled, group, store)));
                false
            });
        }
    }

    /// Reports rules for which no group can be made, each once.
    fn report_inert(&mut self, store: &SignalStore, now: Time, changes: &mut Vec<Change>) {
        if store.recorded() > 0 {
            self.first_sample.get_or_insert(now);
        }
        for entry in &mut self.entries {
            // A server that is still loading its model gives no number for minutes.
            let is_over = match self.first_sample {
                Some(first_sample) => now.since(entry.loaded_at.max(first_sample)) >= GRACE,
                None => now.since(entry.loaded_at) >= NO_SAMPLES_GRACE,
            };
            if !entry.groups.is_empty() {
                entry.inert = None;
            } else if entry.inert.is_none() && is_over {
                let reason = why::no_group(&entry.compiled, store);
                entry.inert = Some(reason.clone());
                changes.push(Change {
                    at: now,
                    rule: entry.compiled.rule.clone(),
                    target: None,
                    group: Labels::default(),
                    state: RuleState::Inert,
                    how: ChangeKind::Entered,
                    since: now,
                    finding: None,
                    numbers: None,
                    reason: Some(reason),
                    trouble: None,
                    may_predate_start: false,
                });
            }
        }
    }

    /// Group ids mean something else once the store has sorted its series again.
    fn refresh_groups(&mut self, store: &SignalStore, now: Time) {
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

    /// A firing was captured, or an attempt was made, at `mark` times its bound: from now on it is
    /// reported once it is `by` times worse than that. `group` has all of the group's labels.
    pub fn watch_escalation(&mut self, rule: &str, group: &Labels, mark: f64, by: f64) {
        if let Some((compiled, group)) = self.group_mut(rule, group) {
            group.watch_escalation(compiled, mark, by);
        }
    }

    /// The capture for a reported escalation was refused, for a reason that may have passed at
    /// `not_before`: then it is reported again if it is still as bad.
    pub fn retry_escalation(&mut self, rule: &str, group: &Labels, not_before: Time) {
        if let Some(escalation) = self.group_mut(rule, group).and_then(|(_, g)| g.escalation.as_mut()) {
            escalation.retry_from(not_before);
        }
    }

    /// How many times its bound a captured firing must be to be reported as worse.
    pub fn escalation_threshold(&self, rule: &str, group: &Labels) -> Option<f64> {
        self.group(rule, group)?.escalation.as_ref().map(EscalationWatch::threshold)
    }

    fn group(&self, rule: &str, group: &Labels) -> Option<&Group> {
        let entry = self.entries.iter().find(|e| *e.compiled.rule.name == *rule)?;
        Some(&entry.groups[*entry.by_labels.get(group)? as usize])
    }

    fn group_mut(&mut self, rule: &str, group: &Labels) -> Option<(&CompiledRule, &mut Group)> {
        let entry = self.entries.iter_mut().find(|e| *e.compiled.rule.name == *rule)?;
        let index = *entry.by_labels.get(group)?;
        Some((&entry.compiled, &mut entry.groups[index as usize]))
    }
}

fn suppression_of(suppressions: &BTreeMap<Arc<str>, Suppression>, group: &Group) -> Option<Suppression> {
    if suppressions.is_empty() {
        return None;
    }
    match group.labels.get("target") {
        Some(LabelValue::Text(name)) => suppressions.get(name).copied(),
        // A group over several servers is disturbed by a capture on any of them.
        _ => suppressions.values().next().copied(),
    }
}

impl RuleEntry {
    fn new(compiled: CompiledRule, now: Time) -> Self {
        let group_of_view = vec![Vec::new(); compiled.probes.len()];
        Self {
            compiled,
            groups: Vec::new(),
            quick_checks: Vec::new(),
            group_of_view,
            due: Vec::new(),
            is_due: Vec::new(),
            by_labels: BTreeMap::new(),
            inert: None,
            loaded_at: now,
        }
    }

    /// Its groups, with what was seen of each since.
    fn shown(&self) -> impl ExactSizeIterator<Item = (&Group, &QuickCheck)> {
        self.groups.iter().zip(&self.quick_checks)
    }

    fn make_due(&mut self, index: u32) {
        if !std::mem::replace(&mut self.is_due[index as usize], true) {
            self.due.push(index);
        }
    }

    /// The index of the group that a view's group belongs to, made when it is new.
    fn group_index(&mut self, probe: usize, id: GroupId, store: &SignalStore, now: Time) -> u32 {
        let in_view = id.0 as usize;
        if let Some(&index) = self.group_of_view[probe].get(in_view)
            && index != NO_GROUP
        {
            return index;
        }
        let labels = store.group_labels(self.compiled.probes[probe].view, id);
        let next = self.groups.len() as u32;
        let index = *self.by_labels.entry(labels.clone()).or_insert(next);
        if index == next {
            self.groups.push(Group::new(labels.clone(), self.compiled.probes.len(), now));
            self.quick_checks.push(QuickCheck::default());
            self.is_due.push(false);
        }
        let group_of_view = &mut self.group_of_view[probe];
        group_of_view.resize(group_of_view.len().max(in_view + 1), NO_GROUP);
        group_of_view[in_view] = index;
        self.groups[index as usize].ids[probe] = Some(id);
        self.quick_checks[index as usize].id = Some(id);
        index
    }

    fn find_groups(&mut self, store: &SignalStore, now: Time) {
        self.group_of_view = vec![Vec::new(); self.compiled.probes.len()];
        for (group, quick_check) in self.groups.iter_mut().zip(&mut self.quick_checks) {
            group.ids = vec![None; self.compiled.probes.len()];
            quick_check.id = None;
        }
        for probe in 0..self.compiled.probes.len() {
            let view = self.compiled.probes[probe].view;
            let ids: Vec<GroupId> = store.groups(view).map(|(id, _)| id).collect();
            for id in ids {
                self.group_index(probe, id, store, now);
            }
        }
        (0..self.groups.len() as u32).for_each(|index| self.make_due(index));
    }
}

#[cfg(test)]
mod tests;
