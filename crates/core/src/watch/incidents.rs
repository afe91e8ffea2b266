//! From a rule's change of state to an incident: opened at an onset, carried through its capture,
//! resolved when the rule clears.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::capture::governor::CaptureRequest;
use crate::finding::Finding;
use crate::incident::{CaptureOutcome, Incident};
use crate::rule::{Change, Rule};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Closed incidents that stay in memory, for the page and the API; the bundles hold them all.
const KEPT: usize = 100;

/// What tells firings apart: a rule on a group of a server.
pub type Key = (Arc<str>, Option<Arc<str>>, Labels);

/// An incident, and what the core needs to go on with it.
#[derive(Clone, Debug)]
pub struct ActiveIncident {
    /// As it stands.
    pub incident: Incident,
    /// Its rule as it was when it fired.
    pub rule: Arc<Rule>,
    /// Its group's labels, all of them.
    pub group: Labels,
    /// What fires, as the state keeps it: the group, whom it blames, on which side.
    pub firing: String,
    /// Whether it may have fired before the agent looked.
    pub may_carry_on: bool,
    /// Its messages are held back: until when, as was known when it fired.
    pub silenced: Option<Time>,
    /// Whether the data of its group are away: it may be over.
    pub is_away: bool,
    /// Whether somebody asked for it: no rule clears it, it is over with what was asked for.
    pub is_asked: bool,
    /// The number of the last capture whose refusal was told, of those wished for because it got worse.
    pub told_refused: usize,
}

impl ActiveIncident {
    /// Its wish for a capture on a server of that name and group.
    pub fn wish<'a>(&'a self, target: &'a str, group: &'a str, badness: f64) -> CaptureRequest<'a> {
        CaptureRequest {
            rule: &self.rule.name,
            limits: &self.rule.limits,
            target,
            group,
            incident: &self.incident.id,
            firing: &self.firing,
            may_carry_on: self.may_carry_on,
            badness,
        }
    }
}

/// All incidents: those that fire, and the last ones that do not.
#[derive(Debug, Default)]
pub struct Incidents {
    cases: BTreeMap<Arc<str>, ActiveIncident>,
    firing: BTreeMap<Key, Arc<str>>,
}

impl Incidents {
    /// Opens an incident for a change that is an onset. `target` names the server that a capture
    /// would be taken on.
    pub fn open(&mut self, change: &Change, finding: Finding, target: Arc<str>) -> &mut ActiveIncident {
        let id = id_of(change);
        self.firing.insert(key_of(change), id.clone());
        self.forget_old();
        self.cases.entry(id.clone()).or_insert(case_of(id, change, finding, target))
    }

    /// Opens an incident that nothing fires for: somebody asked. It is over with its window.
    pub fn open_asked(&mut self, change: &Change, finding: Finding, target: Arc<str>) -> Arc<str> {
        let id = id_of(change);
        self.forget_old();
        let case = ActiveIncident { is_asked: true, ..case_of(id.clone(), change, finding, target) };
        self.cases.insert(id.clone(), case);
        id
    }

    /// The incident that fires for the rule and group of a change.
    pub fn firing(&self, change: &Change) -> Option<&ActiveIncident> {
        self.cases.get(self.firing.get(&key_of(change))?)
    }

    /// One, to go on with it.
    pub fn firing_mut(&mut self, change: &Change) -> Option<&mut ActiveIncident> {
        self.cases.get_mut(self.firing.get(&key_of(change))?)
    }

    /// Resolves the incident that fires for the rule and group of a change.
    pub fn resolve(&mut self, change: &Change) -> Option<&ActiveIncident> {
        let id = self.firing.remove(&key_of(change))?;
        let case = self.cases.get_mut(&id)?;
        case.incident.resolve(change.at);
        Some(case)
    }

    /// Resolves an incident that was asked for; `None` where it is another's, or resolved already.
    pub fn resolve_asked(&mut self, id: &str, at: Time) -> Option<&ActiveIncident> {
        let case = self.cases.get_mut(id)?;
        (case.is_asked && case.incident.resolve(at)).then_some(case)
    }

    /// Resolves the incidents of a rule that is gone or detects something else now.
    pub fn resolve_rule(&mut self, rule: &str, at: Time) -> Vec<ActiveIncident> {
        let gone: Vec<Key> = self.firing.keys().filter(|(name, ..)| &**name == rule).cloned().collect();
        let ids: Vec<Arc<str>> = gone.iter().filter_map(|key| self.firing.remove(key)).collect();
        let mut resolved = Vec::new();
        for id in ids {
            if let Some(case) = self.cases.get_mut(&id) {
                case.incident.resolve(at);
                resolved.push(case.clone());
            }
        }
        resolved
    }

    /// One incident.
    pub fn get(&self, id: &str) -> Option<&ActiveIncident> {
        self.cases.get(id)
    }

    /// One incident, to go on with it.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut ActiveIncident> {
        self.cases.get_mut(id)
    }

    /// Those that fire, and those whose data are away since, in the order of their rules and groups.
    pub fn firing_now(&self) -> impl Iterator<Item = &ActiveIncident> {
        self.firing.values().filter_map(|id| self.cases.get(id))
    }

    /// All that are in memory, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &ActiveIncident> {
        self.cases.values().rev()
    }

    fn forget_old(&mut self) {
        let open: Vec<&Arc<str>> = self.firing.values().collect();
        let closed: Vec<Arc<str>> = self
            .cases
            .iter()
            .filter(|(id, case)| {
                !open.contains(id) && !matches!(case.incident.capture, CaptureOutcome::Open { .. })
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in closed.iter().take(closed.len().saturating_sub(KEPT)) {
            self.cases.remove(id);
        }
    }
}

fn case_of(id: Arc<str>, change: &Change, finding: Finding, target: Arc<str>) -> ActiveIncident {
    let rule = change.rule.clone();
    let group = match &change.target {
        Some(target) => change.group.clone().with_target(target),
        None => change.group.clone(),
    };
    // Nobody's rule fires where nobody is blamed.
    let firing = match finding.rank.0.is_empty() {
        true => String::new(),
        false => format!("{} {} {}", change.group, finding.rank, finding.side.word()).trim().to_owned(),
    };
    let incident = Incident {
        about: rule.about.clone(),
        group: change.group.clone(),
        severity: rule.severity,
        labels: rule.labels.clone(),
        ..Incident::new(id, rule.name.clone(), target, change.at, finding)
    };
    let may_carry_on = change.may_predate_start;
    ActiveIncident {
        incident,
        rule,
        group,
        firing,
        may_carry_on,
        silenced: None,
        is_away: false,
        is_asked: false,
        told_refused: 0,
    }
}

fn key_of(change: &Change) -> Key {
    (change.rule.name.clone(), change.target.clone(), change.group.clone())
}

/// `20261124T034845Z-dp-load-skew-3f9a`: sortable, and the same whenever the same is replayed. The
/// last part tells groups apart whose rules fire in one second.
fn id_of(change: &Change) -> Arc<str> {
    let stamp = jiff::Timestamp::from_nanosecond(i128::from(change.at.nanos())).unwrap_or_default();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let group = format!("{:?}{}{}", change.target, change.group, change.at.nanos());
    for byte in group.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let rule: String =
        change.rule.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{}-{rule}-{:04x}", stamp.strftime("%Y%m%dT%H%M%SZ"), hash & 0xffff).into()
}
